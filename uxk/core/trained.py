"""A checkpoint as a file: what ``uxk train`` writes, and what a module is started warm from.

Around the checkpoint (:mod:`uxk.core.checkpoint`) are a checksum and where it comes from.  Its data are the author's,
and nobody here looks at them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Final

import msgspec

from uxk.errors import UsageError
from uxk.limits import STATE_MAX_BYTES

FORMAT: Final = 1
FILE_MAX_BYTES: Final = STATE_MAX_BYTES + (1 << 16)
"""Largest file: the largest state that an instance takes over, and what is told of it."""
_MAGIC: Final = b"uxktrain"
_HEADER: Final = struct.Struct("<8sIQ")


class Trained(msgspec.Struct, array_like=True, frozen=True):
    """What is in such a file."""

    format: int
    checkpoint: bytes
    """As :func:`uxk.core.checkpoint.pack` gives it."""
    origin: dict[str, int | str]
    """What it was trained from."""


def to_file(checkpoint: bytes, origin: Mapping[str, int | str]) -> bytes:
    """The file's bytes."""
    payload = msgspec.msgpack.encode(Trained(FORMAT, checkpoint, dict(origin)))
    return _HEADER.pack(_MAGIC, zlib.crc32(payload), len(payload)) + payload


def from_file(data: bytes) -> Trained:
    """What is in the file.  UsageError (EINVAL), saying why, for anything but a whole one."""
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise UsageError("no checkpoint of uxk train")
    _, checksum, length = _HEADER.unpack_from(data)
    payload = memoryview(data)[_HEADER.size :]
    if len(payload) != length:
        raise UsageError(f"a checkpoint of {length} bytes, of which there are {len(payload)}")
    if zlib.crc32(payload) != checksum:
        raise UsageError("a checkpoint with a wrong checksum")
    try:
        found = msgspec.msgpack.decode(payload, type=Trained)
    except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError) as exc:
        raise UsageError(f"an unreadable checkpoint: {exc}") from None
    if found.format != FORMAT:
        raise UsageError(f"a checkpoint file of format {found.format}, expected {FORMAT}")
    return found
