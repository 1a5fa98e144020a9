"""The target: who is connected, which controllers there are, who may come.  Sans-IO."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

from uxk.uapi.blk import NvmeOp
from uxk.uapi.nvme import DNR, Admin, Status
from uxk_nvmet_tcp import identify, spec
from uxk_nvmet_tcp.backend import Backend, Done
from uxk_nvmet_tcp.command import Command
from uxk_nvmet_tcp.controller import NS_PER_MS, Controller
from uxk_nvmet_tcp.discovery import TRANSFER_MAX_BYTES as DISCOVERY_BYTES
from uxk_nvmet_tcp.discovery import DiscoveryController
from uxk_nvmet_tcp.fabrics import ConnectRequest, Refusal, parse_connect, wrong_field
from uxk_nvmet_tcp.identify import Face
from uxk_nvmet_tcp.iocontroller import IoController
from uxk_nvmet_tcp.memory import UNIT_BYTES, Pool, Slice
from uxk_nvmet_tcp.pdu import Crc
from uxk_nvmet_tcp.places import gives_way, owner_of
from uxk_nvmet_tcp.session import Session
from uxk_nvmet_tcp.spec import DISCOVERY_NQN, Connect

TRANSFER_MAX_BYTES: Final = 1 << 20
"""No command moves more, however much memory a connection has."""
CONNECT_MS: Final = 10_000
"""A connection that is no queue by then is closed."""
TOLD_MS: Final = 5000
TOLD_MAX: Final = 16
"""Lines in the log in so many milliseconds about connections that are no queues."""
COMMANDS_SHOWN: Final = 128
HOSTS_SHOWN: Final = 16
"""Lines of the attributes ``commands`` and ``hosts``: one page each."""
CNTLID_LAST: Final = 0xFFEF

_IDENTIFY: Final = struct.pack("<B3xI32xI20x", Admin.IDENTIFY, 0, 1)
"""Identify Controller, as the target asks for it itself."""
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EMFILE, errno.EBUSY, errno.EUSERS, errno.EDQUOT})


class TargetConfig(NamedTuple):
    """What the module's parameters come to."""

    nqn: str
    allow: frozenset[str] = frozenset()
    """Host NQNs; empty for every host."""
    advertise: tuple[str, int] = ("", 0)
    """Address and port in the discovery log; empty and 0 for what the host has connected to."""
    queues: int = 8
    depth: int = 128
    in_capsule_bytes: int = 4096
    per_address: int = 1 << 16
    """Places that one address may have."""


class Target:
    """All connections and controllers.  What is to be sent waits in the sessions of :attr:`dirty`."""

    def __init__(
        self, config: TargetConfig, backend: Backend, pool: Pool, now_ns: Callable[[], int],
        log: Callable[[str], object], load_crc: Callable[[], Crc | None],
    ) -> None:  # fmt: skip
        self.config = config
        self.backend = backend
        self.now_ns = now_ns
        self.load_crc = load_crc
        self._pool = pool
        self._log = log
        pages = max(1, min(TRANSFER_MAX_BYTES, pool.slice_bytes >> 1) // UNIT_BYTES)
        self.max_transfer_bytes = UNIT_BYTES << pages.bit_length() - 1
        self.sessions: dict[Session, None] = {}
        self.dirty: dict[Session, None] = {}
        """Sessions that have something to send, or are closed."""
        self.controllers: dict[int, IoController] = {}
        self._discoveries: dict[int, DiscoveryController] = {}
        self._last_discovery = 0
        self.generation = 1
        """Of the discovery log (GENCTR)."""
        self._told, self._told_ns = 0, now_ns()
        self.link = True
        self.refused = self.bad_hosts = 0
        self.admin_counts = [0] * 256
        self.io_counts = [0] * 256

    # --- connections ---

    def open(self, peer: str, local: tuple[str, int]) -> Session | None:
        """A new connection; None if it is refused.  Where there is no place for it, see :func:`gives_way`."""
        part = self._place(owner_of(peer)) if self.link else None
        if part is None:
            self.refused += 1
            return None
        session = Session(self, part, peer, local)
        self.sessions[session] = None
        return session

    def _place(self, owner: str) -> Slice | None:
        pool, limit = self._pool, self.config.per_address
        if pool.taken[owner] >= limit:
            self._make_room(session for session in self.sessions if session.part.owner == owner)
            if pool.taken[owner] >= limit:
                self._tell(f"{owner}: refused, it has {pool.taken[owner]} connections, per_address={limit}")
                return None
        if not pool.free:
            self._make_room(self.sessions)
        return pool.slice(owner)

    def _make_room(self, sessions: Iterable[Session]) -> None:
        session = gives_way(sessions, self.now_ns())
        if session is not None:
            (session.controller or session).close("somebody else needs its place")

    def lost(self, session: Session, reason: str) -> None:
        """A session has ended."""
        self.sessions.pop(session, None)
        self.dirty[session] = None
        if session.controller is not None:
            session.controller.lost(session, reason)
        elif reason:
            self._tell(f"{session.peer}: {reason}")

    def _tell(self, text: str) -> None:
        """Logs what happens to connections that are nothing yet: a flood of them must not hide all other lines."""
        self._told += 1
        if self._told <= TOLD_MAX:
            self._log(text)

    def sweep(self) -> None:
        """Ends what has been silent for too long."""
        now_ns = self.now_ns()
        if now_ns - self._told_ns > TOLD_MS * NS_PER_MS:
            if self._told > TOLD_MAX:
                self._log(f"{self._told - TOLD_MAX} more connections ended or were refused")
            self._told, self._told_ns = 0, now_ns
        for session in list(self.sessions):
            if session.controller is None and now_ns - session.since_ns > CONNECT_MS * NS_PER_MS:
                session.close(f"no Connect within {CONNECT_MS} ms")
        for controller in (*self.controllers.values(), *self._discoveries.values()):
            expires_ns = controller.expires_ns
            if expires_ns is not None and now_ns > expires_ns:
                controller.close(f"nothing was heard for {(now_ns - controller.heard_ns) // NS_PER_MS} ms")

    def set_link(self, up: bool) -> None:
        """Down: every connection is dropped, and none taken, until it is up again."""
        if up != self.link:
            self.link = up
            self._log(f"link {'up' if up else 'down'}")
        for session in list(self.sessions) if not up else ():
            session.conn.out.clear()
            session.close("link down")

    def reconfigure(self, **changes: object) -> None:
        """Other hosts may connect, or the discovery log names another address; hosts no longer allowed are dropped."""
        self.config = self.config._replace(**changes)  # type: ignore[arg-type]
        self.generation += 1
        for controller in list(self.controllers.values()):
            if not self.allowed(controller.host):
                controller.close(f"host {controller.host} is not allowed any more")
        for discovery in self._discoveries.values():
            discovery.log_changed()

    # --- who may come ---

    def allowed(self, host: str) -> bool:
        """Whether a host may connect."""
        return not self.config.allow or host in self.config.allow

    def advertised(self, session: Session) -> tuple[str, int]:
        """Address and port for the discovery log."""
        address, port = self.config.advertise
        return address or session.local[0], port or session.local[1]

    def connect(self, session: Session, command: Command) -> None:
        """A Connect of a connection that is no queue yet."""
        request = parse_connect(command, self.config.depth)
        if isinstance(request, Refusal):
            refusal: Refusal | None = request
        elif request.subsystem == DISCOVERY_NQN:
            refusal = self._discovery(session, command, request)
        elif request.subsystem != self.config.nqn:
            refusal = wrong_field(256, in_data=True)
        elif not self.allowed(request.host):
            refusal = Refusal(Connect.HOST | DNR)
        elif request.qid:
            refusal = self._io_queue(session, command, request)
        elif request.cntlid != spec.CNTLID_DYNAMIC:
            refusal = wrong_field(16, in_data=True)
        else:
            refusal = None
            session.begin_connect()
            self.attach(request.host, request.host_id, partial(self._attached, session, command, request))
        if refusal is not None:
            self.refused += 1
            session.conn.complete(command, *refusal)

    def _discovery(self, session: Session, command: Command, request: ConnectRequest) -> Refusal | None:
        if request.qid:
            return wrong_field(42)
        if request.cntlid != spec.CNTLID_DYNAMIC:
            return wrong_field(16, in_data=True)
        cntlid = self._last_discovery
        while True:  # ends: there are fewer connections than numbers
            cntlid = cntlid % CNTLID_LAST + 1
            if cntlid not in self._discoveries:
                break
        self._last_discovery = cntlid
        controller = self._discoveries[cntlid] = DiscoveryController(self, cntlid, request)
        controller.add(session, request)
        session.conn.complete(command, 0, cntlid)
        return None

    def _io_queue(self, session: Session, command: Command, request: ConnectRequest) -> Refusal | None:
        controller = self.controllers.get(request.cntlid)
        if controller is None:
            return wrong_field(16, in_data=True)
        if controller.host != request.host:
            return wrong_field(512, in_data=True)
        if controller.host_id != request.host_id:
            return wrong_field(0, in_data=True)
        if request.qid > self.config.queues:
            return wrong_field(42)
        if request.qid in controller.sessions or not controller.registers.ready:
            return Refusal(Status.SEQUENCE_ERROR | DNR)
        controller.add(session, request)
        session.conn.complete(command, 0, request.cntlid)
        return None

    # --- controllers of the device ---

    def attach(self, host: str, host_id: bytes, then: Done) -> None:
        """Asks the device for a controller; its answer's result is the CNTLID."""
        self.backend.request(NvmeOp.ATTACH, 0, 0, spec.padded(host, 256) + host_id, then)

    def detach(self, cntlid: int) -> None:
        """Gives a controller of the device back."""
        self.backend.request(NvmeOp.DETACH, cntlid, 0, b"", lambda *_: None)

    def _attached(
        self, session: Session, command: Command, request: ConnectRequest, error: int, cntlid: int, _: bytes
    ) -> None:
        if error:
            self._not_attached(session, command, error)
        elif session.closed:
            self.detach(cntlid)
            session.end_connect()
        elif cntlid in self.controllers:  # one that was reset still goes by that number: take another
            self.attach(request.host, request.host_id, partial(self._attached, session, command, request))
            self.detach(cntlid)
        else:
            then = partial(self._identified, session, command, request, cntlid)
            self.backend.request(NvmeOp.ADMIN, cntlid, 0, _IDENTIFY, then, length=identify.BYTES)

    def _not_attached(self, session: Session, command: Command, error: int) -> None:
        session.end_connect()
        if session.closed:
            return
        self.refused += 1
        if error in _NO_ROOM or error == errno.EINVAL:
            busy = Refusal(Connect.CONTROLLER_BUSY | DNR)
            session.conn.complete(command, *(busy if error in _NO_ROOM else wrong_field(512, in_data=True)))
            self.dirty[session] = None
        else:  # the device is not there: a refusal would be final, a lost connection is tried again
            session.close(f"no controller: {errno.errorcode.get(error, error)}")

    def _identified(
        self, session: Session, command: Command, request: ConnectRequest, cntlid: int,
        error: int, result: int, data: bytes,
    ) -> None:  # fmt: skip
        if not error and (result >> 32 or len(data) != identify.BYTES):
            error = errno.EREMOTEIO
        if error or session.closed:
            self.detach(cntlid)
            self._not_attached(session, command, error)
            return
        session.end_connect()
        controller = IoController(self, cntlid, request, identify.facts_of(data))
        self.controllers[cntlid] = controller
        controller.add(session, request)
        session.conn.complete(command, 0, cntlid)
        self.dirty[session] = None
        self._log(f"host {request.host} from {session.peer}: controller {cntlid}")

    def gone(self, controller: Controller, reason: str) -> None:
        """A controller has ended."""
        if controller.io:
            del self.controllers[controller.cntlid]
            self._log(f"host {controller.host}: controller {controller.cntlid} ended: {reason}")
        else:
            del self._discoveries[controller.cntlid]

    def face(self, cntlid: int) -> Face:
        """What a controller of the subsystem says of itself."""
        config = self.config
        return Face(cntlid, config.nqn, config.depth, config.in_capsule_bytes, self.max_transfer_bytes)

    # --- figures ---

    def hosts(self) -> str:
        """A line for each controller: its host, CNTLID and I/O queues."""
        lines = [
            f"{each.host} cntlid={each.cntlid} queues={sum(qid > 0 for qid in each.sessions)}"
            for each in self.controllers.values()
        ]
        return "\n".join(lines[:HOSTS_SHOWN])

    def commands(self) -> str:
        """A line for each opcode that hosts have used: queue type, opcode, how often."""
        counts = (("admin", self.admin_counts), ("io", self.io_counts))
        lines = (f"{kind} {opcode:02x} {n}" for kind, by in counts for opcode, n in enumerate(by) if n)
        return "\n".join(islice(lines, COMMANDS_SHOWN))

    def discovery_face(self, cntlid: int) -> Face:
        """What a discovery controller says of itself."""
        return self.face(cntlid)._replace(subsystem=DISCOVERY_NQN, max_transfer_bytes=DISCOVERY_BYTES)
