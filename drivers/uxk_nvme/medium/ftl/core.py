"""What the medium ``ftl`` is made of, and what happens to it besides commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

import uxk
from uxk_nvme.medium.base import POWER_STATES, Core, MediumSmart
from uxk_nvme.medium.ftl import report
from uxk_nvme.medium.ftl.buffer import Buffer
from uxk_nvme.medium.ftl.collector import Collector
from uxk_nvme.medium.ftl.flash import Flash
from uxk_nvme.medium.ftl.geometry import geometry_of
from uxk_nvme.medium.ftl.health import HOUR_NS, Health
from uxk_nvme.medium.ftl.thermal import SLOW_PPM, Thermal
from uxk_nvme.medium.ftl.timing import Timing
from uxk_nvme.medium.ftl.victims import Candidates, Selector
from uxk_nvme.medium.params import MediumParams
from uxk_nvme.medium.undo import Undo
from uxk_nvme.store import Store

PROTECTED_PAGES: Final = 2
"""Ours: of each die, in the buffer of a device without volatile cache: one being programmed, one being filled."""
IDLE_NS: Final = 2_000_000
"""Ours: the host counts as quiet after this long."""
REVIEW_NS: Final = 100_000_000
"""Ours: heat is looked at this often."""
PPM: Final = 1_000_000


class FlashCore(Core):
    """Everything but the commands: parts, health, heat, power, faults, the choice of victims, background work."""

    has_heat = True

    def __init__(self, params: MediumParams, store: Store, random: np.random.Generator) -> None:
        super().__init__(params, store)
        self.params = params
        self.geometry = geometry = geometry_of(params, store.size_bytes)
        self.timing = Timing(geometry, params)
        self.health = Health(geometry.cell, params, random)
        self.flash = Flash(geometry, self.timing, self.health, params.initial_cycles)
        self.collector = Collector(self.flash, params, self._lose)
        self.thermal = Thermal(params)
        self.volatile = params.write_cache > 0
        self.write_through = False
        self.retries = 0
        self.undo = Undo(store, geometry.map_bytes, params.tear_ppm, random)
        protected_units = PROTECTED_PAGES * geometry.dies * geometry.page_units
        capacity_units = params.write_cache // geometry.map_bytes if self.volatile else protected_units
        if not capacity_units:
            raise uxk.ParamError(
                f"write_cache={params.write_cache}: expected 0, or at least map_bytes={geometry.map_bytes}"
            )
        self.buffer = Buffer(self.undo, self.flash, self.collector, capacity_units, volatile=self.volatile)
        self._dirty, self._flying = self.buffer.dirty, self.buffer.flying
        self._shift = geometry.map_bytes.bit_length() - 1
        self._page_units = geometry.page_units
        self._last_ns = 0
        self._review_ns = self._look_ns = REVIEW_NS
        """When the next command is held up by :meth:`begin`, and when heat is looked at."""
        self._reviewed = (0, 0, 0)
        self._retention_ns = self._retention_period_ns = max(HOUR_NS // max(params.age_scale, 1), REVIEW_NS)
        report.precondition(self.flash, self.collector, params, store, random)

    @property
    def read_only(self) -> bool:
        """Whether the flash is worn out: what is written is refused."""
        return self.buffer.worn_out

    # --- errors, heat, power ---

    def _refresh(self, lines: list[int], now_ns: int) -> None:
        self.collector.refresh(lines)
        if self.next_event_ns is None:
            self.next_event_ns = now_ns + IDLE_NS

    def _lose(self, unit: int) -> None:
        """A unit's data are gone; reads fail until it is written.  What the buffer still has is not lost."""
        if unit in self._dirty or self.flash.l2p[unit] // self._page_units in self._flying:
            return
        self.media_errors += 1
        start = unit << self._shift
        self.store.mark_bad(start, min(self.geometry.map_bytes, self.store.size_bytes - start))

    def fold(self) -> None:
        """Enters into the books what a faster path has counted on its own."""

    def begin(self, now_ns: int) -> int:
        """When a command that comes now may begin: an idle device wakes; heat and age are looked at if it is time."""
        if now_ns >= self._look_ns:
            self.review(now_ns)
        asleep = not POWER_STATES[self.power_state].operational
        ready_ns = self._wake(now_ns)
        if asleep:
            self._set_speed()
        self._review_ns = self._look_ns if ready_ns <= now_ns else 0
        return ready_ns

    def review(self, now_ns: int) -> None:
        """Heat and ageing."""
        self.fold()
        flash, thermal = self.flash, self.thermal
        before_ns, busy_ns, moved_bytes = self._reviewed
        moved = self.read_bytes + self.written_bytes
        dt_ns = now_ns - before_ns
        if thermal.advance(dt_ns, flash.busy_ns - busy_ns, self.geometry.dies, moved - moved_bytes):
            self._set_speed()
        self._reviewed = (now_ns, flash.busy_ns, moved)
        if self.health.on and now_ns >= self._retention_ns:
            self._retention_ns = now_ns + self._retention_period_ns
            worn = flash.review(now_ns)
            if worn and self.params.refresh:
                self._refresh(worn, now_ns)
        self._look_ns = now_ns + REVIEW_NS
        if self._review_ns:
            self._review_ns = self._look_ns

    def _set_speed(self) -> None:
        self.timing.slow_all(SLOW_PPM[self.thermal.level] * POWER_STATES[self.power_state].slow_ppm // 1_000_000)

    def set_power_state(self, ps: int, now_ns: int) -> None:
        """Slower states stretch the flash's times; leaving an idle state costs its exit latency once."""
        super().set_power_state(ps, now_ns)
        self._set_speed()
        self._review_ns = 0  # the next command may have to wait

    def set_thermal(self, light_k: int, heavy_k: int, now_ns: int) -> None:
        """Host controlled thermal management: throttling begins at these temperatures if they are the lower ones."""
        self.review(now_ns)
        if self.thermal.manage(light_k, heavy_k):
            self._set_speed()

    def slow_die(self, die: int, ppm: int) -> None:
        """Fail-slow: the die takes ``ppm`` / 10^6 times as long; 10^6 heals it."""
        self.timing.slow_die(die, ppm)

    def slow_channel(self, channel: int, ppm: int) -> None:
        """Likewise for a channel's transfers."""
        self.timing.slow_channel(channel, ppm)

    def force_throttle(self, level: int | None) -> None:
        """Holds a throttle level (0 to 2) whatever the temperature; None lets go."""
        if self.thermal.force(level):
            self._set_speed()

    def control(self, text: str) -> None:
        """``slow_die DIE PPM``, ``slow_channel CHANNEL PPM``, ``throttle LEVEL``, ``throttle off``: at run time."""
        match text.split():
            case ["slow_die", die, ppm] if die.isdecimal() and _is_factor(ppm):
                self.slow_die(int(die), int(ppm))
            case ["slow_channel", channel, ppm] if channel.isdecimal() and _is_factor(ppm):
                self.slow_channel(int(channel), int(ppm))
            case ["throttle", "0" | "1" | "2" as level]:
                self.force_throttle(int(level))
            case ["throttle", "off"]:
                self.force_throttle(None)
            case _:
                super().control(text)

    def controls(self) -> list[str]:
        """What is not as it was made, as texts for :meth:`control`."""
        found = self.timing.slowed()
        return found if self.thermal.forced is None else [*found, f"throttle {self.thermal.forced}"]

    # --- the choice of victims, from outside ---

    def victim_candidates(self) -> Candidates:
        """What may be collected now: what an agent decides upon."""
        return self.collector.candidates()

    def offer_victims(
        self, lines: Sequence[int], generations: Sequence[int] | None = None, *, max_valid: int = 0, expires_ns: int
    ) -> int:
        """Lines to collect next, in that order; how many were taken into account.  Never waited for.

        Each is checked when a victim is needed: it must be closed, of that generation (None: of any), hold garbage
        and at most ``max_valid`` valid units (0: no bound).  Otherwise it is refused and counted, and the next hint
        or the default decides.
        """
        known = self.geometry.lines
        return self.collector.hints.offer(lines, generations, max_valid, expires_ns, known)

    def set_selector(self, selector: Selector) -> None:
        """A rule of one's own in place of ``gc_victim``: an index into the candidates' columns."""
        self.collector.selector = selector

    # --- in the background ---

    def run_background(self, now_ns: int) -> None:
        """Writes back and collects while the host is quiet."""
        quiet_ns = self._last_ns + IDLE_NS
        if now_ns < quiet_ns:
            self.next_event_ns = quiet_ns
            return
        if now_ns >= self._look_ns:
            self.review(now_ns)  # an idle device does not leave its power state for this
        self.buffer.destage(now_ns, 0, pad=self.volatile)
        collector = self.collector
        if not self.buffer.worn_out and collector.wants_idle_work() and collector.idle_step(now_ns):
            self.next_event_ns = max(now_ns + 1, *self.flash.die_free_ns)
        else:
            self.next_event_ns = None

    # --- telemetry ---

    def _truth(self, now_ns: int) -> MediumSmart:
        if now_ns >= self._look_ns:
            self.review(now_ns)
        self.fold()
        return report.smart(self, now_ns)

    def figures(self) -> dict[str, int]:
        """Counters for sysfs."""
        self.fold()
        return report.figures(self)


def _is_factor(text: str) -> bool:
    return text.isdecimal() and PPM <= int(text[:12]) <= 1000 * PPM and len(text) <= 12
