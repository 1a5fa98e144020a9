"""kernel-ml-lib's ten steps through mounted files: once as a shell script, once in C."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

import uxk
from uxk.bridges.fuse.library import missing

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples/mllib"
FLAGS = ("-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-O2")
EPOCH_NS = 10_000_000
"""Of the device: short, since the real clock passes by itself."""
WITHIN_S = 90
STEPS = """\
1 start: started, mode learning
2 prepare_dataset: clean
3 read: 512 bytes, extracted_partially
3 read: 512 bytes, extracted_completely
4 discard_dataset: obsolete
5 trained on 8 datasets
6 the level is about (?P<first>\\d+)
7 advice was taken in: 1
8 the subsystem follows it: at least half of its units
9 efficiency is above 0
10 the level has moved, efficiency has degraded
10 corrected to (?P<second>\\d+): efficiency is above 0 again
"""

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


async def perform(folder: Path, *command: str) -> tuple[str, uxk.Kernel]:
    """What a program prints that sees a kernel with the test device in ``folder``; both are gone afterwards."""
    async with uxk.Kernel(seed=1, clock="real") as kernel:
        await kernel.modprobe("mllibdev", epoch_ns=EPOCH_NS)
        async with kernel.mount(folder):
            with trio.fail_after(WITHIN_S):
                done = await trio.run_process(
                    command, env={"ROOT": str(folder), "PATH": "/usr/bin:/bin"}, capture_stdout=True,
                    capture_stderr=True, check=False,
                )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
        assert done.stderr == b""
        return done.stdout.decode(), kernel


def check(printed: str, kernel: uxk.Kernel, more: str = "") -> None:
    """Every step is there, the level was learned twice, and the log tells of it."""
    found = re.fullmatch(STEPS + more, printed)
    assert found, printed
    assert abs(int(found["first"]) - 200) <= 8
    assert abs(int(found["second"]) - 160) <= 8
    texts = [record.text for record in kernel.kmsg.records() if record.source == "mllibdev/mllibdev-ml_model1"]
    assert sum("-> COLLABORATION" in text for text in texts) >= 2
    assert any(text.endswith("model stopped") for text in texts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the kernel is mounted."""
    place = tmp_path / "mnt"
    place.mkdir()
    return place


@pytest.fixture
def program(tmp_path: Path) -> str:
    """The example in C, compiled."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    made = tmp_path / "ten_steps"
    subprocess.run(["cc", *FLAGS, "-o", made, EXAMPLES / "ten_steps.c"], check=True)
    return str(made)


def test_the_document_shows_the_script_as_it_is() -> None:
    script = (EXAMPLES / "ten_steps.sh").read_text("utf-8")
    assert f"```sh file=ten_steps.sh\n{script}```\n" in (ROOT / "docs/kernel-ml-lib.md").read_text("utf-8")


async def test_with_nothing_but_a_shell(folder: Path) -> None:
    check(*await perform(folder, str(EXAMPLES / "ten_steps.sh")))


async def test_from_c(folder: Path, program: str) -> None:
    printed, kernel = await perform(folder, program, str(folder))
    check(printed, kernel, "events: registered 1, states yes, datasets yes, modes yes, dropped 0\n")
