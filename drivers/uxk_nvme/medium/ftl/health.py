"""Raw bit errors from wear, retention and reads; what the error correction does about them; blocks that die.

The model is linear in each cause (see :mod:`uxk_nvme.medium.cells` for the numbers): errors of a freshly programmed
page, more for each program/erase cycle, for each day since programming in proportion to the cycles, and for each read
of the line, the faster the more it is worn.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from uxk_nvme.medium.cells import Cell
from uxk_nvme.medium.params import MediumParams

NEVER: Final = 1 << 62
HOUR_NS: Final = 3_600 * 10**9

SPREAD: Final = (10, 11, 12, 13, 14, 14, 15, 15, 16, 16, 17, 18, 19, 21, 24, 32)
"""Pages differ (Luo et al., SIGMETRICS 2018, layer to layer): a page's errors in sixteenths of the mean; ours."""
SPREAD_MAX: Final = max(SPREAD)

# Ours: bad blocks in 10^6 erasures, four times as many for every quarter of the rated life beyond its half.
BAD_PPM: Final = 5
BAD_LIFE_STEP_MILLI: Final = 250
BAD_LIFE_FREE_MILLI: Final = 500


class Health:
    """Errors of one device's flash.  ``ppt``: in 10^12 bits."""

    def __init__(self, cell: Cell, params: MediumParams, random: np.random.Generator) -> None:
        self.endurance = params.endurance_cycles or cell.endurance_cycles
        self.on = params.errors
        self._cell = cell
        self._scale_ppm = params.error_scale_ppm
        self._age_scale = params.age_scale
        self._ecc_ppt = params.ecc_ppt
        self._retries = params.read_retries
        self._random = random
        self._draws: list[int] = []

    def draw(self) -> int:
        """A number of 32 bits from the device's stream."""
        if not self._draws:
            self._draws += self._random.integers(0, 1 << 32, 256).tolist()
        return self._draws.pop()

    def rber_ppt(self, cycles: int, age_ns: int, reads: int) -> int:
        """Mean raw bit errors of a page."""
        hours = age_ns * self._age_scale // HOUR_NS
        aged = self._cell.rber_cycle_day_ppt * cycles * hours // 24_000
        disturbed = self._read_ppt(cycles) * reads // 1000
        mean = self._cell.rber_fresh_ppt + self._cell.rber_cycle_ppt * cycles + aged + disturbed
        return mean * self._scale_ppm // 1_000_000

    def _read_ppt(self, cycles: int) -> int:
        # Cai et al., DSN 2015: 1e-9 for each read at 2,000 cycles, about ten times that at 10,000.
        return self._cell.rber_read_ppt << min(2 * cycles // self.endurance, 16)

    def is_worn(self, cycles: int, age_ns: int, reads: int) -> bool:
        """Whether even the mean page needs a retry: time to write the data anew."""
        return self.on and self.rber_ppt(cycles, age_ns, reads) > self._ecc_ppt

    def limit(self, cycles: int, age_ns: int) -> int:
        """How many reads the line bears before the worst of its pages may need a retry; 0: none."""
        if not self.on:
            return NEVER
        allowed = self._ecc_ppt * 16 // SPREAD_MAX
        room = allowed - self.rber_ppt(cycles, age_ns, 0)
        if room < 0:
            return 0
        slope = self._read_ppt(cycles) * self._scale_ppm // 1_000_000
        return room * 1000 // slope if slope else NEVER

    def read(self, cycles: int, age_ns: int, reads: int) -> int:
        """Retries that a read of a page needs; -1: it cannot be corrected.

        Each retry shifts the read voltages and so removes a fifth of the errors (ours, after the gain per step that
        Cai et al., HPCA 2015, find for optimal read references).
        """
        errors = self.rber_ppt(cycles, age_ns, reads) * SPREAD[self.draw() & 15] // 16
        retries = 0
        while errors > self._ecc_ppt:
            if retries == self._retries:
                return -1
            errors = errors * 4 // 5
            retries += 1
        return retries

    def goes_bad(self, cycles: int, blocks: int) -> int:
        """Which of a line's blocks the erasure that has just been done kills; -1: none."""
        if not self.on:
            return -1
        life_milli = cycles * 1000 // self.endurance
        steps = min(max(life_milli - BAD_LIFE_FREE_MILLI, 0) // BAD_LIFE_STEP_MILLI, 16)
        ppm = min(BAD_PPM << 2 * steps, 1_000_000)
        chance = self.draw()
        if chance * 1_000_000 >> 32 >= min(ppm * blocks, 1_000_000):
            return -1
        return self.draw() % blocks
