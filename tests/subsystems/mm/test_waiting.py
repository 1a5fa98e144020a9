"""Threads and wait queues: an edge stands in the graph exactly while the thread could not go on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import uxk
from uxk.core.waitfor import Node
from uxk.errors import KernelBug, ParamError
from uxk.subsystems.kthread import Delay, Kthread, WaitQueue
from uxk.subsystems.mm.mempool import Mempool
from uxk.subsystems.mm.zone import Use, Zone

HOLDER = Node("kernel", "holder")


@pytest.fixture
def bench(make_bench):
    return make_bench()


def wait(queue, state, log):
    def flow(thread):
        yield from queue.wait_until(thread, lambda: state["open"])
        log.append(thread.node.name)

    return flow


def test_an_edge_goes_when_the_condition_comes_to_hold_not_when_the_thread_runs(bench):
    queue, state, log = WaitQueue(bench.machine, "a gate", HOLDER), {"open": False}, []
    bench.spawn(wait(queue, state, log), "one")
    bench.spawn(wait(queue, state, log), "two")
    bench.run()
    assert bench.edges() == ["task one -> kernel holder: a gate", "task two -> kernel holder: a gate"]
    queue.wake_all()  # nothing has changed
    bench.run()
    assert queue.waiting == 2
    state["open"] = True
    queue.wake_all()
    assert bench.edges() == []
    assert log == []
    bench.run()
    assert log == ["one", "two"]


def test_a_condition_that_holds_no_more_makes_the_edge_anew(bench):
    queue, state, log = WaitQueue(bench.machine, "a gate", HOLDER), {"open": False}, []
    bench.spawn(wait(queue, state, log), "one")
    bench.run()
    state["open"] = True
    queue.wake_all()
    state["open"] = False  # somebody was faster
    bench.run()
    assert bench.edges() == ["task one -> kernel holder: a gate"]
    assert log == []
    assert queue.waits == 1


def test_polling_is_one_wait_and_its_edge_goes_early(bench):
    queue, state, looks = WaitQueue(bench.machine, "a gate", HOLDER), {"open": False}, []

    def ready():
        looks.append(bench.machine.now_ns)
        return state["open"]

    thread = bench.spawn(lambda thread: queue.poll_until(thread, ready, lambda: 100))
    bench.run(250)
    assert len(looks) >= 3
    assert len(bench.edges()) == 1
    assert queue.waits == 1
    state["open"] = True
    queue.wake_all()
    assert bench.edges() == []
    assert not thread.over
    bench.run(100)
    assert thread.over


def test_rest_is_no_wait_for_anybody(bench):
    queue = WaitQueue(bench.machine, "work")
    bench.spawn(lambda thread: queue.wait_until(thread, lambda: False))
    bench.run()
    assert bench.edges() == []
    assert queue.waiting == 1


def test_a_killed_thread_leaves_nothing_behind(bench):
    queue, state, log = WaitQueue(bench.machine, "a gate", HOLDER), {"open": False}, []
    thread = bench.spawn(wait(queue, state, log))
    bench.run()
    thread.kill()
    assert bench.edges() == []
    assert queue.waiting == 0
    state["open"] = True
    queue.wake_all()
    bench.run()
    assert log == []
    thread.start(wait(queue, state, log)(thread))
    bench.run()
    assert len(log) == 1


def test_a_delay_of_an_earlier_life_wakes_nobody(bench):
    thread, log = Kthread(bench.machine, Node("task", "one")), []

    def sleeper(ns):
        yield Delay(bench.machine, ns)
        log.append(bench.machine.now_ns)

    thread.start(sleeper(10))
    bench.run()
    thread.kill()
    thread.start(sleeper(100))
    with pytest.raises(KernelBug, match="busy"):
        thread.start(sleeper(1))
    bench.run(200)
    assert log == [100]


def test_a_decision_that_waits_for_an_extension_is_reported_at_once(bench):
    queue = WaitQueue(bench.machine, "an answer", Node("instance", "agent"), decision=True)
    thread = Kthread(bench.machine, Node("kernel", "cleaner"))
    thread.start(queue.wait_until(thread, lambda: False))
    bench.run()
    assert bench.machine.waits.statistics().blocking_decisions == 1


# --- memory pools ---


def test_a_pool_serves_from_its_reserve_when_memory_is_short(bench):
    zone = bench.memory.zone
    pool = Mempool(bench.machine, zone, "p", 4)
    zone.move(Use.FREE, Use.ANON, zone.free - zone.marks.min)
    done = [bench.spawn(lambda thread: pool.alloc(thread, 2)) for _ in range(3)]
    bench.run()
    assert [thread.over for thread in done] == [True, True, False]
    assert bench.edges() == ["task task 3 -> resource I/O of mempool p: a page of mempool p"]
    assert pool.free(2) == 0
    bench.run()
    assert done[2].over
    assert (pool.spare, pool.lent, pool.from_reserve) == (0, 4, 3)
    assert pool.free(4) == 0
    assert pool.spare == 4


def test_a_pool_prefers_free_memory_and_gives_it_back(bench):
    zone = bench.memory.zone
    pool = Mempool(bench.machine, zone, "p", 4)
    free = zone.free
    bench.spawn(lambda thread: pool.alloc(thread, 4))
    bench.run()
    assert (pool.spare, zone.free) == (4, free - 4)
    assert pool.free(4) == 4
    assert zone.free == free


def test_a_pool_refuses_what_it_could_never_serve(bench):
    pool = Mempool(bench.machine, bench.memory.zone, "p", 4)
    bench.spawn(lambda thread: pool.alloc(thread, 5))
    with pytest.raises(KernelBug, match="5 pages at once"):
        bench.run()
    with pytest.raises(KernelBug, match="come back"):
        pool.free(1)
    with pytest.raises(ParamError, match="mempool q: 500 pages"):
        Mempool(bench.machine, Zone(512), "q", 500)


def test_no_edge_is_drawn_by_hand():
    """In subsystems and scenarios, wait queues alone tell the graph of waits."""
    root = Path(uxk.__file__).parent
    calls = re.compile(r"machine\.wait\(|\.waits\.(add|remove)\(|WaitForGraph")
    files = [path for folder in ("subsystems", "scenario") for path in (root / folder).rglob("*.py")]
    assert len(files) > 50
    assert {path.name for path in files if calls.search(path.read_text())} == {"kthread.py"}
