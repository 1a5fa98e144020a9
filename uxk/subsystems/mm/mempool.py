"""Memory pools: pages set aside, so that who writes memory out never waits for memory (Linux: mm/mempool.c)."""

from __future__ import annotations

from uxk.core.waitfor import Node
from uxk.errors import KernelBug, ParamError
from uxk.kernel.machine import Machine
from uxk.subsystems.kthread import Flow, Kthread, WaitQueue
from uxk.subsystems.mm.zone import Use, Zone


class Mempool:
    """``reserve`` pages.  An allocation tries the free pages first, then the reserve, then waits for a page of the
    pool's own to come back: all of them are out in I/O that needs nothing more, so they do."""

    __slots__ = ("_queue", "_zone", "from_reserve", "least", "lent", "name", "reserve", "spare")

    def __init__(self, machine: Machine, zone: Zone, name: str, reserve: int) -> None:
        if reserve < 1 or zone.free - reserve <= zone.marks.high:
            raise ParamError(f"mempool {name}: {reserve} pages, expected 1 to {zone.free - zone.marks.high - 1}")
        self._zone = zone
        self._queue = WaitQueue(machine, f"a page of mempool {name}", Node("resource", f"I/O of mempool {name}"))
        zone.move(Use.FREE, Use.POOL, reserve)
        self.name = name
        self.reserve = reserve
        self.spare = self.least = reserve
        """Pages in reserve now, and the fewest that there were."""
        self.lent = self.from_reserve = 0
        """Pages out now; allocations that the reserve had to serve."""

    def alloc(self, thread: Kthread, pages: int = 1) -> Flow[None]:
        """``mempool_alloc`` with GFP_NOIO: never reclaims, and waits at most for I/O under way."""
        if not 0 < pages <= self.reserve:
            raise KernelBug(f"mempool {self.name}: {pages} pages at once, it has {self.reserve}")
        yield from self._queue.wait_until(thread, lambda: self._can_take(pages))
        zone = self._zone
        if zone.free - pages > zone.marks.low:
            zone.move(Use.FREE, Use.POOL, pages)
        else:
            self.spare -= pages
            self.least = min(self.least, self.spare)
            self.from_reserve += 1
        self.lent += pages

    def free(self, pages: int = 1) -> int:
        """``mempool_free``: fills the reserve up first; returns how many pages became free."""
        if not 0 <= pages <= self.lent:
            raise KernelBug(f"mempool {self.name}: {pages} pages come back, {self.lent} are out")
        self.lent -= pages
        kept = min(pages, self.reserve - self.spare)
        self.spare += kept
        self._zone.move(Use.POOL, Use.FREE, pages - kept)
        self._queue.wake_all()
        return pages - kept

    def _can_take(self, pages: int) -> bool:
        return self._zone.free - pages > self._zone.marks.low or self.spare >= pages
