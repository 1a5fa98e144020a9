"""A folder's face: nothing outside is ever reached, whatever lies inside."""

# ruff: noqa: ASYNC240 - the files are the fixture

from __future__ import annotations

import errno
import os
import socket
import string
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import uxk
from uxk.bridges.face.api import READ_MAX_BYTES
from uxk.bridges.face.folder import FolderFace
from uxk.errors import TreeError, UsageError

SECRET = b"secret\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder, beside something that is none of its business."""
    (tmp_path / "secret").write_bytes(SECRET)
    root = tmp_path / "root"
    (root / "sys/deep").mkdir(parents=True)
    (root / "sys/value").write_text("1\n")
    (root / "dev").mkdir()
    return root


async def refused(number: int, operation: Callable[..., Awaitable[object]], *arguments: object) -> None:
    with pytest.raises(TreeError) as caught:
        await operation(*arguments)
    assert caught.value.errno == number, caught.value


OUT = [
    "../../secret",
    "../../../../../../../../../../etc/passwd",
    "/etc/passwd",
    "deep/../../../secret",
    "../..",
    "out",
]


@pytest.mark.parametrize("target", OUT)
async def test_links_out_lead_nowhere(root: Path, target: str) -> None:
    (root / "sys/out").symlink_to("../..")
    (root / "sys/bad").symlink_to(f"out/{target}" if target == "out" else target)
    face = FolderFace(root, writable=True)
    assert (await face.stat("/sys/bad")).kind == "link" and (await face.scan("/sys"))["bad"].kind == "link"
    for path in ("/sys/bad", "/sys/bad/secret", "/sys/out/secret", "/sys/out/root/sys/value"):
        for operation in (face.read, face.scan, face.open):
            await refused(errno.EXDEV, operation, path)
        await refused(errno.EXDEV, face.write, path, b"x")
    assert (root.parent / "secret").read_bytes() == SECRET


async def test_links_within_may_go_up_as_far_as_the_top(root: Path) -> None:
    (root / "sys/deep/up").symlink_to("../../sys/deep/../value")
    (root / "sys/deep/top").symlink_to("../..")
    face = FolderFace(root)
    assert await face.read("/sys/deep/up") == b"1\n"
    assert await face.listdir("/sys/deep/top/sys/deep/top") == ["dev", "sys"]
    for number in range(45):
        (root / f"sys/l{number}").symlink_to(f"l{number + 1}")
    (root / "sys/l45").symlink_to("value")
    assert await face.read("/sys/l6") == b"1\n"
    await refused(errno.ELOOP, face.read, "/sys/l0")
    (root / "sys/self").symlink_to("self")
    await refused(errno.ELOOP, face.read, "/sys/self")


async def test_a_file_that_is_swapped_for_a_link_is_never_followed_out(root: Path) -> None:
    face = FolderFace(root, writable=True)
    (root / "link").symlink_to("../secret")
    (root / "good").mkdir()
    (root / "good/secret").write_bytes(b"mine\n")
    (root / "folder_link").symlink_to("..")
    going = True

    def swap() -> None:
        while going:
            os.link(root / "sys/value", root / "plain")
            os.replace(root / "plain", root / "x")
            os.link(root / "link", root / "again", follow_symlinks=False)
            os.replace(root / "again", root / "x")
            os.rename(root / "good", root / "y")
            os.rename(root / "y", root / "good")
            os.rename(root / "folder_link", root / "y")
            os.rename(root / "y", root / "folder_link")

    seen, numbers = set[bytes](), set[int]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, swap)
        try:
            for _ in range(300):
                for path in ("/x", "/y/secret"):
                    try:
                        seen.add(await face.read(path))
                        await face.write(path, b"1\n" if path == "/x" else b"mine\n")
                    except TreeError as exc:
                        numbers.add(exc.errno)
        finally:
            going = False
    assert seen <= {b"1\n", b"mine\n", b""} and seen and numbers <= {errno.EXDEV, errno.ENOENT}
    assert (root.parent / "secret").read_bytes() == SECRET


NAMES = st.sampled_from(["a", "b", "c", "secret"])
TARGETS = st.lists(st.sampled_from(["a", "b", "c", "..", ".", "", "secret", "root"]), min_size=1, max_size=5).map(
    "/".join
)


@given(
    st.lists(st.tuples(NAMES, NAMES, TARGETS.filter(bool)), max_size=8),
    st.lists(st.lists(NAMES, max_size=4), max_size=8),
)
@settings(max_examples=40)
def test_no_web_of_links_leads_out(links: list[tuple[str, str, str]], paths: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        for name in ("a", "b", "a/c"):
            (root / name).mkdir(parents=True)
        Path(folder, "secret").write_bytes(SECRET)
        for parent, name, target in links:
            place = root / parent / name
            if place.parent.is_dir() and place.parent.resolve().is_relative_to(root) and not os.path.lexists(place):
                place.symlink_to(target)
        wanted = ["/" + "/".join(names) for names in paths]
        texts, listed, numbers = trio.run(look_at, FolderFace(root), [*wanted, "/a/secret", "/b/secret"])
        assert SECRET not in texts and all(Path(f"{root}{path}").resolve().is_relative_to(root) for path in listed)
        assert numbers <= {errno.ENOENT, errno.EXDEV, errno.EISDIR, errno.ELOOP, errno.ENOTDIR}


async def look_at(face: FolderFace, paths: list[str]) -> tuple[list[bytes], list[str], set[int]]:
    """What can be read, the folders that can be listed, and the errors."""
    texts, listed, numbers = list[bytes](), list[str](), set[int]()
    for path in paths:
        try:
            texts.append(await face.read(path))
        except TreeError as exc:
            numbers.add(exc.errno)
        with suppress(TreeError):
            await face.listdir(path)
            listed.append(path)
    return texts, listed, numbers


async def test_only_files_folders_links_and_devices_exist(root: Path) -> None:
    os.mkfifo(root / "sys/pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "sys/s"))
        Path(os.fsdecode(os.fsencode(root) + b"/sys/\xff\xfe")).write_text("x")
        face = FolderFace(root, writable=True)
        assert await face.listdir("/sys") == ["deep", "value"]
        for path in ("/sys/pipe", "/sys/s"):
            for operation in (face.stat, face.read, face.open):
                await refused(errno.ENXIO, operation, path)
        await refused(errno.EINVAL, face.read, "/sys/\udcff\udcfe")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make device nodes")
async def test_device_nodes_are_the_machines(root: Path) -> None:
    try:
        os.mknod(root / "dev/null", 0o666 | 0o020000, os.makedev(1, 3))
    except OSError:
        pytest.skip("no device nodes here")
    face = FolderFace(root, writable=True)
    assert (await face.stat("/dev/null")).kind == "chardev"
    await refused(errno.ENXIO, face.read, "/dev/null")
    await refused(errno.EPERM, face.open, "/dev/null", "rw")
    try:
        (root / "dev/null").read_bytes()
    except OSError:
        pytest.skip("mounted without devices")
    async with await FolderFace(root, writable=True, system=True).open("/dev/null", "rw") as file:
        assert await file.write(b"x") == 1 and await file.read() == b""


async def test_the_machines_own_files_are_refused_and_other_file_systems_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/sys")
    for path in ("/sys", "/proc", "/proc/self", tmp_path / "link", "/sys/kernel"):
        for face in (FolderFace(path), FolderFace(path, writable=True)):
            await refused(errno.EPERM, face.listdir, "/")
    for path in ("/proc/version", "/sys/kernel", "/sys"):
        await refused(errno.EXDEV, FolderFace("/").stat, path)
    machine = FolderFace("/sys", system=True)
    assert "kernel" in await machine.listdir("/")
    await refused(errno.EROFS, machine.write, "/kernel/profiling", b"0")
    await refused(errno.EROFS, machine.open, "/kernel/profiling", "rw")


async def test_a_folder_is_read_only_unless_said_otherwise(root: Path) -> None:
    face = FolderFace(root)
    for mode in ("w", "rw"):
        await refused(errno.EROFS, face.open, "/sys/value", mode)
    await refused(errno.EROFS, face.write, "/sys/value", b"2")
    await refused(errno.ENOENT, FolderFace(root, writable=True).write, "/sys/new", b"2")
    assert sorted(path.name for path in (root / "sys").iterdir()) == ["deep", "value"]
    with pytest.raises(UsageError):
        FolderFace(root, period_s=0)


async def test_a_folder_that_is_not_there_or_goes(root: Path) -> None:
    await refused(errno.ENOENT, FolderFace(root / "none").listdir, "/")
    await refused(errno.ENOTDIR, FolderFace(root / "sys/value").listdir, "/")
    face = FolderFace(root)
    assert await face.listdir("/") == ["dev", "sys"]
    root.rename(root.with_name("moved"))
    await refused(errno.ENOENT, face.listdir, "/")


async def test_a_file_of_any_length(root: Path) -> None:
    text = (string.ascii_letters * 200).encode()
    (root / "sys/long").write_bytes(text)
    with (root / "sys/huge").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"here")
    face = FolderFace(root)
    assert (await face.stat("/sys/long")).stored and not (await face.stat("/sys/value")).stored
    assert await face.read("/sys/long") == text
    assert len(await face.read("/sys/huge")) == READ_MAX_BYTES
    assert await face.read_at("/sys/huge", 1 << 39, 4) == b"here"
    assert await face.read_at("/sys/huge", 1 << 41, 4) == b""
    assert len(await face.read_at("/sys/huge", 0, 1 << 40)) == READ_MAX_BYTES
    async with await face.open("/sys/long") as opened:
        assert [await opened.read(3), await opened.read(3)] == [text[:3], text[3:6]]
    for offset, size_bytes in ((-1, 1), (1, -1)):
        await refused(errno.EINVAL, face.read_at, "/sys/long", offset, size_bytes)


async def test_who_is_cancelled_leaves_no_descriptor_behind(root: Path) -> None:
    face = FolderFace(root)

    def mine() -> int:
        found = (os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
        return sum(each.startswith(str(root)) for each in found)

    for delay in range(20):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(face.open, "/sys/value")
                nursery.start_soon(face.read, "/sys/value")
                for _ in range(delay):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
    file = await face.open("/sys/value")
    assert mine() >= 1
    await file.aclose()
    with trio.fail_after(30):
        while await trio.to_thread.run_sync(mine):
            await trio.testing.wait_all_tasks_blocked(0.001)


async def test_a_copy_of_a_tree(root: Path) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        here = uxk.MemoryFace(kernel)
        for path, stat in await here.walk("/sys/kernel"):
            copy = Path(f"{root}{path}")
            if stat.kind == "dir":
                copy.mkdir(parents=True)
            else:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(await here.read(path))
                copy.chmod(stat.mode)
        there = FolderFace(root)
        assert [path for path, _ in await there.walk("/sys/kernel")] == [p for p, _ in await here.walk("/sys/kernel")]
        assert await there.read_text("/sys/kernel/seed") == "1"
