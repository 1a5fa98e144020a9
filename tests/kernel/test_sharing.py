"""Locks with leases, and snapshots, among extensions (R9); deadlocks told when they close, and broken by time."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from typing import ClassVar

import pytest
import trio

import uxk
from uxk.uapi.manifest import Manifest

SEC = 1_000_000_000
CAPS = ("lock:*:lock", "snapshot:*:read,write,grant", "device:*:submit")


class Party(uxk.Extension):
    """One of several alike; the tests speak through ``Party.of[NAME]``."""

    manifest: ClassVar[Manifest] = uxk.Manifest(
        name="party", capabilities=CAPS, restart=uxk.RestartPolicy(mode="temporary")
    )
    of: ClassVar[dict[str, uxk.Context]] = {}

    def setup(self, ctx: uxk.Context) -> None:
        Party.of[ctx.name] = ctx

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        """Keeps them."""

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


async def ask(kernel: uxk.Kernel, reply: uxk.Reply) -> uxk.Completion:
    await kernel.sleep_ns(0)
    assert reply.completion is not None
    return reply.completion


async def parties(kernel: uxk.Kernel, *names: str) -> list[uxk.Context]:
    for name in names:
        await kernel.insmod(Party, instance=name)
    return [Party.of[name] for name in names]


async def lock(kernel: uxk.Kernel, ctx: uxk.Context, name: str = "map") -> int:
    return (await ask(kernel, ctx.open("lock", name, uxk.Rights.LOCK))).result


def report(kernel: uxk.Kernel, finding: str = "cycle") -> str:
    return "\n".join(record.text for record in kernel.kmsg.records() if record.fields.get("finding") == finding)


def crash(ctx: uxk.Context) -> None:
    def explode(_: object) -> None:
        raise ValueError("boom")

    ctx.call_later_ns(0, explode)


# --- locks ---


async def test_three_tasks_share_a_counter_under_a_lock() -> None:
    """Each reads, sleeps and writes inside the lock: without it updates would be lost."""
    shared = {"count": 0}
    inside: list[str] = []

    class Adder(uxk.Extension):
        manifest = uxk.Manifest(name="adder", capabilities=CAPS)

        async def run(self, ctx: uxk.Context) -> None:
            cap = (await ctx.open("lock", "count", uxk.Rights.LOCK)).result
            for _ in range(10):
                async with ctx.lock(cap):
                    inside.append(ctx.name)
                    seen = shared["count"]
                    await ctx.sleep_ns(7)
                    shared["count"] = seen + 1
                    assert len(inside) == 1
                    inside.clear()
                await ctx.sleep_ns(3)

    async with uxk.Kernel(seed=1) as kernel:
        modules = [await kernel.insmod(Adder, instance=name) for name in ("one", "two", "three")]
        await kernel.run()
        assert shared["count"] == 30
        assert [module.account.locks for module in modules] == [0, 0, 0]
        assert [module.account.faults for module in modules] == [0, 0, 0]
        assert len(kernel.machine.waits) == 0


async def test_readers_share_and_a_writer_waits_its_turn() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        one, two, three = await parties(kernel, "one", "two", "three")
        caps = [await lock(kernel, ctx) for ctx in (one, two, three)]
        first = await ask(kernel, one.acquire(caps[0], exclusive=False))
        second = await ask(kernel, two.acquire(caps[1], exclusive=False))
        third = three.acquire(caps[2])
        await kernel.sleep_ns(0)
        assert third.completion is None
        assert len(kernel.machine.waits) == 2
        await ask(kernel, one.release(caps[0], first.result))
        assert third.completion is None
        await ask(kernel, two.release(caps[1], second.result))
        await kernel.sleep_ns(0)
        assert third.completion is not None and third.completion.result > second.result
        assert len(kernel.machine.waits) == 0


async def test_an_overstayed_lease_is_evicted_logged_and_its_token_worthless() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        one, two = await parties(kernel, "one", "two")
        caps = [await lock(kernel, ctx) for ctx in (one, two)]
        first = await ask(kernel, one.acquire(caps[0], lease_ns=500))
        second = two.acquire(caps[1])
        await kernel.sleep_ns(499)
        assert second.completion is None
        await kernel.sleep_ns(1)
        assert second.completion is not None and second.completion.status == 0
        assert (kernel.module("one").account.locks, kernel.module("two").account.locks) == (0, 1)
        assert kernel.module("one").account.rejects == {"lease_expired": 1}
        evicted = [record for record in kernel.kmsg.records(source="one") if "lease" in record.text]
        assert [(record.time_ns, record.level, record.fields["lock"]) for record in evicted] == [(500, 4, "map")]
        assert (await ask(kernel, one.release(caps[0], first.result))).status == errno.ESTALE
        assert (await ask(kernel, two.release(caps[1], second.completion.result))).status == 0
        assert (await ask(kernel, two.release(caps[1], second.completion.result))).status == errno.ESTALE
        assert kernel.module("two").account.locks == 0


async def test_when_the_holder_dies_the_next_in_line_has_the_lock() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        one, two, three = await parties(kernel, "one", "two", "three")
        caps = [await lock(kernel, ctx) for ctx in (one, two, three)]
        await ask(kernel, one.acquire(caps[0]))
        second, third = two.acquire(caps[1]), three.acquire(caps[2])
        await kernel.sleep_ns(0)
        crash(one)
        await kernel.sleep_ns(0)
        assert second.completion is not None and third.completion is None
        crash(two)
        await kernel.sleep_ns(0)
        assert third.completion is not None and third.completion.status == 0
        assert kernel.machine.outstanding == 0


async def test_one_who_waits_may_die_without_harm_to_the_queue() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        one, two, three = await parties(kernel, "one", "two", "three")
        caps = [await lock(kernel, ctx) for ctx in (one, two, three)]
        held = await ask(kernel, one.acquire(caps[0]))
        two.acquire(caps[1])
        third = three.acquire(caps[2])
        await kernel.sleep_ns(0)
        await kernel.rmmod("two")
        await ask(kernel, one.release(caps[0], held.result))
        await kernel.sleep_ns(0)
        assert third.completion is not None and third.completion.status == 0


async def test_no_recursion_no_second_place_no_others_token() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        one, two = await parties(kernel, "one", "two")
        caps = [await lock(kernel, ctx) for ctx in (one, two)]
        token = (await ask(kernel, one.acquire(caps[0]))).result
        assert (await ask(kernel, one.acquire(caps[0]))).status == errno.EDEADLK
        waits = two.acquire(caps[1])
        assert (await ask(kernel, two.acquire(caps[1]))).status == errno.EALREADY
        assert waits.completion is None
        assert (await ask(kernel, two.release(caps[1], token))).status == errno.EPERM
        assert (await ask(kernel, one.release(caps[0], token + 99))).status == errno.EINVAL
        assert (await ask(kernel, one.acquire(caps[0], lease_ns=(1 << 63) - 1))).status != 0


# --- deadlocks ---


@pytest.mark.parametrize("count", [2, 3])
async def test_a_deadlock_is_reported_when_it_closes_and_broken_by_the_first_lease(count: int) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        names = ["alpha", "beta", "gamma"][:count]
        contexts = await parties(kernel, *names)
        caps = [[await lock(kernel, ctx, f"lock{n}") for n in range(count)] for ctx in contexts]
        tokens = [
            (await ask(kernel, ctx.acquire(caps[n][n], lease_ns=1000 + 100 * n))).result
            for n, ctx in enumerate(contexts)
        ]
        replies: list[uxk.Reply] = []
        for n, ctx in enumerate(contexts):
            await kernel.sleep_ns(10)
            assert report(kernel) == ""
            replies.append(ctx.acquire(caps[n][(n + 1) % count]))
            await kernel.sleep_ns(0)
        text = report(kernel)
        closed = {record.time_ns for record in kernel.kmsg.records() if record.fields.get("finding") == "cycle"}
        assert closed == {10 * count}
        for n, name in enumerate(names):
            assert name in text and f"lock{n}" in text
        assert all(reply.completion is None for reply in replies)
        await kernel.run_until_ns(1000)  # the first lease ends: its lock goes to whom it was withheld from
        last = replies[-1].completion
        assert last is not None and last.status == 0
        for n in reversed(range(1, count)):
            assert (await ask(kernel, contexts[n].release(caps[n][n], tokens[n]))).status == 0
            before = replies[n - 1].completion
            assert before is not None and before.status == 0
        assert len(kernel.machine.waits) == 0
        assert report(kernel) == text  # told once


async def test_a_deadlock_through_a_request_and_a_lock_is_seen_too() -> None:
    """One holds a lock and waits for the other's answer; the other wants the lock before it answers."""
    async with uxk.Kernel(seed=1) as kernel:
        one, two = await parties(kernel, "one", "two")
        caps = [await lock(kernel, ctx) for ctx in (one, two)]
        await ask(kernel, one.acquire(caps[0], lease_ns=SEC))
        device = (await ask(kernel, one.open_device("two"))).result
        two.acquire(caps[1])
        await kernel.sleep_ns(5)
        one.submit(device, wait=True)
        await kernel.sleep_ns(0)
        text = report(kernel)
        assert "one" in text and "two" in text and "map" in text
        assert {record.time_ns for record in kernel.kmsg.records() if "finding" in record.fields} == {5}


async def test_waiting_without_a_cycle_is_no_deadlock() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        one, two, three = await parties(kernel, "one", "two", "three")
        caps = [await lock(kernel, ctx) for ctx in (one, two, three)]
        await ask(kernel, one.acquire(caps[0]))
        two.acquire(caps[1])
        device = (await ask(kernel, three.open_device("two"))).result
        three.submit(device, wait=True)
        await kernel.run_until_ns(3 * SEC)
        assert report(kernel) == ""


# --- snapshots ---


async def test_an_optimistic_writer_learns_that_another_was_first() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        one, two = await parties(kernel, "one", "two")
        rights = uxk.Rights.READ | uxk.Rights.WRITE
        caps = [(await ask(kernel, ctx.open("snapshot", "map", rights))).result for ctx in (one, two)]
        assert (await ask(kernel, one.pin(caps[0]))).status == errno.ENOENT
        version = (await ask(kernel, one.publish(caps[0], b"1"))).result
        seen = await ask(kernel, two.pin(caps[1]))
        assert (seen.result, seen.payload) == (version, b"1")
        newer = (await ask(kernel, one.publish(caps[0], b"2", expected=version))).result
        assert (await ask(kernel, two.publish(caps[1], b"x", expected=version))).status == errno.ESTALE
        assert (await ask(kernel, two.publish(caps[1], b"3", expected=newer))).result == newer + 1


async def test_a_pinned_version_outlives_publishes_and_goes_with_its_reader() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        one, two = await parties(kernel, "one", "two")
        rights = uxk.Rights.READ | uxk.Rights.WRITE
        caps = [(await ask(kernel, ctx.open("snapshot", "map", rights))).result for ctx in (one, two)]
        version = (await ask(kernel, one.publish(caps[0], b"old"))).result
        await ask(kernel, two.pin(caps[1]))
        for n in range(5):
            await ask(kernel, one.publish(caps[0], b"%d" % n))
        cell = kernel.machine.snapshots.get("map")
        assert cell is not None and cell.versions() == [version, version + 5]
        assert (await ask(kernel, one.unpin(caps[0], version))).status == errno.EINVAL  # not its own
        assert kernel.module("two").account.pins == 1
        crash(two)
        await kernel.sleep_ns(0)
        assert cell.versions() == [version + 5]
        assert cell.readers() == []


async def test_reading_rights_do_not_publish() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        (one,) = await parties(kernel, "one")
        cap = (await ask(kernel, one.open("snapshot", "map", uxk.Rights.READ))).result
        assert (await ask(kernel, one.publish(cap, b"x"))).status == errno.EACCES
        assert (await ask(kernel, one.acquire(cap))).status == errno.EACCES


async def test_what_was_published_is_on_the_budget_and_goes_with_its_writer() -> None:
    class Writer(uxk.Extension):
        manifest = uxk.Manifest(
            name="writer", capabilities=("snapshot:map*:read,write",), budget=uxk.Budget(memory_bytes=4096)
        )
        ctx: uxk.Context

        async def run(self, ctx: uxk.Context) -> None:
            type(self).ctx = ctx
            await trio.sleep_forever()

    class Reader(uxk.Extension):
        manifest = uxk.Manifest(name="reader", capabilities=("snapshot:map*:read",))
        ctx: uxk.Context

        async def run(self, ctx: uxk.Context) -> None:
            type(self).ctx = ctx
            await trio.sleep_forever()

    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Writer)
        await kernel.insmod(Reader)
        await kernel.run()
        writer, reader = Writer.ctx, Reader.ctx
        caps = [(await ask(kernel, writer.open("snapshot", f"map{i}", uxk.Rights.WRITE))).result for i in range(2)]
        assert (await ask(kernel, writer.publish(caps[0], b"x" * 3000))).status == 0
        assert (await ask(kernel, writer.publish(caps[0], b"x" * 4000))).status == 0  # in place of the first
        assert (await ask(kernel, writer.publish(caps[1], b"x" * 97))).status == errno.EDQUOT
        assert module.account.snapshot_bytes == 4000
        cap = (await ask(kernel, reader.open("snapshot", "map0", uxk.Rights.READ))).result
        pinned = await ask(kernel, reader.pin(cap))
        await kernel.rmmod("writer")
        assert module.account.holdings() == {} and len(kernel.machine.snapshots) == 1  # somebody reads it still
        assert (await ask(kernel, reader.unpin(cap, pinned.result))).status == 0
        assert len(kernel.machine.snapshots) == 0


async def test_who_awaits_a_request_waits_for_its_driver_and_a_circle_is_told() -> None:
    class Peer(uxk.Extension):
        """Answers a request only when its own request to the other is answered."""

        manifest = uxk.Manifest(
            name="peer", capabilities=("device:peer_*:submit",), watchdog=uxk.Watchdog(request_timeout_ns=1000)
        )

        async def run(self, ctx: uxk.Context) -> None:
            async for requests in ctx.batches():
                other = "peer_b" if ctx.name == "peer_a" else "peer_a"
                cap = (await ctx.open_device(other)).result
                with contextlib.suppress(uxk.RequestError):
                    await ctx.submit(cap)
                for request in requests:
                    ctx.complete(request)

    async with uxk.Kernel(seed=1) as kernel:
        one = await kernel.insmod(Peer, instance="peer_a")
        await kernel.insmod(Peer, instance="peer_b")
        await one.submit(check=False)
        told = [record.text for record in kernel.kmsg.records() if record.fields.get("finding") == "cycle"]
        assert any("peer_a waits for request" in line for line in told), told
        assert any("peer_b waits for request" in line for line in told), told
        await kernel.run()
        assert kernel.machine.waits.edges() == []
