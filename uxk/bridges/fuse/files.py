"""Open files of a mount: how a read and a write of Linux become those of a face."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from typing import Any, Final

import trio

from uxk.bridges.face.api import POLLIN, POLLOUT, POLLPRI, READ_MAX_BYTES, WRITE_MAX_BYTES, Face, FaceFile, Mode, Stat
from uxk.bridges.fuse.kmsg import KmsgLog
from uxk.bridges.fuse.poller import Poller
from uxk.core.kobject import tree_error

_MODES: Final[dict[int, Mode]] = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "rw"}


def mode_of(flags: int) -> Mode:
    """The mode that open(2) flags ask for.  EINVAL for none that there is."""
    mode = _MODES.get(flags & os.O_ACCMODE)
    if mode is None:
        raise tree_error("open", f"flags {flags:#o}", errno.EINVAL)
    return mode


class OpenFile(ABC):
    """What Linux has open.  Raises TreeError only."""

    cached = False
    """Linux may keep what it has read, until size or time of change are others."""
    seekable = True

    @abstractmethod
    async def read(self, offset: int, size_bytes: int) -> bytes:
        """At most so much from there; nothing at the end."""

    @abstractmethod
    async def write(self, offset: int, data: bytes) -> int:
        """How much was taken."""

    async def poll(self, bell: Any) -> int:
        """What is ready; see :class:`Poller`."""
        return POLLIN | POLLOUT

    def silence(self) -> None:  # noqa: B027 nobody polls what is always ready
        """Forgets who polls."""

    async def aclose(self) -> None:  # noqa: B027 a file may have nothing to close
        """Closes it."""


class AttributeOpen(OpenFile):
    """An attribute, as fs/kernfs/file.c has it: its text is made by the read at its beginning, and read on from there.

    Each write stores, wherever it is: sysfs takes no notice of the offset (fs/sysfs/file.c: sysfs_kf_write), so that
    ``>>`` works.
    """

    def __init__(self, file: FaceFile, nursery: trio.Nursery) -> None:
        self._file = file
        self._text: bytes | None = None
        self._poller = Poller(nursery, POLLIN | POLLOUT, {POLLPRI: lambda: file.poll(POLLPRI)})

    async def read(self, offset: int, size_bytes: int) -> bytes:
        """See :class:`OpenFile`."""
        text = self._text
        if offset == 0 or text is None:
            text = self._text = await self._file.read()
        return text[offset : offset + size_bytes]

    async def write(self, offset: int, data: bytes) -> int:
        """See :class:`OpenFile`."""
        return await self._file.write(data)

    async def poll(self, bell: Any) -> int:
        """POLLPRI and POLLERR when the attribute was notified since it was read."""
        return await self._poller.poll(bell)

    def silence(self) -> None:
        """See :class:`OpenFile`."""
        self._poller.silence()

    async def aclose(self) -> None:
        """See :class:`OpenFile`."""
        self._poller.close()
        await self._file.aclose()


class DeviceOpen(OpenFile):
    """A char device: its driver has a position of its own, and says what is ready."""

    seekable = False

    def __init__(self, file: FaceFile, nursery: trio.Nursery, *, wait: bool) -> None:
        self._file = file
        self._may_wait = wait
        waits = {POLLIN: lambda: file.poll(POLLIN), POLLOUT: lambda: file.poll(POLLOUT)}
        self._poller = Poller(nursery, 0, waits)

    async def read(self, offset: int, size_bytes: int) -> bytes:
        """See :class:`OpenFile`.  With O_NONBLOCK, EAGAIN from a device that would have the reader wait."""
        return await self._file.read(min(size_bytes, READ_MAX_BYTES), wait=self._may_wait)

    async def write(self, offset: int, data: bytes) -> int:
        """See :class:`OpenFile`."""
        return await self._file.write(data[:WRITE_MAX_BYTES])

    async def poll(self, bell: Any) -> int:
        """See :class:`OpenFile`."""
        return await self._poller.poll(bell)

    def silence(self) -> None:
        """See :class:`OpenFile`."""
        self._poller.silence()

    async def aclose(self) -> None:
        """See :class:`OpenFile`."""
        self._poller.close()
        await self._file.aclose()


class KmsgOpen(OpenFile):
    """``/dev/kmsg``: see :mod:`uxk.bridges.fuse.kmsg`.  Each write logs a line."""

    def __init__(self, log: KmsgLog, writer: FaceFile | None, nursery: trio.Nursery, *, packets: bool) -> None:
        self._log = log
        self._writer = writer
        self._packets = packets
        self._shift = 0
        self._next = 0
        self._poller = Poller(nursery, POLLOUT if writer else 0, {POLLIN: self._readable})

    async def read(self, offset: int, size_bytes: int) -> bytes:
        """Text from there; at the end nothing, O_NONBLOCK or not.  What was dropped unread is skipped.

        In packet mode a record, and EAGAIN at the end.
        """
        await self._log.refresh()
        self._shift += max(0, self._log.start - offset - self._shift)
        place = offset + self._shift
        text = self._log.record(place, size_bytes) if self._packets else self._log.read(place, size_bytes)
        self._next = place + len(text)
        if self._packets and not text:
            raise tree_error("/dev/kmsg", "nothing to read", errno.EAGAIN)
        return text

    async def write(self, offset: int, data: bytes) -> int:
        """See :class:`OpenFile`."""
        if self._writer is None:
            raise tree_error("/dev/kmsg", "opened for reading", errno.EBADF)
        return await self._writer.write(data)

    async def poll(self, bell: Any) -> int:
        """POLLIN when there is text after what was read last."""
        return await self._poller.poll(bell)

    def silence(self) -> None:
        """See :class:`OpenFile`."""
        self._poller.silence()

    async def aclose(self) -> None:
        """See :class:`OpenFile`."""
        self._poller.close()
        if self._writer is not None:
            await self._writer.aclose()

    async def _readable(self) -> int:
        await self._log.wait(self._next)
        return POLLIN


class StoredOpen(OpenFile):
    """Data that lie somewhere: read in pieces, by Linux's page cache, so that they can be mapped into memory."""

    cached = True

    def __init__(self, face: Face, path: str) -> None:
        self._face = face
        self._path = path

    async def read(self, offset: int, size_bytes: int) -> bytes:
        """All that was asked for, unless the file ends before: Linux takes less for the end."""
        parts, got = [], 0
        while got < size_bytes:
            part = await self._face.read_at(self._path, offset + got, min(size_bytes - got, READ_MAX_BYTES))
            if not part:
                break
            parts.append(part)
            got += len(part)
        return b"".join(parts)

    async def write(self, offset: int, data: bytes) -> int:
        """They are read only: EACCES."""
        raise tree_error(self._path, "not writable", errno.EACCES)


async def open_file(
    face: Face, log: KmsgLog, path: str, stat: Stat, flags: int, nursery: trio.Nursery
) -> OpenFile:  # fmt: skip
    """Opens what is at ``path``, as its kind wants it: ``stat`` is what was found there."""
    mode = mode_of(flags)
    if stat.stored:
        if "w" in mode:
            raise tree_error(path, "not writable", errno.EACCES)
        return StoredOpen(face, path)
    if path == "/dev/kmsg":
        writer = await face.open(path, "w") if "w" in mode else None
        return KmsgOpen(log, writer, nursery, packets=bool(flags & os.O_DIRECT))
    file = await face.open(path, mode)
    if stat.kind == "chardev":
        return DeviceOpen(file, nursery, wait=not flags & os.O_NONBLOCK)
    return AttributeOpen(file, nursery)
