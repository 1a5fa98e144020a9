"""Placements: to which log a block goes.  Their sources are named in :mod:`uxk.subsystems.lfs.policies`."""

# What one reads out of an array has no type.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.arrays import Ints, Words
from uxk.subsystems.lfs.fast.jit import inline, jit
from uxk.subsystems.lfs.fast.learned import rate_gc, rate_user
from uxk.subsystems.lfs.fast.rare import rare_gc, rare_retire, rare_user
from uxk.subsystems.lfs.fast.stream import stream_gc, stream_user

LIFESPANS = 16
"""Segments over whose lifespans SepBIT takes the mean."""


@inline
def place_user(reg: Ints, page: Ints, aux: Ints, row: int, p: int) -> int:
    """Class of a user write; the page's old copy is invalid already, LAST is still the old one."""
    log = user_class(reg, page, aux, row, p)
    if reg[c.PLACEMENT] == c.TABLE and 0 <= aux[p] < reg[c.LOGS]:
        log = aux[p]
    return log


@inline
def place_gc(reg: Ints, page: Ints, seg: Ints, aux: Ints, row: int, p: int, victim: int) -> int:
    """Class of a block that is moved out of ``victim``."""
    log = gc_class(reg, page, seg, row, p, victim)
    if reg[c.PLACEMENT] == c.TABLE and 0 <= aux[p] < reg[c.LOGS]:
        log = aux[p]
    return log


@inline
def user_class(reg: Ints, page: Ints, aux: Ints, row: int, p: int) -> int:
    """What the placement itself says."""
    kind = reg[c.BASIS]
    if kind == c.NOSEP or kind == c.SEPGC:
        return 0
    if kind == c.RATE:
        return rate_user(reg, page, row)
    if kind == c.STREAM:
        return stream_user(reg, p)
    if kind == c.SEPBIT:
        last = page[row, c.LAST]
        limit = reg[c.STATE]
        if last >= 0 and (limit == 0 or reg[c.NOW] - last < limit):
            return 0
        return 1
    if kind == c.DAC:
        level = page[row, c.A]
        if page[row, c.LAST] >= 0 and level < reg[c.LOGS] - 1:
            level += 1
            page[row, c.A] = level
        return level
    if kind == c.FADAC:
        count = page[row, c.A] + 1
        page[row, c.A] = count
        reg[c.STATE] += ((1 << 40) - reg[c.STATE]) // reg[c.VALID]
        return fadac_class(reg, count)
    if kind == c.MIDA:
        page[row, c.A] = 0
        return 0
    if kind == c.FKG or kind == c.FK:
        due = int(aux[reg[c.NOW] - 1])
        page[row, c.A] = due
        return future_class(reg, due)
    return rare_user(reg, page, row, p)


@inline
def gc_class(reg: Ints, page: Ints, seg: Ints, row: int, p: int, victim: int) -> int:
    """What the placement itself says."""
    kind = reg[c.BASIS]
    if kind == c.NOSEP:
        return 0
    if kind == c.SEPGC:
        return 1
    if kind == c.RATE:
        return rate_gc(reg, page, seg, row, victim)
    if kind == c.STREAM:
        return stream_gc(reg, seg[victim, c.CLASS])
    if kind == c.SEPBIT:
        return sepbit_class(reg, seg[victim, c.CLASS], reg[c.NOW] - page[row, c.LAST])
    if kind == c.DAC:
        level = page[row, c.A]
        if level > 0:
            level -= 1
            page[row, c.A] = level
        return level
    if kind == c.FADAC:
        count = page[row, c.A]
        if count > 0:
            count -= 1
            page[row, c.A] = count
        return fadac_class(reg, count)
    if kind == c.MIDA:
        moves = page[row, c.A]
        if moves < reg[c.LOGS] - 1:
            moves += 1
            page[row, c.A] = moves
        return moves
    if kind == c.FKG or kind == c.FK:
        return future_class(reg, page[row, c.A])
    return rare_gc(reg, page, seg, row, victim)


@inline
def sepbit_class(reg: Ints, klass: int, age: int) -> int:
    """SepBIT's classes of moved blocks: 2 out of class 0, else by age in steps of 4 lifespans."""
    if klass == 0:
        return 2
    level = 3
    base = reg[c.STATE] * 4
    while age >= base and level < reg[c.LOGS] - 1:
        base *= 4
        level += 1
    return level


@inline
def fadac_class(reg: Ints, count: int) -> int:
    """Decades above the fading average of writes."""
    base = reg[c.STATE]
    level = 0
    while count << 40 >= base and base > 0 and level < reg[c.LOGS] - 1:
        base *= 10
        level += 1
    return level


@inline
def future_class(reg: Ints, due: int) -> int:
    """Class by the remaining life: linear in segments (FK), or geometric with ratio 4 (FKG)."""
    remaining = due - reg[c.NOW]
    if reg[c.BASIS] == c.FK:
        return min(remaining // reg[c.SIZE], reg[c.LOGS] - 1)
    level = 0
    base = reg[c.SIZE] * (reg[c.ARG] if reg[c.ARG] > 0 else 4)
    while remaining >= base and level < reg[c.LOGS] - 1:
        base *= 4
        level += 1
    return level


@jit
def retire(reg: Ints, page: Ints, seg: Ints, owner: Words, offset: int, s: int) -> None:
    """What placements learn from a victim before its blocks move; ``offset`` is that of their rows of pages."""
    kind = reg[c.BASIS]
    if kind == c.SEPBIT:
        if seg[s, c.CLASS] == 0:
            reg[c.STATE + 1] += reg[c.NOW] - seg[s, c.BORN]
            reg[c.STATE + 2] += 1
            if reg[c.STATE + 2] == LIFESPANS:
                reg[c.STATE] = reg[c.STATE + 1] // LIFESPANS
                reg[c.STATE + 1] = 0
                reg[c.STATE + 2] = 0
    elif kind == c.SFS or kind == c.MULTILOG:
        rare_retire(reg, page, seg, owner, offset, s)
