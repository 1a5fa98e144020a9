"""A volume with threads: writers wait for the cleaner, the cleaner for nobody; and memory below an extension."""

from __future__ import annotations

import pytest

import uxk
from uxk.core.waitfor import Node
from uxk.subsystems.kthread import Delay, Kthread
from uxk.subsystems.lfs import policies
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.threads import ThreadedVolume
from uxk.subsystems.lfs.timed.config import Choice
from uxk.subsystems.lfs.timed.device import DeviceSpec, FlashDevice
from uxk.subsystems.lfs.timed.volume import StepVolume
from uxk.subsystems.mm.memory import Memory
from uxk.subsystems.mm.mempool import Mempool
from uxk.subsystems.mm.params import MmParams
from uxk.subsystems.mm.userspace import PagedHost, Process
from uxk.subsystems.mm.zone import Use

PAGES = 1_024


def make_volume(bench, choose=lambda _: None, on_clean=lambda: None):
    geometry = Geometry(pages=PAGES, segment_blocks=32, gp_ppm=100_000, logs=2, segments=PAGES // 32 + 12)
    volume = StepVolume(geometry, policies.lookup("sepgc/greedy"))
    volume.run(range(PAGES))
    volume.run([page * 7 % PAGES for page in range(PAGES)])
    pool = Mempool(bench.machine, bench.memory.zone, "cleaner", 32)
    return ThreadedVolume(
        bench.machine, "lfs0", volume, FlashDevice(bench.machine, DeviceSpec()), (0,), (3, 6), pages=pool,
        choose=choose, on_clean=on_clean,
    )  # fmt: skip


def writer(volume, count):
    def flow(thread):
        for number in range(count):
            yield from volume.wait_for_room(thread)
            volume.put(0, number * 13 % PAGES)

    return flow


def test_writers_wait_for_the_cleaner_and_always_get_on(make_bench):
    bench = make_bench()
    seen = []
    volume = make_volume(bench, on_clean=lambda: seen.append(len(volume.volume.clean)))
    thread = bench.spawn(writer(volume, 3_000), "writer")
    bench.run(100_000)
    assert "task writer -> kernel cleaner of lfs0: a clean segment of lfs0" in bench.edges()
    bench.run(10**10)
    assert thread.over
    assert min(seen) > 0
    assert volume.results()["user_blocks"] == 3_000
    volume.volume.check()


@pytest.mark.parametrize("segment", [-1, 10**6, 0, 5])
def test_a_recommended_victim_is_checked_again(make_bench, segment):
    bench = make_bench()
    volume = make_volume(bench, choose=lambda _: Choice(segment))
    thread = bench.spawn(writer(volume, 2_000))
    bench.run(10**10)
    assert thread.over
    results = volume.results()
    assert results["hinted"] + sum(results["rejects"].values()) == results["decisions"] > 0
    assert set(results["rejects"]) <= {"range", "not exhausted", "too full"}
    volume.volume.check()


class Thinker(uxk.MLAgent):
    """Hears of every event, and answers nothing."""

    manifest = uxk.Manifest(name="thinker", version="1", license="Apache-2.0", kind="ml-agent")

    def on_event(self, ctx, event):
        super().on_event(ctx, event)
        ctx.log(f"heard {event.topic}")


async def test_an_agent_hears_nothing_until_it_has_its_pages():
    async with uxk.Kernel() as kernel:
        await kernel.insmod(Thinker)
        machine, agent = kernel.machine, kernel.agents["thinker"]
        memory = Memory(machine, MmParams(pages=512), Node("kernel", "flusher"))
        process = Process(memory, agent, anon_pages=100, file=1, file_pages=4, stores=2)
        agent.host = PagedHost(agent, agent.host, process)
        rest = memory.zone.free - memory.zone.marks.min - 50
        hog = Kthread(machine, Node("task", "hog"))
        hog.start(memory.alloc(hog, Use.ANON, rest))
        await kernel.sleep_ns(1_000)
        agent.event("model_gone", "x")
        await kernel.sleep_ns(1_000)
        assert not heard(kernel)
        assert [str(edge.waiter) for edge in machine.waits.edges()] == ["instance thinker"]
        memory.free_anon(rest)
        await kernel.sleep_ns(1_000)
        assert heard(kernel) == ["heard model_gone"]
        assert not machine.waits.edges()
        assert process.held == 0
        assert memory.zone.dirty == 2
        assert (process.turns, process.blocked) == (1, 1)


async def test_a_dead_agent_gives_its_pages_back_wherever_it_stood():
    async with uxk.Kernel() as kernel:
        await kernel.insmod(Thinker)
        machine, agent = kernel.machine, kernel.agents["thinker"]
        memory = Memory(machine, MmParams(pages=512), Node("kernel", "flusher"))
        process = Process(memory, agent, anon_pages=1_000, file=1, file_pages=4, stores=0)
        agent.host = PagedHost(agent, agent.host, process)
        agent.event("model_gone", "x")
        await kernel.sleep_ns(1_000)
        assert process.held > 0
        await kernel.rmmod("thinker")
        assert process.held == 0
        assert memory.zone.free == 512
        assert not machine.waits.edges()
        assert not heard(kernel)


def heard(kernel):
    return [record.text for record in kernel.kmsg.records() if record.text.startswith("heard")]


def test_a_delay_is_no_wait(make_bench):
    bench = make_bench()

    def flow(thread):
        yield Delay(bench.machine, 100)

    thread = bench.spawn(flow)
    bench.run(50)
    assert bench.edges() == []
    bench.run(50)
    assert thread.over
