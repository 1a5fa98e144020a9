"""How a log file is kept: for scenarios, and with the bounds that writer and reader share."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from uxk.limits import I64_MAX, PATH_MAX_BYTES

LogFormat: TypeAlias = Literal["json", "syslog"]
"""JSON lines, or RFC 5424."""
MAX_BYTES_DEFAULT: Final = 16 << 20
MAX_BYTES_MIN: Final = 64 << 10
"""No smaller: any line fits."""
BACKUPS_DEFAULT: Final = 4
BACKUPS_MAX: Final = 999


class LogTo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file for the log of a run.  ``{seed}`` in its name is the seed; what was there is written over."""

    file: Annotated[str, Meta(min_length=1, max_length=PATH_MAX_BYTES)]
    format: LogFormat = "json"
    max_bytes: Annotated[int, Meta(ge=MAX_BYTES_MIN, le=I64_MAX, extra={"unit": "bytes"})] = MAX_BYTES_DEFAULT
    """At this size the file becomes ``FILE.1``."""
    backups: Annotated[int, Meta(ge=1, le=BACKUPS_MAX)] = BACKUPS_DEFAULT
    """Files kept beside it."""
