"""What every backing store shares: bounds, marked blocks, checksums, undo copies."""

from __future__ import annotations

from typing import Final, NamedTuple

from uxk.uapi.blk import Extent
from uxk_nvme.store import status as st
from uxk_nvme.store.checksum import Checksums, Data
from uxk_nvme.store.marks import Marks

GRANULE_BYTES: Final = 4096
"""Allocation is known to this grain."""
EXTENTS_MAX: Final = 16_384
"""In one answer; 12 bytes each fill three quarters of the longest payload of a completion."""


class Saved(NamedTuple):
    """What a piece of a store held: enough to put it back."""

    data: bytes | None
    """None: a hole."""
    bad: list[tuple[int, int]]
    """Marked byte ranges in it, absolute."""


class Store:
    """Bytes at logical addresses.  Offsets and lengths are in bytes, multiples of the logical block, within the store.

    Methods return 0 or an NVMe status (see :mod:`uxk_nvme.store.status`).  Subclasses provide ``_read``, ``_write``,
    ``_zero`` and ``_extents``.
    """

    view: memoryview | None = None
    """All of it as memory, if it is memory."""

    def __init__(self, size_bytes: int, lba_bytes: int, *, integrity: bool) -> None:
        self.size_bytes = size_bytes
        self.lba_bytes = lba_bytes
        self.bad = Marks()
        """What cannot be read until it is written."""
        self.sums = Checksums(size_bytes, lba_bytes) if integrity else None

    def read(self, offset: int, into: memoryview) -> int:
        """Fills ``into`` from ``offset`` on."""
        if self.bad.starts and self.bad.overlaps(offset, offset + len(into)):
            return st.UNRECOVERED_READ
        failure = self._read(offset, into)
        if not failure and self.sums is not None:
            for block in self.sums.check(offset, into):
                failure = st.UNRECOVERED_READ
                self.bad.mark(block * self.lba_bytes, (block + 1) * self.lba_bytes)
        return failure

    def write(self, offset: int, data: Data) -> int:
        """Stores ``data``; marks of the range vanish."""
        failure = self._write(offset, data)
        if failure:
            return failure
        if self.bad.starts:
            self.bad.discard(offset, offset + memoryview(data).nbytes)
        if self.sums is not None:
            self.sums.note(offset, data)
        return 0

    def zero(self, offset: int, length: int, *, deallocate: bool) -> int:
        """Makes the range read as zeros; with ``deallocate`` a hole as far as whole granules go."""
        failure = self._zero(offset, length, deallocate)
        if failure:
            return failure
        if self.bad.starts:
            self.bad.discard(offset, offset + length)
        if self.sums is not None:
            self.sums.note_zeros(offset, length)
        return 0

    def verify(self, offset: int, length: int) -> int:
        """Reads without giving the data away."""
        step = 128 << 10
        buffer = memoryview(bytearray(min(step, length)))
        for at in range(offset, offset + length, step):
            failure = self.read(at, buffer[: min(step, offset + length - at)])
            if failure:
                return failure
        return 0

    def mark_bad(self, offset: int, length: int) -> int:
        """Reads of the range fail until it is written again (Write Uncorrectable)."""
        return 0 if self.bad.mark(offset, offset + length) else st.WRITE_FAULT

    def extents(self, offset: int, length: int, limit: int = EXTENTS_MAX) -> list[Extent]:
        """What is allocated, in order from ``offset`` on, at most ``limit`` pieces: they may cover less than asked."""
        merged: list[Extent] = []
        for piece in self._extents(offset, length, limit):
            if merged and merged[-1][1:] == piece[1:]:
                merged[-1] = piece._replace(length_bytes=merged[-1].length_bytes + piece.length_bytes)
            else:
                merged.append(piece)
        return merged

    def save(self, offset: int, length: int) -> Saved:
        """An undo copy."""
        bad = self.bad.within(offset, offset + length) if self.bad.starts else []
        if self.is_hole(offset, length):
            return Saved(None, bad)
        buffer = bytearray(length)
        # What cannot be read cannot be put back: whoever loses power then finds it marked.
        if self._read(offset, memoryview(buffer)):
            return Saved(None, [(offset, offset + length)])
        return Saved(bytes(buffer), bad)

    def restore(self, offset: int, length: int, saved: Saved) -> None:
        """Puts an undo copy back."""
        if saved.data is None:
            self.zero(offset, length, deallocate=True)
        else:
            self.write(offset, saved.data)
        for start, end in saved.bad:
            self.bad.add(start, end)

    def is_hole(self, offset: int, length: int) -> bool:
        """Whether nothing in the range is allocated."""
        return all(piece.hole for piece in self._extents(offset, length, EXTENTS_MAX))

    def sync(self) -> int:
        """Makes what was written durable on the machine that runs this."""
        return 0

    def close(self) -> None:
        """Gives everything back."""
        self.bad.close()

    def figures(self) -> dict[str, int]:
        """Counters for sysfs."""
        return {
            "checksum_mismatches": 0 if self.sums is None else self.sums.mismatches,
            "uncorrectable_blocks": self.bad.size() // self.lba_bytes,
        }

    def _read(self, offset: int, into: memoryview) -> int:
        raise AssertionError("a store reads")

    def _write(self, offset: int, data: Data) -> int:
        raise AssertionError("a store writes")

    def _zero(self, offset: int, length: int, deallocate: bool) -> int:
        raise AssertionError("a store zeroes")

    def _extents(self, offset: int, length: int, limit: int) -> list[Extent]:
        raise AssertionError("a store knows what it holds")
