"""Which blocks cannot be read, in memory and on a record that outlives the instance: a bit for every 512 bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Protocol

import numpy as np

from uxk_nvme.store.intervals import Intervals

MARKS_MAX: Final = 65_536
"""A client may mark every other block as uncorrectable; beyond this many pieces it is refused."""
_SHIFT: Final = 9
"""A bit of the record stands for so many bytes as a power of two, whatever the logical blocks are."""
_CHUNK_BYTES: Final = 64 << 10


class Record(Protocol):
    """Where the bits are kept.  Numbers are of bits."""

    def load(self) -> Iterator[tuple[int, int]]:
        """(first, end) of what is marked, ascending; neighbours may be apart."""
        ...

    def put(self, first: int, end: int, *, marked: bool) -> bool:
        """Sets the bits of [first, end); False if that is not possible."""
        ...

    def sync(self) -> int:
        """Makes it durable; 0, or an errno."""
        ...

    def close(self) -> None:
        """Gives it back."""
        ...


def record_bytes(size_bytes: int) -> int:
    """Memory for a device's marks."""
    return -(-size_bytes >> _SHIFT + 3)


class MemoryRecord:
    """Bits in memory that outlives the instance."""

    def __init__(self, view: memoryview) -> None:
        self._view = view.cast("B")

    def load(self) -> Iterator[tuple[int, int]]:
        """(first, end) of what is marked."""
        for at in range(0, len(self._view), _CHUNK_BYTES):
            yield from _runs(bytes(self._view[at : at + _CHUNK_BYTES]), 8 * at)

    def put(self, first: int, end: int, *, marked: bool) -> bool:
        """Sets the bits of [first, end)."""
        low, high = first >> 3, (end + 7) >> 3
        self._view[low:high] = _changed(self._view[low:high], first - 8 * low, end - 8 * low, marked=marked)
        return True

    def sync(self) -> int:
        """It needs nothing."""
        return 0

    def close(self) -> None:
        """Lets go of the memory."""
        self._view.release()


class FileRecord:
    """Bits in a file beside the image, which is there only while something is marked."""

    def __init__(self, path: str, size_bytes: int) -> None:
        self.path = path
        self._size_bytes = size_bytes
        self._fd = -1
        with suppress(OSError):
            self._fd = os.open(path, _FLAGS)

    def load(self) -> Iterator[tuple[int, int]]:
        """(first, end) of what is marked."""
        at = 0
        while self._fd >= 0 and at < self._size_bytes:
            try:
                at = os.lseek(self._fd, at, os.SEEK_DATA)
                piece = os.pread(self._fd, min(_CHUNK_BYTES, self._size_bytes - at), at)
            except OSError:  # no data beyond
                return
            if not piece:
                return
            yield from _runs(piece, 8 * at)
            at += len(piece)

    def put(self, first: int, end: int, *, marked: bool) -> bool:
        """Sets the bits of [first, end); makes the file for the first mark."""
        if self._fd < 0 and not marked:
            return True
        low, high = first >> 3, (end + 7) >> 3
        try:
            if self._fd < 0:
                self._fd = os.open(self.path, _FLAGS | os.O_CREAT, 0o644)
            held = os.pread(self._fd, high - low, low).ljust(high - low, b"\0")
            changed = _changed(held, first - 8 * low, end - 8 * low, marked=marked)
            return os.pwrite(self._fd, changed, low) == len(changed)
        except OSError:
            return False

    def sync(self) -> int:
        """fdatasync(2)."""
        try:
            if self._fd >= 0:
                os.fdatasync(self._fd)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def close(self) -> None:
        """Closes the file; removes it if nothing is marked."""
        if self._fd < 0:
            return
        empty = next(self.load(), None) is None
        os.close(self._fd)
        self._fd = -1
        if empty:
            with suppress(OSError):
                os.unlink(self.path)


class Marks(Intervals):
    """Byte ranges that cannot be read; with a record, also after the driver was killed."""

    __slots__ = ("_record",)

    def __init__(self) -> None:
        super().__init__()
        self._record: Record | None = None

    def keep(self, record: Record, size_bytes: int) -> None:
        """Takes over what the record says of a device of that size, and writes down there what changes from now on."""
        for first, end in record.load():
            if first << _SHIFT < size_bytes:
                super().add(first << _SHIFT, min(end << _SHIFT, size_bytes))
        self._record = record

    def mark(self, start: int, end: int) -> bool:
        """Marks [start, end); False, and nothing is marked, if there are too many pieces or it cannot be recorded."""
        record = self._record
        if len(self) >= MARKS_MAX:
            return False
        if record is not None and not record.put(start >> _SHIFT, end >> _SHIFT, marked=True):
            return False
        super().add(start, end)
        return True

    def add(self, start: int, end: int) -> None:
        """Marks [start, end), whether or not it can be recorded."""
        if self._record is not None:
            self._record.put(start >> _SHIFT, end >> _SHIFT, marked=True)
        super().add(start, end)

    def discard(self, start: int, end: int) -> None:
        """Unmarks [start, end)."""
        if self._record is not None:
            for first, last in self.within(start, end):
                self._record.put(first >> _SHIFT, last >> _SHIFT, marked=False)
        super().discard(start, end)

    def sync(self) -> int:
        """Makes the record durable; 0, or an errno."""
        return 0 if self._record is None else self._record.sync()

    def close(self) -> None:
        """Gives the record back; what is marked stays on it."""
        if self._record is not None:
            self._record.close()
            self._record = None


_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


def _changed(held: bytes | memoryview, first: int, end: int, *, marked: bool) -> bytes:
    """The bytes with bits [first, end) set or cleared: bit 0 is the least of the first byte."""
    bits = int.from_bytes(held, "little")
    mask = (1 << end) - (1 << first)
    return (bits | mask if marked else bits & ~mask).to_bytes(len(held), "little")


def _runs(piece: bytes, base: int) -> Iterator[tuple[int, int]]:
    """Runs of set bits, ascending."""
    if piece.count(0) < len(piece):
        bits = np.unpackbits(np.frombuffer(piece, np.uint8), bitorder="little").astype(np.int8)
        edges = (np.flatnonzero(np.diff(bits, prepend=0, append=0)) + base).tolist()
        yield from zip(edges[::2], edges[1::2], strict=True)
