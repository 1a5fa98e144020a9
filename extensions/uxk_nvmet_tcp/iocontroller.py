"""Controllers of the subsystem: the device's, reset, shut down and asked for events on behalf of their hosts.

However often a host asks, at most one request of each kind is under way at the device for its controller.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Final

from uxk.uapi.blk import NvmeOp
from uxk.uapi.nvme import DNR, Admin, Feature, Status
from uxk_nvmet_tcp import identify, spec
from uxk_nvmet_tcp.command import Command
from uxk_nvmet_tcp.controller import Controller
from uxk_nvmet_tcp.fabrics import ConnectRequest
from uxk_nvmet_tcp.identify import DeviceFacts
from uxk_nvmet_tcp.memory import Slice
from uxk_nvmet_tcp.pdu import Buffer

if TYPE_CHECKING:
    from uxk_nvmet_tcp.session import Session
    from uxk_nvmet_tcp.target import Target

EVENT_WAIT_MS: Final = 10_000
"""Of one request for the next event; well below the deadline of requests."""

_NOT_HERE: Final = frozenset({
    Admin.CREATE_SQ, Admin.DELETE_SQ, Admin.CREATE_CQ, Admin.DELETE_CQ, Admin.VIRTUALIZATION, Admin.DOORBELL_BUFFER,
})  # fmt: skip
"""Commands of controllers with queues in memory."""
_NORMAL_SHUTDOWN: Final = 1


class IoController(Controller):
    """A controller of the subsystem: the device's, with its identity behind fabrics."""

    io = True
    features = frozenset({Feature.KEEP_ALIVE, Feature.QUEUES})

    def __init__(self, target: Target, cntlid: int, request: ConnectRequest, facts: DeviceFacts) -> None:
        super().__init__(target, cntlid, request)
        self.event_limit = facts.event_limit
        self.registers.vs = facts.version
        self._resetting = self._flushing = self._event_asked = False
        self._event: int | None = None
        """One that came when nobody waited."""

    def close(self, reason: str) -> None:
        """Tells the device, too, unless it has been told: by then, the number may be another host's."""
        if not self.closed and not self._resetting:
            self.target.detach(self.device_cntlid)
        super().close(reason)

    def enable(self) -> None:
        """A host that did not wait for the end of a reset waits now."""
        self.registers.csts = 0 if self._resetting else spec.CSTS_RDY

    def reset(self) -> None:
        """The device forgets the controller and gets it anew; ready is 0 when that is done."""
        self._end_queues()
        self._event = None
        self._event_asked = False
        if self._resetting:  # it is about to be new
            return
        self._resetting = True
        self.target.detach(self.device_cntlid)
        self.target.attach(self.host, self.host_id, partial(self._attached, self._held_place()))

    def _held_place(self) -> Slice:
        """The admin queue's place, which stays taken until the device has answered."""
        part = self.sessions[0].part
        part.hold()
        return part

    def _attached(self, part: Slice, error: int, cntlid: int, _: bytes) -> None:
        part.release()
        if self.closed:
            if not error:
                self.target.detach(cntlid)
            return
        if error:
            self.failed(error)
            return
        self.device_cntlid = cntlid
        self._resetting = False
        self.registers.csts = spec.CSTS_RDY if self.registers.cc & spec.CC_EN else 0

    def shutdown(self, kind: int) -> None:
        """A normal shutdown writes the device's cache back first."""
        if kind != _NORMAL_SHUTDOWN:
            super().shutdown(kind)
        elif not self._flushing:
            self._flushing = True
            then = partial(self._flushed, self._held_place(), self.life)
            self.target.backend.request(NvmeOp.IO, self.device_cntlid, 1, spec.SQE_FLUSH_ALL, then)

    def _flushed(self, part: Slice, life: int, *_: object) -> None:
        part.release()
        self._flushing = False
        if life == self.life:
            self.registers.csts |= spec.CSTS_SHUTDOWN_DONE
        elif not self.closed and self.registers.cc & spec.CC_SHN:  # asked for again, after a reset
            self.shutdown(self.registers.cc >> 14 & 3)

    def other_admin(self, session: Session, command: Command) -> None:
        """Everything that needs the device."""
        if command.opcode in _NOT_HERE:
            session.conn.complete(command, Status.INVALID_OPCODE | DNR)
        elif command.opcode == Admin.IDENTIFY and command.length != identify.BYTES:
            session.conn.complete(command, Status.SGL_LENGTH_INVALID | DNR)
        else:
            session.passthrough(command)

    def set_feature(self, feature: int, value: int) -> tuple[int, int]:
        """Number of Queues, Keep Alive Timer."""
        if feature != Feature.QUEUES:
            return super().set_feature(feature, value)
        submission, completion = value & 0xFFFF, value >> 16
        if 0xFFFF in (submission, completion):
            return Status.INVALID_FIELD | DNR, 0
        most = self.target.config.queues - 1
        return 0, min(submission, most) | min(completion, most) << 16

    def get_feature(self, feature: int, *, default: bool) -> tuple[int, int]:
        """Number of Queues, Keep Alive Timer."""
        if feature != Feature.QUEUES:
            return super().get_feature(feature, default=default)
        most = self.target.config.queues - 1
        return 0, most | most << 16

    def armed(self) -> None:
        """Asks the device for its next event, one at a time."""
        if self._event is not None:
            event, self._event = self._event, None
            self.post(event)
        if self.events and not self._event_asked:
            self._event_asked = True
            self.target.backend.request(
                NvmeOp.WAIT_EVENT, self.device_cntlid, 0, b"", partial(self._happened, self.life), length=EVENT_WAIT_MS
            )

    def _happened(self, life: int, error: int, result: int, _: bytes) -> None:
        if life != self.life:
            return
        self._event_asked = False
        if error and error != errno.ETIMEDOUT:
            self.failed(error)
            return
        if not error and not self.post(result & 0xFFFFFFFF):
            self._event = result & 0xFFFFFFFF
        self.armed()

    def patched(self, command: Command, data: Buffer) -> Buffer:
        """Identify Controller (CNS 01h) says other things here."""
        if command.sqe[40] != 1 or len(data) != identify.BYTES:
            return data
        view = memoryview(bytearray(data))
        identify.patch_controller(view, self.target.face(self.cntlid))
        return view
