"""Requests that take too long: taken back from the driver, tried once more, then given up (Linux: blk-timeout.c).

The kernel has a deadline of its own for every request (``watchdog.request_timeout_ns`` of the manifest), after which
it answers ETIMEDOUT; a queue whose ``io_timeout`` is not shorter leaves it to that.  One timer serves a disk.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from uxk.core.events import EventId

if TYPE_CHECKING:
    from uxk.subsystems.blk.disk import Disk


class Timeouts:
    """The deadlines of one disk."""

    __slots__ = ("_disk", "_timer", "aborted", "on")

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._timer: EventId | None = None
        self.aborted = 0
        """Requests taken back so far."""
        self.on = False
        """Whether this queue's deadline comes before the kernel's."""

    def set(self) -> None:
        """After a change of ``io_timeout``, which counts for what is under way, too; and when the disk is gone."""
        disk = self._disk
        timeout_ns = disk.limits.io_timeout_ns
        self.on = timeout_ns < disk.device.agent.manifest.watchdog.request_timeout_ns
        if self._timer is not None:
            disk.machine.heap.cancel(self._timer)
            self._timer = None
        oldest_ns = self._oldest_ns()
        if self.on and oldest_ns is not None:
            self._set_timer(max(oldest_ns + timeout_ns, disk.machine.now_ns))

    def arm(self, now_ns: int) -> None:
        """Something is under way; the timer is set unless it is already."""
        if self._timer is None:
            self._set_timer(now_ns + self._disk.limits.io_timeout_ns)

    def _set_timer(self, due_ns: int) -> None:
        self._timer = self._disk.machine.heap.call_at_daemon(due_ns, self._sweep)

    def _oldest_ns(self) -> int | None:
        """Since when the driver has had the request that it has had for longest; None if it has none."""
        disk = self._disk
        oldest = [rq.issued_ns for rq in disk.hardware.under_way.values()][:1]
        oldest += [flight.started_ns for flight in disk.flights.values()][:1]
        return min(oldest, default=None)

    def _sweep(self, _: object) -> None:
        """Takes back what is late.  The oldest come first, so one that is in time ends the search."""
        self._timer = None
        disk = self._disk
        now_ns, timeout_ns = disk.machine.now_ns, disk.limits.io_timeout_ns
        if not self.on:
            return
        late = []
        for cid, rq in disk.hardware.under_way.items():
            if rq.issued_ns + timeout_ns > now_ns:
                break
            late.append(cid)
        for cid, flight in disk.flights.items():
            if flight.started_ns + timeout_ns > now_ns:
                break
            late.append(cid)
        refused = self._abort(late) if late else 0
        oldest_ns = self._oldest_ns()
        if oldest_ns is not None and self._timer is None and self.on:
            # What the driver has not been given cannot be taken back from it: asked again a whole time later.
            due_ns = now_ns + timeout_ns if refused else oldest_ns + timeout_ns
            self._set_timer(max(due_ns, now_ns + 1))

    def _abort(self, cids: list[int]) -> int:
        """Answers these on the driver's behalf, and tells it so; returns how many it does not have."""
        disk = self._disk
        agent = disk.device.agent
        table = agent.requests
        here = [cid for cid in cids if cid in table.inflight]
        if here:
            self.aborted += len(here)
            agent.account.timeouts += len(here)
            table.timeouts_in_a_row += len(here)
            agent.complain(f"{disk.name}: {len(here)} requests timed out, taken back", errno.ETIMEDOUT)
            agent.event("abort", disk.device.name, struct.pack(f"<{len(here)}Q", *here))
            table.abort(here)
            if table.timeouts_in_a_row >= table.timeouts_max:
                table.timeouts_in_a_row = 0
                table.on_hung(len(here))
        return len(cids) - len(here)
