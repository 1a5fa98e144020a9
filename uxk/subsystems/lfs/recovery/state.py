"""The log's format: an entry beside each block, and a checkpoint of everything else.

Each block is written with its entry in one cell, as on a device formatted with metadata (NVMe: 64 bytes beside 4 KiB),
so summaries cost no block.  An entry is tagged with the version of the checkpoint that it follows; roll-forward takes
no others, so what an earlier crash left behind is never mistaken for something newer (as F2FS' ``cp_ver``).
"""

from __future__ import annotations

import struct
import zlib
from array import array
from typing import Final, NamedTuple

from uxk.errors import KernelBug, UxkError
from uxk.subsystems.lfs.geometry import Geometry

_ENTRY: Final = struct.Struct("<7q")
_CRC: Final = struct.Struct("<I")
_HEADER: Final = struct.Struct("<8q")
MAGIC: Final = 0x75786B6C6673


class CorruptVolume(UxkError):
    """Neither checkpoint is whole, or the log contradicts the one that is."""


class Entry(NamedTuple):
    """What is known about a block beside its content; clocks count user blocks."""

    page: int
    sequence: int
    """Number of the change: appends and trims count, in program order."""
    version: int
    """Checkpoint that it follows."""
    log: int
    now: int
    """The clock when it was appended."""
    last: int
    """The clock of the page's newest user write."""
    is_move: int
    """1 if the cleaner wrote it."""


def pack_block(entry: Entry, payload: bytes) -> bytes:
    """A cell of the log."""
    body = _ENTRY.pack(*entry) + payload
    return body + _CRC.pack(zlib.crc32(body))


def unpack_block(cell: bytes) -> tuple[Entry, bytes] | None:
    """Entry and content, or None if the cell is empty, torn, or something else."""
    if len(cell) < _ENTRY.size + _CRC.size or _CRC.unpack(cell[-_CRC.size :])[0] != zlib.crc32(cell[: -_CRC.size]):
        return None
    return Entry(*_ENTRY.unpack_from(cell)), cell[_ENTRY.size : -_CRC.size]


class State:
    """What a checkpoint holds.  By page: ``block_of``, ``last``; by segment: ``used``, ``log_of`` (-1: clean),
    ``sealed_at`` (-1: not sealed) and ``born``.  Running and rolling forward change it by the same methods."""

    def __init__(self, geometry: Geometry) -> None:
        self.size, count = geometry.segment_blocks, geometry.segment_count
        self.version = self.sequence = self.now = self.moved = 0
        self.block_of = array("q", [-1]) * geometry.pages
        self.last = array("q", [-1]) * geometry.pages
        self.used = array("q", [0]) * count
        self.log_of = array("q", [-1]) * count
        self.sealed_at = array("q", [-1]) * count
        self.born = array("q", [0]) * count

    def _arrays(self) -> tuple[array[int], ...]:
        return self.block_of, self.last, self.used, self.log_of, self.sealed_at, self.born

    def append(self, block: int, entry: Entry) -> None:
        """A block at the head of a log.  Raises :class:`KernelBug` if it is not where the next one belongs."""
        segment, offset = block // self.size, block % self.size
        fits = self.used[segment] == offset and self.sealed_at[segment] < 0
        if not fits or entry.sequence != self.sequence + 1 or (offset and self.log_of[segment] != entry.log):
            raise KernelBug(f"lfs: block {block} does not continue its log: {entry}")
        self.sequence = entry.sequence
        self.now = entry.now
        self.moved += entry.is_move
        self.block_of[entry.page] = block
        self.last[entry.page] = entry.last
        self.used[segment] = offset + 1
        self.log_of[segment] = entry.log
        if not offset:
            self.born[segment] = entry.now
        if offset + 1 == self.size:
            self.sealed_at[segment] = entry.now

    def trim(self, page: int) -> None:
        """The page has no block any more."""
        self.sequence += 1
        self.block_of[page] = self.last[page] = -1

    def clean(self, segment: int) -> None:
        """The segment is empty."""
        self.used[segment] = 0
        self.log_of[segment] = self.sealed_at[segment] = -1

    def pack(self) -> bytes:
        """A checkpoint's bytes."""
        numbers = (MAGIC, self.version, self.sequence, self.now, self.moved, self.size, len(self.last), len(self.used))
        body = _HEADER.pack(*numbers) + b"".join(column.tobytes() for column in self._arrays())
        return body + _CRC.pack(zlib.crc32(body))

    @classmethod
    def unpack(cls, data: bytes, geometry: Geometry) -> State | None:
        """The state, or None if the bytes are no whole checkpoint.

        Raises :class:`CorruptVolume` if it is one of a volume of another shape.
        """
        if len(data) < _HEADER.size + _CRC.size or _CRC.unpack(data[-_CRC.size :])[0] != zlib.crc32(data[: -_CRC.size]):
            return None
        magic, version, sequence, now, moved, *shape = _HEADER.unpack_from(data)
        expected = [geometry.segment_blocks, geometry.pages, geometry.segment_count]
        if magic != MAGIC or shape != expected:
            raise CorruptVolume(f"checkpoint of a volume of blocks, pages, segments {shape}, expected {expected}")
        state = cls(geometry)
        state.version, state.sequence, state.now, state.moved = version, sequence, now, moved
        start = _HEADER.size
        for column in state._arrays():
            stop = start + column.itemsize * len(column)
            column[:] = array("q", data[start:stop])
            start = stop
        return state


def packed_bytes(geometry: Geometry) -> int:
    """Length of every checkpoint of such a volume."""
    return _HEADER.size + 8 * (2 * geometry.pages + 4 * geometry.segment_count) + _CRC.size
