"""``uxk serve``: what cannot be served, and how it is said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from uxk.cli import build_parser, main
from uxk.cli.serve_here import arena_for
from uxk.cli.serve_line import warn
from uxk.core.modprobe_conf import ModprobeConfig
from uxk.errors import ParamError
from uxk.kernel.catalog import Catalog
from uxk.limits import ARENA_BYTES_DEFAULT, ARENA_PAGE_BYTES

ROOT = Path(__file__).resolve().parents[2]
LONG = "a" * 70
DISK = "disk (a device of class block with capacity_bytes)"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UXK_SOCKET", raising=False)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("nbd null", 2, "expected --unix PATH or --tcp HOST:PORT"),
        ("nbd null --unix a --tcp b:1", 2, "expected --unix PATH or --tcp HOST:PORT"),
        ("nbd null --unix a --nqn nqn.x", 2, "--nqn: for nvme-tcp, not for nbd"),
        ("nbd null --unix a --tls require", 2, "--tls: needs --tls-cert"),
        ("nbd null --unix a --tls-ca ca.pem", 2, "--tls-ca: needs --tls-cert, without which nothing is encrypted"),
        ("nbd null --unix a --tls-key k --tls allow", 2, "--tls: needs --tls-cert"),
        ("nbd null --unix a --tls off --tls-cert c", 2, "--tls off: expected no --tls-cert"),
        ("nbd null --unix a --tls off --tls-ca c", 2, "--tls off: expected no --tls-ca"),
        ("nbd null --unix a -p size", 2, "'size': expected a parameter as NAME=VALUE"),
        ("nbd null -p size=1MiB --unix a -k nowhere", 2, "-p: for a kernel of its own; with -k nowhere the device is"),
        ("nbd null --seed 0 --arena 1GiB --unix a -k nowhere", 2, "--seed, --arena: for a kernel of its own"),
        ("nbd null --unix a -k nowhere", 1, "no kernel at nowhere"),
        ("nvme-tcp nvme", 2, "expected --tcp HOST:PORT"),
        ("nvme-tcp nvme --tcp 4420", 2, "expected --tcp HOST:PORT, got '4420'"),
        ("nvme-tcp nvme --tcp a:1 --read-only", 2, "--read-only: for nbd, not for nvme-tcp"),
        ("nvme-tcp nvme --tcp a:1 --tls-ca x --tls-key y", 2, "--tls-key, --tls-ca: for nbd, not for nvme-tcp"),
        ("nvme-tcp nvme --tcp a:1 --tls off", 2, "--tls: for nbd"),
        ("nvme-tcp nvme --tcp a:1 --host 127.0.0.1", 2, "--host 127.0.0.1: expected the NQN of a host"),
        ("nvme-tcp nvme --tcp 127.0.0.1:99999", 1, "port='99999': expected int >= 0, <= 65535 [EINVAL]"),
        (f"nvme-tcp nvme --tcp {LONG}:0", 1, "[EADDRNOTAVAIL]"),
        ("nvme-tcp null --tcp 127.0.0.1:0", 1, "nvmet_tcp: device='null0': no NVMe controller"),
        ("nbd nothing --unix a", 1, "nothing"),
        ("nbd null0 --unix a", 1, "(a device? those are of a running kernel: -k SOCKET) [ENOENT]"),
        ("nbd null -p sise=1MiB --unix a", 1, "unknown parameter 'sise' (did you mean 'size'?)"),
        ("nbd null -e poool=1 --unix a", 1, "nbd_server: unknown parameter 'poool' (did you mean 'pool'?)"),
        ("nbd null --unix /nonexistent/a", 1, "cannot listen there: No such file or directory [ENOENT]"),
        ("nbd null --tcp nowhere", 1, "expected HOST:PORT"),
        ("nbd null --tcp 127.0.0.1:99999", 1, "with a port from 0 to 65535 [EINVAL]"),
        (f"nbd null --tcp {LONG}:0", 1, "[EADDRNOTAVAIL]"),
        ("nbd null --unix a --tls-cert /nonexistent/c", 1, "tls_cert=/nonexistent/c"),
        (
            "nbd echo --unix a",
            1,
            f"echo: has no {DISK}: it is of class misc [ENODEV]",
        ),
        ("nvme-tcp echo --tcp 127.0.0.1:0", 1, "echo: has no device of class block: it is of class misc [ENODEV]"),
        ("nbd nvme -p size=64MiB --arena 64MiB --unix a", 1, "is set at boot: --arena 1GiB; it is address space"),
    ],
)
def test_mistakes(words: str, code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words.split()]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Error in" not in err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["serve", "nbd", "null", "--tcp", where]) == 1
        said = f"uxk: serve: nbd_server: tcp={where}: cannot listen there: Address already in use [EADDRINUSE]\n"
        assert capsys.readouterr().err == said
        assert main(["serve", "nvme-tcp", "nvme", "-p", "size=1MiB", "--tcp", where]) == 1
        assert (
            f"nvmet_tcp: {where}: cannot listen there: Address already in use [EADDRINUSE]" in capsys.readouterr().err
        )


def test_block_module_without_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("uxk.cli.serve_here._DISK_TIMEOUT_S", 0.05)
    monkeypatch.setattr("uxk.cli.serve_here._NOTE_S", 0)
    (tmp_path / "bare.py").write_text(
        "import uxk\n\nclass Bare(uxk.Extension):\n"
        "    manifest = uxk.Manifest(name='serve-bare', license='MIT', driver_class='block')\n"
        "    def on_batch(self, ctx, requests):\n        ctx.complete_batch(requests)\n"
    )
    assert main(["serve", "nbd", "bare.py", "--unix", "a"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "# serve_bare: waiting for its disk",
        f"uxk: serve: serve_bare: has no {DISK}, after 0.05 seconds [ENODEV]",
    ]


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        ("nbd null --tcp :0", True), ("nbd null --tcp 0.0.0.0:0", True), ("nbd null --tcp [::]:0", True),
        ("nvme-tcp nvme --tcp :0", True), ("nbd null --tcp 127.0.0.1:0", False), ("nbd null --unix a", False),
        ("nbd null --tcp :0 --tls-cert c --tls-ca c", False),
    ],
)  # fmt: skip
def test_doors_that_stand_open(words: str, warned: bool, capsys: pytest.CaptureFixture[str]) -> None:
    warn(build_parser("serve").parse_args(["serve", *words.split()]))
    assert ("# listening on all addresses" in capsys.readouterr().err) is warned


# --- the arena ---


def test_the_arena_is_as_large_as_it_must_be() -> None:
    catalog = Catalog(ModprobeConfig())
    nvme, nbd = catalog.get("nvme"), catalog.get("nbd_server")
    size_bytes, pool_bytes = 20 << 30, 64 << 20
    wanted = arena_for((nvme, {"size": "20GiB"}), (nbd, {"pool": "64MiB", "device": "x"}))
    own = nvme.manifest.budget.memory_bytes + nbd.manifest.budget.memory_bytes
    least = ARENA_BYTES_DEFAULT + own + size_bytes + pool_bytes
    assert least <= wanted < least + (64 << 20)  # other parameters may count, too
    assert wanted % ARENA_PAGE_BYTES == 0
    assert arena_for() == ARENA_BYTES_DEFAULT
    with pytest.raises(ParamError, match="nvme: size='much'"):
        arena_for((nvme, {"size": "much"}))


# --- a running kernel ---


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket of a kernel with module nvme."""
    path = str(tmp_path_factory.mktemp("k") / "k")
    process = subprocess.Popen(
        [sys.executable, "-m", "uxk", "boot", "--socket", path, "--load", "nvme", "null"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, env={**os.environ, "UXK_SOCKET": ""},
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline().startswith("uxk: kernel booted")
        yield path
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nbd nvme0n9", "no device 'nvme0n9' in the kernel of -k {k} (did you mean 'nvme0n1'?)"),
        ("nbd nvme", "no device 'nvme' in the kernel of -k {k} (did you mean 'nvme0n1'?); there are: null0, nvme0n1 ["),
        ("nbd nvme0", "'nvme0' has no blocks in the kernel of -k {k} (did you mean 'nvme0n1'?)"),
        ("nbd null0,nowhere", "no device 'nowhere'"),
        ("nvme-tcp nvme0n1", "'nvme0n1' is a disk: NVMe/TCP exports its controller, 'nvme0' [ENODEV]"),
        ("nvme-tcp nvme1", "no device 'nvme1' in the kernel of -k {k} (did you mean 'nvme0'?)"),
    ],
)
def test_devices_that_are_not_there(kernel: str, words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--unix", "a"] if words.startswith("nbd") else ["--tcp", "127.0.0.1:0"]
    assert main(["-k", kernel, "serve", *words.split(), *where]) == 1
    err = capsys.readouterr().err
    assert message.format(k=kernel) in err
    assert "[ENODEV]" in err and "env -u" not in err


def test_the_environment_names_the_kernel(
    kernel: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    way_out = "(a kernel of its own: `env -u UXK_SOCKET uxk serve ...`)"
    monkeypatch.setenv("UXK_SOCKET", kernel)
    assert main(["serve", "nbd", "nvme", "--unix", "a"]) == 1
    err = capsys.readouterr().err
    assert f"no device 'nvme' in the kernel of UXK_SOCKET={kernel}" in err and way_out in err
    assert main(["serve", "nbd", "nvme", "-p", "size=1MiB", "--unix", "a"]) == 2
    err = capsys.readouterr().err
    assert f"with UXK_SOCKET={kernel} the device is there already" in err and way_out in err
    monkeypatch.setenv("UXK_SOCKET", "gone")
    assert main(["serve", "nbd", "nvme", "--unix", "a"]) == 2
    assert f"UXK_SOCKET=gone: no kernel there {way_out}" in capsys.readouterr().err


def test_modules_say_which_device_is_missing(kernel: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-k", kernel, "modprobe", "nvmet_tcp", "device=nvme1", "port=0"]) == 1
    assert "no device 'nvme1' (did you mean 'nvme0'?) [ENODEV]" in capsys.readouterr().err
