"""The medium ``ftl``: a buffer for writes in front of page-mapped flash.

Writes are acknowledged from the buffer and programmed a page of a die at a time, the oldest units first, when it is
half full or the host is quiet.  With ``write_cache`` the buffer is volatile memory of that size: a flush or FUA must
program what it holds, padding the last page, and a loss of power takes back what was not programmed.  Without, the
buffer is protected by capacitors, as in drives that report no volatile cache: two pages for every die, always durable.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from uxk_nvme.medium.base import Data
from uxk_nvme.medium.ftl.core import IDLE_NS, FlashCore
from uxk_nvme.medium.params import MediumParams
from uxk_nvme.store import GRANULE_BYTES, RamStore, Store
from uxk_nvme.store.status import UNRECOVERED_READ, WRITE_FAULT, WRITE_PROTECTED

SUSPEND_NS: Final = 20_000
"""Ours: the class of tESPD/tPSPD in data sheets; MQSim has 100 us for programs and 700 us for erases."""
WORN_RETRIES: Final = 2
"""Ours: a host's read with so many retries has its line refreshed."""
_GRANULE_SHIFT: Final = GRANULE_BYTES.bit_length() - 1


class FtlMedium(FlashCore):
    """See the module's text; :class:`uxk_nvme.medium.Medium` for the methods."""

    next_event_ns: int | None

    def __init__(self, params: MediumParams, store: Store, random: np.random.Generator) -> None:
        super().__init__(params, store, random)
        self._mask = self.geometry.map_bytes - 1
        self._line_pages = self.geometry.line_pages
        self._controller_ns = params.controller_ns
        self._suspend_ns = SUSPEND_NS if params.read_suspend else -1
        self._ps_per_kib = 1024 * 10**12 // params.bandwidth if params.bandwidth else 0
        self._pipe_ns = 0
        plain = isinstance(store, RamStore) and store.sums is None
        self._view = store.view if plain else None
        self._map = store.map if isinstance(store, RamStore) else bytearray()
        self._marked = store.bad.starts

    # --- data ---

    def read(self, offset: int, into: memoryview, now_ns: int) -> int:
        """Fills ``into``; complete when dies and channels have given the data."""
        if now_ns >= self._review_ns:
            now_ns = self.begin(now_ns)
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
            now_ns = self.begin(now_ns)
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
        if fua or self.write_through:
            if self.store.sync():
                return -WRITE_FAULT
            if self.volatile:
                committed_ns = buffer.commit(first, last, now_ns)
                if committed_ns < 0:
                    return committed_ns
                done_ns = max(done_ns, committed_ns)
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
            now_ns = self.begin(now_ns)
        status = self.store.sync()
        if status:
            return -status
        done_ns = now_ns
        if self.volatile:
            failure = self.buffer.destage(now_ns, 0, pad=True)
            if failure < 0:
                return failure
            done_ns = max((flight.done_ns for flight in self.undo.flights), default=now_ns)
        return max(done_ns, now_ns) + self._controller_ns

    def set_write_cache(self, on: bool, now_ns: int) -> int:
        """Off: what is cached is programmed, and from now on every write before it is complete.

        A protected buffer is not concerned.
        """
        done_ns = now_ns if on else self.flush(now_ns)
        if done_ns >= 0:
            self.write_through = not on
        return done_ns

    def power_loss(self, now_ns: int) -> None:
        """What a volatile buffer holds is lost; what was being programmed may be torn.  Dies forget what they did."""
        self.unsafe_shutdowns += 1
        self.buffer.lose(now_ns, self.undo)
        self.collector.power_loss(now_ns)
        for times in (self.flash.die_free_ns, self.flash.die_read_ns, self.flash.channel_free_ns):
            times[:] = [min(free_ns, now_ns) for free_ns in times]
        self._pipe_ns = min(self._pipe_ns, now_ns)

    # --- commands without data ---

    def write_zeroes(self, offset: int, length: int, now_ns: int, deallocate: bool) -> int:
        """The range reads as zeros, at once durable.  Whole units leave the map, as most controllers do it."""
        if now_ns >= self._review_ns:
            now_ns = self.begin(now_ns)
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
        if now_ns >= self._review_ns:
            now_ns = self.begin(now_ns)
        status = self.store.mark_bad(offset, length)
        if status:
            return -status
        self.undo.settle(offset, length)
        return now_ns + self._controller_ns

    def verify(self, offset: int, length: int, now_ns: int) -> int:
        """Reads the flash, and checks the store, without giving data."""
        if now_ns >= self._review_ns:
            now_ns = self.begin(now_ns)
        status = self.store.verify(offset, length)
        if status:
            return self._failed_read(status)
        done_ns = self._time_read(offset >> self._shift, (offset + length - 1) >> self._shift, now_ns)
        return done_ns if done_ns < 0 else done_ns + self._controller_ns

    # --- errors ---

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
