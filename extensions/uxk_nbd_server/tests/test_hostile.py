"""Clients that do what they should not: none of it costs the others anything, or the server more than it grants."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from uxk_nbd_server.server import Server
from uxk_nbd_server.tests.client import Client, Gone, Served, go_data, served, until
from uxk_nbd_server.wire import OPTION, OPTION_MAGIC, REQUEST, REQUEST_MAGIC, Cmd, Err, Option

MIB = 1 << 20
KIB = 1 << 10


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def is_well(server: Served) -> None:
    """Somebody else is served as if nothing had happened."""
    async with server.client() as client:
        await client.go()
        data = os.urandom(4096)
        assert await client.write(32 * MIB, data) == 0
        assert await client.read(32 * MIB, 4096) == data


async def is_as_before(server: Served, files: int) -> None:
    """Nothing of a client is left."""
    await until(lambda: server.figure("clients") == 0)
    assert server.figure("memory_free") == 96 * MIB
    await until(lambda: open_files() <= files)
    assert not [line for line in server.messages() if "failed" in line]


@asynccontextmanager
async def watched(tmp_path: Path, **params: Any) -> AsyncIterator[Served]:
    """A server that must be as good as new when the test is over."""
    async with served(tmp_path, **params) as server:
        await is_well(server)
        await until(lambda: server.figure("clients") == 0)
        files = open_files()
        yield server
        await is_well(server)
        await is_as_before(server, files)


async def reset(client: Client) -> None:
    """Goes without taking what is there for it: the other end sees a reset."""
    client.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(client.stream)


async def test_garbage_instead_of_a_handshake(tmp_path: Path) -> None:
    noise = random.Random(4)
    async with watched(tmp_path) as server:
        for _ in range(60):
            async with server.client() as client:
                try:
                    await client.stream.send_all(noise.randbytes(noise.randrange(1, 3000)))
                    await client.stream.send_eof()
                except (trio.BrokenResourceError, OSError):
                    pass
                assert await client.is_hung_up()


async def test_garbage_after_the_handshake(tmp_path: Path) -> None:
    noise = random.Random(5)
    async with watched(tmp_path) as server:
        for _ in range(60):
            async with server.client() as client:
                await client.go()
                with suppress(trio.BrokenResourceError):
                    await client.stream.send_all(noise.randbytes(noise.randrange(28, 3000)))
                assert await client.is_hung_up()


async def test_half_of_everything(tmp_path: Path) -> None:
    """Cut at each byte of a session."""
    async with watched(tmp_path) as server:
        session = (
            b"\0\0\0\3" + OPTION.pack(OPTION_MAGIC, Option.GO, len(go_data(""))) + go_data("")
            + REQUEST.pack(REQUEST_MAGIC, 0, Cmd.WRITE, 1, 0, 512) + bytes(512)
        )  # fmt: skip
        for length in (*range(70), 200, len(session) - 1):
            async with server.client() as client:
                await client.stream.send_all(session[:length])
        assert server.account("nbd_ram").written_bytes == 4096


async def test_half_a_write_changes_nothing(tmp_path: Path) -> None:
    async with watched(tmp_path) as server:
        for length in (4096, 128 * KIB, 2 * MIB):
            async with server.client() as client:
                await client.go()
                header = REQUEST.pack(REQUEST_MAGIC, 0, Cmd.WRITE, 1, 0, length)
                await client.stream.send_all(header + b"x" * (length - 1))
        async with server.client() as client:
            await client.go()
            assert await client.read(0, 4 * MIB) == bytes(4 * MIB)


async def test_claimed_lengths(tmp_path: Path) -> None:
    async with watched(tmp_path) as server:
        before = resident_bytes()
        for option in (Option.GO, Option.EXPORT_NAME, Option.LIST, 77):
            async with server.client() as client:
                await client.greet()
                await client.stream.send_all(OPTION.pack(OPTION_MAGIC, option, (1 << 32) - 1) + bytes(50))
                assert await client.is_hung_up()
        for kind in range(10):
            async with server.client() as client:
                await client.go(structured=True)
                await client.stream.send_all(REQUEST.pack(REQUEST_MAGIC, 0, kind, 1, 0, (1 << 32) - 1))
                if kind in (Cmd.WRITE, Cmd.DISC):
                    assert await client.is_hung_up()
                elif kind != Cmd.FLUSH:
                    assert (await client.reply()).error
        assert resident_bytes() - before < 16 * MIB


async def test_offsets_that_wrap_around(tmp_path: Path) -> None:
    async with watched(tmp_path) as server, server.client() as client:
        await client.go()
        for kind in (Cmd.READ, Cmd.TRIM, Cmd.WRITE_ZEROES, Cmd.CACHE):
            for offset in ((1 << 64) - 512, (1 << 63) - 512, 1 << 63):
                assert (await client.ask(kind, offset, 1024)).error in (Err.INVAL, Err.NOSPC)
        assert await client.write((1 << 64) - 512, bytes(1024)) == Err.NOSPC


async def test_options_without_end(tmp_path: Path) -> None:
    async with watched(tmp_path) as server, server.client() as client:
        await client.greet()
        flood = OPTION.pack(OPTION_MAGIC, Option.LIST, 0) * 5000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_whatever, client, flood)
            assert await client.is_hung_up()


async def _send_whatever(client: Client, data: bytes) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await client.stream.send_all(data)


async def test_silence_in_the_handshake_is_ended(tmp_path: Path) -> None:
    async with watched(tmp_path, handshake_ns="50ms") as server, AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(server.client()) for _ in range(40)]
        await silent[7].greet()
        for client in silent:
            assert await client.is_hung_up()


async def test_idle_clients_may_stay(tmp_path: Path) -> None:
    async with watched(tmp_path, handshake_ns="1s") as server, server.client() as client:
        await client.go()
        await trio.sleep(1.1)
        assert await client.read(0, 512) == bytes(512)


async def test_forty_stalled_clients(tmp_path: Path) -> None:
    """Each in another place: silent, in the middle of a header, of an option, of a payload, not reading."""
    async with watched(tmp_path) as server, AsyncExitStack() as stack:
        for number in range(40):
            client = await stack.enter_async_context(server.client())
            if number % 5 == 1:
                await client.greet()
                await client.stream.send_all(OPTION.pack(OPTION_MAGIC, Option.GO, 50))
            elif number % 5 > 1:
                await client.go()
            if number % 5 == 2:
                await client.stream.send_all(REQUEST.pack(REQUEST_MAGIC, 0, Cmd.READ, 1, 0, 512)[:20])
            elif number % 5 == 3:
                await client.stream.send_all(client.packed(Cmd.WRITE, 0, 8 * MIB, bytes(100 * KIB)))
            elif number % 5 == 4:
                await client.stream.send_all(b"".join(client.packed(Cmd.READ, 0, 65536) for _ in range(30)))
        await until(lambda: server.figure("clients") == 40)
        await is_well(server)
        assert server.figure("memory_free") > 0


async def test_memory_that_is_held_without_need(tmp_path: Path) -> None:
    """Long requests wait for memory that stalled clients hold: these give way, those that only idle do not."""
    async with watched(tmp_path, stall_ns="100ms") as server, AsyncExitStack() as stack:
        idle = await stack.enter_async_context(server.client())
        await idle.go()
        stalled = []
        for _ in range(12):
            client = await stack.enter_async_context(server.client())
            await client.go()
            await client.stream.send_all(client.packed(Cmd.WRITE, 0, 32 * MIB, bytes(30 * KIB)))
            stalled.append(client)
        async with server.client() as other:
            await other.go()
            assert len(await other.read(0, 32 * MIB)) == 32 * MIB
            assert await other.write(0, bytes(32 * MIB)) == 0
        assert await idle.read(0, 512) == bytes(512)
        assert await stalled[0].is_hung_up()


async def test_three_thousand_reads_never_taken(tmp_path: Path) -> None:
    async with watched(tmp_path) as server:
        before = resident_bytes()
        async with server.client() as client:
            await client.go()
            flood = b"".join(client.packed(Cmd.READ, 0, MIB) for _ in range(3000))
            with trio.move_on_after(1):
                await client.stream.send_all(flood)
            await is_well(server)
            account = server.account("nbd_server")
            assert account.io_read_bytes <= 100 * MIB
            assert resident_bytes() - before < 160 * MIB
            await reset(client)


async def test_flood_of_refused_requests_without_reading(tmp_path: Path) -> None:
    """Refusals cost no memory of the pool: their replies are bounded all the same."""
    async with watched(tmp_path) as server:
        before = resident_bytes()
        async with server.client() as client:
            await client.go(structured=True)
            flood = REQUEST.pack(REQUEST_MAGIC, 0, 99, 1, 0, 0) * 10_000
            with trio.move_on_after(1):
                for _ in range(100):
                    await client.stream.send_all(flood)
            await is_well(server)
            assert resident_bytes() - before < 32 * MIB
            await reset(client)


async def test_resets_with_requests_in_flight(tmp_path: Path) -> None:
    async with watched(tmp_path) as server:
        server.kernel.sysfs.write("/sys/module/nbd_ram/parameters/latency_ns", "500us")
        for number in range(30):
            async with server.client() as client:
                await client.go(structured=bool(number % 2))
                await client.stream.send_all(
                    b"".join(client.packed(Cmd.READ, 4096 * at, 4096 << (number % 7)) for at in range(32))
                )
                if number % 3:
                    await client.exactly(10)
                await reset(client)
        await until(lambda: server.account("nbd_ram").inflight == 0)


async def test_connects_in_a_row(tmp_path: Path) -> None:
    async with watched(tmp_path) as server:
        for _ in range(350):
            async with server.client():
                pass


async def test_more_clients_than_allowed(tmp_path: Path) -> None:
    async with watched(tmp_path, connections=5) as server:
        async with AsyncExitStack() as stack:
            refused = 0
            for _ in range(9):
                client = await stack.enter_async_context(server.client())
                try:
                    await client.go()
                except (Gone, trio.BrokenResourceError):
                    refused += 1
            assert refused == 4
            await until(lambda: server.figure("refused") == 4)
        await until(lambda: server.figure("clients") == 0)


async def test_memory_for_few(tmp_path: Path) -> None:
    """With the smallest pool, clients beyond it are refused, and the longest request still goes through."""
    async with served(tmp_path, pool="36MiB") as server, AsyncExitStack() as stack:
        admitted = 0
        for _ in range(8):
            client = await stack.enter_async_context(server.client())
            try:
                await client.go()
                await client.read(0, 512)
                admitted += 1
                assert len(await client.read(0, 32 * MIB)) == 32 * MIB
            except (Gone, trio.BrokenResourceError):
                pass
        assert 3 <= admitted < 8


async def test_a_defect_stays_with_its_client(tmp_path: Path, monkeypatch: object) -> None:
    """Whatever a connection raises, alone or in a group, ends that connection only."""
    import pytest

    assert isinstance(monkeypatch, pytest.MonkeyPatch)
    transmit = Server._transmit

    async def broken(self: Server, *arguments: object) -> str:
        if self._accepted % 2:
            async with trio.open_nursery():
                raise ZeroDivisionError("a defect")
        return await transmit(self, *arguments)  # type: ignore[arg-type]

    async with served(tmp_path) as server:
        monkeypatch.setattr(Server, "_transmit", broken)
        for number in range(6):
            async with server.client() as client:
                await client.go()
                if number % 2:
                    assert await client.read(0, 512) == bytes(512)
                else:
                    assert await client.is_hung_up()
        assert any("a defect" in line for line in server.messages())


async def test_slow_drip(tmp_path: Path) -> None:
    """A byte at a time is served, and keeps nobody from anything."""
    async with watched(tmp_path) as server, server.client() as client:
        await client.go()
        for byte in client.packed(Cmd.WRITE, 0, 512, b"y" * 512):
            await client.stream.send_all(bytes([byte]))
        assert (await client.reply()).error == 0
        await is_well(server)
        assert await client.read(0, 512) == b"y" * 512
