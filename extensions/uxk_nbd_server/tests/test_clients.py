"""Clients that others wrote: Debian's libnbd-bin, python3-libnbd, qemu-utils and fio."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

import uxk
from uxk_nbd_server.driver import NbdServer
from uxk_nbd_server.tests.client import Client, served, text, until
from uxk_nbd_server.tests.ramdisk import RamDisk
from uxk_nbd_server.wire import OPTION_REPLY, OPTION_REPLY_MAGIC, Cmd, Option, Rep

MIB = 1 << 20


def needs(program: str) -> pytest.MarkDecorator:
    """Skips a test where a client is missing."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


async def run(*words: str | Path, check: bool = True, env: dict[str, str] | None = None) -> str:
    """What a client prints on both streams, while the kernel of this process serves it."""
    done = await trio.run_process(
        [str(word) for word in words], capture_stdout=True, stderr=subprocess.STDOUT, check=False,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    output = done.stdout.decode()
    assert done.returncode == 0 or not check, output
    return output


def image(path: Path, size: int, *, until_byte: int) -> bytes:
    """A sparse file: noise with a hole in the middle, then nothing."""
    data = bytearray(size)
    data[:until_byte] = os.urandom(until_byte)
    data[until_byte // 4 : until_byte // 2] = bytes(until_byte // 4)
    path.write_bytes(data)
    return bytes(data)


@needs("nbdinfo")
async def test_nbdinfo(tmp_path: Path) -> None:
    async with served(tmp_path, export="disk", description="a disk of tests") as server:
        found = json.loads(await run("nbdinfo", "--json", server.uri))
        assert (found["protocol"], found["TLS"], found["structured"]) == ("newstyle-fixed", False, True)
        (export,) = found["exports"]
        assert export["export-name"] == "disk" and export["export-size"] == 64 * MIB
        assert export["description"] == "a disk of tests"
        assert export["contexts"] == ["base:allocation"]
        flags = ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero")
        assert all(export[f"can_{flag}"] for flag in flags)
        assert [export[f"block_size_{which}"] for which in ("minimum", "preferred", "maximum")] == [512, 4096, 32 * MIB]
        listed = json.loads(await run("nbdinfo", "--list", "--json", server.uri))
        assert [each["export-name"] for each in listed["exports"]] == ["disk"]
        assert (await run("nbdinfo", "--size", server.uri)).strip() == str(64 * MIB)


@needs("nbdcopy")
@needs("nbdinfo")
@pytest.mark.parametrize("options", [(), ("--connections=4", "--requests=64"), ("--synchronous",)])
async def test_nbdcopy_up_and_down(tmp_path: Path, options: tuple[str, ...]) -> None:
    data = image(tmp_path / "up", 64 * MIB, until_byte=20 * MIB)
    async with served(tmp_path) as server:
        await run("nbdcopy", *options, "--destination-is-zero", tmp_path / "up", server.uri)
        await run("nbdcopy", *options, server.uri, tmp_path / "down")
        assert (tmp_path / "down").read_bytes() == data
        if "--synchronous" in options:  # writes zeros, whatever it is told
            return
        extents = json.loads(await run("nbdinfo", "--map", "--json", server.uri))
        assert [(each["offset"], each["length"], each["type"]) for each in extents] == [
            (0, 5 * MIB, 0), (5 * MIB, 5 * MIB, 3), (10 * MIB, 10 * MIB, 0), (20 * MIB, 44 * MIB, 3),
        ]  # fmt: skip


@needs("nbdcopy")
async def test_nbdcopy_between_two_servers_of_one_kernel(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        await server.kernel.insmod(RamDisk, instance="other")
        other = tmp_path / "other.sock"
        await server.kernel.insmod(NbdServer, instance="second", device="other", unix=str(other))
        async with server.client() as client:
            await client.go()
            await client.write(3 * MIB, b"abc" * 512)
        await run("nbdcopy", server.uri, f"nbd+unix:///?socket={other}")
        async with await trio.open_unix_socket(str(other)) as stream:
            client = Client(stream)
            await client.go()
            assert await client.read(3 * MIB, 1536) == b"abc" * 512


NBDSH = """
h.set_strict_mode(0)
h.connect_uri(URI)
assert h.get_size() == 64 << 20 and h.can_multi_conn() and h.can_df() and h.can_fast_zero()
h.pwrite(b"x" * 4096, 8192)
assert h.pread(4096, 8192) == b"x" * 4096
h.pwrite(b"f" * 512, 0, nbd.CMD_FLAG_FUA)
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 16384, nbd.CMD_FLAG_FAST_ZERO)
h.trim(4096, 65536)
h.cache(4096, 0)
h.flush()
assert h.pread(4096, 8192) == bytes(4096)
chunks = []
def f(buffer, offset, status, error):
    chunks.append((len(buffer), offset, status))
h.pread_structured(65536, 0, f, nbd.CMD_FLAG_DF)
assert chunks == [(65536, 0, nbd.READ_DATA)], chunks
extents = []
def g(context, offset, entries, error):
    extents.append((context, offset, list(entries)))
h.block_status(1 << 20, 0, g, nbd.CMD_FLAG_REQ_ONE)
assert extents == [("base:allocation", 0, [512, 0])], extents
for call, error in (
    (lambda: h.pread(512, 64 << 20), "EINVAL"), (lambda: h.pwrite(bytes(1024), (64 << 20) - 512), "ENOSPC"),
    (lambda: h.pread(10, 3), "EINVAL"), (lambda: h.trim(512, 64 << 20), "EINVAL"),
):
    try:
        call()
    except nbd.Error as exc:
        assert exc.errno == error, (exc.errno, error)
    else:
        raise AssertionError(error)
cookies = [h.aio_pread(nbd.Buffer(4096), 4096 * n) for n in range(64)]
while h.aio_in_flight():
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in cookies)
h.shutdown()
"""


@needs("nbdsh")
async def test_nbdsh(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        script = NBDSH.replace("URI", repr(server.uri))
        # Debian's binding belongs to Debian's Python, which others may hide.
        await run("nbdsh", "--base-allocation", "-c", script, env={"PATH": "/usr/bin:/bin"})


@needs("qemu-img")
async def test_qemu_img(tmp_path: Path) -> None:
    source = tmp_path / "source"
    image(source, 64 * MIB, until_byte=12 * MIB)
    raw = ("-f", "raw", "-F", "raw")
    async with served(tmp_path) as server:
        assert json.loads(await run("qemu-img", "info", "--output=json", server.uri))["virtual-size"] == 64 * MIB
        await run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, server.uri)
        assert "identical" in await run("qemu-img", "compare", *raw, source, server.uri)
        extents = json.loads(await run("qemu-img", "map", "--output=json", "-f", "raw", server.uri))
        assert sum(each["length"] for each in extents if each["data"]) == 9 * MIB
        await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri, tmp_path / "copy")
        assert "identical" in await run("qemu-img", "compare", source, tmp_path / "copy")
        await run("qemu-io", "-f", "raw", "-c", "write -P 9 0 512", server.uri)
        assert "mismatch" in await run("qemu-img", "compare", *raw, source, server.uri, check=False)


@needs("qemu-io")
@pytest.mark.parametrize("cache", ["writeback", "writethrough", "none"])
async def test_qemu_io(tmp_path: Path, cache: str) -> None:
    commands = [
        "write -P 0x11 0 1M", "write -z 64k 64k", "read -P 0x11 0 64k", "read -P 0 64k 64k", "read -P 0x11 128k 896k",
        "write -z -u 256k 64k", "read -P 0 256k 64k", "discard 512k 64k", "write -f -P 7 1M 512", "read -P 7 1M 512",
        "aio_write -P 1 2M 1M", "aio_write -P 2 3M 1M", "aio_write -P 3 4M 4M", "aio_flush", "aio_read -P 1 2M 1M",
        "aio_read -P 2 3M 1M", "aio_read -P 3 4M 4M", "aio_flush", "write -P 4 1000 3", "read -P 4 1000 3",
        "write -z 0 64M", "read -P 0 0 64M", "flush",
    ]  # fmt: skip
    words = [word for command in commands for word in ("-c", command)]
    async with served(tmp_path, {"write_cache": True}) as server:
        output = await run("qemu-io", "-f", "raw", "-t", cache, *words, server.uri)
        assert "failed" not in output.lower()


@needs("fio")
@pytest.mark.parametrize(
    "words",
    [
        ("--rw=randwrite", "--bs=4k", "--iodepth=32"),
        ("--rw=randrw", "--bs=4k", "--iodepth=8", "--numjobs=3", "--offset_increment=16m"),
        ("--rw=write", "--bs=128k", "--iodepth=8"),
        ("--rw=randwrite", "--bsrange=512-1m", "--bs_unaligned=0", "--iodepth=16"),
        ("--rw=randtrimwrite", "--bs=64k", "--iodepth=4"),
    ],
    ids=["random", "jobs", "sequential", "sizes", "trim"],
)
async def test_fio_verifies(tmp_path: Path, words: tuple[str, ...]) -> None:
    verify = () if "--rw=randtrimwrite" in words else ("--verify=crc32c", "--verify_fatal=1", "--do_verify=1")
    async with served(tmp_path) as server:
        output = await run(
            "fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri}", "--size=16m", "--output-format=json",
            "--verify_state_save=0",
            *words, *verify,
        )  # fmt: skip
        for job in json.loads(output[output.index("{") :])["jobs"]:
            assert job["error"] == 0
        await until(lambda: server.figure("clients") == 0)
        driver, export = server.account("nbd_ram"), server.account("nbd_server")
        assert driver.written_bytes == export.io_written_bytes >= 8 * MIB
        assert driver.read_bytes == export.io_read_bytes


# --- TLS ------------------------------------------------------------------------------------------------------


class Certificates:
    """An authority, a certificate of the server's and one of a client's, as files that libnbd looks for."""

    def __init__(self, folder: Path) -> None:
        ca = trustme.CA()
        self.folder = folder
        ca.cert_pem.write_to_path(folder / "ca-cert.pem")
        for name, cert in (("server", ca.issue_cert("localhost", "127.0.0.1")), ("client", ca.issue_cert("me@host"))):
            cert.private_key_pem.write_to_path(folder / f"{name}-key.pem")
            chain = b"".join(blob.bytes() for blob in cert.cert_chain_pems)
            (folder / f"{name}-cert.pem").write_bytes(chain)

    def params(self, policy: str, *, clients: bool = False) -> dict[str, Any]:
        """Parameters of the server; with ``clients`` these need a certificate, too."""
        files = {"tls_cert": "server-cert.pem", "tls_key": "server-key.pem"}
        files |= {"tls_ca": "ca-cert.pem"} if clients else {}
        return {"tls": policy} | {name: str(self.folder / file) for name, file in files.items()}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


async def secure(client: Client, certificates: Certificates) -> Client:
    """STARTTLS, then the same client under TLS."""
    await client.greet()
    assert await client.option(Option.STARTTLS) == [(Rep.ACK, b"")]
    context = ssl.create_default_context(cafile=str(certificates.folder / "ca-cert.pem"))
    stream = trio.SSLStream(client.stream, context, server_hostname="localhost")
    return Client(stream)  # type: ignore[arg-type]


async def test_tls_by_hand(tmp_path: Path, certificates: Certificates) -> None:
    async with served(tmp_path, **certificates.params("require")) as server:
        assert server.kernel.sysfs.read("/sys/module/nbd_server/attributes/uri").startswith("nbds+unix:///")
        async with server.client() as plain:
            await plain.greet()
            assert (await plain.option(Option.LIST))[0][0] == Rep.ERR_TLS_REQD
            await plain.stream.send_all(b"IHAVEOPT\0\0\0\1\0\0\0\0")
            assert await plain.is_hung_up()
        async with server.client() as plain:
            client = await secure(plain, certificates)
            await client.choose(allocation=True)
            data = os.urandom(3 * MIB)
            assert await client.write(512, data) == 0
            assert await client.read(512, 3 * MIB) == data
            await client.stream.send_all(b"".join(client.packed(Cmd.READ, 4096 * at, 4096) for at in range(500)))
            assert not any([(await client.reply()).error for _ in range(500)])
        async with server.client() as plain:
            client = await secure(plain, certificates)
            await client.choose()
            await client.stream.send_all(b"".join(client.packed(Cmd.READ, 0, MIB) for _ in range(100)))
        async with server.client() as plain:
            await plain.greet()
            await plain.stream.send_all(b"IHAVEOPT\0\0\0\5\0\0\0\0")
            magic, _, kind, _ = OPTION_REPLY.unpack(await plain.exactly(OPTION_REPLY.size))
            assert (magic, kind) == (OPTION_REPLY_MAGIC, Rep.ACK)
            await plain.stream.send_all(text("no TLS at all") * 20)
            assert await plain.is_hung_up()
        await until(lambda: server.figure("clients") == 0)
        assert server.figure("memory_free") == 96 * MIB


@needs("nbdinfo")
@needs("nbdcopy")
async def test_tls_with_libnbd(tmp_path: Path, certificates: Certificates) -> None:
    data = image(tmp_path / "up", 64 * MIB, until_byte=20 * MIB)
    folder = certificates.folder
    async with uxk.Kernel(clock="real") as kernel:
        await kernel.insmod(RamDisk)
        tls = certificates.params("require", clients=True)
        await kernel.insmod(NbdServer, device="nbd_ram0", tcp="localhost:0", **tls)
        uri = kernel.sysfs.read("/sys/module/nbd_server/attributes/uri").replace("127.0.0.1", "localhost")
        with trio.fail_after(60):
            trusted = f"{uri}?tls-certificates={folder}"
            assert json.loads(await run("nbdinfo", "--json", trusted))["TLS"] is True
            await run("nbdcopy", "--connections=4", tmp_path / "up", trusted)
            await run("nbdcopy", trusted, tmp_path / "down")
            assert (tmp_path / "down").read_bytes() == data
            nobody = tmp_path / "nobody"
            nobody.mkdir()
            shutil.copy(folder / "ca-cert.pem", nobody)
            refused = await run("nbdinfo", f"{uri}?tls-certificates={nobody}", check=False)
            assert "export-size" not in refused
            plain = await run("nbdinfo", uri.replace("nbds://", "nbd://"), check=False)
            assert "export-size" not in plain


@needs("qemu-img")
async def test_tls_with_qemu(tmp_path: Path, certificates: Certificates) -> None:
    async with uxk.Kernel(clock="real") as kernel:
        await kernel.insmod(RamDisk)
        await kernel.insmod(NbdServer, device="nbd_ram0", tcp="localhost:0", **certificates.params("allow"))
        port = kernel.sysfs.read("/sys/module/nbd_server/attributes/uri").rsplit(":", 1)[1].split("/")[0]
        with trio.fail_after(60):
            creds = f"tls-creds-x509,id=t,dir={certificates.folder},endpoint=client"
            where = f"driver=nbd,host=localhost,port={port},tls-creds=t"
            assert "64 MiB" in await run("qemu-img", "info", "--object", creds, "--image-opts", where)
            assert "64 MiB" in await run("qemu-img", "info", f"nbd://localhost:{port}")
