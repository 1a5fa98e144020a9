"""Selections: which sealed segment is cleaned next."""

# What one reads out of an array has no type.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.arrays import Ints
from uxk.subsystems.lfs.fast.jit import call_row, inline, jit
from uxk.subsystems.lfs.fast.learned import learned_score, lg

CHOICES = 10
"""Segments that d-choices looks at."""
DRAWS_MAX = 1024
MODULUS = (1 << 31) - 1
MULTIPLIER = 48_271
NO_KEY = 1 << 62
PARTS = 1024
"""A segment's blocks, as a program sees them."""
CLOCK_SHIFT = 16
"""65,536 ticks in as many writes as the volume has pages: a program's time."""
TICKS_MAX = 1 << 40
TIME_MAX = 1 << 46
"""Writes; what is longer ago counts as this."""
SAFE = 1 << 62
"""Products below this do not overflow."""


@jit
def select(reg: Ints, seg: Ints) -> int:
    """The victim among a pool's segments, or -1 if none has enough garbage.  Ties go to the lowest number."""
    kind = reg[c.SELECTION]
    if kind == c.GREEDY:
        return select_greedy(reg, seg)
    if kind == c.CB_AGE:
        return select_cb_age(reg, seg)
    if kind == c.D_CHOICES:
        return select_choices(reg, seg)
    if kind == c.ATGC:
        return select_atgc(reg, seg)
    if kind == c.PROGRAM:
        return select_program(reg, seg)
    return select_score(reg, seg)


@inline
def is_candidate(reg: Ints, seg: Ints, s: int, most: int, pool: int) -> bool:
    """Whether a segment is sealed, the pool's, and has at most that many valid blocks."""
    return seg[s, c.LIVE] <= most and seg[s, c.SEALED] >= 0 and seg[s, c.POOL] == pool


@jit
def select_greedy(reg: Ints, seg: Ints) -> int:
    """The fewest valid blocks."""
    most = reg[c.MOST]
    pool = reg[c.INDEX]
    best = -1
    for s in range(reg[c.SEGMENTS]):
        if is_candidate(reg, seg, s, most, pool):
            most = seg[s, c.LIVE] - 1
            best = s
    return best


@jit
def select_cb_age(reg: Ints, seg: Ints) -> int:
    """Garbage times age over valid blocks; compared by products, as a division takes as long as twenty of them."""
    size = reg[c.SIZE]
    now = reg[c.NOW]
    most = reg[c.MOST]
    pool = reg[c.INDEX]
    safe = SAFE // (size + 1)
    best = -1
    wanted = 0
    for s in range(reg[c.SEGMENTS]):
        if is_candidate(reg, seg, s, most, pool):
            live = seg[s, c.LIVE]
            if live == 0:
                return s
            gain = ((size - live) * (now - seg[s, c.SEALED])) << 16
            if wanted > safe or gain >= wanted * live:
                score = gain // live
                if score >= wanted:
                    best = s
                    wanted = score + 1
    return best


@jit
def select_score(reg: Ints, seg: Ints) -> int:
    """The highest score; a segment without valid blocks costs nothing and goes first."""
    kind = reg[c.SELECTION]
    size = reg[c.SIZE]
    now = reg[c.NOW]
    most = reg[c.MOST]
    pool = reg[c.INDEX]
    best = -1
    best_score = -1
    for s in range(reg[c.SEGMENTS]):
        if is_candidate(reg, seg, s, most, pool):
            live = seg[s, c.LIVE]
            if live == 0:
                return s
            age = now - seg[s, c.SEALED]
            garbage = size - live
            if kind == c.LEARNED:
                score = learned_score(reg, seg, s, age, live, garbage)
            elif kind == c.CB_SQRT:
                score = (garbage * garbage * age << 8) // (live * live)
            elif kind == c.MDC:
                score = (garbage * garbage * (now - seg[s, c.SA] // seg[s, c.USED]) << 8) // live
            else:
                score = age
            if score > best_score:
                best_score = score
                best = s
    return best


@jit
def select_choices(reg: Ints, seg: Ints) -> int:
    """The fewest valid blocks among ten random candidates; among all if 1,024 draws find none."""
    most = reg[c.MOST]
    pool = reg[c.INDEX]
    random = reg[c.RANDOM]
    best = -1
    hits = 0
    draws = 0
    while hits < CHOICES and draws < DRAWS_MAX:
        draws += 1
        random = random * MULTIPLIER % MODULUS
        s = random % reg[c.SEGMENTS]
        if is_candidate(reg, seg, s, most, pool):
            hits += 1
            live = seg[s, c.LIVE]
            if best < 0 or live < seg[best, c.LIVE] or (live == seg[best, c.LIVE] and s < best):
                best = s
    reg[c.RANDOM] = random
    return best if best >= 0 else select_greedy(reg, seg)


@jit
def select_atgc(reg: Ints, seg: Ints) -> int:
    """Of the oldest fifth of the candidates, and ten at least, the one with most age * 60 % + garbage * 40 %."""
    segments = reg[c.SEGMENTS]
    size = reg[c.SIZE]
    found = 0
    first = NO_KEY
    last = -1
    for s in range(segments):
        seg[s, c.KEY] = NO_KEY
        if is_candidate(reg, seg, s, reg[c.MOST], reg[c.INDEX]):
            key = seg[s, c.SA] // seg[s, c.USED] * segments + s
            seg[s, c.KEY] = key
            found += 1
            first = min(first, key)
            last = max(last, key)
    if found == 0:
        return -1
    bound = key_of_rank(seg, segments, min(max(10, 20 * found // 100), found), first, last)
    latest = last // segments + 1
    span = latest - first // segments
    best = -1
    best_score = -1
    for s in range(segments):
        if seg[s, c.KEY] <= bound:
            age = 10_000 * (latest - seg[s, c.KEY] // segments) // span * 60
            free = 10_000 * (size - seg[s, c.LIVE]) // size * 40
            if age + free > best_score or (age + free == best_score and seg[s, c.KEY] < seg[best, c.KEY]):
                best = s
                best_score = age + free
    return best


@jit
def key_of_rank(seg: Ints, segments: int, rank: int, low: int, high: int) -> int:
    """The smallest number that ``rank`` keys do not exceed; all keys are in ``low .. high`` or NO_KEY."""
    while low < high:
        middle = (low + high) >> 1
        below = 0
        for s in range(segments):
            if seg[s, c.KEY] <= middle:
                below += 1
        if below >= rank:
            high = middle
        else:
            low = middle + 1
    return low


@inline
def octaves(writes: int, pages: int) -> int:
    """log2 of a time in ticks, and one, in 1/256."""
    ticks = (min(max(writes, 0), TIME_MAX) << CLOCK_SHIFT) // max(pages, 1)
    return lg(min(ticks, TICKS_MAX) + 1)


@inline
def fill_row(reg: Ints, seg: Ints, s: int) -> None:
    """Puts what a program sees of a sealed segment into ROW; :mod:`uxk.subsystems.lfs.rows` says what it is."""
    size = reg[c.SIZE]
    live = seg[s, c.LIVE]
    pages = reg[c.PAGES]
    reg[c.ROW] = lg((size - live) * PARTS // size)
    reg[c.ROW + 1] = lg(live * PARTS // size)
    reg[c.ROW + 2] = octaves(reg[c.NOW] - seg[s, c.SEALED], pages)
    reg[c.ROW + 3] = octaves(seg[s, c.SEALED] - seg[s, c.BORN], pages)
    reg[c.ROW + 4] = min(max(seg[s, c.CLASS], 0), c.FOREIGN)
    reg[c.ROW + 5] = 0


@jit
def select_program(reg: Ints, seg: Ints) -> int:
    """The highest score of the program; a segment without valid blocks costs nothing and goes first.

    Cost-benefit without a program, or after a fault of it, which clears PROGRAM_AT.
    """
    at = reg[c.PROGRAM_AT]
    most = reg[c.MOST]
    pool = reg[c.INDEX]
    best = -1
    best_score = 0
    for s in range(reg[c.SEGMENTS]):
        if reg[c.PROGRAM_AT] == 0:
            return select_cb_age(reg, seg)
        if is_candidate(reg, seg, s, most, pool):
            if seg[s, c.LIVE] == 0:
                return s
            fill_row(reg, seg, s)
            score = call_row(at, reg, c.ROW)
            reg[c.PROGRAM_RUNS] += 1
            if best < 0 or score > best_score:
                best_score = score
                best = s
    if reg[c.PROGRAM_AT] == 0:
        return select_cb_age(reg, seg)
    if best >= 0:
        reg[c.PROGRAM_CHOSE] += 1
    return best


@jit
def candidate_rows(reg: Ints, seg: Ints, rows: Ints, numbers: Ints) -> int:
    """Fills ``rows[n, ROW_WORDS]`` and their segments' numbers with a pool's candidates that have valid blocks.

    Returns how many there are; both have room for every segment.
    """
    found = 0
    for s in range(reg[c.SEGMENTS]):
        if is_candidate(reg, seg, s, reg[c.MOST], reg[c.INDEX]) and seg[s, c.LIVE] > 0:
            fill_row(reg, seg, s)
            for word in range(c.ROW_WORDS):
                rows[found, word] = reg[c.ROW + word]
            numbers[found] = s
            found += 1
    return found


@jit
def shown_rows(segments: Ints, size: int, pages: int, rows: Ints) -> None:
    """As :func:`fill_row` from a table ``int64[n, 4]`` of valid blocks, age, fill and log."""
    for n in range(len(segments)):
        live = segments[n, 0]
        rows[n, 0] = lg((size - live) * PARTS // size)
        rows[n, 1] = lg(live * PARTS // size)
        rows[n, 2] = octaves(segments[n, 1], pages)
        rows[n, 3] = octaves(segments[n, 2], pages)
        rows[n, 4] = min(max(segments[n, 3], 0), c.FOREIGN)
