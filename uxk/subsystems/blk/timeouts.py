"""Requests that take too long: taken back from the driver, tried once more, then given up (Linux: blk-timeout.c).

The kernel has a deadline of its own for every request (``watchdog.request_timeout_ns`` of the manifest), after which
it answers ETIMEDOUT; a queue whose ``io_timeout`` is not shorter leaves it to that.  One timer serves a disk.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from uxk.uapi.entries import Request

if TYPE_CHECKING:
    from uxk.subsystems.blk.disk import Disk


class Timeouts:
    """The deadlines of one disk."""

    __slots__ = ("_armed", "_disk", "aborted", "on")

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._armed = False
        self.aborted = 0
        """Requests taken back so far."""
        self.on = False
        """Whether this queue's deadline comes before the kernel's."""

    def set(self) -> None:
        """After a change of ``io_timeout``."""
        disk = self._disk
        self.on = disk.limits.io_timeout_ns < disk.device.agent.manifest.watchdog.request_timeout_ns
        if self.on and disk.issued:
            self.arm(disk.machine.now_ns)

    def arm(self, now_ns: int) -> None:
        """Something is under way; the timer is set unless it is already."""
        if not self._armed:
            self._armed = True
            self._disk.machine.heap.call_at_daemon(now_ns + self._disk.limits.io_timeout_ns, self._sweep)

    def _sweep(self, _: object) -> None:
        """Takes back what is late.  The oldest come first, so one that is in time ends the search."""
        self._armed = False
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
        oldest = [rq.issued_ns for rq in disk.hardware.under_way.values()][:1]
        oldest += [flight.started_ns for flight in disk.flights.values()][:1]
        if oldest and not self._armed:
            # What the driver has not been given cannot be taken back from it: asked again a whole time later.
            due_ns = now_ns + timeout_ns if refused else min(oldest) + timeout_ns
            self._armed = True
            disk.machine.heap.call_at_daemon(max(due_ns, now_ns + 1), self._sweep)

    def _abort(self, cids: list[int]) -> int:
        """Answers these on the driver's behalf, and tells it so; returns how many it does not have."""
        disk = self._disk
        agent, gone = disk.device.agent, frozenset(cids)
        table, staged = agent.requests, agent.queues.staged
        here = [cid for cid in cids if cid in table.inflight]
        staged[:] = [entry for entry in staged if not (isinstance(entry, Request) and entry.cid in gone)]
        if here:
            self.aborted += len(here)
            agent.account.timeouts += len(here)
            table.timeouts_in_a_row += len(here)
            agent.complain(f"{disk.name}: {len(here)} requests timed out, taken back", errno.ETIMEDOUT)
            agent.event("abort", disk.device.name, struct.pack(f"<{len(here)}Q", *here))
            for cid in here:
                table.fail_one(cid, errno.ETIMEDOUT)
            if table.timeouts_in_a_row >= table.timeouts_max:
                table.timeouts_in_a_row = 0
                table.on_hung(len(here))
        return len(cids) - len(here)
