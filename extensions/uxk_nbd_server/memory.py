"""Memory that data wait in, between sockets and the device: slots of one region, shared fairly.

Every connection has a few slots for itself, set aside before the first one comes, so that it can always go on with
small requests; what long ones need beyond comes from a common stock, all of it or nothing, and first come, first
served.  So nobody holds a part of what he needs and waits for the rest, and nobody is passed over for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from uxk_nbd_server.wire import REQUEST_MAX_BYTES

SLOT_BYTES: Final = 256 << 10
COMMON_SLOTS_MIN: Final = REQUEST_MAX_BYTES // SLOT_BYTES
"""Never anybody's own: the longest request must find room."""
OWN_SLOTS: Final = 3
"""Of every connection: one to receive in, one that writes are still in flight from, one to answer from."""


class Slot:
    """One piece of memory.  ``references`` counts who still needs its bytes; without any it goes back."""

    __slots__ = ("base", "purse", "references", "view")

    def __init__(self, base: int, view: memoryview) -> None:
        self.base = base
        """Where it begins in the region."""
        self.view = view
        self.references = 0
        self.purse: Purse | None = None

    def release(self) -> None:
        """One less needs it."""
        self.references -= 1
        if not self.references and self.purse is not None:
            self.purse.give(self)


class Pool:
    """All slots: those of at most ``places_max`` connections, and the common stock."""

    def __init__(self, region: memoryview, places_max: int) -> None:
        self.region = region
        count = len(region) // SLOT_BYTES
        self.slots = count
        self._free = [
            Slot(index * SLOT_BYTES, region[index * SLOT_BYTES : (index + 1) * SLOT_BYTES])
            for index in reversed(range(count))
        ]
        self.places = max(0, min(places_max, (count - COMMON_SLOTS_MIN) // OWN_SLOTS))
        """Connections that there is memory for."""
        self.taken = 0
        """Places that are somebody's."""
        self.common = self.stock = count - OWN_SLOTS * self.places
        """Free slots that are nobody's own, and how many there are when nobody borrows."""
        self._waiting: deque[Purse] = deque()

    @property
    def free(self) -> int:
        """Slots in nobody's hands."""
        return len(self._free)

    @property
    def waiting(self) -> int:
        """Who waits for the common stock."""
        return len(self._waiting)

    @property
    def shortfall(self) -> int:
        """Slots that the first of those who wait still lacks."""
        return max(0, self._waiting[0].extra(self._waiting[0].wanted) - self.common) if self._waiting else 0

    def open(self, most: int) -> Purse | None:
        """A connection's share: its own slots and at most ``most`` in all.  None if all places are taken."""
        if self.taken >= self.places:
            return None
        self.taken += 1
        return Purse(self, most)

    def take(self) -> Slot:
        """A free slot; its purse has seen to it that there is one."""
        return self._free.pop()

    def give(self, slot: Slot, *, common: bool) -> None:
        """A slot comes back; the warmest goes out first."""
        self._free.append(slot)
        if common:
            self.add_common(1)

    def add_common(self, count: int) -> None:
        """The common stock has grown."""
        self.common += count
        if self._waiting:
            self.serve()

    def is_next(self, purse: Purse) -> bool:
        """Whether nobody came before."""
        return not self._waiting or self._waiting[0] is purse

    def enqueue(self, purse: Purse) -> None:
        """Somebody waits for the common stock."""
        self._waiting.append(purse)

    def dequeue(self, purse: Purse) -> None:
        """Somebody waits no more: he may have been in the way of others."""
        self._waiting.remove(purse)
        self.serve()

    def serve(self) -> None:
        """Sets aside what is there for those who wait, in their order."""
        while self._waiting:
            purse = self._waiting[0]
            extra = purse.extra(purse.wanted)
            if extra > self.common:
                break
            self._waiting.popleft()
            self.common -= extra
            purse.granted(extra)


class Purse:
    """One connection's slots."""

    __slots__ = ("_callback", "_closed", "_most", "_pool", "_queued", "_reserved", "held", "wanted")

    def __init__(self, pool: Pool, most: int) -> None:
        self._pool = pool
        self._most = max(most, OWN_SLOTS)
        self._closed = False
        self._queued = False
        self._reserved = 0
        """Of the common stock, set aside for what it waited for."""
        self._callback: Callable[[], object] | None = None
        self.held = 0
        self.wanted = 0
        """Slots that it waits for."""

    @property
    def borrowed(self) -> int:
        """How many of the common stock it holds."""
        return max(0, self.held - OWN_SLOTS)

    def extra(self, count: int) -> int:
        """How many of ``count`` more slots would be of the common stock."""
        return max(0, self.held + count - OWN_SLOTS) - self.borrowed

    def take(self, count: int) -> list[Slot] | None:
        """``count`` slots with one reference each, or None if they are not there now."""
        pool = self._pool
        extra = max(0, self.held + count - OWN_SLOTS) - max(0, self.held - OWN_SLOTS)
        if extra:
            if self._closed or self.held + count > self._most:
                return None
            reserved = self._reserved
            if reserved >= extra:
                self._reserved -= extra
            elif extra <= pool.common + reserved and pool.is_next(self):
                pool.common -= extra - reserved
                self._reserved = 0
            else:
                return None
        self.held += count
        taken = [pool.take() for _ in range(count)]
        for slot in taken:
            slot.references = 1
            slot.purse = self
        if self._callback is not None or self._reserved:
            self.forget()
        return taken

    def give(self, slot: Slot) -> None:
        """A slot that nobody needs any more."""
        pool = self._pool
        slot.purse = None
        common = self.held > OWN_SLOTS
        self.held -= 1
        pool.give(slot, common=common)
        if self._closed:
            pool.taken -= not self.held
        elif self._callback is not None:
            self._queue()

    # --- waiting ---

    @property
    def waits(self) -> bool:
        """Whether somebody is to be called back."""
        return self._callback is not None

    def when_free(self, count: int, callback: Callable[[], object]) -> None:
        """Calls back once when ``count`` more slots are there, perhaps at once; they are set aside for :meth:`take`."""
        self.forget()
        self.wanted, self._callback = count, callback
        self._queue()

    def _queue(self) -> None:
        """In line with the others, unless it is its own slots that must come back first."""
        if not self._queued and self.held + self.wanted <= self._most:
            self._queued = True
            self._pool.enqueue(self)
        if self._queued:
            self._pool.serve()

    def granted(self, extra: int) -> None:
        """What it waits for is there."""
        self._queued = False
        self._reserved = extra
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()

    def forget(self) -> None:
        """Waits for nothing any more."""
        self._callback = None
        if self._queued:
            self._queued = False
            self._pool.dequeue(self)
        reserved, self._reserved = self._reserved, 0
        if reserved:
            self._pool.add_common(reserved)

    def close(self) -> None:
        """The connection is gone; what is still in flight comes back by and by, and its place after that."""
        if not self._closed:
            self.forget()
            self._closed = True
            self._pool.taken -= not self.held
