"""What becomes of a sysctl write that an agent recommended: the record its agent gets (R29).

It is the value of an :class:`~uxk.uapi.entries.Event` with topic ``action`` and the sysctl as name.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec


class Step(Enum):
    """The steps of an action; all but the first end it."""

    APPLIED = "applied"
    """The value is in force, on trial."""
    CONFIRMED = "confirmed"
    """It stays."""
    REVERTED = "reverted"
    """The value from before is back."""
    SUPERSEDED = "superseded"
    """Somebody else wrote the sysctl: theirs stays."""


class ActionChange(msgspec.Struct, array_like=True, frozen=True):
    """One step of one action."""

    action: int
    """The number that recommending it gave."""
    sysctl: str
    step: Step
    value: str
    """What the sysctl has now, as text."""
    why: str


encode: Final = msgspec.msgpack.Encoder().encode
decode_action: Final = msgspec.msgpack.Decoder(ActionChange).decode
"""An :class:`ActionChange` from the bytes of an event."""
