"""The flash itself: which unit lies where, which die is busy until when, and programming in lines.

Only numbers: contents are the store's.  A die is busy until a time, a channel has a backlog; nothing ever waits.  The
channel carries in the order of arrival, a read's data when the die has them: ``max(die + transfer, backlog)``.
"""

from __future__ import annotations

from array import array
from heapq import heapify, heappop, heappush
from typing import Final, Protocol, TypeAlias

from uxk_nvme.medium.ftl.geometry import Geometry
from uxk_nvme.medium.ftl.health import Health
from uxk_nvme.medium.ftl.timing import Timing

Table: TypeAlias = "list[int] | array[int]"

FREE: Final = 0
OPEN: Final = 1
CLOSED: Final = 2
VICTIM: Final = 3
ERASING: Final = 4
RETIRED: Final = 5

_LIST_MAX: Final = 1 << 21
"""Entries: lists are four times as fast as arrays, and ten times as big."""


def _table(count: int, value: int) -> Table:
    return [value] * count if count <= _LIST_MAX else array("i", [value]) * count


class Listener(Protocol):
    """Hears what the host does to the map."""

    def program(self, units: list[int]) -> object:
        """These units are programmed."""

    def unmap(self, first: int, last: int) -> object:
        """The units [first, last) hold nothing any more."""


class Stream:
    """An open line and the place in it that comes next."""

    __slots__ = ("at", "end", "line")

    def __init__(self) -> None:
        self.line = -1
        self.at = 0
        self.end = 0


class Flash:
    """State of map, lines and dies."""

    def __init__(self, geometry: Geometry, timing: Timing, health: Health, initial_cycles: int) -> None:
        self.geometry = geometry
        self.timing = timing
        self.health = health
        lines = geometry.lines
        # One entry more than there are units: padding belongs to it, and it lies nowhere.
        self.l2p = _table(geometry.units + 1, -1)
        self.p2l = _table(lines * geometry.line_units, geometry.units)
        self.valid = [0] * lines
        # What programming looks at, in one look-up; the tables keep their identity.
        self._shape = self.l2p, self.valid, geometry.line_units, geometry.page_units, geometry.line_pages
        self.erases = [initial_cycles] * lines
        self.reads = [0] * lines
        self.read_limit = [0] * lines
        self.generation = [0] * lines
        self.opened_ns = [0] * lines
        self.closed_at = [0] * lines
        self.state = bytearray(lines)
        self.free: list[tuple[int, int]] = [(initial_cycles, line) for line in range(lines)]
        self.closed: dict[int, None] = {}
        """Lines that may be collected, in the order in which they were closed."""
        self.listener: Listener | None = None
        self.host = Stream()
        self.gc = Stream()
        self.die_free_ns = [0] * geometry.dies
        self.die_read_ns = [0] * geometry.dies
        """Until when reads occupy the die: what a read waits for where reads suspend everything else."""
        self.channel_free_ns = [0] * geometry.channels
        self.spares = [geometry.spares_per_die] * geometry.dies
        self.usable_lines = lines
        self.clock_units = 0
        """Units that the host has programmed, those before the run included: the age of lines counts in it."""
        self.clock_base = 0
        self.pad_units = 0
        self.moved_units = 0
        self.page_programs = 0
        self.page_reads = 0
        self.erasures = 0
        self.bad_blocks = 0
        self.busy_ns = 0
        """Die time, all dies together."""

    # --- lines ---

    def open_line(self, stream: Stream, now_ns: int, *, worn: bool = False) -> None:
        """Closes the stream's line and gives it the least worn free one, or the most worn; there must be one."""
        if stream.line >= 0:
            self.close_line(stream)
        if worn:
            cycles, line = most = max(self.free)
            self.free.remove(most)
            heapify(self.free)
        else:
            cycles, line = heappop(self.free)
        self.state[line] = OPEN
        self.generation[line] += 1
        self.opened_ns[line] = now_ns
        self.reads[line] = 0
        self.read_limit[line] = self.health.limit(cycles, 0)
        stream.line = line
        stream.at = line * self.geometry.line_units
        stream.end = stream.at + self.geometry.line_units

    def close_line(self, stream: Stream) -> None:
        """The stream's line may be collected from now on."""
        self.state[stream.line] = CLOSED
        self.closed[stream.line] = None
        self.closed_at[stream.line] = self.clock_units
        stream.line = -1
        stream.at = stream.end = 0

    def erase(self, line: int, now_ns: int) -> None:
        """Erases a line that holds nothing valid; it is free then, unless a block of it dies without a spare."""
        geometry, timing = self.geometry, self.timing
        for die in range(geometry.dies):
            free_ns = self.die_free_ns[die]
            erase_ns = timing.erase_ns[die]
            self.die_free_ns[die] = max(free_ns, now_ns) + erase_ns
            self.busy_ns += erase_ns
        self.erasures += geometry.dies * geometry.planes
        cycles = self.erases[line] = self.erases[line] + 1
        base = line * geometry.line_units
        blank = _table(geometry.line_units, geometry.units)
        if isinstance(self.p2l, list):
            self.p2l[base : base + geometry.line_units] = blank
        else:
            self.p2l[base : base + geometry.line_units] = array("i", blank)
        if self._lost_a_block(cycles):
            self.state[line] = RETIRED
            self.usable_lines -= 1
        else:
            self.state[line] = FREE
            heappush(self.free, (cycles, line))

    def _lost_a_block(self, cycles: int) -> bool:
        """Whether a block has gone bad and its die has no spare left to put in its place."""
        planes = self.geometry.planes
        block = self.health.goes_bad(cycles, self.geometry.dies * planes)
        if block < 0:
            return False
        self.bad_blocks += 1
        die = block // planes
        if not self.spares[die]:
            return True
        self.spares[die] -= 1
        return False

    # --- programming and reading ---

    def program(self, units: list[int], now_ns: int) -> int:
        """Puts at most a page of units at the end of the host's line; when the page is programmed.

        The line must have room.  A page that is not full is padded.
        """
        stream = self.host
        l2p, valid, line_units, page_units, line_pages = self._shape
        start = stream.at
        for at, unit in enumerate(units, start):
            old = l2p[unit]
            if old >= 0:
                valid[old // line_units] -= 1
            l2p[unit] = at
        count = len(units)
        self.place(start, units)
        valid[stream.line] += count
        self.clock_units += count
        self.pad_units += page_units - count
        stream.at = start + page_units
        if self.listener is not None:
            self.listener.program(units)
        return self.time_program(start // page_units % line_pages, now_ns)

    def time_program(self, page: int, now_ns: int) -> int:
        """Transfers and programs a page of a line; when that is done."""
        timing = self.timing
        die, channel = timing.die_of[page], timing.channel_of[page]
        carried_ns = self.channel_free_ns[channel]
        if carried_ns < now_ns:
            carried_ns = now_ns
        self.channel_free_ns[channel] = carried_ns = carried_ns + timing.page_transfer_ns[channel]
        done_ns = self.die_free_ns[die]
        if done_ns < carried_ns:
            done_ns = carried_ns
        program_ns = timing.program_ns[page]
        self.die_free_ns[die] = done_ns = done_ns + program_ns
        self.busy_ns += program_ns
        self.page_programs += 1
        return done_ns

    def time_programs(self, first: int, count: int, now_ns: int) -> int:
        """Likewise for so many pages of a line, one after the other; when all are done."""
        timing, die_free_ns, channel_free_ns = self.timing, self.die_free_ns, self.channel_free_ns
        die_of, channel_of, program_ns = timing.die_of, timing.channel_of, timing.program_ns
        last_ns = busy_ns = 0
        for page in range(first, first + count):
            die, channel, cost_ns = die_of[page], channel_of[page], program_ns[page]
            carried_ns = channel_free_ns[channel]
            if carried_ns < now_ns:
                carried_ns = now_ns
            channel_free_ns[channel] = carried_ns = carried_ns + timing.page_transfer_ns[channel]
            done_ns = die_free_ns[die]
            if done_ns < carried_ns:
                done_ns = carried_ns
            die_free_ns[die] = done_ns = done_ns + cost_ns
            if done_ns > last_ns:
                last_ns = done_ns
            busy_ns += cost_ns
        self.busy_ns += busy_ns
        self.page_programs += count
        return last_ns

    def time_read(self, page: int, units: int, retries: int, now_ns: int, suspend_ns: int = -1) -> int:
        """Reads a page of a line and transfers ``units`` of it; when that is done.

        ``suspend_ns`` >= 0: a program or an erase that holds the die is suspended at that price.
        """
        timing = self.timing
        die, channel = timing.die_of[page], timing.channel_of[page]
        read_ns = timing.read_ns[page] * (retries + 1)
        free_ns = self.die_free_ns[die]
        if suspend_ns < 0 or free_ns <= now_ns:
            if free_ns < now_ns:
                free_ns = now_ns
            self.die_free_ns[die] = read_done_ns = free_ns + read_ns
        else:
            reads_ns = self.die_read_ns[die]
            read_done_ns = (reads_ns if reads_ns > now_ns else now_ns + suspend_ns) + read_ns
            self.die_free_ns[die] = free_ns + read_ns + suspend_ns
        self.die_read_ns[die] = read_done_ns
        transfer_ns = timing.unit_transfer_ns[channel] * units
        carried_ns = self.channel_free_ns[channel]
        if carried_ns < now_ns:
            carried_ns = now_ns
        self.channel_free_ns[channel] = carried_ns = carried_ns + transfer_ns
        self.busy_ns += read_ns
        self.page_reads += 1
        read_done_ns += transfer_ns
        if read_done_ns < carried_ns:
            return carried_ns
        return read_done_ns

    def time_page_reads(self, pages: set[int], now_ns: int) -> int:
        """Reads whole pages, whichever lines they belong to; when all are there."""
        timing, line_pages = self.timing, self.geometry.line_pages
        die_of, channel_of, read_ns = timing.die_of, timing.channel_of, timing.read_ns
        die_free_ns, channel_free_ns, transfer_ns = self.die_free_ns, self.channel_free_ns, timing.page_transfer_ns
        last_ns = busy_ns = 0
        for physical in pages:
            page = physical % line_pages
            die, channel, cost_ns = die_of[page], channel_of[page], read_ns[page]
            done_ns = die_free_ns[die]
            if done_ns < now_ns:
                done_ns = now_ns
            die_free_ns[die] = done_ns = done_ns + cost_ns
            carried_ns = channel_free_ns[channel]
            if carried_ns < now_ns:
                carried_ns = now_ns
            cost = transfer_ns[channel]
            channel_free_ns[channel] = carried_ns = carried_ns + cost
            done_ns += cost
            if carried_ns > done_ns:
                done_ns = carried_ns
            if done_ns > last_ns:
                last_ns = done_ns
            busy_ns += cost_ns
        self.busy_ns += busy_ns
        self.page_reads += len(pages)
        return last_ns

    # --- the map ---

    def unmap(self, first: int, last: int) -> None:
        """Forgets the units [first, last)."""
        if self.listener is not None:
            self.listener.unmap(first, last)
        l2p, valid, line_units = self.l2p, self.valid, self.geometry.line_units
        for old in l2p[first:last]:
            if old >= 0:
                valid[old // line_units] -= 1
        if isinstance(l2p, list):
            l2p[first:last] = [-1] * (last - first)
        else:
            l2p[first:last] = array("i", [-1]) * (last - first)

    def take_back(self, page: int, units: list[int], before: list[int]) -> None:
        """The page of the host's was never programmed: its units lie where they lay ``before``, or nowhere.

        One whose former place is being emptied stays: the device would have written it anew.
        """
        l2p, p2l, valid, line_units = self.l2p, self.p2l, self.valid, self.geometry.line_units
        at = page * self.geometry.page_units
        for slot, (unit, old) in enumerate(zip(units, before, strict=True), at):
            if l2p[unit] != slot:
                continue
            if old >= 0:
                if p2l[old] != unit or self.state[old // line_units] not in (OPEN, CLOSED):
                    continue
                valid[old // line_units] += 1
            l2p[unit] = old
            valid[slot // line_units] -= 1

    def fill(self, units: list[int]) -> None:
        """Places units at the host's end without taking any time: what was there before the run began."""
        l2p, valid, line_units, stream = self.l2p, self.valid, self.geometry.line_units, self.host
        page_units = self.geometry.page_units
        done = 0
        while done < len(units):
            if stream.at == stream.end:
                self.open_line(stream, 0)
            here = units[done : done + stream.end - stream.at]
            self.place(stream.at, here)
            for slot, unit in enumerate(here, stream.at):
                old = l2p[unit]
                if old >= 0:
                    valid[old // line_units] -= 1
                l2p[unit] = slot
            valid[stream.line] += len(here)
            stream.at += -(-len(here) // page_units) * page_units
            done += len(here)
            self.clock_units += len(here)
        self.clock_base = self.clock_units

    def place(self, at: int, units: list[int]) -> None:
        """Writes down which units lie from ``at`` on."""
        if isinstance(self.p2l, list):
            self.p2l[at : at + len(units)] = units
        else:
            self.p2l[at : at + len(units)] = array("i", units)

    def review(self, now_ns: int) -> list[int]:
        """Counts anew how many reads each line bears at its age; the closed ones whose mean page needs a retry."""
        worn = []
        for line, state in enumerate(self.state):
            if state in (OPEN, CLOSED):
                cycles, age_ns = self.erases[line], now_ns - self.opened_ns[line]
                self.read_limit[line] = self.health.limit(cycles, age_ns)
                if state == CLOSED and self.valid[line] and self.health.is_worn(cycles, age_ns, self.reads[line]):
                    worn.append(line)
        return worn
