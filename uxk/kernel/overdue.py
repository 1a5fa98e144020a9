"""Memory that a driver may still touch although the kernel has answered the request for it.

Whoever runs into a deadline is told so; the driver is not stopped by that, and may move the data later.  Until it
has answered after all, or is dead, nobody else gets that memory.  The same goes for memory of the kernel's own clients
that they give up in the middle of a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uxk.core.arena import Arena
    from uxk.uapi.entries import Completion, Request


class Overdue:
    """Requests of one instance that were answered for it, or whose memory was given up, by command id."""

    __slots__ = ("_arena", "_pins", "regions")

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.regions: dict[int, int] = {}
        """The capability by which each names its memory; mostly there are none."""
        self._pins: dict[int, int] = {}
        """Where the memory is that a request keeps since its client has let go of it."""

    def __len__(self) -> int:
        return len(self.regions)

    def add(self, request: Request) -> None:
        """The driver has it, and nobody else keeps its memory."""
        if request.region:
            self.regions[request.cid] = request.region

    def keep(self, region: int, offset: int) -> None:
        """A client lets go of memory at ``offset`` of the arena, known as ``region``: what is late keeps it."""
        for cid, named in self.regions.items():
            if named == region and cid not in self._pins:
                self._arena.retain(offset, lingering=True)
                self._pins[cid] = offset

    def answered(self, completions: list[Completion]) -> None:
        """The driver has answered, some of these perhaps."""
        for completion in completions:
            self.regions.pop(completion.cid, None)
            offset = self._pins.pop(completion.cid, None)
            if offset is not None:
                self._arena.release(offset)

    def clear(self) -> None:
        """The driver is dead."""
        pins, self._pins = self._pins, {}
        self.regions.clear()
        for offset in pins.values():
            self._arena.release(offset)
