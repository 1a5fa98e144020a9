"""Placements that keep more than a number per page: SFS, MultiLog, ETI, WARCIP, F2FS."""

# What one reads out of an array has no type.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.arrays import Ints, Words
from uxk.subsystems.lfs.fast.jit import jit

# SFS: 16 centres, 16 sums, 16 counts.
CENTRES = c.STATE
SUMS = c.STATE + 16
COUNTED = c.STATE + 32
HOTTEST = 1 << 50
# MultiLog: per log its valid blocks, blocks collected, and valid ones among these.
ML_VALID = c.STATE
ML_COLLECTED = c.STATE + 16
ML_COLLECTED_VALID = c.STATE + 32
ML_COLDEST = c.STATE + 48
ML_RANDOM = c.STATE + 49
MODULUS = (1 << 31) - 1
MULTIPLIER = 48_271
# ETI.
ETI_EXTENTS = c.STATE
ETI_REQUESTS = c.STATE + 1
DECAY_REQUESTS = 4_096
COUNT_MAX = 15
HOT = 4
# WARCIP: clusters in a row, each with its log, centre, blocks and writes.
W_LOG = c.STATE
W_CENTRE = c.STATE + 16
W_BLOCKS = c.STATE + 32
W_WRITES = c.STATE + 48
W_CLUSTERS = c.STATE + 64
W_TOTAL = c.STATE + 65
W_SEALED = c.STATE + 66
W_MERGING = c.STATE + 67
PERIOD = 256


@jit
def rare_user(reg: Ints, page: Ints, row: int, p: int) -> int:
    """Class of a user write."""
    kind = reg[c.BASIS]
    last = page[row, c.LAST]
    if kind == c.SFS:
        writes = page[row, c.A]
        page[row, c.A] = writes + 1
        return 0 if last < 0 else nearest_centre(reg, (writes << 32) // (reg[c.NOW] - last))
    if kind == c.MULTILOG:
        return multilog_user(reg, page, row)
    if kind == c.ETI:
        return eti_user(reg, p)
    if kind == c.WARCIP:
        penalty = page[row, c.A]
        page[row, c.A] = 0
        return warcip_user(reg, 0 if last < 0 else (reg[c.NOW] - last + penalty) << 8)
    if kind == c.F2FS:
        return f2fs_user(reg, page, row)
    return 0


@jit
def rare_gc(reg: Ints, page: Ints, seg: Ints, row: int, victim: int) -> int:
    """Class of a block that is moved out of ``victim``, which may be another pool's."""
    kind = reg[c.BASIS]
    if kind == c.SFS:
        elapsed = reg[c.NOW] - page[row, c.LAST]
        return nearest_centre(reg, (page[row, c.A] << 32) // elapsed) if elapsed > 0 else 0
    if kind == c.MULTILOG:
        level = page[row, c.A]
        if seg[victim, c.POOL] != reg[c.INDEX]:
            reg[ML_VALID + level] -= 1
        if level < reg[ML_COLDEST]:
            level += 1
        elif level + 1 < reg[c.LOGS] and reg[ML_VALID + level] >= reg[c.SIZE]:
            level += 1
            reg[ML_COLDEST] = level
        page[row, c.A] = level
        reg[ML_VALID + level] += 1
        return level
    if kind == c.ETI or kind == c.F2FS:
        return 2
    if kind == c.WARCIP:
        page[row, c.A] = reg[c.NOW] - page[row, c.LAST]
        return reg[W_LOG]
    return 0


@jit
def rare_retire(reg: Ints, page: Ints, seg: Ints, owner: Words, offset: int, s: int) -> None:
    """What SFS and MultiLog learn from a victim."""
    if reg[c.BASIS] == c.SFS:
        quantize(reg, seg)
        return
    size = reg[c.SIZE]
    for block in range(s * size, s * size + seg[s, c.USED]):
        if owner[block] >= 0:
            reg[ML_VALID + page[offset + owner[block], c.A]] -= 1
    log = seg[s, c.CLASS]
    reg[ML_COLLECTED + log] += seg[s, c.USED]
    reg[ML_COLLECTED_VALID + log] += seg[s, c.LIVE]


@jit
def rare_reset(reg: Ints) -> None:
    """A placement's registers as it finds them first."""
    reg[c.STATE : c.STATE + c.STATES] = 0
    kind = reg[c.BASIS]
    if kind == c.MULTILOG:
        reg[ML_RANDOM] = 2
        reg[ML_VALID] = reg[c.VALID]
    elif kind == c.ETI:
        reg[ETI_EXTENTS] = 1
        reg[c.EXTENTS] = 0
        reg[c.COUNTS] = 0
    elif kind == c.WARCIP:
        for log in range(reg[c.LOGS]):
            reg[W_LOG + log] = log
        reg[W_CLUSTERS] = reg[c.LOGS]
        reg[W_MERGING] = -1


# --- SFS -----------------------------------------------------------------------------------------


@jit
def nearest_centre(reg: Ints, hotness: int) -> int:
    """The log with the nearest centre; ties go to the coldest."""
    nearest = reg[c.LOGS] - 1
    least = abs(reg[CENTRES + nearest] - hotness)
    for log in range(nearest - 1, -1, -1):
        distance = abs(reg[CENTRES + log] - hotness)
        if distance < least:
            nearest = log
            least = distance
    return nearest


@jit
def hotness_of(reg: Ints, seg: Ints, s: int) -> int:
    """Writes of the segment's valid blocks over the time since their last ones; -1 if it is no sealed one."""
    live = seg[s, c.LIVE]
    if seg[s, c.SEALED] < 0 or live == 0 or seg[s, c.POOL] != reg[c.INDEX]:
        return -1
    elapsed = live * reg[c.NOW] - seg[s, c.SC]
    return min((seg[s, c.SB] << 32) // elapsed, HOTTEST) if elapsed > 0 else HOTTEST


@jit
def quantize(reg: Ints, seg: Ints) -> None:
    """Three rounds of k-means over the sealed segments' hotness; fewer segments than logs are taken as they are."""
    logs = reg[c.LOGS]
    found = 0
    for s in range(reg[c.SEGMENTS]):
        hot = hotness_of(reg, seg, s)
        if hot >= 0:
            if found < logs:
                reg[SUMS + found] = hot
            found += 1
    if found == 0:
        return
    if found <= logs:
        for log in range(logs):
            reg[CENTRES + log] = reg[SUMS + log % found]
    else:
        for _ in range(3):
            reg[SUMS : SUMS + 32] = 0
            for s in range(reg[c.SEGMENTS]):
                hot = hotness_of(reg, seg, s)
                if hot >= 0:
                    group = 0
                    least = abs(hot - reg[CENTRES])
                    for log in range(1, logs):
                        distance = abs(hot - reg[CENTRES + log])
                        if distance < least:
                            group = log
                            least = distance
                    reg[SUMS + group] += hot
                    reg[COUNTED + group] += 1
            for log in range(logs):
                count = reg[COUNTED + log]
                reg[CENTRES + log] = reg[SUMS + log] // count if count > 0 else 0
    for index in range(1, logs):
        centre = reg[CENTRES + index]
        at = index
        while at > 0 and reg[CENTRES + at - 1] < centre:
            reg[CENTRES + at] = reg[CENTRES + at - 1]
            at -= 1
        reg[CENTRES + at] = centre


# --- MultiLog ------------------------------------------------------------------------------------


@jit
def multilog_user(reg: Ints, page: Ints, row: int) -> int:
    """One log up, by chance, if the page came sooner than its log expects."""
    level = page[row, c.A]
    last = page[row, c.LAST]
    if last >= 0:
        reg[ML_VALID + level] -= 1
    if last >= 0 and level > 0 and reg[ML_COLLECTED + level] > 0:
        collected = reg[ML_COLLECTED + level]
        expected = ((reg[ML_VALID + level] * reg[ML_COLLECTED_VALID + level]) << 8) // (2 * collected)
        sooner = expected - ((reg[c.NOW] - last) << 8)
        if sooner > 0:
            reg[ML_RANDOM] = reg[ML_RANDOM] * MULTIPLIER % MODULUS
            if reg[ML_RANDOM] * expected < sooner * MODULUS:
                level -= 1
                page[row, c.A] = level
    reg[ML_VALID + level] += 1
    return level


# --- ETI -----------------------------------------------------------------------------------------


@jit
def extent_of(reg: Ints, p: int) -> int:
    """The extent that has the page."""
    low = 0
    high = reg[ETI_EXTENTS]
    while high - low > 1:
        middle = (low + high) >> 1
        if reg[c.EXTENTS + middle] <= p:
            low = middle
        else:
            high = middle
    return low


@jit
def eti_user(reg: Ints, p: int) -> int:
    """Counts a write; 0 for a hot extent, 1 for a cold one."""
    reg[ETI_REQUESTS] += 1
    if reg[ETI_REQUESTS] == DECAY_REQUESTS:
        reg[ETI_REQUESTS] = 0
        eti_decay(reg)
    at = extent_of(reg, p)
    count = reg[c.COUNTS + at]
    if count < COUNT_MAX:
        extents = reg[ETI_EXTENTS]
        start = reg[c.EXTENTS + at]
        end = reg[c.EXTENTS + at + 1] if at + 1 < extents else reg[c.PAGES]
        if end - start == 1:
            reg[c.COUNTS + at] = count + 1
        elif extents < c.EXTENTS_MAX:
            before = 1 if start < p else 0
            after = 1 if p + 1 < end else 0
            for index in range(extents - 1, at, -1):
                reg[c.EXTENTS + index + before + after] = reg[c.EXTENTS + index]
                reg[c.COUNTS + index + before + after] = reg[c.COUNTS + index]
            at += before
            reg[c.EXTENTS + at] = p
            reg[c.COUNTS + at] = count + 1
            if after:
                reg[c.EXTENTS + at + 1] = p + 1
                reg[c.COUNTS + at + 1] = count
            reg[ETI_EXTENTS] = extents + before + after
    return 0 if reg[c.COUNTS + at] >= HOT else 1


@jit
def eti_decay(reg: Ints) -> None:
    """Halves all counters, and joins neighbours that became equal or are both cold."""
    last = 0
    reg[c.COUNTS] >>= 1
    for index in range(1, reg[ETI_EXTENTS]):
        count = reg[c.COUNTS + index] >> 1
        before = reg[c.COUNTS + last]
        if not ((count == before and count >= HOT) or (count < HOT and before < HOT)):
            last += 1
            reg[c.EXTENTS + last] = reg[c.EXTENTS + index]
            reg[c.COUNTS + last] = count
    reg[ETI_EXTENTS] = last + 1


# --- WARCIP --------------------------------------------------------------------------------------


@jit
def warcip_user(reg: Ints, interval: int) -> int:
    """Log of the cluster with the nearest centre, which the write draws near; ties go to the last cluster."""
    nearest = reg[W_CLUSTERS] - 1
    least = abs(reg[W_CENTRE + nearest] - interval)
    for index in range(nearest - 1, 0, -1):
        distance = abs(reg[W_CENTRE + index] - interval)
        if distance < least:
            nearest = index
            least = distance
    blocks = reg[W_BLOCKS + nearest]
    reg[W_CENTRE + nearest] = (reg[W_CENTRE + nearest] * blocks + interval) // (blocks + 1)
    reg[W_BLOCKS + nearest] = blocks + 1
    reg[W_WRITES + nearest] += 1
    reg[W_TOTAL] += 1
    return reg[W_LOG + nearest]


@jit
def warcip_sealed(reg: Ints, log: int) -> None:
    """A segment of ``log`` is full: its cluster starts a new mean, or goes; at times clusters split and merge."""
    clusters = reg[W_CLUSTERS]
    position = 0
    while position < clusters and reg[W_LOG + position] != log:
        position += 1
    if position == clusters:  # a log of another placement before
        return
    if position > 0:
        reg[W_SEALED] += 1
    if position == reg[W_MERGING]:
        for row in range(W_LOG, W_CLUSTERS, 16):
            for index in range(position, clusters - 1):
                reg[row + index] = reg[row + index + 1]
        reg[W_CLUSTERS] = clusters - 1
        reg[W_MERGING] = -1
    else:
        reg[W_BLOCKS + position] = 0
    if reg[W_SEALED] == PERIOD:
        reg[W_SEALED] = 0
        warcip_adapt(reg)


@jit
def warcip_adapt(reg: Ints) -> None:
    """Splits a cluster with more than half of the writes, or marks one with less than a segment of them."""
    clusters = reg[W_CLUSTERS]
    busy = 0
    idle = 0
    for index in range(clusters - 1, 0, -1):
        if reg[W_WRITES + index] > reg[W_TOTAL] // 2:
            busy = index
        if reg[W_WRITES + index] < reg[c.SIZE]:
            idle = index
    if busy > 0 and clusters < reg[c.LOGS]:
        free = 0
        index = 0
        while index < clusters:
            if reg[W_LOG + index] == free:
                free += 1
                index = -1
            index += 1
        centre = (reg[W_CENTRE + busy - 1] + reg[W_CENTRE + busy]) // 2
        for row in range(W_LOG, W_CLUSTERS, 16):
            for index in range(clusters, busy, -1):
                reg[row + index] = reg[row + index - 1]
        reg[W_LOG + busy] = free
        reg[W_CENTRE + busy] = centre
        reg[W_BLOCKS + busy] = 0
        reg[W_CLUSTERS] = clusters + 1
    elif reg[W_MERGING] < 0 and clusters > 2:
        reg[W_MERGING] = idle if idle > 0 else -1
    reg[W_WRITES : W_WRITES + 16] = 0
    reg[W_TOTAL] = 0


# --- F2FS ----------------------------------------------------------------------------------------


@jit
def f2fs_user(reg: Ints, page: Ints, row: int) -> int:
    """Hot, warm or cold by 70 % of the last interval and 30 % of the age before; A is the age + 1, 0 if none."""
    last = page[row, c.LAST]
    if last < 0:
        return 1
    age = reg[c.NOW] - last
    before = page[row, c.A] - 1
    if before >= 0:
        age = (70 * age + 30 * before) // 100
    page[row, c.A] = age + 1
    if age <= 262_144:
        return 0
    return 1 if age <= 2_621_440 else 2


# --- sums ----------------------------------------------------------------------------------------


@jit
def rebuild(reg: Ints, page: Ints, seg: Ints, owner: Words, offset: int) -> None:
    """Makes a pool's segment sums anew for the policy now in force; a block's inherited time becomes its sealing."""
    size = reg[c.SIZE]
    for s in range(reg[c.SEGMENTS]):
        if seg[s, c.POOL] == reg[c.INDEX] and seg[s, c.USED] > 0:
            seg[s, c.SA] = seg[s, c.USED] * (seg[s, c.SEALED] if seg[s, c.SEALED] >= 0 else reg[c.NOW])
            seg[s, c.SB] = 0
            seg[s, c.SC] = 0
            if reg[c.BASIS] == c.SFS:
                for block in range(s * size, s * size + seg[s, c.USED]):
                    if owner[block] >= 0:
                        seg[s, c.SB] += page[offset + owner[block], c.A]
                        seg[s, c.SC] += page[offset + owner[block], c.LAST]
