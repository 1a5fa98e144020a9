"""What the flash tells of itself, and what it holds at the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from uxk_nvme.medium.base import SPARE_THRESHOLD_PERCENT, MediumSmart
from uxk_nvme.medium.ftl.collector import Collector
from uxk_nvme.medium.ftl.flash import Flash
from uxk_nvme.medium.params import MediumParams
from uxk_nvme.store import Store

if TYPE_CHECKING:
    from uxk_nvme.medium.ftl.core import FlashCore

PPM = 1_000_000


def smart(medium: FlashCore, now_ns: int) -> MediumSmart:
    """The health data of now."""
    flash, thermal, health = medium.flash, medium.thermal, medium.health
    # The die that is worst off ends the device's life.
    spares = flash.geometry.spares_per_die
    available = min(flash.spares) * 100 // spares if spares else 100
    temperature_k = thermal.mk // 1000
    used = sum(flash.erases) * 100 // (len(flash.erases) * health.endurance)
    warning = (
        (available < SPARE_THRESHOLD_PERCENT)
        | (temperature_k >= medium.params.warning_k) << 1
        | (used >= 100 and medium.media_errors > 0) << 2
        | medium.read_only << 3
    )
    return MediumSmart(
        temperature_k=temperature_k,
        percentage_used=used,
        available_spare=available,
        spare_threshold=SPARE_THRESHOLD_PERCENT,
        media_errors=medium.media_errors,
        unsafe_shutdowns=medium.unsafe_shutdowns,
        critical_warning=warning,
        host_read_bytes=medium.read_bytes,
        host_written_bytes=medium.written_bytes,
        host_reads=medium.reads,
        host_writes=medium.writes,
        nand_read_bytes=flash.page_reads * flash.geometry.page_bytes,
        nand_written_bytes=flash.page_programs * flash.geometry.page_bytes,
        busy_ns=medium.busy(now_ns),
        warning_temp_ns=thermal.warning_ns,
        critical_temp_ns=thermal.critical_ns,
        thermal_transitions_1=thermal.transitions[1],
        thermal_transitions_2=thermal.transitions[2],
        thermal_time_1_ns=thermal.time_ns[1],
        thermal_time_2_ns=thermal.time_ns[2],
        throttle=thermal.level,
    )


def figures(medium: FlashCore) -> dict[str, int]:
    """Counters.  ``write_amplification_ppm``: units programmed for each unit that left the host's buffer."""
    flash, geometry = medium.flash, medium.geometry
    host_units = flash.clock_units - flash.clock_base
    programmed = host_units + flash.moved_units + flash.pad_units
    return {
        "write_amplification_ppm": programmed * PPM // host_units if host_units else PPM,
        "nand_per_host_ppm": (
            flash.page_programs * geometry.page_bytes * PPM // medium.written_bytes if medium.written_bytes else 0
        ),
        "host_units": host_units,
        "moved_units": flash.moved_units,
        "padded_units": flash.pad_units,
        "page_programs": flash.page_programs,
        "page_reads": flash.page_reads,
        "block_erases": flash.erasures,
        "lines": geometry.lines,
        "free_lines": len(flash.free),
        "free_blocks": len(flash.free) * geometry.dies * geometry.planes,
        "retired_lines": geometry.lines - flash.usable_lines,
        "bad_blocks": flash.bad_blocks,
        "erase_count_min": min(flash.erases),
        "erase_count_max": max(flash.erases),
        "read_retries": medium.retries,
        "die_busy_ns": flash.busy_ns // geometry.dies,
        "cached_units": len(medium.undo.dirty),
        "lost_units": medium.undo.lost_units,
        "temperature_mk": medium.thermal.mk,
        "throttle": medium.thermal.level,
        "read_only": int(medium.read_only),
        **medium.collector.figures(),
        **medium.store.figures(),
    }


def precondition(
    flash: Flash, collector: Collector, params: MediumParams, store: Store, random: np.random.Generator
) -> None:
    """Maps what the store holds already, or everything: in order, or as after long random overwriting."""
    units = flash.geometry.units
    if params.precondition == "none":
        flash.fill(_allocated(store, flash.geometry.map_bytes))
    elif params.precondition == "sequential":
        flash.fill(list(range(units)))
    else:
        flash.fill(random.permutation(units).tolist())
        lines = len(flash.free) - collector.foreground_lines
        flash.fill(random.integers(0, units, max(lines, 0) * flash.geometry.line_units).tolist())


def _allocated(store: Store, map_bytes: int) -> list[int]:
    """Units of which anything is allocated."""
    found: dict[int, None] = {}
    at = 0
    while at < store.size_bytes:
        for piece in store.extents(at, store.size_bytes - at):
            if not piece.hole:
                found.update(dict.fromkeys(range(at // map_bytes, (at + piece.length_bytes - 1) // map_bytes + 1)))
            at += piece.length_bytes
    return list(found)
