"""Maps: what a program and its loader share.  Values are bytes, numbers in them little-endian.

Errors are those of bpf(2): ENOENT, E2BIG, EEXIST, EINVAL as negative numbers for programs, ``BpfError`` for the loader.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

from uxk.bpf.errors import BpfError
from uxk.bpf.proto import MapShape

ANY, NOEXIST, EXIST = range(3)
"""Flags of an update (BPF_ANY, BPF_NOEXIST, BPF_EXIST)."""
NO_WAKEUP, FORCE_WAKEUP = 1, 2
"""Flags of a record (BPF_RB_NO_WAKEUP, BPF_RB_FORCE_WAKEUP)."""
LOCK: Final = 4
"""Another (BPF_F_LOCK), for values with a lock in them, which there are none of."""
MAP_BYTES_MAX: Final = 1 << 30
"""Largest map."""
ARENA_PAGE_BYTES: Final = 4096
_WINDOW: Final = (1 << 32) - 1


class Map:
    """``kind``, sizes and number of entries; ``name`` is for people."""

    kind = ""
    direct = False
    read_only = False
    """Whether programs may only read it, as constants in the source of one."""

    def __init__(self, key_bytes: int, value_bytes: int, max_entries: int, name: str = "") -> None:
        if key_bytes < 0 or value_bytes < 0 or max_entries <= 0:
            raise BpfError(
                f"map {name!r}: {key_bytes} byte keys, {value_bytes} byte values, {max_entries} entries; expected more"
            )
        if (key_bytes + value_bytes) * max_entries > MAP_BYTES_MAX:
            raise BpfError(f"map {name!r}: {(key_bytes + value_bytes) * max_entries} bytes; at most {MAP_BYTES_MAX}")
        self.key_bytes, self.value_bytes, self.max_entries, self.name = key_bytes, value_bytes, max_entries, name

    @property
    def shape(self) -> MapShape:
        """What the verifier knows of it."""
        return MapShape(self.kind, self.key_bytes, self.value_bytes, self.direct, not self.read_only)

    def check_key(self, key: bytes) -> None:
        """Raises ``BpfError`` for a key of another length."""
        if len(key) != self.key_bytes:
            raise BpfError(f"map {self.name!r}: a key of {len(key)} bytes; expected {self.key_bytes}")

    def check_value(self, value: bytes) -> None:
        """Raises ``BpfError`` for a value of another length."""
        if len(value) != self.value_bytes:
            raise BpfError(f"map {self.name!r}: a value of {len(value)} bytes; expected {self.value_bytes}")


class ArrayMap(Map):
    """``max_entries`` values side by side, all there from the beginning; keys are 32-bit indices."""

    kind, direct = "array", True

    def __init__(self, value_bytes: int, max_entries: int, name: str = "") -> None:
        super().__init__(4, value_bytes, max_entries, name)
        if not value_bytes:
            raise BpfError(f"map {name!r}: values of 0 bytes; expected more")
        self.direct = self.direct and max_entries == 1  # as in Linux (array_map_direct_value_addr)
        self.stride_bytes = -(-value_bytes // 8) * 8
        self.data = bytearray(self.stride_bytes * max_entries)

    def offset(self, key: bytes) -> int | None:
        """Where the value of a key begins in ``data``; None if there is none."""
        index = int.from_bytes(key, "little")
        return index * self.stride_bytes if index < self.max_entries else None

    def __getitem__(self, index: int) -> bytes:
        start = self._start(index)
        return bytes(self.data[start : start + self.value_bytes])

    def __setitem__(self, index: int, value: bytes) -> None:
        self.check_value(value)
        start = self._start(index)
        self.data[start : start + self.value_bytes] = value

    def _start(self, index: int) -> int:
        if not 0 <= index < self.max_entries:
            raise BpfError(f"map {self.name!r}: index {index}; expected 0 to {self.max_entries - 1}")
        return index * self.stride_bytes

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> int:
        """As a program does it: 0, or a negative errno, in the order of array_map_update_elem."""
        if flags & ~LOCK > EXIST:
            return -errno.EINVAL
        offset = self.offset(key)
        if offset is None:
            return -errno.E2BIG
        if flags & NOEXIST:
            return -errno.EEXIST
        if flags & LOCK:
            return -errno.EINVAL
        self.data[offset : offset + self.value_bytes] = value
        return 0

    def delete(self, key: bytes) -> int:
        """Elements of an array stay: -EINVAL."""
        return -errno.EINVAL

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries."""
        for index in range(self.max_entries):
            yield index.to_bytes(4, "little"), self[index]


class InstanceArrayMap(ArrayMap):
    """An array for each instance that a program runs for, in the place of Linux's per-CPU array.

    ``select`` says whose values programs see from now on; the loader reads all of them with ``of``.
    """

    kind, direct = "instance array", False

    def __init__(self, value_bytes: int, max_entries: int, name: str = "", instances_max: int = 64) -> None:
        super().__init__(value_bytes, max_entries, name)
        self.instances_max = instances_max
        self._all: dict[int, bytearray] = {0: self.data}

    def has_room(self, instance: int) -> bool:
        """Whether ``select`` finds or makes values of an instance."""
        return instance in self._all or len(self._all) < self.instances_max

    def select(self, instance: int) -> None:
        """Raises ``BpfError`` when ``instances_max`` others have values already."""
        if instance not in self._all:
            if not self.has_room(instance):
                raise BpfError(
                    f"map {self.name!r}: values of {self.instances_max} instances already, none left for {instance}"
                )
            self._all[instance] = bytearray(len(self.data))
        self.data = self._all[instance]

    def of(self, index: int) -> dict[int, bytes]:
        """The value at an index, of every instance that has run."""
        start = self._start(index)
        return {number: bytes(data[start : start + self.value_bytes]) for number, data in self._all.items()}


class HashMap(Map):
    """Values by key, at most ``max_entries``.

    Places are used as Linux does, whose programs may still hold the address of a value that was replaced or deleted:
    a replaced one gets the place that the last replacement left, a new one that of the last deletion.
    """

    kind = "hash"

    def __init__(self, key_bytes: int, value_bytes: int, max_entries: int, name: str = "") -> None:
        super().__init__(key_bytes, value_bytes, max_entries, name)
        if not key_bytes or not value_bytes:
            raise BpfError(f"map {name!r}: keys of {key_bytes} and values of {value_bytes} bytes; expected more than 0")
        self.stride_bytes = -(-value_bytes // 8) * 8
        self.data = bytearray(self.stride_bytes * (max_entries + 1))
        self._places: dict[bytes, int] = {}
        self._deleted: list[int] = []
        self._untouched = 0
        self._spare = max_entries

    def __len__(self) -> int:
        return len(self._places)

    def offset(self, key: bytes) -> int | None:
        """Where the value of a key begins in ``data``; None if there is none."""
        place = self._places.get(key)
        return None if place is None else place * self.stride_bytes

    def __getitem__(self, key: bytes) -> bytes:
        self.check_key(key)
        offset = self.offset(key)
        if offset is None:
            raise BpfError(f"map {self.name!r}: no key {key.hex()}", errno=errno.ENOENT)
        return bytes(self.data[offset : offset + self.value_bytes])

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.check_key(key)
        self.check_value(value)
        if self.update(key, value):
            raise BpfError(f"map {self.name!r}: has {self.max_entries} entries already", errno=errno.E2BIG)

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> int:
        """As a program does it: 0, or a negative errno."""
        if flags > EXIST:
            return -errno.EINVAL
        offset = self.offset(key)
        if offset is None:
            if flags == EXIST:
                return -errno.ENOENT
            if len(self._places) >= self.max_entries:
                return -errno.E2BIG
            self._places[bytes(key)] = place = self._deleted.pop() if self._deleted else self._untouched
            self._untouched += place == self._untouched
        elif flags == NOEXIST:
            return -errno.EEXIST
        else:
            place, self._spare = self._spare, offset // self.stride_bytes
            self._places[bytes(key)] = place
        offset = place * self.stride_bytes
        self.data[offset : offset + self.value_bytes] = value
        return 0

    def delete(self, key: bytes) -> int:
        """0, or -ENOENT."""
        place = self._places.pop(bytes(key), None)
        if place is None:
            return -errno.ENOENT
        self._deleted.append(place)
        return 0

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, oldest key first."""
        for key in list(self._places):
            yield key, self[key]


class RingBuffer(Map):
    """Records from programs to the loader; what does not fit is dropped, and counted in ``dropped``.

    ``max_entries`` is the room in bytes, a power of two; each record takes 8 bytes more, as in Linux, rounded up to 8.
    """

    kind = "ringbuf"
    HEADER_BYTES: Final = 8

    def __init__(self, size_bytes: int, name: str = "") -> None:
        super().__init__(0, 0, size_bytes, name)
        if size_bytes & (size_bytes - 1) or size_bytes < ARENA_PAGE_BYTES:
            raise BpfError(f"map {name!r}: {size_bytes} bytes; expected a power of two, at least {ARENA_PAGE_BYTES}")
        self._records: list[bytes] = []
        self._used_bytes = 0
        self.dropped = 0

    def output(self, record: bytes, flags: int = 0) -> int:
        """0, or -EAGAIN if there is no room.  Flags say who is woken, which is nobody; unknown ones are -EINVAL."""
        if flags & ~(NO_WAKEUP | FORCE_WAKEUP):
            return -errno.EINVAL
        needed = self._room(record)
        if self._used_bytes + needed >= self.max_entries:  # it is never full to the last byte
            self.dropped += 1
            return -errno.EAGAIN
        self._records.append(bytes(record))
        self._used_bytes += needed
        return 0

    def _room(self, record: bytes) -> int:
        return -(-(len(record) + self.HEADER_BYTES) // 8) * 8

    def drain(self) -> list[bytes]:
        """All records, which leave the ring."""
        records, self._records, self._used_bytes = self._records, [], 0
        return records


class ArenaMap(Map):
    """Sparse memory behind 32-bit addresses: a program reads 0 where a page is absent; what it stores there is lost.

    So it is, as a whole, if one byte is absent, or lies beyond the 4 GiB on either side (Linux has pages there to guard
    them).  An atomic operation fetches 0 there; Linux 6.18 leaves the register as it was, against what its verifier
    believes.  Both sides write it as they like, so whatever is read from it is untrusted.
    """

    kind = "arena"

    def __init__(self, pages: int, name: str = "") -> None:
        super().__init__(0, 0, pages, name)
        if pages > 1 << 20:
            raise BpfError(f"map {name!r}: {pages} pages; at most {1 << 20}, the 4 GiB of an arena")
        self._pages: dict[int, bytearray] = {}

    def populate(self, offset: int, size_bytes: int) -> None:
        """Makes the pages of a range present, as user space does by touching them."""
        last = (offset + size_bytes - 1) // ARENA_PAGE_BYTES
        if offset < 0 or last >= self.max_entries:
            raise BpfError(
                f"map {self.name!r}: bytes {offset}..{offset + size_bytes}; expected within "
                f"{self.max_entries * ARENA_PAGE_BYTES}"
            )
        for page in range(offset // ARENA_PAGE_BYTES, last + 1):
            self._pages.setdefault(page, bytearray(ARENA_PAGE_BYTES))

    def release(self, offset: int, size_bytes: int) -> None:
        """Makes the whole pages of a range absent again."""
        for page in range(-(-offset // ARENA_PAGE_BYTES), (offset + size_bytes) // ARENA_PAGE_BYTES):
            self._pages.pop(page, None)

    def holds_any(self) -> bool:
        """Whether any byte is not 0."""
        return any(any(page) for page in self._pages.values())

    def holds(self, offset: int, size_bytes: int) -> bool:
        """Whether all of these bytes are present."""
        pages = self._pages
        last = (offset + size_bytes - 1) // ARENA_PAGE_BYTES
        return offset // ARENA_PAGE_BYTES in pages and last in pages

    def load(self, offset: int, size_bytes: int) -> int:
        """An unsigned number, as a program reads it."""
        return int.from_bytes(self.read(offset, size_bytes), "little") if self.holds(offset, size_bytes) else 0

    def store(self, offset: int, size_bytes: int, value: int) -> None:
        """Writes the low bytes of ``value``, as a program does."""
        if self.holds(offset, size_bytes):
            self.write(offset, (value & ((1 << 8 * size_bytes) - 1)).to_bytes(size_bytes, "little"))

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Bytes, with zeros for what is absent."""
        parts = bytearray()
        while len(parts) < size_bytes:
            at = (offset + len(parts)) & _WINDOW
            within = at % ARENA_PAGE_BYTES
            count = min(size_bytes - len(parts), ARENA_PAGE_BYTES - within)
            page = self._pages.get(at // ARENA_PAGE_BYTES)
            parts += bytes(count) if page is None else page[within : within + count]
        return bytes(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Bytes, of which those of absent pages are lost."""
        done = 0
        while done < len(data):
            at = (offset + done) & _WINDOW
            within = at % ARENA_PAGE_BYTES
            count = min(len(data) - done, ARENA_PAGE_BYTES - within)
            page = self._pages.get(at // ARENA_PAGE_BYTES)
            if page is not None:
                page[within : within + count] = data[done : done + count]
            done += count
