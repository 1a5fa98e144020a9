"""Selections: which sealed segment is cleaned next.  All scores are integers; see :class:`Selection` for ties.

``g`` and ``v`` are the segment's invalid and valid blocks, ``age`` is the user clock minus that of its
last append.  Shifts only keep fractions; they are part of the definition, as ties depend on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uxk.subsystems.lfs.policies.base import Selection
from uxk.subsystems.lfs.policies.random import following, seeded

if TYPE_CHECKING:
    from uxk.subsystems.lfs.reference import Volume

SAMPLE: Final = 10
"""Segments that d-choices looks at."""
DRAWS_MAX: Final = 1024
ATGC_CANDIDATES: Final = 10
ATGC_RATIO_PERCENT: Final = 20
ATGC_AGE_PERCENT: Final = 60
ATGC_ACCURACY: Final = 10_000


class Greedy(Selection):
    """The fewest valid blocks."""

    name = "greedy"
    source = "Rosenblum & Ousterhout, 'The Design and Implementation of a Log-Structured File System', TOCS 1992"

    def victim(self, volume: Volume) -> int:
        """At the speed of ``min``: what is not sealed has ``OPEN`` added."""
        live = min(volume.live)
        return volume.live.index(live) if live <= volume.most else -1


class CbAge(Selection):
    """Cost-benefit g * age / v: what is gained and how long it lasts, against what must be moved."""

    name = "cb-age"
    source = "Kawaguchi, Nishioka & Motoda, 'A Flash-Memory Based File System', USENIX 1995, without its factor 2"

    def score(self, volume: Volume, segment: int) -> int:
        """g * age / v with 16 fraction bits."""
        live = volume.live[segment]
        return ((volume.size - live) * (volume.now - volume.sealed_at[segment]) << 16) // live


class CbSqrt(Selection):
    """Cost-benefit with the root of the age, g * sqrt(age) / v, compared by its square."""

    name = "cb-sqrt"
    source = "the cost-benefit of SepBIT's simulator (Wang et al., FAST 2022)"

    def score(self, volume: Volume, segment: int) -> int:
        """The square of g * sqrt(age) / v, with 8 fraction bits."""
        live = volume.live[segment]
        garbage = volume.size - live
        return (garbage * garbage * (volume.now - volume.sealed_at[segment]) << 8) // (live * live)


class Timestamp(Selection):
    """The segment that was sealed first, among those with garbage enough."""

    name = "timestamp"
    source = "nilfs_cleanerd.conf(5): selection_policy timestamp"

    def score(self, volume: Volume, segment: int) -> int:
        """The age."""
        return volume.now - volume.sealed_at[segment]


class DChoices(Selection):
    """The fewest valid blocks among ten random segments, drawn with replacement from those with garbage enough.

    Draws that hit another segment are repeated; after 1,024 draws what was hit must do, and if nothing was, every
    segment is looked at.  Ties go to the lowest number.
    """

    name = "d-choices"
    source = "Van Houdt, 'A Mean Field Model for a Class of Garbage Collection Algorithms in Flash-Based SSDs', 2013"

    def __init__(self, seed: int = 1) -> None:
        self.random = seeded(seed)

    def victim(self, volume: Volume) -> int:
        """The best of ten draws."""
        live, most, segments = volume.live, volume.most, volume.segments
        best, hits, random = -1, 0, self.random
        for _ in range(DRAWS_MAX):
            random = following(random)
            segment = random % segments
            if live[segment] <= most:
                hits += 1
                if best < 0 or (live[segment], segment) < (live[best], best):
                    best = segment
                if hits == SAMPLE:
                    break
        self.random = random
        if best < 0:
            least = min(live)
            best = live.index(least) if least <= most else -1
        return best


class _Inherited(Selection):
    """Keeps for each segment the mean of a time that its blocks bring along; moved ones bring their victim's mean."""

    def attach(self, volume: Volume) -> None:
        self.sums = [0] * volume.segments
        self.inherited = 0

    def time(self, volume: Volume, segment: int) -> int:
        """The mean over the blocks appended to ``segment``, rounded down."""
        return self.sums[segment] // volume.used[segment]

    def retired(self, volume: Volume, victim: int) -> None:
        self.inherited = self.time(volume, victim)
        self.sums[victim] = 0


class Mdc(_Inherited):
    """The smallest declining cost: g * g * (now - up2) / v is largest.

    up2 estimates when a segment's pages were written last but one.  A rewritten page is taken to have been written
    halfway between its segment's up2 and now; a new page brings 0, a moved one its victim's up2, and a segment has
    the mean of its blocks.  (The paper's sorting of writes by update rate is placement, and left to placements.)
    """

    name = "mdc"
    source = "Lomet & Luo, 'Efficiently Reclaiming Space in a Log Structured Store', arXiv 2005.00044"

    def attach(self, volume: Volume) -> None:
        """Nothing was rewritten yet."""
        super().attach(volume)
        self.rewritten = 0

    def invalidated(self, volume: Volume, page: int, segment: int) -> None:
        """What the rewritten page will bring to its next segment."""
        up2 = self.time(volume, segment)
        self.rewritten = up2 + (volume.now - up2) // 2

    def appended(self, volume: Volume, page: int, segment: int, victim: int) -> None:
        """Adds the block's estimate to its segment's."""
        if victim >= 0:
            self.sums[segment] += self.inherited
        else:
            self.sums[segment] += self.rewritten
            self.rewritten = 0

    def score(self, volume: Volume, segment: int) -> int:
        """g * g * (now - up2) / v with 8 fraction bits."""
        live = volume.live[segment]
        garbage = volume.size - live
        return (garbage * garbage * (volume.now - self.time(volume, segment)) << 8) // live


class Modified(_Inherited):
    """F2FS's modification time of a segment: the mean over its blocks."""

    def appended(self, volume: Volume, page: int, segment: int, victim: int) -> None:
        """A write brings the time of now, a moved block its victim's."""
        self.sums[segment] += self.inherited if victim >= 0 else volume.now


class Atgc(Modified):
    """Of the oldest fifth of the candidates, and ten at least, the one with most age * 60 % + garbage * 40 %.

    Age is the share of the span between the oldest and the youngest modification time; every segment with garbage
    enough is a candidate, as there is no wall clock to ask for the kernel's seven days.  The kernel's second half,
    which fills holes in a segment of like age, has no place in a log that only appends.
    """

    name = "atgc"
    source = "Chao Yu, 'f2fs: support age threshold based garbage collection', Linux 5.10; fs/f2fs/gc.c"

    def victim(self, volume: Volume) -> int:
        """Two keys in ten thousandths, weighed in per cent; ties go to the older, then to the lowest number."""
        candidates = [segment for segment, live in enumerate(volume.live) if live <= volume.most]
        if not candidates:
            return -1
        oldest = sorted((self.time(volume, segment), segment) for segment in candidates)
        latest = oldest[-1][0] + 1
        span = latest - oldest[0][0]
        best, best_score = -1, -1
        for time, segment in oldest[: max(ATGC_CANDIDATES, ATGC_RATIO_PERCENT * len(oldest) // 100)]:
            age = ATGC_ACCURACY * (latest - time) // span * ATGC_AGE_PERCENT
            free = ATGC_ACCURACY * (volume.size - volume.live[segment]) // volume.size * (100 - ATGC_AGE_PERCENT)
            if age + free > best_score:
                best, best_score = segment, age + free
        return best


class F2fsCb(Modified):
    """F2FS's cost-benefit: (100 - u) * age / (100 + u), with u and age in per cent.

    Age 0 belongs to the youngest sealed segment, 100 to the oldest.
    """

    name = "f2fs-cb"
    source = "Lee et al., 'F2FS: A New File System for Flash Storage', FAST 2015; fs/f2fs/gc.c, get_cb_cost"

    def victim(self, volume: Volume) -> int:
        """The highest score, after a look for the oldest and the youngest."""
        times = [self.time(volume, segment) for segment, sealed in enumerate(volume.sealed_at) if sealed >= 0]
        self.oldest, self.youngest = min(times, default=0), max(times, default=0)
        return super().victim(volume)

    def score(self, volume: Volume, segment: int) -> int:
        """In whole numbers, as the kernel has it, times 100."""
        used = volume.live[segment] * 100 // volume.size
        span = self.youngest - self.oldest
        age = 100 - 100 * (self.time(volume, segment) - self.oldest) // span if span else 0
        return 100 * (100 - used) * age // (100 + used)
