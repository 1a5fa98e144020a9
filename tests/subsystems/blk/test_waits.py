"""Who waits for a slot behind a disk's queue is in the wait-for graph, and a deadlock of such waits is found."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import trio

import uxk
from uxk.kernel.kernel import Kernel
from uxk.subsystems.blk.layer import BlockLayer
from uxk.uapi.blk import IoFlag
from uxk.uapi.entries import Completion, Op, Request

MS = 1_000_000


def crossed(name: str, other: str) -> type[uxk.Extension]:
    """A driver with two slots that asks the other's disk for whatever it is asked."""

    class Crossed(uxk.Extension):
        manifest = uxk.Manifest(
            name=name, driver_class="block", capabilities=("device:*:submit",), budget=uxk.Budget(queue_depth=2),
            watchdog=uxk.Watchdog(request_timeout_ns=1000 * MS),
        )  # fmt: skip

        def setup(self, ctx: uxk.Context) -> None:
            self.disk = 0
            ctx.add_device(ctx.device, capacity_bytes=str(1 << 20), max_transfer_bytes="4096")
            ctx.call_later_ns(5, lambda _: ctx.open_device(other).then(self.opened))

        def opened(self, answer: Completion) -> None:
            self.disk = answer.result

        def on_batch(self, ctx: uxk.Context, requests: Any) -> None:
            for request in requests:
                asked = ctx.submit(self.disk, Op.READ, offset=request.offset, length=512)
                asked.then(lambda c, r=request: ctx.complete(r, c.payload, status=c.status, result=c.result))

    return Crossed


@pytest.mark.parametrize("layer", [False, True])
async def test_two_drivers_that_wait_for_each_others_slots_are_a_deadlock(layer: bool) -> None:
    async with Kernel(seed=1) as kernel:
        if layer:
            BlockLayer(kernel)
        await kernel.insmod(crossed("one", "two0"))
        await kernel.insmod(crossed("two", "one0"))
        await kernel.sleep_ns(100)
        answers: list[Completion] = []
        ports = [kernel.open_port(name, answers.extend) for name in ("one0", "two0")]
        for n in range(2):
            for port in ports:
                port.submit(Request(0, Op.READ, b"", n * 8192, 512))
        await kernel.sleep_ns(MS)
        edges = [str(edge) for edge in kernel.machine.waits.edges()]
        assert len(edges) == 2 and all("waits for queue slot of" in edge for edge in edges)
        log = [record.text for record in kernel.kmsg.records()]
        assert sum(text.startswith("deadlock: a cycle of 2 waits") for text in log) == 1
        assert kernel.machine.waits.statistics().cycles == 1
        await kernel.sleep_ns(5000 * MS)
        assert len(answers) == 4, "deadlines end it"
        assert not kernel.machine.waits.edges()


class Asker(uxk.Extension):
    """Asks the disk for what the test wants."""

    manifest = uxk.Manifest(
        name="asker", kind="ml-agent", capabilities=("device:*:submit",), budget=uxk.Budget(queue_depth=64),
    )  # fmt: skip
    ctx: ClassVar[Any]
    queue: ClassVar[Any]
    answers: ClassVar[list[Completion]]

    def setup(self, ctx: uxk.Context) -> None:
        Asker.ctx, Asker.answers = ctx, []
        ctx.open_device("blkram0").then(self.opened)

    def opened(self, answer: Completion) -> None:
        Asker.queue = Asker.ctx.queue(answer.result, Asker.answers.extend)

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


async def asker(it: Any) -> Any:
    await it.kernel.insmod(Asker)
    await it.kernel.sleep_ns(10)
    return Asker.queue


def edges(it: Any) -> list[str]:
    return [f"{edge.waiter} {edge.resource}" for edge in it.kernel.machine.waits.edges()]


WAITS = ["instance asker queue slot of blkram0"]


@pytest.mark.parametrize("scheduler", ["none", "mq-deadline"])
async def test_one_wait_for_all_that_have_no_slot(lab: Any, scheduler: str) -> None:
    async with lab(depth=4) as it:
        it.set("scheduler", scheduler)
        queue = await asker(it)
        it.medium.latency_ns = 1000
        for n in range(4):
            queue.submit(Op.READ, n * 8192, 512)
        await it.kernel.sleep_ns(10)
        assert edges(it) == []
        for n in range(20):
            queue.submit(Op.READ, n * 8192, 512)
        await it.kernel.sleep_ns(10)
        assert edges(it) == WAITS
        await it.kernel.sleep_ns(4000)
        assert edges(it) == WAITS
        await it.run()
        assert len(Asker.answers) == 24
        assert edges(it) == []
        it.check_empty()


async def test_the_waits_of_others_are_their_own(lab: Any) -> None:
    async with lab(depth=4) as it:
        queue = await asker(it)
        it.set("scheduler", "mq-deadline")
        it.medium.latency_ns = 1000
        it.client().submit(*[Request(0, Op.WRITE, b"w" * 512, n * 8192, 512) for n in range(7)])
        await it.kernel.sleep_ns(10)
        assert edges(it) == []
        it.medium.latency_ns = 0
        await it.kernel.sleep_ns(1000)
        queue.submit(Op.READ, 0, 512)
        await it.kernel.sleep_ns(0)
        assert edges(it) == [], "nothing waits when it comes"
        await it.run()
        it.check_empty()


async def test_what_waits_for_a_flush_waits_for_no_slot(lab: Any) -> None:
    async with lab(depth=4) as it:
        queue = await asker(it)
        it.medium.latency_ns = 1000
        for n in range(3):
            queue.submit(Op.WRITE, n * 8192, 512, b"x" * 512, flags=int(IoFlag.FUA | IoFlag.PREFLUSH))
        await it.kernel.sleep_ns(10)
        assert it.disk.flush.waiting
        assert edges(it) == []
        await it.run()
        it.check_empty()


@pytest.mark.parametrize("short_way", [True, False])
async def test_a_driver_that_others_have_filled_lets_the_disk_wait(lab: Any, short_way: bool) -> None:
    async with lab(depth=4) as it:
        queue = await asker(it)
        it.set("nomerges", 2)
        if not short_way:
            it.set("scheduler", "mq-deadline")
        it.medium.latency_ns = 1000
        beside = it.disk.device.agent.open_port("", lambda done: None)
        beside.submit_batch([Request(0, Op.READ, b"", 0, 512) for _ in range(4)])
        queue.submit(Op.READ, 0, 512)
        await it.kernel.sleep_ns(0)
        assert edges(it) == WAITS
        assert len(it.disk.device.agent.requests.backlog) == 1
        await it.run()
        assert edges(it) == []
        it.check_empty()


async def test_who_takes_leave_waits_no_more(lab: Any) -> None:
    for leave in ("revoke", "rmmod", "remove"):
        async with lab(depth=4) as it:
            queue = await asker(it)
            it.medium.latency_ns = 1000
            for n in range(20):
                queue.submit(Op.READ, n * 8192, 512)
            await it.kernel.sleep_ns(10)
            assert edges(it) == WAITS
            match leave:
                case "revoke":
                    Asker.ctx.revoke(queue.cap)
                    await it.kernel.sleep_ns(0)
                case "rmmod":
                    await it.kernel.rmmod("asker")
                case _:
                    it.kernel.devices.remove(it.disk.device)
                    await it.kernel.sleep_ns(2000)
            assert edges(it) == []
            await it.run()
            it.check_empty()


async def test_the_wait_is_told_again_when_the_driver_has_come_back(lab: Any) -> None:
    restart = uxk.RestartPolicy(mode="permanent", backoff_ns=100, max_restarts=9)
    async with lab(depth=4, manifest={"fate": "requeue", "restart": restart}) as it:
        queue = await asker(it)
        it.medium.swallow = lambda request: True
        for n in range(20):
            queue.submit(Op.READ, n * 8192, 512)
        await it.kernel.sleep_ns(10)
        it.crash()
        assert edges(it) == []
        await it.kernel.sleep_ns(1000)
        queue.submit(Op.READ, 0, 512)
        await it.kernel.sleep_ns(10)
        assert edges(it) == WAITS
        it.medium.swallow = lambda request: False
        it.crash()
        await it.run()
        assert len(Asker.answers) == 21
        assert edges(it) == []
        it.check_empty()
