"""How the flash is laid out.

A *unit* is what the map knows (4 KiB unless ``map_bytes`` says otherwise), a *page* what a die programs at a time (a
flash page of each of its planes), a *line* one block of every plane of every die: what is erased at a time, as FEMU's
lines and most controllers' superblocks.  Physical units are numbered along a line so that neighbours share a page,
neighbouring pages lie on different channels, and then on different dies.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import uxk
from uxk_nvme.medium.cells import CELLS, PRESETS, Cell
from uxk_nvme.medium.params import MediumParams

LINES_WANTED: Final = 128
"""Ours: enough for victim selection to matter, few enough to look at all of them."""
LINES_MIN: Final = 16
RESERVED_LINES: Final = 4
"""Ours, beyond the over-provisioning: one open for the host, one for collection, one to move into, one in hand."""
UNITS_MAX: Final = 1 << 26
"""Ours: 16 bytes and more of host memory each."""


class Geometry(NamedTuple):
    """Counts; see the module's text for the words."""

    cell: Cell
    map_bytes: int
    units: int
    """Logical."""
    channels: int
    dies: int
    planes: int
    pages_per_block: int
    page_units: int
    """Units of a page."""
    line_pages: int
    line_units: int
    lines: int
    lines_needed: int
    """With fewer the device becomes read-only: collection would move everything to gain nothing."""
    spares_per_die: int

    @property
    def page_bytes(self) -> int:
        """Of a page over all planes."""
        return self.page_units * self.map_bytes

    def die_of(self, page: int) -> int:
        """Die of a page of a line: channels first, then the dies of a channel."""
        return page % self.dies

    def channel_of(self, page: int) -> int:
        """Channel of a page of a line."""
        return page % self.dies % self.channels

    def page_type(self, page: int) -> int:
        """Lower, center or upper: which of the cell's times holds."""
        return page // self.dies % len(self.cell.read_ns)


def geometry_of(params: MediumParams, size_bytes: int) -> Geometry:
    """The layout for a device of that size.  ParamError names what does not fit."""
    preset = PRESETS.get(params.cell)
    if preset is None:
        raise uxk.ParamError(f"cell={params.cell!r}: expected one of {', '.join(PRESETS)}")
    cell = CELLS[preset.cell]
    units = -(-size_bytes // params.map_bytes)
    if units > UNITS_MAX:
        raise uxk.ParamError(
            f"size={size_bytes}: {units} map entries of map_bytes={params.map_bytes}, expected at most {UNITS_MAX}"
        )
    wanted_bytes = size_bytes + size_bytes * params.over_provisioning_ppm // 1_000_000
    # What the user gave stays; what the preset gave shrinks until there are lines enough.
    planes = params.planes or max(preset.planes, params.map_bytes // cell.page_bytes)
    dies_per_channel = params.dies_per_channel or preset.dies_per_channel
    channels = params.channels or preset.channels
    pages_per_block = params.pages_per_block
    bits = len(cell.read_ns)

    def too_few() -> bool:
        block_pages = pages_per_block or bits
        return wanted_bytes < LINES_MIN * channels * dies_per_channel * planes * cell.page_bytes * block_pages

    while too_few() and not params.dies_per_channel and dies_per_channel > 1:
        dies_per_channel //= 2
    while too_few() and not params.planes and planes > 1 and planes * cell.page_bytes >= 2 * params.map_bytes:
        planes //= 2
    while too_few() and not params.channels and channels > 1:
        channels //= 2
    if too_few():
        raise uxk.ParamError(
            f"size={size_bytes}: too small for {channels} channels, {dies_per_channel} dies each, {planes} planes and "
            f"pages_per_block={pages_per_block}; expected at least {LINES_MIN} lines of "
            f"{channels * dies_per_channel * planes * cell.page_bytes * (pages_per_block or bits)} bytes"
        )
    page_units, rest = divmod(planes * cell.page_bytes, params.map_bytes)
    if not page_units or rest:
        raise uxk.ParamError(
            f"map_bytes={params.map_bytes}: expected a divisor of the {planes * cell.page_bytes} bytes of a page"
        )
    dies = channels * dies_per_channel
    if not pages_per_block:
        fitting = wanted_bytes // (LINES_WANTED * dies * page_units * params.map_bytes)
        pages_per_block = min(max(fitting // bits, 1) * bits, preset.block_pages)
        cell = cell._replace(erase_ns=cell.erase_ns * pages_per_block // preset.block_pages)
    line_pages = dies * pages_per_block
    line_units = line_pages * page_units
    user_lines = -(-units // line_units)
    lines = max(-(-wanted_bytes // (line_units * params.map_bytes)), user_lines + 1) + RESERVED_LINES
    spares = max(lines * params.spare_ppm // 1_000_000, 1) if params.spare_ppm else 0
    return Geometry(
        cell, params.map_bytes, units, channels, dies, planes, pages_per_block, page_units, line_pages, line_units,
        lines, user_lines + RESERVED_LINES, spares,
    )  # fmt: skip
