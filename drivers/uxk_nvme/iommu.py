"""The IOMMU of the emulated machine: what a data pointer of a command may reach.

A bus address is ``handle << 40 | offset``.  A handle names one mapped range: arena memory of the driver's own, or
memory of a client's that the kernel has lent or derived (a capability).  Mappings of clients' memory are remembered,
since registered buffers come back with every request; the kernel ends them by releasing the view.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from uxk_nvme.spec import Refused, Status

OFFSET_BITS: Final = 40
OFFSET_MASK: Final = (1 << OFFSET_BITS) - 1
REMEMBERED_MAX: Final = 256
"""Mappings of clients' memory; the oldest is forgotten."""

_NONE: Final = memoryview(b""), -1, True


class Iommu:
    """Handles to memory.  ``map_region(cap, writable)`` is the context's ``map``; it raises without the right."""

    __slots__ = ("_by_cap", "_free", "_map", "retired", "views")

    def __init__(self, map_region: Callable[[int, bool], memoryview]) -> None:
        self._map = map_region
        self.views: list[memoryview | None] = [None]
        """By handle; handle 0 is never valid, so that address 0 is not."""
        self._free: list[int] = []
        self.retired: list[int] = []
        """Forgotten, but perhaps named by commands that are not fetched yet."""
        self._by_cap: dict[tuple[int, bool], int] = {}

    def pin(self, view: memoryview) -> int:
        """A handle for the driver's own memory, for good."""
        self.views.append(view)
        return len(self.views) - 1

    def handle(self, cap: int, writable: bool) -> int:
        """The handle of a client's memory; raises as ``ctx.map`` does for a capability that allows it not."""
        by_cap = self._by_cap
        known = by_cap.get((cap, True))  # it serves both ways
        if known is None and not writable:
            known = by_cap.get((cap, False))
        if known is not None:
            try:
                len(self.views[known])  # type: ignore[arg-type]  # a released view raises ValueError
            except ValueError:
                for key in ((cap, True), (cap, False)):
                    if by_cap.get(key) == known:
                        self._forget(key)
            else:
                return known
        view = self._map(cap, writable)
        if len(by_cap) >= REMEMBERED_MAX:
            self._forget(next(iter(by_cap)))
        if self._free:
            handle = self._free.pop()
            self.views[handle] = view
        else:
            handle = self.pin(view)
        by_cap[cap, writable] = handle
        return handle

    def settle(self) -> None:
        """All commands so far are fetched: forgotten handles may be given to others."""
        for handle in self.retired:
            self.views[handle] = None
        self._free += self.retired
        self.retired.clear()

    def whole(self, handle: int) -> tuple[memoryview, int, bool]:
        """All of a mapping, its bytes, and whether it may only be read; -1 bytes if there is none such."""
        view = self.views[handle] if handle < len(self.views) else None
        try:
            return _NONE if view is None else (view, len(view), view.readonly)
        except ValueError:
            return _NONE  # the kernel has ended the mapping

    def resolve(self, address: int, length: int, *, writable: bool) -> memoryview:
        """The bytes of a bus address.  Raises :class:`Refused` (Data Transfer Error) for what is not mapped so."""
        handle, offset = address >> OFFSET_BITS, address & OFFSET_MASK
        view = self.views[handle] if handle < len(self.views) else None
        if view is not None:
            try:
                part = view[offset : offset + length]
            except ValueError:
                part = None  # the kernel has ended the mapping
            if part is not None and len(part) == length and not (writable and part.readonly):
                return part
        raise Refused(Status.DATA_TRANSFER_ERROR)

    def _forget(self, key: tuple[int, bool]) -> None:
        self.retired.append(self._by_cap.pop(key))
