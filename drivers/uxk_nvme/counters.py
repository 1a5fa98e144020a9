"""What the controllers count: commands by opcode, and how long I/O commands took."""

from __future__ import annotations

from typing import Final

FOLD: Final = 4096
"""Latencies that are kept until they are folded."""
BINS: Final = 48
"""Bin n counts latencies below 2**n ns."""


class Counters:
    """Cheap on the fast path: it appends, others fold."""

    __slots__ = ("_bins", "admin", "immediate", "io", "latencies")

    def __init__(self) -> None:
        self.admin: dict[int, int] = {}
        self.io: dict[int, int] = {}
        """By opcode; plain reads and writes of the fast path are counted by the medium."""
        self.immediate = 0
        """I/O commands that were done at once."""
        self.latencies: list[tuple[int, int]] = []
        """In nanoseconds, each with how often in a row, not folded into bins yet."""
        self._bins = [0] * BINS

    def count(self, opcode: int, *, admin: bool) -> None:
        """One command by its handler."""
        book = self.admin if admin else self.io
        book[opcode] = book.get(opcode, 0) + 1

    def fold(self) -> None:
        """Empties the list of latencies: called when it has grown beyond :data:`FOLD`."""
        for latency_ns, times in self.latencies:
            self._bins[min(latency_ns.bit_length(), BINS - 1)] += times
        self.latencies.clear()

    def histogram(self) -> dict[int, int]:
        """Counts by upper bound in nanoseconds; 0 stands for at once."""
        self.fold()
        found = {1 << index: count for index, count in enumerate(self._bins) if count}
        return {0: self.immediate, **found} if self.immediate else found
