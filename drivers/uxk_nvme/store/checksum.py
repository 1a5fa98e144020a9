"""A checksum per logical block, kept apart from the data: finds what changed behind the device's back."""

from __future__ import annotations

import zlib
from array import array
from typing import TypeAlias

Data: TypeAlias = bytes | bytearray | memoryview


class Checksums:
    """CRC-32 of each logical block.

    A block whose sum is not known yet (data that were there before the device came up) is believed at the first
    read, and held to that from then on.  Lives in memory only: 5 bytes for each block.
    """

    __slots__ = ("_known", "_lba_bytes", "_sums", "_zero", "mismatches")

    def __init__(self, size_bytes: int, lba_bytes: int) -> None:
        blocks = size_bytes // lba_bytes
        self._lba_bytes = lba_bytes
        self._sums = array("I", bytes(4 * blocks))
        self._known = bytearray(blocks)
        self._zero = zlib.crc32(bytes(lba_bytes))
        self.mismatches = 0
        """Blocks that were found changed."""

    def note(self, offset: int, data: Data) -> None:
        """``data`` are being written at byte ``offset``."""
        view, step, crc32 = memoryview(data).cast("B"), self._lba_bytes, zlib.crc32
        first = offset // step
        sums = [crc32(view[at : at + step]) for at in range(0, len(view), step)]
        self._sums[first : first + len(sums)] = array("I", sums)
        self._known[first : first + len(sums)] = b"\1" * len(sums)

    def note_zeros(self, offset: int, length: int) -> None:
        """The range reads as zeros from now on."""
        first, count = offset // self._lba_bytes, length // self._lba_bytes
        self._sums[first : first + count] = array("I", [self._zero]) * count
        self._known[first : first + count] = b"\1" * count

    def check(self, offset: int, data: Data) -> list[int]:
        """Those blocks of ``data``, just read at byte ``offset``, that are not what was written there."""
        view, step, crc32 = memoryview(data).cast("B"), self._lba_bytes, zlib.crc32
        known, sums = self._known, self._sums
        bad = []
        for block, at in enumerate(range(0, len(view), step), offset // step):
            found = crc32(view[at : at + step])
            if not known[block]:
                known[block], sums[block] = 1, found
            elif sums[block] != found:
                bad.append(block)
        self.mismatches += len(bad)
        return bad
