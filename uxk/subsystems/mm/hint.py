"""What an agent may tell the flusher: which file to write next."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct

FILES_MAX: Final = 64
"""Files in one hint."""
FILES: Final = np.dtype([("file", "<u4"), ("dirty", "<u4")])
"""Dataset ``files``: dirty pages by file."""


class WritebackHint(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The payload of a hint for a site ``*.writeback``: files in the order in which to write them."""

    files: tuple[int, ...]


_DECODER: Final = msgspec.msgpack.Decoder(WritebackHint)
encode_hint: Final = msgspec.msgpack.Encoder().encode
"""A :class:`WritebackHint` as the payload of a hint."""


def decode_hint(payload: bytes) -> WritebackHint | None:
    """The hint, or None if the bytes are none or it is too long."""
    try:
        hint: Any = _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return hint if len(hint.files) <= FILES_MAX else None
