"""Devices, mounts and processes, from made-up files of the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uxk.errors import UsageError, UxkError
from uxk.scenario.record.device import described, device_at
from uxk.scenario.record.session import Plan
from uxk.scenario.record.tracing import tracefs_of
from uxk.scenario.record.volume import check_tools, holders, scratch_folder, sweep, tool


@pytest.fixture
def sys_dev(tmp_path: Path) -> Path:
    """A disk 8:0 with a partition 8:1, and 253:0 stacked upon it."""
    disk = tmp_path / "devices/sda"
    (disk / "mq/0").mkdir(parents=True)
    (disk / "dev").write_text("8:0\n")
    part = disk / "sda1"
    part.mkdir()
    for name, text in (("partition", "1"), ("start", "2048"), ("size", "1000"), ("dev", "8:1")):
        (part / name).write_text(f"{text}\n")
    mapped = tmp_path / "devices/dm-0"
    (mapped / "slaves/sda1").mkdir(parents=True)
    links = tmp_path / "block"
    links.mkdir()
    for name, target in (("8:0", disk), ("8:1", part), ("253:0", mapped)):
        (links / name).symlink_to(target)
    return links


def test_a_whole_disk(sys_dev: Path) -> None:
    device = described("/dev/sda", 8, 0, sys_dev)
    assert (device.disk, device.start_sector, device.end_sector) == (8 << 20, 0, None)


def test_a_partition_is_filtered_by_its_disk(sys_dev: Path) -> None:
    device = described("/dev/sda1", 8, 1, sys_dev)
    assert (device.disk, device.start_sector, device.end_sector) == (8 << 20, 2048, 3048)


def test_a_stacked_device_names_what_it_lies_on(sys_dev: Path) -> None:
    with pytest.raises(UsageError, match="issues no requests that could be recorded: record what it lies on, sda1"):
        described("/dev/dm-0", 253, 0, sys_dev)


def test_a_device_that_is_not_there(sys_dev: Path) -> None:
    with pytest.raises(UsageError, match="knows no block device 9:9"):
        described("/dev/md9", 9, 9, sys_dev)


@pytest.mark.parametrize(("path", "said"), [("/dev/null", "no block device"), ("/nowhere", "No such file")])
def test_files_that_are_no_device(path: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"{path}: {said}"):
        device_at(path)


def test_where_tracefs_is_mounted() -> None:
    ours = "nodev /tmp/uxk-record-77-x/tracing tracefs rw 0 0\n"
    other = "tracefs /sys/kernel/trac\\040ing tracefs rw,nosuid 0 0\n"
    assert tracefs_of("") is None
    assert tracefs_of("proc /proc proc rw 0 0\n" + ours) is None
    assert tracefs_of(ours + other) == Path("/sys/kernel/trac ing")


def test_processes_that_hold_a_file(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    for pid, held in (("7", tmp_path), ("8", Path("/nowhere")), (str(os.getpid()), tmp_path), ("self", tmp_path)):
        (proc / pid / "fd").mkdir(parents=True)
        (proc / pid / "fd/3").symlink_to(held)
    assert holders(tmp_path.stat().st_dev, proc=proc) == [7]
    assert holders(1 << 40, proc=proc) == []


def test_a_sweep_leaves_the_living_and_strangers_alone(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "77").mkdir()
    mounts = "/dev/loop9 /tmp/uxk-record-77-x/mnt ext4 rw 0 0\n/dev/sda /home/uxk-record-78/mnt ext4 rw 0 0\n"
    (tmp_path / "self/mounts").write_text(mounts)
    backing = tmp_path / "block/loop9/loop"
    backing.mkdir(parents=True)
    (backing / "backing_file").write_text("/tmp/uxk-record-77-x/volume (deleted)\n")
    sweep(proc=tmp_path, block=tmp_path / "block")  # tries neither umount nor losetup


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=r"not found: mkfs\.xfs \(package xfsprogs\), mount \(package util-linux"):
        check_tools(("mkfs.xfs", "mount"))


def test_a_tool_that_fails_tells_why() -> None:
    with pytest.raises(UxkError, match="`sh -c echo no such thing >&2; exit 3`: no such thing"):
        tool("sh", "-c", "echo no such thing >&2; exit 3")
    with pytest.raises(UxkError, match="exit code 4"):
        tool("sh", "-c", "exit 4")


def test_the_scratch_folder_goes(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "file").touch()
        assert folder.stat().st_mode & 0o777 == 0o711
        raise RuntimeError

    with pytest.raises(RuntimeError), scratch_folder(tmp_path) as folder:
        fail(folder)
    assert list(tmp_path.iterdir()) == []


# --- plans that cannot be -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(), "nothing to record"),
        (Plan(("true",), fs="ext5"), r"'ext5' \(did you mean 'ext4'\?\): expected one of ext4, xfs"),
        (Plan(("true",), size_bytes=1 << 20), "1048576 bytes: ext4 needs at least 16MiB"),
        (Plan(("true",), fs="xfs", size_bytes=1 << 28), "xfs needs at least 300MiB"),
        (Plan(("true",), seconds=0.0), "0 seconds: expected more than 0"),
        (Plan(("true",), seconds=float("nan")), "nan seconds"),
        (Plan(("true",), backing=Path("/nowhere")), "/nowhere: no folder"),
    ],
)
def test_plans_that_cannot_be(plan: Plan, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan.check()


def test_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="needs root"):
        Plan(("true",)).check()


def test_a_command_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("uxk.scenario.record.session.check_tools", lambda tools: None)
    with pytest.raises(UsageError, match="no-such-program-here: no such command"):
        Plan(("no-such-program-here",)).check()
