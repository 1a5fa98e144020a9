"""How the timed engine is run."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from uxk.errors import ParamError
from uxk.subsystems.lfs.geometry import Geometry


class Choice(NamedTuple):
    """A recommended victim (R103); checked before it is followed."""

    segment: int
    max_blocks: int = 0
    """Most valid blocks that one operation moves; 0: the volume's own bound."""


class TimedConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When it is cleaned, in what portions, and what the page cache does.

    Raises :class:`ParamError` for a value out of range.
    """

    trigger: Literal["watermark", "frozen"] = "watermark"
    """``frozen``: after each user block, while there is too much garbage, one victim at a time, and no user block
    meanwhile (the counting engine's rule).  ``watermark``: by the number of clean segments."""
    low_segments: int = 0
    """Up to so many clean segments, user writes wait for the cleaner; 0: one per log and one more."""
    high_segments: int = 0
    """Below so many, the cleaner works in the background; 0: twice the low mark and a 32nd of the volume."""
    idle_ns: int = 2_000_000
    """After so long without user writes the cleaner works as long as there is too much garbage; 0: never."""
    max_blocks: int = 32
    """Most valid blocks that one operation of the cleaner moves, before user writes get their turn."""
    cache_pages: int = 0
    """Dirty pages that the page cache holds; 0: every write goes to the device at once."""
    cache_ns: int = 2_000
    """Time of a write into the page cache."""
    writeback_ns: int = 30_000_000_000
    """Age at which a dirty page is written back (Linux: ``vm.dirty_expire_centisecs``, 30 s); sooner if the cache
    is three quarters full."""
    checkpoint_segments: int = 4
    """Cleaned segments at which a checkpoint is written, so that they may be used again; 0: none is modelled."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__[1:]:
            if not 0 <= getattr(self, name) <= 1 << 50:
                raise ParamError(f"{name} = {getattr(self, name)}: expected an integer from 0 to {1 << 50}")
        if self.trigger not in ("watermark", "frozen"):
            raise ParamError(f"trigger = {self.trigger!r}: expected watermark or frozen")
        if not self.max_blocks:
            raise ParamError("max_blocks = 0: expected at least 1")

    def marks(self, geometry: Geometry) -> tuple[int, int]:
        """Low and high mark in clean segments."""
        low = self.low_segments or geometry.logs + 1
        return low, max(self.high_segments or 2 * low + geometry.segment_count // 32, low + 1)
