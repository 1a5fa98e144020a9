"""Flushes and forced unit access (Linux: block/blk-flush.c).

A request that wants either is taken through up to three steps: flush before, its data, flush after (where the device
has no FUA of its own).  Requests that wait for a flush share it: there are two lists, one for the flush under way and
one for the next, and one flush at a time.  The next one is held back while the data of any such request are under way,
so that their flushes can be one; but not for longer than 5 s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from uxk.limits import NS_PER_S
from uxk.subsystems.blk.limits import QueueLimits
from uxk.subsystems.blk.request import DISCARD, FLUSH, FUA, PREFLUSH, Rq

PENDING_NS_MAX: Final = 5 * NS_PER_S
"""Linux: FLUSH_PENDING_TIMEOUT."""
PRE, DATA, POST = "preflush", "data", "postflush"
_DATA_ONLY: Final = (DATA,)


class FlushMachine:
    """The flush sequences of one disk.

    ``start_flush()`` sends one flush to the device and must lead to :meth:`flushed`; ``start_data(rq)`` queues the
    data, and must lead to :meth:`data_done`; ``finish(rq, status)`` ends a request.
    """

    __slots__ = (
        "_data_under_way", "_finish", "_next", "_pending_since_ns", "_running", "_start_data", "_start_flush",
        "flushes", "under_way",
    )  # fmt: skip

    def __init__(
        self, start_flush: Callable[[], None], start_data: Callable[[Rq], None], finish: Callable[[Rq, int], None]
    ) -> None:
        self._start_flush = start_flush
        self._start_data = start_data
        self._finish = finish
        self._running: list[Rq] = []
        """Served by the flush under way."""
        self._next: list[Rq] = []
        self._pending_since_ns = 0
        self._data_under_way = 0
        self.under_way = False
        """Whether the device is being flushed."""
        self.flushes = 0

    @property
    def waiting(self) -> int:
        """Requests that wait for a flush."""
        return len(self._running) + len(self._next)

    def insert(self, rq: Rq, limits: QueueLimits, now_ns: int) -> bool:
        """Begins a request's sequence; False if its data are all there is to it, and it goes the usual way."""
        steps = steps_of(rq, limits)
        rq.flags &= ~PREFLUSH if limits.fua else ~(PREFLUSH | FUA)
        if steps == _DATA_ONLY:
            return False
        rq.steps = steps
        self._advance(rq, 0, now_ns)
        self._kick(now_ns)
        return True

    def data_done(self, rq: Rq, status: int, now_ns: int) -> None:
        """The data of a request are written, or have failed."""
        self._data_under_way -= 1
        self._advance(rq, status, now_ns)
        self._kick(now_ns)

    def withdraw(self, now_ns: int) -> None:
        """Data of a request are not written after all, and it is none of this machine's any more."""
        self._data_under_way -= 1
        self._kick(now_ns)

    def flushed(self, status: int, now_ns: int) -> None:
        """The device has answered the flush: so all who waited for it go on."""
        self.under_way = False
        self.flushes += 1
        served, self._running = self._running, []
        for rq in served:
            self._advance(rq, status, now_ns)
        self._kick(now_ns)

    def drop(self) -> list[Rq]:
        """The disk is gone: takes out everything that waits for a flush."""
        dropped, self._running, self._next = [*self._running, *self._next], [], []
        return dropped

    def _advance(self, rq: Rq, status: int, now_ns: int) -> None:
        """The next step of a sequence; after a failure there is none."""
        if status or not rq.steps:
            rq.step, rq.steps = "", ()
            self._finish(rq, status)
            return
        rq.step, rq.steps = rq.steps[0], rq.steps[1:]
        if rq.step == DATA:
            self._data_under_way += 1
            self._start_data(rq)
        else:
            if not self._next:
                self._pending_since_ns = now_ns
            self._next.append(rq)

    def _kick(self, now_ns: int) -> None:
        if self.under_way or not self._next:
            return
        if self._data_under_way and now_ns < self._pending_since_ns + PENDING_NS_MAX:
            return
        self._running, self._next = self._next, []
        self.under_way = True
        self._start_flush()


def steps_of(rq: Rq, limits: QueueLimits) -> tuple[str, ...]:
    """What a request on a device with a volatile cache needs (Linux: blk_flush_policy)."""
    before = (PRE,) if rq.op == FLUSH or rq.flags & PREFLUSH else ()
    data = (DATA,) if rq.length else ()
    after = (POST,) if rq.flags & FUA and (rq.op == DISCARD or not limits.fua) else ()
    return before + data + after
