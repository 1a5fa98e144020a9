"""A log as files, to be grafted beside a kernel's tree: its segments, and what each dataset looks like now.

``NNNNNNNN.uxkd`` are the segments: a copy of them is a log.  ``MODEL/DATASET/columns`` has a line with name and type
for each column, ``MODEL/DATASET/newest.jsonl`` the rows of the newest whole publication.  Everything is read-only, and
read in threads: neither a slow disk nor a large log keeps a kernel in the same process waiting.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import trio

from uxk.bridges.datalog import files
from uxk.bridges.datalog import format as f
from uxk.bridges.datalog.reader import DataLog, Generation
from uxk.bridges.face.api import POLLIN, READ_MAX_BYTES, Face, FaceFile, Mode, Stat
from uxk.bridges.face.errors import check_mode, path_id, tree_errors
from uxk.bridges.face.graft import GraftedFace
from uxk.core.kobject import split_path, tree_error
from uxk.core.rows import feature_dicts
from uxk.errors import TreeError

T = TypeVar("T")
FRESH_NS: Final = 1_000_000_000
"""How old what is shown may be: a folder is not read again within this time."""
SEGMENTS_READ: Final = 2
"""Newest segments in which datasets are looked for: bounds what a listing costs."""
ROWS_SHOWN: Final = 4096
"""Rows of a publication in ``newest.jsonl``."""
THREADS_MAX: Final = 4
_NAME: Final = re.compile(r"[\w.-]{1,55}", re.ASCII)


class _File(NamedTuple):
    """What is behind a path: a segment on the disk, or text."""

    path: Path | None
    text: bytes
    size_bytes: int
    mtime_ns: int


_Tree = dict[str, "_File | _Tree"]


class DatasetsFace(Face):
    """The log in ``folder``.  A log that is not there, or not yet, is an empty folder."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._limiter = trio.CapacityLimiter(THREADS_MAX)
        self._lock = trio.Lock()
        self._tree: _Tree = {}
        self._seen: list[files.Segment] | None = None
        self._read_ns = -FRESH_NS

    async def stat(self, path: str) -> Stat:
        """See :class:`Face`."""
        return self._stat(path, await self._find(path))

    async def scan(self, path: str) -> dict[str, Stat]:
        """See :class:`Face`."""
        found, base = await self._find(path), path.rstrip("/")
        if isinstance(found, _File):
            raise tree_error(path, "is a file, expected a directory", errno.ENOTDIR)
        return {name: self._stat(f"{base}/{name}", each) for name, each in sorted(found.items())}

    async def read(self, path: str) -> bytes:
        """See :class:`Face`."""
        return await self.read_at(path, 0, READ_MAX_BYTES)

    async def read_at(self, path: str, offset: int, size_bytes: int) -> bytes:
        """See :class:`Face`."""
        found = await self._file(path)
        return await self._part(path, found, offset, size_bytes)

    async def open(self, path: str, mode: Mode = "r") -> FaceFile:
        """See :class:`Face`."""
        check_mode(path, mode)
        found = await self._file(path)
        if mode != "r":
            raise tree_error(path, "is read-only", errno.EROFS)
        return _OpenFile(self, path, found)

    # --- inside ---

    async def _part(self, path: str, found: _File, offset: int, size_bytes: int) -> bytes:
        if offset < 0 or size_bytes < 0:
            raise tree_error(path, f"{size_bytes} bytes at {offset}: expected at least 0", errno.EINVAL)
        size_bytes = min(size_bytes, READ_MAX_BYTES)
        if found.path is None:
            return found.text[offset : offset + size_bytes]
        segment = found.path
        return await self._thread(path, lambda: _pread(segment, offset, size_bytes))

    async def _thread(self, path: str, call: Callable[[], T]) -> T:
        with tree_errors(path):
            return await trio.to_thread.run_sync(call, limiter=self._limiter)

    async def _file(self, path: str) -> _File:
        found = await self._find(path)
        if not isinstance(found, _File):
            raise tree_error(path, "is a directory", errno.EISDIR)
        return found

    async def _find(self, path: str) -> _File | _Tree:
        names = split_path(path)
        found: _File | _Tree = await self._fresh()
        for name in names:
            if isinstance(found, _File):
                raise tree_error(path, "goes through a file", errno.ENOTDIR)
            if name not in found:
                raise tree_error(path, "no such file or directory", errno.ENOENT)
            found = found[name]
        return found

    async def _fresh(self) -> _Tree:
        await trio.lowlevel.checkpoint()
        async with self._lock:
            if time.monotonic_ns() - self._read_ns >= FRESH_NS:
                seen = await self._thread("/", self._segments)
                if seen != self._seen:
                    self._tree = await self._thread("/", lambda: _tree_of(self._folder, seen))
                    self._seen = seen
                self._read_ns = time.monotonic_ns()
            return self._tree

    def _segments(self) -> list[files.Segment]:
        try:
            return files.segments(self._folder)
        except FileNotFoundError:
            return []

    def _stat(self, path: str, found: _File | _Tree) -> Stat:
        if isinstance(found, _File):
            return Stat(
                "file", 0o444, self._uid, self._gid, found.size_bytes, found.mtime_ns, path_id(path), stored=True
            )
        times = [each.mtime_ns for each in found.values() if isinstance(each, _File)]
        return Stat("dir", 0o555, self._uid, self._gid, 0, max(times, default=0), path_id(path))


class _OpenFile(FaceFile):
    """What was there when it was opened; a segment that is being written grows."""

    def __init__(self, face: DatasetsFace, path: str, found: _File) -> None:
        self._face = face
        self._path = path
        self._found: _File | None = found
        self._position = 0

    async def read(self, size_bytes: int = READ_MAX_BYTES, *, wait: bool = True) -> bytes:
        """See :class:`FaceFile`."""
        data = await self._face._part(self._path, self._open(), self._position, size_bytes)
        self._position += len(data)
        return data

    async def write(self, data: bytes) -> int:
        """See :class:`FaceFile`."""
        self._open()
        raise tree_error(self._path, "is read-only", errno.EROFS)

    async def poll(self, mask: int) -> int:
        """A stored file can always be read."""
        await trio.lowlevel.checkpoint()
        self._open()
        return mask & POLLIN

    async def aclose(self) -> None:
        """See :class:`FaceFile`."""
        self._found = None
        await trio.lowlevel.checkpoint()

    def _open(self) -> _File:
        if self._found is None:
            raise tree_error(self._path, "is closed", errno.EBADF)
        return self._found


async def with_datasets(face: Face) -> Face:
    """A kernel's face with its dataset log at ``/datasets``, if it keeps one on this machine; else as it is."""
    try:
        folder = await face.read_text("/sys/kernel/datalog/dir")
    except TreeError:
        return face
    return GraftedFace({"/": face, "/datasets": DatasetsFace(folder)})


# --- in threads ---


def _tree_of(folder: Path, seen: list[files.Segment]) -> _Tree:
    tree: _Tree = {each.path.name: _File(each.path, b"", each.size_bytes, each.changed_ns) for each in seen}
    newest: dict[tuple[str, str], Generation] = {}
    log = DataLog(folder) if seen else None
    if log is not None:
        for each in log.generations(damaged=True, newest_segments=SEGMENTS_READ):
            newest[each.description.model, each.description.dataset] = each
    when_ns = max((each.changed_ns for each in seen), default=0)
    for names, found in newest.items():
        if all(_NAME.fullmatch(name) and name not in (".", "..") for name in names):
            model = tree.setdefault(names[0], {})
            if isinstance(model, dict):
                model[names[1]] = _dataset(found, when_ns)
    return tree


def _dataset(found: Generation, when_ns: int) -> _Tree:
    columns = "".join(f"{name} {kind}\n" for name, kind in found.description.schema).encode()
    encode = msgspec.json.Encoder().encode
    rows = b"".join(encode(_plain(row)) + b"\n" for row in islice(feature_dicts(found.rows), ROWS_SHOWN))
    return {
        "columns": _File(None, columns, len(columns), when_ns),
        "newest.jsonl": _File(None, rows, len(rows), when_ns),
    }


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else value
        for name, value in row.items()
    }


def _pread(path: Path, offset: int, size_bytes: int) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.pread(handle, min(size_bytes, f.SEGMENT_MAX_BYTES), offset)
    finally:
        os.close(handle)
