"""Bounce buffers: memory of the driver's own for data that travel inside entries, which no bus address can name."""

from __future__ import annotations

from typing import Final

from uxk_nvme.iommu import OFFSET_BITS
from uxk_nvme.spec import PAGE_BYTES, TRANSFER_MAX_BYTES

SMALL: Final = 768
LARGE: Final = 24
_DISKS_BYTES: Final = SMALL * PAGE_BYTES + LARGE * TRANSFER_MAX_BYTES
OTHER_SMALL: Final = 128
OTHER_LARGE: Final = 8
"""What passthrough has for itself: its clients cannot take the disks' buffers, nor disks theirs."""
BOUNCE_BYTES: Final = _DISKS_BYTES + OTHER_SMALL * PAGE_BYTES + OTHER_LARGE * TRANSFER_MAX_BYTES


class Bounce:
    """Two sizes of buffers: a page, and the longest transfer.  An address is a bus address."""

    __slots__ = ("_base", "_first_large", "_large", "_small", "view")

    def __init__(
        self, view: memoryview, handle: int, start: int = 0, *, at: int = 0, small: int = SMALL, large: int = LARGE
    ) -> None:
        self.view = view
        self._base = (handle << OFFSET_BITS) + start
        self._first_large = at + small * PAGE_BYTES
        self._small = [at + index * PAGE_BYTES for index in reversed(range(small))]
        self._large = [self._first_large + index * TRANSFER_MAX_BYTES for index in reversed(range(large))]

    def other(self) -> Bounce:
        """The buffers of the rest of the memory."""
        return Bounce(self.view, 0, self._base, at=_DISKS_BYTES, small=OTHER_SMALL, large=OTHER_LARGE)

    def take(self, length: int) -> int:
        """Offset of a buffer, or -1 if none is free now."""
        if length <= PAGE_BYTES and self._small:
            return self._small.pop()
        return self._large.pop() if self._large else -1

    def give(self, offset: int) -> None:
        """Takes a buffer back."""
        (self._small if offset < self._first_large else self._large).append(offset)

    @property
    def free_small(self) -> int:
        """Buffers of a page."""
        return len(self._small)

    @property
    def free_large(self) -> int:
        """Buffers of the longest transfer."""
        return len(self._large)

    def address(self, offset: int) -> int:
        """The bus address of a buffer."""
        return self._base + offset
