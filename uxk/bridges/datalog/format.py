"""The log's segments, without files: frames that carry their own checksums, and what is in them.

A segment is a file of frames.  Every frame has a header of 24 bytes and a payload; the header's checksum covers the
header, another one the payload (CRC-32 of zlib, little-endian).  From the second frame on the header's checksum
starts from the segment's nonce, so that bytes of another segment, or rows that look like frames, are none of this
one's.  The payload of a batch is :data:`META` and the rows as they lay in the arena; the others are MessagePack.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np

from uxk.errors import UsageError
from uxk.uapi.ml import Schema

FORMAT: Final = 1
MAGIC: Final = b"uxkR"
HEADER: Final = struct.Struct("<4sBBHIIII")
"""Magic, kind, zero, dataset's number in this segment, index of the frame, bytes and checksum of the payload, and
the checksum of all that is before it."""
META: Final = struct.Struct("<QQQIII")
"""Of a batch: time in ns, generation, rows lost before it, first row, rows of the generation, rows here."""
SEGMENT_MAX_BYTES: Final = 256 << 20
"""A reader holds one segment in memory; a larger file is none of ours."""
ROWS_MAX_BYTES: Final = 16 << 20
"""Rows of one batch; a larger generation is several."""
WORDS_MAX_BYTES: Final = 1 << 16
"""Payload of any other frame."""
SEARCH_MAX: Final = 16
"""Times its size that a segment is looked at for whole frames behind damage: forged ones may overlap."""
_WRONG: Final = "a frame with a wrong checksum"
COLUMNS_MAX: Final = 4096
_COLUMN: Final = re.compile(r"(\(\d{1,6}(,\d{1,6}){0,7},?\))?[<>|][iubS]\d{1,7}", re.ASCII)
_FILE: Final = re.compile(r"(\d{8})\.uxkd", re.ASCII)

Buffer: TypeAlias = "bytes | memoryview"
S = TypeVar("S")


class Kind(IntEnum):
    """What a frame is."""

    HEAD = 1
    """The first of a segment: where it comes from."""
    SCHEMA = 2
    """Describes a dataset, before its first batch of this segment."""
    BATCH = 3
    LOSS = 4
    """Publications that did not get into the log."""
    END = 5
    """The last of a segment that was ended in good order."""


_KINDS: Final = frozenset(map(int, Kind))


class Head(msgspec.Struct, array_like=True, frozen=True):
    """Where a segment comes from."""

    format: int
    segment: int
    """The number in the file's name."""
    nonce: int
    run: str
    """Of the kernel that published: 16 hexadecimal digits, the same in all its segments."""
    created_ns: int
    """Host time since 1970."""
    seed: int
    clock: str
    scenario: str
    """``""`` if it was none."""
    versions: dict[str, str]
    """Of uxk, Python and the libraries."""


class Description(msgspec.Struct, array_like=True, frozen=True):
    """One dataset: who publishes it, and its columns."""

    subsystem: str
    model: str
    dataset: str
    schema: Schema
    capacity: int
    """Rows that one generation can have."""

    @property
    def name(self) -> str:
        """``MODEL/DATASET``."""
        return f"{self.model}/{self.dataset}"


class Loss(msgspec.Struct, array_like=True, frozen=True):
    """Publications of one dataset that were not written, and why: ``queue``, ``too_large``, or an errno's name."""

    time_ns: int
    name: str
    batches: int
    rows: int
    why: str


class End(msgspec.Struct, array_like=True, frozen=True):
    """A segment's end: ``rotated``, or ``closed`` with the log."""

    why: str
    frames: int
    from_ns: int
    """Time of the first publication in the segment."""
    to_ns: int


class Meta(NamedTuple):
    """What a batch says of its rows."""

    time_ns: int
    generation: int
    lost: int
    """Rows that found no room in this generation."""
    first: int
    """Where the rows begin in the generation."""
    total: int
    rows: int


class Frame(NamedTuple):
    """One whole frame."""

    offset: int
    kind: Kind
    number: int
    sequence: int
    payload: memoryview


class Hole(NamedTuple):
    """Bytes that are no whole frame, or frames that are missing (``bytes`` is 0 then)."""

    offset: int
    bytes: int
    why: str
    frames: int = 0
    """Frames that are missing, as far as their numbers tell."""


def file_name(number: int) -> str:
    """Of the segment ``number``."""
    return f"{number:08d}.uxkd"


def file_number(name: str) -> int:
    """The segment that a file's name stands for; 0 if it is another file."""
    found = _FILE.fullmatch(name)
    return int(found[1]) if found else 0


def frame(kind: Kind, number: int, index: int, payload: list[bytes | memoryview], nonce: int) -> list[Any]:
    """A frame as parts to be written one after the other; ``payload`` is parts, too."""
    crc = length = 0
    for part in payload:
        crc, length = zlib.crc32(part, crc), length + len(part)
    header = HEADER.pack(MAGIC, kind, 0, number, index, length, crc, 0)[:-4]
    return [header + struct.pack("<I", zlib.crc32(header, 0 if kind is Kind.HEAD else nonce)), *payload]


def words(value: object) -> bytes:
    """The payload of a frame other than a batch."""
    return msgspec.msgpack.encode(value)


def read_words(payload: Buffer, kind: type[S]) -> S | None:
    """Such a payload, or None if it is no ``kind``."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError):
        return None


def dtype_of(schema: Schema) -> np.dtype[Any]:
    """The dtype of a schema that somebody else wrote.  UsageError (EINVAL) unless it is packed columns of integers,
    booleans and bytes, of a bounded size."""
    if not 0 < len(schema) <= COLUMNS_MAX:
        raise UsageError(f"schema of {len(schema)} columns: expected 1 to {COLUMNS_MAX}")
    for name, kind in schema:
        if not _COLUMN.fullmatch(kind):
            raise UsageError(f"column {name[:60]!r} of type {kind[:60]!r}: expected integers, booleans or bytes")
    try:
        dtype = np.dtype(list(schema))
    except (TypeError, ValueError, OverflowError, MemoryError) as exc:
        raise UsageError(f"schema {str(schema)[:200]}: {exc}") from None
    for name in dtype.names or ():
        if not dtype[name].itemsize:  # pyarrow divides by the length of a list
            raise UsageError(f"column {name[:60]!r} of type {dtype[name].str}{dtype[name].shape}: expected a size")
    if not 0 < dtype.itemsize <= ROWS_MAX_BYTES:
        raise UsageError(f"schema: rows of {dtype.itemsize} bytes: expected 1 to {ROWS_MAX_BYTES}")
    return dtype


def read_meta(payload: Buffer, itemsize: int) -> Meta | None:
    """What a batch says of its rows, or None if that cannot be."""
    if len(payload) < META.size:
        return None
    meta = Meta(*META.unpack_from(payload))
    fits = len(payload) == META.size + meta.rows * itemsize and meta.first + meta.rows <= meta.total
    return meta if fits else None


def head_of(data: Buffer, number: int) -> Head | None:
    """The head of a segment, None if it is damaged or another segment's."""
    found = _frame_at(memoryview(data), 0, 0)
    if not isinstance(found, Frame) or found.kind is not Kind.HEAD or found.sequence:
        return None
    head = read_words(found.payload, Head)
    good = head is not None and head.format == FORMAT and head.segment == number and 0 <= head.nonce < 1 << 32
    return head if good else None


def is_begun(data: Buffer) -> bool:
    """Whether a file without a head can be one whose writer did not get further: there is no second frame in it."""
    return len(data) < HEADER.size + WORDS_MAX_BYTES and bytes(data).find(MAGIC, 1) < 0


def frames(data: Buffer, nonce: int) -> Iterator[Frame | Hole]:
    """Every whole frame after the head, and the holes between them, in order.

    After damage, the next whole frame with a higher index is looked for: what is returned as a frame has been written
    as one.  A hole at the end may be one that was never finished.
    """
    view, text = memoryview(data), bytes(data)
    first = _frame_at(view, 0, 0)
    if not isinstance(first, Frame):
        yield Hole(0, len(view), first)
        return
    offset, expected, patience = HEADER.size + len(first.payload), 1, SEARCH_MAX * len(view)
    while offset < len(view):
        found, begin = _frame_at(view, offset, nonce), offset
        why = found if isinstance(found, str) else "an index from before" if found.sequence < expected else ""
        while why and offset >= 0:
            if found == _WRONG or isinstance(found, Frame):  # its header is whole: all of it was looked at
                patience -= HEADER.unpack_from(view, offset)[5]
            offset = text.find(MAGIC, offset + 1) if patience > 0 else -1
            if offset >= 0:
                found = _frame_at(view, offset, nonce)
                if isinstance(found, Frame) and found.sequence >= expected:
                    break
        if offset < 0 or isinstance(found, str):
            yield Hole(begin, len(view) - begin, why)
            return
        if offset > begin or found.sequence > expected:
            yield Hole(begin, offset - begin, why or "missing", found.sequence - expected)
        yield found
        expected, offset = found.sequence + 1, offset + HEADER.size + len(found.payload)


def _frame_at(view: memoryview, offset: int, nonce: int) -> Frame | str:
    """The frame at ``offset``, or why there is none."""
    if len(view) - offset < HEADER.size:
        return "an unfinished header"
    magic, kind, zero, number, index, length, crc, own = HEADER.unpack_from(view, offset)
    if magic != MAGIC:
        return "no frame"
    begin = offset + HEADER.size
    if zlib.crc32(view[offset : begin - 4], nonce) != own:
        return "a header with a wrong checksum"
    most = META.size + ROWS_MAX_BYTES if kind == Kind.BATCH else WORDS_MAX_BYTES
    if zero or kind not in _KINDS or length > most:
        return f"a frame of kind {kind} with {length} bytes"
    if length > len(view) - begin:
        return f"an unfinished frame: {len(view) - begin} of {length} bytes"
    payload = view[begin : begin + length]
    if zlib.crc32(payload) != crc:
        return _WRONG
    return Frame(offset, Kind(kind), number, index, payload)
