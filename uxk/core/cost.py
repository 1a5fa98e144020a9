"""What crossings and thinking cost in virtual time (R6, R24).

On the *virtual* clock costs are only booked; on the *charged* clock a turn's output takes effect when its cost
has passed, and the instance is busy until then.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

ClockKind: TypeAlias = Literal["virtual", "charged", "real"]


class CostModel(msgspec.Struct, frozen=True, kw_only=True):
    """Virtual nanoseconds per crossing of the boundary, per entry, and per KiB carried.

    The defaults are orders of magnitude, not measurements of a Linux kernel: a system call with its cache
    misses takes about a microsecond, copying a KiB a few dozen nanoseconds.  Set your own.
    """

    crossing_ns: int = 1_000
    entry_ns: int = 20
    kib_ns: int = 50

    def of(self, crossings: int, entries: int, size_bytes: int) -> int:
        """Cost of ``crossings`` doorbells that carried ``entries`` entries of ``size_bytes`` together."""
        return crossings * self.crossing_ns + entries * self.entry_ns + (size_bytes * self.kib_ns >> 10)
