"""``uxk serve``: a kernel of its own or a running one, and clients that others wrote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from uxk.cli import main

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20

DRIVER = '''
import uxk
from uxk.uapi.blk import BlockLimits, properties_of

class Params(uxk.Params):
    mib: int = 1

class Tiny(uxk.Extension[Params]):
    """A disk in a file of its own."""
    manifest = uxk.Manifest(name="tiny", driver_class="block", params=Params)

    def setup(self, ctx):
        self.data = bytearray(self.params.mib << 20)
        limits = BlockLimits(capacity_bytes=len(self.data))
        ctx.add_device(ctx.device, **properties_of(limits))

    def on_batch(self, ctx, requests):
        for request in requests:
            begin, end = request.offset, request.offset + request.length
            if request.opcode == uxk.Op.READ:
                ctx.map(request.region, writable=True)[request.buffer :][: request.length] = self.data[begin:end]
            elif request.opcode == uxk.Op.WRITE:
                self.data[begin:end] = ctx.map(request.region)[request.buffer :][: request.length]
            ctx.complete(request, result=request.length)
'''


def needs(program: str) -> pytest.MarkDecorator:
    """Skips a test where a client is missing."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def _default_signals() -> None:
    """Whoever runs the tests in the background may have them ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def uxk(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command that runs on, and its first line; must end well when it is interrupted, unless it has ended."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    process = subprocess.Popen(
        [sys.executable, "-m", "uxk", *words], cwd=folder, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_default_signals,
        env={**os.environ, "PYTHONPATH": path, "UXK_SOCKET": ""},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate(timeout=60)
        yield process, line.rstrip("\n")
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        process.communicate()


def run(*words: str | Path) -> str:
    """What a client prints."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs("nbdcopy")
@needs("qemu-img")
def test_nvme_over_nbd(tmp_path: Path) -> None:
    data = os.urandom(3 * MIB)
    (tmp_path / "source").write_bytes(data + bytes(29 * MIB))
    words = ("serve", "nbd", "nvme", "-p", "size=32MiB", "--unix", "disk.sock", "--export", "disk")
    with uxk(tmp_path, *words) as (_, line):
        uri = f"nbd+unix:///disk?socket={tmp_path}/disk.sock"
        assert line == f"uxk: serving {uri}"
        run("nbdcopy", tmp_path / "source", uri)
        run("nbdcopy", uri, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == (tmp_path / "source").read_bytes()
        assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", tmp_path / "source", uri)
        run(
            "qemu-io",
            "-f",
            "raw",
            "-c",
            "write -z 0 1M",
            "-c",
            "read -P 0 0 1M",
            "-c",
            "discard 1M 1M",
            "-c",
            "flush",
            uri,
        )
    assert not (tmp_path / "disk.sock").exists()


@needs("fio")
def test_nvme_keeps_what_fio_writes(tmp_path: Path) -> None:
    words = ("serve", "nbd", "nvme", "-p", "size=32MiB", "--unix", "d", "--socket", "k")
    with uxk(tmp_path, *words) as (_, line):
        uri = line.split()[-1]
        fio = ("fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", "--size=8m", "--verify_state_save=0")
        output = run(
            *fio,
            "--output-format=json",
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=16",
            "--verify=crc32c",
            "--verify_fatal=1",
        )
        assert json.loads(output[output.index("{") :])["jobs"][0]["error"] == 0
        client = _account(tmp_path / "k", "nbd_server")
        driver = _account(tmp_path / "k", "nvme")
        assert client["io_written_bytes"] == driver["written_bytes"] == 8 * MIB
        assert client["io_read_bytes"] == driver["read_bytes"]


def _account(socket_path: Path, instance: str) -> dict[str, int]:
    import trio

    from uxk.bridges.control_client import ControlClient

    async def ask() -> dict[str, int]:
        async with ControlClient(socket_path) as kernel:
            return await kernel.statistics(instance)

    return trio.run(ask)


@needs("nbdsh")
def test_driver_in_a_file_over_tcp(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(DRIVER)
    words = ("--json", "serve", "nbd", "./tiny.py", "-p", "mib=2", "--tcp", "127.0.0.1:0", "-e", "depth=16")
    with uxk(tmp_path, *words) as (_, line):
        told = json.loads(line)
        assert told["device"] == "tiny0"
        script = "assert h.get_size() == 2 << 20; h.pwrite(b'x' * 512, 512); assert h.pread(512, 512) == b'x' * 512"
        done = subprocess.run(
            ["nbdsh", "-u", told["uri"], "-c", script], env={**os.environ, "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@needs("nbdinfo")
def test_device_of_a_running_kernel(tmp_path: Path) -> None:
    with uxk(tmp_path, "boot", "--socket", "k", "--load", "null"):
        with uxk(tmp_path, "-k", "k", "serve", "nbd", "null0", "--unix", "one", "--read-only") as (_, first):
            with uxk(tmp_path, "serve", "nbd", "null0", "--unix", "two", "--export", "2", "-k", "k") as (_, second):
                shown = json.loads(run("nbdinfo", "--json", first.split()[-1]))["exports"][0]
                assert shown["export-size"] == 1 << 30 and shown["is_read_only"]
                assert not json.loads(run("nbdinfo", "--json", second.split()[-1]))["exports"][0]["is_read_only"]
                assert _modules(tmp_path / "k") == {"null", "nbd_server", "nbd_server2"}
            assert _modules(tmp_path / "k") == {"null", "nbd_server"}
        assert _modules(tmp_path / "k") == {"null"}


def _modules(socket_path: Path) -> set[str]:
    import trio

    from uxk.bridges.control_client import ControlClient

    async def ask() -> set[str]:
        async with ControlClient(socket_path) as kernel:
            return {row.name for row in await kernel.lsmod()}

    return trio.run(ask)


def test_export_that_is_unloaded_by_others(tmp_path: Path) -> None:
    with (
        uxk(tmp_path, "boot", "--socket", "k", "--load", "null"),
        uxk(tmp_path, "-k", "k", "serve", "nbd", "null0", "--unix", "one") as (process, _),
    ):
        assert main(["-k", str(tmp_path / "k"), "rmmod", "nbd_server"]) == 0
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "nbd_server has ended" in err


def test_nvme_tcp(tmp_path: Path) -> None:
    nqn, host = "nqn.2026-11.example.uxk:test", "nqn.2014-08.org.nvmexpress:uuid:1"
    words = ("serve", "nvme-tcp", "nvme", "-p", "size=32MiB", "--tcp", "127.0.0.1:0", "--nqn", nqn, "--host", host)
    with uxk(tmp_path, *words) as (_, line):
        assert line.startswith(f"uxk: serving {nqn} at 127.0.0.1:")
        with socket.create_connection(("127.0.0.1", int(line.rsplit(":", 1)[1])), timeout=60) as sock:
            sock.sendall(bytes([0, 0, 128, 0, 128, 0, 0, 0]) + bytes(120))  # ICReq
            answer = sock.recv(128, socket.MSG_WAITALL)
            assert (len(answer), answer[0], answer[2]) == (128, 1, 128)  # ICResp
