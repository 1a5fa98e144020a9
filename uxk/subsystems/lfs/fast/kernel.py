"""Writing, choosing victims, moving: the counting engine's inner loops for a volume of one pool."""

from __future__ import annotations

from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.arrays import Ints, Words
from uxk.subsystems.lfs.fast.jit import jit, prefetch
from uxk.subsystems.lfs.fast.moves import AHEAD, append, fits, forget, hooks_of, make_clean, move_all, shift_of
from uxk.subsystems.lfs.fast.place import place_gc, place_user, retire
from uxk.subsystems.lfs.fast.select import select
from uxk.subsystems.lfs.fast.shared import run_shared


@jit
def run(reg: Ints, page: Ints, seg: Ints, owner: Words, aux: Ints, ops: Words, start: int, stop: int) -> int:
    """Writes the pages ``ops[start:stop]``; after each, while garbage > threshold, cleans one victim.

    Returns ``stop``; or, with the register FULL set, where to go on once there are clean segments again.
    """
    reg[c.FULL] = 0
    if reg[c.POOLS] == 2:
        return run_shared(reg, page, seg, owner, aux, ops, start, stop, owner, False)
    return run_alone(reg, page, seg, owner, aux, ops, start, stop, owner, False)


@jit
def collect(
    reg: Ints, page: Ints, seg: Ints, owner: Words, aux: Ints, victim: int, size: int, hooks: int
) -> int:  # fmt: skip
    """Moves what is valid in a sealed segment, and makes it clean; returns the garbage that sealing adds."""
    retire(reg, page, seg, owner, 0, victim)
    kind = reg[c.PLACEMENT]
    live = seg[victim, c.LIVE]
    time = seg[victim, c.SA] // seg[victim, c.USED]
    added = 0
    if hooks == 0 and (kind == c.NOSEP or kind == c.SEPGC):
        added = move_all(reg, page, seg, owner, victim, 1 if kind == c.SEPGC else 0, size)
    else:
        end = victim * size + size
        for block in range(victim * size, end):
            if block + AHEAD < end:
                prefetch(page, owner[block + AHEAD] * 4)
            p = owner[block]
            if p >= 0:
                log = place_gc(reg, page, seg, aux, p, p, victim)
                added += append(reg, reg, page, seg, owner, p, log, size, hooks, p, time)
    reg[c.MOVED] += live
    make_clean(reg, seg, owner, victim, size)
    return added


@jit
def run_alone(
    reg: Ints, page: Ints, seg: Ints, owner: Words, aux: Ints, ops: Words, start: int, stop: int,
    debt: Words, counted: bool,
) -> int:  # fmt: skip
    """See :func:`run`; if ``counted``, ``debt[start:stop]`` gets the blocks moved after each write."""
    size = reg[c.SIZE]
    shift = shift_of(size)
    hooks = hooks_of(reg)
    atgc = reg[c.SELECTION] == c.ATGC
    gp = reg[c.GP_PPM]
    now = reg[c.NOW]
    garbage = reg[c.GARBAGE]
    total = reg[c.TOTAL]
    index = start
    while index < stop and reg[c.FULL] == 0:
        if reg[c.CLEAN] == 0:
            reg[c.FULL] = 1
            break
        p = ops[index]
        index += 1
        if index + AHEAD < stop:
            prefetch(page, ops[index + AHEAD] * 4)
        now += 1
        reg[c.NOW] = now
        block = page[p, c.BLOCK]
        time = 0
        if block >= 0:
            s = block >> shift if shift >= 0 else block // size
            owner[block] = -1
            seg[s, c.LIVE] -= 1
            if seg[s, c.SEALED] >= 0:
                garbage += 1
            if hooks:
                time = forget(reg, page, seg, hooks, p, s)
        else:
            reg[c.VALID] += 1
        log = place_user(reg, page, aux, p, p)
        page[p, c.LAST] = now
        garbage += append(reg, reg, page, seg, owner, p, log, size, hooks, p, now if atgc else time)
        total += 1
        moved = reg[c.MOVED]
        while garbage * 1_000_000 > gp * total:
            victim = select(reg, seg)
            if victim < 0:
                reg[c.STUCK] += 1
                break
            if not fits(reg, reg, seg[victim, c.LIVE]):
                reg[c.FULL] = 1
                break
            freed = seg[victim, c.USED] - seg[victim, c.LIVE]
            garbage += collect(reg, page, seg, owner, aux, victim, size, hooks) - freed
            total -= freed
        if counted:
            debt[index - 1] = reg[c.MOVED] - moved
    reg[c.GARBAGE] = garbage
    reg[c.TOTAL] = total
    reg[c.USER] = reg[c.NOW]
    return index
