"""Crowds of hostile hosts at a real server on sockets: what they may cost is bounded, and a good host is served.

The clock and the device are the test's own, so that nothing here depends on time.
"""

from __future__ import annotations

import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing

import uxk
from uxk.uapi.blk import NvmeOp
from uxk_nvmet_tcp.connection import OUT_MAX
from uxk_nvmet_tcp.memory import Pool
from uxk_nvmet_tcp.pdu import IC
from uxk_nvmet_tcp.server import CHUNK_BYTES, Server, listen
from uxk_nvmet_tcp.target import Target, TargetConfig
from uxk_nvmet_tcp.tests.fake import FakeBackend
from uxk_nvmet_tcp.tests.host import (
    DISCOVERY,
    HOST,
    Controller,
    HostProtocol,
    connect_data,
    connect_entry,
    controller,
    entry,
)
from uxk_nvmet_tcp.tests.lab import MS, NQN, OTHER, fabrics

FOREVER_MS = 0xFFFFFFFF
CROWD = "127.0.0.66"
"""Another address of this machine."""
LOG_512K = entry(2, dw10=0x70 | 0x1FF << 16)
BIG = 512 << 10
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing resets."""


class SlowDevice(FakeBackend):
    """Answers I/O commands when told to; everything else at once."""

    def request(self, op: int, *args: Any, **options: Any) -> None:
        """See :class:`FakeBackend`."""
        self.at_once = op != NvmeOp.IO
        super().request(op, *args, **options)


class Quiet:
    """What the server needs of its context."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def kick(self) -> None:
        """There is no kernel."""

    def log(self, text: str, level: int = 6) -> None:
        """Keeps the line."""
        self.lines.append(text)

    async def sleep_ns(self, duration_ns: int, *, daemon: bool = False) -> None:
        """The test sweeps itself."""
        await trio.sleep_forever()


class Field:
    """A target behind a server, with a fake device."""

    def __init__(self, listener: socket.socket, connections: int, slice_bytes: int, config: dict[str, Any]) -> None:
        region = memoryview(bytearray(connections * slice_bytes))
        self.device = SlowDevice(region)
        self.pool = Pool(region, connections)
        self.now_ns = 0
        self.ctx = Quiet()
        self.target = Target(
            TargetConfig(NQN, **config), self.device, self.pool, lambda: self.now_ns, self.ctx.log, lambda: None
        )
        self.server = Server(cast(uxk.Context, self.ctx), listener, self.target, 2 * connections)
        host, port = listener.getsockname()
        self.address = (str(host), int(port))
        self.streams: list[trio.SocketStream] = []

    async def settle(self) -> None:
        """Until everybody waits for somebody else."""
        await trio.testing.wait_all_tasks_blocked(0.005)

    async def until(self, condition: Any) -> None:
        """Until something has come true."""
        while not condition():
            await self.settle()

    async def stream(self, source: str = CROWD) -> trio.SocketStream:
        """A connection from an address, of a host that reads only when it is told to."""
        sock = trio.socket.socket()
        await sock.bind((source, 0))
        await sock.connect(self.address)
        self.streams.append(trio.SocketStream(sock))
        return self.streams[-1]

    async def talk(
        self, nqn: str, qid: int = 0, *, kato_ms: int = FOREVER_MS, cntlid: int = 0xFFFF, enable: bool = True
    ) -> tuple[trio.SocketStream, HostProtocol]:
        """A connection of the crowd that has become a queue, enabled if it is an admin queue."""
        stream, protocol = await self.stream(), HostProtocol()
        last = protocol.command(connect_entry(qid, 31, kato_ms), connect_data(nqn, OTHER, cntlid))
        if enable and not qid:
            last = protocol.command(fabrics(0, dw11=0x14, dw12=0x460001))
        await stream.send_all(bytes(protocol.out))
        protocol.out.clear()
        while last not in protocol.replies:
            data = await stream.receive_some()
            if not data:
                raise ConnectionError("refused")
            protocol.receive(bytes(data))
        assert all(reply.status == 0 for reply in protocol.replies.values())
        return stream, protocol

    @property
    def unsent_bytes(self) -> int:
        """What waits for hosts to take it, of all connections."""
        pieces = (piece for session in self.target.sessions for piece in session.conn.out)
        return sum(map(len, pieces)) + sum(len(peer.pending) for peer in self.server._peers.values())

    @property
    def input_bytes(self) -> int:
        """The longest input that waits to be acted on."""
        return max((len(session.conn._rest) for session in self.target.sessions), default=0)


@asynccontextmanager
async def field(connections: int = 8, slice_bytes: int = 64 << 10, **config: Any) -> AsyncIterator[Field]:
    """A server that listens."""
    with trio.fail_after(60), await listen("127.0.0.1", 0) as listener:
        made = Field(listener, connections, slice_bytes, config)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.server.run, lambda: None)
            try:
                yield made
            finally:
                for stream in made.streams:
                    stream.socket.close()
                nursery.cancel_scope.cancel()


async def serves(here: Field) -> None:
    """A good host connects, writes, reads and leaves."""
    async with controller(here.address, NQN, host=HOST) as good:
        queue = good.queues[1]
        for sqe, data, size in ((entry(1, nsid=1), b"\7" * 512, 0), (entry(2, nsid=1), b"", 512)):
            cid = queue.protocol.command(sqe, data, size)
            await queue.push()
            await here.until(lambda: here.device.held)
            here.device.answer()
            here.server.on_answers()
            (reply,) = await queue.wait(cid)
            assert (reply.status, reply.data) == (0, b"\7" * size)
        await good.close()
    await here.settle()


# --- what they cost ---


@pytest.mark.parametrize("each", [31, 300])
async def test_logs_that_nobody_reads(each: int) -> None:
    async with field(slice_bytes=1 << 20) as here:
        crowd = [await here.talk(DISCOVERY) for _ in range(3)]
        tracemalloc.start()
        try:
            for stream, protocol in crowd:
                for _ in range(each):
                    protocol.command(bytearray(LOG_512K), read=BIG)
                await stream.send_all(bytes(protocol.out))
                await here.settle()
            await serves(here)
            assert tracemalloc.get_traced_memory()[1] < 2 << 20, "they have asked for much more"
        finally:
            tracemalloc.stop()
        assert here.target.bad_hosts == 0, "each was answered at once"
        assert here.unsent_bytes <= 3 * OUT_MAX * 28


@pytest.mark.parametrize("each", [31, 3000])
async def test_pages_that_nobody_reads(each: int) -> None:
    """Of the longest kind that there is, and in small socket buffers, so that they wait in the server."""
    async with field() as here:
        before = here.unsent_bytes
        for _ in range(3):
            stream, protocol = await here.talk(DISCOVERY)
            for number in range(each):
                protocol.command(entry(6, dw10=1) if number % 2 else bytearray(LOG_512K), read=8192 >> number % 2)
            for peer in here.server._peers.values():
                peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            await stream.send_all(bytes(protocol.out))
            await here.settle()
            assert here.unsent_bytes - before <= 3 * 2 * (here.pool.slice_bytes + 32 * OUT_MAX)
        assert here.target.bad_hosts == (0 if each < 32 else 3), "the queue has 32 entries"
        await serves(here)


async def test_answers_that_nobody_takes() -> None:
    async with field() as here:
        for _ in range(3):
            stream, protocol = await here.talk(DISCOVERY)
            for peer in here.server._peers.values():
                peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            for _ in range(20_000):
                protocol.command(entry(0x18))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_push, stream, bytes(protocol.out) * 10)
                await here.settle()
                assert here.unsent_bytes <= 3 * 2 * 28 * (OUT_MAX + 2)
                assert here.input_bytes <= CHUNK_BYTES + 8192, "it is not listened to any more"
                nursery.cancel_scope.cancel()
        await serves(here)


async def _push(stream: trio.SocketStream, data: bytes) -> None:
    sock = stream.socket
    while data:
        data = data[await sock.send(data) :]


async def test_who_reads_late_gets_everything() -> None:
    async with field() as here:
        stream, protocol = await here.talk(DISCOVERY)
        protocol.replies.clear()
        for peer in here.server._peers.values():
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for _ in range(10 * OUT_MAX):
            protocol.command(entry(0x18))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_push, stream, bytes(protocol.out))
            await here.settle()
            while len(protocol.replies) < 10 * OUT_MAX:
                protocol.receive(bytes(await stream.receive_some(5000)))
        assert {reply.status for reply in protocol.replies.values()} == {0}


async def test_resets_with_many_commands_under_way() -> None:
    async with field(connections=8, per_address=4) as here:
        refused = 0
        for _ in range(20):
            try:
                admin, protocol = await here.talk(NQN)
                (cntlid,) = {reply.result for reply in protocol.replies.values()} - {0}
                io, protocol = await here.talk(NQN, 1, cntlid=cntlid)
            except (ConnectionError, trio.BrokenResourceError):
                refused += 1
                continue
            for _ in range(31):
                protocol.command(entry(0, nsid=1))
            await io.send_all(bytes(protocol.out))
            await here.settle()
            for stream in (io, admin):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                await stream.aclose()
            await here.settle()
        assert refused and len(here.device.held) <= 4 * 31, "the device has not answered the first ones yet"
        flushes = len(here.device.held)
        async with controller(here.address, NQN) as good:
            reads = [good.queues[1].protocol.command(entry(2, nsid=1), read=512) for _ in range(4)]
            await good.queues[1].push()
            await here.until(lambda: len(here.device.held) == flushes + 4)
            here.device.answer()
            here.server.on_answers()
            assert {reply.status for reply in await good.queues[1].wait(*reads)} == {0}
        await here.until(lambda: here.pool.free == 7)
        assert here.pool.taken == {CROWD: 1}, "the admin queue of who found no place for another one"


# --- who takes the places ---


async def test_a_crowd_of_discoveries() -> None:
    async with field(connections=8) as here:
        for _ in range(20):
            await here.talk(DISCOVERY)
        assert len(here.target.sessions) == 8
        await serves(here)


@pytest.mark.parametrize("kato_ms", [0, FOREVER_MS])
@pytest.mark.parametrize("queues", [0, 1])
async def test_a_crowd_of_silent_controllers(kato_ms: int, queues: int) -> None:
    async with field(connections=8) as here:
        while len(here.target.sessions) < 8:
            _, protocol = await here.talk(NQN, kato_ms=kato_ms)
            if queues:
                (cntlid,) = {reply.result for reply in protocol.replies.values()} - {0}
                await here.talk(NQN, 1, kato_ms=kato_ms, cntlid=cntlid)
        with pytest.raises((ConnectionError, trio.BrokenResourceError)):
            await here.talk(NQN)
        here.now_ns += (120_000 if queues else 10_000) * MS
        here.target.sweep()
        assert len(here.target.sessions) == 8, "nobody needs their places"
        await serves(here)


async def test_a_crowd_that_keeps_alive() -> None:
    async with field(connections=8, per_address=6) as here:
        crowd = [await here.talk(NQN) for _ in range(6)]
        for _ in range(40):
            with pytest.raises((ConnectionError, trio.BrokenResourceError)):
                await here.talk(NQN)
        here.now_ns += 200_000 * MS
        for stream, protocol in crowd:
            protocol.command(entry(0x18))
            await stream.send_all(bytes(protocol.out))
        await here.until(lambda: all(each.heard_ns == here.now_ns for each in here.target.controllers.values()))
        await serves(here)
        assert len(here.target.controllers) == 6
        assert sum("127.0.0.66: refused, it has 6 connections, per_address=6" in line for line in here.ctx.lines) == 16
        here.now_ns += 5001 * MS
        here.target.sweep()
        assert here.ctx.lines[-1] == "24 more connections ended or were refused"


async def test_last_words_take_no_places() -> None:
    async with field(connections=2) as here:
        wrong = IC.pack(9, 0, 128, 0, 128, 0, 0, 0, 0)
        for _ in range(10):
            stream = await here.stream()
            await stream.send_all(wrong)
            assert (await stream.receive_some())[:1] == b"\3"
        await serves(here)


async def test_an_address_makes_room_for_itself() -> None:
    async with field(connections=8, per_address=3) as here:
        silent = [await here.stream("127.0.0.1") for _ in range(3)]
        await here.settle()
        await serves(here)
        assert len(silent) == 3 and len(here.target.sessions) < 3
        async with trio.open_nursery() as nursery:
            other = Controller(here.address, NQN, nursery, HOST, {})
            assert (await other.connect()).status == 0
            nursery.cancel_scope.cancel()
