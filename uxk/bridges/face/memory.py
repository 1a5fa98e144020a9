"""The face of a kernel in this process."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Final

import trio

from uxk.bridges.face.api import Face, FaceFile, Kind, Mode, Stat
from uxk.bridges.face.errors import check_mode, check_value, path_id, text_bytes, tree_errors
from uxk.bridges.face.memory_files import AttributeFile, BuiltinFile, DeviceFile
from uxk.core.kobject import split_path, tree_error
from uxk.core.tree import Tree
from uxk.kernel.chardev import BUILTIN
from uxk.kernel.devkmsg import KmsgFile
from uxk.kernel.devmllib import MlLibFile

if TYPE_CHECKING:
    from uxk.kernel.kernel import Kernel

TIMES_MAX: Final = 1 << 16
"""Attributes whose time of change is kept; of others the count of changes still moves their time."""


class MemoryFace(Face):
    """``/sys``, ``/proc/sys`` and ``/dev`` of a kernel, with the rights of its owner.

    ``client`` is who opens char devices and writes, for the kernel's records.
    """

    def __init__(self, kernel: Kernel, *, client: str = "user") -> None:
        self._kernel = kernel
        self._client = client
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._born_ns = time.time_ns()
        self._times: dict[str, tuple[int, int]] = {}

    @property
    def _tree(self) -> Tree:
        return self._kernel.sysfs

    async def stat(self, path: str) -> Stat:
        """See :class:`Face`."""
        await trio.lowlevel.checkpoint()
        names = split_path(path)
        if names[:1] == ["dev"]:
            return self._dev_stat(path, names)
        if not names:
            return self._stat("/", "dir", 0o755, 0)
        with tree_errors(path):
            base = self._tree.canonical(path.removesuffix("/").rpartition("/")[0] or "/").rstrip("/")
            return self._tree_stat(f"{base}/{names[-1]}")

    async def scan(self, path: str) -> dict[str, Stat]:
        """See :class:`Face`."""
        await trio.lowlevel.checkpoint()
        names = split_path(path)
        if names == ["dev"]:
            return {name: self._dev_stat(f"/dev/{name}", ["dev", name]) for name in self._devices()}
        if names[:1] == ["dev"]:
            self._dev_stat(path, names)
            raise tree_error(path, "is a char device, expected a directory", errno.ENOTDIR)
        tree = self._tree
        with tree_errors(path):
            base = tree.canonical(path).rstrip("/")
            found = {name: self._tree_stat(f"{base}/{name}") for name in tree.listdir(path)}
        if not names:
            found["dev"] = self._dev_stat("/dev", ["dev"])
        return dict(sorted(found.items()))

    async def read(self, path: str) -> bytes:
        """See :class:`Face`."""
        await trio.lowlevel.checkpoint()
        self._no_device(path)
        with tree_errors(path):
            return text_bytes(self._tree.read(path))

    async def readlink(self, path: str) -> str:
        """See :class:`Face`."""
        await trio.lowlevel.checkpoint()
        names = split_path(path)
        if names[:1] == ["dev"]:
            self._dev_stat(path, names)
            raise tree_error(path, "is no link", errno.EINVAL)
        with tree_errors(path):
            return self._tree.readlink(path)

    async def write(self, path: str, data: bytes) -> None:
        """See :class:`Face`."""
        await trio.lowlevel.checkpoint()
        check_value(path, data)
        self._no_device(path)
        self.store(path, data)

    async def open(self, path: str, mode: Mode = "r") -> FaceFile:
        """See :class:`Face`."""
        await trio.lowlevel.checkpoint()
        names = split_path(path)
        check_mode(path, mode)
        if names[:1] == ["dev"]:
            return await self._open_device(path, names, mode)
        with tree_errors(path):
            tree = self._tree
            path = tree.canonical(path)
            stat = tree.stat(path)
            if stat.kind != "file":
                raise tree_error(path, "is a directory, expected an attribute", errno.EISDIR)
            wanted = (0o444 if "r" in mode else 0, 0o222 if "w" in mode else 0)
            if any(bits and not stat.mode & bits for bits in wanted):
                raise tree_error(path, f"mode {stat.mode:#o}, opened for {mode!r}", errno.EACCES)
            return AttributeFile(tree, path, mode, self.store)

    def store(self, path: str, data: bytes) -> None:
        """Writes an attribute, for :meth:`write` and open files."""
        check_value(path, data)
        try:
            text = data.decode()
        except UnicodeDecodeError as exc:
            complaint = f"value is no UTF-8: {exc.reason} at byte {exc.start}"
            raise tree_error(path, complaint, errno.EINVAL) from None
        with tree_errors(path):
            self._kernel.machine.refresh()
            self._tree.write(path, text, writer=self._client)
            if self._tree.exists(path):  # a store may remove what it belongs to
                path = self._tree.canonical(path)
                self._touch(path, self._tree.generation(path))

    # --- inside ---

    def _tree_stat(self, path: str) -> Stat:
        stat = self._tree.stat(path)
        if stat.kind != "file":
            return self._stat(path, stat.kind, stat.mode, stat.size_bytes)
        generation = self._tree.generation(path)
        known = self._times.get(path)
        if generation and (known is None or known[0] != generation):
            known = self._touch(path, generation)
        mtime_ns = known[1] if known else self._born_ns + generation
        return self._stat(path, stat.kind, stat.mode, stat.size_bytes, mtime_ns)

    def _touch(self, path: str, generation: int) -> tuple[int, int] | None:
        """Notes that an attribute has changed just now."""
        before = self._times.pop(path, (0, 0))[1]
        if len(self._times) >= TIMES_MAX:
            return None
        known = self._times[path] = generation, max(time.time_ns(), before + 1)
        return known

    def _stat(self, path: str, kind: Kind, mode: int, size_bytes: int, mtime_ns: int = 0) -> Stat:
        return Stat(kind, mode, self._uid, self._gid, size_bytes, mtime_ns or self._born_ns, path_id(path))

    def _devices(self) -> list[str]:
        return sorted([*BUILTIN, *self._kernel.chardevs.devices])

    def _dev_stat(self, path: str, names: list[str]) -> Stat:
        """Of ``/dev`` or what is in it: as Linux has them, the log readable by all and a device its owner's."""
        if len(names) == 1:
            return self._stat("/dev", "dir", 0o755, 0)
        if names[1] not in self._devices():
            raise tree_error(path, "no such char device", errno.ENOENT)
        if len(names) > 2:
            raise tree_error(path, f"{names[1]!r} is a char device", errno.ENOTDIR)
        return self._stat(f"/dev/{names[1]}", "chardev", 0o644 if names[1] == "kmsg" else 0o600, 0)

    def _no_device(self, path: str) -> None:
        names = split_path(path)
        if names[:1] == ["dev"]:
            self._dev_stat(path, names)
            number, what = (
                (errno.EISDIR, "directory") if len(names) == 1 else (errno.ENXIO, "char device, to be opened")
            )
            raise tree_error(path, f"is a {what}", number)

    async def _open_device(self, path: str, names: list[str], mode: Mode) -> FaceFile:
        if self._dev_stat(path, names).kind == "dir":
            raise tree_error(path, "is a directory", errno.EISDIR)
        name, kernel = names[1], self._kernel
        path = f"/dev/{name}"
        with tree_errors(path):
            device = None if name in BUILTIN else kernel.chardevs.get(path)
            file = await kernel.open(path, self._client)
        if isinstance(file, KmsgFile):
            return BuiltinFile(path, mode, file, kernel.kmsg.subscribe)
        if isinstance(file, MlLibFile):
            return BuiltinFile(path, mode, file, kernel.models.events.subscribe)
        if device is None or kernel.chardevs.devices.get(name) is not device:
            file.forget()
            raise tree_error(path, "its driver went while it was being opened", errno.ENODEV)
        return DeviceFile(kernel.chardevs, device, file, mode)
