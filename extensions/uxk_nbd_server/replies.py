"""Replies of the transmission phase as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from uxk_nbd_server.wire import (
    ALLOCATION_ID,
    CHUNK,
    CHUNK_DATA,
    CHUNK_DONE,
    CHUNK_MAGIC,
    ERROR,
    EXTENT,
    HOLE,
    SIMPLE,
    SIMPLE_MAGIC,
    U32,
    ZERO,
    Chunk,
)

EXTENTS_MAX: Final = 1024
"""Extents in one answer; the client asks again from where it ends."""
_EXTENT_MAX_BYTES: Final = (1 << 32) - (64 << 10)
"""Longest extent: 32 bits, and a multiple of every block size."""
_simple = SIMPLE.pack
_data = CHUNK_DATA.pack


def simple(cookie: int, error: int = 0) -> bytes:
    """A simple reply; the data of a READ follow it."""
    return _simple(SIMPLE_MAGIC, error, cookie)


def data_header(cookie: int, offset: int, length: int, *, last: bool = True) -> bytes:
    """What stands before ``length`` bytes of a structured READ."""
    return _data(CHUNK_MAGIC, CHUNK_DONE if last else 0, Chunk.OFFSET_DATA, cookie, 8 + length, offset)


def done(cookie: int) -> bytes:
    """A structured reply without content."""
    return CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, Chunk.NONE, cookie, 0)


def error_chunk(cookie: int, error: int, text: bytes = b"") -> bytes:
    """A structured reply that says only what is wrong."""
    body = ERROR.pack(error, len(text)) + text
    return CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, Chunk.ERROR, cookie, len(body)) + body


def status_chunk(cookie: int, extents: Sequence[tuple[int, int]]) -> bytes:
    """The answer to BLOCK_STATUS: lengths and flags from the request's offset on."""
    body = U32.pack(ALLOCATION_ID) + b"".join(EXTENT.pack(length, flags) for length, flags in extents)
    return CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, Chunk.BLOCK_STATUS, cookie, len(body)) + body


def extents_for(
    found: Iterable[tuple[int, bool, bool]], length_bytes: int, *, one: bool = False
) -> list[tuple[int, int]]:  # fmt: skip
    """A device's extents (length, hole, zero) as (length, flags): equal neighbours joined, within the request.

    There is at least one, even if the device knows of none: then all is data.
    """
    joined: list[tuple[int, int]] = []
    rest = length_bytes
    for length, hole, zero in found:
        length = min(length, rest)
        if length <= 0:
            continue
        rest -= length
        flags = (HOLE if hole else 0) | (ZERO if zero else 0)
        if joined and joined[-1][1] == flags and joined[-1][0] + length <= _EXTENT_MAX_BYTES:
            joined[-1] = (joined[-1][0] + length, flags)
        elif len(joined) < (2 if one else EXTENTS_MAX):
            joined.append((min(length, _EXTENT_MAX_BYTES), flags))
            if length > _EXTENT_MAX_BYTES:  # what is left out, the client asks for
                break
        else:
            break
    return joined[:1] if one and joined else joined or [(min(length_bytes, _EXTENT_MAX_BYTES), 0)]
