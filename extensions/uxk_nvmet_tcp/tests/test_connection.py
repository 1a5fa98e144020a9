"""The protocol machine: whatever a host sends, however it is cut, it answers, or ends the connection and says why."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from uxk_nvmet_tcp import pdu
from uxk_nvmet_tcp.command import Command
from uxk_nvmet_tcp.connection import MAX_H2C_BYTES, OUT_MAX, Connection
from uxk_nvmet_tcp.pdu import COMMON, Digests, Fes, PduType
from uxk_nvmet_tcp.tests.host import DNR, HostProtocol, entry

CRC = crc32c


class Recorder:
    """Answers every command: reads with bytes of their length, writes when their data are there."""

    def __init__(self) -> None:
        self.conn = Connection(self, lambda: CRC)
        self.heard: list[Any] = []
        self.views: dict[int, bytearray] = {}

    def on_command(self, command: Command) -> None:
        """A capsule."""
        self.heard.append((command.sqe, command.data, command.length))
        if command.opcode & 3 == 1 and command.transport and command.length:
            self.views[command.cid] = bytearray(min(command.length, 1 << 20))
            self.conn.request_data(command, memoryview(self.views[command.cid]))
        elif command.opcode & 3 == 2:
            self.conn.complete(command, 0, 0, bytes(min(command.length, 1 << 16)))
        else:
            self.conn.complete(command, 0, 7)

    def on_data(self, command: Command, good: bool) -> None:
        """Data of a write."""
        self.heard.append((command.cid, bytes(self.views.pop(command.cid)), good))
        self.conn.complete(command, 0 if good else 0x22)

    def take(self) -> bytes:
        """What it says."""
        data = b"".join(self.conn.out)
        self.conn.out.clear()
        return data


def pair(**options: Any) -> tuple[HostProtocol, Recorder]:
    """Both ends after the handshake."""
    host, target = HostProtocol(**options), Recorder()
    exchange(host, target)
    assert host.ready
    return host, target


def exchange(host: HostProtocol, target: Recorder) -> None:
    """Carries bytes to and fro until there are no more."""
    while host.out or target.conn.out:
        data, host.out = bytes(host.out), bytearray()
        target.conn.receive(data)
        host.receive(target.take())


digest_choices = st.tuples(st.booleans(), st.booleans())


@settings(deadline=None)
@given(digest_choices, st.integers(0, 31), st.integers(1, 40000), st.integers(100, 20000), st.booleans())
def test_data_arrive_whole(digests: tuple[bool, bool], hpda: int, size: int, piece: int, inline: bool) -> None:
    host, target = pair(header=digests[0], data=digests[1], hpda=hpda)
    host.piece = piece
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    cid = host.command(entry(1), data, inline=inline and size <= 8192)
    read = host.command(entry(2), read=size)
    exchange(host, target)
    assert host.replies[cid].status == 0 and host.replies[read].data == bytes(size)
    assert data in [part for item in target.heard for part in item if isinstance(part, bytes)]
    assert not target.conn.open and not target.conn.closed


PIECES = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda kind, flags, hlen, pdo, plen, rest: COMMON.pack(kind, flags, hlen, pdo, plen) + rest,
        st.integers(0, 10), st.integers(0, 15), st.sampled_from([24, 72, 128, 0]), st.sampled_from([0, 24, 28, 72, 76]),
        st.one_of(st.integers(0, 300), st.integers(0, (1 << 32) - 1)), st.binary(max_size=150),
    ),
    st.builds(
        lambda opcode, cid, kind, length, psdt, data: capsule(opcode, cid, kind, length, psdt, data),
        st.integers(0, 255), st.integers(0, 3), st.sampled_from([0x01, 0x5A, 0x00]),
        st.integers(0, 100), st.sampled_from([0x40, 0x00]), st.binary(max_size=100),
    ),
    st.builds(
        lambda cid, ttag, offset, length, flags: pdu.DATA.pack(6, flags, 24, 24, 24 + length, cid, ttag, offset, length)
        + bytes(length),
        st.integers(0, 3), st.integers(0, 3), st.integers(0, 100), st.integers(0, 100), st.sampled_from([0, 4]),
    ),
)  # fmt: skip


def capsule(opcode: int, cid: int, kind: int, length: int, psdt: int, data: bytes) -> bytes:
    """A command whose parts need not fit."""
    sqe = entry(opcode)
    sqe[1] = psdt
    struct.pack_into("<H", sqe, 2, cid)
    struct.pack_into("<QI3xB", sqe, 24, 0, length, kind)
    return pdu.capsule_cmd(bytes(sqe), data, Digests())


def cuts(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """The same bytes in pieces of these sizes, again and again."""
    at, index = 0, 0
    while at < len(data):
        yield data[at : at + sizes[index % len(sizes)]]
        at += sizes[index % len(sizes)]
        index += 1


@settings(deadline=None)
@given(st.booleans(), st.lists(PIECES, max_size=8), st.lists(st.integers(1, 90), min_size=1, max_size=8))
def test_nothing_depends_on_how_the_stream_is_cut(greet: bool, pieces: list[bytes], sizes: list[int]) -> None:
    stream = (pdu.ic_req() if greet else b"") + b"".join(pieces)
    whole, cut = Recorder(), Recorder()
    whole.conn.receive(stream)
    for piece in cuts(stream, sizes):
        cut.conn.receive(piece)
    said = cut.take()
    assert whole.take() == said
    assert whole.heard == cut.heard
    assert (whole.conn.closed, whole.conn.reason) == (cut.conn.closed, cut.conn.reason)
    if whole.conn.closed and not whole.conn.reason.startswith("the host ended it"):
        kind, _, _, _, plen = COMMON.unpack_from(said, last_pdu(said))
        assert kind == PduType.C2H_TERM_REQ and 24 <= plen <= 152


def last_pdu(stream: bytes) -> int:
    """Where the last PDU begins."""
    at = 0
    while at + (plen := COMMON.unpack_from(stream, at)[4]) < len(stream):
        at += plen
    return at


GOOD_CAPSULE = capsule(0, 0, 0x5A, 0, 0x40, b"")
WRITE = capsule(1, 9, 0x5A, 64, 0x40, b"")


def h2c(
    cid: int = 9, ttag: int = 1, offset: int = 0, length: int = 64, flags: int = 4, plen: int | None = None
) -> bytes:
    """Data for WRITE."""
    head = pdu.DATA.pack(6, flags, 24, 24, 24 + length if plen is None else plen, cid, ttag, offset, length)
    return head + bytes(length)


def patched(raw: bytes, offset: int, *values: int) -> bytes:
    """With other bytes at ``offset``."""
    return raw[:offset] + bytes(values) + raw[offset + len(values) :]


HELLO = pdu.ic_req()
VIOLATIONS = {
    "not ICReq first": (GOOD_CAPSULE, Fes.SEQUENCE, 0),
    "second ICReq": (HELLO + HELLO, Fes.SEQUENCE, 0),
    "unknown type": (HELLO + patched(GOOD_CAPSULE, 0, 0x33), Fes.INVALID_FIELD, 0),
    "type of the controller's": (HELLO + patched(GOOD_CAPSULE, 0, 5), Fes.INVALID_FIELD, 0),
    "PFV": (pdu.ic_req(pfv=1), Fes.UNSUPPORTED, 8),
    "HPDA": (pdu.ic_req(hpda=32), Fes.INVALID_FIELD, 10),
    "HLEN": (HELLO + patched(GOOD_CAPSULE, 2, 71), Fes.INVALID_FIELD, 2),
    "ICReq of 127 bytes": (patched(HELLO, 4, 127), Fes.INVALID_FIELD, 4),
    "PLEN below HLEN": (HELLO + patched(GOOD_CAPSULE, 4, 71), Fes.INVALID_FIELD, 4),
    "PLEN of 4 GiB": (HELLO + patched(GOOD_CAPSULE, 3, 72, 255, 255, 255, 255), Fes.INVALID_FIELD, 4),
    "PDO inside the header": (HELLO + patched(capsule(1, 0, 1, 4, 64, b"abcd"), 3, 68), Fes.INVALID_FIELD, 3),
    "digest flag without digest": (HELLO + patched(GOOD_CAPSULE, 1, 1), Fes.INVALID_FIELD, 1),
    "data digest flag": (HELLO + patched(WRITE, 1, 2), Fes.INVALID_FIELD, 1),
    "H2CData without R2T": (HELLO + h2c(), Fes.SEQUENCE, 0),
    "wrong TTAG": (HELLO + WRITE + h2c(ttag=2), Fes.INVALID_FIELD, 10),
    "wrong CID": (HELLO + WRITE + h2c(cid=8), Fes.INVALID_FIELD, 8),
    "wrong DATAO": (HELLO + WRITE + h2c(offset=4, length=60), Fes.OUT_OF_RANGE, 12),
    "beyond the command": (HELLO + WRITE + h2c(length=65), Fes.OUT_OF_RANGE, 12),
    "DATAL 0": (HELLO + WRITE + h2c(length=0), Fes.INVALID_FIELD, 16),
    "DATAL and PLEN disagree": (HELLO + WRITE + h2c(plen=80), Fes.INVALID_FIELD, 16),
    "LAST too early": (HELLO + WRITE + h2c(length=32), Fes.INVALID_FIELD, 1),
    "twice": (HELLO + WRITE + h2c() + h2c(), Fes.SEQUENCE, 0),
    "more than MAXH2CDATA": (
        HELLO + WRITE + pdu.DATA.pack(6, 4, 24, 24, 24 + MAX_H2C_BYTES + 4, 9, 1, 0, MAX_H2C_BYTES + 4),
        Fes.LIMIT_EXCEEDED, 0,
    ),
    "more commands than the queue holds": (
        HELLO + b"".join(capsule(1, cid, 0x5A, 64, 0x40, b"") for cid in range(33)), Fes.SEQUENCE, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violations_are_named(name: str) -> None:
    stream, fes, fei = VIOLATIONS[name]
    target, host = Recorder(), HostProtocol()
    target.conn.receive(stream + GOOD_CAPSULE)
    host._writes = {cid: bytes(64) for cid in range(64)}
    host.receive(target.take())
    assert host.term is not None and host.term[:2] == (fes, fei)
    assert len(host.term.header) in (8, 24, 72, 128)
    assert target.conn.closed and target.conn.reason
    target.conn.receive(HELLO)
    assert not target.take(), "nothing is said after a termination request"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (capsule(0, 5, 0x5A, 0, 0x00, b""), 0x02),
        (capsule(0, 5, 0x00, 0, 0x40, b""), 0x11),
        (capsule(1, 5, 0x01, 8, 0x40, b"1234567"), 0x16),
        (capsule(1, 5, 0x01, 8193, 0x40, b""), 0x0F),
    ],
)
def test_bad_data_pointers_end_only_the_command(raw: bytes, status: int) -> None:
    host, target = pair()
    host.out += raw
    exchange(host, target)
    assert host.replies[5].status == status | DNR
    assert not target.heard and not target.conn.closed


def test_a_wrong_data_digest_ends_only_the_command() -> None:
    host, target = pair(data=True)
    cid = host.command(entry(1), b"abcd", inline=True)
    host.out[-1] ^= 1
    exchange(host, target)
    assert host.replies[cid].status == 0x22 and not target.heard
    cid = host.command(entry(1), bytes(10000), inline=False)
    data, host.out = bytes(host.out), bytearray()
    target.conn.receive(data)
    host.receive(target.take())
    host.out[-1] ^= 1
    exchange(host, target)
    assert host.replies[cid].status == 0x22
    cid = host.command(entry(1), b"abcd", inline=True)
    exchange(host, target)
    assert host.replies[cid].status == 0


def test_a_wrong_header_digest_ends_the_connection() -> None:
    host, target = pair(header=True)
    host.command(entry(0))
    host.out[-1] ^= 1
    said = int.from_bytes(host.out[-4:], "little")
    exchange(host, target)
    assert host.term is not None and host.term[:2] == (Fes.HEADER_DIGEST, said)


def test_digests_that_nobody_can_compute_are_refused() -> None:
    conn = Connection(Recorder(), lambda: None)
    conn.receive(pdu.ic_req(dgst=1))
    assert conn.closed and conn.reason == "FES 6, FEI 11: digests are not offered"


def test_success_flag_stands_for_a_completion_only_without_flow_control() -> None:
    host, target = pair()
    first = host.command(entry(2), read=512)
    exchange(host, target)
    target.conn.flow_control = False
    second, third = host.command(entry(2), read=512), host.command(entry(0))
    exchange(host, target)
    assert host.replies[first].sqhd == 1
    assert host.replies[second][:2] == (0, 0) and len(host.replies[second].data) == 512
    assert host.replies[third].sqhd == 0xFFFF


def test_a_command_id_that_is_in_use() -> None:
    _, target = pair()
    target.conn.receive(WRITE + patched(GOOD_CAPSULE, 10, 9))
    (status,) = [pdu.RESPONSE.unpack(raw)[-1] for raw in target.conn.out if raw[0] == PduType.CAPSULE_RESP]
    assert status >> 1 == 3 | DNR and not target.conn.closed


def test_input_waits_for_output_to_be_taken() -> None:
    host, target = pair()
    cids = [host.command(entry(0)) for _ in range(3 * OUT_MAX)]
    target.conn.receive(bytes(host.out[:-10]))
    for round_ in range(1, 3):
        assert target.conn.held and len(target.heard) == len(target.conn.open) + round_ * (OUT_MAX + 1)
        host.receive(target.take())
        assert not target.conn.held
        target.conn.receive(b"")
    target.conn.receive(bytes(host.out[-10:]))
    assert not target.conn.held
    host.receive(target.take())
    assert [*host.replies] == cids


def test_the_host_may_end_it() -> None:
    host, target = pair()
    host.out += pdu.term_req(PduType.H2C_TERM_REQ, 2, 4, bytes(200))
    exchange(host, target)
    assert target.conn.closed and target.conn.reason == "the host ended it: FES 2, FEI 4"
    assert host.term is None
