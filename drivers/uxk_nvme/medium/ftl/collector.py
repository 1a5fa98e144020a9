"""Garbage collection: who is collected when, page by page along with the host's writes, or in idle time.

A victim's valid units move to a line of their own (so data that live long come together), a few for every page that
the host programs: as many as keep the number of free lines where it is.  Only if the host needs a line and there is
none does it wait for the rest of the victim.  A line is erased once what was in it has been programmed elsewhere: if
the last of it shares a page with what is moved next, once that page is full, or, when nothing is moved next, padded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import uxk
from uxk_nvme.medium.ftl.flash import CLOSED, ERASING, VICTIM, Flash
from uxk_nvme.medium.ftl.victims import SELECTORS, Candidates, Hints, Selector, greedy
from uxk_nvme.medium.params import MediumParams

WEAR_CHECK_LINES: Final = 8
"""Ours: erased lines between two looks at the spread of erase counts."""


class Collector:
    """Reclaims lines of a flash."""

    def __init__(self, flash: Flash, params: MediumParams, lost: Callable[[int], None]) -> None:
        """``lost(unit)`` is told of data that could not be read while they were moved."""
        lines = flash.geometry.lines
        self.flash = flash
        self.hints = Hints()
        self.selector = selector_of(params.gc_victim)
        self.foreground_lines = params.gc_foreground_lines or 4
        self.background_lines = max(params.gc_background_lines or lines // 16, self.foreground_lines)
        self.wear_gap = params.wear_gap_cycles
        self.victim = -1
        self.erasable: deque[tuple[int, int]] = deque()
        """(when, line): moved, to be erased then."""
        self.held: list[int] = []
        """Moved, but the last of it lies in a page that is not full yet."""
        self.forced: deque[int] = deque()
        """Lines that must go for another reason: worn data, cold data in young blocks."""
        self.active = False
        """Whether :meth:`step` has something to do."""
        self._pace = 0
        self._stuck = False
        self._to_worn = False
        self._programmed_ns = 0
        self._at = self._end = 0
        self._moved = False
        """Whether anything of the victim was moved."""
        self._lost = lost
        self._ready_ns = 0
        self.victims = 0
        self.victim_valid_units = 0
        self.foreground_waits = 0
        self.refreshes = 0
        self.wear_moves = 0
        self._wear_check_in = WEAR_CHECK_LINES

    # --- when ---

    def make_room(self, now_ns: int) -> bool:
        """A line for the host, at whatever price; False: there is none any more, the flash is worn out."""
        flash = self.flash
        self.erase_due(now_ns)
        if flash.usable_lines < flash.geometry.lines_needed:
            return False
        waited = False
        while len(flash.free) < 2:
            if self.erasable:
                self._erase_next(now_ns)
            elif self.held:
                self._pad(now_ns)
            elif self._stuck or not (self.victim >= 0 or self.start(now_ns, urgent=True)):
                return False
            elif self.victim >= 0:
                waited = True
                self.collect(1 << 62, now_ns)
        self.foreground_waits += waited
        flash.open_line(flash.host, now_ns)
        self.active = self.victim >= 0 or self._short()
        return True

    def _short(self) -> bool:
        """Whether lines are so few that collection goes along with writes."""
        return bool(self.forced) or self._lines_in_sight() < self.foreground_lines

    def _lines_in_sight(self) -> int:
        """Free, or empty and soon erased."""
        return len(self.flash.free) + len(self.erasable) + len(self.held)

    def step(self, now_ns: int) -> None:
        """The host has programmed a page while :attr:`active`: moves what keeps up with it."""
        if self.victim < 0:
            self.active = self._short() and self.start(now_ns)
        if self.victim >= 0:
            self.collect(self._pace, now_ns)

    def erase_due(self, now_ns: int) -> None:
        """Erases what may be erased by now."""
        while self.erasable and self.erasable[0][0] <= now_ns:
            self._erase_next(now_ns)

    def _erase_next(self, now_ns: int) -> None:
        ready_ns, line = self.erasable.popleft()
        self._to_worn = False
        self.flash.erase(line, max(ready_ns, now_ns))
        self._wear_check_in -= 1
        if self.wear_gap and self._wear_check_in <= 0:
            self._wear_check_in = WEAR_CHECK_LINES
            self._level_wear()

    def _level_wear(self) -> None:
        """Static wear-levelling: data that never change make room for others in their young blocks."""
        flash = self.flash
        if not flash.closed or self.forced:
            return
        coldest = min(flash.closed, key=flash.erases.__getitem__)
        if max(flash.erases) - flash.erases[coldest] > self.wear_gap:
            self.forced.append(coldest)
            self._to_worn = True
            self.wear_moves += 1

    def refresh(self, lines: list[int]) -> None:
        """Wants the data of these lines written anew."""
        for line in lines:
            if line not in self.forced:
                self.forced.append(line)
                self.refreshes += 1

    def wants_idle_work(self) -> bool:
        """Whether there is something to do when the host is quiet."""
        return self.victim >= 0 or bool(self.erasable) or bool(self.held) or self._wants_victim()

    def _wants_victim(self) -> bool:
        """Whether another line is to be collected in idle time."""
        return bool(self.forced) or (self._lines_in_sight() < self.background_lines and self._gain_in_sight())

    def _gain_in_sight(self) -> bool:
        """Ours: idle collection is for lines that are at least a sixteenth garbage."""
        flash = self.flash
        enough = flash.geometry.line_units * 15 // 16
        return any(flash.valid[line] <= enough for line in flash.closed)

    def idle_step(self, now_ns: int) -> bool:
        """About a row of pages over all dies; call again when the dies are free.  False: nothing was done."""
        before = len(self.erasable)
        self.erase_due(now_ns)
        if self.victim < 0 and not self.erasable and not (self._wants_victim() and self.start(now_ns)):
            if self.held:
                self._pad(now_ns)
                return True
            return len(self.erasable) < before
        if self.victim >= 0:
            geometry = self.flash.geometry
            self.collect(geometry.page_units * geometry.dies, now_ns)
        return not self._stuck

    # --- who ---

    def candidates(self) -> Candidates:
        """What may be collected now."""
        flash = self.flash
        lines = list(flash.closed)
        clock = flash.clock_units
        return Candidates(
            lines, [flash.generation[i] for i in lines], [flash.valid[i] for i in lines],
            [flash.erases[i] for i in lines], [clock - flash.closed_at[i] for i in lines],
            [flash.reads[i] for i in lines], flash.geometry.line_units, len(flash.free),
        )  # fmt: skip

    def start(self, now_ns: int, *, urgent: bool = False) -> bool:
        """Chooses a victim: one that must go, else a good hint, else the default's; False if there is none."""
        flash = self.flash
        line = self._choose(now_ns, urgent)
        if line < 0:
            return False
        del flash.closed[line]
        flash.state[line] = VICTIM
        self.victim = line
        valid, line_units = flash.valid[line], flash.geometry.line_units
        self._at = line * line_units
        self._end = self._at + line_units
        self._ready_ns = now_ns
        self._moved = False
        self.victims += 1
        self.victim_valid_units += valid
        # For each page that the host writes one must be gained, and somewhat more if lines run out.
        urgency = 2 if self._lines_in_sight() < 3 else 1
        self._pace = flash.geometry.page_units * line_units * urgency // max(line_units - valid, 1) + 1
        if not valid:
            self._finish(now_ns)
        return True

    def _choose(self, now_ns: int, urgent: bool) -> int:
        flash = self.flash
        while self.forced and not urgent:
            line = self.forced.popleft()
            if flash.state[line] == CLOSED:
                return line
        if self.hints:
            line = self.hints.take(flash.closed, flash.valid, flash.generation, flash.geometry.line_units, now_ns)
            if line >= 0:
                return line
        if not flash.closed:
            return -1
        if urgent or self.selector is greedy:
            line = min(flash.closed, key=flash.valid.__getitem__)
        else:
            seen = self.candidates()
            line = seen.line[self.selector(seen, flash.health.draw)]
        return line if flash.valid[line] < flash.geometry.line_units else -1

    # --- how ---

    def collect(self, slots: int, now_ns: int) -> None:
        """Goes through so many of the victim's places (rounded up to pages) and moves the valid units there.

        With the last one the line waits to be erased.
        """
        flash = self.flash
        l2p, page_units = flash.l2p, flash.geometry.page_units
        at = self._at
        stop = min(at - at % page_units + -(-slots // page_units) * page_units, self._end)
        live = [unit for slot, unit in enumerate(flash.p2l[at:stop], at) if l2p[unit] == slot]
        if live:
            if not self._has_room(len(live), now_ns):
                return
            self._read({l2p[unit] // page_units for unit in live}, live, now_ns)
            self._place(live, now_ns)
            flash.moved_units += len(live)
            flash.valid[self.victim] -= len(live)
        self._at = stop
        if stop == self._end:
            self._finish(now_ns)

    def _place(self, units: list[int], now_ns: int) -> None:
        """Puts units at the end of the line for what is moved; there is room for them."""
        flash, gc = self.flash, self.flash.gc
        l2p, page_units, line_pages = flash.l2p, flash.geometry.page_units, flash.geometry.line_pages
        ready_ns = max(now_ns, self._ready_ns)
        self._moved = True
        done = 0
        while done < len(units):
            if gc.at == gc.end:
                flash.open_line(gc, now_ns, worn=self._to_worn)
            to = gc.at
            here = units[done : done + gc.end - to]
            done += len(here)
            flash.place(to, here)
            for slot, unit in enumerate(here, to):
                l2p[unit] = slot
            gc.at = to + len(here)
            flash.valid[gc.line] += len(here)
            first, last = to // page_units, gc.at // page_units
            if first < last:
                self._programmed(flash.time_programs(first % line_pages, last - first, ready_ns))

    def _programmed(self, done_ns: int) -> None:
        """A page of what is moved is programmed then."""
        if done_ns > self._programmed_ns:
            self._programmed_ns = done_ns
        if self.held:
            self.erasable.extend((self._programmed_ns, line) for line in self.held)
            self.held.clear()

    def _pad(self, now_ns: int) -> None:
        """Programs the page that is not full: lines wait for it."""
        flash, gc = self.flash, self.flash.gc
        page_units = flash.geometry.page_units
        page = gc.at // page_units
        flash.pad_units += (page + 1) * page_units - gc.at
        gc.at = (page + 1) * page_units
        self._programmed(flash.time_program(page % flash.geometry.line_pages, max(now_ns, self._ready_ns)))

    def _has_room(self, units: int, now_ns: int) -> bool:
        """Whether so many units can be placed; False if blocks have died faster than lines were gained."""
        flash = self.flash
        if flash.gc.end - flash.gc.at < units:
            if not flash.free and not self.erasable and self.held:
                self._pad(now_ns)
            while not flash.free and self.erasable:
                self._erase_next(now_ns)
            self._stuck = not flash.free
        return not self._stuck

    def _read(self, pages: set[int], live: list[int], now_ns: int) -> None:
        """Reads pages of the victim."""
        flash, line = self.flash, self.victim
        reads = flash.reads[line] = flash.reads[line] + len(pages)
        done_ns = flash.time_page_reads(pages, now_ns)
        if done_ns > self._ready_ns:
            self._ready_ns = done_ns
        if reads < flash.read_limit[line]:
            return
        page_units = flash.geometry.page_units
        for page in pages:
            retries = flash.health.read(flash.erases[line], now_ns - flash.opened_ns[line], reads)
            if retries < 0:
                for unit in live:
                    if flash.l2p[unit] // page_units == page:
                        self._lost(unit)
            elif retries:
                done_ns = flash.time_read(page % flash.geometry.line_pages, 0, retries - 1, now_ns)
                self._ready_ns = max(self._ready_ns, done_ns)

    def _finish(self, now_ns: int) -> None:
        flash, line = self.flash, self.victim
        flash.state[line] = ERASING
        self.victim = -1
        if self._moved and flash.gc.at % flash.geometry.page_units:
            self.held.append(line)
        else:
            self.erasable.append((max(now_ns, self._programmed_ns), line))

    def power_loss(self, now_ns: int) -> None:
        """What was moved and not programmed is still where it came from, and is programmed when the power is back."""
        self._ready_ns, self._programmed_ns = min(self._ready_ns, now_ns), min(self._programmed_ns, now_ns)
        self.erasable = deque((min(when_ns, now_ns), line) for when_ns, line in self.erasable)

    def figures(self) -> dict[str, int]:
        """Counters for sysfs."""
        return {
            "gc_victims": self.victims, "gc_victim_valid_units": self.victim_valid_units,
            "gc_foreground_waits": self.foreground_waits, "gc_refreshes": self.refreshes,
            "gc_wear_moves": self.wear_moves, "gc_hints_applied": self.hints.applied,
            "gc_hints_refused": sum(self.hints.refused.values()),
        }  # fmt: skip


def selector_of(name: str) -> Selector:
    """A rule by name; ParamError lists them."""
    selector = SELECTORS.get(name)
    if selector is None:
        raise uxk.ParamError(f"gc_victim={name!r}: expected one of {', '.join(SELECTORS)}")
    return selector
