"""Waiters on news: what sysfs's poll and kmsg's followers share (Linux: wait_queue_head)."""

from __future__ import annotations

import errno
from collections.abc import Callable

from uxk import limits
from uxk.errors import TreeError


class WaitList:
    """Callbacks to be called on news, at most ``POLL_WAITERS_MAX``.

    A waiter that raises is dropped and reported.  News from inside a callback never recurse: they
    cause one more round for everybody; further ones only count, until the next news.
    """

    __slots__ = ("_again", "_busy", "_next", "_waiters", "generation")

    def __init__(self) -> None:
        self.generation = 0
        self._waiters: dict[int, Callable[[], None]] = {}
        self._next = 0
        self._busy = self._again = False

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Registers a waiter; returns what cancels it (any number of times).  ENOSPC if full."""
        if len(self._waiters) >= limits.POLL_WAITERS_MAX:
            expected = f"at most {limits.POLL_WAITERS_MAX} waiters"
            raise TreeError(f"poll: {expected}", errno=errno.ENOSPC)
        key = self._next
        self._next += 1
        self._waiters[key] = callback

        def cancel() -> None:
            self._waiters.pop(key, None)

        return cancel

    def wake(self, on_error: Callable[[Exception], None]) -> None:
        """Counts one more generation and calls every waiter once."""
        self.generation += 1
        if self._busy:
            self._again = True
            return
        self._busy = True
        try:
            for _ in range(2):
                self._again = False
                self._round(on_error)
                if not self._again:
                    break
        finally:
            self._busy = False

    def close(self, on_error: Callable[[Exception], None]) -> None:
        """Calls every waiter a last time and forgets it: what it waits on is gone."""
        waiters = tuple(self._waiters.values())
        self._waiters.clear()
        for callback in waiters:
            try:
                callback()
            except Exception as exc:
                on_error(exc)

    def _round(self, on_error: Callable[[Exception], None]) -> None:
        for key, callback in tuple(self._waiters.items()):
            if key not in self._waiters:
                continue
            try:
                callback()
            except Exception as exc:
                self._waiters.pop(key, None)
                on_error(exc)
