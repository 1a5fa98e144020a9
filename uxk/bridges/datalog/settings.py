"""How a dataset log is kept: where, how much, for how long, and how sure."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from uxk.errors import ConfigError
from uxk.limits import I64_MAX, PATH_MAX_BYTES

SEGMENT_MIN_BYTES: Final = 64 << 10
SEGMENT_MOST_BYTES: Final = 128 << 20
"""Half of what a reader takes, so that descriptions and an end always fit."""
PATTERNS_MAX: Final = 256

Bytes = Annotated[int, Meta(ge=1, le=I64_MAX, extra={"unit": "bytes"})]


class DataLogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[datalog]`` of a scenario."""

    dir: Annotated[str, Meta(max_length=PATH_MAX_BYTES)] = ""
    """The log's directory, from the current one; made if it is missing."""
    datasets: tuple[str, ...] = ("*",)
    """Which: patterns of ``MODEL/DATASET``, as a shell has them."""
    segment_bytes: Annotated[int, Meta(ge=SEGMENT_MIN_BYTES, le=SEGMENT_MOST_BYTES, extra={"unit": "bytes"})] = 32 << 20
    """A segment that would grow beyond this ends, and the next one begins."""
    max_bytes: Bytes = 1 << 30
    """Of all segments: the oldest are deleted, so that there is never more."""
    max_age_ns: Annotated[int, Meta(ge=0, le=I64_MAX, extra={"unit": "ns"})] = 0
    """Host time after its last write when a segment is deleted; 0: never.  One being written ends after a quarter."""
    sync: Literal["none", "segment", "second", "batch"] = "second"
    """When a segment is forced to the disk: never, at its end, every second, or after every write."""
    queue_bytes: Annotated[int, Meta(ge=4096, le=I64_MAX, extra={"unit": "bytes"})] = 64 << 20
    """Publications that wait to be written; what finds no room is dropped and counted."""

    def validate(self) -> DataLogSettings:
        """Itself, or :class:`ConfigError`."""
        if self.max_bytes < 2 * self.segment_bytes:
            raise ConfigError(
                f"max_bytes={self.max_bytes}: expected at least two segments of segment_bytes={self.segment_bytes}"
            )
        if len(self.datasets) > PATTERNS_MAX:
            raise ConfigError(f"datasets: {len(self.datasets)} patterns, at most {PATTERNS_MAX}")
        return self
