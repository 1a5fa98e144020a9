"""Open files of a folder.  Every system call is made in a thread, on a descriptor of its own."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

import trio

from uxk import limits
from uxk.bridges.face.api import (
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    POLLPRI,
    READ_MAX_BYTES,
    WRITE_MAX_BYTES,
    FaceFile,
    Mode,
    Stat,
)
from uxk.bridges.face.errors import tree_errors
from uxk.bridges.face.walk import Descriptor
from uxk.core.kobject import tree_error
from uxk.errors import TreeError

T = TypeVar("T")


class _Seen(NamedTuple):
    """What an attribute looked like when it was last read."""

    mtime_ns: int
    size_bytes: int
    content: bytes


class FolderFile(FaceFile):
    """An open file of a :class:`~uxk.bridges.face.folder.FolderFace`."""

    def __init__(
        self, path: str, mode: Mode, file: Descriptor, stat: Stat, limiter: trio.CapacityLimiter, period_s: float
    ) -> None:
        self._path = path
        self._mode = mode
        self._file = file
        self._attribute = stat.kind == "file" and not stat.stored
        self._limiter = limiter
        self._period_s = period_s
        self._seen = _Seen(0, 0, b"")
        self._news = False

    async def begin(self) -> None:
        """Notes what an attribute looks like now, so that a later change is one."""
        if self._attribute:
            self._seen = await self._thread(self._look)

    async def read(self, size_bytes: int = READ_MAX_BYTES, *, wait: bool = True) -> bytes:
        """See :class:`FaceFile`."""
        self._check("r")
        size_bytes = max(0, min(size_bytes, READ_MAX_BYTES))
        if self._attribute:
            seen = await self._thread(self._look)
            self._news, self._seen = False, seen
            return seen.content[:size_bytes]
        if not wait:
            return await self._thread(lambda fd: os.read(fd, size_bytes))
        return await self._again(lambda fd: os.read(fd, size_bytes), POLLIN)

    async def write(self, data: bytes) -> int:
        """See :class:`FaceFile`."""
        self._check("w")
        most, number = (limits.SHOW_MAX_BYTES, errno.E2BIG) if self._attribute else (WRITE_MAX_BYTES, errno.EMSGSIZE)
        if len(data) > most:
            raise tree_error(self._path, f"{len(data)} bytes, at most {most}", number)
        if self._attribute:
            return await self._thread(lambda fd: self._store(fd, data))
        return await self._again(lambda fd: os.write(fd, data), POLLOUT)

    async def poll(self, mask: int) -> int:
        """See :class:`FaceFile`."""
        if mask & ~(POLLIN | POLLPRI | POLLOUT | POLLERR | POLLHUP) or mask < 0:
            raise tree_error(self._path, f"poll for {mask:#x}, expected bits of {0x1F:#x}", errno.EINVAL)
        while True:
            self._check("")
            found = await self._thread(self._ready) & (mask | POLLERR | POLLHUP)
            if found:
                return found
            await trio.sleep(self._period_s)

    async def aclose(self) -> None:
        """See :class:`FaceFile`.  An operation under way goes on with a descriptor of its own."""
        fd, self._file.fd = self._file.fd, -1
        if fd >= 0:
            Descriptor(fd).close_elsewhere()
            await trio.lowlevel.checkpoint()

    # --- inside, in a thread ---

    def _look(self, fd: int) -> _Seen:
        """An attribute's content and times; ENODEV if it has been removed, whatever a mount calls that."""
        try:
            status = os.fstat(fd)
            content = os.pread(fd, READ_MAX_BYTES, 0) if "r" in self._mode else b""
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            raise OSError(errno.ENODEV, "has gone") from exc
        if not status.st_nlink:
            raise OSError(errno.ENODEV, "has gone")
        return _Seen(status.st_mtime_ns, status.st_size, content)

    def _store(self, fd: int, data: bytes) -> int:
        os.ftruncate(fd, 0)
        taken = os.pwrite(fd, data or b"\n", 0)
        return min(taken, len(data))

    def _ready(self, fd: int) -> int:
        poll = select.poll()
        poll.register(fd, POLLPRI if self._attribute else POLLIN | POLLPRI | POLLOUT)
        found = sum(bits for _, bits in poll.poll(0)) & (POLLIN | POLLPRI | POLLOUT | POLLERR | POLLHUP)
        if not self._attribute:
            return found
        try:
            self._news = self._news or found != 0 or self._look(fd) != self._seen
        except OSError:
            self._news = True
        return POLLIN | POLLOUT | (POLLPRI | POLLERR if self._news else 0)

    # --- inside ---

    def _check(self, letter: str) -> None:
        closed = self._file.fd < 0
        if closed or letter not in self._mode:
            complaint = "file is closed" if closed else f"opened for {self._mode!r}"
            raise tree_error(self._path, complaint, errno.EBADF)

    async def _again(self, work: Callable[[int], T], until: int) -> T:
        """Does what would block when ``poll`` says that it does not."""
        while True:
            try:
                return await self._thread(work)
            except TreeError as exc:
                if exc.errno != errno.EAGAIN:
                    raise
            await self.poll(until)

    async def _thread(self, work: Callable[[int], T]) -> T:
        """Runs ``work`` on a copy of the descriptor, closed there, so that no other thread closes it under its hands.

        Whoever takes the copy out of the box closes it: the thread, or, if it never ran, this task.
        """
        with tree_errors(self._path):
            box = [os.dup(self._file.fd)]

            def run() -> T:
                fd = box.pop()
                try:
                    return work(fd)
                finally:
                    os.close(fd)

            try:
                return await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._limiter)
            finally:
                with suppress(IndexError):
                    Descriptor(box.pop()).close_elsewhere()
