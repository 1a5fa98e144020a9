"""A store in a file: a sparse one of our own, or a raw image that is there already."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from typing import Final

import uxk
from uxk.uapi.blk import Extent
from uxk_nvme.store import status as st
from uxk_nvme.store.base import Store
from uxk_nvme.store.checksum import Data
from uxk_nvme.store.marks import FileRecord, record_bytes

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10
"""Modes of fallocate(2), include/uapi/linux/falloc.h."""
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_ZEROS: Final = bytes(1 << 20)
MARKS_SUFFIX: Final = ".uxk-uncorrectable"
"""Of the file beside the image that says which blocks cannot be read."""


class FileStore(Store):
    """Bytes of a file, read and written at offsets, so that a full or shrunken file is an error and not a signal."""

    def __init__(self, path: str, fd: int, size_bytes: int, lba_bytes: int, *, integrity: bool) -> None:
        super().__init__(size_bytes, lba_bytes, integrity=integrity)
        self.path = path
        self._fd = fd
        self.bad.keep(FileRecord(path + MARKS_SUFFIX, record_bytes(size_bytes)), size_bytes)
        self._modes = {_PUNCH_HOLE, _ZERO_RANGE} if _fallocate is not None else set()

    def _read(self, offset: int, into: memoryview) -> int:
        try:
            done = os.preadv(self._fd, [into], offset)
            while done < len(into):
                more = os.preadv(self._fd, [into[done:]], offset + done)
                if not more:
                    return st.UNRECOVERED_READ  # somebody has cut the file
                done += more
        except OSError:
            return st.UNRECOVERED_READ
        return 0

    def _write(self, offset: int, data: Data) -> int:
        view = memoryview(data).cast("B")
        try:
            done = os.pwrite(self._fd, view, offset)
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], offset + done)
        except OSError as error:
            return _write_status(error.errno)
        return 0

    def _zero(self, offset: int, length: int, deallocate: bool) -> int:
        mode = _PUNCH_HOLE if deallocate else _ZERO_RANGE
        if mode in self._modes and _fallocate is not None:
            if _fallocate(self._fd, mode | _KEEP_SIZE, offset, length) == 0:
                return 0
            reason = ctypes.get_errno()
            if reason not in _UNSUPPORTED:
                return _write_status(reason)
            self._modes.discard(mode)
        for at in range(offset, offset + length, len(_ZEROS)):
            failure = self._write(at, memoryview(_ZEROS)[: offset + length - at])
            if failure:
                return failure
        return 0

    def _extents(self, offset: int, length: int, limit: int) -> list[Extent]:
        end = offset + length
        found: list[Extent] = []
        at = offset
        while at < end and len(found) < limit:
            data = min(self._seek(at, os.SEEK_DATA, end), end)
            if data > at:
                found.append(Extent(data - at, hole=True, zero=True))
                at = data
                continue
            hole = min(self._seek(at, os.SEEK_HOLE, end), end)
            found.append(Extent(hole - at, hole=False, zero=False))
            at = hole
        return found

    def _seek(self, at: int, whence: int, end: int) -> int:
        """Where data, or a hole, begin.  A file system that cannot tell has no holes."""
        try:
            return os.lseek(self._fd, at, whence)
        except OSError as error:
            if error.errno == errno.ENXIO or whence == os.SEEK_HOLE:
                return end
            return at

    def sync(self) -> int:
        """fdatasync(2)."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            return _write_status(error.errno)
        failure = self.bad.sync()
        return _write_status(failure) if failure else 0

    def close(self) -> None:
        """Closes the file, and so unlocks it."""
        super().close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        """A driver that crashed could not close it: its successor needs the lock."""
        self.close()


def open_sparse(path: str, size_bytes: int, lba_bytes: int, *, integrity: bool) -> FileStore:
    """A file of ``size_bytes``, made if it is not there.  ParamError says what is wrong with the path."""
    fd = _open(f"sparse:{path}", path, os.O_CREAT)
    try:
        there = os.fstat(fd).st_size
        if there == 0:
            os.ftruncate(fd, size_bytes)
        elif there != size_bytes:
            raise uxk.ParamError(
                f"backing=sparse:{path}: the file has {there} bytes, size is {size_bytes}; expected the same"
            )
    except OSError as error:
        os.close(fd)
        raise _refusal(f"sparse:{path}", error) from None
    except uxk.ParamError:
        os.close(fd)
        raise
    return FileStore(path, fd, size_bytes, lba_bytes, integrity=integrity)


def open_raw(path: str, lba_bytes: int, *, integrity: bool) -> FileStore:
    """An image that exists; it says how big the device is.  ParamError says what is wrong with it."""
    fd = _open(f"file:{path}", path, 0)
    size_bytes = os.fstat(fd).st_size
    if size_bytes == 0 or size_bytes % lba_bytes:
        os.close(fd)
        raise uxk.ParamError(f"backing=file:{path}: {size_bytes} bytes, expected a multiple of lba_bytes={lba_bytes}")
    return FileStore(path, fd, size_bytes, lba_bytes, integrity=integrity)


def _open(name: str, path: str, flags: int) -> int:
    """An exclusively locked descriptor of a regular file."""
    if not path:
        raise uxk.ParamError(f"backing={name}: expected a path")
    try:
        # Not blocking: opening a FIFO must not wait for its other end.
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | flags, 0o644)
    except (OSError, ValueError) as error:
        raise _refusal(name, error) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise uxk.ParamError(f"backing={name}: expected a regular file")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise uxk.ParamError(
            f"backing={name}: in use by another device (it holds the lock)", errno=errno.EBUSY
        ) from None
    except OSError as error:
        os.close(fd)
        raise _refusal(name, error) from None
    except uxk.ParamError:
        os.close(fd)
        raise
    return fd


def _refusal(name: str, error: Exception) -> uxk.ParamError:
    number = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
    text = os.strerror(number) if isinstance(error, OSError) else str(error)
    return uxk.ParamError(f"backing={name}: {text}; expected a file that can be read and written", errno=number)


def _write_status(number: int | None) -> int:
    return st.CAPACITY_EXCEEDED if number in _FULL else st.WRITE_FAULT


def _find_fallocate() -> ctypes._NamedFuncPointer | None:
    """fallocate(2), which the os module lacks; None where the C library has none."""
    try:
        function = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int
    return function


_fallocate: Final = _find_fallocate()
