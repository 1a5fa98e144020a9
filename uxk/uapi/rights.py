"""Rights of a capability, as bits (seL4: CanRead, CanWrite, CanGrant; Fuchsia: zx_rights_t)."""

from __future__ import annotations

from enum import IntFlag


class Rights(IntFlag):
    """What a holder may do with the object; manifests write the names in lower case."""

    NONE = 0
    READ = 1
    WRITE = 2
    SUBMIT = 4
    IOCTL = 8
    POLL = 16
    LOCK = 32
    GRANT = 64
    """May hand on a part of it."""
    ALL = 127


def rights_of(words: tuple[str, ...]) -> Rights:
    """Rights named by words such as ``("read", "write")``; KeyError for a word that is none."""
    rights = Rights.NONE
    for word in words:
        rights |= Rights[word.upper()]
    return rights
