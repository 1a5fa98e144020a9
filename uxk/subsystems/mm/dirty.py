"""Dirty limits and throttling, as mm/page-writeback.c has them.

What is exact: dirtyable memory, background and hard threshold, the free-run ceiling, the position ratio's polynomial,
and the rule by which who dirties pauses and leaves.  What is simpler: one backing device, so that its limits are the
global ones; the write bandwidth and the base rate are smoothed by an eighth, without the kernel's filters against
oscillation.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from uxk.limits import NS_PER_S
from uxk.subsystems.mm.zone import PAGE_BYTES, Zone

CALC_SHIFT: Final = 10
"""``RATELIMIT_CALC_SHIFT``: the position ratio has so many bits after the point."""
MAX_PAUSE_NS: Final = NS_PER_S // 5
"""``MAX_PAUSE``: one pause lasts 200 ms at most."""
BANDWIDTH_INTERVAL_NS: Final = NS_PER_S // 5
"""``BANDWIDTH_INTERVAL``: rates are estimated anew every 200 ms."""
INIT_PAGES_PER_S: Final = (100 << 20) // PAGE_BYTES
"""``INIT_BW``: 100 MB/s are assumed before anything is known."""
PAUSE_PAGES: Final = 32
"""Pages that a task dirties before it looks at the limits (``nr_dirtied_pause``)."""
PAUSE_PAGES_EXCEEDED: Final = 8
"""The same when the limit is exceeded: 32 KiB."""


class DirtyLimits(NamedTuple):
    """In pages.  Above ``background`` the flusher writes; up to ``freerun`` nobody is throttled; at ``limit``
    everybody who dirties waits until the flusher has brought it down."""

    background: int
    limit: int

    @property
    def freerun(self) -> int:
        """``dirty_freerun_ceiling``."""
        return (self.background + self.limit) // 2


def dirty_limits(zone: Zone, ratio_percent: int, background_percent: int) -> DirtyLimits:
    """``global_dirtyable_memory`` and ``domain_dirty_limits``; the reserve is the high watermark."""
    dirtyable = zone.free - min(zone.free, zone.marks.high) + zone.cached
    limit = max(dirtyable * ratio_percent // 100, 1)
    background = dirtyable * background_percent // 100
    return DirtyLimits(background if background < limit else limit // 2, limit)


def position_ratio(dirty: int, limits: DirtyLimits) -> int:
    """``wb_position_ratio``: by how much, in 1024ths, who dirties may be faster than the base rate.

    A cubic curve: 2.0 at the free-run ceiling, 1.0 in the middle between it and the limit, 0 at the limit.
    """
    if dirty >= limits.limit:
        return 0
    setpoint = (limits.freerun + limits.limit) // 2
    x = ((setpoint - dirty) << CALC_SHIFT) // ((limits.limit - setpoint) | 1)
    ratio = x
    ratio = ratio * x >> CALC_SHIFT
    ratio = ratio * x >> CALC_SHIFT
    return min(max(ratio + (1 << CALC_SHIFT), 0), 2 << CALC_SHIFT)


class Rates:
    """What the device writes and what tasks may dirty, in pages per second."""

    __slots__ = ("_dirtied", "_since_ns", "_written", "base", "written")

    def __init__(self) -> None:
        self.written = INIT_PAGES_PER_S
        """``write_bandwidth``."""
        self.base = INIT_PAGES_PER_S
        """``dirty_ratelimit``: of each task, before the position ratio."""
        self._since_ns = self._dirtied = self._written = 0

    def update(self, now_ns: int, dirtied: int, written: int, ratio: int) -> None:
        """Looks at the pages dirtied and written since boot, if the interval is over."""
        elapsed_ns = now_ns - self._since_ns
        if elapsed_ns < BANDWIDTH_INTERVAL_NS:
            return
        write_rate = (written - self._written) * NS_PER_S // elapsed_ns
        dirty_rate = (dirtied - self._dirtied) * NS_PER_S // elapsed_ns
        self._since_ns, self._dirtied, self._written = now_ns, dirtied, written
        self.written = max((7 * self.written + write_rate) >> 3, 1)
        task = (self.base * ratio >> CALC_SHIFT) + 1
        balanced = min(task * self.written // (dirty_rate | 1), self.written)
        self.base = max(self.base + ((balanced - self.base) >> 3), 1)

    def pause_ns(self, pages: int, ratio: int, dirty: int) -> int:
        """How long a task pauses that has dirtied so many pages: they, at its rate; at the limit, the longest pause.

        A small amount of dirty pages makes pauses shorter, lest the device run dry (``wb_max_pause``).
        """
        longest_ns = min(dirty * NS_PER_S // (8 * self.written) + NS_PER_S // 1000, MAX_PAUSE_NS)
        rate = self.base * ratio >> CALC_SHIFT
        return longest_ns if rate == 0 else min(pages * NS_PER_S // rate, longest_ns)
