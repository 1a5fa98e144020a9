"""Controllers as hosts see them: enabling, reset and shutdown, keep-alive, asynchronous events, admin commands.

Source: NVM Express Base Specification 2.0, sections 3.5, 3.6, 5.2 (asynchronous events) and 3.9 (keep-alive).
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Final

from uxk.uapi.blk import NvmeOp
from uxk_nvmet_tcp import identify, spec
from uxk_nvmet_tcp.connection import Command
from uxk_nvmet_tcp.fabrics import ConnectRequest, Refusal, Registers
from uxk_nvmet_tcp.identify import DeviceFacts
from uxk_nvmet_tcp.pdu import Buffer
from uxk_nvmet_tcp.spec import DNR, Admin, FcType, Feature, Status

if TYPE_CHECKING:
    from uxk_nvmet_tcp.session import Session
    from uxk_nvmet_tcp.target import Target

NS_PER_MS: Final = 1_000_000
TIMEOUT_MS: Final = 15_000
"""CAP.TO: the longest that enabling and reset may take."""
EVENT_WAIT_MS: Final = 10_000
"""Of one request for the next event; well below the deadline of requests."""
SLACK_MIN_MS: Final = 500
"""Beyond KATO: keep-alive commands are late on a busy host."""
INVALID_QUEUE_TYPE: Final = 0x185
NOT_SAVEABLE: Final = 0x10D

_NOT_HERE: Final = frozenset({
    Admin.CREATE_SQ, Admin.DELETE_SQ, Admin.CREATE_CQ, Admin.DELETE_CQ, Admin.VIRTUALIZATION, Admin.DOORBELL_BUFFER,
})  # fmt: skip
"""Commands of controllers with queues in memory."""
_NORMAL_SHUTDOWN: Final = 1


class Controller:
    """What the controllers of a subsystem and of discovery have in common."""

    event_limit = 4
    """Asynchronous Event Requests that may wait."""
    io = False
    """Whether it has I/O queues."""

    def __init__(self, target: Target, cntlid: int, request: ConnectRequest) -> None:
        self.target = target
        self.cntlid = self.device_cntlid = cntlid
        """The number that the host knows, and the device's: another after a reset."""
        self.host = request.host
        self.host_id = request.host_id
        self.kato_ms = request.kato_ms
        self.heard_ns = target.now_ns()
        """When any of its connections has last brought something."""
        self.registers = Registers(target.config.depth, TIMEOUT_MS)
        self.sessions: dict[int, Session] = {}
        """Its connections, by queue id."""
        self.events: list[Command] = []
        """Asynchronous Event Requests that wait."""
        self.life = 0
        """Counts its resets: what belongs to an earlier life does not concern it any more."""
        self.closed = False

    @property
    def expires_ns(self) -> int | None:
        """When it is given up unless its host is heard from; None if it has no keep-alive."""
        if not self.kato_ms:
            return None
        return self.heard_ns + (self.kato_ms + max(SLACK_MIN_MS, self.kato_ms >> 1)) * NS_PER_MS

    def add(self, session: Session, request: ConnectRequest) -> None:
        """Makes a connection one of its queues."""
        conn = session.conn
        session.controller, session.qid = self, request.qid
        conn.qid, conn.depth, conn.flow_control = request.qid, request.sqsize + 1, request.flow_control
        if request.qid:
            conn.capsule_bytes = self.target.config.in_capsule_bytes
        self.sessions[request.qid] = session
        self.heard_ns = self.target.now_ns()

    def lost(self, session: Session, reason: str) -> None:
        """A connection has ended: the one of the admin queue takes the controller with it."""
        if self.sessions.get(session.qid) is session:
            del self.sessions[session.qid]
            if session.qid == 0:
                self.close(reason)

    def close(self, reason: str) -> None:
        """Ends all of its connections and frees its CNTLID."""
        if self.closed:
            return
        self.closed = True
        self.life += 1
        self.events.clear()
        for session in list(self.sessions.values()):
            session.close(reason)
        self.target.gone(self, reason)

    def failed(self, error: int) -> None:
        """The device is gone, or another than it was: the host has to come again."""
        self.close(f"device: {errno.errorcode.get(error, error)}")

    # --- fabrics commands ---

    def on_fabrics(self, session: Session, command: Command) -> None:
        """Property Get and Set, Disconnect."""
        conn, kind = session.conn, command.sqe[4]
        if kind == FcType.PROPERTY_GET and not session.qid:
            value = self.registers.get(command.sqe)
            if isinstance(value, Refusal):
                conn.complete(command, value.status)
            else:
                conn.complete(command, 0, value)
        elif kind == FcType.PROPERTY_SET and not session.qid:
            changed = self.registers.set(command.sqe, io=self.io)
            if isinstance(changed, Refusal):
                conn.complete(command, changed.status)
            else:
                conn.complete(command)
                self._configured(changed)
        elif kind == FcType.DISCONNECT and session.qid:
            conn.complete(command)
            session.close("Disconnect")
        elif kind == FcType.CONNECT:
            conn.complete(command, Status.SEQUENCE | DNR)
        elif kind == FcType.DISCONNECT or (session.qid and kind in (FcType.PROPERTY_GET, FcType.PROPERTY_SET)):
            conn.complete(command, INVALID_QUEUE_TYPE | DNR)
        else:
            conn.complete(command, Status.INVALID_OPCODE | DNR)

    def _configured(self, changed: int) -> None:
        cc = self.registers.cc
        if changed & spec.CC_EN:
            if cc & spec.CC_EN:
                self.enable()
            else:
                self.reset()
        elif changed & cc & spec.CC_SHN:
            self.shutdown(cc >> 14 & 3)

    def enable(self) -> None:
        """Commands are served from now on."""
        self.registers.csts = spec.CSTS_RDY

    def reset(self) -> None:
        """Controller reset: I/O queues and waiting events go, the admin queue stays."""
        self._end_queues()
        self.registers.csts = 0

    def shutdown(self, kind: int) -> None:
        """Shutdown notification."""
        self.registers.csts |= spec.CSTS_SHUTDOWN_DONE

    def _end_queues(self) -> None:
        self.life += 1
        for qid in [qid for qid in self.sessions if qid]:
            self.sessions[qid].close("controller reset")
        for command in self.events:
            self.sessions[0].conn.open.pop(command.cid, None)
        self.events.clear()

    # --- commands ---

    def on_io(self, session: Session, command: Command) -> None:
        """A command of an I/O queue."""
        session.passthrough(command)

    def on_admin(self, session: Session, command: Command) -> None:
        """A command of the admin queue."""
        conn, opcode = session.conn, command.opcode
        if opcode == Admin.KEEP_ALIVE:
            conn.complete(command)
        elif opcode == Admin.ASYNC_EVENT:
            if len(self.events) >= self.event_limit:
                conn.complete(command, Status.AER_LIMIT | DNR)
            else:
                self.events.append(command)
                self.armed()
        elif opcode in (Admin.SET_FEATURES, Admin.GET_FEATURES) and command.sqe[40] in self.features:
            status, result = self._feature(command, command.sqe[40], setting=opcode == Admin.SET_FEATURES)
            conn.complete(command, status, result)
        elif opcode == Admin.ABORT and self._abort_event(session, command):
            conn.complete(command)
        else:
            self.other_admin(session, command)

    def other_admin(self, session: Session, command: Command) -> None:
        """An admin command that is nothing to all controllers."""
        session.conn.complete(command, Status.INVALID_OPCODE | DNR)

    features: frozenset[int] = frozenset({Feature.KATO})
    """Features that are answered here."""

    def _feature(self, command: Command, feature: int, *, setting: bool) -> tuple[int, int]:
        """Status and result of Set or Get Features for one of :attr:`features`."""
        sqe = command.sqe
        if setting:
            if sqe[43] & 0x80:
                return NOT_SAVEABLE | DNR, 0
            return self.set_feature(feature, int.from_bytes(sqe[44:48], "little"))
        select = sqe[41] & 7
        if select == 3:  # supported capabilities: changeable, for the whole controller
            return 0, 1 << 2
        return self.get_feature(feature, default=select in (1, 2))

    def set_feature(self, feature: int, value: int) -> tuple[int, int]:
        """Keep Alive Timer."""
        self.kato_ms = value
        return 0, 0

    def get_feature(self, feature: int, *, default: bool) -> tuple[int, int]:
        """Keep Alive Timer."""
        return 0, 0 if default else self.kato_ms

    # --- asynchronous events ---

    def armed(self) -> None:
        """An Asynchronous Event Request waits."""

    def post(self, result: int) -> bool:
        """Completes the oldest waiting request; False if there is none."""
        if not self.events:
            return False
        session = self.sessions[0]
        session.conn.complete(self.events.pop(0), 0, result)
        self.target.dirty[session] = None
        return True

    def _abort_event(self, session: Session, command: Command) -> bool:
        sqid, cid = int.from_bytes(command.sqe[40:42], "little"), int.from_bytes(command.sqe[42:44], "little")
        for event in self.events if sqid == 0 else ():
            if event.cid == cid:
                self.events.remove(event)
                session.conn.complete(event, Status.ABORTED)
                return True
        return False

    def patched(self, command: Command, data: Buffer) -> Buffer:
        """Identify data of the device as they are behind fabrics."""
        return data


class IoController(Controller):
    """A controller of the subsystem: the device's, with its identity behind fabrics."""

    io = True
    features = frozenset({Feature.KATO, Feature.QUEUES})

    def __init__(self, target: Target, cntlid: int, request: ConnectRequest, facts: DeviceFacts) -> None:
        super().__init__(target, cntlid, request)
        self.event_limit = facts.event_limit
        self.registers.vs = facts.version
        self._resetting = self._event_asked = False
        self._event: int | None = None
        """One that came when nobody waited."""

    def close(self, reason: str) -> None:
        """Tells the device, too."""
        if not self.closed:
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
        self._resetting = True
        self.target.detach(self.device_cntlid)
        self.target.attach(self.host, self.host_id, partial(self._attached, self.life))

    def _attached(self, life: int, error: int, cntlid: int, _: bytes) -> None:
        if life != self.life:
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
            return
        flush = spec.SQE_FLUSH_ALL
        self.target.backend.request(NvmeOp.IO, self.device_cntlid, 1, flush, partial(self._flushed, self.life))

    def _flushed(self, life: int, *_: object) -> None:
        if life == self.life:
            self.registers.csts |= spec.CSTS_SHUTDOWN_DONE

    def other_admin(self, session: Session, command: Command) -> None:
        """Everything that needs the device."""
        if command.opcode in _NOT_HERE:
            session.conn.complete(command, Status.INVALID_OPCODE | DNR)
        elif command.opcode == Admin.IDENTIFY and command.length != identify.BYTES:
            session.conn.complete(command, Status.SGL_LENGTH | DNR)
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
