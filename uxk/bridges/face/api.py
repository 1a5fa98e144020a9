"""One interface to a tree of files, whatever is behind it: the kernel here, a folder, a socket.

A face shows what Linux shows: attributes under ``/sys`` and ``/proc/sys``, char devices and ``/dev/kmsg`` under
``/dev``, and what has been grafted beside them.  Paths are absolute, as the kernel's tree takes them: no empty
component, no ``.`` or ``..``, no NUL, valid Unicode, at most ``PATH_MAX_BYTES``.  Links on the way are followed within
the face, a link at the end by everything but ``stat`` and ``readlink``.

Every method raises only :class:`~uxk.errors.TreeError`, whose ``errno`` is what Linux would say.  Every one may be
cancelled.  None makes the kernel wait; what asks an extension (a char device) ends by its deadline, with ETIMEDOUT.
Waiting for news moves no virtual time; asking a driver does.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Final, Literal, TypeAlias

from uxk import limits
from uxk.core.kobject import tree_error
from uxk.errors import TreeError
from uxk.uapi.control import FaceStat as Stat

__all__ = [
    "POLLERR", "POLLHUP", "POLLIN", "POLLOUT", "POLLPRI", "READ_MAX_BYTES", "WRITE_MAX_BYTES", "Face", "FaceFile",
    "Kind", "Mode", "Stat",
]  # fmt: skip

POLLIN: Final = 1
POLLPRI: Final = 2
POLLOUT: Final = 4
POLLERR: Final = 8
POLLHUP: Final = 16
"""As Linux numbers them (include/uapi/asm-generic/poll.h)."""

READ_MAX_BYTES: Final = limits.PAYLOAD_MAX_BYTES
"""Most that one read gives: any attribute, any kmsg record, any answer of a driver."""
WRITE_MAX_BYTES: Final = limits.PAYLOAD_MAX_BYTES
"""Most that one write takes; an attribute takes ``SHOW_MAX_BYTES``."""

Kind: TypeAlias = Literal["dir", "file", "link", "chardev"]
Mode: TypeAlias = Literal["r", "w", "rw"]


class FaceFile(ABC):
    """An open file; an async context manager.  After ``aclose`` everything is EBADF."""

    async def __aenter__(self) -> FaceFile:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    @abstractmethod
    async def read(self, size_bytes: int = READ_MAX_BYTES, *, wait: bool = True) -> bytes:
        """An attribute: its content from the start, anew each time, which also arms ``poll`` for the next change.

        A char device: what its driver gives at the file's position.  ``/dev/kmsg``: the next record; without ``wait``
        EAGAIN if there is none; EPIPE, once, if records were overwritten unread; EINVAL if it does not fit.
        A stored file: what follows, ``b""`` at the end.  ENODEV once what is behind it has gone.
        """

    @abstractmethod
    async def write(self, data: bytes) -> int:
        """Writes, an attribute in one piece; how much was taken.  E2BIG, EMSGSIZE, EINVAL, EACCES, ENODEV."""

    @abstractmethod
    async def poll(self, mask: int) -> int:
        """Waits until one of the bits of ``mask``, or POLLERR or POLLHUP, is there; returns those that are.

        Char devices: POLLIN and POLLOUT as the driver last said.  Attributes: POLLIN and POLLOUT at once, POLLPRI (with
        POLLERR, as sysfs) when the attribute was notified, or went, since this file last read it or was opened.
        """

    async def ioctl(self, command: str | int, argument: object = None) -> object:
        """A typed ioctl of the driver's manifest, by name or number; plain values (no structs) in and out.  ENOTTY."""
        raise TreeError(f"no ioctl {str(command)[:64]!r}", errno=errno.ENOTTY)

    @abstractmethod
    async def aclose(self) -> None:
        """Closes; never fails, and may be called again."""


class Face(ABC):
    """A tree of files.  Implement ``stat``, ``scan`` and ``read``; the rest refuses unless it is overridden too."""

    @abstractmethod
    async def stat(self, path: str) -> Stat:
        """What is there; a link at the end is not followed.  ENOENT, ENOTDIR, ELOOP, EINVAL, ENAMETOOLONG."""

    @abstractmethod
    async def scan(self, path: str) -> dict[str, Stat]:
        """A directory's names, sorted, with what ``stat`` says of each.  ENOTDIR for anything else."""

    @abstractmethod
    async def read(self, path: str) -> bytes:
        """An attribute as ``cat`` shows it, with a newline at its end unless it is empty; a stored file's beginning.

        At most ``READ_MAX_BYTES``.  EISDIR; EACCES if its mode has no read bit; EIO or any errno of the attribute's
        own.  ENXIO for a char device: open it.
        """

    async def listdir(self, path: str) -> list[str]:
        """A directory's names, sorted."""
        return list(await self.scan(path))

    async def readlink(self, path: str) -> str:
        """Where a link points, relative to where it stands.  EINVAL if it is none."""
        await self.stat(path)
        raise tree_error(path, "is no link", errno.EINVAL)

    async def read_at(self, path: str, offset: int, size_bytes: int) -> bytes:
        """A range of a stored file (``Stat.stored``): fewer bytes than asked for, or none, only at its end."""
        return (await self.read(path))[offset : offset + size_bytes]

    async def write(self, path: str, data: bytes) -> None:
        """Writes an attribute; one newline at the end does not count.  EACCES, EINVAL, E2BIG, EISDIR, ..."""
        await self.stat(path)
        raise tree_error(path, "not writable", errno.EACCES)

    async def open(self, path: str, mode: Mode = "r") -> FaceFile:
        """Opens a file.  EACCES if its mode has no such bit; EISDIR; EMFILE; ENODEV while a driver is down."""
        await self.stat(path)
        raise tree_error(path, "cannot be opened", errno.EACCES)

    async def walk(self, top: str = "/") -> list[tuple[str, Stat]]:
        """Everything below a directory, depth first; links are not followed; what goes meanwhile is left out."""
        found, base = list[tuple[str, Stat]](), top.rstrip("/")
        for name, stat in (await self.scan(top)).items():
            found.append((f"{base}/{name}", stat))
            if stat.kind == "dir":
                try:
                    found += await self.walk(f"{base}/{name}")
                except TreeError as exc:
                    if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
                        raise
        return found

    async def read_text(self, path: str) -> str:
        """An attribute's text, without the newline at its end.  EILSEQ if it is no text."""
        try:
            return (await self.read(path)).decode().removesuffix("\n")
        except UnicodeDecodeError as exc:
            raise tree_error(path, f"is no text: {exc.reason} at byte {exc.start}", errno.EILSEQ) from None

    async def write_text(self, path: str, text: str) -> None:
        """Writes an attribute as text."""
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise tree_error(path, "value is not valid text", errno.EINVAL) from None
        await self.write(path, data)
