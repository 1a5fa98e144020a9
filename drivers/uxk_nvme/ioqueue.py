"""An I/O queue pair of the driver's: which identifiers are in use, for which requests, and what is special of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

import uxk
from uxk_nvme.queues import HostQueue
from uxk_nvme.translate import Words
from uxk_nvme.watch import Watch


class Parts:
    """A request that takes several commands: answered when all are done, with the first error."""

    __slots__ = ("left", "place", "status")

    def __init__(self, left: int, place: int) -> None:
        self.left = left
        self.place = place
        self.status = 0


Slot: TypeAlias = "tuple[int, int, Words | None, Parts | None]"
"""What is special about a command: its bounce buffer or -1, the bytes it moves, itself and its companions."""


class IoQueue:
    """An I/O queue pair, and which identifiers are in use."""

    __slots__ = ("aborted", "extra", "free", "ring", "slots", "watch")

    def __init__(self, ring: HostQueue) -> None:
        self.ring = ring
        self.free = list(reversed(range(ring.entries - 1)))
        self.slots: list[uxk.Request | None] = [None] * ring.entries
        """Requests by command identifier; those of free identifiers are stale."""
        self.extra: dict[int, Slot] = {}
        """Of commands that are no plain reads or writes of a client's memory."""
        self.aborted: dict[int, bool] = {}
        """Commands that the controller was asked to abort; true if the kernel has answered their request already."""
        self.watch = Watch()

    def under_way(self) -> dict[int, uxk.Request | None]:
        """Requests by the identifiers that are in use."""
        free = set(self.free)
        return {cid: self.slots[cid] for cid in range(self.ring.entries - 1) if cid not in free}

    def hung(self, now_ns: int, limit_ns: int) -> list[int]:
        """Identifiers of commands that have been under way for so long; they are noted as aborted."""
        under_way = self.under_way()
        late = self.watch.late(under_way, now_ns, limit_ns)
        for cid in late:
            self._give_up(cid, under_way[cid], answered=False)
        return late

    def taken_back(self, requests: Collection[int]) -> list[int]:
        """The same, of those that belong to requests, by number, that the kernel has answered itself."""
        found = [(cid, each) for cid, each in self.under_way().items() if each is not None and each.cid in requests]
        for cid, request in found:
            self._give_up(cid, request, answered=True)
        return [cid for cid, _ in found]

    def _give_up(self, cid: int, request: uxk.Request | None, *, answered: bool) -> None:
        """A command is being aborted: it is not tried again, whatever becomes of it."""
        assert request is not None
        self.aborted[cid] = answered or self.aborted.get(cid, False)
        self.extra.setdefault(cid, (-1, request.length, None, None))
