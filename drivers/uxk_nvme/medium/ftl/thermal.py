"""Temperature as one resistance and one capacity between the flash and the air, and throttling with hysteresis.

Ours throughout, except the two thresholds, which are the customary WCTEMP and CCTEMP of client drives (70 and 80
degrees Celsius): the flash at full load takes 4 W however many dies are modelled, the rest of the device 1.2 W, the
link 0.25 W for each GB/s; 8 K/W is a bare M.2 stick in still air, a heat sink halves that.
"""

from __future__ import annotations

from typing import Final

from uxk_nvme.medium.params import MediumParams

IDLE_UW: Final = 1_200_000
FLASH_UW: Final = 4_000_000
LINK_UW_PER_MB_S: Final = 250
HYSTERESIS_MK: Final = 3_000
SLOW_PPM: Final = (1_000_000, 1_500_000, 5_000_000)
"""Times at throttle level 0, 1, 2."""
NEVER_MK: Final = 1 << 62


class Thermal:
    """State of heat; :meth:`advance` is called now and then with what has happened since."""

    def __init__(self, params: MediumParams) -> None:
        self._ambient_mk = params.ambient_k * 1000
        self._mk_per_w_ppm = params.heat_k_per_w_ppm
        self._tau_ns = params.heat_ns
        self._light_mk, self._heavy_mk = params.warning_k * 1000, params.critical_k * 1000
        self._host_mk = (NEVER_MK, NEVER_MK)
        self.mk = self._ambient_mk + self._rise_mk(IDLE_UW)
        """Temperature in thousandths of a kelvin."""
        self.level = 0
        self.forced: int | None = None
        """A level that faults or tests hold, whatever the temperature."""
        self.transitions = [0, 0, 0]
        self.time_ns = [0, 0, 0]
        self.warning_ns = 0
        self.critical_ns = 0

    def _rise_mk(self, power_uw: int) -> int:
        return power_uw * self._mk_per_w_ppm // 10**9

    def advance(self, dt_ns: int, busy_ns: int, dies: int, moved_bytes: int) -> bool:
        """``dt_ns`` have passed in which dies were busy for ``busy_ns`` together; whether the level has changed."""
        if dt_ns <= 0:
            return False
        flash_uw = FLASH_UW * min(busy_ns, dt_ns * dies) // (dt_ns * dies)
        link_uw = LINK_UW_PER_MB_S * moved_bytes * 1000 // dt_ns
        goal_mk = self._ambient_mk + self._rise_mk(IDLE_UW + flash_uw + link_uw)
        self.time_ns[self.level] += dt_ns
        if self.mk >= self._heavy_mk:
            self.critical_ns += dt_ns
        elif self.mk >= self._light_mk:
            self.warning_ns += dt_ns
        step_ns = max(self._tau_ns // 16, 1)
        if dt_ns > 12 * self._tau_ns:
            self.mk = goal_mk
        else:
            while dt_ns > 0:
                piece_ns = min(step_ns, dt_ns)
                self.mk += (goal_mk - self.mk) * piece_ns // self._tau_ns
                dt_ns -= piece_ns
        return self._decide()

    def _decide(self) -> bool:
        light_mk, heavy_mk = self._host_mk
        up = (0, min(self._light_mk, light_mk), min(self._heavy_mk, heavy_mk))
        level = self.level
        while level < 2 and self.mk >= up[level + 1]:
            level += 1
        while level and self.mk < up[level] - HYSTERESIS_MK:
            level -= 1
        if self.forced is not None:
            level = self.forced
        if level == self.level:
            return False
        if level > self.level:
            self.transitions[level] += 1
        self.level = level
        return True

    def manage(self, light_k: int, heavy_k: int) -> bool:
        """The host's thresholds (HCTM, base 2.0, 8.15.3.1), 0: none; the device's own hold as well.

        Whether the level has changed.
        """
        self._host_mk = light_k * 1000 or NEVER_MK, heavy_k * 1000 or NEVER_MK
        return self._decide()

    def force(self, level: int | None) -> bool:
        """Holds a throttle level (0 to 2); None: the temperature decides again.  Whether the level has changed."""
        self.forced = level
        return self._decide()
