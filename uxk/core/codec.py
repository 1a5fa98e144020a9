"""Frames: a batch of entries as one MessagePack array.

Decoding is strict and never raises on what a peer wrote.  A frame with a bad entry is read again entry by
entry (``msgspec.Raw``): good ones pass, bad ones whose command id can be read are reported with it, the rest
is only counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar, cast

import msgspec

from uxk import limits
from uxk.uapi.entries import Completion, Down, DownReply, Entry, Request, Up

T = TypeVar("T")

_encoder: Final = msgspec.msgpack.Encoder()
encode = _encoder.encode
"""Encodes a list of entries as one frame."""

# What msgspec may raise on hostile bytes: its own errors, bad UTF-8, nesting too deep, lengths that cannot be.
_HOSTILE: Final = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError, MemoryError)


Frame: TypeAlias = tuple[bytes, int]
"""An encoded batch and its number of entries."""


def frames_of(entries: Sequence[Entry]) -> list[Frame]:
    """Encodes a batch as one frame, or as several where one would pass ``FRAME_MAX_BYTES``."""
    frame = encode(entries)
    if len(frame) <= limits.FRAME_MAX_BYTES or len(entries) == 1:
        return [(frame, len(entries))]
    middle = len(entries) >> 1
    return frames_of(entries[:middle]) + frames_of(entries[middle:])


class Bad(NamedTuple):
    """One entry that could not be read: its command id if that much was legible, and why."""

    cid: int | None
    reason: str


class Codec(Generic[T]):
    """Decoder of one direction's entries.

    ``usual`` is the type that most frames consist of: :meth:`decode_usual` reads those, and tells them from others.
    """

    __slots__ = ("_decode", "_decode_one", "_decode_usual")

    def __init__(self, entry_type: Any, usual: Any = None) -> None:
        self._decode_usual = msgspec.msgpack.Decoder(
            cast("type[list[Any]]", list[usual or entry_type]),  # type: ignore[misc]
        ).decode
        self._decode = msgspec.msgpack.Decoder(
            cast("type[list[T]]", list[entry_type]),
        ).decode
        self._decode_one = msgspec.msgpack.Decoder(cast("type[T]", entry_type)).decode

    def decode(self, frame: bytes, max_entries: int) -> tuple[list[T], Sequence[Bad]]:
        """The readable entries of ``frame`` in order, and the others.  Never raises."""
        if len(frame) > limits.FRAME_MAX_BYTES:
            return [], (Bad(None, "oversized"),)
        try:
            entries = self._decode(frame)
        except _HOSTILE:
            return self._salvage(frame, max_entries)
        if len(entries) > max_entries:
            return entries[:max_entries], (Bad(None, "too_many"),) * (len(entries) - max_entries)
        return entries, ()

    def decode_usual(self, frame: bytes, max_entries: int) -> list[Any] | None:
        """All entries if every one is readable and of the usual type; otherwise None.  Never raises."""
        try:
            entries = self._decode_usual(frame)
        except _HOSTILE:
            return None
        return entries if len(entries) <= max_entries and len(frame) <= limits.FRAME_MAX_BYTES else None

    def _salvage(self, frame: bytes, max_entries: int) -> tuple[list[T], Sequence[Bad]]:
        try:
            raws = _raw_list(frame)
        except _HOSTILE:
            return [], (Bad(None, "malformed_frame"),)
        good: list[T] = []
        bad: list[Bad] = []
        for raw in raws[:max_entries]:
            try:
                good.append(self._decode_one(raw))
            except _HOSTILE:
                bad.append(Bad(_legible_cid(raw), "malformed_entry"))
        bad.extend([Bad(None, "too_many")] * (len(raws) - max_entries))
        return good, bad


_raw_list: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_raw_head: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_raw_int: Final = msgspec.msgpack.Decoder(int).decode
_ANSWERED: Final = frozenset(
    cast(int, struct.__struct_config__.tag) for struct in Entry.__subclasses__() if "cid" in struct.__struct_fields__
)


def _legible_cid(raw: msgspec.Raw) -> int | None:
    """Command id of a damaged entry, if its tag is one that carries an id in second place."""
    try:
        head = _raw_head(raw)
        if len(head) < 2 or _raw_int(head[0]) not in _ANSWERED:
            return None
        cid = _raw_int(head[1])
    except _HOSTILE:
        return None
    return cid if 0 <= cid <= limits.I64_MAX else None


down_codec: Final[Codec[Down]] = Codec(Down, usual=Request)
down_reply_codec: Final[Codec[DownReply]] = Codec(DownReply, usual=Completion)
up_codec: Final[Codec[Up]] = Codec(Up)
completion_codec: Final[Codec[Completion]] = Codec(Completion)
