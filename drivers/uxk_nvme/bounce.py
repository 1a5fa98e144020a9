"""Bounce buffers: memory of the driver's own for data that travel inside entries, which no bus address can name."""

from __future__ import annotations

from typing import Final

from uxk_nvme.iommu import OFFSET_BITS
from uxk_nvme.spec import PAGE_BYTES, TRANSFER_MAX_BYTES

SMALL: Final = 768
LARGE: Final = 24
BOUNCE_BYTES: Final = SMALL * PAGE_BYTES + LARGE * TRANSFER_MAX_BYTES
_FIRST_LARGE: Final = SMALL * PAGE_BYTES


class Bounce:
    """Two sizes of buffers: a page, and the longest transfer.  An address is a bus address."""

    __slots__ = ("_base", "_large", "_small", "view")

    def __init__(self, view: memoryview, handle: int, start: int = 0) -> None:
        self.view = view
        self._base = (handle << OFFSET_BITS) + start
        self._small = [index * PAGE_BYTES for index in reversed(range(SMALL))]
        self._large = [_FIRST_LARGE + index * TRANSFER_MAX_BYTES for index in reversed(range(LARGE))]

    def take(self, length: int) -> int:
        """Offset of a buffer, or -1 if none is free now."""
        if length <= PAGE_BYTES and self._small:
            return self._small.pop()
        return self._large.pop() if self._large else -1

    def give(self, offset: int) -> None:
        """Takes a buffer back."""
        (self._small if offset < _FIRST_LARGE else self._large).append(offset)

    def address(self, offset: int) -> int:
        """The bus address of a buffer."""
        return self._base + offset
