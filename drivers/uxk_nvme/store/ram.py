"""A store in memory: of its own, or an arena's that outlives the instance."""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from uxk.uapi.blk import Extent
from uxk_nvme.store.base import GRANULE_BYTES, Saved, Store
from uxk_nvme.store.checksum import Data

HOLE: Final = 0
DATA: Final = 1
ZEROS: Final = 2
"""Allocated, and zero as long as nothing is written."""

_SHIFT: Final = GRANULE_BYTES.bit_length() - 1
_SCAN_BYTES: Final = 1 << 20
_RUNS: Final = tuple(re.compile(bytes((kind,)) + b"+") for kind in (HOLE, DATA, ZEROS))


class RamStore(Store):
    """Bytes in memory, with one byte per granule that says what is allocated."""

    def __init__(
        self, size_bytes: int, lba_bytes: int, *, integrity: bool = False, memory: memoryview | None = None,
        fresh: bool = False,
    ):  # fmt: skip
        """``memory``: at least ``size_bytes`` that may hold data already; whatever is not zero there is allocated.

        ``fresh`` says that it is zero: looking would make the host allocate all of it.
        """
        super().__init__(size_bytes, lba_bytes, integrity=integrity)
        self.map = bytearray(-(-size_bytes // GRANULE_BYTES))
        if memory is None:
            self._bytes = memoryview(bytearray(size_bytes))
        else:
            self._bytes = memory.cast("B")[:size_bytes]
            if len(self._bytes) < size_bytes:
                raise ValueError(f"memory of {len(self._bytes)} bytes, expected at least {size_bytes}")
            if not fresh:
                self._scan()
        self.view = self._bytes

    def _scan(self) -> None:
        """Finds what an earlier instance has left."""
        for at in range(0, self.size_bytes, _SCAN_BYTES):
            piece = np.frombuffer(self._bytes[at : at + _SCAN_BYTES], np.uint8)
            if not piece.any():
                continue
            first = at >> _SHIFT
            used = np.add.reduceat(piece != 0, np.arange(0, len(piece), GRANULE_BYTES)) != 0
            self.map[first : first + len(used)] = used.astype(np.uint8).tobytes()

    def _read(self, offset: int, into: memoryview) -> int:
        into[:] = self._bytes[offset : offset + len(into)]
        return 0

    def _write(self, offset: int, data: Data) -> int:
        length = memoryview(data).nbytes
        self._bytes[offset : offset + length] = data
        first, last = offset >> _SHIFT, (offset + length - 1) >> _SHIFT
        if first == last:
            self.map[first] = DATA
        else:
            self.map[first : last + 1] = b"\1" * (last - first + 1)
        return 0

    def _zero(self, offset: int, length: int, deallocate: bool) -> int:
        end = offset + length
        for at in range(offset, end, _SCAN_BYTES):
            size = min(_SCAN_BYTES, end - at)
            self._bytes[at : at + size] = bytes(size)
        # Whole granules, the last one of the store included though it may be short.
        first = -(-offset // GRANULE_BYTES)
        last = len(self.map) if end == self.size_bytes else end // GRANULE_BYTES
        if first < last:
            self.map[first:last] = bytes((HOLE if deallocate else ZEROS,)) * (last - first)
        if not deallocate:
            for edge in {offset >> _SHIFT, (end - 1) >> _SHIFT}:
                if self.map[edge] == HOLE:
                    self.map[edge] = ZEROS
        return 0

    def _extents(self, offset: int, length: int, limit: int) -> list[Extent]:
        end = offset + length
        found: list[Extent] = []
        at = offset
        while at < end and len(found) < limit:
            granule = at >> _SHIFT
            kind = self.map[granule]
            run = _RUNS[kind].match(self.map, granule)
            stop = granule + 1 if run is None else run.end()
            piece = min(stop << _SHIFT, end) - at
            found.append(Extent(piece, kind == HOLE, kind != DATA))
            at += piece
        return found

    def is_hole(self, offset: int, length: int) -> bool:
        """Whether nothing in the range is allocated."""
        first, last = offset >> _SHIFT, (offset + length - 1) >> _SHIFT
        return not any(self.map[first : last + 1])

    def save(self, offset: int, length: int) -> Saved:
        """An undo copy."""
        bad = self.bad.within(offset, offset + length) if self.bad.starts else []
        granule = offset >> _SHIFT
        hole = self.is_hole(offset, length) if length > GRANULE_BYTES or self.map[granule] == HOLE else False
        return Saved(None, bad) if hole else Saved(bytes(self._bytes[offset : offset + length]), bad)

    def close(self) -> None:
        """Lets go of the memory."""
        super().close()
        self._bytes.release()
