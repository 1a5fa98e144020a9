"""What a volatile write cache holds, as undo copies: the store has the new bytes, this has the durable ones.

So reads need no look aside, and a driver that is killed loses nothing; only a loss of power puts the copies back.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

import numpy as np

from uxk_nvme.store import Saved, Store

PPM: Final = 1_000_000


class Flight(NamedTuple):
    """Units on their way to the medium: cached until ``done_ns``."""

    done_ns: int
    units: list[int]
    saved: list[Saved | None]
    """None: nothing to put back.  Empty: of none of them."""
    page: int = -1
    """Where they go; the medium's to know."""
    before: list[int] | None = None
    """Where each of them was before, likewise."""


class Undo:
    """Undo copies of units (pieces of ``unit_bytes``), in the order in which the units became dirty.

    ``dirty``: acknowledged and only in the cache.  ``flights``: being written; oldest first.
    """

    def __init__(self, store: Store, unit_bytes: int, tear_ppm: int, random: np.random.Generator) -> None:
        self.store = store
        self.unit_bytes = unit_bytes
        self.dirty: dict[int, Saved | None] = {}
        self.flights: deque[Flight] = deque()
        self.lost_units = 0
        """Units that losses of power have taken back."""
        self._tear_ppm = tear_ppm
        self._random = random

    def save(self, unit: int) -> Saved:
        """What the unit holds now."""
        offset = unit * self.unit_bytes
        return self.store.save(offset, min(self.unit_bytes, self.store.size_bytes - offset))

    def settle(self, offset: int, length: int) -> None:
        """The range has just been made durable with what the store holds: nothing of it can be lost any more."""
        size = self.unit_bytes
        first, last = offset // size, (offset + length - 1) // size
        few = last - first < len(self.dirty)
        units = range(first, last + 1) if few else [unit for unit in self.dirty if first <= unit <= last]
        for unit in units:
            if unit in self.dirty:
                saved = self._patched(unit, self.dirty[unit], offset, length)
                if saved is None:
                    del self.dirty[unit]
                else:
                    self.dirty[unit] = saved
        for flight in self.flights:
            for index, unit in enumerate(flight.units if flight.saved else ()):
                if first <= unit <= last:
                    flight.saved[index] = self._patched(unit, flight.saved[index], offset, length)

    def _patched(self, unit: int, saved: Saved | None, offset: int, length: int) -> Saved | None:
        """The copy with the range as it is now; None if the range covers the unit."""
        start = unit * self.unit_bytes
        end = min(start + self.unit_bytes, self.store.size_bytes)
        low, high = max(offset, start), min(offset + length, end)
        if saved is None or (low == start and high == end):
            return None
        data = bytearray(end - start if saved.data is None else saved.data)
        now = self.store.save(low, high - low)
        data[low - start : high - start] = bytes(high - low) if now.data is None else now.data
        bad = [piece for piece in saved.bad if piece[1] <= low or piece[0] >= high]
        for at, stop in saved.bad:
            if at < high and stop > low:
                bad += [(a, b) for a, b in ((at, min(stop, low)), (max(at, high), stop)) if a < b]
        return Saved(bytes(data) if saved.data is not None or any(data) else None, [*bad, *now.bad])

    def clear(self) -> None:
        """Everything is durable."""
        self.dirty.clear()
        self.flights.clear()

    def power_loss(self, now_ns: int) -> None:
        """Takes back what is not durable at ``now_ns``, newest first, logical block by logical block.

        Each block of a unit keeps its new contents with the probability ``tear_ppm``: it had reached the medium.
        """
        for unit, saved in self.dirty.items():
            self._revert(unit, saved)
        settled: set[int] = set()
        for flight in reversed(self.flights):
            if flight.done_ns <= now_ns:
                settled.update(flight.units)
                continue
            for unit, saved in zip(flight.units, flight.saved, strict=True):
                if saved is None:
                    settled.add(unit)
                elif unit not in settled:
                    self._revert(unit, saved)
        self.clear()

    def _revert(self, unit: int, saved: Saved | None) -> None:
        if saved is None:
            return
        self.lost_units += 1
        offset, lba = unit * self.unit_bytes, self.store.lba_bytes
        length = min(self.unit_bytes, self.store.size_bytes - offset)
        if not self._tear_ppm:
            self.store.restore(offset, length, saved)
            return
        keep = self._random.integers(0, PPM, length // lba) < self._tear_ppm
        for index in np.flatnonzero(~keep).tolist():
            at = index * lba
            data = None if saved.data is None else saved.data[at : at + lba]
            start = offset + at
            bad = [(max(a, start), min(b, start + lba)) for a, b in saved.bad if a < start + lba and b > start]
            self.store.restore(start, lba, Saved(data, bad))
