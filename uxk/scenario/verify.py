"""Data that tells where and when it was written, so that what is read can be checked."""

from __future__ import annotations

import struct
from typing import Final

_HEADER: Final = struct.Struct("<QQ")


class Verifier:
    """Expected contents of a workload's blocks.  One request at a time per block, so that the answer is certain."""

    __slots__ = ("_busy", "_next", "_size_bytes", "blocks", "doubtful", "versions")

    def __init__(self, blocks: int, size_bytes: int) -> None:
        self.blocks = blocks
        self._size_bytes = size_bytes
        self._next = 0
        self._busy: set[int] = set()
        self.versions: dict[int, int] = {}
        """Version of every block that was written."""
        self.doubtful: set[int] = set()
        """Blocks of a failed write: old or new data, and perhaps new data later; not judged any more."""

    def take(self, block: int) -> int | None:
        """``block``, or the next one that no request is under way for; None if there is none."""
        for candidate in range(block, block + self.blocks):
            found = candidate % self.blocks
            if found not in self._busy:
                self._busy.add(found)
                return found
        return None

    def give_back(self, block: int) -> None:
        """The request for ``block`` is over."""
        self._busy.discard(block)

    def next_version(self) -> int:
        """A number for the next write; never used twice."""
        self._next += 1
        return self._next

    def pattern(self, block: int, version: int) -> bytes:
        """A block's worth of data that names both."""
        header = _HEADER.pack(block, version)
        return (header * (-(-self._size_bytes // _HEADER.size)))[: self._size_bytes]

    def wrote(self, block: int, version: int, ok: bool) -> None:
        """A write came back."""
        if ok:
            self.versions[block] = version
        else:
            self.doubtful.add(block)

    def judge(self, block: int, payload: bytes) -> str | None:
        """``""`` if a read gave what was written last, what is wrong if not, and None if that is unknown."""
        version = self.versions.get(block)
        if version is None or block in self.doubtful:
            return None
        if payload == self.pattern(block, version):
            return ""
        if len(payload) != self._size_bytes:
            return f"{len(payload)} bytes instead of {self._size_bytes}"
        if (found := _HEADER.unpack_from(payload))[0] < self.blocks and payload == self.pattern(*found):
            return f"data of block {found[0]}, version {found[1]}, instead of version {version}"
        return f"damaged data instead of version {version}"

    def written(self) -> list[int]:
        """Blocks whose contents are known, in order."""
        return sorted(self.versions.keys() - self.doubtful)
