"""Size and shape of a log-structured volume."""

from __future__ import annotations

from typing import Final

import msgspec

from uxk.errors import ParamError

PAGES_MAX: Final = 1 << 31
"""Block numbers fit 32 bits, as in F2FS."""
SEGMENT_BLOCKS_MAX: Final = 1 << 16
LOGS_MAX: Final = 16
GP_PPM_MIN: Final = 1_000
GP_PPM_MAX: Final = 900_000


class Geometry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many pages, how long the segments, how much garbage is tolerated.

    Raises :class:`ParamError` for a value out of range; the message names the field.
    """

    pages: int
    """Pages that may be written: the volume's size in blocks as its user sees it."""
    segment_blocks: int = 512
    """Blocks per segment; 512 of 4 KiB are F2FS's 2 MiB."""
    gp_ppm: int = 150_000
    """Share of garbage above which a victim is cleaned after each user block (frozen rule)."""
    logs: int = 6
    """Open logs."""
    segments: int = 0
    """Physical segments; 0 means as many as the frozen rule can ever occupy."""

    def __post_init__(self) -> None:
        _check("pages", self.pages, 1, PAGES_MAX)
        _check("segment_blocks", self.segment_blocks, 2, SEGMENT_BLOCKS_MAX)
        _check("gp_ppm", self.gp_ppm, GP_PPM_MIN, GP_PPM_MAX)
        _check("logs", self.logs, 1, LOGS_MAX)
        if self.segments:
            # All pages, one open segment per log, and a spare one for the first victim's survivors.
            least = -(-self.pages // self.segment_blocks) + self.logs + 1
            _check("segments", self.segments, least, PAGES_MAX)

    @property
    def segment_count(self) -> int:
        """Physical segments: ``segments``, or what the frozen rule needs with room for open logs and victims."""
        if self.segments:
            return self.segments
        blocks = self.pages * 1_000_000 // (1_000_000 - self.gp_ppm) + 1
        return blocks // self.segment_blocks + 3 * self.logs + 8

    @property
    def most_valid_blocks(self) -> int:
        """Most valid blocks of a victim: its own share of garbage must reach ``gp_ppm``, and be one block at least."""
        return self.segment_blocks - max(self.segment_blocks * self.gp_ppm // 1_000_000, 1)


def _check(field: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ParamError(f"lfs.{field} = {value!r}: expected an integer from {low:,} to {high:,}")
