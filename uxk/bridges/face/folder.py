"""A folder as a face: a mount of a kernel's tree, a copy of one, or the machine's own ``/sys``."""

from __future__ import annotations

import errno
import os
import stat as st
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import trio

from uxk import limits
from uxk.bridges.face.api import READ_MAX_BYTES, Face, FaceFile, Kind, Mode, Stat
from uxk.bridges.face.errors import check_mode, check_value, tree_errors
from uxk.bridges.face.folder_files import FolderFile
from uxk.bridges.face.walk import Descriptor, Found, Walk, file_system_type, link_text, reopen
from uxk.core.kobject import size_bytes as text_size
from uxk.core.kobject import split_path, tree_error
from uxk.errors import UsageError

T = TypeVar("T")
THREADS_MAX: Final = 16
"""Operations at a time: a file system that hangs holds no more threads."""
ENTRIES_MAX: Final = 1 << 20
"""Names in one folder."""
PERIOD_S: Final = 0.05
"""How often a file is looked at again by who waits for news of it: folders send none."""


class FolderFace(Face):
    """The files below ``path``, of one file system; nothing outside is ever read, written, or told of.

    Writing is refused with EROFS unless ``writable``.  Files of the machine's own kernel (sysfs, proc, ...) are refused
    with EPERM unless ``system``, and are written only with both; so are device nodes.  A file of at most a page is
    taken for an attribute, a longer one for a stored file, a plain file in ``/dev`` for a char device (a mount cannot
    show others).  Waiting for news looks again every ``period_s``, at the file's time, its content, and what ``poll``
    says of it.
    """

    def __init__(
        self, path: str | Path, *, writable: bool = False, system: bool = False, period_s: float = PERIOD_S
    ) -> None:
        if not period_s > 0:
            raise UsageError(f"period_s={period_s!r}: expected more than 0")
        self._writable = writable
        self._system = system
        self._period_s = period_s
        self._walk = Walk(Path(path).absolute(), system=system)
        self._limiter = trio.CapacityLimiter(THREADS_MAX)

    async def stat(self, path: str) -> Stat:
        """See :class:`Face`."""

        def look() -> Stat:
            found = self._walk.find(path, follow=False)
            return self._known(path, found.names, found.status)

        return await self._thread(path, look)

    async def scan(self, path: str) -> dict[str, Stat]:
        """See :class:`Face`.  Names that are no text, other file systems, sockets, pipes and disks are left out."""

        def look() -> dict[str, Stat]:
            found = self._walk.find(path)
            with reopen(found, os.O_RDONLY | os.O_DIRECTORY) as folder:
                names = os.listdir(folder)
                if len(names) > ENTRIES_MAX:
                    raise tree_error(path, f"more than {ENTRIES_MAX} names", errno.EFBIG)
                return dict(self._entries(found, folder, sorted(name for name in names if text_size(name) is not None)))

        return await self._thread(path, look)

    async def read(self, path: str) -> bytes:
        """See :class:`Face`."""

        def look() -> bytes:
            found = self._file(path, os.O_RDONLY)
            with reopen(found, os.O_RDONLY) as file:
                return read_all(file, READ_MAX_BYTES)

        return await self._thread(path, look)

    async def readlink(self, path: str) -> str:
        """See :class:`Face`."""

        def look() -> str:
            found = self._walk.find(path, follow=False)
            if not st.S_ISLNK(found.status.st_mode):
                raise tree_error(path, "is no link", errno.EINVAL)
            return link_text(found)

        return await self._thread(path, look)

    async def read_at(self, path: str, offset: int, size_bytes: int) -> bytes:
        """See :class:`Face`."""
        if offset < 0 or size_bytes < 0:
            raise tree_error(path, f"offset {offset}, {size_bytes} bytes: expected at least 0", errno.EINVAL)

        def look() -> bytes:
            found = self._file(path, os.O_RDONLY)
            with reopen(found, os.O_RDONLY) as file:
                return read_all(file, min(size_bytes, READ_MAX_BYTES), offset)

        return await self._thread(path, look)

    async def write(self, path: str, data: bytes) -> None:
        """See :class:`Face`."""
        check_value(path, data)

        def act() -> None:
            found = self._file(path, os.O_WRONLY)
            text = data or b"\n"  # which means the same, and of an empty write a mount never hears
            with reopen(found, os.O_WRONLY | os.O_TRUNC) as file:
                taken = os.write(file, text)
            if taken != len(text):
                raise tree_error(path, f"took {taken} of {len(text)} bytes", errno.EIO)

        await self._thread(path, act)

    async def open(self, path: str, mode: Mode = "r") -> FaceFile:
        """See :class:`Face`."""
        check_mode(path, mode)
        flags = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}[mode]

        def act() -> tuple[Descriptor, Stat]:
            found = self._file(path, flags, device=True)
            records = found.names == ("dev", "kmsg") and st.S_ISREG(found.status.st_mode)
            mounted = records and file_system_type(found.status.st_dev) == "fuse.uxk"
            # There a read gives as much as it can, unless asked for packets (uxk.bridges.fuse.kmsg).
            more = os.O_DIRECT if mounted else 0
            return reopen(found, flags | more), self._known(path, found.names, found.status)

        file, stat = await self._thread(path, act)
        opened = FolderFile(path, mode, file, stat, self._limiter, self._period_s)
        try:
            await opened.begin()
        except BaseException:
            file.close_elsewhere()
            raise
        return opened

    # --- inside, in a thread ---

    def _file(self, path: str, flags: int, *, device: bool = False) -> Found:
        """An attribute or stored file, or with ``device`` a char device, that may be opened like this.

        As kernfs does even for root: who wants to read or write needs a bit that says so.
        """
        split_path(path)
        if flags != os.O_RDONLY and not self._writable:
            raise tree_error(path, "this face is read-only (writable=False)", errno.EROFS)
        found = self._walk.find(path)
        stat = self._known(path, found.names, found.status)
        if stat.kind == "dir":
            raise tree_error(path, "is a directory", errno.EISDIR)
        if stat.kind == "chardev" and not device:
            raise tree_error(path, "is a char device, to be opened", errno.ENXIO)
        if st.S_ISCHR(found.status.st_mode) and not self._system:
            raise tree_error(path, "is a device of the machine: only with system=True", errno.EPERM)
        readable, writable = flags in (os.O_RDONLY, os.O_RDWR), flags in (os.O_WRONLY, os.O_RDWR)
        if (readable and not stat.mode & 0o444) or (writable and not stat.mode & 0o222):
            raise tree_error(path, f"mode {stat.mode:#o} does not allow it", errno.EACCES)
        return found

    def _entries(self, found: Found, folder: int, names: list[str]) -> list[tuple[str, Stat]]:
        entries = []
        for name in names:
            try:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone meanwhile
            stat = stat_of((*found.names, name), status)
            if stat is not None and status.st_dev == found.status.st_dev:
                entries.append((name, stat))
        return entries

    @staticmethod
    def _known(path: str, names: tuple[str, ...], status: os.stat_result) -> Stat:
        stat = stat_of(names, status)
        if stat is None:
            raise tree_error(path, "is no file, folder, link or char device", errno.ENXIO)
        return stat

    async def _thread(self, path: str, work: Callable[[], T]) -> T:
        with tree_errors(path):
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)


def stat_of(names: tuple[str, ...], status: os.stat_result) -> Stat | None:
    """What a face tells of a file; None for what no face has."""
    kind = _kind(names, status.st_mode)
    if kind is None:
        return None
    size, mode = 0 if kind == "dir" else status.st_size, st.S_IMODE(status.st_mode) & 0o777
    stored = kind == "file" and size > limits.SHOW_MAX_BYTES
    number = status.st_ino & limits.I64_MAX or 1
    return Stat(kind, mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, number, stored)


def _kind(names: tuple[str, ...], mode: int) -> Kind | None:
    if st.S_ISREG(mode):
        return "chardev" if len(names) == 2 and names[0] == "dev" else "file"
    if st.S_ISDIR(mode):
        return "dir"
    if st.S_ISLNK(mode):
        return "link"
    return "chardev" if st.S_ISCHR(mode) else None


def read_all(file: int, size_bytes: int, offset: int = 0) -> bytes:
    """So many bytes from there, fewer only at the end."""
    data = bytearray()
    while len(data) < size_bytes:
        piece = os.pread(file, size_bytes - len(data), offset + len(data))
        if not piece:
            break
        data += piece
    return bytes(data)
