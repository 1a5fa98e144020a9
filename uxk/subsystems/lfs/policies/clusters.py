"""Placements that keep centres of hotness or of rewrite interval and send a block to the nearest: SFS, WARCIP."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from uxk.subsystems.lfs.policies.base import Placement

if TYPE_CHECKING:
    from uxk.subsystems.lfs.reference import Volume

HOTNESS_BITS: Final = 32
"""Fraction bits of SFS's hotness, in writes per user block."""
HOTNESS_MAX: Final = 1 << 50
"""Sums over a volume's segments stay within 63 bits."""
ROUNDS: Final = 3
"""Rounds of SFS's iterative quantization."""
INTERVAL_BITS: Final = 8
"""Fraction bits of WARCIP's centres, in user blocks."""
PERIOD: Final = 256
"""Segments of user writes that WARCIP seals between two looks at its clusters."""


class SFS(Placement):
    """Hotness = writes / time since the last one; each log has the centre of a cluster of segment hotness.

    A block goes to the nearest centre (ties: the coldest).  Before each cleaning the centres are computed anew by
    three rounds of 1-D k-means over the sealed segments that have valid blocks (ties: the hottest); a segment's
    hotness is the sum of its valid blocks' writes over the sum of the times since their last ones.  Pages that are
    new, or were written just now, are hottest.  Centres are kept hottest first.
    """

    name = "sfs"
    source = "Min et al., 'SFS: Random Write Considered Harmful in Solid State Drives', FAST 2012"

    def attach(self, volume: Volume) -> None:
        """Counters by page, sums by segment, and centres that are all 0 until the first cleaning."""
        self.writes = array("q", [0]) * volume.pages
        self.centres = [0] * volume.logs
        self.segment_writes = [0] * volume.segments
        self.segment_lasts = [0] * volume.segments

    def invalidated(self, volume: Volume, page: int, segment: int) -> None:
        """Takes the page's part out of its segment's sums."""
        self.segment_writes[segment] -= self.writes[page]
        self.segment_lasts[segment] -= volume.last[page]

    def user(self, volume: Volume, page: int) -> int:
        """The nearest centre to the hotness before this write, which counts afterwards."""
        last, writes = volume.last[page], self.writes[page]
        self.writes[page] = writes + 1
        return 0 if last < 0 else self._nearest((writes << HOTNESS_BITS) // (volume.now - last))

    def moved(self, volume: Volume, page: int, victim: int) -> int:
        """The nearest centre to the hotness as it is now."""
        elapsed = volume.now - volume.last[page]
        return self._nearest((self.writes[page] << HOTNESS_BITS) // elapsed) if elapsed else 0

    def appended(self, volume: Volume, page: int, segment: int, victim: int) -> None:
        """Puts the page's part into its segment's sums."""
        self.segment_writes[segment] += self.writes[page]
        self.segment_lasts[segment] += volume.last[page]

    def retired(self, volume: Volume, victim: int) -> None:
        """Computes the centres anew, the victim included."""
        self._quantize(volume)
        self.segment_writes[victim] = self.segment_lasts[victim] = 0

    def _nearest(self, hotness: int) -> int:
        nearest, least = 0, -1
        for index in range(len(self.centres) - 1, -1, -1):
            distance = abs(self.centres[index] - hotness)
            if least < 0 or distance < least:
                nearest, least = index, distance
        return nearest

    def _quantize(self, volume: Volume) -> None:
        hotness = []
        for segment, sealed_at in enumerate(volume.sealed_at):
            if sealed_at >= 0 and (live := volume.live[segment]):
                elapsed = live * volume.now - self.segment_lasts[segment]
                hot = (self.segment_writes[segment] << HOTNESS_BITS) // elapsed if elapsed else HOTNESS_MAX
                hotness.append(min(hot, HOTNESS_MAX))
        centres = self.centres
        if not hotness:
            return
        if len(hotness) <= len(centres):
            centres = [hotness[index % len(hotness)] for index in range(len(centres))]
        else:
            for _ in range(ROUNDS):
                sums, counts = [0] * len(centres), [0] * len(centres)
                for hot in hotness:
                    distances = [abs(hot - centre) for centre in centres]
                    group = distances.index(min(distances))
                    sums[group] += hot
                    counts[group] += 1
                centres = [total // count if count else 0 for total, count in zip(sums, counts, strict=True)]
        self.centres = sorted(centres, reverse=True)


class Warcip(Placement):
    """Clusters of rewrite intervals, split and merged as traffic changes; log 0 takes all moved blocks.

    A user write goes to the cluster whose centre is nearest to its interval (ties: the last cluster), and draws
    the centre towards it: the mean over the cluster's open segment.  A move adds the block's age to its next
    interval as a penalty.  After every 256 sealed segments of user writes a cluster with more than half of the
    writes is split, or else the first with less than one segment of them is marked and goes with its segment.

    Clusters stand in a row; ``log_at`` has the log of each, and position 0 belongs to moved blocks.
    """

    name = "warcip"
    source = "Yang, Pei & Yang, 'WARCIP: Write Amplification Reduction by Clustering I/O Pages', SYSTOR 2019"
    logs_needed = 2

    def attach(self, volume: Volume) -> None:
        """All logs in a row, with centres at 0."""
        self.penalty = array("q", [0]) * volume.pages
        self.log_at = list(range(volume.logs))
        self.centres = [0] * volume.logs
        self.blocks = [0] * volume.logs
        self.writes = [0] * volume.logs
        self.total = self.sealed_segments = 0
        self.merging = -1

    def user(self, volume: Volume, page: int) -> int:
        """The cluster nearest to the interval since the last write plus the penalty of moves."""
        last = volume.last[page]
        interval = 0 if last < 0 else (volume.now - last + self.penalty[page]) << INTERVAL_BITS
        self.penalty[page] = 0
        nearest, least = 1, -1
        for index in range(len(self.centres) - 1, 0, -1):
            distance = abs(self.centres[index] - interval)
            if least < 0 or distance < least:
                nearest, least = index, distance
        blocks = self.blocks[nearest]
        self.centres[nearest] = (self.centres[nearest] * blocks + interval) // (blocks + 1)
        self.blocks[nearest] = blocks + 1
        self.writes[nearest] += 1
        self.total += 1
        return self.log_at[nearest]

    def moved(self, volume: Volume, page: int, victim: int) -> int:
        """The first log; the block's age becomes its penalty."""
        self.penalty[page] = volume.now - volume.last[page]
        return self.log_at[0]

    def sealed(self, volume: Volume, segment: int) -> None:
        """Ends a cluster that was marked for merging; looks at all of them once in a period."""
        position = self.log_at.index(volume.log_of[segment])
        self.sealed_segments += position > 0
        if position == self.merging:
            for row in (self.log_at, self.centres, self.blocks, self.writes):
                del row[position]
            self.merging = -1
        else:
            self.blocks[position] = 0
        if self.sealed_segments == PERIOD:
            self.sealed_segments = 0
            self._adapt(volume)

    def _adapt(self, volume: Volume) -> None:
        busy = [index for index in range(1, len(self.writes)) if self.writes[index] > self.total // 2]
        if busy and len(self.log_at) < volume.logs:
            position = busy[0]
            free = min(set(range(volume.logs)) - set(self.log_at))
            centre = (self.centres[position - 1] + self.centres[position]) // 2
            for row, value in ((self.log_at, free), (self.centres, centre), (self.blocks, 0), (self.writes, 0)):
                row.insert(position, value)
        elif self.merging < 0 and len(self.log_at) > 2:
            idle = [index for index in range(1, len(self.writes)) if self.writes[index] < volume.size]
            self.merging = idle[0] if idle else -1
        self.writes = [0] * len(self.writes)
        self.total = 0
