"""What an agent may tell the collector: a policy that stands, and victims to clean once (R101-R103)."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from uxk.subsystems.lfs import codes as c

VICTIMS_MAX: Final = 64
"""Segments in one hint."""
NAME_MAX: Final = 64


class GcHint(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The payload of a hint for a site ``*.gc``; whatever is left out stays the kernel's own choice.

    A standing hint names a policy; a one-shot hint names victims.  Nothing of it is believed: the policy is one of
    the kernel's own, and every victim and every block is checked again before it moves (R104).
    """

    policy: str = ""
    """``placement/selection``, as :func:`uxk.subsystems.lfs.policy.parse_policy` knows them."""
    args: tuple[int, ...] = ()
    """The policy's parameters."""
    table: str = ""
    """Snapshot with one byte per page, the class of its blocks (255: the default's choice), for ``table/...``."""
    victims: tuple[int, ...] = ()
    """Segments to clean next, in this order."""
    max_valid_blocks: int = 0
    """A victim with more valid blocks than this is refused; 0: no bound but the kernel's own."""


_DECODER: Final = msgspec.msgpack.Decoder(GcHint)
encode_hint: Final = msgspec.msgpack.Encoder().encode
"""A :class:`GcHint` as the payload of a hint."""


def decode_hint(payload: bytes) -> GcHint | None:
    """The hint, or None if the bytes are none or it breaks a bound."""
    try:
        hint = _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    lengths = len(hint.victims) <= VICTIMS_MAX and len(hint.args) <= c.ARGS
    names = len(hint.policy) <= NAME_MAX and len(hint.table) <= NAME_MAX
    words = all(-(1 << 62) < number < 1 << 62 for number in (*hint.args, *hint.victims, hint.max_valid_blocks))
    return hint if lengths and names and words else None
