"""Attacks that once succeeded: each ended the kernel, lost a request, or left something behind."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import pytest
import trio

import uxk
from uxk.kernel import dispatcher
from uxk.testing import crash, residue, usage

R = uxk.Rights


class Slow(uxk.Extension):
    """Answers after a while."""

    manifest = uxk.Manifest(name="slow", fate="reissue")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.call_later_ns(1000, ctx.complete, request)


def bugs(kernel: uxk.Kernel) -> list[str]:
    return [record.text for record in kernel.kmsg.records() if "bug" in record.fields]


@pytest.mark.parametrize("claimed", [10**5000, -(10**5000), 0, 1 << 70], ids=["huge", "negative", "none", "large"])
async def test_an_absurd_number_of_entries_is_refused_and_counted(claimed: int) -> None:
    class Liar(uxk.Extension):
        manifest = uxk.Manifest(name="liar", watchdog=uxk.Watchdog(request_timeout_ns=1000))

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            ctx.write_raw(b"x", claimed)
            ctx.write_raw(b"x", claimed, up=True)

    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(Liar)
        assert (await module.submit(check=False)).status == errno.ETIMEDOUT
        assert {"cq_full", "sq_full"} <= set(module.account.rejects)
        assert "cq_full" in kernel.sysfs.read("/sys/module/liar/statistics/rejects") and not bugs(kernel)


async def test_memory_lent_to_a_dead_driver_does_not_keep_it_from_coming_back() -> None:
    class Big(Slow):
        manifest = uxk.Manifest(name="big", fate="reissue", budget=uxk.Budget(queue_depth=2048))

    class Lender(uxk.Extension):
        manifest = uxk.Manifest(
            name="lender", kind="ml-agent", capabilities=("device:big0:submit",), budget=uxk.Budget(queue_depth=2048)
        )
        answers: list[uxk.Completion] = []  # noqa: RUF012

        async def run(self, ctx: uxk.Context) -> None:
            device = (await ctx.open_device("big0")).result
            memory = (await ctx.allocate(4096)).result
            await ctx.sleep_ns(1000)
            crash(kernel, "big")
            for _ in range(1100):
                ctx.submit(device, region=memory).then(self.answers.append)

    async with uxk.Kernel() as kernel:
        await kernel.insmod(Big)
        await kernel.insmod(Lender)
        await kernel.run()
        assert kernel.module("big").state.name == "LIVE" and len(Lender.answers) == 1100
        assert {answer.status for answer in Lender.answers} == {0, errno.EMFILE} and not bugs(kernel)


def test_arena_capabilities_come_from_allocate_alone() -> None:
    class Greedy(uxk.Extension):
        manifest = uxk.Manifest(name="greedy", capabilities=("arena:*:read,grant",))

    async def main() -> None:
        async with uxk.Kernel() as kernel:
            with pytest.raises(uxk.ModuleError, match="unknown kind 'arena'"):
                await kernel.insmod(Greedy)

    trio.run(main)


async def test_one_that_is_ended_while_its_output_is_collected_is_passed_over() -> None:
    class Server(uxk.Extension):
        manifest = uxk.Manifest(name="server")

        async def run(self, ctx: uxk.Context) -> None:
            async for requests in ctx.batches():
                ctx.complete_batch(requests)

    async with uxk.Kernel() as kernel:
        one = await kernel.insmod(Server, instance="one")
        two = await kernel.insmod(Server, instance="two")
        port = one.open_port(lambda completions: crash(kernel, "two"))
        port.submit(uxk.Request(0))
        two.open_port(lambda completions: None).submit(uxk.Request(0))
        await kernel.run()
        assert two.account.faults == 1 and two.state.name == "LIVE"


async def test_a_task_that_never_rests_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "_SETTLE_NS", 10_000_000)

    class Spinner(uxk.Extension):
        manifest = uxk.Manifest(name="spinner", kind="ml-agent")

        async def run(self, ctx: uxk.Context) -> None:
            while True:
                await trio.lowlevel.checkpoint()

    async with uxk.Kernel() as kernel:
        await kernel.insmod(Spinner)
        with pytest.raises(uxk.Stalled, match="always runnable"):
            await kernel.sleep_ns(1000)


async def test_revoking_something_else_leaves_requests_alone_and_revoking_the_device_answers_them() -> None:
    class Client(uxk.Extension):
        manifest = uxk.Manifest(
            name="client", kind="ml-agent", binds=(uxk.Bind({"name": "slow0"}),),
            capabilities=("lock:x:lock", "device:slow0:submit"),
        )  # fmt: skip
        seen: dict[str, int] = {}  # noqa: RUF012

        def note(self, what: str) -> Any:
            return lambda completion: self.seen.__setitem__(what, completion.status)

        def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
            ctx.submit(event.cap).then(self.note("bound"))
            ctx.open("lock", "x", R.LOCK).then(lambda opened: ctx.revoke(opened.result))

    async with uxk.Kernel() as kernel:
        await kernel.insmod(Slow)
        await kernel.insmod(Client)
        await kernel.run()
        assert Client.seen == {"bound": 0} and kernel.machine.outstanding == 0

    class Fickle(uxk.Extension):
        manifest = uxk.Manifest(name="fickle", kind="ml-agent", capabilities=("device:slow0:submit",))
        seen: list[int] = []  # noqa: RUF012

        async def run(self, ctx: uxk.Context) -> None:
            device = (await ctx.open_device("slow0")).result
            ctx.submit(device).then(lambda completion: self.seen.append(completion.status))
            await ctx.sleep_ns(10)
            ctx.revoke(device)

    async with uxk.Kernel() as kernel:
        await kernel.insmod(Slow)
        await kernel.insmod(Fickle)
        await kernel.run()
        assert Fickle.seen == [errno.ECANCELED] and kernel.machine.outstanding == 0
        await kernel.rmmod("slow")  # nobody holds it any more


async def test_last_words_of_a_permanent_run_are_heard() -> None:
    class Once(uxk.Extension):
        manifest = uxk.Manifest(name="once", restart=uxk.RestartPolicy(mode="permanent"))

        async def run(self, ctx: uxk.Context) -> None:
            async for requests in ctx.batches():
                ctx.complete_batch(requests, [b"done"] * len(requests))
                return

    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(Once)
        assert (await module.submit()).payload == b"done"


async def test_the_dead_are_not_heard() -> None:
    class Talker(uxk.Extension):
        manifest = uxk.Manifest(name="talker", restart=uxk.RestartPolicy(mode="temporary"))

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            ctx.complete_batch(requests)
            ctx.allocate(4096)
            ctx.add_device("late")
            ctx.add_chardev("latec")

    async with uxk.Kernel() as kernel:
        before = usage(kernel)
        module = await kernel.insmod(Talker)
        module.open_port(lambda completions: crash(kernel, "talker")).submit(uxk.Request(0))
        await kernel.run()
        assert kernel.lsmod() == [] and residue(kernel, before) == {}


async def test_what_was_derived_ends_with_the_grantors_revocation() -> None:
    """kmsg is followed no more, a lock is neither waited for nor kept."""
    heard: list[str] = []
    answers: dict[str, int] = {}

    class Lord(uxk.Extension):
        manifest = uxk.Manifest(
            name="lord", kind="ml-agent", capabilities=("kmsg:read,grant", "lock:x:lock,grant"),
        )  # fmt: skip

        async def run(self, ctx: uxk.Context) -> None:
            log = (await ctx.open("kmsg", "*", R.READ | R.GRANT)).result
            lock = (await ctx.open("lock", "x", R.LOCK | R.GRANT)).result
            token = (await ctx.acquire(lock)).result
            caps = [(await ctx.derive(log, "serf", R.READ)).result, (await ctx.derive(lock, "serf", R.LOCK)).result]
            await ctx.sleep_ns(1000)
            ctx.log("before the revocation")
            await ctx.sleep_ns(1000)
            for cap in caps:
                await ctx.revoke(cap)
            await ctx.release(lock, token)
            answers["lord"] = (await ctx.acquire(lock)).status

    class Serf(uxk.Extension):
        manifest = uxk.Manifest(name="serf", kind="ml-agent")
        given = 0

        def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
            if event.topic == "kmsg":
                heard.append(event.value.decode())
            elif self.given == 0:
                self.given = 1
                ctx.follow_kmsg()
            else:
                ctx.acquire(event.cap).then(lambda completion: answers.__setitem__("serf", completion.status))

    async with uxk.Kernel() as kernel:
        await kernel.insmod(Serf)
        await kernel.insmod(Lord)
        await kernel.run()
        kernel.machine.log("info", "kernel", "after the revocation")
        await kernel.run()
        assert answers == {"serf": errno.ESTALE, "lord": 0}
        assert any("before the revocation" in text for text in heard)
        assert not any("after the revocation" in text for text in heard)


async def test_the_watchdog_does_not_blame_one_whom_the_kernel_holds_back() -> None:
    class Poor(uxk.Extension):
        manifest = uxk.Manifest(
            name="poor", budget=uxk.Budget(cpu_ppm=1000), watchdog=uxk.Watchdog(heartbeat_ns=20_000_000)
        )

    class Pest(uxk.Extension):
        manifest = uxk.Manifest(name="pest", kind="ml-agent", capabilities=("lock:x:lock,grant",))

        async def run(self, ctx: uxk.Context) -> None:
            lock = (await ctx.open("lock", "x", R.LOCK | R.GRANT)).result
            for _ in range(200):
                part = await ctx.derive(lock, "poor", R.LOCK)
                await ctx.revoke(part.result)
                await ctx.sleep_ns(1000)

    async with uxk.Kernel() as kernel:
        poor = await kernel.insmod(Poor)
        await kernel.insmod(Pest)
        await kernel.run_until_ns(1_000_000_000)
        assert poor.account.throttled and poor.account.faults == 0
