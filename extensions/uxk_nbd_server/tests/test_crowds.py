"""Many clients that mean no good, at once, at a real server: what they get is bounded, and others are served."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import uxk
from uxk_nbd_server import driver, sockets
from uxk_nbd_server.disk import Disk
from uxk_nbd_server.outbox import BACKLOG_MAX_BYTES
from uxk_nbd_server.replies import EXTENTS_MAX
from uxk_nbd_server.server import Server
from uxk_nbd_server.starting import STATUSES_MAX
from uxk_nbd_server.telling import LINES_MAX
from uxk_nbd_server.tests.client import Client, Gone, Served, served, until
from uxk_nbd_server.tests.ramdisk import RamDisk
from uxk_nbd_server.wire import REQUEST, REQUEST_MAGIC, SIMPLE, Cmd, Option

MIB = 1 << 20
FLUSHES = b"".join(REQUEST.pack(REQUEST_MAGIC, 0, Cmd.FLUSH, cookie, 0, 0) for cookie in range(127))
UNKNOWN = REQUEST.pack(REQUEST_MAGIC, 0, 99, 1 << 40, 0, 0)


class Inside(Server):
    """Lets tests look."""

    found: Server

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        Inside.found = self


@asynccontextmanager
async def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **params: Any) -> AsyncIterator[tuple[Served, Server]]:
    """A server, from outside and from inside; all memory is there again in the end."""
    monkeypatch.setattr(driver, "Server", Inside)
    async with served(tmp_path, **params) as server:
        yield server, Inside.found
        server.set_disk("hold", "N")
        await until(lambda: not Inside.found._places.taken)
        pool = Inside.found._pool
        assert pool.free == pool.slots and pool.common == pool.stock and not pool.taken
        assert not [line for line in server.messages() if "failed" in line]


def disk_of(inside: Server) -> Disk:
    return inside.exports.disk(inside.exports.first)


def queued(disk: Disk) -> int:
    return sum(map(len, disk._jobs.values()))


async def peeked(client: Client) -> None:
    """Until there is something to read, which stays unread: going now is a reset."""
    await trio.lowlevel.wait_readable(client.stream.socket)


def connects(path: Path, count: int) -> list[socket.socket]:
    """So many clients at once, before the server gets to see the first of them."""
    found = []
    for _ in range(count):
        found.append(socket.socket(socket.AF_UNIX))
        found[-1].connect(str(path))
    return found


# --- requests of clients that are gone -----------------------------------------------------------------------


async def flood_and_go(server: Served) -> bool:
    """As many FLUSHes as may be under way, all of them begun, and away; False if there is no place."""
    async with server.client() as client:
        try:
            await client.go()
        except (Gone, trio.BrokenResourceError):
            return False
        await client.stream.send_all(FLUSHES + UNKNOWN)
        await peeked(client)
        return True


async def test_resets_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow device and clients that come, ask, and go: no more is ever under way than of those who are there."""
    async with seen(tmp_path, monkeypatch, connections=6) as (server, inside), server.client() as victim:
        await victim.go()
        server.set_disk("hold", "Y")
        before = server.account("nbd_ram").requests
        for _ in range(40):
            await flood_and_go(server)
            assert queued(disk_of(inside)) <= 6 * 128
            assert inside._places.taken <= 6
            assert await victim.read(0, 4096) == bytes(4096)
        await until(lambda: inside._places.taken == 3)  # the victim, and two whose requests the device has
        assert not queued(disk_of(inside))
        cookie = await victim.send(Cmd.FLUSH)
        server.set_disk("hold", "N")
        answer = await victim.reply()
        assert (answer.cookie, answer.error) == (cookie, 0)
        assert server.account("nbd_ram").requests - before < 40 + 256 + 2, "what nobody waits for is not done"


async def test_one_that_says_no_more_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may still listen: its requests are done, and until then nobody has its place."""
    async with seen(tmp_path, monkeypatch, connections=6) as (server, inside), AsyncExitStack() as stack:
        server.set_disk("hold", "Y")
        half = []
        for _ in range(6):
            client = await stack.enter_async_context(server.client())
            await client.go()
            await client.stream.send_all(FLUSHES + UNKNOWN)
            await peeked(client)
            await client.stream.send_eof()
            half.append(client)
        async with server.client() as late:
            assert await late.is_hung_up()
        assert sum(each._busy for each in inside._connections) == 6 * 127
        server.set_disk("hold", "N")
        for client in half:
            replies = [SIMPLE.unpack(await client.exactly(SIMPLE.size)) for _ in range(128)]
            assert sorted(cookie for _, _, cookie in replies) == [*range(127), 1 << 40]
            assert await client.is_hung_up()


async def test_jobs_of_clients_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One FLUSH is not behind all of those that others have asked for."""
    async with seen(tmp_path, monkeypatch, depth=8) as (server, inside), AsyncExitStack() as stack:
        server.set_disk("hold", "Y")
        for _ in range(3):
            client = await stack.enter_async_context(server.client())
            await client.go()
            await client.stream.send_all(FLUSHES + UNKNOWN)
            await peeked(client)
        victim = await stack.enter_async_context(server.client())
        await victim.go()
        await victim.stream.send_all(victim.packed(Cmd.FLUSH) + UNKNOWN)
        await peeked(victim)
        disk = disk_of(inside)
        order: list[object] = []
        put = disk.put

        def noted(entry: Any) -> bool:
            order.append(entry[0].connection)
            return put(entry)

        monkeypatch.setattr(disk, "put", noted)
        server.set_disk("hold", "N")
        await until(lambda: not queued(disk) and not disk.job_inflight)
        (mine,) = {each for each in order if order.count(each) == 1}
        assert order.index(mine) < 4


# --- floods of connects -------------------------------------------------------------------------------------


async def test_connects_get_their_turn_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with seen(tmp_path, monkeypatch) as (server, inside), server.client() as victim:
        await victim.go()
        await victim.read(0, 512)
        before = inside._accepted
        crowd = connects(server.path, 100)
        assert await victim.read(0, 512) == bytes(512)
        assert inside._accepted - before < 20, "a request waits for a few connects, not for all of them"
        await until(lambda: inside._accepted - before == 100)
        assert inside._places.taken <= 64
        for each in crowd:
            each.close()


async def test_a_flood_is_not_in_everybody_elses_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with seen(tmp_path, monkeypatch, connections=1) as (server, inside), server.client() as victim:
        await victim.go()
        for each in connects(server.path, 100):
            each.close()
        await until(lambda: inside._refused == 100)
        server.kernel.sysfs.write("/sys/module/nbd_server/attributes/link", "sideways")
        await until(lambda: any("sideways" in line for line in server.messages()))
        assert sum("refused" in line for line in server.messages()) <= LINES_MAX
        await until(lambda: server.figure("refused") == 100)


# --- crowds that do nothing ---------------------------------------------------------------------------------


async def test_silence_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No number of clients that say nothing keeps out one who says what he wants."""
    async with seen(tmp_path, monkeypatch, connections=8) as (server, inside), server.client() as first:
        await first.go()
        crowd = connects(server.path, 60)
        await until(lambda: inside._accepted == 61)
        assert inside._places.taken == 8
        async with server.client() as second:
            await second.go()
            assert await second.read(0, 512) == bytes(512)
        assert await first.read(0, 512) == bytes(512)
        for each in crowd:
            each.close()


async def test_one_address_cannot_have_all_places() -> None:
    async with uxk.Kernel(clock="real") as kernel:
        await kernel.insmod(RamDisk)
        await kernel.insmod(driver.NbdServer, device="nbd_ram0", tcp="127.0.0.1:0", connections=8)
        uri = kernel.sysfs.read("/sys/module/nbd_server/attributes/uri")
        port = int(uri.rsplit(":", 1)[1].split("/")[0])
        with trio.fail_after(60):
            async with AsyncExitStack() as stack:
                for number in range(9):
                    stream = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
                    if number < 6:
                        await Client(stream).go()
                    else:
                        assert await Client(stream).is_hung_up()
                elsewhere = await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.2")
                other = Client(await stack.enter_async_context(elsewhere))
                await other.go()
                assert await other.read(0, 512) == bytes(512)


# --- those who hold memory ----------------------------------------------------------------------------------


async def drip(client: Client) -> None:
    """A byte now and then: it moves, and gets nowhere."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while True:
            await client.stream.send_all(b"x")
            await trio.sleep(0.002)


async def test_drip_feeders_do_not_keep_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        seen(tmp_path, monkeypatch, stall_ns="60ms", connections=16) as (server, inside),
        AsyncExitStack() as stack, trio.open_nursery() as nursery,
    ):  # fmt: skip
        for length in (32, 32, 32, 32, 28, 28, 2, 1, 1):
            client = await stack.enter_async_context(server.client())
            await client.go()
            await client.stream.send_all(client.packed(Cmd.WRITE, 0, length * MIB, bytes(100)))
            nursery.start_soon(drip, client)
        await until(lambda: inside._pool.waiting)
        async with server.client() as victim:
            await victim.go()
            assert await victim.read(0, 512) == bytes(512)
            assert len(await victim.read(0, 8 * MIB)) == 8 * MIB
        assert any("did not get on" in line for line in server.messages())
        nursery.cancel_scope.cancel()


async def test_those_who_get_on_keep_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait for them, but they are done in time."""
    async with seen(tmp_path, monkeypatch, stall_ns="10s", pool="40MiB", connections=4) as (server, inside):

        async def write() -> None:
            async with server.client() as client:
                await client.go()
                assert await client.write(0, bytes(32 * MIB)) == 0

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(write)
        assert not [line for line in server.messages() if "get on" in line]
        assert inside._pool.stock < 2 * 128


async def test_a_new_client_always_has_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever others hold: what it needs to begin with is set aside."""
    async with seen(tmp_path, monkeypatch, connections=12) as (server, inside), AsyncExitStack() as stack:
        for _ in range(11):
            client = await stack.enter_async_context(server.client())
            await client.go()
            await client.stream.send_all(client.packed(Cmd.WRITE, 0, 32 * MIB, bytes(30 << 10)))
        await until(lambda: inside._pool.waiting)
        async with server.client() as late:
            await late.go()
            assert await late.write(0, bytes(65536)) == 0
            assert await late.read(0, 512) == bytes(512)
            assert len(await late.read(0, 512 << 10)) == 512 << 10


async def test_maps_that_nobody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers to BLOCK_STATUS are long, and in no pool."""
    monkeypatch.setattr(sockets, "_SEND_BUFFER_BYTES", 4096)
    async with seen(tmp_path, monkeypatch) as (server, inside), server.client() as client:
        await client.go(allocation=True)
        for start in range(0, 8 * MIB, MIB):
            await client.stream.send_all(
                b"".join(client.packed(Cmd.WRITE, start + at, 512, b"x" * 512) for at in range(0, MIB, 8192))
            )
            assert not any([(await client.reply()).error for _ in range(128)])
        longest = (await client.ask(Cmd.BLOCK_STATUS, 0, 64 * MIB)).extents
        assert 900 < len(longest) <= EXTENTS_MAX
        (connection,) = inside._connections
        outbox = connection._outbox
        most = BACKLOG_MAX_BYTES + (STATUSES_MAX + 1) * (24 + 8 * EXTENTS_MAX)
        async with trio.open_nursery() as nursery:
            flood = b"".join(client.packed(Cmd.BLOCK_STATUS, 0, 64 * MIB) for _ in range(300))
            nursery.start_soon(client.stream.send_all, flood)
            await until(lambda: outbox.reply_bytes >= BACKLOG_MAX_BYTES)
            async with server.client() as other:
                await other.go()
                for _ in range(20):
                    assert await other.read(0, 512) == b"x" * 512
                    assert connection._statuses <= STATUSES_MAX
                    assert outbox.reply_bytes + outbox.size_bytes <= most
            for _ in range(300):
                assert (await client.reply()).extents == longest


# --- the link -----------------------------------------------------------------------------------------------


async def test_link_down_and_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with seen(tmp_path, monkeypatch) as (server, inside), AsyncExitStack() as stack:
        link = "/sys/module/nbd_server/attributes/link"
        assert server.kernel.sysfs.read(link) == "up"
        busy, silent = [await stack.enter_async_context(server.client()) for _ in range(2)]
        await busy.go()
        await silent.greet()
        server.set_disk("hold", "Y")
        await busy.stream.send_all(FLUSHES + UNKNOWN)
        await peeked(busy)
        server.kernel.sysfs.write(link, "sideways")
        server.kernel.sysfs.write(link, "down")
        assert await busy.is_hung_up() and await silent.is_hung_up()
        assert server.kernel.sysfs.read(link) == "down"
        async with server.client() as late:
            assert await late.is_hung_up()
        server.kernel.sysfs.write(link, "up")
        await until(lambda: inside.link)
        async with server.client() as again:
            await again.go()
            assert await again.read(0, 512) == bytes(512)
        lines = server.messages()
        assert "link: 'sideways', expected up or down" in lines and "link down" in lines and "link up" in lines
        assert server.kernel.sysfs.read(link) == "up"


async def test_options_with_long_answers_wait_for_their_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with seen(tmp_path, monkeypatch, description="d" * 1024) as (server, inside), server.client() as client:
        await client.greet()
        for _ in range(900):
            await client.stream.send_all(b"IHAVEOPT\0\0\0\3\0\0\0\0")
        async with server.client() as other:
            await other.go()
            assert await other.read(0, 512) == bytes(512)
        for _ in range(900):
            assert len(await client.option_replies(Option.LIST)) == 2
        assert inside._places.taken >= 1
