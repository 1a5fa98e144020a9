"""A small NVMe/TCP host for tests: the protocol without I/O, and queues and controllers over real sockets."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import trio
from crc32c import crc32c

from uxk_nvmet_tcp import pdu
from uxk_nvmet_tcp.pdu import Digests, PduType

DISCOVERY = "nqn.2014-08.org.nvmexpress.discovery"
HOST = "nqn.2026-11.example.uxk:host"
DNR = 1 << 14


class Reply(NamedTuple):
    """What became of a command."""

    status: int
    result: int
    data: bytes
    sqhd: int


class Term(NamedTuple):
    """A termination request of the controller."""

    fes: int
    fei: int
    header: bytes


def entry(
    opcode: int, *, nsid: int = 0, dw10: int = 0, dw11: int = 0, dw12: int = 0, dw13: int = 0, dw14: int = 0,
    dw15: int = 0,
) -> bytearray:  # fmt: skip
    """A submission queue entry without command id and data pointer."""
    return bytearray(struct.pack("<BBHI32x6I", opcode, 0x40, 0, nsid, dw10, dw11, dw12, dw13, dw14, dw15))


def connect_entry(qid: int, sqsize: int, kato_ms: int = 0, *, recfmt: int = 0, cattr: int = 0) -> bytearray:
    """A Connect command."""
    sqe = entry(0x7F)
    sqe[4] = 1
    struct.pack_into("<HHHBxI", sqe, 40, recfmt, qid, sqsize, cattr, kato_ms)
    return sqe


def connect_data(nqn: str, host: str = HOST, cntlid: int = 0xFFFF, host_id: bytes = bytes(16)) -> bytes:
    """The data of a Connect command."""
    head = (host_id + cntlid.to_bytes(2, "little")).ljust(256, b"\0")
    return head + nqn.encode().ljust(256, b"\0") + host.encode().ljust(512, b"\0")


class HostProtocol:
    """The host's end of one connection: commands in, bytes in :attr:`out`, replies in :attr:`replies`."""

    def __init__(self, *, header: bool = False, data: bool = False, in_capsule: int = 8192, hpda: int = 0) -> None:
        self.dgst = header | data << 1
        self.digests = Digests(crc32c, header, data, 4)
        self.align = (hpda + 1) * 4
        self.in_capsule = in_capsule
        self.out = bytearray(pdu.ic_req(dgst=self.dgst, hpda=hpda))
        self.ready = False
        self.replies: dict[int, Reply] = {}
        self.term: Term | None = None
        self.max_h2c = 0
        self.r2ts = 0
        self.piece = 1 << 20
        """H2CData are not longer than this."""
        self._rest = b""
        self._cid = 0
        self._writes: dict[int, bytes] = {}
        self._reads: dict[int, bytearray] = {}

    def command(self, sqe: bytearray, write: bytes = b"", read: int = 0, *, inline: bool | None = None) -> int:
        """Queues a command; returns its id."""
        self._cid = (self._cid + 1) % 0x10000
        cid = self._cid
        struct.pack_into("<H", sqe, 2, cid)
        inside = len(write) <= self.in_capsule if inline is None else inline
        if write and inside:
            struct.pack_into("<QI3xB", sqe, 24, 0, len(write), 0x01)
            self.out += pdu.capsule_cmd(bytes(sqe), write, self.digests)
        else:
            struct.pack_into("<QI3xB", sqe, 24, 0, len(write) or read, 0x5A)
            self._writes[cid] = write
            self.out += pdu.capsule_cmd(bytes(sqe), b"", self.digests)
        self._reads[cid] = bytearray()
        return cid

    def receive(self, data: bytes) -> None:
        """Bytes from the controller."""
        data = self._rest + data
        at = 0
        while len(data) - at >= 8:
            kind, flags, hlen, pdo, plen = pdu.COMMON.unpack_from(data, at)
            assert hlen == pdu.HEADER_BYTES[PduType(kind)] and plen >= hlen, (kind, hlen, plen)
            if len(data) - at < plen:
                break
            self._pdu(kind, flags, hlen, pdo, data[at : at + plen])
            at += plen
        self._rest = data[at:]

    def _pdu(self, kind: int, flags: int, hlen: int, pdo: int, raw: bytes) -> None:
        digests = self.digests
        if kind in (PduType.CAPSULE_RESP, PduType.C2H_DATA, PduType.R2T):
            assert bool(flags & 1) == digests.header
            if digests.header:
                assert crc32c(raw[:hlen]) == int.from_bytes(raw[hlen : hlen + 4], "little")
        match kind:
            case PduType.IC_RESP:
                *_, pfv, cpda, dgst, self.max_h2c = pdu.IC.unpack(raw)
                assert (pfv, cpda, dgst) == (0, 0, self.dgst)
                assert self.max_h2c >= 4096 and self.max_h2c % 4 == 0
                self.ready = True
            case PduType.CAPSULE_RESP:
                *_, result, sqhd, _, cid, status = pdu.RESPONSE.unpack_from(raw)
                self._done(cid, status >> 1, result, sqhd)
            case PduType.C2H_DATA:
                *_, cid, _, offset, length = pdu.DATA.unpack_from(raw)
                assert pdo % self.align == 0 and offset == len(self._reads[cid])
                data = raw[pdo : pdo + length]
                assert len(raw) == pdo + length + (4 if digests.data else 0)
                assert bool(flags & 2) == digests.data
                if digests.data:
                    assert crc32c(data) == int.from_bytes(raw[-4:], "little")
                self._reads[cid] += data
                if flags & 8:
                    self._done(cid, 0, 0, 0xFFFF)
            case PduType.R2T:
                *_, cid, ttag, offset, length = pdu.DATA.unpack_from(raw)
                self.r2ts += 1
                assert length > 0 and offset + length <= len(self._writes[cid])
                self.send_data(cid, ttag, offset, self._writes[cid][offset : offset + length])
            case PduType.C2H_TERM_REQ:
                *_, fes, fei = pdu.TERM.unpack_from(raw)
                self.term = Term(fes, fei, raw[24:])
            case _:
                raise AssertionError(f"PDU type {kind} from the controller")

    def send_data(self, cid: int, ttag: int, offset: int, data: bytes) -> None:
        """Answers an R2T."""
        step = min(self.max_h2c, self.piece)
        for start in range(0, len(data), step):
            part = data[start : start + step]
            last = 4 if start + step >= len(data) else 0
            for piece in pdu.data_pdu(PduType.H2C_DATA, cid, ttag, offset + start, part, last, self.digests):
                self.out += piece

    def _done(self, cid: int, status: int, result: int, sqhd: int) -> None:
        self._writes.pop(cid, None)
        self.replies[cid] = Reply(status, result, bytes(self._reads.pop(cid, b"")), sqhd)


class Queue:
    """One connection over a socket."""

    def __init__(self, stream: trio.SocketStream, nursery: trio.Nursery, **options: Any) -> None:
        self.stream = stream
        self.protocol = HostProtocol(**options)
        self._news = trio.Event()
        self.ended = False
        self._sending = trio.Lock()
        nursery.start_soon(self._receive)

    async def _receive(self) -> None:
        try:
            async with self.stream:
                async for data in self.stream:
                    self.protocol.receive(bytes(data))
                    if self.protocol.out:
                        await self.push()
                    self._ring()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.ended = True
        self._ring()

    def _ring(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def push(self) -> None:
        """Sends what is queued."""
        async with self._sending:
            data, self.protocol.out = self.protocol.out, bytearray()
            await self.stream.send_all(data)

    async def until(self, condition: Any) -> None:
        """Waits until ``condition()`` holds, or the connection ends."""
        while not condition() and not self.ended:
            await self._news.wait()

    async def hello(self) -> None:
        """Exchanges ICReq and ICResp, unless the connection ends."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.push()
        await self.until(lambda: self.protocol.ready or self.protocol.term)

    async def run(self, sqe: bytearray, write: bytes = b"", read: int = 0, *, inline: bool | None = None) -> Reply:
        """One command.  ConnectionError if the connection ends before its completion."""
        return (await self.wait(self.protocol.command(sqe, write, read, inline=inline)))[0]

    async def wait(self, *cids: int) -> list[Reply]:
        """The replies to commands that were queued."""
        replies = self.protocol.replies
        if self.protocol.out:
            await self.push()
        await self.until(lambda: all(cid in replies for cid in cids))
        if not all(cid in replies for cid in cids):
            raise ConnectionError(f"ended: {self.protocol.term}")
        return [replies.pop(cid) for cid in cids]

    async def gone(self) -> Term | None:
        """Waits for the end of the connection."""
        await self.until(lambda: False)
        return self.protocol.term


class Controller:
    """An association: the admin queue and I/O queues of one controller."""

    def __init__(self, address: tuple[str, int], nqn: str, nursery: trio.Nursery, host: str, options: Any) -> None:
        self.address, self.nqn, self.host = address, nqn, host
        self._nursery = nursery
        self._options = options
        self.queues: dict[int, Queue] = {}
        self.cntlid = 0xFFFF

    @property
    def admin(self) -> Queue:
        """The admin queue."""
        return self.queues[0]

    async def connect(self, qid: int = 0, sqsize: int = 31, kato_ms: int = 0, cattr: int = 0) -> Reply:
        """Opens a connection and makes it queue ``qid``."""
        stream = await trio.open_tcp_stream(*self.address)
        stream.setsockopt(6, 1, 1)
        queue = Queue(stream, self._nursery, **self._options)
        await queue.hello()
        data = connect_data(self.nqn, self.host, self.cntlid if qid else 0xFFFF)
        reply = await queue.run(connect_entry(qid, sqsize, kato_ms, cattr=cattr), data)
        if not reply.status:
            self.queues[qid] = queue
            self.cntlid = reply.result & 0xFFFF
        return reply

    async def get(self, offset: int, size: int = 0) -> int:
        """Property Get."""
        sqe = entry(0x7F, dw10=size, dw11=offset)
        sqe[4] = 4
        reply = await self.admin.run(sqe)
        assert reply.status == 0, hex(reply.status)
        return reply.result

    async def set_cc(self, value: int) -> Reply:
        """Property Set of CC."""
        sqe = entry(0x7F, dw11=0x14, dw12=value)
        sqe[4] = 0
        return await self.admin.run(sqe)

    async def enable(self) -> None:
        """What Linux does to enable a controller."""
        assert (await self.set_cc(0x460000)).status == 0
        assert (await self.set_cc(0x460001)).status == 0
        assert await self.get(0x1C) & 1

    async def identify(self, cns: int, nsid: int = 0) -> bytes:
        """Identify data."""
        reply = await self.admin.run(entry(6, nsid=nsid, dw10=cns), read=4096)
        assert reply.status == 0 and len(reply.data) == 4096, hex(reply.status)
        return reply.data

    async def log(self, page: int, length: int, offset: int = 0, rae: bool = False, nsid: int = 0) -> Reply:
        """Get Log Page."""
        dwords = length // 4 - 1
        sqe = entry(2, nsid=nsid, dw10=page | rae << 15 | (dwords & 0xFFFF) << 16, dw11=dwords >> 16, dw12=offset)
        return await self.admin.run(sqe, read=length)

    async def io(
        self, opcode: int, slba: int, blocks: int, write: bytes = b"", *, qid: int = 1, nsid: int = 1
    ) -> Reply:
        """A read or write of ``blocks`` blocks of 512 bytes."""
        sqe = entry(opcode, nsid=nsid, dw10=slba & 0xFFFFFFFF, dw11=slba >> 32, dw12=blocks - 1)
        return await self.queues[qid].run(sqe, write, 0 if write else blocks * 512)

    async def close(self, qid: int | None = None) -> None:
        """Closes one queue, or all of them."""
        for number in [qid] if qid is not None else list(self.queues):
            await self.queues.pop(number).stream.aclose()


@asynccontextmanager
async def controller(
    address: tuple[str, int], nqn: str, *, host: str = HOST, queues: int = 1, kato_ms: int = 0, **options: Any
) -> AsyncIterator[Controller]:
    """A controller that is enabled, with ``queues`` I/O queues."""
    async with trio.open_nursery() as nursery:
        made = Controller(address, nqn, nursery, host, options)
        reply = await made.connect(kato_ms=kato_ms)
        assert reply.status == 0, (hex(reply.status), hex(reply.result))
        await made.enable()
        for qid in range(1, queues + 1):
            assert (await made.connect(qid, 127)).status == 0
        yield made
        await made.close()
        nursery.cancel_scope.cancel()
