"""A short look for the next request before sleeping, as long as it pays.

A client that works at depth one answers a reply with the next request within microseconds; going through the event
loop in between costs more than that.  So whoever has nothing to do looks at all clients' sockets for a moment.
"""

from __future__ import annotations

import select
from time import perf_counter_ns
from typing import Final

_CLIENTS_MAX: Final = 8
"""With more of them somebody always has something to do."""
_CREDIT_MAX: Final = 8
_PAUSE_MAX: Final = 1024
_STOLEN_NS: Final = 200_000
"""A look that takes so long was interrupted by others who want the processor."""


class Spinner:
    """For all connections of a server."""

    def __init__(self, limit_ns: int) -> None:
        self._limit_ns = limit_ns
        self._poll = select.poll()
        self._clients = 0
        self._credit = _CREDIT_MAX
        self._pause = 1
        self._skip = 0
        self.looks = self.hits = 0

    def add(self, fd: int) -> None:
        """A connection to look at."""
        if self._limit_ns:
            self._poll.register(fd, select.POLLIN)
            self._clients += 1

    def remove(self, fd: int) -> None:
        """It is gone."""
        if self._limit_ns:
            self._poll.unregister(fd)
            self._clients -= 1

    def look(self, fd: int) -> bool:
        """Whether there is something to read from ``fd`` before long."""
        if not self._limit_ns or self._clients > _CLIENTS_MAX:
            return False
        if self._skip:
            self._skip -= 1
            return False
        self.looks += 1
        poll = self._poll.poll
        began_ns = before_ns = perf_counter_ns()
        while True:
            ready = poll(0)
            now_ns = perf_counter_ns()
            if ready:
                self.hits += 1
                self._credit, self._pause = min(_CREDIT_MAX, self._credit + 1), 1
                return any(each == fd for each, _ in ready)
            if now_ns - before_ns > _STOLEN_NS:
                self._credit = 0
            if now_ns - began_ns > self._limit_ns:
                break
            before_ns = now_ns
        self._credit -= 1
        if self._credit <= 0:
            self._credit, self._skip = 1, self._pause
            self._pause = min(_PAUSE_MAX, 2 * self._pause)
        return False
