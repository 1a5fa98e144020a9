"""Virtual time for one volume without a kernel; a kernel's machine serves as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from uxk.core.events import EventHeap
from uxk.limits import I64_MAX


class Timeline(Protocol):
    """What the timed engine needs of time; :class:`uxk.kernel.machine.Machine` has it."""

    @property
    def now_ns(self) -> int:
        """The present instant."""
        ...

    def call_later(self, delay_ns: int, callback: Callable[[Any], object], argument: Any = None) -> int:
        """Schedules ``callback(argument)``."""
        ...


class Clock:
    """A timeline of its own: :meth:`run` goes from event to event."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.heap = EventHeap()

    def call_later(self, delay_ns: int, callback: Callable[[Any], object], argument: Any = None) -> int:
        """Schedules ``callback(argument)``; after those already due at that instant."""
        return self.heap.call_at(self.now_ns + delay_ns, callback, argument)

    def run(self, until_ns: int = I64_MAX) -> None:
        """Runs what is due up to ``until_ns``, or until nothing is scheduled."""
        while (event := self.heap.pop_until(until_ns)) is not None:
            self.now_ns = max(self.now_ns, event[0])
            event[2](event[3])
