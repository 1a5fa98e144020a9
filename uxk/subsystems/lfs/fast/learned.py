"""The learned family: one placement and one selection whose twelve integers an agent sets.

``rate_user`` and ``rate_gc`` estimate how often a page is written, from two statistics that share column B:

* a count in 1/256 writes, +1 per user write and minus a share of one per move (FADaC's idea: a page settles where it is
  written as often as it is moved), optionally fading with time;
* the smoothed log2 of its update interval, never shorter than the time that already passed since its last write.

The estimate is a weighted mean of both in the log domain, in 1/256 octaves (doublings); classes are equal steps of it
below an offset, class 0 the hottest, with separate grids for user writes and moves.  ``learned_score`` is cost-benefit
with exponents: garbage^g * age^a / live, in logs.  Column A stays free for other placements, so one that takes over
finds its own, and B keeps its meaning under every setting: settings may be changed at any time.

Parameters in ARG (sixteenths of an octave where "octaves/16"):

====  =========  ====================================================================================
  0   HALF       half-life of the count: VALID * 2^((HALF-12)/2) user writes, 256 at least; 0 = it never fades
  1   LOSS       eighths of a write taken off the count per move
  2   USER_TOP   user writes: estimate (octaves/16) that bounds class 0 from below is USER_TOP - USER_STEP
  3   USER_STEP  octaves/16 per class
  4   GC_TOP     the same for moved blocks
  5   GC_STEP
  6   BLEND      weight of the interval in sixteenths; 16 = the count is not used
  7   PACE       weight of the newest interval in its mean, sixteenths
  8   WAIT       octaves/16 added to the time since the last write where it stands for the interval
  9   REGULAR    sixteenths of the time passed that are taken off the interval (it will end, not start anew)
 10   GAIN       exponent of garbage in sixteenths
 11   AGE        exponent of age since sealing in sixteenths
====  =========  ====================================================================================
"""

# What one reads out of an array has no type.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from typing import Final

import numpy as np

from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.arrays import Ints
from uxk.subsystems.lfs.fast.jit import inline, jit

HALF: Final = c.ARG
LOSS: Final = c.ARG + 1
USER_TOP: Final = c.ARG + 2
USER_STEP: Final = c.ARG + 3
GC_TOP: Final = c.ARG + 4
GC_STEP: Final = c.ARG + 5
BLEND: Final = c.ARG + 6
PACE: Final = c.ARG + 7
WAIT: Final = c.ARG + 8
REGULAR: Final = c.ARG + 9
GAIN: Final = c.ARG + 10
AGE: Final = c.ARG + 11

RATE_LG_VALID: Final = c.STATE + 8
"""log2 of the valid pages in 1/256, looked up every 256 user writes."""
RATE_FADE: Final = c.STATE + 9
"""Fading per user write: octaves * 2^32."""

_ROOTS: Final = (3037000500, 3611622603, 3938502376, 4112874773, 4202935003, 4248701965, 4271771996, 4283353945)
"""2^32 * 2^(-1/2), 2^(-1/4), .. 2^(-1/256)."""


def _exp_table() -> list[int]:
    table = []
    for step in range(256):
        value = 1 << 32
        for bit, root in enumerate(_ROOTS):
            if step >> (7 - bit) & 1:
                value = value * root >> 32
        table.append((value + (1 << 15)) >> 16)
    return table


# round(256 * log2 x), exactly: x^512 has 1 + floor(512 * log2 x) bits.
LG: Final[Ints] = np.array([0] + [(x**512).bit_length() >> 1 for x in range(1, 4096)], np.int64)
EXP: Final[Ints] = np.array(_exp_table(), np.int64)
"""2^16 * 2^(-i/256)."""


@inline
def lg(x: int) -> int:
    """log2 of a non-negative integer in 1/256; 0 for 0 and 1."""
    if x < 4096:
        return LG[x]
    if x < 1 << 20:
        return LG[x >> 8] + 2048
    x >>= 12
    e = 3072
    while x >= 4096:
        x >>= 4
        e += 1024
    return LG[x] + e


@inline
def fade(value: int, octaves: int) -> int:
    """value * 2^(-octaves/256)."""
    whole = octaves >> 8
    if whole > 40:
        return 0
    return (value >> whole) * EXP[octaves & 255] >> 16


@jit
def refresh(reg: Ints) -> None:
    """Looks up what changes slowly."""
    size = lg(max(reg[c.VALID], 1))
    reg[RATE_LG_VALID] = size
    reg[RATE_FADE] = 0
    if reg[HALF] > 0:
        half = min(max(size + (reg[HALF] - 12) * 128, 8 * 256), 40 * 256)  # fading * waited must not overflow
        up = (half + 255) >> 8
        reg[RATE_FADE] = (1 << 48) // max((EXP[(up << 8) - half] << up), 1)


@inline
def estimate(reg: Ints, count: int, interval: int, waited: int) -> int:
    """log2 of the page's rate in 1/256: of its count, blended with pages / interval."""
    if reg[RATE_FADE] > 0:
        count = fade(count, waited * reg[RATE_FADE] >> 24)
    rate = lg(count + 1) - 2048
    if reg[BLEND] > 0:
        size = reg[RATE_LG_VALID]
        passed = lg(waited + 1) + reg[WAIT] * 16
        if interval == 0:
            interval = max(passed, size + 256)
        elif passed > interval - 1:
            interval = passed
        else:
            interval -= 1
            short = interval - lg(waited + 1)
            if waited > 0 and reg[REGULAR] > 0 and 1 < short < 2560:
                interval += lg(4096 - ((EXP[short & 255] >> (short >> 8)) * reg[REGULAR] >> 8)) - 3072
        rate += (size - interval - rate) * reg[BLEND] // 16
    return rate


@inline
def rate_user(reg: Ints, page: Ints, p: int) -> int:
    """Class of a user write; brings the page's statistics up to date. LAST is still the old one."""
    now = reg[c.NOW]
    if now & 255 == 1 or reg[RATE_LG_VALID] == 0:
        refresh(reg)
    count = page[p, c.B] >> 16
    interval = page[p, c.B] & 65535
    if page[p, c.LAST] >= 0:
        waited = now - page[p, c.LAST]
        if reg[RATE_FADE] > 0:
            count = fade(count, waited * reg[RATE_FADE] >> 24)
        new = lg(waited) + 1
        if interval > 0:
            new = interval + (new - interval) * reg[PACE] // 16
        interval = new
    count += 256
    page[p, c.B] = count << 16 | interval
    k = (reg[USER_TOP] * 16 - estimate(reg, count, interval, 0)) // max(reg[USER_STEP] * 16, 1)
    return min(max(k, 0), reg[c.LOGS] - 1)


@inline
def rate_gc(reg: Ints, page: Ints, seg: Ints, p: int, victim: int) -> int:
    """Class of a block that is moved."""
    count = max((page[p, c.B] >> 16) - reg[LOSS] * 32, 0)
    interval = page[p, c.B] & 65535
    page[p, c.B] = count << 16 | interval
    rate = estimate(reg, count, interval, reg[c.NOW] - page[p, c.LAST])
    k = (reg[GC_TOP] * 16 - rate) // max(reg[GC_STEP] * 16, 1)
    return min(max(k, 0), reg[c.LOGS] - 1)


@inline
def learned_score(reg: Ints, seg: Ints, s: int, age: int, live: int, garbage: int) -> int:
    """16 * 256 * log2(garbage^GAIN * age^AGE / live), made positive."""
    return lg(garbage) * reg[GAIN] - lg(live) * 16 + lg(age + 1) * reg[AGE] + (1 << 24)
