"""The arrays of one volume, and its policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from uxk.errors import ParamError
from uxk.limits import PPM
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.arrays import Ints, Words
from uxk.subsystems.lfs.fast.rare import rare_reset, rebuild
from uxk.subsystems.lfs.sample import buckets, region_shift

__all__ = [
    "Ints",
    "Volume",
    "Words",
    "check_pages",
    "make_volume",
    "registers",
    "segments_needed",
    "set_policy",
    "set_threshold",
]

KEEP_B = frozenset({
    c.NOSEP, c.SEPGC, c.DAC, c.SEPBIT, c.FADAC, c.MIDA, c.RATE, c.STREAM, c.FK, c.FKG,
})  # fmt: skip
"""Placements that leave column B to RATE: its statistics outlive them."""
SEED = 1
"""Of policies' random numbers; see :mod:`uxk.subsystems.lfs.policies.random`."""


class Volume(NamedTuple):
    """One volume, or a miniature of one; columns and registers are named in :mod:`uxk.subsystems.lfs.codes`."""

    reg: Ints
    """[REGISTERS], or [3 * REGISTERS] with two pools."""
    page: Ints
    """[pages, 4], or [2 * pages, 4]: the second pool's statistics are ``pages`` rows below the first's."""
    seg: Ints
    """[segments, COLUMNS]"""
    owner: Words
    """[segments * segment_blocks] page in each physical block, -1 if it holds no valid one."""
    aux: Ints
    """What a policy needs beside: a class for each page (255: the basis decides), or each write's next one."""


def segments_needed(pages: int, segment_blocks: int, gp_ppm: int, logs: int) -> int:
    """Segments that the frozen rule can ever occupy, with room for open logs and victims under way."""
    blocks = pages * 1_000_000 // (1_000_000 - gp_ppm) + 1
    return blocks // segment_blocks + 3 * logs + 8


def make_volume(
    pages: int, segment_blocks: int, gp_ppm: int, logs: int, aux: Ints | None = None, segments: int = 0, pools: int = 1
) -> Volume:
    """An empty volume under ``nosep/greedy``, every page in the first pool; see :func:`set_policy`."""
    if pools not in (1, 2):
        raise ParamError(f"pools = {pools}: expected 1 or 2")
    if not 1 <= logs <= 16:
        raise ParamError(f"logs = {logs}: expected 1 to 16")
    count = segments or segments_needed(pages, segment_blocks, gp_ppm, logs * pools)
    reg = np.zeros(c.REGISTERS * (1 if pools == 1 else 3), np.int64)
    page = np.zeros((pages * pools, 4), np.int64)
    page[:, (c.BLOCK, c.LAST)] = -1
    if pools == 2:
        page[pages:, c.BLOCK] = buckets(pages, region_shift(pages))
    seg = np.zeros((count, c.COLUMNS), np.int64)
    seg[:, (c.CLASS, c.SEALED)] = -1
    seg[:, c.STACK] = np.arange(count - 1, -1, -1)
    reg[c.CLEAN] = reg[c.LOW] = count
    owner = np.full(count * segment_blocks, -1, np.int32)
    for part in reg.reshape(-1, c.REGISTERS):
        part[c.SEGMENTS], part[c.SIZE], part[c.GP_PPM], part[c.LOGS] = count, segment_blocks, gp_ppm, logs
        part[c.PAGES] = pages
        part[c.MOST] = segment_blocks - max(segment_blocks * gp_ppm // 1_000_000, 1)
        part[c.HEAD : c.HEAD + 16] = -1
        part[c.RANDOM] = 1 + SEED
    reg[c.POOLS] = pools
    if pools == 2:
        reg[2 * c.REGISTERS + c.INDEX] = 1
    return Volume(reg, page, seg, owner, np.zeros(1, np.int64) if aux is None else aux)


def check_pages(ops: Words, pages: int) -> None:
    """Raises :class:`ParamError` for a write outside a volume: the batch kernel looks at no bounds."""
    if len(ops) and not 0 <= ops.min() <= ops.max() < pages:
        bad = ops.min() if ops.min() < 0 else ops.max()
        raise ParamError(f"page {bad}: the volume has pages 0 to {pages - 1}")


def registers(volume: Volume, pool: int = 0) -> Ints:
    """A pool's own registers; with one pool they are the volume's."""
    if not 0 <= pool < volume.reg[c.POOLS]:
        raise ParamError(f"pool {pool}: the volume has {volume.reg[c.POOLS]}")
    first = 0 if volume.reg[c.POOLS] == 1 else (pool + 1) * c.REGISTERS
    return volume.reg[first : first + c.REGISTERS]


def set_policy(volume: Volume, placement: int, selection: int, args: Sequence[int] = (), pool: int = 0) -> None:
    """Puts another policy in force in a pool from the next block on.

    Statistics of pages stay as long as the same placement learns.  A table falls back to the placement whose code
    is its first argument, SepBIT if that is 0.
    """
    reg = registers(volume, pool)
    basis = placement
    if placement == c.TABLE:
        basis = args[0] if args and args[0] else c.SEPBIT
        if len(volume.aux) != reg[c.PAGES]:
            raise ParamError(f"aux: {len(volume.aux)} classes, expected one for each of {reg[c.PAGES]} pages")
    if len(args) > c.ARGS:
        raise ParamError(f"{len(args)} arguments of a policy: expected at most {c.ARGS}")
    changed = basis != reg[c.BASIS] or selection != reg[c.SELECTION]
    reg[c.PLACEMENT], reg[c.SELECTION] = placement, selection
    reg[c.ARG : c.ARG + c.ARGS] = 0
    reg[c.ARG : c.ARG + len(args)] = args
    rows = slice(int(reg[c.PAGES]) * pool, int(reg[c.PAGES]) * (pool + 1))
    if basis != reg[c.BASIS]:
        before, reg[c.BASIS] = int(reg[c.BASIS]), basis
        volume.page[rows, c.A] = 0
        if {basis, before} - KEEP_B:  # what another placement kept there means nothing to this one
            volume.page[rows, c.B] = 0
        rare_reset(reg)
    if changed:
        rebuild(reg, volume.page, volume.seg, volume.owner, rows.start)


def set_threshold(volume: Volume, gp_ppm: int) -> None:
    """Puts another garbage share in force from the next write on.

    :class:`ParamError` if there are too few segments for it.
    """
    reg = volume.reg
    blocks = int(reg[c.PAGES]) * PPM // (PPM - gp_ppm)
    if blocks // int(reg[c.SIZE]) + int(reg[c.LOGS]) >= reg[c.SEGMENTS]:
        raise ParamError(f"gp_ppm = {gp_ppm}: {reg[c.SEGMENTS]} segments are too few")
    for part in reg.reshape(-1, c.REGISTERS):
        part[c.GP_PPM] = gp_ppm
        part[c.MOST] = part[c.SIZE] - max(int(part[c.SIZE]) * gp_ppm // PPM, 1)
