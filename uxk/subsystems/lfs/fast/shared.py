"""The inner loop for a volume of two pools: the first follows the default policy, the second the hinted one.

A page is of the second pool if its bucket is below SHARE; it changes over with its next write or move.  Pools share
clean segments and nothing else.  The rule stays the volume's: while its garbage exceeds the threshold, one victim
is cleaned, of the pool with the greater share of garbage.
"""

# What one reads out of an array has no type.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.arrays import Ints, Words
from uxk.subsystems.lfs.fast.jit import inline, jit, prefetch
from uxk.subsystems.lfs.fast.moves import AHEAD, INHERITED, append, forget, hooks_of, make_clean, shift_of
from uxk.subsystems.lfs.fast.place import place_gc, place_user, retire
from uxk.subsystems.lfs.fast.select import select


@jit
def run_shared(
    reg: Ints, page: Ints, seg: Ints, owner: Words, aux: Ints, ops: Words, start: int, stop: int,
    debt: Words, counted: bool,
) -> int:  # fmt: skip
    """See :func:`uxk.subsystems.lfs.fast.kernel.run_alone`."""
    first = reg[c.REGISTERS : 2 * c.REGISTERS]
    second = reg[2 * c.REGISTERS : 3 * c.REGISTERS]
    hooks = hooks_of(first), hooks_of(second)
    size = reg[c.SIZE]
    shift = shift_of(size)
    pages = reg[c.PAGES]
    share = reg[c.SHARE]
    warm = share > 0 or reg[c.WARM] > 0
    index = start
    while index < stop and reg[c.FULL] == 0:
        if reg[c.CLEAN] == 0:
            reg[c.FULL] = 1
            break
        p = ops[index]
        index += 1
        if index + AHEAD < stop:
            ahead = ops[index + AHEAD]
            prefetch(page, ahead * 4)
            prefetch(page, (ahead + pages) * 4)
        now = reg[c.NOW] + 1
        reg[c.NOW] = now
        first[c.NOW] = now
        second[c.NOW] = now
        time = drop_old(reg, first, second, page, seg, owner, p, hooks, shift)
        log = place_user(first, page, aux, p, p)
        own = first
        row = p
        told = hooks[0]
        if warm:
            hinted = place_user(second, page, aux, p + pages, p)
            if page[p + pages, c.BLOCK] < share:
                log = hinted
                own = second
                row = p + pages
                told = hooks[1]
        page[p, c.LAST] = now
        page[p + pages, c.LAST] = now
        if own[c.SELECTION] == c.ATGC:
            time = now
        added = append(reg, own, page, seg, owner, p, log, size, told, row, time)
        own[c.GARBAGE] += added
        own[c.TOTAL] += 1
        own[c.USER] += 1
        reg[c.GARBAGE] += added
        reg[c.TOTAL] += 1
        moved = reg[c.MOVED]
        clean(reg, first, second, page, seg, owner, aux, hooks)
        if counted:
            debt[index - 1] = reg[c.MOVED] - moved
    return index


@inline
def drop_old(
    reg: Ints, first: Ints, second: Ints, page: Ints, seg: Ints, owner: Words, p: int, hooks: tuple[int, int],
    shift: int,
) -> int:  # fmt: skip
    """Makes a page's old copy garbage, of the pool where it lies; returns the time that the new copy inherits."""
    block = page[p, c.BLOCK]
    if block < 0:
        reg[c.VALID] += 1
        first[c.VALID] = reg[c.VALID]
        second[c.VALID] = reg[c.VALID]
        return 0
    s = block >> shift if shift >= 0 else block // reg[c.SIZE]
    owner[block] = -1
    seg[s, c.LIVE] -= 1
    old = second if seg[s, c.POOL] else first
    if seg[s, c.SEALED] >= 0:
        old[c.GARBAGE] += 1
        reg[c.GARBAGE] += 1
    told = hooks[1] if seg[s, c.POOL] else hooks[0]
    if told:
        return forget(old, page, seg, told, p + reg[c.PAGES] if seg[s, c.POOL] else p, s)
    return 0


@inline
def clean(
    reg: Ints, first: Ints, second: Ints, page: Ints, seg: Ints, owner: Words, aux: Ints, hooks: tuple[int, int]
) -> None:
    """The frozen rule; sets FULL if a victim's blocks might find no clean segment."""
    while reg[c.GARBAGE] * 1_000_000 > reg[c.GP_PPM] * reg[c.TOTAL]:
        victim = choose(reg, first, second, seg)
        if victim < 0:
            reg[c.STUCK] += 1
            break
        if reg[c.CLEAN] < min(seg[victim, c.LIVE], first[c.LOGS] + second[c.LOGS]):
            reg[c.FULL] = 1
            break
        collect_shared(reg, first, second, page, seg, owner, aux, victim, hooks)


@jit
def choose(reg: Ints, first: Ints, second: Ints, seg: Ints) -> int:
    """A victim of the pool with the greater share of garbage, or of the other one if it has none; -1: of neither."""
    if second[c.GARBAGE] * first[c.TOTAL] <= first[c.GARBAGE] * second[c.TOTAL] and first[c.TOTAL] > 0:
        victim = select(first, seg)
        if victim >= 0:
            return victim
    victim = select(second, seg)
    if victim < 0:
        return select(first, seg)
    if reg[c.HINT_NEXT] < reg[c.HINT_COUNT] and reg[c.SHARE] > 0:
        return hinted_victim(reg, second, seg, victim)
    return victim


@jit
def hinted_victim(reg: Ints, pool: Ints, seg: Ints, own: int) -> int:
    """The next hinted victim that passes every check, or else the pool's own choice."""
    slack = reg[c.SIZE] >> 3
    while reg[c.HINT_NEXT] < reg[c.HINT_COUNT]:
        at = c.QUEUE + 2 * reg[c.HINT_NEXT]
        reg[c.HINT_NEXT] += 1
        s = int(reg[at])
        if s < 0 or s >= reg[c.SEGMENTS]:
            reg[c.HINT_RANGE] += 1
        elif seg[s, c.SEALED] < 0 or seg[s, c.POOL] != pool[c.INDEX]:
            reg[c.HINT_NOT_SEALED] += 1
        elif seg[s, c.LIVE] > reg[at + 1] or seg[s, c.LIVE] > reg[c.MOST]:
            reg[c.HINT_TOO_FULL] += 1
        elif seg[s, c.LIVE] > seg[own, c.LIVE] + slack:
            reg[c.HINT_COSTLY] += 1
        else:
            reg[c.HINT_USED] += 1
            return s
    return own


@jit
def collect_shared(
    reg: Ints, first: Ints, second: Ints, page: Ints, seg: Ints, owner: Words, aux: Ints,
    victim: int, hooks: tuple[int, int],
) -> None:  # fmt: skip
    """Moves what is valid in a victim, each block to its page's pool, and makes the segment clean."""
    size = reg[c.SIZE]
    pages = reg[c.PAGES]
    share = reg[c.SHARE]
    warm = share > 0 or reg[c.WARM] > 0
    whose = second if seg[victim, c.POOL] else first
    retire(whose, page, seg, owner, pages if seg[victim, c.POOL] else 0, victim)
    used = seg[victim, c.USED]
    live = seg[victim, c.LIVE]
    # A pool whose selection keeps no times hands on the sealing.
    kept = (hooks[1] if seg[victim, c.POOL] else hooks[0]) & INHERITED
    time = seg[victim, c.SA] // used if kept else seg[victim, c.SEALED]
    end = victim * size + used
    for block in range(victim * size, end):
        if block + AHEAD < end:
            prefetch(page, owner[block + AHEAD] * 4)
            prefetch(page, (owner[block + AHEAD] + pages) * 4)
        p = owner[block]
        if p >= 0:
            log = place_gc(first, page, seg, aux, p, p, victim)
            own = first
            row = p
            told = hooks[0]
            if warm:
                hinted = place_gc(second, page, seg, aux, p + pages, p, victim)
                if page[p + pages, c.BLOCK] < share:
                    log = hinted
                    own = second
                    row = p + pages
                    told = hooks[1]
            added = append(reg, own, page, seg, owner, p, log, size, told, row, time)
            own[c.MOVED] += 1
            own[c.TOTAL] += 1
            own[c.GARBAGE] += added
            reg[c.GARBAGE] += added
    reg[c.MOVED] += live
    reg[c.GARBAGE] -= used - live
    reg[c.TOTAL] -= used - live
    whose[c.GARBAGE] -= used - live
    whose[c.TOTAL] -= used
    whose[c.CLEANED] += 1
    make_clean(reg, seg, owner, victim, size)
