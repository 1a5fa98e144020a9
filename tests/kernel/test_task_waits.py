"""Waits of tasks: an instance goes on while one of them waits, so two locks taken crosswise are no deadlock as such."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

import uxk
from uxk.kernel.kernel import Kernel

US = 1000
CAPS = ("lock:*:lock", "device:*:submit")
Play = Callable[["Tasks", uxk.Context], Awaitable[None]]


class Tasks(uxk.Extension):
    """Two instances, each of which plays its part."""

    manifest = uxk.Manifest(name="tasks", capabilities=CAPS, restart=uxk.RestartPolicy(mode="temporary"))
    parts: dict[str, Play]

    async def run(self, ctx: uxk.Context) -> None:
        self.locks = [(await ctx.open("lock", name, uxk.Rights.LOCK)).result for name in ("one", "two")]
        await self.parts[ctx.name](self, ctx)

    async def hold(self, ctx: uxk.Context, lock: int, begin_ns: int, hold_ns: int) -> None:
        """Has a lock for some time."""
        await ctx.sleep_ns(begin_ns)
        async with ctx.lock(self.locks[lock], lease_ns=10**9):
            await ctx.sleep_ns(hold_ns)

    async def both(self, ctx: uxk.Context, first: int, begin_ns: int) -> None:
        """Takes one lock, and the other one 10 us later."""
        await ctx.sleep_ns(begin_ns)
        async with ctx.lock(self.locks[first], lease_ns=10**9):
            await self.hold(ctx, 1 - first, 10 * US, 0)


async def findings(kernel: Kernel) -> list[tuple[int, str]]:
    return [
        (record.time_ns, record.text)
        for record in kernel.kmsg.records()
        if record.fields.get("finding") == "cycle" and record.text.startswith(("#", "   unless"))
    ]


async def play(placement: str = "task", until_ns: int = 500 * US, **parts: Play) -> tuple[list[tuple[int, str]], str]:
    Tasks.parts = parts
    async with Kernel(seed=1) as kernel:
        for name in parts:
            await kernel.insmod(Tasks, instance=name, placement=placement)
        await kernel.run_until_ns(until_ns)
        return await findings(kernel), kernel.event_hash()


async def crosswise(self: Tasks, ctx: uxk.Context) -> None:
    """One task has a lock, another one wants the lock that the other instance's first task has."""
    mine = 0 if ctx.name == "alpha" else 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(self.hold, ctx, mine, 10 * US, 50 * US)
        nursery.start_soon(self.hold, ctx, 1 - mine, 20 * US, 10 * US)


async def embrace(self: Tasks, ctx: uxk.Context) -> None:
    """Between others that go on, a task of each takes both locks, in different order."""
    mine = 0 if ctx.name == "alpha" else 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ctx.sleep_ns, 400 * US)
        nursery.start_soon(self.both, ctx, mine, 10 * US + mine)


async def under_a_child(self: Tasks, ctx: uxk.Context) -> None:
    """The parent has one lock while its child asks for the other."""
    mine = 0 if ctx.name == "alpha" else 1
    async with ctx.lock(self.locks[mine], lease_ns=10**9), trio.open_nursery() as nursery:
        nursery.start_soon(self.hold, ctx, 1 - mine, 10 * US + mine, 0)


async def test_locks_taken_crosswise_by_many_tasks_are_no_cycle() -> None:
    assert (await play(alpha=crosswise, beta=crosswise))[0] == []


async def test_two_tasks_among_many_that_wait_for_each_other_are_one_when_it_closes() -> None:
    found, _ = await play(alpha=embrace, beta=embrace)
    assert [text.split(" since ")[0] for _, text in found] == [
        "#0 task 2 of instance beta waits for lock one", "#1 task 2 of instance alpha waits for lock two",
    ]  # fmt: skip
    assert {time_ns for time_ns, _ in found} == {20 * US + 1}


async def test_a_parent_keeps_its_lock_while_its_child_waits() -> None:
    found, _ = await play(alpha=under_a_child, beta=under_a_child)
    assert [text.split(" since ")[0] for _, text in found] == [
        "#0 task 2 of instance beta waits for lock one", "#1 task 2 of instance alpha waits for lock two",
    ]  # fmt: skip
    assert ", held by task 1 of instance alpha" in found[0][1]


async def test_an_answer_is_waited_for_from_an_instance_and_a_lock_from_a_task() -> None:
    """Alpha's task has the lock and awaits beta's answer; in beta, what serves requests waits for that lock."""

    async def asks(self: Tasks, ctx: uxk.Context) -> None:
        device = (await ctx.open_device("beta")).result
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.hold, ctx, 1, 0, 300 * US)

            async def ask() -> None:
                async with ctx.lock(self.locks[0], lease_ns=10**9):
                    await ctx.sleep_ns(10 * US)
                    await ctx.submit(device)

            nursery.start_soon(ask)

    async def answers(self: Tasks, ctx: uxk.Context) -> None:
        async for batch in ctx.batches():
            async with ctx.lock(self.locks[0]):
                ctx.complete_batch(batch)

    found, _ = await play(alpha=asks, beta=answers)
    waits = [text.split(" since ")[0].split(" request ")[0] for _, text in found]
    assert waits[0] == "#0 task 1 of instance beta waits for lock one"
    assert waits[1].startswith("#1 task 2 of instance alpha waits for")
    assert waits[2].startswith("   unless another task of instance beta gives")


async def test_the_waits_of_callbacks_are_those_of_the_instance() -> None:
    texts: list[str] = []

    async def waits(self: Tasks, ctx: uxk.Context) -> None:
        ctx.call_later_ns(10 * US, lambda _: ctx.acquire(self.locks[0]))
        await ctx.sleep_ns(30 * US)

    async def holds(self: Tasks, ctx: uxk.Context) -> None:
        await self.hold(ctx, 0, 0, 400 * US)

    Tasks.parts = {"alpha": holds, "beta": waits}
    async with Kernel(seed=1) as kernel:
        for name in Tasks.parts:
            await kernel.insmod(Tasks, instance=name)
        await kernel.run_until_ns(20 * US)
        texts += map(str, kernel.machine.waits.edges())
    assert texts == ["instance beta waits for lock one since 10.000 us, held by task 1 of instance alpha"]


@pytest.mark.parametrize("depth", [3, 40])
async def test_tasks_in_tasks_have_names_as_long_as_there_is_room(depth: int) -> None:
    names: list[tuple[int, ...]] = []

    async def nest(self: Tasks, ctx: uxk.Context) -> None:
        async def inner(left: int) -> None:
            if left:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(inner, left - 1)
            else:
                names.append(ctx._tasks.calling())
                await self.hold(ctx, 0, 0, 0)

        await inner(depth)

    found, _ = await play(alpha=nest)
    assert found == []
    assert names == [(2, 3, 4, 1)] if depth == 3 else [()]


async def test_tasks_are_named_alike_in_a_process(tmp_path: Any) -> None:
    source = tmp_path / "tasks_apart.py"
    source.write_text(_SOURCE)
    seen = []
    for placement in ("task", "process"):
        async with Kernel(seed=1) as kernel:
            for name in ("alpha", "beta"):
                await kernel.insmod(source, instance=name, placement=placement)
            await kernel.run_until_ns(100 * US)
            seen.append((await findings(kernel), kernel.event_hash()))
    assert seen[0] == seen[1]
    assert len(seen[0][0]) == 2


_SOURCE = '''
import trio
import uxk


class TasksApart(uxk.Extension):
    """Two children, of which one embraces the other instance's."""

    manifest = uxk.Manifest(name="tasks-apart", capabilities=("lock:*:lock",))

    async def run(self, ctx):
        locks = [(await ctx.open("lock", name, uxk.Rights.LOCK)).result for name in ("one", "two")]
        mine = 0 if ctx.name == "alpha" else 1

        async def both():
            await ctx.sleep_ns(10_000 + mine)
            async with ctx.lock(locks[mine], lease_ns=10**9):
                await ctx.sleep_ns(10_000)
                async with ctx.lock(locks[1 - mine], lease_ns=10**9):
                    pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.sleep_ns, 50_000)
            nursery.start_soon(both)
'''
