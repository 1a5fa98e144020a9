"""What a hostile host may send to the NVMe/TCP target, made of any bytes.

``nvmet_search.py`` searches for inputs that break the target, ``test_nvmet_fuzz.py`` tries the corpus and mutations of
it in every run.  The bytes choose how far the connection gets before, which PDUs follow, and how the
stream is cut; whatever comes, nothing raises, no memory is lost, and a good host beside it is served.
"""

from __future__ import annotations

import struct

from uxk_nvmet_tcp import pdu
from uxk_nvmet_tcp.connection import OUT_MAX
from uxk_nvmet_tcp.session import Session
from uxk_nvmet_tcp.tests.host import connect_data, connect_entry, entry
from uxk_nvmet_tcp.tests.lab import MS, NQN, Lab, fabrics

PDUS_MAX = 64


class Tape:
    """Bytes that are read once; zeros when there are no more."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """The next bytes."""
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece.ljust(size, b"\0")

    def number(self, size: int = 1) -> int:
        """The next bytes as a number."""
        return int.from_bytes(self.take(size), "little")


def begin(lab: Lab, tape: Tape) -> Session:
    """A connection that has come some way."""
    stage, digests = tape.number() % 5, tape.number() & 3
    options = {"header": bool(digests & 1), "data": bool(digests & 2)}
    if stage == 0:
        session = lab.target.open("203.0.113.1:1", ("192.0.2.1", 4420))
        assert session is not None
        return session
    wire = lab.wire(**options)
    if stage > 1:
        wire.enable()
    if stage == 4:
        wire = lab.wire(**options)
        wire.connect(1, cntlid=max(lab.target.controllers), sqsize=1 + tape.number() % 127)
    del lab.wires[wire.session]
    return wire.session


def command(tape: Tape, digests: pdu.Digests) -> bytes:
    """A command that is almost right."""
    opcode = tape.number()
    sqe = entry(opcode, nsid=tape.number() % 3, dw10=tape.number(4), dw11=tape.number(2), dw12=tape.number(2) & 0x801FF)
    match tape.number() % 6:
        case 0:
            sqe = connect_entry(tape.number() % 4, tape.number(), tape.number(2), cattr=tape.number() & 4)
        case 1:
            sqe = fabrics(tape.number() % 9, dw10=tape.number() & 1, dw11=tape.number(), dw12=tape.number(4))
        case 2:
            sqe = entry(1 + opcode % 2, nsid=1, dw10=tape.number(2), dw12=tape.number() % 64)
        case _:
            pass
    struct.pack_into("<H", sqe, 2, tape.number() % 8)
    inside = b""
    if tape.number() & 1:
        inside = connect_data(NQN, cntlid=tape.number(2)) if sqe[0] == 0x7F else bytes(tape.number(2) % 9000)
    kind = (0x5A, 0x01, 0x5A, tape.number())[tape.number() % 4]
    length = (len(inside), tape.number() % 65 * 512, tape.number(4))[tape.number() % 3]
    struct.pack_into("<QI3xB", sqe, 24, tape.number() % 2 * tape.number(), length, kind)
    return pdu.capsule_cmd(bytes(sqe), inside, digests)


def data_unit(tape: Tape, digests: pdu.Digests) -> bytes:
    """An H2CData that may answer an R2T."""
    length = (512 * (tape.number() % 65), tape.number(2))[tape.number() & 1]
    offset = (0, tape.number() * 512)[tape.number() & 1]
    cid, ttag, last = tape.number() % 8, 1 + tape.number() % 8, tape.number() & 4
    return b"".join(pdu.data_pdu(pdu.PduType.H2C_DATA, cid, ttag, offset, bytes(length), last, digests))


def stream(tape: Tape, digests: pdu.Digests) -> bytes:
    """A sequence of PDUs, right and wrong."""
    made = bytearray()
    for _ in range(PDUS_MAX):
        if not tape.left:
            break
        match tape.number() % 8:
            case 0:
                made += tape.take(tape.number())
            case 1:
                made += pdu.COMMON.pack(*tape.take(4), tape.number(4)) + tape.take(tape.number())
            case 2:
                made += pdu.ic_req(dgst=tape.number() & 3, hpda=tape.number() & 63)
            case 3:
                made += pdu.term_req(pdu.PduType.H2C_TERM_REQ, tape.number(), tape.number(), tape.take(24))
            case 4 | 5:
                made += data_unit(tape, digests)
            case _:
                made += command(tape, digests)
    return bytes(made)


def play(data: bytes) -> None:
    """One input.  AssertionError, or any other, is a finding."""
    tape = Tape(data)
    lab = Lab(connections=6, slice_bytes=128 << 10)
    witness = lab.wire().enable()
    session = begin(lab, tape)
    lab.backend.at_once = bool(tape.number() & 1)
    cut = 1 + tape.number(2)
    hostile = stream(tape, session.conn.digests)
    said = bytearray()
    for at in range(0, len(hostile), cut):
        session.receive(hostile[at : at + cut])
        assert len(session.conn.out) <= OUT_MAX + 3 * session.conn.depth, "what it has to say is not bounded"
        if tape.number() & 1:
            lab.backend.answer(tape.number() % 8)
        said += session.take_output()
    lab.backend.at_once = True
    lab.backend.answer()
    said += session.take_output()
    check_output(bytes(said))
    assert witness.run(entry(0x18)).status == 0, "a good host is not served any more"
    lab.now_ns += 130_000 * MS
    lab.target.sweep()
    session.close("the end")
    witness.session.close("the end")
    lab.pump()
    for other in list(lab.target.sessions):
        other.close("the end")
    assert lab.pool.free == 6, "memory was lost"
    assert not lab.device.hosts and not lab.target.controllers, "a controller was left behind"


def check_output(said: bytes) -> None:
    """What the target says is well formed, and nothing follows a termination request."""
    at = 0
    while at < len(said):
        kind, _, hlen, _, plen = pdu.COMMON.unpack_from(said, at)
        assert hlen == pdu.HEADER_BYTES[pdu.PduType(kind)] <= plen
        at += plen
        assert kind != pdu.PduType.C2H_TERM_REQ or at == len(said)
    assert at == len(said)
