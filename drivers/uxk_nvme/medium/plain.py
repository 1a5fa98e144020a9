"""Media without flash: ``none`` answers at once, ``simple`` after a formula."""

from __future__ import annotations

from heapq import heapreplace

import numpy as np

from uxk_nvme.medium.base import NAND_UNIT_BYTES, POWER_STATES, Core, Data, MediumSmart
from uxk_nvme.medium.latency import SLOTS, table
from uxk_nvme.medium.params import MediumParams
from uxk_nvme.medium.undo import Undo
from uxk_nvme.store import GRANULE_BYTES, RamStore, Store

_SHIFT = GRANULE_BYTES.bit_length() - 1


class NoneMedium(Core):
    """Zero latency.  A volatile cache, if there is one, loses its contents with the power all the same."""

    def __init__(self, params: MediumParams, store: Store, random: np.random.Generator) -> None:
        super().__init__(store)
        self.undo = Undo(store, NAND_UNIT_BYTES, params.tear_ppm, random)
        self._capacity_units = params.write_cache // NAND_UNIT_BYTES
        self._caching = self._capacity_units > 0
        # Memory without checksums needs nobody between it and the caller.
        plain = isinstance(store, RamStore) and store.sums is None
        self._view = store.view if plain else None
        self._map = store.map if isinstance(store, RamStore) else bytearray()
        self._marked = store.bad.starts

    def read(self, offset: int, into: memoryview, now_ns: int) -> int:
        """Fills ``into``; complete at ``now_ns``."""
        view = self._view
        length = len(into)
        if view is None or self._marked:
            status = self.store.read(offset, into)
            if status:
                return self._failed_read(status)
        else:
            into[:] = view[offset : offset + length]
        self.reads += 1
        self.read_bytes += length
        return now_ns

    def write(self, offset: int, data: Data, now_ns: int, fua: bool = False) -> int:
        """Stores ``data``; complete at ``now_ns``."""
        view = self._view
        length = len(data)
        if self._caching:
            self._remember(offset, length)
        if view is None or self._marked:
            status = self.store.write(offset, data)
            if status:
                return -status
        else:
            end = offset + length
            view[offset:end] = data
            first = offset >> _SHIFT
            if (end - 1) >> _SHIFT == first:
                self._map[first] = 1
            else:
                count = ((end - 1) >> _SHIFT) - first + 1
                self._map[first : first + count] = b"\1" * count
        self.writes += 1
        self.written_bytes += length
        if fua:
            if self._caching:
                self.undo.settle(offset, length)
            status = self.store.sync()
            if status:
                return -status
        return now_ns

    def _remember(self, offset: int, length: int) -> None:
        """Undo copies of what is about to change; the oldest give way, as if they had been written."""
        undo = self.undo
        dirty = undo.dirty
        for unit in range(offset // NAND_UNIT_BYTES, (offset + length - 1) // NAND_UNIT_BYTES + 1):
            if unit not in dirty:
                dirty[unit] = undo.save(unit)
        while len(dirty) > self._capacity_units:
            del dirty[next(iter(dirty))]

    def flush(self, now_ns: int) -> int:
        """Everything is durable at once."""
        self.undo.clear()
        status = self.store.sync()
        return -status if status else now_ns

    def write_zeroes(self, offset: int, length: int, now_ns: int, deallocate: bool) -> int:
        """The range reads as zeros, at once durable."""
        status = self.store.zero(offset, length, deallocate=deallocate)
        if status:
            return -status
        self.undo.settle(offset, length)
        return now_ns

    def deallocate(self, offset: int, length: int, now_ns: int) -> int:
        """The range reads as zeros and is free, at once durable."""
        return NoneMedium.write_zeroes(self, offset, length, now_ns, True)

    def write_uncorrectable(self, offset: int, length: int, now_ns: int) -> int:
        """Reads of the range fail until it is written."""
        status = self.store.mark_bad(offset, length)
        self.undo.settle(offset, length)
        return -status if status else now_ns

    def verify(self, offset: int, length: int, now_ns: int) -> int:
        """A read that gives no data."""
        status = self.store.verify(offset, length)
        return self._failed_read(status) if status else now_ns

    def format(self, offset: int, length: int, now_ns: int) -> int:
        """Erases the range."""
        return NoneMedium.write_zeroes(self, offset, length, now_ns, True)

    def power_loss(self, now_ns: int) -> None:
        """Takes back what was only cached."""
        self.unsafe_shutdowns += 1
        self.undo.power_loss(now_ns)

    def set_write_cache(self, on: bool) -> None:
        """Switches the volatile cache, if there is one; switched off, it is written back first."""
        self._caching = on and self._capacity_units > 0
        if not self._caching:
            self.undo.clear()

    def smart(self, now_ns: int) -> MediumSmart:
        """Health; nothing wears here."""
        return self._smart()._replace(**self._overrides)

    def figures(self) -> dict[str, int]:
        """Counters for sysfs."""
        return {
            "cached_units": len(self.undo.dirty), "lost_units": self.undo.lost_units, **self.store.figures(),
        }  # fmt: skip


class SimpleMedium(NoneMedium):
    """A latency for each kind of command, so many at work at a time, and a common pipe for their data.

    A command begins when a lane is free, takes the latency of its kind, and is not complete before the pipe, which
    carries data in the order of arrival, has carried its own.
    """

    def __init__(self, params: MediumParams, store: Store, random: np.random.Generator) -> None:
        super().__init__(params, store, random)
        self._lanes = [0] * params.lanes
        self._pipe_ns = 0
        self._ps_per_kib = 1024 * 10**12 // params.bandwidth if params.bandwidth else 0
        self._read_ns, self._write_ns = params.read_ns, params.write_ns
        self._flush_ns, self._trim_ns = params.flush_ns, params.trim_ns
        self._read_table = table("read_percentiles", params.read_percentiles) if params.read_percentiles else None
        self._write_table = table("write_percentiles", params.write_percentiles) if params.write_percentiles else None
        self._random = random
        self._draws: list[int] = []
        self._slow_ppm = 1_000_000
        self._wake_ns = 0

    def read(self, offset: int, into: memoryview, now_ns: int) -> int:
        """Fills ``into``."""
        view = self._view
        if view is not None and not self._marked and self._read_table is None:  # the usual case, without a call
            length = len(into)
            into[:] = view[offset : offset + length]
            self.reads += 1
            self.read_bytes += length
            return self._at(now_ns, self._read_ns, length)
        failure = NoneMedium.read(self, offset, into, now_ns)
        if failure < 0:
            return failure
        latency_ns = self._read_ns if self._read_table is None else self._drawn(self._read_table)
        return self._at(now_ns, latency_ns, len(into))

    def write(self, offset: int, data: Data, now_ns: int, fua: bool = False) -> int:
        """Stores ``data``; with ``fua`` and a volatile cache it also takes as long as a flush."""
        failure = NoneMedium.write(self, offset, data, now_ns, fua)
        if failure < 0:
            return failure
        latency_ns = self._write_ns if self._write_table is None else self._drawn(self._write_table)
        if fua and self._caching:
            latency_ns += self._flush_ns
        return self._at(now_ns, latency_ns, len(data))

    def flush(self, now_ns: int) -> int:
        """Durable after the latency of a flush."""
        failure = NoneMedium.flush(self, now_ns)
        return failure if failure < 0 else self._at(now_ns, self._flush_ns if self._caching else 0, 0)

    def write_zeroes(self, offset: int, length: int, now_ns: int, deallocate: bool) -> int:
        """The range reads as zeros."""
        failure = NoneMedium.write_zeroes(self, offset, length, now_ns, deallocate)
        return failure if failure < 0 else self._at(now_ns, self._trim_ns, 0)

    def deallocate(self, offset: int, length: int, now_ns: int) -> int:
        """The range reads as zeros and is free."""
        return self.write_zeroes(offset, length, now_ns, True)

    def verify(self, offset: int, length: int, now_ns: int) -> int:
        """Takes the time of a read."""
        failure = NoneMedium.verify(self, offset, length, now_ns)
        return failure if failure < 0 else self._at(now_ns, self._read_ns, length)

    def set_power_state(self, ps: int) -> None:
        """Slower states stretch latencies; leaving an idle state costs its exit latency once."""
        super().set_power_state(ps)
        state = POWER_STATES[ps]
        self._slow_ppm = state.slow_ppm
        self._wake_ns = state.exit_ns

    def _at(self, now_ns: int, latency_ns: int, length_bytes: int) -> int:
        if self._slow_ppm != 1_000_000:
            latency_ns = latency_ns * self._slow_ppm // 1_000_000
        if self._wake_ns:
            now_ns += self._wake_ns
            self._wake_ns = self.power_state = 0
        lanes = self._lanes
        free_ns = lanes[0]
        if free_ns < now_ns:
            free_ns = now_ns
        done_ns = free_ns + latency_ns
        heapreplace(lanes, done_ns)
        if self._ps_per_kib:
            pipe_ns = self._pipe_ns
            if pipe_ns < now_ns:
                pipe_ns = now_ns
            self._pipe_ns = pipe_ns = pipe_ns + length_bytes * self._ps_per_kib // 1_024_000
            if pipe_ns > done_ns:
                return pipe_ns
        return done_ns

    def _drawn(self, latencies: list[int]) -> int:
        draws = self._draws
        if not draws:
            draws += self._random.integers(0, SLOTS, 1024).tolist()
        return latencies[draws.pop()]
