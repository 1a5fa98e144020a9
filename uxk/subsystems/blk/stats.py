"""A disk's counters, and ``/sys/block/NAME/stat`` (Linux: Documentation/block/stat.rst, block/genhd.c)."""

from __future__ import annotations

from typing import Final

from uxk.subsystems.blk.limits import NS_PER_MS, SECTOR_SHIFT
from uxk.subsystems.blk.request import DISCARDS, FLUSHES, READS, WRITES

GROUPS: Final = 4


class Stats:
    """Counters by group: reads, writes, discards, flushes."""

    __slots__ = ("busy_ns", "inflight", "ios", "merges", "moved_bytes", "stamp_ns", "waited_ns")

    def __init__(self) -> None:
        self.ios = [0] * GROUPS
        self.merges = [0] * GROUPS
        self.moved_bytes = [0] * GROUPS
        self.waited_ns = [0] * GROUPS
        """From being accepted to being answered, summed over requests."""
        self.inflight = [0] * GROUPS
        self.busy_ns = 0
        """Time with anything under way."""
        self.stamp_ns = 0
        """Up to when time has been counted."""

    def tick(self, now_ns: int) -> None:
        """Time that has passed counts as busy if anything is under way (Linux: update_io_ticks)."""
        if now_ns != self.stamp_ns:
            reads, writes, discards, _ = self.inflight
            if reads or writes or discards:
                self.busy_ns += now_ns - self.stamp_ns
            self.stamp_ns = now_ns

    def begin(self, group: int, now_ns: int, count: int = 1) -> None:
        """Requests of one group are under way."""
        self.tick(now_ns)
        self.inflight[group] += count

    def end(self, group: int, now_ns: int, waited_ns: int, size_bytes: int, count: int = 1) -> None:
        """Requests are answered, after ``waited_ns`` each; ``size_bytes`` altogether."""
        inflight = self.inflight
        if now_ns != self.stamp_ns:
            self.tick(now_ns)
        inflight[group] -= count
        self.ios[group] += count
        self.moved_bytes[group] += size_bytes
        self.waited_ns[group] += waited_ns * count

    def merged(self, group: int, now_ns: int) -> None:
        """One request under way has become part of another."""
        self.tick(now_ns)
        self.merges[group] += 1

    def absorbed(self, group: int, now_ns: int) -> None:
        """One request that had begun is part of another now."""
        self.merged(group, now_ns)
        self.inflight[group] -= 1

    def flushed(self, waited_ns: int) -> None:
        """The device was flushed once, however many asked for it."""
        self.ios[FLUSHES] += 1
        self.waited_ns[FLUSHES] += waited_ns

    @property
    def inflight_reads(self) -> int:
        """Reads under way."""
        return self.inflight[READS]

    @property
    def inflight_writes(self) -> int:
        """Writes under way, discards included."""
        return self.inflight[WRITES] + self.inflight[DISCARDS]

    def fields(self, now_ns: int) -> tuple[int, ...]:
        """The 17 fields of the stat file; times in milliseconds, sectors of 512 bytes."""
        self.tick(now_ns)
        ms = [waited // NS_PER_MS for waited in self.waited_ns]
        group = [
            (self.ios[g], self.merges[g], self.moved_bytes[g] >> SECTOR_SHIFT, ms[g])
            for g in (READS, WRITES, DISCARDS)
        ]  # fmt: skip
        return (
            *group[READS], *group[WRITES], self.inflight_reads + self.inflight_writes, self.busy_ns // NS_PER_MS,
            sum(self.waited_ns) // NS_PER_MS, *group[DISCARDS], self.ios[FLUSHES], ms[FLUSHES],
        )  # fmt: skip

    def line(self, now_ns: int) -> str:
        """The stat file, in columns as Linux prints them."""
        return " ".join(f"{value:>8}" for value in self.fields(now_ns))
