"""The register-level way into a controller: doorbells, and queues that are created and deleted (base, section 5.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from uxk_nvme.admin import ADMIN_TABLE
from uxk_nvme.command import Command
from uxk_nvme.controller import Controller
from uxk_nvme.io import IO_TABLE
from uxk_nvme.queues import DeviceQueue, Done, Rings
from uxk_nvme.spec import CQE_BYTES, SQE_BYTES, Admin, Refused, Status, invalid_field
from uxk_nvme.subsystem import PRIMARY, Subsystem

QUEUE_ENTRIES_MAX: Final = 4096
"""CAP.MQES + 1."""


class Registers:
    """The primary controller with its doorbells.  ``interrupt(qid)`` is called once for each batch of completions."""

    def __init__(self, subsystem: Subsystem, doorbells: memoryview, interrupt: Callable[[int], object]) -> None:
        self._doorbells = doorbells
        self._interrupt = interrupt
        self._completion_queues: dict[int, tuple[memoryview, int]] = {}
        self._queues: dict[int, DeviceQueue] = {}
        self._subsystem = subsystem
        table = {
            **ADMIN_TABLE, Admin.CREATE_CQ: self._create_cq, Admin.CREATE_SQ: self._create_sq,
            Admin.DELETE_CQ: self._delete_cq, Admin.DELETE_SQ: self._delete_sq,
        }  # fmt: skip
        self.controller: Controller = subsystem.add_controller("", bytes(16), 0, (table, IO_TABLE), cntlid=PRIMARY)

    def enable(self, admin: Rings) -> None:
        """CC.EN: the admin queue is where AQA, ASQ and ACQ say."""
        self._add(admin)

    def doorbell(self, qid: int, now_ns: int) -> None:
        """The host has written a submission doorbell."""
        queue = self._queues[qid]
        try:
            entries = queue.fetch()
        except Refused:
            self.controller.bad_doorbell()
            return
        if qid:
            self.controller.run_io(queue, entries, now_ns)
        else:
            self.controller.run_admin(queue, entries, now_ns)

    def head_doorbell(self, qid: int) -> None:
        """The host has written a completion doorbell."""
        queue = self._queues.get(qid)
        if queue is not None and queue.overflow:
            queue.head_moved()

    def _add(self, rings: Rings) -> None:
        queue = DeviceQueue(rings, self._interrupt)
        self._queues[rings.qid] = self.controller.queues[rings.qid] = queue

    # --- creating and deleting ---

    def _by_ring(self, cmd: Command) -> int:
        """The queue identifier; these commands come through the admin ring, not from those who hand over capsules."""
        if cmd.queue is not self._queues.get(0):
            raise Refused(Status.INVALID_OPCODE, byte=0)
        return cmd.dw[10] & 0xFFFF

    def _memory(self, cmd: Command, entry_bytes: int) -> tuple[int, int, memoryview]:
        """Queue identifier, entries and ring of a Create command."""
        qid, entries = self._by_ring(cmd), (cmd.dw[10] >> 16) + 1
        if not 0 < qid <= self.controller.queue_limit:
            raise Refused(Status.INVALID_QID, byte=40)
        if not 2 <= entries <= QUEUE_ENTRIES_MAX:
            raise Refused(Status.INVALID_QUEUE_SIZE, byte=42)
        if not cmd.dw[11] & 1:  # PC: physically contiguous, as CAP.CQR wants it
            raise invalid_field(11)
        ring = self._subsystem.iommu.resolve(cmd.address, entries * entry_bytes, writable=True)
        return qid, entries, ring

    def _create_cq(self, cmd: Command) -> int:
        qid, entries, ring = self._memory(cmd, CQE_BYTES)
        if qid in self._completion_queues:
            raise Refused(Status.INVALID_QID, byte=40)
        if cmd.dw[11] >> 16 > self.controller.queue_limit:
            raise Refused(Status.INVALID_VECTOR, byte=46)
        self._completion_queues[qid] = ring, entries
        return cmd.now_ns

    def _create_sq(self, cmd: Command) -> int:
        qid, entries, ring = self._memory(cmd, SQE_BYTES)
        if qid in self._queues:
            raise Refused(Status.INVALID_QID, byte=40)
        found = self._completion_queues.get(cmd.dw[11] >> 16)
        if found is None or cmd.dw[11] >> 16 != qid:  # a completion queue serves the submission queue of its number
            raise Refused(Status.INVALID_CQ, byte=46)
        if found[1] != entries:
            raise Refused(Status.INVALID_QUEUE_SIZE, byte=42)
        self._add(Rings(qid, entries, ring, found[0], self._doorbells))
        return cmd.now_ns

    def _delete_sq(self, cmd: Command) -> int:
        qid = self._by_ring(cmd)
        queue = self._queues.get(qid) if qid else None
        if queue is None:
            raise Refused(Status.INVALID_QID, byte=40)
        ended = self._subsystem.later.drop(queue)
        ended += [tag for where, tag in self.controller.lost if where is queue]
        self.controller.lost = {key: None for key in self.controller.lost if key[0] is not queue}
        if ended:
            queue.post([Done(tag if isinstance(tag, int) else tag.tag, Status.ABORTED_SQ_DELETED) for tag in ended])
        del self._queues[qid], self.controller.queues[qid]
        return cmd.now_ns

    def _delete_cq(self, cmd: Command) -> int:
        qid = self._by_ring(cmd)
        if qid not in self._completion_queues:
            raise Refused(Status.INVALID_QID, byte=40)
        if qid in self._queues:
            raise Refused(Status.INVALID_QUEUE_DELETION)
        del self._completion_queues[qid]
        return cmd.now_ns
