"""Open files of a kernel in this process.  Waiting in them moves no virtual time: whoever runs the kernel does."""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import trio

from uxk.bridges.face.api import (
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    POLLPRI,
    READ_MAX_BYTES,
    FaceFile,
    Mode,
)
from uxk.bridges.face.errors import text_bytes, tree_errors
from uxk.core.kobject import Kobject, tree_error
from uxk.core.tree import Tree
from uxk.errors import TreeError

if TYPE_CHECKING:
    from uxk.kernel.chardev import Chardev, ChardevTable, File
    from uxk.kernel.devkmsg import KmsgFile
    from uxk.kernel.devmllib import MlLibFile

Subscribe: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]
"""Registers a waiter; returns what cancels it."""


class _Open(FaceFile):
    """What all have in common: a mode, being closed, and waiting for a bell."""

    def __init__(self, path: str, mode: Mode) -> None:
        self._path = path
        self._mode = mode
        self._closed = False
        self._waiting: set[trio.Event] = set()

    async def poll(self, mask: int) -> int:
        """See :class:`FaceFile`."""
        await trio.lowlevel.checkpoint()
        if mask & ~(POLLIN | POLLPRI | POLLOUT | POLLERR | POLLHUP) or mask < 0:
            raise tree_error(self._path, f"poll for {mask:#x}, expected bits of {0x1F:#x}", errno.EINVAL)
        while True:
            self._check("")
            bell = trio.Event()
            with tree_errors(self._path):
                cancel = self._watch(bell.set)
            try:
                found = await self._ready() & (mask | POLLERR | POLLHUP)
                if found:
                    return found
                self._waiting.add(bell)
                await bell.wait()
            finally:
                self._waiting.discard(bell)
                cancel()

    async def aclose(self) -> None:
        """See :class:`FaceFile`."""
        self._closed = True
        for bell in self._waiting:
            bell.set()

    @abstractmethod
    async def _ready(self) -> int:
        """The bits that are there now."""

    @abstractmethod
    def _watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Calls ``wake`` when they may have changed; returns what cancels that."""

    def _check(self, letter: Mode | str) -> None:
        if self._closed or letter not in self._mode:
            complaint = "file is closed" if self._closed else f"opened for {self._mode!r}"
            raise tree_error(self._path, complaint, errno.EBADF)


class AttributeFile(_Open):
    """An open attribute (fs/kernfs/file.c: kernfs_fop_poll).  It is gone for good when its directory or it goes."""

    def __init__(self, tree: Tree, path: str, mode: Mode, store: Callable[[str, bytes], None]) -> None:
        super().__init__(path, mode)
        self._tree = tree
        self._store = store
        folder, _, self._name = path.rpartition("/")
        self._kobject: Kobject = tree.lookup(folder or "/")
        self._attribute = self._kobject.attribute(self._name)
        self._seen = tree.generation(path)

    async def read(self, size_bytes: int = READ_MAX_BYTES, *, wait: bool = True) -> bytes:
        """See :class:`FaceFile`."""
        await trio.lowlevel.checkpoint()
        self._check("r")
        self._check_there()
        self._seen = self._tree.generation(self._path)
        return text_bytes(self._tree.read(self._path))[: max(0, size_bytes)]

    async def write(self, data: bytes) -> int:
        """See :class:`FaceFile`."""
        await trio.lowlevel.checkpoint()
        self._check("w")
        self._check_there()
        self._store(self._path, data)
        return len(data)

    @property
    def _there(self) -> bool:
        kobject = self._kobject
        return (kobject.parent is not None or kobject.path == "/") and kobject.attribute(self._name) is self._attribute

    def _check_there(self) -> None:
        if not self._there:
            raise tree_error(self._path, "has gone", errno.ENODEV)

    async def _ready(self) -> int:
        news = not self._there or self._tree.generation(self._path) != self._seen
        return POLLIN | POLLOUT | (POLLPRI | POLLERR if news else 0)

    def _watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        return self._tree.poll(self._path, wake) if self._there else _nothing


class DeviceFile(_Open):
    """An open char device.  Its driver may go: then ENODEV and POLLHUP, also if another of its name comes."""

    def __init__(self, table: ChardevTable, device: Chardev, file: File, mode: Mode) -> None:
        super().__init__(f"/dev/{device.name}", mode)
        self._table = table
        self._device = device
        self._file = file

    async def read(self, size_bytes: int = READ_MAX_BYTES, *, wait: bool = True) -> bytes:
        """See :class:`FaceFile`."""
        self._check_there("r")
        with tree_errors(self._path):
            return await self._file.read(max(0, min(size_bytes, READ_MAX_BYTES)))

    async def write(self, data: bytes) -> int:
        """See :class:`FaceFile`."""
        self._check_there("w")
        with tree_errors(self._path):
            return await self._file.write(data)

    async def ioctl(self, command: str | int, argument: object = None) -> object:
        """See :class:`FaceFile`."""
        self._check_there("")
        with tree_errors(self._path):
            reply = await self._file.ioctl(command, argument)
        return msgspec.msgpack.decode(msgspec.msgpack.encode(reply))

    async def aclose(self) -> None:
        """Tells the driver, which may be gone or hang: that is over at its deadline."""
        if not self._closed:
            await super().aclose()
            await self._file.close()

    @property
    def _there(self) -> bool:
        return self._table.devices.get(self._device.name) is self._device

    def _check_there(self, letter: str) -> None:
        self._check(letter)
        if not self._there:
            raise tree_error(self._path, "its driver has gone", errno.ENODEV)

    async def _ready(self) -> int:
        return self._device.mask if self._there else POLLERR | POLLHUP

    def _watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        return self._device.watch(wake)


class BuiltinFile(_Open):
    """An open char device of the kernel's own, such as ``/dev/kmsg``; ``subscribe`` tells of what can be read."""

    def __init__(self, path: str, mode: Mode, file: KmsgFile | MlLibFile, subscribe: Subscribe) -> None:
        super().__init__(path, mode)
        self._file = file
        self._subscribe = subscribe

    async def read(self, size_bytes: int = READ_MAX_BYTES, *, wait: bool = True) -> bytes:
        """See :class:`FaceFile`."""
        await trio.lowlevel.checkpoint()
        self._check("r")
        while True:
            try:
                with tree_errors(self._path):
                    return await self._file.read(max(0, size_bytes), wait=False)
            except TreeError as exc:
                if exc.errno != errno.EAGAIN or not wait:
                    raise
            await self.poll(POLLIN)

    async def write(self, data: bytes) -> int:
        """See :class:`FaceFile`."""
        await trio.lowlevel.checkpoint()
        self._check("w")
        with tree_errors(self._path):
            return await self._file.write(data)

    async def aclose(self) -> None:
        """See :class:`FaceFile`."""
        await super().aclose()
        await self._file.close()

    async def _ready(self) -> int:
        return await self._file.poll(POLLIN | POLLOUT)  # it can always be written, so that this never waits

    def _watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        return self._subscribe(wake)


def _nothing() -> None:
    """Cancels nothing."""
