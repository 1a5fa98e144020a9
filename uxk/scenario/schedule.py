"""The order of what happens at the same instant: as it came, or drawn by lot.

Nothing may depend on that order.  A kernel keeps it fixed, so that runs repeat; to find out who depends on it all the
same, it is drawn from streams of the run's seed, and such a run repeats as well.  Drawn are: which runnable instance
runs next, which of the events due at one nanosecond comes first, and whose task's output is taken first.  The order of
Trio's tasks is a function of the seed in any case (:mod:`uxk.kernel.pin`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappush
from typing import Any, Final

import numpy as np

from uxk.core.events import EventHeap, EventId
from uxk.errors import UsageError
from uxk.kernel.machine import Machine, Runnable

STREAM: Final = "schedule"
EVENTS_STREAM: Final = "schedule/events"
OUTPUT_STREAM: Final = "schedule/output"
_LOT_BITS: Final = 32
_SEQUENCE_BITS: Final = 64
_PURGE_MIN: Final = 256


class DrawnQueue(deque[Runnable]):
    """A run queue whose next instance is any of those in it."""

    def __init__(self, stream: np.random.Generator) -> None:
        super().__init__()
        self._stream = stream

    def popleft(self) -> Runnable:
        """Takes any one out; IndexError if there is none."""
        count = len(self)
        if count < 2:
            return super().popleft()
        place = int(self._stream.integers(count))
        self.rotate(-place)
        drawn = super().popleft()
        self.rotate(place)
        return drawn


class DrawnHeap(EventHeap):
    """An event heap in which events of different owners, due at the same nanosecond, come in any order.

    Two promises of the heap are kept, since much is built on them: what is scheduled for the present comes after what
    is due already; and events of one owner, the object whose method is to be called, come as they were scheduled.
    """

    __slots__ = ("_lots", "_now_ns", "_stream")

    def __init__(self, stream: np.random.Generator) -> None:
        super().__init__()
        self._stream = stream
        self._now_ns = -1
        self._lots: dict[int, dict[int, tuple[object, int]]] = {}
        """By time and owner; it keeps the owner, so that no other object gets its id."""

    def call_at(self, due_ns: int, callback: Callable[[Any], object], argument: Any = None) -> EventId:
        """As :meth:`EventHeap.call_at`; the id begins with the lot, by which the heap then sorts."""
        self._sequence += 1
        self.lasting += 1
        event = EventId(self._lot(due_ns, callback) << _SEQUENCE_BITS | self._sequence)
        heappush(self._heap, (due_ns, event, callback, argument))
        return event

    def pop_due(self, now_ns: int) -> tuple[Callable[[Any], object], Any] | None:
        """As :meth:`EventHeap.pop_due`."""
        self._reach(now_ns)
        return super().pop_due(now_ns)

    def pop_until(self, limit_ns: int) -> tuple[int, int, Callable[[Any], object], Any] | None:
        """As :meth:`EventHeap.pop_until`."""
        item = super().pop_until(limit_ns)
        if item is not None:
            self._reach(item[0])
        return item

    def _reach(self, now_ns: int) -> None:
        if now_ns > self._now_ns:
            self._lots.pop(self._now_ns, None)
            self._now_ns = now_ns
            if len(self._lots) > _PURGE_MIN + len(self._heap):  # times at which all was cancelled
                self._lots = {due_ns: lots for due_ns, lots in self._lots.items() if due_ns >= now_ns}

    def _lot(self, due_ns: int, callback: Callable[[Any], object]) -> int:
        if due_ns <= self._now_ns:
            return 1 << _LOT_BITS
        owner = getattr(callback, "__self__", None) or getattr(callback, "__code__", callback)
        lots = self._lots.setdefault(due_ns, {})
        if id(owner) not in lots:
            lots[id(owner)] = owner, int(self._stream.integers(1 << _LOT_BITS))
        return lots[id(owner)][1]


def draw_order(machine: Machine) -> None:
    """From now on, the order of what happens at one instant comes from the run's streams; call it before the boot."""
    queue = DrawnQueue(machine.streams.stream(STREAM))
    queue.extend(machine.runnable)
    machine.runnable = queue
    if len(machine.heap):
        raise UsageError("the order of events is drawn before any is scheduled")
    machine.heap = DrawnHeap(machine.streams.stream(EVENTS_STREAM))
    stream = machine.streams.stream(OUTPUT_STREAM)
    machine.order = lambda instances: [instances[n] for n in stream.permutation(len(instances))]
