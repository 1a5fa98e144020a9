"""The event heap of virtual time: ``(due_ns, sequence, callback, argument)``.

Events due at the same instant run in the order in which they were scheduled.  *Daemon* events (heartbeats,
periodic sweeps) never keep a run alive: :attr:`EventHeap.lasting` counts the others.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from operator import index
from typing import Any, Final, NewType

from uxk.errors import UsageError
from uxk.limits import I64_MAX

EventId = NewType("EventId", int)
"""Sequence number of a scheduled event; names it for :meth:`EventHeap.cancel`."""

_COMPACT_MIN: Final = 1024


def nanoseconds(name: str, value: int) -> int:
    """``value`` as the plain integer that virtual time is made of; ``name`` is for the complaint.

    A numpy integer is converted: it would wrap around, and no message could carry it.  Raises
    :class:`UsageError` for anything else, floats included, and for what does not fit in 64 bits.
    """
    try:
        plain = index(value)
    except TypeError:
        raise UsageError(f"{name}={value!r}: expected an integer number of nanoseconds") from None
    if not -I64_MAX <= plain <= I64_MAX:
        raise UsageError(f"{name}={plain}: expected at most {I64_MAX}")
    return plain


class EventHeap:
    """Scheduled callbacks in order of time.  Time itself is kept by the caller."""

    __slots__ = ("_cancelled", "_daemons", "_heap", "_sequence", "fired", "lasting")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Callable[[Any], object], Any]] = []
        self._sequence = 0
        self._cancelled: set[int] = set()
        self._daemons: set[int] = set()
        self.fired = 0
        self.lasting = 0
        """Events that a run waits for: all but daemons.  Counted, since it is asked for at every instant."""

    def __len__(self) -> int:
        return len(self._heap) - len(self._cancelled)

    def call_at(self, due_ns: int, callback: Callable[[Any], object], argument: Any = None) -> EventId:
        """Schedules ``callback(argument)``; a time in the past means now, after what is already due."""
        self._sequence = sequence = self._sequence + 1
        self.lasting += 1
        heappush(self._heap, (due_ns, sequence, callback, argument))
        return sequence  # type: ignore[return-value]  # the NewType's call costs as much as the push

    def call_at_daemon(self, due_ns: int, callback: Callable[[Any], object], argument: Any = None) -> EventId:
        """As :meth:`call_at`, for an event that should not keep a run alive."""
        event = self.call_at(due_ns, callback, argument)
        self.lasting -= 1
        self._daemons.add(event)
        return event

    def cancel(self, event: EventId) -> None:
        """Takes back an event that has *not* fired yet; the caller knows, because it forgets ids on firing."""
        if event in self._cancelled:
            return
        self._cancelled.add(event)
        if event in self._daemons:
            self._daemons.remove(event)
        else:
            self.lasting -= 1
        if len(self._cancelled) > _COMPACT_MIN and 2 * len(self._cancelled) > len(self._heap):
            self._compact()

    def discard(self, event: EventId) -> bool:
        """As :meth:`cancel`, for a caller who does not know whether it has fired.  Looks at every event."""
        if event in self._cancelled or all(item[1] != event for item in self._heap):
            return False
        self.cancel(event)
        return True

    def next_due_ns(self) -> int | None:
        """Time of the earliest event, or None."""
        heap = self._heap
        while heap:
            if not self._cancelled or heap[0][1] not in self._cancelled:
                return heap[0][0]
            self._cancelled.discard(heappop(heap)[1])
        return None

    def is_due(self, now_ns: int) -> bool:
        """Whether :meth:`pop_due` may find something; if not, it will not."""
        heap = self._heap
        return bool(heap) and heap[0][0] <= now_ns

    def pop_due(self, now_ns: int) -> tuple[Callable[[Any], object], Any] | None:
        """The next callback due at or before ``now_ns`` with its argument, or None."""
        heap = self._heap
        while heap and heap[0][0] <= now_ns:
            _, sequence, callback, argument = heappop(heap)
            if self._cancelled and sequence in self._cancelled:
                self._cancelled.discard(sequence)
                continue
            if sequence in self._daemons:
                self._daemons.remove(sequence)
            else:
                self.lasting -= 1
            self.fired += 1
            return callback, argument
        return None

    def pop_until(self, limit_ns: int) -> tuple[int, int, Callable[[Any], object], Any] | None:
        """The earliest event due at or before ``limit_ns``: its time, its id, its callback and argument; or None."""
        heap = self._heap
        while heap and heap[0][0] <= limit_ns:
            item = heappop(heap)
            if self._cancelled and item[1] in self._cancelled:
                self._cancelled.discard(item[1])
                continue
            if item[1] in self._daemons:
                self._daemons.remove(item[1])
            else:
                self.lasting -= 1
            self.fired += 1
            return item
        return None

    def _compact(self) -> None:
        self._heap = [item for item in self._heap if item[1] not in self._cancelled]
        heapify(self._heap)
        self._cancelled.clear()
