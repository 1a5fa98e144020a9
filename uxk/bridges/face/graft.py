"""Several faces as one: a face at a name of another, as file systems are mounted."""

from __future__ import annotations

import errno
from collections.abc import Mapping

import msgspec

from uxk.bridges.face.api import Face, FaceFile, Mode, Stat
from uxk.bridges.face.errors import path_id
from uxk.core.kobject import split_path, tree_error
from uxk.errors import UsageError


class GraftedFace(Face):
    """``GraftedFace({"/": MemoryFace(kernel), "/datasets": other})``; without ``"/"``, an empty folder holds them.

    A graft hides what is at its name below it.  Links lead nowhere but within their own face.  Raises UsageError for a
    name that is nested: each is ``"/"`` or one component.
    """

    def __init__(self, faces: Mapping[str, Face]) -> None:
        self._base = faces.get("/")
        self._grafts: dict[str, Face] = {}
        for path, face in faces.items():
            names = split_path(path)
            if len(names) > 1:
                raise UsageError(f"{path}: a face can be grafted at one name of the root, such as /{names[0]}")
            if names:
                self._grafts[names[0]] = face

    async def stat(self, path: str) -> Stat:
        """See :class:`Face`."""
        names = split_path(path)
        if not names and self._base is None:
            return _dir(path)
        face, below, prefix = self._where(path, names)
        return _moved(await face.stat(below), prefix)

    async def scan(self, path: str) -> dict[str, Stat]:
        """See :class:`Face`."""
        names = split_path(path)
        found: dict[str, Stat] = {}
        if names or self._base is not None:
            face, below, prefix = self._where(path, names)
            found = {name: _moved(stat, prefix) for name, stat in (await face.scan(below)).items()}
        if not names:
            for name, graft in self._grafts.items():
                found[name] = _moved(await graft.stat("/"), name)
        return dict(sorted(found.items()))

    async def read(self, path: str) -> bytes:
        """See :class:`Face`."""
        face, below, _ = self._file(path)
        return await face.read(below)

    async def readlink(self, path: str) -> str:
        """See :class:`Face`."""
        face, below, _ = self._file(path, errno.EINVAL)
        return await face.readlink(below)

    async def read_at(self, path: str, offset: int, size_bytes: int) -> bytes:
        """See :class:`Face`."""
        face, below, _ = self._file(path)
        return await face.read_at(below, offset, size_bytes)

    async def write(self, path: str, data: bytes) -> None:
        """See :class:`Face`."""
        face, below, _ = self._file(path)
        await face.write(below, data)

    async def open(self, path: str, mode: Mode = "r") -> FaceFile:
        """See :class:`Face`."""
        face, below, _ = self._file(path)
        return await face.open(below, mode)

    def _file(self, path: str, of_root: int = errno.EISDIR) -> tuple[Face, str, str]:
        names = split_path(path)
        if not names:
            raise tree_error(path, "is a directory", of_root)
        return self._where(path, names)

    def _where(self, path: str, names: list[str]) -> tuple[Face, str, str]:
        """The face, the path in it, and the name at which it is grafted ("" for the base)."""
        graft = self._grafts.get(names[0]) if names else None
        if names and graft is not None:
            return graft, "/" + "/".join(names[1:]), names[0]
        if self._base is None:
            raise tree_error(path, f"no {names[0] if names else '/'!r} here", errno.ENOENT)
        return self._base, path, ""


def _dir(path: str) -> Stat:
    return Stat("dir", 0o555, 0, 0, 0, 0, path_id(path))


def _moved(stat: Stat, prefix: str) -> Stat:
    """Two faces may use the same numbers: those of a graft are mixed with its name."""
    if not prefix:
        return stat
    return msgspec.structs.replace(stat, id=stat.id ^ path_id(prefix) or 1)
