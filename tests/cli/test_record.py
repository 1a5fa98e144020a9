"""``uxk record``: its arguments; and, where the machine allows it, recordings that leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from uxk.cli import main
from uxk.scenario.record import session
from uxk.scenario.record.tracing import tracefs_of
from uxk.scenario.trace import TraceOp, read_trace

# --- arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "required"),
        ("block -- true", "-o/--out"),
        ("disk -o t.npy -- true", "invalid choice: 'disk'"),
        ("block -o t.npy --size 2XiB -- true", "'2XiB': unknown unit"),
        ("block -o t.npy --size much -- true", "'much': not an integer"),
        ("block -o t.npy --seconds x -- true", "--seconds"),
        ("block -o t.npy", "give a command behind `--`, or an existing device"),
        ("block -o t.csv -- true", "'t.csv': expected a name that ends in .blkparse"),
        ("block -o /nowhere/t.npy -- true", "/nowhere/t.npy: cannot be written"),
        ("block -o t.npy --fs ext3 -- true", "'ext3' (did you mean 'ext4'?)"),
    ],
)
def test_wrong_usage(
    words: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["record", *words.split()]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_root(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["record", "block", "-o", str(tmp_path / "t.npy"), "--", "true"]) == 2
    assert "uxk: record: needs root" in capsys.readouterr().err


# --- for real -------------------------------------------------------------------------------------------------


PATIENCE_S = 30


def why_not() -> str:
    """Why this machine cannot record, or an empty text."""
    if os.geteuid() != 0:
        return "needs root"
    if missing := [tool for tool in ("losetup", "mount", "umount", "mkfs.ext4", "sync") if shutil.which(tool) is None]:
        return f"needs {', '.join(missing)}"
    with tempfile.TemporaryDirectory() as folder:
        for command in (("losetup", "--find"), ("mount", "-t", "tracefs", "nodev", folder)):
            if subprocess.run(command, capture_output=True).returncode:
                return f"`{' '.join(command)}` fails here"
        try:
            return buffers_hang(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def buffers_hang(tracefs: str) -> str:
    """A process of its own makes a buffer: on a Linux whose work queue is stuck it does not come back, nor dies."""
    lines = ("import os, pathlib, sys", "at = pathlib.Path(sys.argv[1], 'instances', f'uxk-probe-{os.getpid()}')",
             "at.mkdir()", "(at / 'buffer_size_kb').write_text('64')", "at.rmdir()")  # fmt: skip
    child = subprocess.Popen([sys.executable, "-c", "\n".join(lines), tracefs], stderr=subprocess.DEVNULL)
    try:
        return "a buffer for traces cannot be made" if child.wait(PATIENCE_S) else ""
    except subprocess.TimeoutExpired:
        child.kill()
        child.returncode = -9  # nobody waits for it
        return f"a buffer for traces was not made in {PATIENCE_S} s"


@pytest.fixture(scope="module")
def _machine() -> None:
    if reason := why_not():
        pytest.skip(f"recording block requests: {reason}")


def left_by(pid: int, tracefs: Path) -> list[str]:
    """Mounts, loop devices, tracefs instances and folders that bear the number of a recorder."""
    mark = f"uxk-record-{pid}"
    lines = Path("/proc/self/mounts").read_text().splitlines()
    lines += subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout.splitlines()
    lines += map(str, (*tracefs.glob("instances/*"), *Path(tempfile.gettempdir()).iterdir()))
    return [line for line in lines if mark in line]


@pytest.fixture
def tracefs(_machine: None, tmp_path: Path) -> Iterator[Path]:
    """Where tracefs can be looked at."""
    if (mounted := tracefs_of(Path("/proc/self/mounts").read_text())) is not None:
        yield mounted
        return
    # Under a name that recorders pass over, so that they mount it themselves.
    point = tmp_path / "uxk-record-test"
    point.mkdir()
    subprocess.run(["mount", "-t", "tracefs", "nodev", point], check=True)
    yield point
    subprocess.run(["umount", "--lazy", point], check=True)


def record(*words: str, size: str = "16MiB") -> int:
    return main(["record", "block", "--json", "--size", size, *words])


OVERWRITE = "for i in 1 2 3 4; do dd if=/dev/zero of=a bs=64k count=4 conv=fsync,notrunc status=none; done"


def test_a_recording(tracefs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.blkparse.xz"
    assert record("-o", str(out), "--", "sh", "-c", f'{OVERWRITE}; test "$PWD" = "$UXK_MOUNT"; echo said') == 0
    printed = capfd.readouterr()
    told = json.loads(printed.out)
    assert "said" in printed.err, "the command's words are kept apart from JSON"
    assert (told["lost_events"], told["malformed_lines"], told["exit_code"]) == (0, 0, 0)
    trace = read_trace(out, "blkparse", tolerate=0)
    writes = trace.op == TraceOp.WRITE
    assert (len(trace), int(writes.sum())) == (told["requests"], told["write_requests"])
    assert int(trace.length_bytes[writes].sum()) == told["write_bytes"] >= 4 * 256 * 1024
    assert told["written_pages"] > told["distinct_pages"] >= 64
    assert (np.diff(trace.time_ns) >= 0).all()
    assert int((trace.offset_bytes + trace.length_bytes).max()) <= 16 << 20
    assert left_by(os.getpid(), tracefs) == []


@pytest.mark.skipif(shutil.which("mkfs.xfs") is None, reason="recording on xfs: needs mkfs.xfs")
def test_xfs(tracefs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "t.npy")
    assert record("-o", out, "--fs", "xfs", "--", "sh", "-c", OVERWRITE, size="300MiB") == 0
    assert np.load(out).size == json.loads(capfd.readouterr().out)["written_pages"] >= 256
    assert left_by(os.getpid(), tracefs) == []


def test_discards_are_recorded(tracefs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "t.npy")
    assert record("-o", out, "--mount-options", "discard", "--", "sh", "-c", f"{OVERWRITE}; rm a; sync -f .") == 0
    told = json.loads(capfd.readouterr().out)
    assert told["discard_requests"] > 0
    assert np.load(out).size == told["written_pages"]


def test_a_command_that_fails(tracefs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.npy"
    assert record("-o", str(out), "--", "sh", "-c", f"{OVERWRITE}; exit 7") == 1
    printed = capfd.readouterr()
    assert "sh ended with exit code 7" in printed.err
    assert np.load(out).size >= 256, "what it did is kept"
    assert left_by(os.getpid(), tracefs) == []


def test_mounting_that_fails(tracefs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.npy"
    assert record("-o", str(out), "--mount-options", "no-such-option", "--", "true") == 1
    assert "`mount -t ext4 -o no-such-option" in capfd.readouterr().err
    assert not out.exists()
    assert left_by(os.getpid(), tracefs) == []


def test_tracing_that_fails(
    tracefs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uxk.scenario.record.tracing.EVENT", "block_no_such_event")
    assert record("-o", str(tmp_path / "t.npy"), "--", "true") == 2
    assert "no tracepoint block:block_no_such_event" in capfd.readouterr().err
    assert left_by(os.getpid(), tracefs) == []


def test_a_daemon_that_stays_behind(tracefs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    daemon = f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 1000' > held 2>&1 &"
    wait = f"until test -s {tmp_path}/pid; do :; done"
    assert record("-o", str(tmp_path / "t.npy"), "--", "sh", "-c", f"{daemon} {OVERWRITE}; {wait}") == 0
    assert f"killed process {(tmp_path / 'pid').read_text().strip()}" in capfd.readouterr().err
    assert left_by(os.getpid(), tracefs) == []


def test_a_command_that_unmounts_by_itself(tracefs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # What is below the mount then belongs to others, who must not be taken for its users.
    assert record("-o", str(tmp_path / "t.npy"), "--", "sh", "-c", f'{OVERWRITE}; cd /; umount "$UXK_MOUNT"') == 0
    assert "killed" not in capfd.readouterr().err
    assert left_by(os.getpid(), tracefs) == []


def test_seconds_end_a_command(tracefs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert record("-o", str(tmp_path / "t.npy"), "--seconds", "0.2", "--", "sleep", "1000") == 0
    assert json.loads(capfd.readouterr().out)["exit_code"] is None
    assert left_by(os.getpid(), tracefs) == []


def test_lost_events_fail_a_recording(
    tracefs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uxk.scenario.record.tracing.BUFFER_KIB", 4)  # for some 50 events, and read much too late
    monkeypatch.setattr("uxk.scenario.record.tracing.DRAIN_S", 1000)
    many = "for i in $(seq 1000); do dd if=/dev/zero of=a bs=4k count=1 conv=fsync,notrunc status=none; done"
    assert record("-o", str(tmp_path / "t.npy"), "--", "sh", "-c", many) == 1
    printed = capfd.readouterr()
    told = json.loads(printed.out)
    assert told["lost_events"] > 0
    assert told["lost_events"] + told["requests"] >= 2000
    assert f"the kernel lost {told['lost_events']} events" in printed.err


def test_an_existing_device_is_only_watched(tracefs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    backing = tmp_path / "disk"
    with backing.open("wb") as file:
        file.truncate(1 << 20)
    find = ["losetup", "--find", "--show", backing]
    device = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    try:
        write = ["dd", "if=/dev/zero", f"of={device}", "bs=4k", "count=5", "seek=7", "oflag=direct", "status=none"]
        out = str(tmp_path / "t.npy")
        assert record("-o", out, "--device", device, "--", *write) == 0
        assert np.load(out).tolist() == [7, 8, 9, 10, 11]
        before = backing.read_bytes()
        assert record("-o", out, "--device", device, "--seconds", "0.1") == 0
        assert "no request was seen" in capfd.readouterr().err
        assert backing.read_bytes() == before
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert left_by(os.getpid(), tracefs) == []


@pytest.fixture
def recorder(tracefs: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A recorder under way in a process of its own, and the process that it records."""
    words = ["record", "block", "--size", "16MiB", "-o", str(tmp_path / "t.npy"), "--"]
    command = ["sh", "-c", f"{OVERWRITE}; echo $$; exec sleep 1000"]
    started = subprocess.Popen(
        [sys.executable, "-m", "uxk", *words, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    with started:
        yield started, int(started.stdout.readline())
        started.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it(
    recorder: tuple[subprocess.Popen[str], int], number: signal.Signals, code: int, tracefs: Path, tmp_path: Path
) -> None:
    process, recorded = recorder
    process.send_signal(number)
    out, _ = process.communicate()
    assert process.returncode == code
    assert "0 events lost" in out
    assert np.load(tmp_path / "t.npy").size >= 256, "what was recorded until then is kept"
    assert not Path("/proc", str(recorded)).exists()
    assert left_by(process.pid, tracefs) == []


def test_the_next_recorder_clears_up_after_one_that_was_killed(
    recorder: tuple[subprocess.Popen[str], int], tracefs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    process, recorded = recorder
    process.kill()
    process.wait()
    assert left_by(process.pid, tracefs) != []
    assert record("-o", str(tmp_path / "u.npy"), "--", "true") == 0
    assert f"killed process {recorded}" in capfd.readouterr().err
    assert left_by(process.pid, tracefs) == []
    assert left_by(os.getpid(), tracefs) == []


def test_grace_is_bounded(
    tracefs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "GRACE_S", 0.2)
    stubborn = "trap '' TERM; while :; do sleep 0.05; done"
    assert record("-o", str(tmp_path / "t.npy"), "--seconds", "0.2", "--", "sh", "-c", stubborn) == 0
    assert left_by(os.getpid(), tracefs) == []
