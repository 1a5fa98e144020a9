"""Wrong messages made of right ones: damaged, out of date, or plausible and untrue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np

from uxk.core.codec import encode
from uxk.uapi.entries import Entry, Hint

_MOST_TWICE: Final = 1 << 60
"""Numbers up to this may be doubled and stay what a message can hold."""


def corrupted(entry: Any, part: Literal["payload", "frame"], stream: np.random.Generator) -> bytes:
    """The entry's frame with one bit flipped, in its data or anywhere."""
    if part == "payload":
        field = data_field(entry)
        return encode([msgspec.structs.replace(entry, **{field: _flipped(getattr(entry, field), stream)})])
    return _flipped(encode([entry]), stream)


def data_field(entry: Any) -> str:
    """The field with a message's data, if it has any in it now; else ``""``."""
    names = (name for name in ("payload", "value", "data") if isinstance(getattr(entry, name, None), bytes))
    return next((name for name in names if getattr(entry, name)), "")


def _flipped(data: bytes, stream: np.random.Generator) -> bytes:
    bit = int(stream.integers(8 * len(data)))
    damaged = bytearray(data)
    damaged[bit >> 3] ^= 1 << (bit & 7)
    return bytes(damaged)


def staled(entry: Any, old: Any) -> Entry:
    """An older message of the same kind in the place of this one: all of it, but the command id."""
    cid = getattr(entry, "cid", None)
    stale: Entry = old if cid is None else msgspec.structs.replace(old, cid=cid)
    return stale


def lied(entry: Any, earlier: Sequence[Any], stream: np.random.Generator) -> Entry | None:
    """The message with other content of the same form; None if nothing in it could be another way.

    A failure becomes a success.  Numbers become others of their size, at most twice as large; data that are no
    MessagePack become those of an ``earlier`` message, or a mixture of their own.
    """
    fields: dict[str, Any] = {}
    if getattr(entry, "status", 0):
        fields["status"] = 0
    field = data_field(entry)
    if field:
        seen = [getattr(each, field) for each in earlier]
        fields[field] = _other_data(getattr(entry, field), seen, stream)
    for name in ("result", "predicted") if isinstance(entry, Hint) or not field else ():
        number = getattr(entry, name, 0)
        if number:
            fields[name] = _other_number(number, stream)
    if not fields or all(getattr(entry, name) == value for name, value in fields.items()):
        return None
    lie: Entry = msgspec.structs.replace(entry, **fields)
    return lie


def _other_data(data: bytes, seen: Sequence[bytes], stream: np.random.Generator) -> bytes:
    try:
        tree = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        tree = None
    if isinstance(tree, list | dict) and msgspec.msgpack.encode(tree) == data:
        return msgspec.msgpack.encode(_other_tree(tree, stream))
    others = [each for each in seen if len(each) == len(data) and each != data]
    if others:
        return others[int(stream.integers(len(others)))]
    turn = 1 + int(stream.integers(max(1, len(data) - 1)))
    return data[turn:] + data[:turn]


def _other_tree(value: Any, stream: np.random.Generator) -> Any:
    if isinstance(value, list):
        return [_other_tree(each, stream) for each in value]
    if isinstance(value, dict):
        return {key: _other_tree(each, stream) for key, each in value.items()}
    if isinstance(value, int) and not isinstance(value, bool):
        return _other_number(value, stream)
    return value


def _other_number(number: int, stream: np.random.Generator) -> int:
    if not 0 < abs(number) < _MOST_TWICE:
        return number
    drawn = int(stream.integers(2 * abs(number)))
    drawn += drawn >= abs(number)
    return drawn if number > 0 else -drawn
