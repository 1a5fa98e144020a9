"""The address space of a run: regions of bytes far apart, so that no sum of small numbers leads from one to another."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from uxk.bpf.insn import M64

SPACING: Final = 1 << 40
"""Between the beginnings of two regions.  Below the first lies the arena's window of 4 GiB."""
Buffer = bytearray | memoryview


class Absent(Exception):
    """An address where there is nothing, or nothing that may be written."""


class Region:
    """``data`` at the addresses from ``base``."""

    __slots__ = ("base", "data", "end", "name", "writable")

    def __init__(self, name: str, base: int, data: Buffer, writable: bool) -> None:
        self.name, self.base, self.data, self.writable = name, base, data, writable
        self.end = base + len(data)


class Memory:
    """Regions by address.  Numbers are little-endian."""

    __slots__ = ("_bases", "_regions")

    def __init__(self) -> None:
        self._bases: list[int] = []
        self._regions: list[Region] = []

    def add(self, name: str, data: Buffer, *, writable: bool = True) -> Region:
        """A new region, kept by reference, not copied."""
        region = Region(name, (len(self._regions) + 1) * SPACING, data, writable)
        self._regions.append(region)
        self._bases.append(region.base)
        return region

    def find(self, address: int, size_bytes: int, *, write: bool) -> tuple[Buffer, int]:
        """The buffer and the offset in it of ``size_bytes`` at ``address``.  Raises ``Absent``."""
        address &= M64
        index = bisect_right(self._bases, address) - 1
        if index >= 0:
            region = self._regions[index]
            if address + size_bytes <= region.end:
                if write and not region.writable:
                    raise Absent(
                        f"write of {size_bytes} bytes at {region.name}+{address - region.base}, which is read-only"
                    )
                return region.data, address - region.base
            if address - region.base < SPACING // 2:
                offset = address - region.base
                raise Absent(f"{size_bytes} bytes at {region.name}+{offset}, which has {len(region.data)} bytes")
        raise Absent(f"{size_bytes} bytes at address {address:#x}, where there is nothing")

    def load(self, address: int, size_bytes: int) -> int:
        """An unsigned number."""
        data, offset = self.find(address, size_bytes, write=False)
        return int.from_bytes(data[offset : offset + size_bytes], "little")

    def store(self, address: int, size_bytes: int, value: int) -> None:
        """Writes the low bytes of ``value``."""
        data, offset = self.find(address, size_bytes, write=True)
        data[offset : offset + size_bytes] = (value & ((1 << (8 * size_bytes)) - 1)).to_bytes(size_bytes, "little")

    def take(self, address: int, size_bytes: int) -> bytes:
        """A copy of some bytes, as helpers read them."""
        data, offset = self.find(address, size_bytes, write=False)
        return bytes(data[offset : offset + size_bytes])

    def put(self, address: int, value: bytes) -> None:
        """Writes bytes, as helpers do."""
        data, offset = self.find(address, len(value), write=True)
        data[offset : offset + len(value)] = value
