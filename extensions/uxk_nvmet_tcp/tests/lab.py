"""A target with a controller in memory, and hosts that are connected to it without sockets."""

from __future__ import annotations

from typing import Any

from crc32c import crc32c

from uxk_nvmet_tcp.memory import Pool
from uxk_nvmet_tcp.session import Session
from uxk_nvmet_tcp.target import Target, TargetConfig
from uxk_nvmet_tcp.tests.fake import FakeBackend
from uxk_nvmet_tcp.tests.host import HostProtocol, Reply, connect_data, connect_entry, entry

NQN = "nqn.2026-11.example.uxk:test"
MS = 1_000_000
OTHER = "nqn.2026-11.example.uxk:other"


class Lab:
    """A target with a controller in memory, and hosts that are connected without sockets."""

    def __init__(self, *, connections: int = 8, slice_bytes: int = 256 << 10, **config: Any) -> None:
        self.region = memoryview(bytearray(connections * slice_bytes))
        self.backend = FakeBackend(self.region)
        self.now_ns = 0
        self.lines: list[str] = []
        self.pool = Pool(self.region, connections)
        self.target = Target(
            TargetConfig(NQN, **config), self.backend, self.pool, lambda: self.now_ns, self.lines.append, lambda: crc32c
        )
        self.wires: dict[Session, HostProtocol] = {}

    @property
    def device(self) -> Any:
        """What is behind the backend."""
        return self.backend.device

    def wire(self, **options: Any) -> Wire:
        """A new connection."""
        session = self.target.open("198.51.100.7:1000", ("192.0.2.1", 4420))
        assert session is not None
        wire = Wire(self, session, HostProtocol(**options))
        self.wires[session] = wire.host
        self.pump()
        return wire

    def pump(self) -> None:
        """Carries bytes until there are no more."""
        busy = True
        while busy:
            busy = False
            for session, host in self.wires.items():
                if host.out:
                    data, host.out = bytes(host.out), bytearray()
                    session.receive(data)
                    busy = True
            while self.target.dirty:
                session, _ = self.target.dirty.popitem()
                data = session.take_output()
                if session in self.wires and data:
                    self.wires[session].receive(data)
                    busy = True


class Wire:
    """One connection."""

    def __init__(self, lab: Lab, session: Session, host: HostProtocol) -> None:
        self.lab, self.session, self.host = lab, session, host

    def run(self, sqe: bytearray, write: bytes = b"", read: int = 0, **options: Any) -> Reply:
        """One command that is answered."""
        cid = self.host.command(sqe, write, read, **options)
        self.lab.pump()
        return self.host.replies.pop(cid)

    def connect(self, qid: int = 0, nqn: str = NQN, sqsize: int = 31, kato_ms: int = 0, **data: Any) -> Reply:
        """Connect."""
        return self.run(connect_entry(qid, sqsize, kato_ms), connect_data(nqn, **data))

    def set_cc(self, value: int) -> int:
        """Property Set of CC; its status."""
        return self.run(fabrics(0, dw11=0x14, dw12=value)).status

    def get(self, offset: int, wide: int = 0) -> int:
        """Property Get."""
        reply = self.run(fabrics(4, dw10=wide, dw11=offset))
        assert reply.status == 0
        return reply.result

    def enable(self) -> Wire:
        """Connects as admin queue and enables the controller."""
        assert self.connect().status == 0
        assert self.set_cc(0x460001) == 0
        return self


def fabrics(kind: int, **words: int) -> bytearray:
    """A fabrics command."""
    sqe = entry(0x7F, **words)
    sqe[4] = kind
    return sqe


def both(lab: Lab) -> tuple[Wire, Wire]:
    """An admin queue and an I/O queue."""
    admin, io = lab.wire().enable(), lab.wire()
    assert io.connect(1, cntlid=1, sqsize=127).status == 0
    return admin, io
