"""Completions that are due at a later time of the kernel's, in order, with one timer for all of them."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Protocol

from uxk_nvme.queues import Done, Item, ReplyQueue
from uxk_nvme.spec import Status


class Clock(Protocol):
    """The time that the controller lives in: a context's."""

    @property
    def now_ns(self) -> int:
        """Present time."""
        ...

    def call_at_ns(
        self, due_ns: int, callback: Callable[[Any], object], argument: Any = None, *, daemon: bool = False
    ) -> object:
        """Calls ``callback(argument)`` at that time; a daemon keeps no run alive."""


class Later:
    """What will be posted when.  ``after`` is called once after every batch of posts."""

    __slots__ = ("_armed", "_buckets", "_clock", "_dues", "after", "grain_ns")

    def __init__(self, clock: Clock, after: Callable[[], object]) -> None:
        self._clock = clock
        self._buckets: dict[int, dict[ReplyQueue, list[Item]]] = {}
        self._dues: list[int] = []
        self._armed: list[int] = []
        """Times of timers that have not fired yet; the earliest is never later than the first completion."""
        self.after = after
        self.grain_ns = 1
        """Completions wait for the next multiple of it, so that one interrupt serves several."""

    def bucket(self, due_ns: int, queue: ReplyQueue) -> list[Item]:
        """The list of what is to be posted to ``queue`` at that time: append to it at once."""
        if self.grain_ns > 1:
            due_ns = -(-due_ns // self.grain_ns) * self.grain_ns
        by_queue = self._buckets.get(due_ns)
        if by_queue is None:
            by_queue = self._buckets[due_ns] = {}
            heappush(self._dues, due_ns)
            self._arm(due_ns)
        items = by_queue.get(queue)
        if items is None:
            items = by_queue[queue] = []
        return items

    def run(self, now_ns: int) -> None:
        """Posts what is due."""
        while self._dues and self._dues[0] <= now_ns:
            for queue, items in self._buckets.pop(heappop(self._dues)).items():
                queue.post(items)
        if self._dues:
            self._arm(self._dues[0])

    def take(self, queue: ReplyQueue, tag: int) -> bool:
        """Takes one completion back; False if none is on its way."""
        for by_queue in self._buckets.values():
            items = by_queue.get(queue, [])
            for index, item in enumerate(items):
                if (item if isinstance(item, int) else item.tag) == tag:
                    del items[index]
                    return True
        return False

    def drop(self, queue: ReplyQueue) -> list[Item]:
        """Takes back all completions of a queue that goes."""
        return [item for by_queue in self._buckets.values() for item in by_queue.pop(queue, [])]

    def fail_all(self, status: Status) -> None:
        """Everything under way ends now, with ``status``."""
        buckets, self._buckets, self._dues = self._buckets, {}, []
        for by_queue in buckets.values():
            for queue, items in by_queue.items():
                queue.post([Done(item if isinstance(item, int) else item.tag, status) for item in items])

    def _arm(self, due_ns: int) -> None:
        if not self._armed or due_ns < self._armed[0]:
            heappush(self._armed, due_ns)
            self._clock.call_at_ns(due_ns, self._fire, due_ns)

    def _fire(self, due_ns: int) -> None:
        heappop(self._armed)  # timers fire in the order of time: it is the first
        self.run(self._clock.now_ns)
        self.after()
