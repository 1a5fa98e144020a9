"""The write buffer in front of the flash: units that are dirty, and units that are being programmed."""

from __future__ import annotations

from itertools import islice

from uxk_nvme.medium.ftl.collector import Collector
from uxk_nvme.medium.ftl.flash import Flash
from uxk_nvme.medium.undo import Flight, Undo
from uxk_nvme.store import Saved
from uxk_nvme.store.status import WRITE_FAULT


class Buffer:
    """Room for ``capacity_units``; a unit occupies it until it has been programmed.

    The oldest units leave first, a page of a die at a time.  Places are freed in that order, too, as in a ring.
    """

    def __init__(self, undo: Undo, flash: Flash, collector: Collector, capacity_units: int, *, volatile: bool) -> None:
        self.flash = flash
        self.volatile = volatile
        self.collector = collector
        self.capacity_units = capacity_units
        self.low_units = capacity_units // 2
        """More dirty units than this are programmed."""
        self.dirty = undo.dirty
        self.flights = undo.flights
        self.flying: dict[int, Flight] = {}
        """Physical pages being programmed, and by what."""
        self.flying_units = 0
        self.worn_out = False
        """Nothing can be programmed any more."""

    def destage(self, now_ns: int, goal_units: int, *, pad: bool = False) -> int:
        """Programs the oldest units until ``goal_units`` are left; only full pages unless ``pad``.

        When that is done, or minus a status: then what is left stays in the buffer.
        """
        flights, dirty, page_units = self.flights, self.dirty, self.flash.geometry.page_units
        while flights and flights[0].done_ns <= now_ns:
            self.land(flights.popleft())
        done_ns = now_ns
        while len(dirty) > goal_units and (pad or len(dirty) >= page_units):
            units = list(islice(dirty, page_units))
            programmed_ns = self.program(units, now_ns)
            if programmed_ns > done_ns:
                done_ns = programmed_ns
            elif programmed_ns < 0:
                return programmed_ns
        return done_ns

    def program(self, units: list[int], now_ns: int) -> int:
        """Programs at most a page of dirty units; when that is done, or minus Write Fault if there is no room."""
        flash, collector = self.flash, self.collector
        if flash.host.at == flash.host.end and (self.worn_out or not collector.make_room(now_ns)):
            self.worn_out = True
            return -WRITE_FAULT
        dirty = self.dirty
        saved: list[Saved | None] = []
        before: list[int] | None = None
        if self.volatile:
            saved = [dirty.pop(unit) for unit in units]
            before = [flash.l2p[unit] for unit in units]
        else:
            for unit in units:
                del dirty[unit]
        page = flash.host.at // flash.geometry.page_units
        done_ns = flash.program(units, now_ns)
        self.flying[page] = flight = Flight(done_ns, units, saved, page, before)
        self.flights.append(flight)
        self.flying_units += len(units)
        if collector.active:
            collector.step(now_ns)
        return done_ns

    def land(self, flight: Flight) -> None:
        """The buffer no longer holds what was in it."""
        if self.flying.get(flight.page) is flight:
            del self.flying[flight.page]
        self.flying_units -= len(flight.units)

    def admit(self, now_ns: int) -> int:
        """The buffer is over-full: when enough of the oldest programs are done."""
        flights, flying = self.flights, self.flying
        done_ns, excess_units = now_ns, len(self.dirty) + self.flying_units - self.capacity_units
        while flights and excess_units > 0:
            flight_ns, units, _, page, _ = flight = flights.popleft()
            if flight_ns > done_ns:
                done_ns = flight_ns
            if flying.get(page) is flight:
                del flying[page]
            self.flying_units -= len(units)
            excess_units -= len(units)
        return done_ns

    def commit(self, first: int, last: int, now_ns: int) -> int:
        """Programs the units at once; when they are durable, or minus a status."""
        dirty, flying, l2p, page_units = self.dirty, self.flying, self.flash.l2p, self.flash.geometry.page_units
        wanted = [unit for unit in range(first, last + 1) if unit in dirty]
        done_ns = now_ns
        for at in range(0, len(wanted), page_units):
            programmed_ns = self.program(wanted[at : at + page_units], now_ns)
            if programmed_ns < 0:
                return programmed_ns
            done_ns = max(done_ns, programmed_ns)
        for unit in range(first, last + 1):
            flight = flying.get(l2p[unit] // page_units)
            if flight is not None:
                done_ns = max(done_ns, flight.done_ns)
        return done_ns

    def lose(self, now_ns: int, undo: Undo) -> None:
        """The power has failed: a volatile buffer's contents are gone; a protected one programs what has begun.

        Units whose page was not done lie where they lay before.
        """
        for flight in reversed(self.flights):
            if flight.before is not None and flight.done_ns > now_ns:
                self.flash.take_back(flight.page, flight.units, flight.before)
        if self.volatile:
            undo.power_loss(now_ns)
        self.flights.clear()
        self.flying.clear()
        self.flying_units = 0
