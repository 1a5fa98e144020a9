"""The arena: shared memory that a kernel grants in pages, for data too large for a queue.

First fit over an address-ordered list of holes, coalesced on free (Knuth, The Art of Computer Programming 1,
2.5).  Memory is zero when it is granted.  Nothing is mapped before the first allocation.
"""

from __future__ import annotations

import errno
import mmap
import sys
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from uxk import limits
from uxk.errors import BudgetError, KernelBug, UsageError
from uxk.uapi.ids import InstanceId

Backing: TypeAlias = mmap.mmap | bytearray | memoryview
PAGE: Final = limits.ARENA_PAGE_BYTES
_PUNCH_BYTES: Final = 256 * PAGE
"""From here on it is cheaper to give pages back to the host than to write zeros."""
_ZEROS: Final = bytes(_PUNCH_BYTES)
_MAP_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Python names it from 3.13 on; the number is that of x86, ARM and RISC-V."""


class Region(NamedTuple):
    """A range of the arena, in bytes; both are multiples of the page."""

    offset: int
    length: int


class ArenaStatistics(NamedTuple):
    """Bytes and counts of an arena.  ``used + free == size``; ``lingering`` is the part of ``used`` that is
    freed but still referenced by requests in flight."""

    size_bytes: int
    used_bytes: int
    used_max_bytes: int
    lingering_bytes: int
    free_bytes: int
    largest_hole_bytes: int
    regions: int
    holes: int
    owners: int
    allocations: int
    failures: int


class _Block:
    __slots__ = ("freed", "length", "offset", "owner", "references")

    def __init__(self, offset: int, length: int, owner: InstanceId) -> None:
        self.offset = offset
        self.length = length
        self.owner = owner
        self.references = 0
        self.freed = False


def anonymous(size_bytes: int) -> mmap.mmap:
    """Anonymous shared memory: not touched until it is used, and address space is all that the rest takes."""
    if sys.platform != "linux":
        return mmap.mmap(-1, size_bytes)
    # A disk in a sparse file may be larger than the host's memory, and Linux would refuse as much of its own.
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)


class Arena:
    """Page-granular memory with owners and reference counts.

    ``backing`` makes the buffer at the first allocation: writable, ``size_bytes`` long and zero.  Regions may be
    named by any offset inside them unless said otherwise.
    """

    __slots__ = (
        "_allocations", "_backing", "_blocks", "_buffer", "_failures", "_hole_bytes", "_holes", "_lingering",
        "_owned", "_starts", "_touched", "_used", "_used_max", "_view", "on_return", "size_bytes",
    )  # fmt: skip

    def __init__(self, size_bytes: int, backing: Callable[[int], Backing] = anonymous) -> None:
        if size_bytes <= 0 or size_bytes % PAGE:
            raise UsageError(f"arena of {size_bytes} bytes: expected a positive multiple of {PAGE}")
        self.size_bytes = size_bytes
        self._backing = backing
        self._buffer: Backing | None = None
        self._view: memoryview | None = None
        self._holes = [0]
        self._hole_bytes = [size_bytes]
        self._blocks: dict[int, _Block] = {}
        self._starts: list[int] = []
        self._owned: dict[InstanceId, dict[int, int]] = {}
        self._touched = 0
        """Bytes from here on were never granted, so they are zero."""
        self._used = self._used_max = self._lingering = self._allocations = self._failures = 0
        self.on_return: Callable[[Region], object] | None = None
        """Told of every region when nobody has it any more, before its range is granted again."""

    # --- granting ---

    def allocate(self, owner: InstanceId, length: int) -> Region:
        """Grants zeroed memory of at least ``length`` bytes, rounded up to pages.

        Raises :class:`UsageError` (EINVAL) for a length below 1, :class:`BudgetError` (ENOMEM) with figures.
        """
        if length < 1:
            raise UsageError(f"arena: instance {owner} asks for {length} bytes, expected at least 1")
        rounded = -(-length // PAGE) * PAGE
        index = next((i for i, hole in enumerate(self._hole_bytes) if hole >= rounded), None)
        if index is None:
            self._failures += 1
            raise BudgetError(
                f"arena: instance {owner} asks for {rounded} bytes; {self.size_bytes - self._used} of "
                f"{self.size_bytes} are free, the largest hole has {max(self._hole_bytes, default=0)}",
                errno=errno.ENOMEM,
            )
        offset = self._holes[index]
        self._zero(offset, rounded)
        if self._hole_bytes[index] == rounded:
            del self._holes[index], self._hole_bytes[index]
        else:
            self._holes[index] += rounded
            self._hole_bytes[index] -= rounded
        self._blocks[offset] = _Block(offset, rounded, owner)
        insort(self._starts, offset)
        self._owned.setdefault(owner, {})[offset] = rounded
        self._used += rounded
        self._used_max = max(self._used_max, self._used)
        self._allocations += 1
        return Region(offset, rounded)

    def free(self, owner: InstanceId, offset: int) -> int:
        """Takes back the region that begins at ``offset``; returns its bytes.

        The owner is rid of it at once; while requests in flight refer to it, it lingers.  Raises
        :class:`UsageError` (EINVAL) if ``owner`` has no region beginning there (any more).
        """
        block = self._blocks.get(offset)
        if block is None or block.freed or block.owner != owner:
            raise UsageError(f"arena: instance {owner} has no region beginning at {offset}")
        owned = self._owned[owner]
        del owned[offset]
        if not owned:
            del self._owned[owner]
        block.freed = True
        if block.references:
            self._lingering += block.length
        else:
            self._give_back(block)
        return block.length

    def reclaim(self, owner: InstanceId, keep: Collection[int] = ()) -> int:
        """Takes back all regions of an owner, but those that begin at ``keep``; returns the bytes."""
        offsets = [offset for offset in self._owned.get(owner, ()) if offset not in keep]
        return sum(self.free(owner, offset) for offset in offsets)

    # --- references of requests in flight ---

    def retain(self, offset: int, *, lingering: bool = False) -> None:
        """Notes a reference to the region around ``offset``; EFAULT (:class:`UsageError`) if none is live.

        With ``lingering``, one that is freed will do, as long as others refer to it.
        """
        block = self._find(offset)
        if block is None or (block.freed and not lingering):
            raise UsageError(f"arena: no live region at {offset}", errno=errno.EFAULT)
        block.references += 1

    def release(self, offset: int) -> None:
        """Ends a reference; :class:`KernelBug` if there is none: requests in flight are the kernel's to count."""
        block = self._find(offset)
        if block is None or not block.references:
            raise KernelBug(f"arena: no reference to a region at {offset}")
        block.references -= 1
        if block.freed and not block.references:
            self._lingering -= block.length
            self._give_back(block)

    # --- using ---

    def view(self, offset: int, length: int, writable: bool = False) -> memoryview:
        """The bytes; EFAULT (:class:`UsageError`) unless they lie within one region, live or lingering.

        Who may see them is for capabilities to say.  A view does not keep the region.
        """
        self._bounds(offset, length)
        view = self._mapped()[offset : offset + length]
        return view if writable else view.toreadonly()

    def array(self, offset: int, dtype: DTypeLike, count: int, *, writable: bool = False) -> NDArray[Any]:
        """The same as ``count`` items of ``dtype``; EINVAL for items that are no plain bytes."""
        try:
            kind = np.dtype(dtype)
        except (TypeError, ValueError) as exc:
            raise UsageError(f"arena: {dtype!r} is no dtype: {exc}") from None
        if kind.hasobject or kind.itemsize == 0 or count < 0:
            raise UsageError(f"arena: array of {count} items of {kind!r}, expected plain data")
        return np.frombuffer(self.view(offset, count * kind.itemsize, writable), dtype=kind)

    def region(self, offset: int) -> Region:
        """The region around ``offset``, live or lingering; EFAULT (:class:`UsageError`) if there is none."""
        block = self._find(offset)
        if block is None:
            raise UsageError(f"arena: no region at {offset}", errno=errno.EFAULT)
        return Region(block.offset, block.length)

    def holes(self) -> list[Region]:
        """The free ranges, by address; no two of them touch."""
        return [Region(offset, length) for offset, length in zip(self._holes, self._hole_bytes, strict=True)]

    def statistics(self) -> ArenaStatistics:
        """A consistent copy of the counters."""
        return ArenaStatistics(
            self.size_bytes, self._used, self._used_max, self._lingering, self.size_bytes - self._used,
            max(self._hole_bytes, default=0), len(self._blocks), len(self._holes), len(self._owned),
            self._allocations, self._failures,
        )  # fmt: skip

    def close(self) -> None:
        """Lets go of the memory: at once, or when the last view of it is gone.  Regions are forgotten."""
        self._blocks.clear()
        self._starts.clear()
        self._owned.clear()
        self._holes, self._hole_bytes = [0], [self.size_bytes]
        self._used = self._lingering = self._touched = 0
        view, buffer, self._view, self._buffer = self._view, self._buffer, None, None
        try:
            if view is not None:
                view.release()
            if isinstance(buffer, mmap.mmap):
                buffer.close()
        except BufferError:
            pass  # somebody still looks at it: it goes with the last view

    # --- inside ---

    def _mapped(self) -> memoryview:
        if self._view is None:
            self._buffer = self._backing(self.size_bytes)
            self._view = memoryview(self._buffer).cast("B")
            if self._view.nbytes != self.size_bytes or self._view.readonly:
                raise KernelBug(f"arena: backing has {self._view.nbytes} bytes, expected {self.size_bytes}, writable")
        return self._view

    def _find(self, offset: int) -> _Block | None:
        """The region around ``offset``, live or lingering."""
        block = self._blocks.get(offset)
        if block is None:
            index = bisect_right(self._starts, offset) - 1
            if index >= 0:
                block = self._blocks[self._starts[index]]
                if offset >= block.offset + block.length:
                    block = None
        return block

    def _bounds(self, offset: int, length: int) -> None:
        block = self._find(offset)
        if block is None or length < 0 or offset + length > block.offset + block.length:
            raise UsageError(f"arena: bytes {offset}+{length} are not within one region", errno=errno.EFAULT)

    def _zero(self, offset: int, length: int) -> None:
        """Nothing of the last owner's may be seen by the next.  On grant, as an old view may still be written."""
        view = self._mapped()
        end = min(offset + length, self._touched)
        self._touched = max(self._touched, offset + length)
        if end - offset >= _PUNCH_BYTES and self._punch(offset, end - offset):
            return
        for at in range(offset, end, _PUNCH_BYTES):
            stop = min(at + _PUNCH_BYTES, end)
            view[at:stop] = _ZEROS[: stop - at]

    def _punch(self, offset: int, length: int) -> bool:
        """Gives the pages back to the host, which makes them zero (Linux: MADV_REMOVE on shared memory)."""
        if sys.platform == "linux" and isinstance(self._buffer, mmap.mmap):
            try:
                self._buffer.madvise(mmap.MADV_REMOVE, offset, length)
            except OSError:
                return False
            return True
        return False

    def _give_back(self, block: _Block) -> None:
        offset, length = block.offset, block.length
        if self.on_return is not None:
            self.on_return(Region(offset, length))
        del self._blocks[offset]
        del self._starts[bisect_left(self._starts, offset)]
        self._used -= length
        index = bisect_left(self._holes, offset)
        if index < len(self._holes) and self._holes[index] == offset + length:
            length += self._hole_bytes[index]
            del self._holes[index], self._hole_bytes[index]
        if index > 0 and self._holes[index - 1] + self._hole_bytes[index - 1] == offset:
            self._hole_bytes[index - 1] += length
        else:
            self._holes.insert(index, offset)
            self._hole_bytes.insert(index, length)
