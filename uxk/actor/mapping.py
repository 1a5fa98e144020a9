"""Arena memory as a host process sees it: each region mapped once for reading and once for writing, found again.

A region that is only granted for reading is mapped from a descriptor that allows nothing else: a write, by whatever
code, is the processor's to refuse, and ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final
from weakref import WeakValueDictionary, finalize, ref

_MAP_FIXED: Final = 0x10
_KEPT: Final = 64
"""Mappings that are kept though nobody looks at them: what requests lend is lent again soon."""
_VIEWS_TIDY: Final = 64

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Grant:
    """What one capability allowed: which bytes of which region, whether to write, and the views that are out."""

    __slots__ = ("length", "offset", "region", "views", "writable")

    def __init__(self, region: int, offset: int, length: int) -> None:
        self.region = region
        self.offset = offset
        self.length = length
        self.writable = False
        self.views: list[ref[memoryview]] = []


class Mappings:
    """The mappings of one process.  Python's own would each keep a descriptor, of which a process has few."""

    __slots__ = ("_generations", "_grants", "_kept", "_maps")

    def __init__(self) -> None:
        self._maps: WeakValueDictionary[tuple[int, bool], Any] = WeakValueDictionary()
        """By region and whether they can be written: arrays of ctypes, which live as long as a view of them."""
        self._kept: OrderedDict[tuple[int, bool], Any] = OrderedDict()
        self._generations: dict[int, int] = {}
        """Which file a region is mapped from."""
        self._grants: dict[int, Grant] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._maps)

    def is_past(self, region: int, generation: int) -> bool:
        """Whether a descriptor that the kernel has sent leads to a file that the region has left meanwhile."""
        return generation < self._generations.get(region, 0)

    def view(
        self, cap: int, region: int, generation: int, descriptor: int, offset: int, length: int, writable: bool
    ) -> memoryview:
        """Bytes ``offset`` to ``offset + length`` of a region, whose file the descriptor is; the caller closes it.

        Raises OSError if the process may map no more, or the descriptor does not allow to write.
        """
        size_bytes = os.fstat(descriptor).st_size
        if self._generations.get(region, generation) != generation:
            self._move(region, descriptor, size_bytes, writable)
        key = region, writable
        found = self._maps.get(key)
        if found is None:
            found = self._maps[key] = _mapped(descriptor, size_bytes, writable)
        self._generations[region] = generation
        grant = self._grants.get(cap)
        if grant is None:
            grant = self._grants[cap] = Grant(region, offset, length)
        grant.writable = grant.writable or writable
        return self._viewed(grant, key, found)

    def again(self, cap: int, writable: bool) -> memoryview | None:
        """Another view of what a capability has allowed before; None if the kernel is to be asked.

        It need not be: it says what has ended or moved before it says anything that could depend on it.
        """
        grant = self._grants.get(cap)
        if grant is None or (writable and not grant.writable):
            return None
        key = grant.region, writable
        found = self._maps.get(key)
        return None if found is None else self._viewed(grant, key, found)

    def _viewed(self, grant: Grant, key: tuple[int, bool], found: Any) -> memoryview:
        self._keep(key, found)
        view = memoryview(found).cast("B")[grant.offset : grant.offset + grant.length]
        if not key[1]:
            view = view.toreadonly()
        if len(grant.views) >= _VIEWS_TIDY:  # an author may map anew for every request
            grant.views[:] = [each for each in grant.views if each() is not None]
        grant.views.append(ref(view))
        return view

    def release(self, caps: Iterable[int]) -> None:
        """Ends the views that these capabilities allowed: they raise ValueError from now on, as released ones do."""
        for cap in caps:
            grant = self._grants.pop(cap, None)
            for each in () if grant is None else grant.views:
                view = each()
                if view is not None:
                    with contextlib.suppress(BufferError):  # an array of numpy's still looks at it
                        view.release()

    def grants(self, caps: Iterable[int]) -> list[tuple[int, bool]]:
        """Those of the capabilities that are in use, and whether for writing: those that are come first."""
        found = [(cap, self._grants[cap].writable) for cap in caps if cap in self._grants]
        return sorted(found, key=lambda each: not each[1])

    def _keep(self, key: tuple[int, bool], found: Any) -> None:
        kept = self._kept
        kept[key] = found
        kept.move_to_end(key)
        if len(kept) > _KEPT:
            kept.popitem(last=False)
            if len(self._generations) > 4 * _KEPT:
                living = {region for region, _ in self._maps}
                self._generations = {region: each for region, each in self._generations.items() if region in living}

    def _move(self, region: int, descriptor: int, size_bytes: int, writable: bool) -> None:
        """A region has a new file: its mappings show that from now on, at the same addresses.

        What was mapped for writing, and may be read only now, can be read only.
        """
        for mine in (False, True):
            found = self._maps.get((region, mine))
            if found is not None:
                _map(ctypes.addressof(found), size_bytes, descriptor, writable and mine)
                if mine and not writable:
                    del self._maps[region, True]
                    self._kept.pop((region, True), None)


def _mapped(descriptor: int, size_bytes: int, writable: bool) -> Any:
    address = _map(None, size_bytes, descriptor, writable)
    array = (ctypes.c_ubyte * size_bytes).from_address(address)
    finalize(array, _libc.munmap, address, size_bytes).atexit = False
    return array


def _map(at: int | None, size_bytes: int, descriptor: int, writable: bool) -> int:
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    flags = mmap.MAP_SHARED | (0 if at is None else _MAP_FIXED)
    address = _libc.mmap(at, size_bytes, protection, flags, descriptor, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno() or errno.ENOMEM
        raise OSError(number, f"mmap of {size_bytes} bytes: {os.strerror(number)}")
    return int(address)
