"""Completions that are due at a later time of the kernel's, in order, with one timer for all of them."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final, Protocol

from uxk_nvme.queues import Done, Item, ReplyQueue
from uxk_nvme.spec import Status

ENDLESS: Final = 1 << 30
"""As many completions as may come."""


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

    __slots__ = ("_armed", "_buckets", "_busy_ns", "_clock", "_dues", "_last", "_since_ns", "after")

    def __init__(self, clock: Clock, after: Callable[[], object]) -> None:
        self._clock = clock
        self._buckets: dict[int, dict[ReplyQueue, list[Item]]] = {}
        self._dues: list[int] = []
        self._armed: list[int] = []
        """Times of timers that have not fired yet; the earliest is never later than the first completion."""
        self._busy_ns = self._since_ns = 0
        self.after = after
        self._last: dict[tuple[int, ReplyQueue], int] = {}
        """When the last completion of a queue's that waits for others is due itself, by the time it waits for."""

    def together(self, due_ns: int, queue: ReplyQueue, window_ns: int, most: int) -> list[Item]:
        """As :meth:`bucket`, but completions wait for others, so that one interrupt serves several.

        They wait for the next multiple of ``window_ns``, or until there are ``most``.
        """
        end_ns = -(-due_ns // window_ns) * window_ns
        if most >= ENDLESS:
            return self.bucket(end_ns, queue)
        if most <= 1:
            return self.bucket(due_ns, queue)
        known_ns = self._last.get((end_ns, queue))
        items = self.bucket(end_ns, queue)
        # What is in the list already without having come by here is due at its end.
        last_ns = max(due_ns, known_ns if known_ns is not None else end_ns if items else 0)
        if len(items) + 1 < most:
            self._last[end_ns, queue] = last_ns
            return items
        self._last.pop((end_ns, queue), None)
        if last_ns == end_ns:
            return items
        del self._buckets[end_ns][queue]
        full = self.bucket(last_ns, queue)
        full += items
        return full

    def bucket(self, due_ns: int, queue: ReplyQueue) -> list[Item]:
        """The list of what is to be posted to ``queue`` at that time: append to it at once."""
        by_queue = self._buckets.get(due_ns)
        if by_queue is None:
            fresh: list[Item] = []
            self._buckets[due_ns] = {queue: fresh}
            if not self._dues:
                self._since_ns = self._clock.now_ns
            heappush(self._dues, due_ns)
            if not self._armed or due_ns < self._armed[0]:
                self._arm(due_ns)
            return fresh
        items = by_queue.get(queue)
        if items is None:
            items = by_queue[queue] = []
        elif self._last and (due_ns, queue) in self._last:
            self._last[due_ns, queue] = due_ns
        return items

    def run(self, now_ns: int) -> None:
        """Posts what is due."""
        while self._dues and self._dues[0] <= now_ns:
            due_ns = heappop(self._dues)
            by_queue = self._buckets.pop(due_ns)
            if not self._dues:
                self._busy_ns += now_ns - self._since_ns
            for queue, items in by_queue.items():
                if self._last:
                    self._last.pop((due_ns, queue), None)
                queue.post(items)
        if self._dues and (not self._armed or self._dues[0] < self._armed[0]):
            self._arm(self._dues[0])

    def busy_ns(self, now_ns: int) -> int:
        """How long something was under way, until now: what SMART calls Controller Busy Time."""
        return self._busy_ns + (now_ns - self._since_ns if self._dues else 0)

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
        self._last = {key: last_ns for key, last_ns in self._last.items() if key[1] is not queue}
        return [item for by_queue in self._buckets.values() for item in by_queue.pop(queue, [])]

    def fail_all(self, status: Status) -> None:
        """Everything under way ends now, with ``status``."""
        self._busy_ns = self.busy_ns(self._clock.now_ns)
        buckets, self._buckets, self._dues = self._buckets, {}, []
        self._last.clear()
        for by_queue in buckets.values():
            for queue, items in by_queue.items():
                queue.post([Done(item if isinstance(item, int) else item.tag, status) for item in items])

    def _arm(self, due_ns: int) -> None:
        heappush(self._armed, due_ns)
        self._clock.call_at_ns(due_ns, self._fire, due_ns)

    def _fire(self, due_ns: int) -> None:
        heappop(self._armed)  # timers fire in the order of time: it is the first
        self.run(self._clock.now_ns)
        self.after()
