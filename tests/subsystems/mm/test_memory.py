"""Allocation, reclaim, dirtying and writeback together: nothing is lost, nothing sleeps for ever, edges are true."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.subsystems.mm.conftest import WRITE_NS, Bench
from uxk.errors import KernelBug
from uxk.limits import NS_PER_S
from uxk.subsystems.mm.zone import Use

FILL_NS = 50 * NS_PER_S


def store(bench, pages, file=0, start=0):
    def flow(thread):
        for index in range(start, start + pages):
            yield from bench.memory.store(thread, file, index)

    return flow


def anon(bench, pages):
    return lambda thread: bench.memory.alloc(thread, Use.ANON, pages)


def test_a_store_makes_a_page_dirty_once(make_bench):
    bench = make_bench()
    bench.spawn(store(bench, 5))
    bench.spawn(store(bench, 5))
    bench.run()
    assert bench.memory.zone.count[Use.DIRTY] == 5
    assert bench.memory.cache.dirtied == 5
    bench.check()


def test_kswapd_works_from_low_to_high(make_bench):
    bench = make_bench(pages=2048, dirty_ratio=100, dirty_background_ratio=0)
    memory, marks = bench.memory, bench.memory.zone.marks
    bench.spawn(store(bench, 800))
    bench.run(FILL_NS)
    assert memory.zone.count[Use.CLEAN] == 800
    bench.spawn(anon(bench, memory.zone.free - marks.low))
    bench.run(NS_PER_S)
    assert memory.zone.free == marks.low
    bench.spawn(anon(bench, 1))
    bench.run(NS_PER_S)
    assert memory.zone.free >= marks.high
    assert memory.direct_reclaims == 0
    bench.check()


def test_at_min_who_allocates_reclaims_and_waits_for_writeback(make_bench):
    bench = make_bench(dirty_ratio=100, dirty_background_ratio=99)
    memory, marks = bench.memory, bench.memory.zone.marks
    bench.store.blocks = 0  # nothing can be written
    bench.spawn(store(bench, 100))
    bench.run()
    thread = bench.spawn(anon(bench, memory.zone.free - marks.min + 50), "hog")
    bench.run(NS_PER_S)
    assert not thread.over
    assert memory.zone.free == marks.min
    assert "task hog -> kernel flusher: free memory, in direct reclaim" in bench.edges()
    assert "kernel flusher -> kernel cleaner: a block" in bench.edges()
    bench.store.give(1 << 30)
    bench.run(NS_PER_S)
    assert thread.over
    assert bench.edges() == []
    bench.check()


def test_who_waits_for_pages_under_way_waits_for_the_device(make_bench):
    """Those arrive by themselves: an edge to the flusher would be a dependence that is none."""
    bench = make_bench(dirty_ratio=100, dirty_background_ratio=99)
    memory = bench.memory
    bench.spawn(store(bench, 64))
    bench.run()
    bench.spawn(anon(bench, memory.zone.free - memory.zone.marks.min + 10), "hog")
    bench.run(WRITE_NS)
    assert memory.in_flight > 0
    assert bench.edges() == ["task hog -> resource device of the volume: free memory, in direct reclaim"]


def test_below_the_limit_a_pause_is_no_wait_and_at_the_limit_it_is(make_bench):
    bench = make_bench(pages=2048, dirty_ratio=20, dirty_background_ratio=10)
    bench.store.blocks = 0
    bench.spawn(store(bench, 2_000), "writer")
    bench.run(NS_PER_S // 1_000)
    memory = bench.memory
    assert memory.limits.freerun < memory.zone.dirty < memory.limits.limit
    assert memory.pauses > 0
    assert bench.edges() == ["kernel flusher -> kernel cleaner: a block"]
    bench.run(60 * NS_PER_S)
    assert memory.zone.dirty >= memory.limits.limit
    assert "task writer -> kernel flusher: dirty pages below the limit, in balance_dirty_pages" in bench.edges()
    bench.store.give(1 << 30)
    bench.run(10 * NS_PER_S)
    assert not any("writer" in edge for edge in bench.edges())
    assert memory.cache.dirtied == 2_000
    bench.check()


def test_a_folio_under_writeback_is_stable(make_bench):
    bench = make_bench(dirty_ratio=100, dirty_background_ratio=0)
    bench.store.blocks = 0
    bench.spawn(store(bench, 1))
    bench.run()
    bench.flusher.flush(True)
    bench.run()
    bench.spawn(store(bench, 1), "again")
    bench.run()
    assert "task again -> kernel flusher: a folio under writeback, in folio_wait_stable" in bench.edges()
    bench.store.give(1)
    bench.run()
    assert not any("again -> kernel flusher" in edge for edge in bench.edges())  # it is sent: the device has it
    bench.run(NS_PER_S)
    assert bench.memory.cache.dirtied == 2
    bench.check()


def test_without_page_cache_nothing_can_be_reclaimed_and_the_log_says_so(make_bench):
    bench = make_bench()
    thread = bench.spawn(anon(bench, 600))
    bench.run()
    assert not thread.over
    assert bench.memory.failed == 1
    assert any("out of memory" in record.text for record in bench.machine.kmsg.records())


def test_a_folio_cannot_be_what_it_is_not(make_bench):
    cache = make_bench().memory.cache
    with pytest.raises(KernelBug, match="is CLEAN, expected DIRTY"):
        cache.begin_writeback(cache.insert(0, 0))


class Mm(RuleBasedStateMachine):
    """Tasks store, allocate, give back and are killed; the volume has room, or has none."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(pages=512, dirty_ratio=30, dirty_background_ratio=10)
        self.held = 0
        self.tasks = []

    @rule(pages=st.integers(1, 120), start=st.integers(0, 300), file=st.integers(0, 2))
    def store(self, pages, start, file):
        self.tasks.append(self.bench.spawn(store(self.bench, pages, file, start)))

    @precondition(lambda self: self.held < 200)
    @rule(pages=st.integers(1, 60))
    def alloc(self, pages):
        self.held += pages

        def flow(thread):
            left = pages
            while left:
                left -= yield from self.bench.memory.alloc_some(thread, Use.ANON, left)

        self.tasks.append(self.bench.spawn(flow))

    @rule()
    def free(self):
        count = self.bench.memory.zone.count[Use.ANON]
        self.bench.memory.free_anon(count)
        self.held -= count

    @rule(blocks=st.integers(0, 40))
    def room(self, blocks):
        self.bench.store.give(blocks)

    @rule(ns=st.integers(0, NS_PER_S))
    def time(self, ns):
        self.bench.run(ns)

    @invariant()
    def counts_add_up(self):
        self.bench.check()

    @invariant()
    def no_cycle_without_one(self):
        assert self.bench.machine.waits.statistics().cycles == 0

    def teardown(self):
        """Writeback makes progress again: everybody comes to an end."""
        self.bench.store.give(1 << 40)
        for _ in range(20):
            self.bench.run(5 * NS_PER_S)
            self.free()
        assert all(task.over for task in self.tasks)
        assert self.bench.edges() == []
        assert self.held == 0
        self.bench.check()


TestMm = Mm.TestCase
TestMm.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
