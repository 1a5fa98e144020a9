"""Arena memory that other processes see: a file in memory for each region, mapped over the kernel's own range.

A region that no process may see lies in the kernel's one file.  The first time that a process is to see it, its
contents move to a file of its own (``memfd_create(2)``), which is mapped at the same address: views that are out
already keep working, and a process gets a descriptor that leads to this region and nothing else.  When the region is
freed, the kernel's own file comes back over its range, so a mapping that a process has kept leads to nothing of
anybody's.

The files are sealed (``fcntl(2)``, F_ADD_SEALS): nobody can change their size, which would kill the kernel with
SIGBUS at its next access.  While no process may write, nobody but the kernel can: F_SEAL_FUTURE_WRITE leaves its
mapping as it is and denies every other, however the descriptor was come by.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import sys
from typing import Final, NamedTuple

from uxk.core.arena import Arena, Region, anonymous
from uxk.errors import BudgetError, KernelBug, UsageError

_MAP_FIXED: Final = 0x10
_FALLOC_FL_PUNCH_HOLE: Final = 0x03
"""With FALLOC_FL_KEEP_SIZE, as Linux demands."""
_F_ADD_SEALS: Final = 1033
_F_SEAL_SEAL: Final = 0x01
_F_SEAL_SHRINK: Final = 0x02
_F_SEAL_GROW: Final = 0x04
_F_SEAL_FUTURE_WRITE: Final = 0x10
"""Since Linux 5.1."""
_SIZE: Final = _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_SEAL
_NAME: Final = "uxk-arena"
_NOBODY: Final = 65534
"""The user whom Linux itself calls so (Documentation/admin-guide/sysctl/fs.rst, overflowuid)."""


class Window(NamedTuple):
    """What a process needs to see a region: a descriptor, which whoever gets this closes, and the region."""

    descriptor: int
    region: Region
    number: int
    """Of the region, from its first file to its end; never used again in this kernel."""
    generation: int
    """Of the file; the next file of a region has a higher one."""


class _File(NamedTuple):
    descriptor: int
    region: Region
    writable: bool
    """Whether processes may be given it for writing: it is not sealed against that."""
    number: int
    generation: int


class SharedMemory:
    """Gives regions of one arena files of their own.  Linux only; elsewhere :meth:`window` says so."""

    __slots__ = ("_address", "_arena", "_descriptor", "_files", "_generation", "_libc")

    def __init__(self, arena_bytes: int) -> None:
        self._descriptor = -1
        self._files: dict[int, _File] = {}
        self._generation = 0
        self._address = 0
        self._libc: ctypes.CDLL | None = None
        self._arena = Arena(arena_bytes, self._back) if sys.platform == "linux" else Arena(arena_bytes)
        self._arena.on_return = self._returned

    @property
    def arena(self) -> Arena:
        """The arena whose regions these are."""
        return self._arena

    @property
    def files(self) -> int:
        """Regions that have a file of their own."""
        return len(self._files)

    def generation(self, offset: int) -> int:
        """Which file the region that begins at ``offset`` has; 0: the kernel's own."""
        known = self._files.get(offset)
        return 0 if known is None else known.generation

    def window(self, offset: int, *, writable: bool) -> Window:
        """The way for a process to the region around ``offset``, for reading or for both.

        A region that could only be read becomes writable by moving to a new file: :meth:`generation` tells, and who
        reads the old one should be told.  Raises :class:`UsageError` (EFAULT) for no region, :class:`BudgetError`
        (EMFILE, ENFILE, ENOMEM) if the host has no descriptor or mapping left; off Linux, EOPNOTSUPP.
        """
        if sys.platform != "linux":
            raise UsageError("memory can be shared with processes on Linux only", errno=errno.EOPNOTSUPP)
        region = self._arena.region(offset)
        known = self._files.get(region.offset)
        try:
            if known is None or (writable and not known.writable):
                known = self._move(region, writable)
            return Window(_opened(known.descriptor, writable), region, known.number, known.generation)
        except OSError as exc:
            raise BudgetError(f"arena: no way for a process to {region.length} bytes: {exc}", errno=exc.errno) from None

    def renew(self, offset: int, *, writable: bool) -> bool:
        """Moves a region to a new file, so that whoever has the old one sees no more of it; whether it had one.

        ``writable`` says whether any process may still write there.

        Those who may still see it need a new :meth:`window`; what they write into the old file meanwhile is lost.
        """
        known = self._files.get(offset)
        if known is None:
            return False
        try:
            self._move(known.region, writable)
        except OSError as exc:
            raise BudgetError(f"arena: cannot move {known.region.length} bytes: {exc}", errno=exc.errno) from None
        return True

    def retire(self, offset: int) -> None:
        """Takes a region back into the kernel's own file: no process is to see it, and descriptors are few."""
        known = self._files.get(offset)
        if known is None:
            return
        region = known.region
        try:
            _copy(known.descriptor, 0, self._descriptor, region.length, region.offset)
            self._map(region, self._descriptor, region.offset)
        except OSError as exc:
            raise BudgetError(f"arena: cannot move {region.length} bytes: {exc}", errno=exc.errno) from None
        del self._files[offset]
        os.close(known.descriptor)

    def close(self) -> None:
        """Closes the descriptors: nothing more is shared.  The memory stays as long as the arena and views of it."""
        for file in self._files.values():
            os.close(file.descriptor)
        self._files.clear()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()

    # --- inside ---

    def _back(self, size_bytes: int) -> mmap.mmap:
        """The arena's memory: a file, as only a file tells which of its pages were ever written."""
        descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size_bytes)
            fcntl.fcntl(descriptor, _F_ADD_SEALS, _SIZE)
            mapped = anonymous(size_bytes)  # given the file, Python would keep a second descriptor
            self._address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
            self._map(Region(0, size_bytes), descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return mapped

    def _move(self, region: Region, writable: bool) -> _File:
        """Gives a region a file, with what it holds.  The kernel has one thread: nobody writes meanwhile but
        processes that have its old file, and those are told to take the new one."""
        old = self._files.get(region.offset)
        source, base = (self._descriptor, region.offset) if old is None else (old.descriptor, 0)
        descriptor = os.memfd_create(f"{_NAME}-{region.offset}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            _protect(descriptor)
            os.ftruncate(descriptor, region.length)
            _copy(source, base, descriptor, region.length)
            self._map(region, descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
        # Now that the kernel's mapping, the writable one, is there.
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _SIZE if writable else _SIZE | _F_SEAL_FUTURE_WRITE)
        self._generation += 1
        made = self._files[region.offset] = _File(
            descriptor, region, writable, self._generation if old is None else old.number, self._generation
        )
        if old is None:
            self._punch(source, base, region.length)
        else:
            os.close(old.descriptor)  # not emptied: others read it until they hear of the new one
        return made

    def _returned(self, region: Region) -> None:
        """A region is nobody's any more: its range gets the kernel's own file back, and its file ends."""
        file = self._files.pop(region.offset, None)
        if file is not None:
            self._map(region, self._descriptor, region.offset)
            self._punch(file.descriptor, 0, region.length)  # whoever kept it keeps no memory with it
            os.close(file.descriptor)

    def _map(self, region: Region, descriptor: int, offset: int) -> None:
        """Puts a file over a region's range of the arena.  Python's mmap knows no MAP_FIXED."""
        libc = self._library()
        flags = mmap.MAP_SHARED | _MAP_FIXED | _MAP_NORESERVE
        at = self._address + region.offset
        found = libc.mmap(at, region.length, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, offset)
        if found != at:
            number = ctypes.get_errno() or errno.ENOMEM
            raise OSError(number, f"mmap of {region.length} bytes: {os.strerror(number)}")

    def _punch(self, descriptor: int, offset: int, length: int) -> None:
        """Gives the pages of a part of a file back to the host.  What is sealed against writing cannot be punched."""
        self._library().fallocate(descriptor, _FALLOC_FL_PUNCH_HOLE, offset, length)

    def _library(self) -> ctypes.CDLL:
        libc = self._libc
        if libc is None:
            if not self._address:
                raise KernelBug("arena: shared before anything was allocated")
            libc = ctypes.CDLL(None, use_errno=True)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = [
                ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
            ]  # fmt: skip
            libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
            self._libc = libc
        return libc


_MAP_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Python names it from 3.13 on; the number is that of x86, ARM and RISC-V."""


def _protect(descriptor: int) -> None:
    """Lets nobody who can only read open a file again for writing, through /proc: not even its owner, if it can be.

    A process of root's without privileges still owns root's files, so the file is given to nobody.
    """
    os.fchmod(descriptor, 0o444)
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):  # root of a container that may not
            os.fchown(descriptor, _NOBODY, _NOBODY)


def _opened(descriptor: int, writable: bool) -> int:
    """A descriptor of one's own for a file: a read-only one can neither write, nor be mapped for writing."""
    if writable:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def _copy(source: int, base: int, target: int, length: int, to: int = 0) -> None:
    """Copies what was ever written of a part of a file, to where ``target`` has a hole.

    The rest stays a hole there, as in a disk that is mostly empty.
    """
    at, end = base, base + length
    while at < end:
        try:
            begin = os.lseek(source, at, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but holes
                return
            raise
        if begin >= end:
            return
        at = min(os.lseek(source, begin, os.SEEK_HOLE), end)
        while begin < at:
            os.lseek(target, to + begin - base, os.SEEK_SET)
            count = os.sendfile(target, source, begin, at - begin)
            if not count:
                raise OSError(errno.EIO, "a file in memory ended early")
            begin += count
