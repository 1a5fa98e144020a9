"""Media without flash: ``none`` answers at once, ``simple`` after a formula."""

from __future__ import annotations

from heapq import heapreplace

import numpy as np

import uxk
from uxk_nvme.medium.base import NAND_UNIT_BYTES, POWER_STATES, Core, Data
from uxk_nvme.medium.latency import SLOTS, table
from uxk_nvme.medium.params import MediumParams
from uxk_nvme.medium.undo import Undo
from uxk_nvme.store import GRANULE_BYTES, RamStore, Store

_SHIFT = GRANULE_BYTES.bit_length() - 1


class NoneMedium(Core):
    """Zero latency.  A volatile cache, if there is one, loses its contents with the power all the same."""

    def __init__(self, params: MediumParams, store: Store, random: np.random.Generator) -> None:
        super().__init__(params, store)
        if 0 < params.write_cache < NAND_UNIT_BYTES:
            raise uxk.ParamError(
                f"write_cache={params.write_cache}: expected 0, or at least {NAND_UNIT_BYTES}, the unit it holds"
            )
        self.undo = Undo(store, NAND_UNIT_BYTES, params.tear_ppm, random)
        self._capacity_units = params.write_cache // NAND_UNIT_BYTES
        self._caching = self._capacity_units > 0
        self._through = False
        """Whether every write is to be durable."""
        # Memory without checksums needs nobody between it and the caller, unless the device is to be woken first.
        plain = isinstance(store, RamStore) and store.sums is None
        self._plain = self._view = store.view if plain else None
        self._map = store.map if isinstance(store, RamStore) else bytearray()
        self._marked = store.bad.starts

    def read(self, offset: int, into: memoryview, now_ns: int) -> int:
        """Fills ``into``; complete at ``now_ns``."""
        view = self._view
        length = len(into)
        if view is None or self._marked:
            self._wake(now_ns)
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
            self._wake(now_ns)
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
        if fua or self._through:
            status = self.store.sync()
            if status:
                return -status
            if self._caching:
                self.undo.settle(offset, length)
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
        """Everything is durable at once; what could not be written stays cached."""
        self._wake(now_ns)
        status = self.store.sync()
        if status:
            return -status
        self.undo.clear()
        return now_ns

    def write_zeroes(self, offset: int, length: int, now_ns: int, deallocate: bool) -> int:
        """The range reads as zeros, at once durable."""
        self._wake(now_ns)
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
        self._wake(now_ns)
        status = self.store.mark_bad(offset, length)
        if status:
            return -status
        self.undo.settle(offset, length)
        return now_ns

    def verify(self, offset: int, length: int, now_ns: int) -> int:
        """A read that gives no data."""
        self._wake(now_ns)
        status = self.store.verify(offset, length)
        return self._failed_read(status) if status else now_ns

    def format(self, offset: int, length: int, now_ns: int) -> int:
        """Erases the range."""
        return NoneMedium.write_zeroes(self, offset, length, now_ns, True)

    def power_loss(self, now_ns: int) -> None:
        """Takes back what was only cached."""
        self.unsafe_shutdowns += 1
        self.undo.power_loss(now_ns)

    def set_write_cache(self, on: bool, now_ns: int) -> int:
        """Switches the volatile cache, if there is one; switched off, it is written back first."""
        done_ns = now_ns if on else self.flush(now_ns)
        if done_ns >= 0:
            self._caching, self._through = on and self._capacity_units > 0, not on
        return done_ns

    def set_power_state(self, ps: int, now_ns: int) -> None:
        """An idle device takes the long way with its next command, which wakes it."""
        super().set_power_state(ps, now_ns)
        if not POWER_STATES[ps].operational:
            self._view = None

    def _wake(self, now_ns: int) -> int:
        self._view = self._plain
        return super()._wake(now_ns)

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
        self._even = self._read_table is None
        """Whether all reads have the same latency, the one that was asked for."""

    def read(self, offset: int, into: memoryview, now_ns: int) -> int:
        """Fills ``into``."""
        view = self._view
        if view is not None and self._even and now_ns >= self._ready_ns and not self._marked:
            # The usual case, without a call: what _at() does is written out.
            length = len(into)
            into[:] = view[offset : offset + length]
            self.reads += 1
            self.read_bytes += length
            lanes = self._lanes
            done_ns = lanes[0]
            if done_ns < now_ns:
                done_ns = now_ns
            done_ns += self._read_ns
            heapreplace(lanes, done_ns)
            pipe_ns = self._pipe_ns
            if pipe_ns < now_ns:
                pipe_ns = now_ns
            self._pipe_ns = pipe_ns = pipe_ns + length * self._ps_per_kib // 1_024_000
            if pipe_ns > done_ns:
                return pipe_ns
            return done_ns
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

    def write_uncorrectable(self, offset: int, length: int, now_ns: int) -> int:
        """Takes as long as a deallocation: no data move."""
        failure = NoneMedium.write_uncorrectable(self, offset, length, now_ns)
        return failure if failure < 0 else self._at(now_ns, self._trim_ns, 0)

    def set_power_state(self, ps: int, now_ns: int) -> None:
        """Slower states stretch latencies; leaving an idle state costs its exit latency once."""
        super().set_power_state(ps, now_ns)
        self._slow_ppm = POWER_STATES[self._operational].slow_ppm
        self._even = self._read_table is None and self._slow_ppm == 1_000_000

    def _at(self, now_ns: int, latency_ns: int, length_bytes: int) -> int:
        if self._slow_ppm != 1_000_000:
            latency_ns = latency_ns * self._slow_ppm // 1_000_000
        if now_ns < self._ready_ns:  # it is still waking up
            now_ns = self._ready_ns
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
