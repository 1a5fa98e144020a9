"""Placements by how often pages are written and moved: DAC, FADaC, MultiLog, ETI, MiDA."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from uxk.subsystems.lfs.policies.base import Placement
from uxk.subsystems.lfs.policies.random import MODULUS, following, seeded

if TYPE_CHECKING:
    from uxk.subsystems.lfs.reference import Volume

AVERAGE_BITS: Final = 40
"""Fraction bits of FADaC's fading average."""
EXPECTED_BITS: Final = 8
"""Fraction bits of MultiLog's expected update distance, in user blocks."""
EXTENTS_MAX: Final = 1024
DECAY_REQUESTS: Final = 4096
COUNT_MAX: Final = 15
HOT: Final = 4
"""ETI: writes of a hot extent."""


class DAC(Placement):
    """A page climbs one log with each rewrite and falls one with each move; log 0 is the coldest."""

    name = "dac"
    source = "Chiang, Lee & Chang, 'Using Data Clustering to Improve Cleaning Performance for Flash Memory', SPE 1999"

    def attach(self, volume: Volume) -> None:
        """Every page starts in log 0."""
        self.level = array("b", [0]) * volume.pages

    def user(self, volume: Volume, page: int) -> int:
        """One up, unless the page is new."""
        level = self.level[page]
        if volume.last[page] >= 0 and level < volume.logs - 1:
            level = self.level[page] = level + 1
        return level

    def moved(self, volume: Volume, page: int, victim: int) -> int:
        """One down."""
        level = self.level[page]
        if level > 0:
            level = self.level[page] = level - 1
        return level


class FADaC(Placement):
    """A page's counter, up with each write and down with each move, in decades of the fading average.

    The average moves by (blocks of the request - average) / valid pages with each request.  One block is one request
    here, so it stays at exactly 1.  SepBIT's simulator asks for counters *above* an average that the rounding of
    doubles keeps a hair below 1; exact numbers do the same by asking for counters that reach it.
    """

    name = "fadac"
    source = "Kremer & Brinkmann, 'FADaC: A Self-adapting Data Classifier for Flash Memory', SYSTOR 2019"

    def attach(self, volume: Volume) -> None:
        """Counters at 0."""
        self.count = array("q", [0]) * volume.pages
        self.average = 0

    def user(self, volume: Volume, page: int) -> int:
        """Counts the write; the average moves first, the class follows."""
        self.count[page] += 1
        self.average += ((1 << AVERAGE_BITS) - self.average) // volume.valid
        return self._level(volume, page)

    def moved(self, volume: Volume, page: int, victim: int) -> int:
        """Takes one off the counter."""
        if self.count[page] > 0:
            self.count[page] -= 1
        return self._level(volume, page)

    def _level(self, volume: Volume, page: int) -> int:
        count, base, level = self.count[page] << AVERAGE_BITS, self.average, 0
        while count >= base > 0 and level < volume.logs - 1:
            base *= 10
            level += 1
        return level


class MultiLog(Placement):
    """A page sinks one log with each move, and rises one at random when rewritten sooner than its log expects.

    A log's expected update distance is half its valid blocks times the valid share of what was collected from it;
    the chance to rise is the share by which the page was sooner.  A further log opens when the coldest in use holds
    a segment's worth of valid blocks.  Victims are left to the selection.
    """

    name = "multilog"
    source = "Stoica & Ailamaki, 'Improving Flash Write Performance by Using Update Frequency', VLDB 2013"

    def __init__(self, seed: int = 1) -> None:
        self.random = seeded(seed)

    def attach(self, volume: Volume) -> None:
        """All pages in log 0, and only that in use."""
        self.level = array("b", [0]) * volume.pages
        self.valid = [0] * volume.logs
        self.collected = [0] * volume.logs
        self.collected_valid = [0] * volume.logs
        self.coldest = 0

    def invalidated(self, volume: Volume, page: int, segment: int) -> None:
        """The page's log has one valid block less."""
        self.valid[volume.log_of[segment]] -= 1

    def user(self, volume: Volume, page: int) -> int:
        """One up, by chance, if the write comes sooner than the log expects."""
        level, last = self.level[page], volume.last[page]
        if last >= 0 and level > 0 and self.collected[level] > 0:
            expected = (self.valid[level] * self.collected_valid[level] << EXPECTED_BITS) // (2 * self.collected[level])
            sooner = expected - ((volume.now - last) << EXPECTED_BITS)
            if sooner > 0:
                self.random = following(self.random)
                if self.random * expected < sooner * MODULUS:
                    level = self.level[page] = level - 1
        self.valid[level] += 1
        return level

    def moved(self, volume: Volume, page: int, victim: int) -> int:
        """One down, as far as logs are in use, or ready to be."""
        level = self.level[page]
        if level < self.coldest:
            level += 1
        elif level + 1 < volume.logs and self.valid[level] >= volume.size:
            level += 1
            self.coldest = level
        self.level[page] = level
        self.valid[level] += 1
        return level

    def retired(self, volume: Volume, victim: int) -> None:
        """The victim's valid share counts for its log."""
        level, live = volume.log_of[victim], volume.live[victim]
        self.valid[level] -= live
        self.collected[level] += volume.size
        self.collected_valid[level] += live


class ETI(Placement):
    """Extents that split where writes begin and end, with 4-bit counters: hot to log 0, cold to 1, moved to 2.

    At most 1,024 extents; counters are halved every 4,096 requests, and neighbours that became equal or both cold
    are joined.  One block is one request here.
    """

    name = "eti"
    source = "Shafaei, Desnoyers & Fitzpatrick, 'Write Amplification Reduction in Flash-Based SSDs Through Extent-Based Temperature Identification', HotStorage 2016"  # noqa: E501
    moved_log = 2
    logs_needed = 3

    def attach(self, volume: Volume) -> None:
        """One cold extent."""
        self.starts = [0]
        self.counts = [0]
        self.requests = 0

    def user(self, volume: Volume, page: int) -> int:
        """Counts the write, then asks whether its extent is hot."""
        self.requests += 1
        if self.requests == DECAY_REQUESTS:
            self.requests = 0
            self._decay()
        self._count(volume, page)
        return 0 if self.counts[bisect_right(self.starts, page) - 1] >= HOT else 1

    def _count(self, volume: Volume, page: int) -> None:
        """Counts a write of one page, alone in its extent if there is room for more."""
        starts, counts = self.starts, self.counts
        at = bisect_right(starts, page) - 1
        start, count = starts[at], counts[at]
        end = starts[at + 1] if at + 1 < len(starts) else volume.pages
        if count == COUNT_MAX:
            return
        if end - start == 1:
            counts[at] = count + 1
        elif len(starts) < EXTENTS_MAX:
            parts = [(start, count)] if start < page else []
            parts.append((page, count + 1))
            if page + 1 < end:
                parts.append((page + 1, count))
            starts[at : at + 1] = [first for first, _ in parts]
            counts[at : at + 1] = [number for _, number in parts]

    def _decay(self) -> None:
        starts, counts = [self.starts[0]], [self.counts[0] // 2]
        for start, doubled in zip(self.starts[1:], self.counts[1:], strict=True):
            count, before = doubled // 2, counts[-1]
            if not (count == before >= HOT or (count < HOT and before < HOT)):
                starts.append(start)
                counts.append(count)
        self.starts, self.counts = starts, counts


class MiDA(Placement):
    """The log is the number of times the block was moved since its last write: a chain of ages.

    MiDAS (Oh et al., FAST 2024) adds group sizes from a model and a filter of hot pages, which are not here.
    """

    name = "mida"
    source = "Park, Lee & Kim, 'Improving Garbage Collection with Migration Ages' (MiDA), APSys 2021"

    def attach(self, volume: Volume) -> None:
        """Nothing was moved yet."""
        self.moves = array("b", [0]) * volume.pages

    def user(self, volume: Volume, page: int) -> int:
        """Log 0."""
        self.moves[page] = 0
        return 0

    def moved(self, volume: Volume, page: int, victim: int) -> int:
        """One further along the chain."""
        moves = self.moves[page]
        if moves < volume.logs - 1:
            moves = self.moves[page] = moves + 1
        return moves
