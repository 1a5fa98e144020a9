"""The server on a kernel, spoken to by hand."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest
import trio

import uxk
from uxk.testing import boot, crash, residue, usage
from uxk_nbd_server.driver import NbdServer
from uxk_nbd_server.tests.client import Client, go_data, served, until
from uxk_nbd_server.tests.ramdisk import RamDisk
from uxk_nbd_server.wire import Cmd, CmdFlag, Err, Option, Rep, Tx

MIB = 1 << 20


async def test_read_what_was_written(tmp_path: Path) -> None:
    async with served(tmp_path) as server, server.client() as client:
        await client.go()
        assert client.size_bytes == 64 * MIB
        assert client.sizes == (512, 4096, 32 * MIB)
        assert client.flags == (
            Tx.HAS_FLAGS | Tx.SEND_FLUSH | Tx.SEND_FUA | Tx.SEND_TRIM | Tx.SEND_WRITE_ZEROES | Tx.CAN_MULTI_CONN
            | Tx.SEND_CACHE | Tx.SEND_FAST_ZERO
        )  # fmt: skip
        data = os.urandom(8192)
        assert await client.write(4096, data) == 0
        assert await client.read(0, 16384) == bytes(4096) + data + bytes(4096)
        assert (await client.ask(Cmd.FLUSH)).error == 0
        assert (await client.ask(Cmd.CACHE, 0, 4096)).error == 0


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("inline", [False, True])
async def test_every_length(tmp_path: Path, structured: bool, inline: bool) -> None:
    """Shorter and longer than a slot, than the device's requests, than what is used in place."""
    async with served(tmp_path, {"transfer": "100KiB", "inline": inline}) as server, server.client() as client:
        await client.go(structured=structured)
        at = 0
        for length in (512, 4096, 65536, 66048, 100 << 10, 128 << 10, 262144, 262656, 3 * MIB + 512, 32 * MIB):
            data = os.urandom(length)
            assert await client.write(at, data) == 0
            assert await client.read(at, length) == data
            at = (at + 512) % 4096
        await client.send(Cmd.DISC)
        assert await client.is_hung_up()
        await until(lambda: server.figure("clients") == 0)
        assert server.figure("memory_free") == 96 * MIB


async def test_many_at_once_are_one_batch(tmp_path: Path) -> None:
    async with served(tmp_path) as server, server.client() as client:
        await client.go()
        blocks = [os.urandom(512) for _ in range(300)]
        writes = b"".join(client.packed(Cmd.WRITE, 512 * at, 512, block) for at, block in enumerate(blocks))
        await client.stream.send_all(writes)
        assert sorted([(await client.reply()).cookie for _ in blocks]) == list(range(1, 301))
        await client.stream.send_all(b"".join(client.packed(Cmd.READ, 512 * at, 512) for at in range(300)))
        found = {answer.cookie - 301: answer.data for answer in [await client.reply() for _ in blocks]}
        assert [found[at] for at in range(300)] == blocks
        account = server.account("nbd_ram")
        assert account.requests == 600
        assert account.batches_in < 300


async def test_slow_device(tmp_path: Path) -> None:
    """Answers come later, on their own: from a turn of the kernel's."""
    async with served(tmp_path, {"latency_ns": "3ms"}) as server, server.client() as client:
        await client.go()
        for attempt in range(3):
            blocks = [os.urandom(4096) for _ in range(200)]
            sent = b"".join(client.packed(Cmd.WRITE, 4096 * at, 4096, block) for at, block in enumerate(blocks))
            await client.stream.send_all(sent)
            assert not any([(await client.reply()).error for _ in blocks])
            assert await client.read(0, 4096 * 200) == b"".join(blocks), attempt


async def test_account_is_exact(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        async with server.client() as first, server.client() as second:
            await first.go()
            await second.go(structured=True)
            for client in (first, second):
                assert await client.write(0, bytes(12288)) == 0
                assert len(await client.read(512, 1024)) == 1024
                assert len(await client.read(0, 2 * MIB)) == 2 * MIB
                assert (await client.ask(Cmd.READ, 1, 512)).error == Err.INVAL
                assert (await client.ask(Cmd.TRIM, 0, 4096)).error == 0
        await until(lambda: server.figure("clients") == 0)
        driver, export = server.account("nbd_ram"), server.account("nbd_server")
        assert driver.read_bytes == export.io_read_bytes == 2 * (1024 + 2 * MIB)
        assert driver.written_bytes == export.io_written_bytes == 2 * 12288
        assert driver.requests == driver.completed == export.submitted == 2 * (1 + 1 + 16 + 1)
        assert server.figure("requests") == 10


async def test_errors(tmp_path: Path) -> None:
    async with served(tmp_path) as server, server.client() as client:
        await client.go(structured=True)
        end = client.size_bytes
        assert (await client.ask(Cmd.READ, end, 512)).error == Err.INVAL
        assert (await client.ask(Cmd.READ, 0, 32 * MIB + 512)).error == Err.OVERFLOW
        assert (await client.ask(Cmd.READ, 1, 512)).error == Err.INVAL
        assert (await client.ask(Cmd.READ, (1 << 64) - 512, 1024)).error == Err.INVAL
        assert await client.write(end - 512, bytes(1024)) == Err.NOSPC
        assert await client.write(7, bytes(512)) == Err.INVAL
        assert (await client.ask(Cmd.TRIM, end, 512)).error == Err.INVAL
        assert (await client.ask(99)).error == Err.INVAL
        assert (await client.ask(Cmd.FLUSH, flags=1 << 12)).error == Err.INVAL
        assert (await client.ask(Cmd.BLOCK_STATUS, 0, 512)).error == Err.INVAL
        assert await client.read(end - 512, 512) == bytes(512)
        for zero in (Cmd.READ, Cmd.WRITE, Cmd.TRIM, Cmd.WRITE_ZEROES, Cmd.CACHE):
            assert (await client.ask(zero)).error == 0


async def test_what_the_device_says(tmp_path: Path) -> None:
    async with served(tmp_path) as server, server.client() as client:
        await client.go()
        for status, error in (
            (errno.EIO, 5), (errno.ENODATA, 5), (errno.ENOSPC, 28), (errno.EROFS, 1), (errno.EINVAL, 22),
            (errno.EOPNOTSUPP, 95), (errno.ENODEV, 108),
        ):  # fmt: skip
            server.kernel.sysfs.write("/sys/module/nbd_ram/parameters/fail", str(status))
            for answer in (
                await client.ask(Cmd.READ, 0, 512), await client.ask(Cmd.READ, 0, MIB), await client.ask(Cmd.FLUSH),
                await client.ask(Cmd.WRITE, 0, 512, bytes(512)), await client.ask(Cmd.WRITE, 0, MIB, bytes(MIB)),
                await client.ask(Cmd.WRITE_ZEROES, 0, MIB),
            ):  # fmt: skip
                assert answer.error == error
        server.kernel.sysfs.write("/sys/module/nbd_ram/parameters/fail", "0")
        assert await client.read(0, 512) == bytes(512)


async def test_extents(tmp_path: Path) -> None:
    async with served(tmp_path) as server, server.client() as client:
        await client.go(allocation=True)
        assert (await client.ask(Cmd.BLOCK_STATUS, 0, MIB)).extents == ((MIB, 3),)
        await client.write(4096, bytes(4096))
        await client.write(8192, bytes(512))
        assert (await client.ask(Cmd.BLOCK_STATUS, 0, MIB)).extents == ((4096, 3), (4608, 0), (MIB - 8704, 3))
        one = await client.ask(Cmd.BLOCK_STATUS, 4096, MIB, flags=CmdFlag.REQ_ONE)
        assert one.extents == ((4608, 0),)
        assert (await client.ask(Cmd.BLOCK_STATUS, 0, 0)).error == Err.INVAL
        assert await client.read(0, 65536, flags=CmdFlag.DF) == bytes(65536)


async def test_zeroes_and_trim(tmp_path: Path) -> None:
    async with served(tmp_path, {"span": "8MiB", "record": True}) as server, server.client() as client:
        await client.go(allocation=True)
        await client.write(0, b"x" * MIB)
        assert (await client.ask(Cmd.WRITE_ZEROES, 4096, 4096, flags=CmdFlag.NO_HOLE)).error == 0
        assert (await client.ask(Cmd.WRITE_ZEROES, 65536, 4096, flags=CmdFlag.FAST_ZERO)).error == 0
        assert (await client.ask(Cmd.TRIM, 131072, 4096)).error == 0
        assert [line.split(":")[0] for line in server.log()[-3:]] == ["5", "5", "4"]
        assert server.log()[-3].endswith(":4") and server.log()[-2].endswith(":0")
        extents = (await client.ask(Cmd.BLOCK_STATUS, 0, MIB)).extents
        assert extents == ((65536, 0), (4096, 3), (61440, 0), (4096, 3), (MIB - 135168, 0))
        assert await client.read(0, 12288) == b"x" * 4096 + bytes(4096) + b"x" * 4096
        assert (await client.ask(Cmd.WRITE_ZEROES, 0, 64 * MIB)).error == 0
        assert [line.split(":")[2] for line in server.log()[-8:]] == [str(8 * MIB)] * 8
        assert (await client.ask(Cmd.BLOCK_STATUS, 0, 64 * MIB)).extents == ((64 * MIB, 3),)


async def test_device_that_knows_no_zeroes(tmp_path: Path) -> None:
    async with served(tmp_path, {"span": 0, "record": True}) as server, server.client() as client:
        await client.go()
        assert not client.flags & (Tx.SEND_TRIM | Tx.SEND_FAST_ZERO)
        await client.write(0, b"x" * MIB)
        assert (await client.ask(Cmd.WRITE_ZEROES, 512, MIB - 1024)).error == 0
        assert await client.read(0, MIB) == b"x" * 512 + bytes(MIB - 1024) + b"x" * 512
        assert (await client.ask(Cmd.WRITE_ZEROES, 0, 512, flags=CmdFlag.FAST_ZERO)).error == Err.NOTSUP
        assert {line.split(":")[0] for line in server.log()} == {"1", "2"}


@pytest.mark.parametrize(("cache", "fua"), [(False, False), (True, False), (True, True)])
async def test_fua(tmp_path: Path, cache: bool, fua: bool) -> None:
    """Passed on if the device knows it; else a FLUSH follows, if there is a cache."""
    disk: dict[str, object] = {"write_cache": cache, "fua": fua, "record": True}
    async with served(tmp_path, disk) as server, server.client() as client:
        await client.go()
        assert await client.write(0, bytes(512), CmdFlag.FUA) == 0
        assert await client.write(0, bytes(MIB), CmdFlag.FUA) == 0
        assert (await client.ask(Cmd.WRITE_ZEROES, 0, 512, flags=CmdFlag.FUA)).error == 0
        assert (await client.ask(Cmd.TRIM, 0, 512, flags=CmdFlag.FUA)).error == 0
        assert len(await client.read(0, 512, CmdFlag.FUA)) == 512
        log = [tuple(map(int, line.split(":"))) for line in server.log()]
        assert sum(opcode == uxk.Op.FLUSH for opcode, *_ in log) == (4 if cache and not fua else 0)
        assert {flags for opcode, _, _, flags in log if opcode == uxk.Op.WRITE} == {int(fua)}


async def test_read_only(tmp_path: Path) -> None:
    async with served(tmp_path, read_only=True, multi_conn=False) as server, server.client() as client:
        await client.go()
        assert client.flags == Tx.HAS_FLAGS | Tx.READ_ONLY | Tx.SEND_FLUSH | Tx.SEND_FUA | Tx.SEND_CACHE
        assert await client.write(0, bytes(512)) == Err.PERM
        assert (await client.ask(Cmd.TRIM, 0, 512)).error == Err.PERM
        assert await client.read(0, 512) == bytes(512)


async def test_device_that_is_full_is_asked_again(tmp_path: Path) -> None:
    """EAGAIN is between server and device: the client waits."""
    slow = {"latency_ns": "1ms"}
    async with served(tmp_path, slow, requests=1024, depth=1024) as server, server.client() as client:
        await client.go()
        await client.stream.send_all(b"".join(client.packed(Cmd.READ, 512 * at, 512) for at in range(1000)))
        assert not any([(await client.reply()).error for _ in range(1000)])


async def test_several_exports(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    async with uxk.Kernel(clock="real") as kernel:
        await kernel.insmod(RamDisk)
        await kernel.insmod(RamDisk, instance="more", size="1MiB")
        await kernel.insmod(NbdServer, device="nbd_ram0,more", export="a,b", description="two of them", unix=str(path))
        with trio.fail_after(60):
            for name, size in (("", 64 * MIB), ("a", 64 * MIB), ("b", MIB)):
                async with await trio.open_unix_socket(str(path)) as stream:
                    client = Client(stream)
                    await client.go(name)
                    assert client.size_bytes == size
            async with await trio.open_unix_socket(str(path)) as stream:
                client = Client(stream)
                await client.greet()
                assert [kind for kind, _ in await client.option(Option.LIST)] == [Rep.SERVER, Rep.SERVER, Rep.ACK]
                assert (await client.option(Option.GO, go_data("nbd_ram0")))[0][0] == Rep.ERR_UNKNOWN


async def test_old_handshake(tmp_path: Path) -> None:
    async with served(tmp_path) as server, server.client() as client:
        await client.greet(1)
        await client.stream.send_all(b"IHAVEOPT\0\0\0\1\0\0\0\0")
        assert int.from_bytes((await client.exactly(134))[:8], "big") == 64 * MIB
        assert await client.read(0, 512) == bytes(512)


async def test_resize_closes_connections(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        async with server.client() as client:
            await client.go()
            assert await client.read(0, 512) == bytes(512)
            await server.kernel.run_until_ns(server.kernel.now_ns)
            server.kernel.devices.add(
                server.kernel.agents["nbd_ram"], "nbd_ram0",
                dict(server.kernel.devices.get("nbd_ram0").properties) | {"capacity_bytes": str(MIB)},
            )  # fmt: skip
            assert await client.is_hung_up()
        async with server.client() as client:
            await client.go()
            assert client.size_bytes == MIB


async def test_device_that_goes(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        async with server.client() as client:
            await client.go()
            assert await client.read(0, 512) == bytes(512)
            server.kernel.devices.remove(server.kernel.devices.get("nbd_ram0"))
            assert await client.is_hung_up(), "without having to ask"
        async with server.client() as client:
            await client.greet()
            assert (await client.option(Option.GO, go_data("")))[-1][0] == Rep.ERR_UNKNOWN


async def test_driver_that_crashes_comes_back(tmp_path: Path) -> None:
    async with served(tmp_path) as server, server.client() as client:
        await client.go()
        assert await client.write(0, bytes(512)) == 0
        crash(server.kernel, "nbd_ram")
        while (answer := await client.ask(Cmd.READ, 0, 4096)).error:
            assert answer.error in (Err.SHUTDOWN, Err.IO)
        assert answer.data == bytes(4096)
        assert len(await client.read(0, MIB)) == MIB


# --- loading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"unix": ""}, "expected one of them"),
        ({"tcp": "127.0.0.1:0"}, "expected one of them"),
        ({"unix": "", "tcp": "nowhere"}, "expected HOST:PORT"),
        ({"unix": "", "tcp": "127.0.0.1:99999"}, "expected HOST:PORT, with a port from 0 to 65535"),
        ({"unix": "", "tcp": "x" * 70 + ":1"}, "is no host name"),
        ({"unix": "/nonexistent/x"}, "cannot listen there"),
        ({"unix": "/tmp/" + "x" * 103}, "107"),
        ({"device": ","}, "expected 1 to"),
        ({"device": "nbd_ram0,nbd_ram0"}, "a different name for each"),
        ({"device": "nothing0"}, "nothing0"),
        ({"tls": "require"}, "tls=require: needs tls_cert"),
        ({"tls_ca": "/x/ca"}, "tls_ca=/x/ca: needs tls_cert"),
        ({"tls_key": "/x/key", "tls": "allow"}, "tls=allow tls_key=/x/key: needs tls_cert"),
        ({"tls_cert": "/x/cert"}, "tls_cert=/x/cert tls=off: expected tls=require"),
        ({"tls": "allow", "tls_cert": "/nonexistent/cert"}, "tls_cert=/nonexistent/cert"),
    ],
)
async def test_parameters_that_cannot_be(tmp_path: Path, params: dict[str, str], message: str) -> None:
    async with uxk.Kernel(clock="real") as kernel:
        await kernel.insmod(RamDisk)
        await kernel.run()
        before = usage(kernel)
        given = {"device": "nbd_ram0", "unix": str(tmp_path / "s")} | params
        with pytest.raises(uxk.UxkError, match=message):
            await kernel.insmod(NbdServer, **given)
        assert not residue(kernel, before)


async def test_errors_keep_their_number(tmp_path: Path) -> None:
    """Whoever loads it may want to try another port, or wait."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        there = f"127.0.0.1:{taken.getsockname()[1]}"
        for params, number in (
            ({"tcp": there}, errno.EADDRINUSE), ({"unix": "/nonexistent/x"}, errno.ENOENT),
            ({"unix": str(tmp_path / "s"), "tls": "allow", "tls_cert": "/nonexistent/cert"}, errno.ENOENT),
            ({"tcp": "x" * 70 + ":1"}, errno.EADDRNOTAVAIL),
        ):  # fmt: skip
            async with uxk.Kernel(clock="real") as kernel:
                await kernel.insmod(RamDisk)
                with pytest.raises(uxk.UxkError) as caught:
                    await kernel.insmod(NbdServer, device="nbd_ram0", **params)
                assert caught.value.errno == number


async def test_without_a_device_nothing_is_exported() -> None:
    async with boot() as kernel:
        await kernel.insmod(NbdServer)
        await kernel.run()
        texts = [record.text for record in kernel.kmsg.records(source="nbd_server")]
        assert "nothing is exported: no device is named" in texts


async def test_socket_file(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    async with served(tmp_path) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(uxk.UxkError, match="listens there already"):
            await server.kernel.insmod(NbdServer, instance="second", device="nbd_ram0", unix=str(path))
        await server.kernel.rmmod("nbd_server")
        await until(lambda: not path.exists())
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with served(tmp_path) as server, server.client() as client:
        await client.go()
    path.write_text("a file")
    with pytest.raises(uxk.UxkError, match="no socket"):
        async with served(tmp_path):
            pass
    assert path.read_text() == "a file"


async def test_tcp(tmp_path: Path) -> None:
    async with uxk.Kernel(clock="real") as kernel:
        await kernel.insmod(RamDisk)
        await kernel.insmod(NbdServer, device="nbd_ram0", tcp="127.0.0.1:0", export="disk one")
        uri = kernel.sysfs.read("/sys/module/nbd_server/attributes/uri")
        assert uri.endswith("/disk%20one")
        port = int(uri.rsplit(":", 1)[1].split("/")[0])
        with trio.fail_after(60):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                client = Client(stream)
                await client.go("disk one")
                assert await client.write(0, b"x" * 512) == 0
                assert await client.read(0, 512) == b"x" * 512


async def test_unloading_ends_clients(tmp_path: Path) -> None:
    async with served(tmp_path) as server, server.client() as client:
        await client.go()
        await client.send(Cmd.READ, 0, 512)
        await server.kernel.rmmod("nbd_server")
        assert await client.is_hung_up()
        await server.kernel.rmmod("nbd_ram")
        assert not residue(server.kernel)
