"""The five sides of an instance at which messages pass, and what they are called there."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias, get_args

from uxk.core.codec import Codec, completion_codec, down_codec, down_reply_codec, up_codec
from uxk.uapi import entries as e

Where: TypeAlias = Literal["requests", "events", "completions", "commands", "answers"]

SIDES: Final[dict[Where, Codec[Any]]] = {
    "requests": down_codec, "events": down_codec, "completions": down_reply_codec, "commands": up_codec,
    "answers": completion_codec,
}  # fmt: skip
"""Where messages of an instance can be got at, and how they are read there."""
_TYPES: Final[dict[Where, tuple[type, ...]]] = {
    "requests": (e.Request,), "events": (e.Event,), "completions": (e.Completion,), "answers": (e.Completion,),
    "commands": get_args(e.Up),
}  # fmt: skip
_OPS: Final[dict[int, str]] = {int(op): op.name.lower() for op in e.Op}
PRIVATE: Final = "private"
"""An operation of the driver class's own."""
_COMMANDS: Final[dict[type, str]] = {cls: cls.__name__.lower() for cls in get_args(e.Up)}


def passes(side: Where, entry: object) -> bool:
    """Whether this is a message of that side, rather than another that travels in the same frame."""
    return type(entry) in _TYPES[side]


def known_messages(side: Where) -> tuple[str, ...]:
    """What messages of a side are called; topics of events are anybody's choice."""
    match side:
        case "requests" | "completions":
            return (*_OPS.values(), PRIVATE)
        case "commands":
            return tuple(_COMMANDS.values())
        case "answers":
            return tuple(name for cls, name in _COMMANDS.items() if "cid" in getattr(cls, "__struct_fields__", ()))
        case "events":
            return ()


def name_of(entry: Any) -> str:
    """What a message is called; a completion has the name of what it answers, which itself does not tell."""
    kind = type(entry)
    if kind is e.Request:
        return _OPS.get(int(entry.opcode), PRIVATE)
    if kind is e.Event:
        return str(entry.topic)
    return _COMMANDS.get(kind, "")
