"""Steps of both kernels: appending to a log, sealing, making clean; and the sums that some policies keep."""

# What one reads out of an array has no type.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.arrays import Ints, Words
from uxk.subsystems.lfs.fast.jit import inline, jit
from uxk.subsystems.lfs.fast.rare import warcip_sealed

INHERITED = 1
"""The selection sums a time that blocks bring along (MDC, ATGC)."""
WEIGHED = 2
"""The placement sums writes and times of valid blocks (SFS)."""
SEALS = 4
"""The placement wants to know when segments are full (WARCIP)."""
AHEAD = 8
"""Writes, or blocks of a victim, between asking for a page's row and using it."""


@jit
def hooks_of(reg: Ints) -> int:
    """What a pool's policy wants to be told, beside blocks to place."""
    hooks = 0
    if reg[c.SELECTION] == c.MDC or reg[c.SELECTION] == c.ATGC:
        hooks = INHERITED
    if reg[c.BASIS] == c.SFS:
        hooks += WEIGHED
    if reg[c.BASIS] == c.WARCIP:
        hooks += SEALS
    return hooks


@jit
def shift_of(size: int) -> int:
    """Its logarithm, or -1 if it is no power of two."""
    shift = 0
    while 1 << shift < size:
        shift += 1
    return shift if 1 << shift == size else -1


@jit
def open_segment(reg: Ints, pool: Ints, seg: Ints, log: int) -> int:
    """Takes a clean segment as the head of a log; there must be one."""
    top = reg[c.CLEAN] - 1
    s = seg[top, c.STACK]
    reg[c.CLEAN] = top
    if top < reg[c.LOW]:
        reg[c.LOW] = top
    pool[c.HEAD + log] = s
    seg[s, c.CLASS] = log
    seg[s, c.BORN] = pool[c.NOW]
    seg[s, c.SA] = 0
    seg[s, c.SB] = 0
    seg[s, c.SC] = 0
    seg[s, c.POOL] = pool[c.INDEX]
    return s


@jit
def forget(pool: Ints, page: Ints, seg: Ints, hooks: int, row: int, s: int) -> int:
    """Takes an overwritten block out of its segment's sums; returns the time that the new copy inherits."""
    if hooks & WEIGHED:
        seg[s, c.SB] -= page[row, c.A]
        seg[s, c.SC] -= page[row, c.LAST]
    if pool[c.SELECTION] == c.MDC:
        before = seg[s, c.SA] // seg[s, c.USED]
        return before + (pool[c.NOW] - before) // 2
    return 0


@jit
def note(pool: Ints, page: Ints, seg: Ints, hooks: int, row: int, s: int, time: int, log: int) -> None:
    """Adds an appended block to its segment's sums, and tells who wants to know that a segment is full."""
    if hooks & INHERITED:
        seg[s, c.SA] += time
    if hooks & WEIGHED:
        seg[s, c.SB] += page[row, c.A]
        seg[s, c.SC] += page[row, c.LAST]
    if hooks & SEALS and seg[s, c.SEALED] >= 0:
        warcip_sealed(pool, log)


@inline
def append(
    reg: Ints, pool: Ints, page: Ints, seg: Ints, owner: Words,
    p: int, log: int, size: int, hooks: int, row: int, time: int,
) -> int:  # fmt: skip
    """Puts a page at the head of a log, and seals the segment that it fills; returns the garbage that this adds."""
    s = pool[c.HEAD + log]
    if s < 0:
        s = open_segment(reg, pool, seg, log)
    used = seg[s, c.USED]
    block = s * size + used
    owner[block] = p
    page[p, c.BLOCK] = block
    live = seg[s, c.LIVE] + 1
    seg[s, c.USED] = used + 1
    seg[s, c.LIVE] = live
    added = 0
    if used + 1 == size:
        seg[s, c.SEALED] = pool[c.NOW]
        pool[c.HEAD + log] = -1
        added = size - live
    if hooks:
        note(pool, page, seg, hooks, row, s, time, log)
    return added


@jit
def move_all(reg: Ints, page: Ints, seg: Ints, owner: Words, victim: int, log: int, size: int) -> int:
    """Moves what is valid in a victim to one log, without sums; returns the garbage that sealing adds."""
    added = 0
    block = victim * size
    end = block + size
    s = reg[c.HEAD + log]
    while True:
        while block < end and owner[block] < 0:
            block += 1
        if block == end:
            return added
        if s < 0:
            s = open_segment(reg, reg, seg, log)
        first = s * size + seg[s, c.USED]
        new = first
        full = (s + 1) * size
        while block < end and new < full:
            p = owner[block]
            block += 1
            if p >= 0:
                owner[new] = p
                page[p, c.BLOCK] = new
                new += 1
        seg[s, c.USED] += new - first
        seg[s, c.LIVE] += new - first
        if new == full:
            seg[s, c.SEALED] = reg[c.NOW]
            reg[c.HEAD + log] = -1
            added += size - seg[s, c.LIVE]
            s = -1


@jit
def make_clean(reg: Ints, seg: Ints, owner: Words, s: int, size: int) -> None:
    """Puts a segment that holds nothing any more on the stack of clean ones."""
    owner[s * size : s * size + size] = -1
    seg[s, c.LIVE] = 0
    seg[s, c.USED] = 0
    seg[s, c.CLASS] = -1
    seg[s, c.SEALED] = -1
    seg[reg[c.CLEAN], c.STACK] = s
    reg[c.CLEAN] += 1
    reg[c.CLEANED] += 1


@jit
def fits(reg: Ints, pool: Ints, live: int) -> bool:
    """Whether there are clean segments enough for a victim's valid blocks, wherever its policy sends them."""
    logs = pool[c.LOGS]
    kind = pool[c.PLACEMENT]
    if kind == c.NOSEP or kind == c.SEPGC or kind == c.ETI or kind == c.F2FS:
        logs = 1
    return reg[c.CLEAN] >= min(live, logs)
