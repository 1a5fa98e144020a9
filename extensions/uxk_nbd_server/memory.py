"""Memory that data wait in, between sockets and the device: slots of one region, shared fairly.

Every connection has a few slots for itself, so that it can always go on with small requests; what long ones need
beyond comes from a common stock, all of it or nothing.  So nobody holds a part of what he needs and waits for the rest.
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
    """All slots."""

    def __init__(self, region: memoryview) -> None:
        self.region = region
        count = len(region) // SLOT_BYTES
        self.slots = count
        self._free = [
            Slot(index * SLOT_BYTES, region[index * SLOT_BYTES : (index + 1) * SLOT_BYTES])
            for index in reversed(range(count))
        ]
        self.common = count
        """Free slots that are nobody's own."""
        self._promised = 0
        self._waiting: deque[Callable[[], object]] = deque()

    @property
    def free(self) -> int:
        """Slots in nobody's hands."""
        return len(self._free)

    def open(self, most: int) -> Purse | None:
        """A connection's share: its own slots and at most ``most`` in all.  None if there is no memory for one more."""
        if self.common < OWN_SLOTS or self.slots - self._promised < OWN_SLOTS + COMMON_SLOTS_MIN:
            return None
        self._promised += OWN_SLOTS
        self.common -= OWN_SLOTS
        return Purse(self, most)

    def when_free(self, callback: Callable[[], object]) -> None:
        """Calls back when there is more in the common stock, one who waits for every slot."""
        self._waiting.append(callback)

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for the common stock."""
        return bool(self._waiting)

    def take(self) -> Slot:
        """A free slot; its purse has seen to it that there is one."""
        return self._free.pop()

    def give(self, slot: Slot, *, common: bool) -> None:
        """A slot comes back; the warmest goes out first."""
        self._free.append(slot)
        if common:
            self.add_common(1)

    def close_one(self) -> None:
        """One connection less has slots of its own."""
        self._promised -= OWN_SLOTS

    def add_common(self, count: int) -> None:
        """The common stock has grown."""
        self.common += count
        for _ in range(min(count, len(self._waiting))):
            self._waiting.popleft()()


class Purse:
    """One connection's slots."""

    __slots__ = ("_closed", "_most", "_pool", "held")

    def __init__(self, pool: Pool, most: int) -> None:
        self._pool = pool
        self._most = max(most, OWN_SLOTS)
        self._closed = False
        self.held = 0

    @property
    def borrowed(self) -> int:
        """How many of the common stock it holds."""
        return max(0, self.held - OWN_SLOTS)

    def take(self, count: int) -> list[Slot] | None:
        """``count`` slots with one reference each, or None if they are not there now."""
        extra = max(0, self.held + count - OWN_SLOTS) - self.borrowed
        if self._closed or extra > self._pool.common or self.held + count > self._most:
            return None
        self._pool.common -= extra
        self.held += count
        taken = [self._pool.take() for _ in range(count)]
        for slot in taken:
            slot.references = 1
            slot.purse = self
        return taken

    def give(self, slot: Slot) -> None:
        """A slot that nobody needs any more."""
        slot.purse = None
        common = self._closed or self.held > OWN_SLOTS
        self.held -= 1
        self._pool.give(slot, common=common)

    def when_free(self, callback: Callable[[], object]) -> None:
        """As :meth:`Pool.when_free`."""
        self._pool.when_free(callback)

    def close(self) -> None:
        """The connection is gone; what is still in flight comes back by and by."""
        if not self._closed:
            self._closed = True
            self._pool.close_one()
            self._pool.add_common(OWN_SLOTS - min(self.held, OWN_SLOTS))
