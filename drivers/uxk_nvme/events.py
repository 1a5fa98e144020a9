"""Asynchronous events of one controller: requests that are held, masks, re-arming (base, section 5.2)."""

from __future__ import annotations

from typing import Final, NamedTuple

from uxk_nvme.queues import Done, ReplyQueue
from uxk_nvme.spec import EventType, Log, Refused, Status

AERL: Final = 3
"""0-based: four requests may wait."""
PENDING_MAX: Final = 32
NAMESPACE_NOTICE: Final = 1 << 8
"""Bit of feature 0Bh: namespace attribute notices."""
SMART_WARNINGS: Final = 0x1F
"""Bits of feature 0Bh: one for each critical warning."""
SUPPORTED: Final = NAMESPACE_NOTICE | SMART_WARNINGS


class Happening(NamedTuple):
    """An event: type, information, and the log page that tells more."""

    kind: EventType
    info: int
    log: Log

    @property
    def dw0(self) -> int:
        """Dword 0 of the completion."""
        return self.kind | self.info << 8 | self.log << 16


NAMESPACE_CHANGED: Final = Happening(EventType.NOTICE, 0, Log.CHANGED_NAMESPACES)
INVALID_DOORBELL: Final = Happening(EventType.ERROR, 1, Log.ERROR)
RELIABILITY: Final = Happening(EventType.SMART, 0, Log.SMART)
TEMPERATURE: Final = Happening(EventType.SMART, 1, Log.SMART)
SPARE: Final = Happening(EventType.SMART, 2, Log.SMART)


class Events:
    """The state of one controller's asynchronous events."""

    __slots__ = ("_masked", "_pending", "_waiting", "enabled")

    def __init__(self) -> None:
        self.enabled = 0
        """Feature 0Bh; of it only :data:`SUPPORTED`."""
        self._waiting: list[tuple[ReplyQueue, int]] = []
        self._pending: list[Happening] = []
        self._masked: set[EventType] = set()
        """Types that were reported and whose log was not read since."""

    @property
    def waiting(self) -> int:
        """Requests that are held."""
        return len(self._waiting)

    def hold(self, queue: ReplyQueue, tag: int) -> None:
        """An Asynchronous Event Request.  Refused: limit exceeded.  It may be answered at once."""
        if len(self._waiting) > AERL:
            raise Refused(Status.ASYNC_LIMIT)
        self._waiting.append((queue, tag))
        self._deliver()

    def let_go(self, queue: ReplyQueue, tag: int) -> bool:
        """Forgets a request that is held; False if it is not."""
        try:
            self._waiting.remove((queue, tag))
        except ValueError:
            return False
        return True

    def drop(self) -> list[tuple[ReplyQueue, int]]:
        """Takes all requests back: their connection ends."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def happen(self, event: Happening) -> None:
        """Something happened.  What is not enabled is not reported; the same is reported once."""
        if not self._wanted(event) or event in self._pending or len(self._pending) >= PENDING_MAX:
            return
        self._pending.append(event)
        self._deliver()

    def warn(self, warning: int) -> None:
        """Critical warning bits that have come up: the events of those that are enabled."""
        fresh = warning & self.enabled & SMART_WARNINGS
        if fresh & 0x01:
            self.happen(SPARE)
        if fresh & 0x02:
            self.happen(TEMPERATURE)
        if fresh & 0x1C:
            self.happen(RELIABILITY)

    def log_read(self, log: int) -> None:
        """A log page was read without RAE: its events are armed again."""
        for kind in [kind for kind in self._masked if log in _LOGS[kind]]:
            self._masked.discard(kind)
        self._pending = [event for event in self._pending if event.log != log]
        self._deliver()

    def _wanted(self, event: Happening) -> bool:
        if event.kind is EventType.NOTICE:
            return bool(self.enabled & NAMESPACE_NOTICE)
        return event.kind is EventType.ERROR or bool(self.enabled & SMART_WARNINGS)

    def _deliver(self) -> None:
        for event in [event for event in self._pending if event.kind not in self._masked]:
            if not self._waiting:
                return
            if event.kind not in self._masked:
                self._pending.remove(event)
                self._masked.add(event.kind)
                queue, tag = self._waiting.pop(0)
                queue.post([Done(tag, 0, event.dw0)])


_LOGS: Final = {
    EventType.ERROR: (Log.ERROR,),
    EventType.SMART: (Log.SMART,),
    EventType.NOTICE: (Log.CHANGED_NAMESPACES,),
}
