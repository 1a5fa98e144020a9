"""The medium ``ftl``: a buffer for writes in front of page-mapped flash.

Writes are acknowledged from the buffer and programmed a page of a die at a time, the oldest units first, when it is
half full or the host is quiet.  With ``write_cache`` the buffer is volatile memory of that size: a flush or FUA must
program what it holds, padding the last page, and a loss of power takes back what was not programmed.  Without, the
buffer is protected by capacitors, as in drives that report no volatile cache: two pages for every die, always durable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

import uxk
from uxk_nvme.medium.base import POWER_STATES, Core, Data, MediumSmart
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
from uxk_nvme.store import GRANULE_BYTES, RamStore, Store
from uxk_nvme.store.status import UNRECOVERED_READ, WRITE_FAULT, WRITE_PROTECTED

PROTECTED_PAGES: Final = 2
"""Ours: of each die, in the buffer of a device without volatile cache: one being programmed, one being filled."""
IDLE_NS: Final = 2_000_000
"""Ours: the host counts as quiet after this long."""
REVIEW_NS: Final = 100_000_000
"""Ours: heat is looked at this often."""
SUSPEND_NS: Final = 20_000
"""Ours: the class of tESPD/tPSPD in data sheets; MQSim has 100 us for programs and 700 us for erases."""
WORN_RETRIES: Final = 2
"""Ours: a host's read with so many retries has its line refreshed."""

PPM: Final = 1_000_000
_GRANULE_SHIFT: Final = GRANULE_BYTES.bit_length() - 1


class FtlMedium(Core):
    """See the module's text; :class:`uxk_nvme.medium.Medium` for the methods."""

    def __init__(self, params: MediumParams, store: Store, random: np.random.Generator) -> None:
        super().__init__(store)
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
        self._mask = geometry.map_bytes - 1
        self._page_units, self._line_pages = geometry.page_units, geometry.line_pages
        self._controller_ns = params.controller_ns
        self._suspend_ns = SUSPEND_NS if params.read_suspend else -1
        self._ps_per_kib = 1024 * 10**12 // params.bandwidth if params.bandwidth else 0
        self._pipe_ns = 0
        self._last_ns = 0
        self._wake_ns = 0
        self._review_ns = REVIEW_NS
        self._reviewed = (0, 0, 0)
        self._retention_ns = self._retention_period_ns = max(HOUR_NS // max(params.age_scale, 1), REVIEW_NS)
        plain = isinstance(store, RamStore) and store.sums is None
        self._view = store.view if plain else None
        self._map = store.map if isinstance(store, RamStore) else bytearray()
        self._marked = store.bad.starts
        report.precondition(self.flash, self.collector, params, store, random)

    @property
    def read_only(self) -> bool:
        """Whether the flash is worn out: what is written is refused."""
        return self.buffer.worn_out

    # --- data ---

    def read(self, offset: int, into: memoryview, now_ns: int) -> int:
        """Fills ``into``; complete when dies and channels have given the data."""
        if now_ns >= self._review_ns:
            now_ns = self.review(now_ns)
        length = len(into)
        view = self._view
        if view is None or self._marked:
            status = self.store.read(offset, into)
            if status:
                return self._failed_read(status)
        else:
            into[:] = view[offset : offset + length]
        done_ns = self._time_read(offset >> self._shift, (offset + length - 1) >> self._shift, now_ns)
        if done_ns < 0:
            into[:] = bytes(length)
            return done_ns
        done_ns += self._controller_ns
        self.reads += 1
        self.read_bytes += length
        self._last_ns = now_ns
        if self._ps_per_kib:
            pipe_ns = self._pipe_ns
            if pipe_ns < now_ns:
                pipe_ns = now_ns
            self._pipe_ns = pipe_ns = pipe_ns + length * self._ps_per_kib // 1_024_000
            if pipe_ns > done_ns:
                return pipe_ns
        return done_ns

    def _time_read(self, first: int, last: int, now_ns: int) -> int:
        """When the flash has given the units; minus a status if it cannot."""
        flash, dirty, flying = self.flash, self._dirty, self._flying
        l2p, page_units = flash.l2p, self._page_units
        done_ns = now_ns
        unit = first
        while unit <= last:
            at = l2p[unit]
            unit += 1
            page, count = at // page_units, 1
            if at < 0 or unit - 1 in dirty:
                continue
            flight = flying.get(page)
            if flight is not None and flight.done_ns > now_ns:
                continue
            # Neighbours in a page come with one read of it.
            while unit <= last and l2p[unit] // page_units == page and unit not in dirty:
                count += 1
                unit += 1
            line, page = divmod(page, self._line_pages)
            flash.reads[line] += 1
            read_ns = self._read_page(page, line, range(unit - count, unit), now_ns)
            if read_ns < 0:
                return read_ns
            if read_ns > done_ns:
                done_ns = read_ns
        return done_ns

    def write(self, offset: int, data: Data, now_ns: int, fua: bool = False) -> int:
        """Stores ``data``; complete when the buffer has taken it, or, with ``fua``, when it is durable."""
        if now_ns >= self._review_ns:
            now_ns = self.review(now_ns)
        if self.buffer.worn_out:
            return -WRITE_PROTECTED
        length = len(data)
        first, last = offset >> self._shift, (offset + length - 1) >> self._shift
        dirty = self._dirty
        if (offset | length) & self._mask:
            self._read_rest(offset, length, now_ns)
        if self.volatile:
            for unit in range(first, last + 1):
                if unit not in dirty:
                    dirty[unit] = self.undo.save(unit)
        elif first == last:
            dirty[first] = None
        else:
            dirty.update(dict.fromkeys(range(first, last + 1)))
        view = self._view
        if view is None or self._marked:
            status = self.store.write(offset, data)
            if status:
                return -status
        else:
            end = offset + length
            view[offset:end] = data
            granule = offset >> _GRANULE_SHIFT
            count = ((end - 1) >> _GRANULE_SHIFT) - granule + 1
            if count == 1:
                self._map[granule] = 1
            else:
                self._map[granule : granule + count] = b"\1" * count
        self.writes += 1
        self.written_bytes += length
        self._last_ns = now_ns
        if self.next_event_ns is None:
            self.next_event_ns = now_ns + IDLE_NS
        done_ns = now_ns + self._controller_ns
        if self._ps_per_kib:
            pipe_ns = self._pipe_ns
            if pipe_ns < now_ns:
                pipe_ns = now_ns
            self._pipe_ns = pipe_ns = pipe_ns + length * self._ps_per_kib // 1_024_000
            if pipe_ns > done_ns:
                done_ns = pipe_ns
        buffer = self.buffer
        if self.volatile and (fua or self.write_through):
            done_ns = max(done_ns, buffer.commit(first, last, now_ns))
        if fua and self.store.sync():
            return -WRITE_FAULT
        if len(dirty) > buffer.low_units:
            buffer.destage(now_ns, buffer.low_units)
        if len(dirty) + buffer.flying_units > buffer.capacity_units:
            done_ns = max(done_ns, buffer.admit(now_ns))
        return done_ns

    def _read_rest(self, offset: int, length: int, now_ns: int) -> None:
        """A write of part of a unit needs the rest of it; the write itself need not wait for that."""
        end = offset + length
        edges = {offset >> self._shift} if offset & self._mask else set()
        if end & self._mask and end < self.store.size_bytes:
            edges.add(end >> self._shift)
        for unit in edges:
            self._time_read(unit, unit, now_ns)

    # --- durability ---

    def flush(self, now_ns: int) -> int:
        """Complete when everything in a volatile buffer is programmed."""
        if now_ns >= self._review_ns:
            now_ns = self.review(now_ns)
        status = self.store.sync()
        if status:
            return -status
        done_ns = now_ns
        if self.volatile:
            self.buffer.destage(now_ns, 0, pad=True)
            done_ns = max((flight.done_ns for flight in self.undo.flights), default=now_ns)
        return max(done_ns, now_ns) + self._controller_ns

    def set_write_cache(self, on: bool) -> None:
        """Off: every write is programmed before it is complete.  Says nothing to a protected buffer."""
        self.write_through = not on
        if not on and self.volatile:
            self.buffer.destage(self._last_ns, 0, pad=True)

    def power_loss(self, now_ns: int) -> None:
        """What a volatile buffer holds is lost; what was being programmed may be torn.  Dies forget what they did."""
        self.unsafe_shutdowns += 1
        if self.volatile:
            self.undo.power_loss(now_ns)
        self.buffer.lose()
        for times in (self.flash.die_free_ns, self.flash.die_read_ns, self.flash.channel_free_ns):
            times[:] = [min(free_ns, now_ns) for free_ns in times]
        self._pipe_ns = min(self._pipe_ns, now_ns)

    # --- commands without data ---

    def write_zeroes(self, offset: int, length: int, now_ns: int, deallocate: bool) -> int:
        """The range reads as zeros, at once durable.  Whole units leave the map, as most controllers do it."""
        if now_ns >= self._review_ns:
            now_ns = self.review(now_ns)
        if self.buffer.worn_out:
            return -WRITE_PROTECTED
        status = self.store.zero(offset, length, deallocate=deallocate)
        if status:
            return -status
        self.undo.settle(offset, length)
        end = offset + length
        first = -(-offset // self.geometry.map_bytes)
        last = self.geometry.units if end == self.store.size_bytes else end >> self._shift
        if first < last:
            self.flash.unmap(first, last)
        self._last_ns = now_ns
        return now_ns + self._controller_ns

    def deallocate(self, offset: int, length: int, now_ns: int) -> int:
        """The range reads as zeros and its flash is garbage."""
        return self.write_zeroes(offset, length, now_ns, True)

    def format(self, offset: int, length: int, now_ns: int) -> int:
        """Erases the range."""
        return self.write_zeroes(offset, length, now_ns, True)

    def write_uncorrectable(self, offset: int, length: int, now_ns: int) -> int:
        """Reads of the range fail until it is written."""
        status = self.store.mark_bad(offset, length)
        if status:
            return -status
        self.undo.settle(offset, length)
        return now_ns + self._controller_ns

    def verify(self, offset: int, length: int, now_ns: int) -> int:
        """Reads the flash, and checks the store, without giving data."""
        if now_ns >= self._review_ns:
            now_ns = self.review(now_ns)
        status = self.store.verify(offset, length)
        if status:
            return self._failed_read(status)
        done_ns = self._time_read(offset >> self._shift, (offset + length - 1) >> self._shift, now_ns)
        return done_ns if done_ns < 0 else done_ns + self._controller_ns

    # --- errors, heat, power ---

    def _read_page(self, page: int, line: int, units: range, now_ns: int) -> int:
        """A read of a page, already counted, that may need retries, or be beyond them: its end, or minus a status."""
        flash = self.flash
        if flash.reads[line] < flash.read_limit[line]:
            return flash.time_read(page, len(units), 0, now_ns, self._suspend_ns)
        retries = self.health.read(flash.erases[line], now_ns - flash.opened_ns[line], flash.reads[line])
        if (retries < 0 or retries >= WORN_RETRIES) and self.params.refresh and line in flash.closed:
            self._refresh([line], now_ns)
        if retries < 0:
            for unit in units:
                self._lose(unit)
            return -UNRECOVERED_READ
        self.retries += retries
        return flash.time_read(page, len(units), retries, now_ns, self._suspend_ns)

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

    def review(self, now_ns: int) -> int:
        """Heat, ageing, waking up; when the command that came upon this may begin."""
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
        self._review_ns = now_ns + REVIEW_NS
        if self._wake_ns:
            now_ns += self._wake_ns
            self._wake_ns = self.power_state = 0
            self._set_speed()
        return now_ns

    def _set_speed(self) -> None:
        self.timing.slow_all(SLOW_PPM[self.thermal.level] * POWER_STATES[self.power_state].slow_ppm // 1_000_000)

    def set_power_state(self, ps: int) -> None:
        """Slower states stretch the flash's times; leaving an idle state costs its exit latency once."""
        super().set_power_state(ps)
        self._wake_ns = POWER_STATES[ps].exit_ns
        self._set_speed()
        if self._wake_ns:
            self._review_ns = 0  # the next command wakes it

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

    # --- the choice of victims, from outside ---

    def victim_candidates(self) -> Candidates:
        """What may be collected now: what an agent decides upon."""
        return self.collector.candidates()

    def on_victim_needed(self, callback: Callable[[Candidates], None] | None) -> None:
        """Calls back with the candidates whenever a victim has been chosen: hints for the next are welcome then."""
        self.collector.on_victim_needed = callback

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
        if now_ns >= self._review_ns:
            self.review(now_ns)
        self.buffer.destage(now_ns, 0, pad=self.volatile)
        collector = self.collector
        if not self.buffer.worn_out and collector.wants_idle_work() and collector.idle_step(now_ns):
            self.next_event_ns = max(now_ns + 1, *self.flash.die_free_ns)
        else:
            self.next_event_ns = None

    # --- telemetry ---

    def smart(self, now_ns: int) -> MediumSmart:
        """Health as of ``now_ns``."""
        if now_ns >= self._review_ns and not self._wake_ns:
            self.review(now_ns)
        self.fold()
        return report.smart(self)._replace(**self._overrides)

    def figures(self) -> dict[str, int]:
        """Counters for sysfs."""
        self.fold()
        return report.figures(self)


def _is_factor(text: str) -> bool:
    return text.isdecimal() and PPM <= int(text[:12]) <= 1000 * PPM and len(text) <= 12
