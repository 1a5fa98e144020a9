"""The hot path of ``ftl``: commands of one unit on memory without checksums, in one function each.

Everything else is :class:`uxk_nvme.medium.ftl.device.FtlMedium`'s, and so is the meaning: a test compares the two.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from uxk_nvme.medium.base import Data
from uxk_nvme.medium.ftl.core import IDLE_NS
from uxk_nvme.medium.ftl.device import FtlMedium
from uxk_nvme.medium.params import MediumParams
from uxk_nvme.store import GRANULE_BYTES, RamStore, Store

_SHIFT: Final = GRANULE_BYTES.bit_length() - 1


class FastFtlMedium(FtlMedium):
    """For units of a granule in memory, a protected buffer, and reads that suspend nothing."""

    @staticmethod
    def suits(params: MediumParams, store: Store) -> bool:
        """Whether this class serves these parameters."""
        plain = isinstance(store, RamStore) and store.sums is None
        return plain and params.map_bytes == GRANULE_BYTES and not params.write_cache and not params.read_suspend

    def __init__(self, params: MediumParams, store: Store, random: np.random.Generator) -> None:
        super().__init__(params, store, random)
        assert self._view is not None
        flash, geometry = self.flash, self.geometry
        pipe_ns = GRANULE_BYTES * self._ps_per_kib // 1_024_000
        # Lists that keep their identity, and constants: one look-up instead of a dozen.
        self._hot_read = (
            self._marked, self._dirty, self._flying, flash.l2p, geometry.page_units, geometry.line_pages, flash.reads,
            flash.read_limit, self.timing.reads, flash.die_free_ns, flash.channel_free_ns, self._view,
            self._controller_ns, pipe_ns,
        )  # fmt: skip
        self._hot_write = (
            self._marked, self._dirty, self._view, self._map, self.buffer, self.buffer.low_units,
            self.buffer.capacity_units, self._controller_ns, pipe_ns,
        )  # fmt: skip
        self._quick_reads = 0
        self._quick_writes = 0
        self._quick_busy_ns = 0

    def fold(self) -> None:
        """Enters into the books what was counted here."""
        reads, writes = self._quick_reads, self._quick_writes
        self.reads += reads
        self.read_bytes += reads * GRANULE_BYTES
        self.writes += writes
        self.written_bytes += writes * GRANULE_BYTES
        self.flash.page_reads += reads
        self.flash.busy_ns += self._quick_busy_ns
        self._quick_reads = self._quick_writes = self._quick_busy_ns = 0

    def read(self, offset: int, into: memoryview, now_ns: int) -> int:
        """Fills ``into``; complete when dies and channels have given the data."""
        (
            marked, dirty, flying, l2p, page_units, line_pages, reads, limits, timing, die_free_ns, channel_free_ns,
            view, controller_ns, unit_pipe_ns,
        ) = self._hot_read  # fmt: skip
        unit = offset >> _SHIFT
        page = l2p[unit] // page_units  # of what lies nowhere: -1
        if (
            len(into) != GRANULE_BYTES
            or unit << _SHIFT != offset
            or page < 0
            or page in flying
            or unit in dirty
            or marked
            or now_ns >= self._review_ns
        ):
            return FtlMedium.read(self, offset, into, now_ns)
        line = page // line_pages
        count = reads[line] + 1
        if count >= limits[line]:
            return FtlMedium.read(self, offset, into, now_ns)
        reads[line] = count
        into[:] = view[offset : offset + GRANULE_BYTES]
        die, channel, read_ns, transfer_ns = timing[page - line * line_pages]
        done_ns = die_free_ns[die]
        if done_ns < now_ns:
            done_ns = now_ns
        die_free_ns[die] = done_ns = done_ns + read_ns
        carried_ns = channel_free_ns[channel]
        if carried_ns < now_ns:
            carried_ns = now_ns
        channel_free_ns[channel] = carried_ns = carried_ns + transfer_ns
        done_ns += transfer_ns
        if done_ns < carried_ns:
            done_ns = carried_ns
        done_ns += controller_ns
        self._quick_reads += 1
        self._quick_busy_ns += read_ns
        self._last_ns = now_ns
        pipe_ns = self._pipe_ns
        if pipe_ns < now_ns:
            pipe_ns = now_ns
        self._pipe_ns = pipe_ns = pipe_ns + unit_pipe_ns
        if pipe_ns > done_ns:
            return pipe_ns
        return done_ns

    def write(self, offset: int, data: Data, now_ns: int, fua: bool = False) -> int:
        """Stores ``data``; complete when the buffer, which is always durable, has taken it."""
        marked, dirty, view, granules, buffer, low_units, capacity_units, controller_ns, unit_pipe_ns = self._hot_write
        unit = offset >> _SHIFT
        if (
            len(data) != GRANULE_BYTES
            or unit << _SHIFT != offset
            or marked
            or buffer.worn_out
            or now_ns >= self._review_ns
        ):
            return FtlMedium.write(self, offset, data, now_ns, fua)
        dirty[unit] = None
        view[offset : offset + GRANULE_BYTES] = data
        granules[unit] = 1
        self._quick_writes += 1
        self._last_ns = now_ns
        if self.next_event_ns is None:
            self.next_event_ns = now_ns + IDLE_NS
        done_ns = now_ns + controller_ns
        pipe_ns = self._pipe_ns
        if pipe_ns < now_ns:
            pipe_ns = now_ns
        self._pipe_ns = pipe_ns = pipe_ns + unit_pipe_ns
        if pipe_ns > done_ns:
            done_ns = pipe_ns
        if len(dirty) > low_units:
            buffer.destage(now_ns, low_units)
        if len(dirty) + buffer.flying_units > capacity_units:
            return max(done_ns, buffer.admit(now_ns))
        return done_ns
