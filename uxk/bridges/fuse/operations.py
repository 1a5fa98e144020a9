"""What Linux asks of the file system, answered from a face."""

from __future__ import annotations

import errno
import logging
import os
import stat as modes
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import trio

from uxk.bridges.face.api import Face, Stat
from uxk.bridges.fuse.files import OpenFile, open_file
from uxk.bridges.fuse.kmsg import PATH as KMSG
from uxk.bridges.fuse.kmsg import KmsgLog
from uxk.bridges.fuse.library import pyfuse3
from uxk.bridges.fuse.nodes import ROOT, NodeTable, check_link, child_path
from uxk.core.kobject import tree_error
from uxk.errors import TreeError, UxkError

T = TypeVar("T")
OPEN_MAX: Final = 4096
"""Files and folders open at a time."""
NAME_MAX_BYTES: Final = 255
BLOCK_BYTES: Final = 512
"""Unit of ``st_blocks``, whatever ``st_blksize`` says (stat(2))."""
BURST: Final = 64
PAUSE_S: Final = 0.001
"""After so many requests all pause for so long: a kernel in this process moves on only when no task can run."""
FOLDER_KEPT_S: Final = 0.05
"""How long Linux may believe that a folder is still there, which spares it a question for each component of a path.
What is asked of one that has gone is ENOENT all the same."""
FILE_KEPT_S: Final = 0.001
"""For the question about a file that Linux puts right behind its look-up.  It counts in ticks: a few milliseconds."""
CLOSE_S: Final = 2.0
"""How long the end of a mount waits for drivers to release their files."""
_ERRNO_MAX: Final = 511
"""Linux takes no other from a file system (fs/fuse/dev.c: fuse_dev_do_write)."""
_TYPES: Final = {"dir": modes.S_IFDIR, "link": modes.S_IFLNK, "file": modes.S_IFREG, "chardev": modes.S_IFREG}

_log: Final = logging.getLogger("uxk.fuse")


class Listing:
    """An open folder: its names as they were when reading began, so that none comes twice."""

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.entries: list[tuple[str, Stat]] | None = None


class TreeOperations:
    """The handlers, for pyfuse3; mixed with its own class, which refuses what is not here (ENOSYS).

    Each raises FUSEError only: anything else would end the file system for everybody.  ``timeout_s`` bounds each
    question to the face; unless ``page_sizes``, an attribute is read to tell how long it is.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, face: Face, nursery: trio.Nursery, *, timeout_s: float, page_sizes: bool) -> None:
        self._face = face
        self._nursery = nursery
        self._timeout_s = timeout_s
        self._page_sizes = page_sizes
        self._library = pyfuse3()
        self._nodes = NodeTable()
        self._log = KmsgLog(face, nursery)
        self.ready = trio.Event()
        self._files: dict[int, OpenFile] = {}
        self._folders: dict[int, Listing] = {}
        self._next_fh = 1
        self._asked = 0
        self._turn = trio.Lock()

    def init(self) -> None:
        """Linux asks its first question."""
        self.ready.set()

    # --- names ---

    async def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
        """What a name stands for."""
        with self._errors():
            if len(name) > NAME_MAX_BYTES:
                raise tree_error("lookup", f"name of {len(name)} bytes, at most {NAME_MAX_BYTES}", errno.ENAMETOOLONG)
            path = child_path(self._nodes.get(parent).path, name)
            stat = await self._ask(self._face.stat, path)
            return await self._entry(path, stat, self._look_up(path, stat))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Linux no longer knows these."""
        self._nodes.forget(inode_list)

    async def getattr(self, inode: int, ctx: Any) -> Any:
        """Kind, mode, owner, size, times."""
        with self._errors():
            node = self._nodes.get(inode)
            stat = await self._ask(self._face.stat, node.path)
            if inode != ROOT and stat.id != node.id:
                raise tree_error(node.path, "is another one now", errno.ESTALE)
            return await self._entry(node.path, stat, inode)

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> Any:
        """Only a size can be set, without effect, since ``>`` truncates before it writes; else EPERM."""
        with self._errors():
            node = self._nodes.get(inode)
            kept = fields.update_mode or fields.update_uid or fields.update_gid
            times = fields.update_atime or fields.update_mtime
            if kept or (times and not fields.update_size):
                raise tree_error(node.path, "mode, owner and times are the kernel's to say", errno.EPERM)
            if fields.update_size and (await self._ask(self._face.stat, node.path)).stored:
                raise tree_error(node.path, "not writable", errno.EACCES)
        return await self.getattr(inode, ctx)

    async def readlink(self, inode: int, ctx: Any) -> bytes:
        """Where a link points, relative to where it stands; EXDEV if that is out of the mount."""
        with self._errors():
            path = self._nodes.get(inode).path
            return check_link(path, await self._ask(self._face.readlink, path))

    async def statfs(self, ctx: Any) -> Any:
        """No blocks, as sysfs."""
        data = self._library.StatvfsData()
        data.f_bsize = data.f_frsize = os.sysconf("SC_PAGESIZE")
        data.f_namemax = NAME_MAX_BYTES
        return data

    # --- folders ---

    async def opendir(self, inode: int, ctx: Any) -> int:
        """Nothing is read yet."""
        with self._errors():
            self._nodes.get(inode)
            fh = self._new_fh()
            self._folders[fh] = Listing(inode)
            return fh

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        """Names with what ``stat`` says of each, from the one after ``start_id``; 0 reads the folder anew."""
        with self._errors():
            listing = self._folders[fh]
            path = self._nodes.get(listing.ino).path
            if start_id == 0 or listing.entries is None:
                listing.entries = list((await self._ask(self._face.scan, path)).items())
            dots = [(".", path), ("..", path.rpartition("/")[0] or "/")]
            for index, (name, at) in enumerate(dots):
                if index >= start_id and not await self._report_dot(token, name, at, index + 1):
                    return
            for index, (name, stat) in enumerate(listing.entries, len(dots)):
                if index < start_id:
                    continue
                below = f"{path.rstrip('/')}/{name}"
                ino = self._look_up(below, stat)
                entry = await self._entry(below, stat, ino)
                if not self._library.readdir_reply(token, name.encode(), entry, index + 1):
                    self._nodes.forget([(ino, 1)])
                    return

    async def releasedir(self, fh: int) -> None:
        """Closes a folder."""
        self._folders.pop(fh, None)

    async def _report_dot(self, token: Any, name: str, path: str, next_id: int) -> bool:
        """These two are no look-ups (fs/fuse/readdir.c: fuse_direntplus_link)."""
        stat = await self._ask(self._face.stat, path)
        entry = await self._entry(path, stat, self._nodes.number(path, stat.id))
        return bool(self._library.readdir_reply(token, name.encode(), entry, next_id))

    # --- files ---

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        """Opens a file; whether this user may, Linux has checked by mode and owner (default_permissions)."""
        with self._errors():
            node = self._nodes.get(inode)
            stat = node.stat or await self._ask(self._face.stat, node.path)
            fh = self._new_fh()
            file = self._files[fh] = await self._ask(
                open_file, self._face, self._log, node.path, stat, flags, self._nursery
            )
            info = self._library.FileInfo(fh=fh, direct_io=not file.cached, keep_cache=False)
            info.nonseekable = not file.seekable
            return info

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        """Reads; see :mod:`uxk.bridges.fuse.files`."""
        with self._errors():
            return await self._ask(self._files[fh].read, offset, size)

    async def write(self, fh: int, offset: int, buf: bytes) -> int:
        """Writes; one write(2) comes in one piece."""
        with self._errors():
            return await self._ask(self._files[fh].write, offset, bytes(buf))

    async def poll(self, inode: int, fh: int, poll_handle: Any, ctx: Any) -> int:
        """What is ready."""
        with self._errors():
            return await self._ask(self._files[fh].poll, poll_handle)

    async def flush(self, fh: int) -> None:
        """Nothing is held back."""

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Nothing is held back."""

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Nothing is held back."""

    async def release(self, fh: int) -> None:
        """Closes a file; a driver that hangs does not keep it."""
        with self._errors():
            file = self._files[fh]
            with suppress(UxkError):  # closed all the same
                await self._ask(file.aclose)
            del self._files[fh]  # but not if this is cancelled: then it is closed at the end

    # --- what sysfs refuses (fs/kernfs/dir.c; fs/namei.c for what it does not have) ---

    async def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        """EACCES, as vfs_create says of sysfs."""
        raise self._library.FUSEError(errno.EACCES)

    async def _refuse(self, *_: Any) -> Any:
        raise self._library.FUSEError(errno.EPERM)

    mknod = mkdir = unlink = rmdir = symlink = rename = link = _refuse

    # --- the end ---

    def silence(self) -> None:
        """Forgets who polls: they are told through the session, which goes now."""
        for file in self._files.values():
            file.silence()

    async def aclose(self) -> None:
        """Closes what others have left open, all of it within ``CLOSE_S``."""
        with trio.move_on_after(min(self._timeout_s, CLOSE_S)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._log.aclose)
                for file in self._files.values():
                    nursery.start_soon(file.aclose)
        self._files.clear()

    # --- inside ---

    async def _ask(self, question: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """An answer of the face, or ETIMEDOUT: nobody is stuck in a system call that no signal ends."""
        await self._gate()
        with trio.move_on_after(self._timeout_s):
            return await question(*arguments)
        raise TreeError(f"no answer within {self._timeout_s} s", errno=errno.ETIMEDOUT)

    async def _gate(self) -> None:
        async with self._turn:
            self._asked += 1
            if self._asked % BURST == 0:
                await trio.sleep(PAUSE_S)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Whatever goes wrong is an errno for whoever asked."""
        try:
            yield
        except UxkError as exc:
            number = errno.ENOTCONN if exc.errno == errno.ECONNRESET else exc.errno
        except KeyError:
            number = errno.EBADF
        except Exception:
            _log.exception("a request failed")
            number = errno.EIO
        else:
            return
        raise self._library.FUSEError(number if 0 < number <= _ERRNO_MAX else errno.EIO)

    def _look_up(self, path: str, stat: Stat) -> int:
        ino = self._nodes.look_up(path, stat.id)
        self._nodes.get(ino).stat = stat
        return ino

    def _new_fh(self) -> int:
        if len(self._files) + len(self._folders) >= OPEN_MAX:
            raise TreeError(f"{OPEN_MAX} files are open already", errno=errno.ENFILE)
        self._next_fh += 1
        return self._next_fh

    async def _entry(self, path: str, stat: Stat, ino: int) -> Any:
        """``stat`` in Linux's terms.  Of a file's name, nothing is to be kept: it may be another the next moment."""
        entry = self._library.EntryAttributes()
        entry.entry_timeout, entry.attr_timeout = (FOLDER_KEPT_S,) * 2 if stat.kind == "dir" else (0, FILE_KEPT_S)
        entry.st_ino = ino
        entry.st_mode = _TYPES[stat.kind] | stat.mode
        entry.st_uid, entry.st_gid = stat.uid, stat.gid
        entry.st_nlink = 1  # "unknown" for a folder: find(1) then looks into each
        size_bytes, mtime_ns = await self._size(path, stat)
        entry.st_size = size_bytes
        entry.st_blocks = -(-size_bytes // BLOCK_BYTES)  # a file without blocks would look sparse to cp(1)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = mtime_ns
        return entry

    async def _size(self, path: str, stat: Stat) -> tuple[int, int]:
        """Size in bytes and time of change."""
        try:
            if path == KMSG:
                await self._ask(self._log.refresh)
                return self._log.end, max(stat.mtime_ns, self._log.mtime_ns)
            if not self._page_sizes and stat.kind == "file" and not stat.stored and stat.mode & 0o444:
                return len(await self._ask(self._face.read, path)), stat.mtime_ns
        except TreeError:
            pass  # what cannot be read still has a name and a mode
        return stat.size_bytes, stat.mtime_ns
