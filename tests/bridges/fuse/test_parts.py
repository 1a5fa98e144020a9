"""What a mount is made of, without one."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk.bridges.face.api import POLLERR, POLLHUP, POLLIN, POLLPRI
from uxk.bridges.face.memory import MemoryFace
from uxk.bridges.fuse import kmsg, library, mountpoint
from uxk.bridges.fuse.kmsg import KmsgLog
from uxk.bridges.fuse.mount import mount
from uxk.bridges.fuse.nodes import ROOT, NodeTable, check_link, child_path
from uxk.bridges.fuse.poller import Poller
from uxk.errors import TreeError, UsageError


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.booleans()), max_size=200))
def test_inodes(steps: list[tuple[int, int, bool]]) -> None:
    """Whatever is looked up and forgotten: no two paths share a number, and in the end none is left."""
    nodes = NodeTable()
    counts: dict[tuple[int, str], int] = {}
    for number, ident, forget in steps:
        path = f"/{number}"
        if forget and counts:
            (ino, path), count = min(counts.items())
            nodes.forget([(ino, count)])
            del counts[ino, path]
            continue
        ino = nodes.look_up(path, ident)
        assert nodes.number(path, ident) == ino != ROOT
        assert nodes.get(ino).path == path
        assert all(other == path for taken, other in counts if taken == ino)
        counts[ino, path] = counts.get((ino, path), 0) + 1
    nodes.forget([(ino, count) for (ino, _), count in counts.items()])
    nodes.forget([(12345, 1), (ROOT, 1)])
    assert len(nodes) == 1
    with pytest.raises(TreeError) as caught:
        nodes.get(12345)
    assert caught.value.errno == errno.ESTALE


def test_paths() -> None:
    assert child_path("/", b"sys") == "/sys"
    assert child_path("/sys", b"a") == "/sys/a"
    for name, number in ((b"\xff", errno.ENOENT), (b"a" * 5000, errno.ENAMETOOLONG)):
        with pytest.raises(TreeError) as caught:
            child_path("/sys", name)
        assert caught.value.errno == number


def test_links_stay_inside() -> None:
    for path, target in (("/a/b/c", "../../x/y"), ("/a/b", "x"), ("/a/b", ".."), ("/a", "."), ("/a/b", "../b")):
        assert check_link(path, target) == target.encode()
    for path, target in (
        ("/a/b", "/etc/passwd"), ("/a/b", "../.."), ("/a", "../x"), ("/a/b", "x/../../.."), ("/a/b", ""),
        ("/a/b/c", "../x/.."), ("/a/b", "x//y"),
    ):  # fmt: skip
        with pytest.raises(TreeError) as caught:
            check_link(path, target)
        assert caught.value.errno == errno.EXDEV


async def test_the_log_drops_its_oldest_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmsg, "KEPT_MAX_BYTES", 2000)
    rng = random.Random(1)
    async with uxk.Kernel() as kernel, trio.open_nursery() as nursery:
        log, text = KmsgLog(MemoryFace(kernel), nursery), b""
        for number in range(300):
            kernel.machine.log("info", "test", f"{number} {'x' * rng.randrange(60)}")
            before = log.end
            await log.refresh()
            text += log.read(before, 1000)
            assert len(text) == log.end
            assert log.end - log.start <= 2000
            for place in (log.start, rng.randrange(log.start, log.end), log.end - 1):
                assert log.read(place, 50) == text[place : place + 50]
                assert text[place:].startswith(log.record(place, 1000))
            assert log.read(log.start - 1, 10) == log.read(log.end, 10) == log.record(log.end, 10) == b""
        assert log.start > 0
        waiting = trio.Event()

        async def wait() -> None:
            await log.wait(log.end)
            waiting.set()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not waiting.is_set()
        kernel.machine.log("info", "test", "the end")
        await waiting.wait()
        nursery.cancel_scope.cancel()


class Bell:
    """Counts."""

    rung = 0

    def notify(self) -> None:
        self.rung += 1
        raise OSError(errno.ENOENT, "nobody polls any more")


async def test_polling() -> None:
    level, changed = [0], [trio.Event()]

    async def wait() -> int:
        while not level[0]:
            await changed[0].wait()
        if level[0] < 0:
            raise TreeError("gone", errno=errno.ENODEV)
        return level[0]

    async with trio.open_nursery() as nursery:
        poller, bell = Poller(nursery, POLLIN, {POLLPRI: wait}), Bell()
        assert await poller.poll(None) == POLLIN
        assert await poller.poll(bell) == POLLIN
        level[0] = POLLPRI | POLLERR
        changed[0].set()
        await trio.testing.wait_all_tasks_blocked()
        assert bell.rung == 1
        assert await poller.poll(bell) == POLLIN | POLLPRI | POLLERR
        assert bell.rung == 1  # the answer says it already
        level[0], changed[0] = 0, trio.Event()
        assert await poller.poll(bell) == POLLIN
        level[0] = -1
        changed[0].set()
        await trio.testing.wait_all_tasks_blocked()
        assert bell.rung == 2
        assert await poller.poll(None) == POLLIN | POLLPRI | POLLERR | POLLHUP
        await poller.poll(bell)
        poller.silence()
        poller.close()
        assert bell.rung == 2


async def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(library, "import_module", refuse)
    async with uxk.Kernel() as kernel:
        with pytest.raises(UsageError, match="libfuse3-dev") as caught:
            async with mount(kernel, str(tmp_path)):
                pass
    assert caught.value.errno == errno.ENOPKG
    assert library.missing()


def test_mountinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:

    text = (
        "22 27 0:20 / /proc rw,relatime - proc proc rw\n"
        "90 27 0:51 / /tmp/a\\040b rw,nosuid master:1 shared:2 - fuse.uxk uxk rw,user_id=0\n"
        "91 27 0:52 / /tmp/a\\040b rw - tmpfs none rw\n"
    )
    (tmp_path / "mountinfo").write_text(text)
    monkeypatch.setattr(mountpoint, "_PROC_SELF", tmp_path)
    assert mountpoint.mounts()[1] == mountpoint.Entry("/tmp/a b", "fuse.uxk", "51")
    assert mountpoint.fstype_at("/tmp/a b") == "tmpfs"
    assert mountpoint.fstype_at("/tmp") == ""
    with pytest.raises(UsageError, match="expected fuse"):
        mountpoint.unmount("/tmp/a b")
