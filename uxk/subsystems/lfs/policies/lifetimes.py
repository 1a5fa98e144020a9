"""Placements by how long a block will live: inferred (SepBIT), known (FK, FKG6) or published (Table)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from uxk.errors import ParamError
from uxk.subsystems.lfs.policies.base import Placement

if TYPE_CHECKING:
    from uxk.subsystems.lfs.reference import Volume

LIFESPANS: Final = 16
"""Segments of log 0 over whose lifespans SepBIT takes the mean."""
NEVER: Final = 1 << 60
"""Clock of a next write that does not come."""
FIRST_SEGMENTS: Final = 4


class SepBIT(Placement):
    """User writes: log 0 if the last lifespan was below the mean lifespan of log 0's segments, else log 1.
    Moved blocks: log 2 if they come out of log 0, else log 3 and up by age, at 4, 16, ... mean lifespans.

    The mean is over 16 segments at a time; before the first, every rewrite counts as short-lived.
    """

    name = "sepbit"
    source = "Wang et al., 'Separating Data via Block Invalidation Time Inference', FAST 2022"
    logs_needed = 4

    def attach(self, volume: Volume) -> None:
        """No lifespan is known yet."""
        self.lifespan = self.total = self.count = 0

    def user(self, volume: Volume, page: int) -> int:
        """Log 0 or 1, by the lifespan that ends with this write."""
        last = volume.last[page]
        return 0 if last >= 0 and (self.lifespan == 0 or volume.now - last < self.lifespan) else 1

    def moved(self, volume: Volume, page: int, victim: int) -> int:
        """Log 2 out of log 0; else by the time since the page's last write."""
        if volume.log_of[victim] == 0:
            return 2
        age, bound, log = volume.now - volume.last[page], self.lifespan * 4, 3
        while age >= bound and log < volume.logs - 1:
            bound *= 4
            log += 1
        return log

    def retired(self, volume: Volume, victim: int) -> None:
        """A segment of log 0 tells how long it lived, from opening to cleaning."""
        if volume.log_of[victim] == 0:
            self.total += volume.now - volume.born[victim]
            self.count += 1
            if self.count == LIFESPANS:
                self.lifespan, self.total, self.count = self.total // LIFESPANS, 0, 0


def next_writes(pages: Sequence[int]) -> array[int]:
    """For each write the user clock of the same page's next one, or ``NEVER``; the first write's clock is 1."""
    seen: dict[int, int] = {}
    clocks = array("q", [NEVER]) * len(pages)
    for index in range(len(pages) - 1, -1, -1):
        clocks[index] = seen.get(pages[index], NEVER)
        seen[pages[index]] = index + 1
    return clocks


class FK(Placement):
    """Full knowledge in linear classes: one segment's worth of writes to live each, as in SepBIT's paper.

    ``future`` has each write's next one: :func:`next_writes` of all that will be written, in order.  It is not a
    lower bound; :class:`FKG6` is the oracle to compare with.
    """

    name = "fk"
    source = "Wang et al., FAST 2022"

    def __init__(self, future: Sequence[int]) -> None:
        self.future = future

    def attach(self, volume: Volume) -> None:
        """Each page gets the clock of its next write."""
        self.due = array("q", [NEVER]) * volume.pages

    def user(self, volume: Volume, page: int) -> int:
        """By the whole life of the block.  Raises :class:`ParamError` past the end of the known future."""
        if volume.now > len(self.future):
            raise ParamError(f"{self.name}: write {volume.now}, but the future of {len(self.future)} writes is known")
        due = self.due[page] = self.future[volume.now - 1]
        return self.level(volume, due - volume.now)

    def moved(self, volume: Volume, page: int, victim: int) -> int:
        """By what is left of its life."""
        return self.level(volume, self.due[page] - volume.now)

    def level(self, volume: Volume, remaining: int) -> int:
        """Log for a block with ``remaining`` user writes to live."""
        return min(remaining // volume.size, volume.logs - 1)


class FKG6(FK):
    """Full knowledge in geometric classes of remaining life: up to 4 segments' worth of writes, 16, 64, ...

    ``first`` is the first class's bound in segments.
    """

    name = "fkg6"
    source = "this project"

    def __init__(self, future: Sequence[int], first: int = FIRST_SEGMENTS) -> None:
        super().__init__(future)
        self.first = first

    def level(self, volume: Volume, remaining: int) -> int:
        """By bounds at ``first``, 4 and 16 times ``first``, ... segments of writes."""
        bound, level = volume.size * self.first, 0
        while remaining >= bound and level < volume.logs - 1:
            bound *= 4
            level += 1
        return level


class Table(Placement):
    """A published table with one class per page, for user writes and moves alike.

    255, and any class the volume has no log for, means the class of ``default``, which learns from every block
    whether it is asked or not.
    """

    name = "table"
    source = "this project"

    def __init__(self, table: Sequence[int], default: Placement) -> None:
        self.table = table
        self.default = default

    def attach(self, volume: Volume) -> None:
        """Raises :class:`ParamError` unless there is a class for each page, and logs enough for the default."""
        if len(self.table) != volume.pages:
            raise ParamError(f"table: {len(self.table)} classes, expected one for each of {volume.pages} pages")
        if volume.logs < self.default.logs_needed:
            raise ParamError(f"table: {volume.logs} logs, but {self.default.name} needs {self.default.logs_needed}")
        self.default.attach(volume)

    def user(self, volume: Volume, page: int) -> int:
        """The table's class, or the default's."""
        usual, wanted = self.default.user(volume, page), self.table[page]
        return wanted if 0 <= wanted < volume.logs else usual

    def moved(self, volume: Volume, page: int, victim: int) -> int:
        """The table's class, or the default's."""
        usual, wanted = self.default.moved(volume, page, victim), self.table[page]
        return wanted if 0 <= wanted < volume.logs else usual

    def invalidated(self, volume: Volume, page: int, segment: int) -> None:
        """The default learns."""
        self.default.invalidated(volume, page, segment)

    def appended(self, volume: Volume, page: int, segment: int, victim: int) -> None:
        """The default learns."""
        self.default.appended(volume, page, segment, victim)

    def sealed(self, volume: Volume, segment: int) -> None:
        """The default learns."""
        self.default.sealed(volume, segment)

    def retired(self, volume: Volume, victim: int) -> None:
        """The default learns."""
        self.default.retired(volume, victim)
