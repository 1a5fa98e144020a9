"""The contract of a face, over every backend: a kernel here, its socket, a folder, a mounted kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import uxk
from uxk.bridges.control_server import ControlServer
from uxk.bridges.face.api import POLLERR, POLLIN, POLLOUT, POLLPRI, Face, FaceFile
from uxk.bridges.face.folder import FolderFace
from uxk.bridges.face.graft import GraftedFace
from uxk.bridges.face.memory import MemoryFace
from uxk.bridges.face.socket import SocketFace
from uxk.core.tree import Attribute
from uxk.errors import TreeError
from uxk.limits import PATH_MAX_BYTES, SHOW_MAX_BYTES

BACKENDS = ("memory", "socket", "grafted", "folder", "mount")
BASE = "/sys/face"
TEXTS = {"value": "1", "fixed": "hello", "empty": "", "page": "x" * (SHOW_MAX_BYTES - 1), "lines": "a\nb"}
HAS_FUSE = Path("/dev/fuse").exists()
PERIOD_S = 0.03
"""Longer than what tests take for quiet."""


class Store(uxk.Extension[Any]):
    """``/dev/store``: bytes at offsets."""

    manifest = uxk.Manifest(
        name="face_store", kind="driver", driver_class="misc",
        ioctls=(uxk.Ioctl("add", 1, list[int], dict[str, int]), uxk.Ioctl("size", 2)),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.store = bytearray(b"abc")
        ctx.add_chardev("store")
        ctx.set_poll("store", readable=True, writable=True)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            if request.opcode == uxk.Op.READ:
                ctx.complete(request, bytes(self.store[request.offset : request.offset + request.length]))
            elif request.opcode == uxk.Op.WRITE:
                self.store[request.offset : request.offset + len(request.payload)] = request.payload
                ctx.complete(request, result=len(request.payload))
            elif request.opcode == uxk.Op.IOCTL and request.offset == 1:
                ctx.complete(request, b"\x81\xa3sum" + bytes([sum(request.payload[1:])]))
            else:
                ctx.complete(request, result=len(self.store))


class World:
    """The same files behind each backend, and what happens to them there."""

    def __init__(self, face: Face, kernel: uxk.Kernel | None = None, folder: Path | None = None) -> None:
        self.face = face
        self.kernel = kernel
        self._folder = folder

    def change(self, name: str, text: str) -> None:
        """The owner of an attribute has something new to say, and says so."""
        if self.kernel is not None:
            self.kernel.sysfs.lookup(BASE).owner[name] = text  # type: ignore[index]
            self.kernel.sysfs.notify(f"{BASE}/{name}")
        else:
            assert self._folder is not None
            path = Path(f"{self._folder}{BASE}/{name}")
            after_ns = path.stat().st_mtime_ns + 1_000_000
            path.write_text(text + "\n" if text else "")
            os.utime(path, ns=(after_ns, after_ns))

    def remove(self, name: str) -> None:
        """An attribute goes, or a folder with all that is in it."""
        if self.kernel is not None:
            self.kernel.sysfs.remove(f"{BASE}/{name}")
        else:
            assert self._folder is not None
            path = Path(f"{self._folder}{BASE}/{name}")
            for below in path.iterdir() if path.is_dir() else ():
                below.unlink()
            path.rmdir() if path.is_dir() else path.unlink()

    @property
    def asks_drivers(self) -> bool:
        """Whether ioctls get through."""
        return not isinstance(self.face, FolderFace)


def populate_kernel(kernel: uxk.Kernel) -> None:
    tree, texts = kernel.sysfs, dict(TEXTS)

    def attribute(name: str, **modes: Any) -> Attribute:
        return Attribute(name, show=lambda owner: str(owner[name]), **modes)

    tree.add(BASE, texts)
    for name in TEXTS:
        store = {"store": lambda owner, text: owner.update(value=text)} if name == "value" else {}
        tree.add_attribute(BASE, attribute(name, **store))
    tree.add_attribute(BASE, Attribute("trigger", store=lambda owner, text: None))
    tree.add(f"{BASE}/deep/er", texts)
    tree.add_attribute(f"{BASE}/deep/er", attribute("value"))
    tree.link(f"{BASE}/link", f"{BASE}/deep/er")


def populate_folder(folder: Path) -> None:
    base = Path(f"{folder}{BASE}")
    (base / "deep/er").mkdir(parents=True)
    for name, text in TEXTS.items():
        (base / name).write_text(text + "\n" if text else "")
        (base / name).chmod(0o644 if name == "value" else 0o444)
    (base / "trigger").write_text("")
    (base / "trigger").chmod(0o200)
    (base / "deep/er/value").write_text("1\n")
    (base / "link").symlink_to("deep/er")
    (folder / "dev").mkdir()
    (folder / "dev/store").write_bytes(b"abc")


@pytest.fixture(params=BACKENDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """The same world behind each backend."""
    async with AsyncExitStack() as stack:
        if request.param == "folder":
            populate_folder(tmp_path)
            yield World(FolderFace(tmp_path, writable=True, period_s=PERIOD_S), folder=tmp_path)
            return
        if request.param == "mount":
            pytest.importorskip("pyfuse3")
            if not HAS_FUSE:
                pytest.skip("no /dev/fuse")
        kernel = await stack.enter_async_context(uxk.Kernel(seed=3))
        await kernel.insmod(Store)
        populate_kernel(kernel)
        face: Face = MemoryFace(kernel)
        if request.param == "grafted":
            face = GraftedFace({"/": face, "/other": MemoryFace(kernel)})
        elif request.param == "socket":
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            await nursery.start(ControlServer(kernel, tmp_path / "k").serve)
            face = await stack.enter_async_context(SocketFace(tmp_path / "k"))
        elif request.param == "mount":
            from uxk.bridges.fuse import mount

            await stack.enter_async_context(mount(kernel, tmp_path))
            face = FolderFace(tmp_path, writable=True, period_s=PERIOD_S)
        yield World(face, kernel)


async def refused(number: int, operation: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """The operation fails with that errno, and nothing else."""
    with pytest.raises(TreeError) as caught:
        await operation(*arguments)
    assert caught.value.errno == number, caught.value


# --- looking ------------------------------------------------------------------------------------------


async def test_stat_tells_kind_mode_owner_and_a_number(world: World) -> None:
    face = world.face
    found = {
        path: await face.stat(path)
        for path in ("/", "/sys", BASE, *(f"{BASE}/{name}" for name in ("value", "fixed", "trigger", "link", "deep")))
    }
    kinds = [stat.kind for stat in found.values()]
    assert kinds == ["dir", "dir", "dir", "file", "file", "file", "link", "dir"]
    assert [found[f"{BASE}/{name}"].mode for name in ("value", "fixed", "trigger")] == [0o644, 0o444, 0o200]
    assert {(stat.uid, stat.gid) for stat in found.values()} == {(os.geteuid(), os.getegid())}
    assert len({stat.id for stat in found.values()}) == len(found) and all(0 < s.id < 1 << 63 for s in found.values())
    assert found == {path: await face.stat(path) for path in found}
    assert not any(stat.stored for stat in found.values())
    assert (await face.stat(f"{BASE}/link")).size_bytes == len("deep/er")


async def test_scan_is_names_and_stat(world: World) -> None:
    face = world.face
    found = await face.scan(BASE)
    assert list(found) == sorted([*TEXTS, "trigger", "deep", "link"]) == await face.listdir(BASE)
    assert found == {name: await face.stat(f"{BASE}/{name}") for name in found}
    assert await face.listdir(f"{BASE}/link/") == ["value"]
    assert {"dev", "sys"} <= set(await face.listdir("/"))
    await refused(errno.ENOTDIR, face.scan, f"{BASE}/value")
    await refused(errno.ENOTDIR, face.scan, "/dev/store")
    await refused(errno.ENOENT, face.scan, f"{BASE}/nothing")


async def test_links(world: World) -> None:
    face = world.face
    assert await face.readlink(f"{BASE}/link") == "deep/er"
    assert await face.read(f"{BASE}/link/value") == b"1\n"
    for path in (f"{BASE}/value", BASE, "/", "/dev/store"):
        await refused(errno.EINVAL, face.readlink, path)
    await refused(errno.ENOENT, face.readlink, f"{BASE}/nothing")


WRONG = [
    ("", errno.EINVAL), ("sys", errno.EINVAL), ("//sys", errno.EINVAL), ("/sys/../sys", errno.EINVAL),
    ("/sys/.", errno.EINVAL), ("/sys\0", errno.EINVAL), ("/\ud800", errno.EINVAL), ("/nothing", errno.ENOENT),
    ("/" + "x" * PATH_MAX_BYTES, errno.ENAMETOOLONG), (f"{BASE}/value/x", errno.ENOTDIR), ("/dev/none", errno.ENOENT),
    ("/dev/store/x", errno.ENOTDIR), ("/dev/../sys", errno.EINVAL),
]  # fmt: skip


@pytest.mark.parametrize(("path", "number"), WRONG)
async def test_paths_that_lead_nowhere(world: World, path: str, number: int) -> None:
    face = world.face
    for operation in (face.stat, face.scan, face.read, face.readlink, face.open):
        await refused(number, operation, path)
    await refused(number, face.write, path, b"1")
    await refused(number, face.read_at, path, 0, 1)


# --- reading and writing ------------------------------------------------------------------------------


async def test_reading(world: World) -> None:
    face = world.face
    for name, text in TEXTS.items():
        assert await face.read(f"{BASE}/{name}") == (f"{text}\n".encode() if text else b"")
        assert await face.read_text(f"{BASE}/{name}") == text
    await refused(errno.EISDIR, face.read, BASE)
    await refused(errno.EISDIR, face.read, "/")
    await refused(errno.EISDIR, face.read, f"{BASE}/link")
    await refused(errno.EACCES, face.read, f"{BASE}/trigger")
    await refused(errno.ENXIO, face.read, "/dev/store")
    assert await face.read_at(f"{BASE}/fixed", 1, 3) == b"ell"
    assert await face.read_at(f"{BASE}/fixed", 100, 3) == b""


async def test_writing(world: World) -> None:
    face = world.face
    for data, text in ((b"2", "2"), (b"33\n", "33"), ("ü".encode(), "ü"), (b"", "")):
        await face.write(f"{BASE}/value", data)
        assert await face.read_text(f"{BASE}/value") == text
    await face.write_text(f"{BASE}/value", "4")
    assert await face.read(f"{BASE}/value") in (b"4\n", b"4")
    await face.write(f"{BASE}/trigger", b"go\n")
    await refused(errno.EACCES, face.write, f"{BASE}/fixed", b"1")
    await refused(errno.EISDIR, face.write, BASE, b"1")
    await refused(errno.ENXIO, face.write, "/dev/store", b"1")
    await refused(errno.E2BIG, face.write, f"{BASE}/value", b"x" * (SHOW_MAX_BYTES + 1))
    await refused(errno.EINVAL, face.write_text, f"{BASE}/value", "\ud800")
    assert await face.read_text(f"{BASE}/value") == "4"


# --- open attributes ----------------------------------------------------------------------------------


async def test_an_open_attribute_is_read_anew_each_time(world: World) -> None:
    async with await world.face.open(f"{BASE}/value", "rw") as file:
        assert await file.read() == b"1\n"
        world.change("value", "2")
        assert await file.read() == b"2\n" and await file.read(1) == b"2"
        assert await file.write(b"3\n") == 2
        assert await file.read() == b"3\n"
        await refused(errno.E2BIG, file.write, b"x" * (SHOW_MAX_BYTES + 1))
        await refused(errno.ENOTTY, file.ioctl, "size")
    for number, path, mode in (
        (errno.EACCES, f"{BASE}/fixed", "w"), (errno.EACCES, f"{BASE}/trigger", "rw"), (errno.EISDIR, BASE, "r"),
        (errno.EINVAL, f"{BASE}/value", "x"),
    ):  # fmt: skip
        await refused(number, world.face.open, path, mode)


async def test_an_open_file_does_what_it_was_opened_for_until_it_is_closed(world: World) -> None:
    reader = await world.face.open(f"{BASE}/value", "r")
    writer = await world.face.open(f"{BASE}/value", "w")
    await refused(errno.EBADF, reader.write, b"1")
    await refused(errno.EBADF, writer.read)
    for file in (reader, writer):
        await file.aclose()
        await file.aclose()
        for operation, arguments in ((file.read, ()), (file.write, (b"1",)), (file.poll, (POLLIN,))):
            await refused(errno.EBADF, operation, *arguments)


async def test_poll_tells_of_changes_since_the_last_read(world: World) -> None:
    async with await world.face.open(f"{BASE}/value") as file:
        assert await file.poll(POLLIN | POLLOUT) & (POLLIN | POLLOUT | POLLPRI) == POLLIN | POLLOUT
        world.change("value", "2")
        for _ in range(2):  # until it is read
            assert await file.poll(POLLPRI) & (POLLPRI | POLLERR) == POLLPRI | POLLERR
        assert await file.read() == b"2\n"
        seen = list[bytes]()

        async def wait() -> None:
            await file.poll(POLLPRI)
            seen.append(await file.read())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not seen
            world.change("value", "3")
        assert seen == [b"3\n"]
        await refused(errno.EINVAL, file.poll, 1 << 9)


async def test_time_moves_with_changes(world: World) -> None:
    before = await world.face.stat(f"{BASE}/fixed")
    world.change("fixed", "bye")
    after = await world.face.stat(f"{BASE}/fixed")
    assert after.mtime_ns > before.mtime_ns and after.id == before.id
    assert await world.face.stat(f"{BASE}/fixed") == after


@pytest.mark.parametrize("victim", ["value", "deep/er"])
async def test_what_goes_wakes_who_waits_and_stays_gone(world: World, victim: str) -> None:
    path = f"{BASE}/{victim}" if victim == "value" else f"{BASE}/{victim}/value"
    woken = list[int]()
    async with await world.face.open(path, "r") as file:

        async def wait() -> None:
            woken.append(await file.poll(POLLPRI))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            world.remove(victim)
        assert woken[0] & POLLERR
        await refused(errno.ENODEV, file.read)
        assert await file.poll(POLLPRI) & POLLERR
    await refused(errno.ENOENT, world.face.stat, path)
    await refused(errno.ENOENT, world.face.open, path)


async def test_closing_wakes_who_waits(world: World) -> None:
    file = await world.face.open(f"{BASE}/value")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, errno.EBADF, file.poll, POLLPRI)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await file.aclose()


async def test_who_waits_can_be_cancelled(world: World) -> None:
    async with await world.face.open(f"{BASE}/value") as file:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(file.poll, POLLPRI)
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
        assert await file.read() == b"1\n"
    with trio.CancelScope() as scope:
        scope.cancel()
        await world.face.read(f"{BASE}/value")
    assert scope.cancelled_caught
    assert await world.face.read(f"{BASE}/value") == b"1\n"


async def test_many_at_a_time(world: World) -> None:
    async def use(face: Face) -> None:
        async with await face.open(f"{BASE}/value") as file:
            for _ in range(5):
                assert await file.read() == await face.read(f"{BASE}/value")

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(use, world.face)


# --- char devices -------------------------------------------------------------------------------------


async def device(world: World) -> FaceFile:
    return await world.face.open("/dev/store", "rw")


async def test_a_char_device(world: World) -> None:
    assert (await world.face.stat("/dev/store")).kind == "chardev"
    assert (await world.face.scan("/dev"))["store"] == await world.face.stat("/dev/store")
    async with await device(world) as file:
        assert await file.read(2) == b"ab" and await file.write(b"xyz") == 3
    async with await device(world) as file:
        assert [await file.read(), await file.read(), await file.read(0)] == [b"abxyz", b"", b""]
        assert await file.poll(POLLIN | POLLOUT) & POLLOUT
        if world.asks_drivers:
            assert await file.ioctl("add", [1, 2, 3]) == {"sum": 6}
            assert await file.ioctl(2) == 5
            await refused(errno.EINVAL, file.ioctl, "add", ["x"])
            await refused(errno.EINVAL, file.ioctl, "add", object())
        await refused(errno.ENOTTY, file.ioctl, "other")
    await refused(errno.EBADF, file.read)
    await refused(errno.EISDIR, world.face.open, "/dev")
