"""Checkpoints of an agent: what they say of themselves, and two slots of memory that hold them.

A slot is valid once its header is written, after its data; so whoever dies while writing leaves the other slot.
The data are the author's, and nobody here looks at them.
"""

from __future__ import annotations

import errno
import importlib.metadata
import struct
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from uxk.errors import UsageError
from uxk.limits import U64_MAX

FORMAT: Final = 1
"""Of :class:`Checkpoint`; another one is not read."""

_HEADER: Final = struct.Struct("<8sQQQQ")
_MAGIC: Final = b"uxkckpt1"
_SLOTS: Final = 2


class Checkpoint(msgspec.Struct, array_like=True, frozen=True):
    """Opaque data, and who can read them: module, version of its state, versions of the libraries it uses."""

    format: int
    module: str
    state_version: int
    libraries: dict[str, str]
    data: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Checkpoint).decode


def pack(data: bytes, *, module: str, state_version: int, libraries: Mapping[str, str]) -> bytes:
    """A checkpoint as bytes."""
    return _encode(Checkpoint(FORMAT, module, state_version, dict(libraries), data))


def unpack(blob: bytes, *, module: str, state_version: int, libraries: Mapping[str, str]) -> bytes:
    """The data of a checkpoint, for a reader with these versions.

    ``libraries`` has the versions of what the checkpoint names, as far as they are installed.  Raises
    :class:`UsageError` (EINVAL) naming everything that does not fit.
    """
    try:
        found = _decode(blob)
    except msgspec.MsgspecError as exc:
        raise UsageError(f"checkpoint of {len(blob)} bytes: unreadable: {exc}") from None
    problems = [
        f"{what} {theirs}, expected {ours}"
        for what, theirs, ours in (
            ("format", found.format, FORMAT),
            ("module", found.module, module),
            ("state version", found.state_version, state_version),
            *((name, version, libraries.get(name, "none")) for name, version in sorted(found.libraries.items())),
        )
        if theirs != ours
    ]
    if problems:
        raise UsageError(f"checkpoint of {len(blob)} bytes: {'; '.join(problems)}")
    return found.data


def libraries_of(blob: bytes) -> tuple[str, ...]:
    """The libraries that a checkpoint names; none if it is unreadable."""
    try:
        return tuple(_decode(blob).libraries)
    except msgspec.MsgspecError:
        return ()


def versions_of(names: Sequence[str]) -> dict[str, str]:
    """Versions of distributions, and of Python; those that are not installed are left out."""
    found: dict[str, str] = {}
    for name in names:
        if name == "python":
            found[name] = f"{sys.version_info.major}.{sys.version_info.minor}"
        else:
            try:
                found[name] = importlib.metadata.version(name)
            except (importlib.metadata.PackageNotFoundError, ValueError):  # a checkpoint may name anything, even ""
                continue
    return found


class Slots:
    """Two slots in ``memory``, which is writable and outlives its writers.  The newest valid one counts.

    A reader says :meth:`tried` before it uses a checkpoint and :meth:`survived` after: one that kills its reader
    is not offered again.
    """

    __slots__ = ("_memory", "_room")

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory.cast("B")
        self._room = len(self._memory) // _SLOTS
        if self._room <= _HEADER.size:
            raise UsageError(f"checkpoint: {len(self._memory)} bytes of memory, expected over {_SLOTS * _HEADER.size}")

    @property
    def room(self) -> int:
        """Largest checkpoint, in bytes."""
        return self._room - _HEADER.size

    @property
    def newest(self) -> bytes | None:
        """The newest whole checkpoint."""
        best = self._best()
        if best is None:
            return None
        slot, _, length, _ = best
        begin = slot * self._room + _HEADER.size
        return bytes(self._memory[begin : begin + length])

    @property
    def deadly(self) -> bool:
        """Whether a reader of the newest one has said :meth:`tried` and nothing after."""
        best = self._best()
        return best is not None and best[3] != 0

    def write(self, blob: bytes) -> int:
        """Keeps a checkpoint beside the one before; returns its number.  ENOSPC if it is too long."""
        if len(blob) > self.room:
            raise UsageError(f"checkpoint of {len(blob)} bytes, there is room for {self.room}", errno=errno.ENOSPC)
        best = self._best()
        if best is not None and best[1] == U64_MAX:  # no header holds its successor: the memory was tampered with
            self.clear()
            best = None
        slot, number = (0, 1) if best is None else ((best[0] + 1) % _SLOTS, best[1] + 1)
        begin = slot * self._room
        _HEADER.pack_into(self._memory, begin, bytes(8), 0, 0, 0, 0)
        self._memory[begin + _HEADER.size : begin + _HEADER.size + len(blob)] = blob
        _HEADER.pack_into(self._memory, begin, _MAGIC, number, len(blob), zlib.crc32(blob), 0)
        return number

    def tried(self) -> None:
        """The newest one is about to be used."""
        self._mark(1)

    def survived(self) -> None:
        """It was used, and did no harm."""
        self._mark(0)

    def clear(self) -> None:
        """Forgets them all."""
        for slot in range(_SLOTS):
            _HEADER.pack_into(self._memory, slot * self._room, bytes(8), 0, 0, 0, 0)

    def _mark(self, mark: int) -> None:
        best = self._best()
        if best is not None:
            struct.pack_into("<Q", self._memory, best[0] * self._room + _HEADER.size - 8, mark)

    def _best(self) -> tuple[int, int, int, int] | None:
        """Slot, number, length and mark of the newest whole one."""
        best = None
        for slot in range(_SLOTS):
            begin = slot * self._room
            magic, number, length, checksum, mark = _HEADER.unpack_from(self._memory, begin)
            if magic == _MAGIC and length <= self.room and (best is None or number > best[1]):
                if zlib.crc32(self._memory[begin + _HEADER.size : begin + _HEADER.size + length]) == checksum:
                    best = (slot, number, length, mark)
        return best
