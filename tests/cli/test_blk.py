"""``uxk iostat`` and ``uxk blktrace`` on a kernel in another process, with a client that never rests."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from uxk.cli.common import UsageExit
from uxk.cli.iostat import parse_words

ROOT = Path(__file__).resolve().parents[2]
CLIENT = '''
from __future__ import annotations
import uxk

class Client(uxk.Extension):
    """Eight requests every millisecond, four of them neighbours."""
    manifest = uxk.Manifest(name="blk_client", kind="ml-agent", capabilities=("device:*:submit",))

    def setup(self, ctx):
        self.busy = 0
        ctx.open_device("null0").then(lambda done: self.begin(ctx, done.result))

    def begin(self, ctx, cap):
        self.queue = ctx.queue(cap, lambda done: self.answered(done))
        self.tick(ctx)

    def answered(self, done):
        self.busy -= len(done)

    def tick(self, ctx):
        if not self.busy:
            for n in range(4):
                self.queue.submit(uxk.Op.WRITE, n * 512, 512, b"x" * 512)
            for n in range(4):
                self.queue.submit(uxk.Op.READ, 65536 + n * 8192, 4096)
            self.busy = 8
        ctx.call_later_ns(1_000_000, lambda _: self.tick(ctx))
'''


def _default_signals() -> None:
    """Whoever runs the tests in the background may have it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Kernel:
    """One kernel, and verbs that reach it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join((str(ROOT), str(ROOT / "drivers"), os.environ.get("PYTHONPATH", "")))
        self.env = {**os.environ, "PYTHONPATH": path, "UXK_SOCKET": str(folder / "k.sock")}
        self.process = self.start("boot", "--socket", str(folder / "k.sock"))
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A verb that runs; the caller sees to its end."""
        return subprocess.Popen(
            [sys.executable, "-m", "uxk", *words], env=self.env, cwd=self.folder, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_default_signals,
        )  # fmt: skip

    def run(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        with self.start(*words) as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out, err


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """With a null disk and its client."""
    folder = tmp_path_factory.mktemp("blk")
    (folder / "client.py").write_text(CLIENT)
    booted = Kernel(folder)
    try:
        assert booted.run("modprobe", "null", "latency_ns=100us") == (0, "", "")
        assert booted.run("insmod", "client.py") == (0, "", "")
        yield booted
    finally:
        booted.process.kill()
        booted.process.communicate()


def test_iostat_prints_what_sysstats_does(kernel: Kernel) -> None:
    code, out, err = kernel.run("iostat", "-x")
    assert (code, err) == (0, "")
    header, line, *_ = out.splitlines()
    assert header.split()[:5] == ["Device", "r/s", "rkB/s", "rrqm/s", "%rrqm"]
    assert header.split()[-2:] == ["aqu-sz", "%util"]
    assert len(header) == len(line)
    assert line.split()[0] == "null0"
    assert all(re.fullmatch(r"\d+\.\d\d", word) for word in line.split()[1:])


def test_iostat_in_intervals(kernel: Kernel) -> None:
    code, out, err = kernel.run("iostat", "-x", "--json", "null0", "1", "2")
    assert (code, err) == (0, "")
    first, second = [json.loads(line) for line in out.splitlines()]
    assert second["now_ns"] > first["now_ns"]
    now = second["disks"]["null0"]
    assert now["r/s"] > 0
    assert now["rareq-sz"] == 4
    assert now["rkB/s"] == pytest.approx(now["r/s"] * 4, abs=0.1)
    assert now["w/s"] > 0
    assert now["%wrqm"] == pytest.approx(75, abs=1), "four neighbours become one request"
    assert 0 < now["%util"] <= 100


def test_iostat_of_what_is_no_disk(kernel: Kernel) -> None:
    code, _, err = kernel.run("iostat", "-x", "null0", "null")
    assert (code, err) == (1, "uxk: iostat: no disk 'null' (did you mean 'null0'?); there are: null0 [ENODEV]\n")


@pytest.mark.parametrize("words", [["1", "sda"], ["1", "2", "3"], ["0"], ["sda", "-1"]])
def test_iostat_with_words_that_cannot_be(words: list[str]) -> None:
    with pytest.raises(UsageExit, match="INTERVAL"):
        parse_words(words)


def test_words_of_iostat() -> None:
    assert parse_words([]) == ([], 0, 0)
    assert parse_words(["sda", "sdb", "2", "5"]) == (["sda", "sdb"], 2, 5)


@pytest.mark.skipif(not shutil.which("blkparse"), reason="blkparse (package blktrace) is not here")
def test_blktrace_records_what_blkparse_reads(kernel: Kernel) -> None:
    code, out, err = kernel.run("blktrace", "-d", "null0", "-o", "run", "-w", "0.5")
    assert (code, err) == (0, "# recording; Ctrl-C ends it\n")
    assert "(dropped 0)" in out
    names = sorted(path.name for path in kernel.folder.glob("run.blktrace.*"))
    assert names == [f"run.blktrace.{cpu}" for cpu in range(4)]
    done = subprocess.run(["blkparse", "-i", "run"], cwd=kernel.folder, capture_output=True, text=True, check=True)
    assert "blk_client" in done.stdout
    assert re.search(r"M\s+W", done.stdout), "merges of writes"
    for action in "QGIDC":
        assert re.search(rf"\s{action}\s+R\s+\d+ \+ 8", done.stdout)
    assert kernel.run("cat", "/sys/block/null0/trace/enable")[1] == "0\n"


def test_blktrace_ends_at_ctrl_c_with_all_it_has(kernel: Kernel) -> None:
    with kernel.start("blktrace", "-d", "null0", "-o", "stopped", "--json") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "# recording; Ctrl-C ends it\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    told = json.loads(out)
    assert told["bytes"] == [(kernel.folder / f"stopped.blktrace.{cpu}").stat().st_size for cpu in range(4)]
    assert kernel.run("cat", "/sys/block/null0/trace/enable")[1] == "0\n"


@pytest.mark.parametrize("words", [("-d", "null0", "-w", "-1"), ("-d", "../null0"), ("-w", "1")])
def test_blktrace_with_words_that_cannot_be(kernel: Kernel, words: tuple[str, ...]) -> None:
    code, _, err = kernel.run("blktrace", *words)
    assert code == 2
    assert err


def test_blktrace_of_what_is_no_disk(kernel: Kernel) -> None:
    code, _, err = kernel.run("blktrace", "-d", "sda", "-w", "1")
    assert (code, err) == (1, "uxk: blktrace: no disk 'sda'; there are: null0 [ENODEV]\n")
