"""A set of integers kept as sorted, disjoint, half-open intervals."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Intervals:
    """Which bytes of a device are marked; empty is false.

    ``starts`` is public so that a hot path may test it for emptiness without a call.
    """

    __slots__ = ("_ends", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self.starts)

    def __len__(self) -> int:
        """How many intervals there are."""
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(start, end) in ascending order."""
        return zip(self.starts, self._ends, strict=True)

    def add(self, start: int, end: int) -> None:
        """Marks [start, end)."""
        low = bisect_left(self._ends, start)
        high = bisect_right(self.starts, end)
        if low < high:
            start = min(start, self.starts[low])
            end = max(end, self._ends[high - 1])
        self.starts[low:high] = [start]
        self._ends[low:high] = [end]

    def discard(self, start: int, end: int) -> None:
        """Unmarks [start, end)."""
        low = bisect_right(self._ends, start)
        high = bisect_left(self.starts, end)
        if low >= high:
            return
        starts, ends = [], []
        if self.starts[low] < start:
            starts.append(self.starts[low])
            ends.append(start)
        if self._ends[high - 1] > end:
            starts.append(end)
            ends.append(self._ends[high - 1])
        self.starts[low:high] = starts
        self._ends[low:high] = ends

    def overlaps(self, start: int, end: int) -> bool:
        """Whether anything in [start, end) is marked."""
        index = bisect_right(self._ends, start)
        return index < len(self.starts) and self.starts[index] < end

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """The marked parts of [start, end)."""
        low = bisect_right(self._ends, start)
        high = bisect_left(self.starts, end)
        return [(max(self.starts[i], start), min(self._ends[i], end)) for i in range(low, high)]

    def size(self) -> int:
        """How many integers are marked."""
        return sum(self._ends) - sum(self.starts)
