"""Controllers as hosts see them: enabling, reset and shutdown, keep-alive, asynchronous events, admin commands.

Source: NVM Express Base Specification 2.0, sections 3.5, 3.6, 5.2 (asynchronous events) and 3.9 (keep-alive).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from uxk.uapi.nvme import DNR, Admin, Feature, Status
from uxk_nvmet_tcp import spec
from uxk_nvmet_tcp.command import Command
from uxk_nvmet_tcp.fabrics import ConnectRequest, Refusal, Registers
from uxk_nvmet_tcp.pdu import Buffer
from uxk_nvmet_tcp.spec import FcType

if TYPE_CHECKING:
    from uxk_nvmet_tcp.session import Session
    from uxk_nvmet_tcp.target import Target

NS_PER_MS: Final = 1_000_000
TIMEOUT_MS: Final = 15_000
"""CAP.TO: the longest that enabling and reset may take."""
SLACK_MIN_MS: Final = 500
"""Beyond KATO: keep-alive commands are late on a busy host."""
INVALID_QUEUE_TYPE: Final = 0x185
NOT_SAVEABLE: Final = 0x10D


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
            conn.complete(command, Status.SEQUENCE_ERROR | DNR)
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
                conn.complete(command, Status.ASYNC_LIMIT | DNR)
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

    features: frozenset[int] = frozenset({Feature.KEEP_ALIVE})
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

    def content(self, session: Session, command: Command) -> bytes | None:
        """Data of an admin command that are answered here; None: the device has them."""
        return None

    def patched(self, command: Command, data: Buffer) -> Buffer:
        """Identify data of the device as they are behind fabrics."""
        return data
