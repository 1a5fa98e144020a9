"""The driver's end of a queue: what it has, what it gets next, what it answers (Linux: blk_mq_dispatch_rq_list)."""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, Final

from uxk.errors import RequestError, RingFull
from uxk.subsystems.blk import trace as t
from uxk.subsystems.blk.request import Rq
from uxk.uapi.entries import Completion

if TYPE_CHECKING:
    from uxk.subsystems.blk.disk import Disk

RETRY_NS: Final = 1_000_000
"""A driver that others have filled is asked again after this time (Linux: BLK_MQ_RESOURCE_DELAY is 3 ms)."""


class Hardware:
    """The hardware queues of one disk: all use the same tags, as many as the driver's queue is deep.

    That is blk-mq with BLK_MQ_F_TAG_HCTX_SHARED: the instance has one queue pair, however many the device has.
    """

    __slots__ = ("_disk", "_lower", "_retry_armed", "dispatched", "held", "under_way")

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lower = disk.below.open_port("", self._on_lower)
        self._retry_armed = False
        self.dispatched = [0] * disk.shape.hctxs
        """Requests that the scheduler has given to each."""
        self.held: deque[Rq] = deque()
        """Goes to the driver before anything of the scheduler's (Linux: hctx->dispatch and the requeue list)."""
        self.under_way: dict[int, Rq] = {}
        """What the driver has of the queue's, by its command id; the oldest first."""

    def run(self) -> bool:
        """Gives the driver as much as it has room for.

        True if the driver is gone, so that what it would have got was answered instead: so must be the rest.
        """
        disk, held = self._disk, self.held
        room, scheduler = disk.depth - disk.issued, disk.scheduler
        if room <= 0 or not (held or len(scheduler)):
            return False
        batch: list[Rq] = []
        now_ns = disk.machine.now_ns
        while len(batch) < room:
            if held:
                batch.append(held.popleft())
                continue
            rq = scheduler.dispatch(now_ns)
            if rq is None:
                break
            self.dispatched[rq.hctx] += 1
            batch.append(rq)
        if not batch:
            return False
        try:
            self._issue(batch)
        except RequestError as exc:
            for rq in batch:
                disk.served(rq, Completion(0, exc.errno))
            return True
        except RingFull:
            self._issue_first(batch)
        return False

    def _issue_first(self, batch: list[Rq]) -> None:
        """Others have filled the driver: one may still fit, the rest is kept and offered again soon."""
        disk = self._disk
        try:
            self._issue(batch[:1])
        except RingFull:
            pass
        else:
            del batch[:1]
        self.held.extendleft(reversed(batch))
        if not self._retry_armed:
            self._retry_armed = True
            disk.machine.call_later(RETRY_NS, self._retry)

    def _retry(self, _: object) -> None:
        self._retry_armed = False
        self._disk.advance()

    def _issue(self, batch: list[Rq]) -> None:
        """Gives requests to the driver, all or none: RingFull (EAGAIN), RequestError (ENODEV)."""
        disk = self._disk
        if disk.gone:  # its number may be another device's by now
            raise RequestError(f"{disk.name}: the disk is gone", errno=errno.ENODEV)
        number, now_ns = disk.device.number, disk.machine.now_ns
        entries = [rq.entry(number) for rq in batch]
        self._lower.submit_batch(entries)
        for rq, entry in zip(batch, entries, strict=True):
            rq.issued_ns = now_ns
            self.under_way[entry.cid] = rq
            if disk.trace.on:
                disk.trace.of_rq(now_ns, t.ISSUE, rq)
        disk.issued += len(batch)
        if disk.timeouts.on:
            disk.timeouts.arm(now_ns)

    def close(self) -> None:
        """The disk is gone: the driver's answers to what it still has are waited for, then it is left alone."""
        if not self.under_way:
            self._lower.close()
            self._disk.timeouts.set()

    def _on_lower(self, completions: list[Completion]) -> None:
        """The driver's answers; what ran into a deadline goes back to the driver once."""
        disk = self._disk
        if disk.real:
            disk.machine.refresh()
        for completion in completions:
            rq = self.under_way.pop(completion.cid, None)
            if rq is None:
                continue
            disk.issued -= 1
            if completion.status == errno.ETIMEDOUT and not (rq.retries or rq.opaque or disk.gone):
                rq.retries = 1
                if disk.trace.on:
                    disk.trace.of_rq(disk.machine.now_ns, t.REQUEUE, rq)
                self.held.append(rq)
            else:
                disk.served(rq, completion)
        disk.advance()
        disk.answers.deliver()
        if disk.gone:
            self.close()
