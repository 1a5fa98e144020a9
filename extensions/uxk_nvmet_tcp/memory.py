"""The memory that data lie in between socket and controller: one slice for each connection.

A connection that holds on to its memory, a host that never sends what it was asked for, stands in nobody else's way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

UNIT_BYTES: Final = 4096
"""What slices are divided into."""


class Slice:
    """The part of the pool that one connection has.  Allocates runs of units from a bit mask of the free ones."""

    __slots__ = ("_all", "_free", "_give_back", "_high", "_view", "busy", "closing", "offset", "owner")

    def __init__(self, view: memoryview, offset: int, give_back: Callable[[Slice], None]) -> None:
        self._view = view
        self.offset = offset
        """Where it begins in the region."""
        self._all = self._free = (1 << len(view) // UNIT_BYTES) - 1
        self._give_back = give_back
        self._high = 0
        self.busy = 0
        """Allocations and requests under way: until there are none, nobody else gets it."""
        self.closing = False
        self.owner = ""
        """Who has it."""

    def take(self, length: int) -> int:
        """An offset in the slice of ``length`` bytes (at least 1), or -1 if there is no run of free units so long."""
        units = -(-length // UNIT_BYTES)
        runs, have = self._free, 1
        while have < units and runs:
            step = min(have, units - have)
            runs &= runs >> step
            have += step
        if not runs:
            return -1
        first = (runs & -runs).bit_length() - 1
        self._free ^= ((1 << units) - 1) << first
        self._high = max(self._high, first + units)
        self.busy += 1
        return first * UNIT_BYTES

    def free(self, offset: int, length: int) -> None:
        """Takes back what :meth:`take` gave for ``length``."""
        self._free |= ((1 << -(-length // UNIT_BYTES)) - 1) << offset // UNIT_BYTES
        self.release()

    def hold(self) -> None:
        """A request without data is under way for whom it belongs to."""
        self.busy += 1

    def release(self) -> None:
        """One of :meth:`hold` is answered."""
        self.busy -= 1
        if self.closing and not self.busy:
            self._return()

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes of an allocation."""
        return self._view[offset : offset + length]

    def close(self) -> None:
        """Nobody allocates any more: the slice returns to its pool with the last allocation."""
        self.closing = True
        if not self.busy:
            self._return()

    def _return(self) -> None:
        end = self._high * UNIT_BYTES  # the next host must not find what this one has left
        self._view[:end] = bytes(end)
        self._high, self._free, self.closing = 0, self._all, False
        self._give_back(self)


class Pool:
    """A region of memory, cut into slices."""

    def __init__(self, view: memoryview, slices: int) -> None:
        size = len(view) // slices // UNIT_BYTES * UNIT_BYTES
        self.slice_bytes = size
        self._free = [Slice(view[at : at + size], at, self._back) for at in range(0, slices * size, size)][::-1]
        self.taken: Counter[str] = Counter()
        """How many slices each owner has, counting those whose last requests are still under way."""

    def slice(self, owner: str = "") -> Slice | None:
        """A slice that nobody has, or None."""
        if not self._free:
            return None
        part = self._free.pop()
        part.owner = owner
        self.taken[owner] += 1
        return part

    @property
    def free(self) -> int:
        """How many slices nobody has."""
        return len(self._free)

    def _back(self, part: Slice) -> None:
        self._free.append(part)
        self.taken[part.owner] -= 1
        if not self.taken[part.owner]:
            del self.taken[part.owner]
