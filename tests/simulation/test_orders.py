"""Who depends on the order of what happens at one instant is found: `explore` draws it, seed by seed.

Each mistake here is harmless in the order that a kernel keeps, and on every seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

import uxk
from uxk.scenario.model import ClosedLoop, Load, Scenario
from uxk.scenario.schedule import DrawnHeap
from uxk.testing.exploring.trial import Outcome, Trial, run_trial

US = 1000
SEEDS = range(12)


class Mistake(Exception):
    """Somebody was not where somebody else took him to be."""


class Producer:
    """Puts something there at a certain time."""

    there = False

    def put(self, _: object) -> None:
        self.there = True


class Consumer:
    """Takes it at the same time, since the producer was scheduled first: the mistake."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.failed = False

    def take(self, _: object) -> None:
        self.failed = not self.producer.there


async def events(kernel: uxk.Kernel) -> None:
    """Two timers of the kernel at one nanosecond."""
    producer = Producer()
    consumer = Consumer(producer)
    kernel.machine.heap.call_at(kernel.now_ns + 50 * US, producer.put)
    kernel.machine.heap.call_at(kernel.now_ns + 50 * US, consumer.take)
    await kernel.sleep_ns(60 * US)
    if consumer.failed:
        raise Mistake("took before anything was put")


class Speaker(uxk.Extension):
    """Publishes at a certain time; the second one reads then, since the first one has the lower number."""

    manifest = uxk.Manifest(name="speaker", capabilities=("snapshot:word:read,write",))

    async def run(self, ctx: uxk.Context) -> None:
        cap = (await ctx.open("snapshot", "word", uxk.Rights.READ | uxk.Rights.WRITE)).result
        await ctx.sleep_ns(50 * US - ctx.now_ns)
        await trio.lowlevel.checkpoint()
        if ctx.name == "speaker":
            await ctx.publish(cap, b"said")
        else:
            done = ctx.pin(cap)
            try:
                await done
            except uxk.RequestError:
                ctx.log("missed it")


async def spoken(kernel: uxk.Kernel) -> None:
    """Two instances whose tasks speak at the same instant."""
    await kernel.sleep_ns(80 * US)
    if any(record.text == "missed it" for record in kernel.kmsg.records()):
        raise Mistake("read before it was published")


class Sisters(uxk.Extension):
    """Two tasks that wake at the same instant: the second one counts on the first."""

    manifest = uxk.Manifest(name="sisters")

    async def run(self, ctx: uxk.Context) -> None:
        done: list[int] = []

        async def sister(number: int) -> None:
            await ctx.sleep_ns(50 * US)
            if number and not done:
                ctx.log("missed it")
            done.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(sister, number)


async def sisterly(kernel: uxk.Kernel) -> None:
    await kernel.sleep_ns(80 * US)
    if any(record.text == "missed it" for record in kernel.kmsg.records()):
        raise Mistake("the second was first")


def outcomes(schedule: Any, drive: Callable[..., Any], *modules: Load) -> list[Outcome]:
    null = Load(name="null", params={"latency_ns": "3us"})
    load = ClosedLoop(device="null0", depth=2, count=60)
    scenario = Scenario(name="orders", modules=(null, *modules), workloads=(load,), drive=drive)
    return [run_trial(scenario, Trial(seed, schedule=schedule)) for seed in SEEDS]


@pytest.mark.parametrize(
    ("drive", "modules"),
    [(events, ()), (spoken, (Load(name="speaker"), Load(name="speaker", instance="speaker_second")))],
)  # fmt: skip
def test_a_mistake_of_order_is_found_only_where_the_order_is_drawn(drive: Any, modules: tuple[Load, ...]) -> None:
    assert all(outcome.good for outcome in outcomes("fifo", drive, *modules))
    found = [outcome for outcome in outcomes("random", drive, *modules) if not outcome.good]
    assert 2 <= len(found) < len(SEEDS)
    assert all("Mistake" in str(outcome.broken) for outcome in found), found[0].broken


def test_the_order_of_tasks_is_another_with_each_seed() -> None:
    found = [outcome for outcome in outcomes("random", sisterly, Load(name="sisters")) if not outcome.good]
    assert 2 <= len(found) < len(SEEDS)


def test_a_drawn_order_repeats() -> None:
    first, second = (outcomes("random", events) for _ in range(2))
    assert [each.event_hash for each in first] == [each.event_hash for each in second]


class Owner:
    """Notes when it is called."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def call(self, what: object) -> None:
        self.log.append(f"{self.name}{what}")


def fired(seed: int) -> list[str]:
    heap, log = DrawnHeap(uxk.core.streams.RandomStreams(seed).stream("s")), list[str]()
    owners = [Owner(name, log) for name in "abc"]
    for number in range(3):
        for owner in owners:
            heap.call_at(100, owner.call, number)
    heap.call_at(50, owners[2].call, "early")
    dropped = heap.call_at(100, owners[0].call, "never")
    heap.cancel(dropped)

    def now(_: object) -> None:
        log.append("then")
        heap.call_at(100, lambda _: log.append("last"))

    heap.call_at_daemon(100, now)
    assert (len(heap), heap.lasting) == (11, 10)
    while (item := heap.pop_until(100)) is not None:
        item[2](item[3])
    assert (len(heap), heap.lasting) == (0, 0)
    return log


def test_drawn_events_keep_to_their_time_their_owners_order_and_the_present() -> None:
    logs = [fired(seed) for seed in range(20)]
    assert len({tuple(log) for log in logs}) > 5
    for log in logs:
        assert log[0] == "cearly" and "anever" not in log
        for name in "abc":
            assert [each for each in log if each[0] == name and each[1:].isdigit()] == [f"{name}{n}" for n in range(3)]
        assert log.index("last") == len(log) - 1
