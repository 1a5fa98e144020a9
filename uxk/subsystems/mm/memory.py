"""Allocation, reclaim and dirtying: where threads of the emulated kernel come to wait for memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from uxk.core.waitfor import Node
from uxk.kernel.machine import Machine
from uxk.subsystems.kthread import Delay, Flow, Kthread, WaitQueue
from uxk.subsystems.mm import dirty as d
from uxk.subsystems.mm.pagecache import Folio, PageCache
from uxk.subsystems.mm.params import MmParams
from uxk.subsystems.mm.zone import Use, Zone

SWAP_CLUSTER_MAX: Final = 32
"""Pages that one round of reclaim takes at most."""
EVICT_NS: Final = 200
"""Time that kswapd needs for a page."""


class Memory:
    """One zone, its page cache, kswapd, and the dirty limits.

    ``flusher`` is who writes back, and so who makes dirty pages reclaimable.  ``flush`` wakes it; with True it shall
    write until nothing is dirty.  Pages that it has handed to the device arrive by themselves: who can be helped by
    those waits for the device, and for the flusher only if none are under way.  Without that distinction the
    wait-for graph would report cycles that dissolve.
    """

    def __init__(self, machine: Machine, params: MmParams, flusher: Node) -> None:
        self._machine = machine
        self.params = params
        self.zone = Zone(params.pages, params.min_free_kbytes)
        self.cache = PageCache(self.zone)
        self.rates = d.Rates()
        self.flush: Callable[[bool], object] = lambda everything: None
        self.on_pressure: Callable[[], object] = lambda: None
        """Called when free pages or dirty pages have changed so much that a watermark may be passed."""
        device = Node("resource", "device of the volume")
        why = "all that could be reclaimed is dirty"
        self.free_pages = WaitQueue(machine, "free memory, in direct reclaim", flusher, via=why)
        self.arriving = WaitQueue(machine, "free memory, in direct reclaim", device, via="writeback is under way")
        why = "it must write some back"
        self.throttle = WaitQueue(machine, "dirty pages below the limit, in balance_dirty_pages", flusher, via=why)
        self.draining = WaitQueue(machine, "dirty pages below the limit, in balance_dirty_pages", device)
        why = "it has begun to write it"
        self.begun = WaitQueue(machine, "a folio under writeback, in folio_wait_stable", flusher, via=why)
        self.sent = WaitQueue(machine, "a folio under writeback, in folio_wait_stable", device)
        self._kswapd_work = WaitQueue(machine, "work for kswapd")
        self.kswapd = Kthread(machine, Node("kernel", "kswapd0"))
        self.kswapd.start(self._balance_pgdat())
        self.in_flight = 0
        """Pages under writeback that are in the device's hands."""
        self.least_free = self.zone.free
        self.direct_reclaims = self.kswapd_pages = self.pauses = self.pause_ns = self.most_dirty = 0
        self.failed = 0
        """Allocations that found neither free pages nor a page cache: Linux would call the OOM killer."""

    # --- allocation ---

    def alloc(self, thread: Kthread, use: Use, pages: int = 1) -> Flow[None]:
        """GFP_KERNEL, page by page: above ``low`` at once, above ``min`` with kswapd woken, else direct reclaim.

        What was taken stays taken if the thread is killed meanwhile: :meth:`alloc_some` is for who must know.
        """
        while pages:
            pages -= yield from self.alloc_some(thread, use, pages)

    def alloc_some(self, thread: Kthread, use: Use, most: int) -> Flow[int]:
        """Allocates up to ``most`` pages, and at least one; returns how many."""
        zone = self.zone
        if zone.free <= zone.marks.low:
            self._kswapd_work.wake_all()
            if zone.free <= zone.marks.min:
                yield from self._direct_reclaim(thread)
            taken = 1
        else:
            taken = min(most, zone.free - zone.marks.low)
        zone.move(Use.FREE, use, taken)
        self.least_free = min(self.least_free, zone.free)
        return taken

    def _direct_reclaim(self, thread: Kthread) -> Flow[None]:
        """Takes clean pages itself; if there are none, waits until writeback has made some."""
        zone = self.zone
        self.direct_reclaims += 1
        self.on_pressure()
        while zone.free <= zone.marks.min:
            if self.cache.evict(SWAP_CLUSTER_MAX):
                self.freed()
                continue
            if not zone.cached:
                self._out_of_memory()
            self.flush(True)
            if self.in_flight:
                yield from self.arriving.wait_until(thread, lambda: self._hope() or not self.in_flight)
            else:
                yield from self.free_pages.wait_until(thread, lambda: self._hope() or self.in_flight > 0)

    def _hope(self) -> bool:
        return self.zone.free > self.zone.marks.min or self.zone.count[Use.CLEAN] > 0

    def _out_of_memory(self) -> None:
        if not self.failed:
            self._machine.log("crit", "mm", "out of memory: no page cache is left, and there is no swap")
        self.failed += 1

    def free_anon(self, pages: int) -> None:
        """A process gives anonymous memory back."""
        self.zone.move(Use.ANON, Use.FREE, pages)
        self.freed()

    def freed(self) -> None:
        """There are more free or clean pages than before, or fewer dirty ones."""
        for queue in (self.arriving, self.free_pages, self.draining, self.throttle):
            queue.wake_all()
        if self.zone.free <= self.zone.marks.low:
            self._kswapd_work.wake_all()

    def _balance_pgdat(self) -> Flow[None]:
        """kswapd: woken below ``low``, frees clean pages up to ``high``, and has the flusher make more."""
        zone = self.zone
        while True:
            yield from self._kswapd_work.wait_until(self.kswapd, self._kswapd_can_work)
            while zone.free < zone.marks.high and (taken := self.cache.evict(SWAP_CLUSTER_MAX)):
                self.kswapd_pages += taken
                self.freed()
                yield Delay(self._machine, taken * EVICT_NS)
            if zone.free < zone.marks.high:
                self.flush(True)
            self.on_pressure()

    def _kswapd_can_work(self) -> bool:
        return self.zone.free <= self.zone.marks.low and self.zone.count[Use.CLEAN] > 0

    # --- files ---

    def store(self, thread: Kthread, file: int, index: int) -> Flow[None]:
        """Changes one page of a file: by ``write()`` of a whole page, or by a store to a mapping (``page_mkwrite``).

        May wait for memory, for writeback of that very folio (the volume needs stable pages), and at the dirty limit.
        """
        cache = self.cache
        while True:
            folio = cache.find(file, index)
            if folio is None:
                yield from self.alloc(thread, Use.CLEAN)
                self._discard_or_insert(file, index)
                continue
            if folio.use is not Use.WRITEBACK:
                break
            yield from self._wait_stable(thread, folio)
        if folio.use is Use.DIRTY:
            return
        cache.make_dirty(folio, self._machine.now_ns)
        self.most_dirty = max(self.most_dirty, self.zone.dirty)
        thread.dirtied += 1
        exceeded = self.zone.dirty > self.limits.limit
        if thread.dirtied >= (d.PAUSE_PAGES_EXCEEDED if exceeded else d.PAUSE_PAGES):
            yield from self._balance_dirty_pages(thread)

    def _discard_or_insert(self, file: int, index: int) -> None:
        """Puts the page just allocated into the cache, unless another thread was faster."""
        if self.cache.find(file, index) is None:
            self.cache.insert(file, index)
        else:
            self.zone.move(Use.CLEAN, Use.FREE)

    def _wait_stable(self, thread: Kthread, folio: Folio) -> Flow[None]:
        """Until its writeback is over: until the flusher has sent it, and then until the device has it."""
        yield from self.begun.wait_until(thread, lambda: folio.sent or folio.use is not Use.WRITEBACK)
        yield from self.sent.wait_until(thread, lambda: folio.use is not Use.WRITEBACK)

    def send(self, folios: list[Folio]) -> None:
        """The flusher hands them to the device."""
        for folio in folios:
            folio.sent = True
        self.in_flight += len(folios)
        self.begun.wake_all()
        self.free_pages.wake_all()
        self.throttle.wake_all()

    def end_writeback(self, folios: list[Folio]) -> None:
        """They are on the volume: clean, and no wait for them is left."""
        self.in_flight -= len(folios)
        for folio in folios:
            self.cache.end_writeback(folio)
        self.sent.wake_all()
        self.freed()

    # --- dirty limits ---

    @property
    def limits(self) -> d.DirtyLimits:
        """The dirty limits, of the memory that there is now."""
        params = self.params
        return d.dirty_limits(self.zone, params.dirty_ratio, params.dirty_background_ratio)

    @property
    def over_background(self) -> bool:
        """Whether the flusher has to write without being asked."""
        return self.zone.count[Use.DIRTY] > self.limits.background

    def _balance_dirty_pages(self, thread: Kthread) -> Flow[None]:
        """Pauses a thread that dirties too fast; at the hard limit, holds it until writeback has made progress.

        Below the limit a pause ends by itself, so it is no wait for anybody.
        """
        pages, thread.dirtied = thread.dirtied, 0
        limits, dirty = self.limits, self.zone.dirty
        if dirty > limits.background:
            self.flush(False)
        if dirty <= limits.freerun:
            return
        ratio = d.position_ratio(dirty, limits)
        self.rates.update(self._machine.now_ns, self.cache.dirtied, self.cache.written, ratio)
        began_ns = self._machine.now_ns
        self.pauses += 1
        if ratio:
            yield Delay(self._machine, self.rates.pause_ns(pages, ratio, dirty))
        else:
            self.on_pressure()
            while not self._below_limit():
                helped = self._helped()
                queue = self.draining if helped else self.throttle
                changed = partial(self._changed, helped)
                yield from queue.poll_until(thread, changed, self._longest_pause_ns)
        self.pause_ns += self._machine.now_ns - began_ns

    def _below_limit(self) -> bool:
        return self.zone.dirty < self.limits.limit

    def _helped(self) -> bool:
        """Whether what is under way is enough to come below the limit."""
        return self.zone.dirty - self.in_flight < self.limits.limit

    def _changed(self, helped: bool) -> bool:
        return self._below_limit() or self._helped() != helped

    def _longest_pause_ns(self) -> int:
        self.flush(False)
        return self.rates.pause_ns(1, 0, self.zone.dirty)

    # --- figures ---

    def results(self) -> dict[str, Any]:
        """Figures since boot; pages, and times in ns."""
        zone, limits = self.zone, self.limits
        waits = {
            "reclaim": (self.free_pages, self.arriving), "throttle": (self.throttle, self.draining),
            "stable": (self.begun, self.sent),
        }  # fmt: skip
        return {
            **{use.name.lower(): zone.count[use] for use in Use}, "pages": zone.pages, "least_free": self.least_free,
            "min": zone.marks.min, "low": zone.marks.low, "high": zone.marks.high,
            "dirty_limit": limits.limit, "dirty_background": limits.background, "most_dirty": self.most_dirty,
            "dirtied": self.cache.dirtied, "written": self.cache.written, "evicted": self.cache.evicted,
            "kswapd_pages": self.kswapd_pages, "direct_reclaims": self.direct_reclaims, "failed": self.failed,
            "pauses": self.pauses, "pause_ns": self.pause_ns,
            **{f"{name}_waits": sum(queue.waits for queue in queues) for name, queues in waits.items()},
            **{f"{name}_longest_ns": max(queue.longest_ns for queue in queues) for name, queues in waits.items()},
        }  # fmt: skip
