"""The tools of Linux on a mounted kernel: they do what they do in /sys."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import tarfile
from pathlib import Path

import trio
from fusebox import Mounted, get, mounted, needs_fuse, put, sh

from uxk.bridges.face.api import Face, Stat
from uxk.bridges.fuse import Mount
from uxk.core.kobject import tree_error
from uxk.core.tree import Attribute
from uxk.limits import SHOW_MAX_BYTES

pytestmark = needs_fuse
LIMIT = "sys/module/echo/parameters/limit"


async def test_what_is_there(tmp_path: Path) -> None:
    async with mounted(tmp_path, "echo") as m:
        assert (await m.sh("ls")).split() == ["dev", "proc", "sys"]
        assert await m.sh("cat sys/module/echo/initstate proc/sys/kernel/host_answer_ns") == "live\n10000000000\n"
        assert await m.sh("cd sys/class/misc/echo0 && cat state && cd -P module && basename $PWD") == "open\necho\n"
        found = (await m.sh("find . -type f | sort")).split()
        assert {"./dev/kmsg", "./dev/echo", f"./{LIMIT}", "./sys/module/echo/version"} <= set(found)
        assert len(await m.sh("find . -type l")) > 0
        assert await m.sh(f"cp {LIMIT} {tmp_path}/copy && cat {tmp_path}/copy") == "65536\n"
        assert (await m.sh("grep -rlx live sys/module")).split() == ["sys/module/echo/initstate"]
        assert (
            await m.sh(f"wc -c < {LIMIT}; head -c 3 {LIMIT}; echo; dd if={LIMIT} bs=2 2>/dev/null") == "6\n655\n65536\n"
        )
        assert "cannot access" in await m.sh("ls sys/nothing", status=2)


async def test_modes_owners_sizes_and_times(tmp_path: Path) -> None:
    async with mounted(tmp_path, "echo") as m:
        listed = (await m.sh("ls -l sys/module/echo | grep -v ^total")).splitlines()
        modes = {line.split()[-1]: line.split()[0] for line in listed}
        assert modes["version"] == "-r--r--r--"
        assert modes["parameters"] == "drwxr-xr-x"
        limit = await m.call(os.lstat, LIMIT)
        assert stat.filemode(limit.st_mode) == "-rw-r--r--"
        assert (limit.st_uid, limit.st_gid, limit.st_size, limit.st_nlink) == (os.geteuid(), os.getegid(), 6, 1)
        again = await m.call(os.lstat, LIMIT)
        assert (again.st_ino, again.st_mtime_ns) == (limit.st_ino, limit.st_mtime_ns)
        await m.call(put, LIMIT, b"5")
        assert (await m.call(os.lstat, LIMIT)).st_mtime_ns > limit.st_mtime_ns
        link = await m.call(os.lstat, "sys/class/misc/echo0")
        assert stat.S_ISLNK(link.st_mode)
        assert not (await m.call(os.readlink, "sys/class/misc/echo0")).startswith("/")
        assert (await m.call(os.statvfs, "")).f_namemax == 255


async def test_sizes_of_a_page(tmp_path: Path) -> None:
    async with mounted(tmp_path, "echo", page_sizes=True) as m:
        assert (await m.call(os.stat, LIMIT)).st_size == SHOW_MAX_BYTES
        assert await m.sh(f"cat {LIMIT}; cp {LIMIT} {tmp_path}/copy; cat {tmp_path}/copy") == "65536\n65536\n"
        assert await m.sh(f"wc -c < {LIMIT}") == "6\n"


async def test_archives(tmp_path: Path) -> None:
    async with mounted(tmp_path, "echo") as m:
        assert await m.sh(f"tar cf {tmp_path}/all.tar sys proc dev/kmsg") == ""
        assert await m.sh(f"cp -r sys {tmp_path}/copy") == ""
    with tarfile.open(tmp_path / "all.tar") as archive:
        member = archive.extractfile(LIMIT)
        assert member is not None
        assert member.read() == b"65536\n"
    assert (tmp_path / "copy/module/echo/initstate").read_text() == "live\n"


async def test_writing(tmp_path: Path) -> None:
    async with mounted(tmp_path, "echo") as m:
        assert await m.sh(f"echo 1KiB > {LIMIT}; cat {LIMIT}; echo 2KiB >> {LIMIT}; cat {LIMIT}") == "1024\n2048\n"
        assert "nvalid argument" in await m.sh(f"bash -c 'echo bogus > {LIMIT}'", status=1)
        assert await m.sh(f"printf 3KiB | tee {LIMIT} > /dev/null; truncate -s 0 {LIMIT}; cat {LIMIT}") == "3072\n"
        assert await m.errno(put, LIMIT, b"nonsense") == errno.EINVAL
        assert await m.errno(put, LIMIT, b"\xff\xfe") == errno.EINVAL
        assert await m.errno(put, LIMIT, b"9" * (SHOW_MAX_BYTES + 1)) == errno.E2BIG
        assert await m.errno(put, LIMIT, b"9" * (3 << 20)) == errno.E2BIG
        assert await m.errno(put, "sys/module/echo/version", b"2") == errno.EACCES  # even for root, as in sysfs
        assert await m.sh(f"cat {LIMIT}") == "3072\n"


async def test_one_write_is_one_store_and_one_read_one_show(tmp_path: Path) -> None:
    stored: list[str] = []
    shown: list[str] = []

    def show(_: object) -> str:
        shown.append("x" * 3000)
        return shown[-1]

    async with mounted(tmp_path, page_sizes=True) as m:
        m.kernel.sysfs.add_attribute("/sys/kernel", Attribute("probe", show, lambda _, text: stored.append(text)))

        def several(path: Path) -> bytes:
            with path.open("r+b", buffering=0) as file:
                assert [file.write(word) for word in (b"one\n", b"", b"two", b"x" * 4000)] == [4, 0, 3, 4000]
                file.seek(2)
                file.write(b"three\n")
                file.seek(0)
                return file.read(1000) + file.read(1000) + file.read(2000) + file.read(10)

        assert await m.call(several, "sys/kernel/probe") == b"x" * 3000 + b"\n"
        assert stored == ["one", "two", "x" * 4000, "three"]
        assert len(shown) == 1


async def test_what_sysfs_refuses(tmp_path: Path) -> None:
    async with mounted(tmp_path, "echo") as m:
        assert await m.errno(os.mkdir, "sys/new") == errno.EPERM
        assert await m.errno(os.rmdir, "sys/module") == errno.EPERM
        assert await m.errno(os.unlink, LIMIT) == errno.EPERM
        assert await m.errno(os.rename, LIMIT, m.folder / "sys/other") == errno.EPERM
        assert await m.errno(os.link, LIMIT, m.folder / "sys/other") == errno.EPERM
        assert await m.errno(lambda path: path.symlink_to("/etc/passwd"), "sys/link") == errno.EPERM
        assert await m.errno(put, "sys/new", b"1", os.O_WRONLY | os.O_CREAT) == errno.EACCES
        assert await m.errno(os.chmod, LIMIT, 0o777) == errno.EPERM
        assert await m.errno(os.chown, LIMIT, 1, 1) == errno.EPERM
        assert await m.errno(os.utime, LIMIT) == errno.EPERM
        assert await m.errno(get, "sys/module") == errno.EISDIR
        assert await m.errno(get, "sys/module/echo/version/x") == errno.ENOTDIR
        assert await m.errno(get, "sys/nothing") == errno.ENOENT
        assert await m.errno(os.getxattr, LIMIT, "user.x") == errno.EOPNOTSUPP


async def test_names_from_outside(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        root = os.fsencode(m.folder)
        for name, expected in (
            (b"\xff", errno.ENOENT), (b"a" * 255, errno.ENOENT), (b"a" * 256, errno.ENAMETOOLONG),
            (b"a\nb", errno.ENOENT), ("\u202e".encode(), errno.ENOENT), (b"sys/" * 1000, errno.ENOENT),
            (b"sys/" * 1500, errno.ENAMETOOLONG),
        ):  # fmt: skip
            assert await m.errno(lambda _, name=name: os.stat(root + b"/" + name), "") == expected, name


# --- the log ------------------------------------------------------------------------------------------


async def test_the_log_is_a_file_that_grows(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        first = await m.sh("cat dev/kmsg")
        assert first.startswith("6,0,0,-;kernel: booted")
        assert (await m.call(os.stat, "dev/kmsg")).st_size == len(first)
        await m.sh('echo "<3>on fire" > dev/kmsg; echo "<4>put out" >> dev/kmsg')
        assert await m.sh("tail -n 2 dev/kmsg | cut -d';' -f2") == "mount: on fire\nmount: put out\n"
        assert await m.sh("grep -c mount: dev/kmsg; wc -l < dev/kmsg") == "2\n3\n"
        assert (await m.sh("head -n 1 dev/kmsg")) == first
        assert [record.text for record in _records(m)][-2:] == ["on fire", "put out"]


async def test_tail_follows_the_log(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m, trio.open_nursery() as nursery:
        script = "tail -n 0 -s 0.05 -f dev/kmsg | { read a; echo got $a; read b; echo got $b; }"
        said: list[str] = []

        async def follow() -> None:
            said.append(await m.sh(script))

        nursery.start_soon(follow)
        while not said:
            await m.sh("echo line > dev/kmsg; sleep 0.05")
        assert said[0].count("mount: line") == 2


async def test_the_log_a_record_at_a_time(tmp_path: Path) -> None:
    def packets(path: Path) -> list[bytes]:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            found = []
            while True:
                try:
                    found.append(os.read(fd, 8192))
                except BlockingIOError:
                    return found
        finally:
            os.close(fd)

    async with mounted(tmp_path, "echo") as m:
        found = await m.call(packets, "dev/kmsg")
        assert b"".join(found) == await m.call(get, "dev/kmsg")
        assert [int(line.split(b",")[1]) for line in found] == list(range(len(found)))
        assert len(found) == len(_records(m))


def _records(m: Mounted) -> list[object]:
    reader = m.kernel.kmsg.reader("oldest")
    return list(iter(reader.read, None))


# --- stored data --------------------------------------------------------------------------------------


# In a process of its own: a page fault in this one would hold the lock of the interpreter that serves it.
MAP = """
import hashlib, mmap, os
with open("data", "rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as view:
    print(hashlib.sha256(view).hexdigest(), end="")
"""


class Stored(Face):
    """One file of data that somebody appends to."""

    def __init__(self) -> None:
        self.data = bytearray(os.urandom(300_000))

    async def stat(self, path: str) -> Stat:
        if path == "/":
            return Stat("dir", 0o755, 0, 0, 0, 1, 2)
        if path != "/data":
            raise tree_error(path, "nothing", errno.ENOENT)
        return Stat("file", 0o444, os.geteuid(), 0, len(self.data), 10**18 + len(self.data), 3, stored=True)

    async def scan(self, path: str) -> dict[str, Stat]:
        return {"data": await self.stat("/data")}

    async def read(self, path: str) -> bytes:
        return bytes(self.data)

    async def read_at(self, path: str, offset: int, size_bytes: int) -> bytes:
        return bytes(self.data[offset : offset + size_bytes])


async def test_stored_data(tmp_path: Path) -> None:
    face = Stored()
    place = tmp_path / "mnt"
    place.mkdir()
    async with Mount(face, place):
        m = Mounted(None, place)  # type: ignore[arg-type]
        assert await m.call(get, "data") == face.data
        assert await m.sh(f"{sys.executable} -c '{MAP}'") == hashlib.sha256(face.data).hexdigest()
        face.data += b"more"
        assert await m.sh(f"{sys.executable} -c '{MAP}'") == hashlib.sha256(face.data).hexdigest()
        assert await m.sh("tail -c 4 data; cp data /dev/stdout | cksum") == "more" + await sh(place, "cksum < data")
        assert await m.errno(put, "data", b"x", os.O_WRONLY) == errno.EACCES
        assert await m.errno(put, "data", b"x") == errno.EACCES
        assert await m.errno(os.truncate, "data", 0) == errno.EACCES
