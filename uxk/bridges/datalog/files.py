"""A log's directory: its segments, its lock, and what a crash has left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from uxk.bridges.datalog import format as f
from uxk.errors import InUse, UsageError

LOCK: Final = "lock"
_NOTE_MAX_BYTES: Final = 64


class Segment(NamedTuple):
    """One file."""

    number: int
    path: Path
    size_bytes: int
    changed_ns: int


class Recovery(NamedTuple):
    """A torn tail that was cut off."""

    file: str
    offset: int
    bytes: int
    records: int
    """Frames that were begun in it; the rest of the bytes are no frame's."""
    why: str

    def __str__(self) -> str:
        return (
            f"{self.file}: cut off at offset {self.offset}: {self.bytes} bytes, {self.records} unfinished record"
            f"{'' if self.records == 1 else 's'} ({self.why})"
        )


def segments(folder: Path) -> list[Segment]:
    """The log's segments, oldest first.  OSError if the directory cannot be read; other files are none of ours."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            number = f.file_number(entry.name)
            if not number:
                continue
            with suppress(FileNotFoundError):  # retention was faster
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    found.append(Segment(number, folder / entry.name, status.st_size, status.st_mtime_ns))
    return sorted(found)


def read(path: Path) -> bytes:
    """The bytes of a segment.  UsageError (EFBIG) for a file that no writer of ours has written; OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path}: expected a regular file")
        if status.st_size > f.SEGMENT_MAX_BYTES:
            raise UsageError(
                f"{path}: {status.st_size} bytes, a segment has {f.SEGMENT_MAX_BYTES} at most", errno=errno.EFBIG
            )
        return file.read(f.SEGMENT_MAX_BYTES)


def lock(folder: Path) -> int:
    """Makes this process the log's only writer; returns the descriptor that holds the lock.

    InUse (EBUSY), with the process that has it, if there is one.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        note = os.read(handle, _NOTE_MAX_BYTES)
        os.close(handle)
        if exc.errno != errno.EWOULDBLOCK:
            raise
        who = note.decode(errors="replace").strip()
        raise InUse(f"{folder}: process {who if who.isdigit() else 'unknown'} writes this log") from None
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def is_written(folder: Path) -> bool:
    """Whether somebody writes this log now."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def recover(last: Segment, *, sync: bool) -> Recovery | None:
    """Cuts a torn tail off the last segment; the lock must be held.

    Only a tail with no whole frame behind it: anything else is damage, and stays as it is for who looks into it.  A
    file whose writer did not even get its head written is deleted.
    """
    data = read(last.path)
    head = f.head_of(data, last.number)
    if head is None:
        if not f.is_begun(data):
            return None
        last.path.unlink()
        return _cut(last, data, f.Hole(0, len(data), "no head")) if data else None
    found = [each for each in f.frames(data, head.nonce) if isinstance(each, f.Hole)]
    if not found or not found[-1].bytes or found[-1].offset + found[-1].bytes != len(data):
        return None
    with open(os.open(last.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "wb") as file:
        os.ftruncate(file.fileno(), found[-1].offset)
        if sync:
            os.fsync(file.fileno())
    return _cut(last, data, found[-1])


def _cut(last: Segment, data: bytes, hole: f.Hole) -> Recovery:
    begun = int(data[hole.offset : hole.offset + len(f.MAGIC)] == f.MAGIC)
    return Recovery(last.path.name, hole.offset, hole.bytes, begun, hole.why)


def sync_folder(folder: Path) -> None:
    """Forces names to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
