"""A mount's life: others at the same time, what is unloaded, hangs, dies or is taken away meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from fusebox import (
    NOBODY,
    WITHIN_S,
    Mounted,
    failing,
    get,
    in_thread,
    mounted,
    needs_fuse,
    needs_root,
    put,
    sh,
)

import uxk
from uxk import cli
from uxk.bridges.face.api import POLLERR, POLLIN, POLLOUT, POLLPRI
from uxk.bridges.face.memory import MemoryFace
from uxk.bridges.fuse import Mount
from uxk.bridges.fuse.mountpoint import fstype_at, unmount
from uxk.core.tree import Attribute
from uxk.errors import UsageError

pytestmark = needs_fuse
LIMIT = "sys/module/echo/parameters/limit"


class Hung(uxk.Extension[Any]):
    """Opens, and answers nothing else, ever."""

    manifest = uxk.Manifest(name="hung", version="1", license="MIT", kind="driver", driver_class="misc")

    def setup(self, ctx: uxk.Context) -> None:
        ctx.add_chardev("hung")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            if request.opcode in (uxk.Op.OPEN, uxk.Op.RELEASE):
                ctx.complete(request)


# --- poll ---------------------------------------------------------------------------------------------


def ready(fd: int, mask: int, timeout_s: float) -> int:
    """What poll(2) says, 0 if nothing."""
    poll = select.poll()
    poll.register(fd, mask)
    return sum(bits for _, bits in poll.poll(timeout_s * 1000))


async def wait_ready(fd: int, mask: int) -> int:
    """What poll(2) says when it says something."""
    return await in_thread(ready, fd, mask, WITHIN_S)


async def test_poll_on_an_attribute(tmp_path: Path) -> None:
    value = ["1"]
    async with mounted(tmp_path) as m:
        m.kernel.sysfs.add_attribute("/sys/kernel", Attribute("probe", lambda _: value[0]))
        fd = await m.call(os.open, "sys/kernel/probe", os.O_RDONLY)
        try:
            assert await wait_ready(fd, POLLIN) == POLLIN
            assert await in_thread(ready, fd, POLLPRI, 0) == 0
            found: list[int] = []
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    found.append(await wait_ready(fd, POLLPRI))

                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert found == []
                value[0] = "2"
                m.kernel.sysfs.notify("/sys/kernel/probe")
            assert found == [POLLPRI | POLLERR]
            assert await in_thread(os.pread, fd, 10, 0) == b"2\n"
            assert await in_thread(ready, fd, POLLPRI, 0) == 0
            m.kernel.sysfs.remove("/sys/kernel/probe")
            assert await wait_ready(fd, POLLPRI) & POLLPRI
            assert await failing(os.pread, fd, 10, 0) == errno.ENODEV
        finally:
            await in_thread(os.close, fd)


async def test_poll_on_a_device_and_the_log(tmp_path: Path) -> None:
    async with mounted(tmp_path, "echo") as m:
        device = await m.call(os.open, "dev/echo", os.O_RDWR)
        log = await m.call(os.open, "dev/kmsg", os.O_RDWR)
        try:
            assert await wait_ready(device, POLLIN | POLLOUT) == POLLOUT
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_ready, device, POLLIN)
                await trio.testing.wait_all_tasks_blocked(0.01)
                await in_thread(os.write, device, b"hello")
            assert await in_thread(os.read, device, 3) == b"hel"
            assert await wait_ready(device, POLLIN) == POLLIN
            assert await in_thread(os.read, device, 100) == b"lo"
            assert await in_thread(ready, device, POLLIN, 0) == 0
            assert await failing(os.lseek, device, 0, os.SEEK_SET) == errno.ESPIPE
            assert await failing(fcntl.ioctl, device, 0xAB01) == errno.ENOTTY

            assert await wait_ready(log, POLLIN | POLLOUT) == POLLIN | POLLOUT
            while await in_thread(os.read, log, 1 << 16):
                pass
            assert await in_thread(ready, log, POLLIN, 0) == 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_ready, log, POLLIN)
                await trio.testing.wait_all_tasks_blocked(0.01)
                m.kernel.machine.log("info", "test", "news")
            assert (await in_thread(os.read, log, 1 << 16)).endswith(b"test: news\n")
        finally:
            await in_thread(os.close, device)
            await in_thread(os.close, log)


# --- what goes while it is open ------------------------------------------------------------------------


async def test_rmmod_while_files_are_open(tmp_path: Path) -> None:
    async with mounted(tmp_path, "echo") as m:
        limit = await m.call(os.open, LIMIT, os.O_RDONLY)
        folder = await m.call(os.open, "sys/module/echo", os.O_RDONLY | os.O_DIRECTORY)
        try:
            await m.kernel.rmmod("echo")
            assert await failing(os.pread, limit, 10, 0) == errno.ENODEV
            with suppress(FileNotFoundError):  # or nothing, which is how readdir(3) says it
                assert await in_thread(os.listdir, folder) == []
            assert await m.errno(get, LIMIT) == errno.ENOENT
            assert await m.errno(get, "dev/echo") == errno.ENOENT
            await m.kernel.modprobe("echo")
            assert await failing(os.pread, limit, 10, 0) == errno.ENODEV
            assert await m.call(get, LIMIT) == b"65536\n"
        finally:
            await in_thread(os.close, limit)
            await in_thread(os.close, folder)


async def test_a_driver_that_goes_while_its_device_is_open(tmp_path: Path) -> None:
    async with mounted(tmp_path, "echo") as m:
        fd = await m.call(os.open, "dev/echo", os.O_RDWR)
        try:
            with pytest.raises(uxk.InUse):
                await m.kernel.rmmod("echo")
        finally:
            await in_thread(os.close, fd)
        await m.sh("while ! cat sys/module/echo/refcnt | grep -qx 0; do :; done")
        await m.kernel.rmmod("echo")


async def test_many_at_a_time(tmp_path: Path) -> None:
    script = """
    for i in 1 2 3; do
        find . -type f > /dev/null 2>&1
        echo ${i}KiB > sys/module/echo/parameters/limit
        grep -rs . sys/module > /dev/null
        cat dev/kmsg > /dev/null && echo line > dev/kmsg || exit 3
        cat proc/sys/kernel/host_answer_ns || exit 4
    done 2> /dev/null
    exit 0
    """
    async with mounted(tmp_path, "echo") as m, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(m.sh, script)
        for _ in range(4):
            await m.kernel.rmmod("echo")
            await m.kernel.modprobe("echo")
            await trio.sleep(0.01)
    assert m.kernel.sysfs.waiter_count == 0


# --- what hangs ---------------------------------------------------------------------------------------


async def test_a_hanging_driver_holds_up_nobody_else(tmp_path: Path) -> None:
    async with mounted(tmp_path, clock="real", timeout_s=0.3) as m:
        await m.kernel.insmod(Hung)
        async with trio.open_nursery() as nursery:
            for call in ((get,), (put, b"data", os.O_WRONLY)):
                nursery.start_soon(_times_out, m, *call)
            for _ in range(3):
                assert await m.sh("cat sys/module/hung/initstate") == "live\n"
        assert "timed out" in await m.sh("cat dev/hung", status=1)


async def _times_out(m: Mounted, function: Any, *arguments: Any) -> None:
    assert await m.errno(function, "dev/hung", *arguments) == errno.ETIMEDOUT


class Broken(MemoryFace):
    """Raises what no face may, and hangs."""

    async def read(self, path: str) -> bytes:
        raise RuntimeError("a defect")

    async def readlink(self, path: str) -> str:
        await trio.sleep_forever()
        raise AssertionError


async def test_a_broken_face_is_an_error_not_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mnt").mkdir()
    async with uxk.Kernel() as kernel, Mount(Broken(kernel), tmp_path / "mnt", timeout_s=0.2):
        await kernel.modprobe("echo")
        m = Mounted(kernel, tmp_path / "mnt")
        assert await m.errno(os.stat, "sys/kernel/seed") == errno.EIO
        assert "a defect" in caplog.text
        assert await m.errno(os.readlink, "sys/class/misc/echo0") == errno.ETIMEDOUT
        assert await m.sh("ls") == "dev\nproc\nsys\n"


# --- who may ------------------------------------------------------------------------------------------


def as_nobody(script: str, folder: Path) -> str:
    """What another user's shell prints."""
    done = subprocess.run(
        ["sh", "-c", script], cwd="/", user=NOBODY, group=NOBODY, extra_groups=[], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=WITHIN_S, env={**os.environ, "LC_ALL": "C", "M": str(folder)}, check=False,
    )  # fmt: skip
    return done.stdout.decode()


def let_in(folder: Path) -> None:
    """Lets other users reach a test's folder: those above it are the test runner's, one more where it has workers."""
    for each in (folder, *folder.parents):
        if Path(tempfile.gettempdir()) in each.parents:
            each.chmod(0o755)


@needs_root
async def test_modes_count_for_other_users(tmp_path: Path) -> None:
    let_in(tmp_path)
    async with mounted(tmp_path, "echo", allow_other=True) as m:
        m.kernel.sysfs.add_attribute("/sys/kernel", Attribute("secret", lambda _: "x", mode=0o400))
        m.kernel.sysfs.add_attribute("/sys/kernel", Attribute("open", lambda _: "x", lambda *_: None, mode=0o666))

        async def other(script: str) -> str:
            return await in_thread(as_nobody, script, m.folder)

        assert (
            await other("cat $M/sys/module/echo/version $M/sys/kernel/open; echo 1 > $M/sys/kernel/open")
            == "0.1.0\nx\n"
        )
        assert "Permission denied" in await other("cat $M/sys/kernel/secret")
        assert "Permission denied" in await other(f"echo 1KiB > $M/{LIMIT}")
        assert "Permission denied" in await other("cat $M/dev/echo")
        assert "Permission denied" in await other("echo line > $M/dev/kmsg")
        assert (await other("head -c 4 $M/dev/kmsg")) == "6,0,"
        assert await m.sh("cat sys/kernel/secret") == "x\n"


@needs_root
async def test_other_users_are_kept_out(tmp_path: Path) -> None:
    let_in(tmp_path)
    async with mounted(tmp_path) as m:
        assert "Permission denied" in await in_thread(as_nobody, "ls $M", m.folder)


# --- beginnings and ends --------------------------------------------------------------------------------


async def test_unmounting_while_it_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    async with uxk.Kernel(clock="real") as kernel:
        async with kernel.mount(tmp_path / "mnt", timeout_s=WITHIN_S) as mount:
            await kernel.insmod(Hung)
            fd = await in_thread(os.open, tmp_path / "mnt/sys/kernel/seed", os.O_RDONLY)
            stuck = await trio.lowlevel.open_process(
                ["cat", "dev/hung"], cwd=tmp_path / "mnt", stderr=subprocess.DEVNULL
            )
            await sh(tmp_path / "mnt", "until grep -qx 1 sys/module/hung/statistics/files; do :; done")
        assert mount.unmounted
        assert os.listdir(tmp_path / "mnt") == []
        assert await failing(os.pread, fd, 10, 0) == errno.ENOTCONN
        assert await failing(os.fstat, fd) == errno.ENOTCONN
        assert await failing(os.close, fd) == errno.ENOTCONN
        assert await finished(stuck) == 1
        async with kernel.mount(tmp_path / "mnt"):
            assert await sh(tmp_path / "mnt", "cat sys/kernel/seed") == "0\n"


async def test_unmounted_by_others(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        user = await m.call(os.open, "sys", os.O_RDONLY | os.O_DIRECTORY)
        with pytest.raises(UsageError, match="in use") as caught:
            await in_thread(unmount, m.folder)
        assert caught.value.errno == errno.EBUSY
        await in_thread(os.close, user)
        await in_thread(unmount, m.folder)
        assert await sh(m.folder, "ls") == ""
        with pytest.raises(UsageError, match="nothing is mounted there"):
            await in_thread(unmount, m.folder)


async def test_the_end_is_told(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    async with uxk.Kernel() as kernel, kernel.mount(tmp_path / "mnt") as mount:
        assert not mount.unmounted
        await in_thread(lambda: unmount(tmp_path / "mnt", lazy=True))
        with trio.fail_after(WITHIN_S):
            await mount.wait_unmounted()
        assert mount.unmounted


async def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    async with mounted(tmp_path) as m:
        for folder, number, words in (("other", errno.EBUSY, "one mount at a time"),):
            with pytest.raises(UsageError, match=words) as caught:
                async with m.kernel.mount(tmp_path / folder):
                    pass
            assert caught.value.errno == number
    async with uxk.Kernel() as kernel:
        for folder, number, words in (
            (tmp_path / "nothing", errno.ENOENT, "make it first"), (tmp_path / "file", errno.ENOTDIR, "folder"),
            (Path("/proc"), errno.EBUSY, "mounted there already"),
        ):  # fmt: skip
            with pytest.raises(UsageError, match=words) as caught:
                async with kernel.mount(folder):
                    pass
            assert caught.value.errno == number
        with pytest.raises(UsageError, match="timeout_s=0"):
            kernel.mount(tmp_path / "other", timeout_s=0)
        with pytest.raises(ZeroDivisionError):  # in no group
            async with kernel.mount(tmp_path / "other"):
                raise ZeroDivisionError


async def test_nothing_is_left(tmp_path: Path) -> None:
    def own() -> tuple[int, int]:
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
        return len(os.listdir("/proc/self/fd")), len(children)

    async with mounted(tmp_path):
        pass
    before = own()
    for _ in range(3):
        async with mounted(tmp_path) as m:
            await m.sh("ls")
    assert own() == before


# --- a kernel in another process --------------------------------------------------------------------------


class Commands:
    """``uxk boot`` and ``uxk mount``, each in a process of its own."""

    def __init__(self, nursery: trio.Nursery, folder: Path) -> None:
        self._nursery = nursery
        self.socket = folder / "socket"
        self.folder = folder / "mnt"
        self.folder.mkdir(exist_ok=True)

    async def start(self, *words: str) -> trio.Process:
        """Starts a verb that prints a line when it is ready."""
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "uxk", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "UXK_SOCKET": str(self.socket)},
        )  # fmt: skip
        self._nursery.start_soon(_reap, process)
        assert process.stdout is not None
        with trio.fail_after(WITHIN_S):
            line = await process.stdout.receive_some()
        assert line.startswith((b"uxk: kernel booted", b"uxk: mounted")), line
        return process

    async def mount(self) -> trio.Process:
        return await self.start("mount", str(self.folder))

    async def gone(self) -> None:
        """Waits until nothing is mounted."""
        with trio.fail_after(WITHIN_S):
            while fstype_at(str(self.folder)):  # noqa: ASYNC110 Linux rings no bell
                await trio.sleep(0.01)


async def _reap(process: trio.Process) -> None:
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
        if process.stdout is not None:
            await process.stdout.aclose()


def children_of(pid: int) -> list[int]:
    """Processes that a thread, by default the first, has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def finished(process: trio.Process) -> int:
    with trio.fail_after(WITHIN_S):
        return await process.wait()


async def test_the_commands(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        commands = Commands(nursery, tmp_path)
        kernel = await commands.start("boot", "--load", "echo")
        m = Mounted(None, commands.folder)  # type: ignore[arg-type]

        mount = await commands.mount()
        assert await m.sh(f"cat {LIMIT}; echo 1KiB > {LIMIT}; cat {LIMIT}; echo hi > dev/echo; cat dev/echo") == (
            "65536\n1024\nhi\n"
        )
        assert await m.sh("tail -n 1 dev/kmsg | grep -c device; find . | grep -c kmsg") is not None
        mount.terminate()
        assert await finished(mount) == 0
        assert fstype_at(str(commands.folder)) == ""

        mount = await commands.mount()
        assert await in_thread(cli.main, ["umount", str(commands.folder)]) == 0
        assert await finished(mount) == 0

        mount = await commands.mount()
        user = await trio.lowlevel.open_process(["sleep", "60"], cwd=commands.folder / "sys")
        mount.send_signal(signal.SIGSTOP)  # it hangs, and is in use
        with pytest.raises(UsageError):
            await in_thread(lambda: unmount(commands.folder.parent))
        assert await in_thread(cli.main, ["umount", "-f", str(commands.folder)]) == 0
        user.kill()
        await user.wait()
        assert fstype_at(str(commands.folder)) == ""
        mount.send_signal(signal.SIGCONT)
        await finished(mount)

        mount = await commands.mount()
        mount.kill()
        await commands.gone()

        mount = await commands.mount()
        for child in children_of(mount.pid):
            os.kill(child, signal.SIGKILL)  # fusermount3
        mount.kill()
        await finished(mount)
        assert await failing(os.listdir, commands.folder) == errno.ENOTCONN
        mount = await commands.mount()
        kernel.kill()
        assert await finished(mount) == 1
        assert fstype_at(str(commands.folder)) == ""
