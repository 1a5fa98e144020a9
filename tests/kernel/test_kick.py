"""A task that has work lets the parked dispatcher act inside its own call: at once, bounded, and never twice."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

import pytest
import trio

import uxk
from uxk import limits
from uxk.submission import SubmissionQueue
from uxk.testing.kernels import crash

Script = Callable[[uxk.Context, SubmissionQueue], Awaitable[object]]


class Echo(uxk.Extension):
    manifest = uxk.Manifest(name="kick-echo", budget=uxk.Budget(queue_depth=256))
    delay_ns: ClassVar[int]
    kicked: ClassVar[list[bool]]

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        Echo.kicked.append(ctx.kick())
        if Echo.delay_ns:
            ctx.call_later_ns(Echo.delay_ns, lambda _: ctx.complete_batch(requests))
        else:
            ctx.complete_batch(requests, [request.payload for request in requests])


class Runner(uxk.Extension):
    """Runs the test's script as its task."""

    manifest = uxk.Manifest(
        name="kick-runner", capabilities=("device:*:submit",), restart=uxk.RestartPolicy(mode="temporary"),
        budget=uxk.Budget(queue_depth=256),
    )  # fmt: skip
    script: ClassVar[Script]
    answers: ClassVar[list[bytes]]
    on_answers: ClassVar[Callable[[list[uxk.Completion]], object]]
    ended: ClassVar[trio.Event]
    kernel: ClassVar[uxk.Kernel]
    module: ClassVar[uxk.Module]

    async def run(self, ctx: uxk.Context) -> None:
        opened = await ctx.open_device("kick_echo0")
        queue = ctx.queue(opened.result, type(self).on_answers)
        while Runner.kernel.machine.clock == "real" and not Runner.kernel.machine.parked:
            await trio.lowlevel.checkpoint()
        try:
            await type(self).script(ctx, queue)
        finally:
            Runner.ended.set()


async def session(kernel: uxk.Kernel, script: Script) -> None:
    Echo.delay_ns, Echo.kicked = 0, []
    Runner.kernel = kernel
    Runner.answers, Runner.ended, Runner.script = [], trio.Event(), staticmethod(script)  # type: ignore[assignment]
    Runner.on_answers = staticmethod(lambda batch: Runner.answers.extend(done.payload for done in batch))
    if "kick_echo" not in kernel.agents:
        await kernel.insmod(Echo)
    await kernel.insmod(Runner)


async def real(script: Script) -> uxk.Kernel:
    async with uxk.Kernel(clock="real") as kernel:
        await session(kernel, script)
        Runner.module = kernel.module("kick_runner")
        with trio.fail_after(30):
            await Runner.ended.wait()
    return kernel


async def test_answers_are_there_before_the_kick_returns() -> None:
    seen: list[tuple[bool, list[bytes]]] = []

    async def script(ctx: uxk.Context, queue: SubmissionQueue) -> None:
        for text in (b"one", b"two"):
            queue.submit(uxk.Op.CALL, payload=text)
            queue.submit(uxk.Op.CALL, payload=text)
            seen.append((ctx.kick(), list(Runner.answers)))
        seen.append((ctx.kick(), []))

    kernel = await real(script)
    assert seen == [(True, [b"one"] * 2), (True, [b"one"] * 2 + [b"two"] * 2), (True, [])]
    assert Echo.kicked == [False, False]  # it was inside a turn
    assert kernel.machine.running is None


async def test_what_a_callback_asks_for_is_done_in_the_same_kick() -> None:
    rounds = 20

    async def script(ctx: uxk.Context, queue: SubmissionQueue) -> None:
        left = rounds

        def again(batch: list[uxk.Completion]) -> None:
            nonlocal left
            left -= len(batch)
            assert not ctx.kick()
            if left > 0:
                queue.submit(uxk.Op.CALL)

        queue.on_completions = again
        queue.submit(uxk.Op.CALL)
        assert ctx.kick() and left == 0

    kernel = await real(script)
    assert kernel.machine.turns > 2 * rounds


async def test_a_kick_is_bounded_and_the_dispatcher_goes_on_where_it_ended() -> None:
    count = limits.DISPATCH_TURNS_PER_CHECKPOINT
    left = count

    async def script(ctx: uxk.Context, queue: SubmissionQueue) -> None:
        done = trio.Event()

        def again(batch: list[uxk.Completion]) -> None:
            nonlocal left
            left -= 1
            if left:
                queue.submit(uxk.Op.CALL)
            else:
                done.set()

        queue.on_completions = again
        queue.submit(uxk.Op.CALL)
        assert ctx.kick()
        assert 0 < left < count
        await done.wait()

    await real(script)
    assert left == 0


async def test_time_that_a_driver_takes_is_waited_for_by_the_dispatcher() -> None:
    async def script(ctx: uxk.Context, queue: SubmissionQueue) -> None:
        Echo.delay_ns = 2_000_000
        done = trio.Event()
        queue.on_completions = lambda batch: done.set()
        queue.submit(uxk.Op.CALL)
        assert ctx.kick() and not done.is_set()
        await done.wait()

    await real(script)


async def test_staging_without_a_kick_wakes_the_kernel_when_the_step_ends() -> None:
    async def script(ctx: uxk.Context, queue: SubmissionQueue) -> None:
        done = trio.Event()
        queue.on_completions = lambda batch: done.set()

        async def child() -> None:
            queue.submit(uxk.Op.CALL)

        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
            await done.wait()
            done = trio.Event()

    await real(script)


async def test_on_virtual_time_a_kick_changes_nothing() -> None:
    hashes = []
    for kick in (True, False):

        async def script(ctx: uxk.Context, queue: SubmissionQueue, kick: bool = kick) -> None:
            queue.submit(uxk.Op.CALL, payload=b"x")
            assert not (kick and ctx.kick())

        async with uxk.Kernel(seed=3) as kernel:
            await session(kernel, script)
            await kernel.run()
            assert Runner.answers == [b"x"]
            hashes.append(kernel.event_hash())
    assert hashes[0] == hashes[1]


async def test_what_kills_the_caller_inside_its_kick_is_its_own_crash() -> None:
    async def script(ctx: uxk.Context, queue: SubmissionQueue) -> None:
        def fail(batch: list[uxk.Completion]) -> None:
            raise ValueError("boom")

        queue.on_completions = fail
        queue.submit(uxk.Op.CALL)
        ctx.kick()
        await trio.sleep_forever()

    kernel = await real(script)
    assert any("oops: ValueError in turn: boom" in record.text for record in kernel.kmsg.records(source="kick_runner"))


async def test_an_error_of_a_kernel_callback_is_not_blamed_on_the_caller() -> None:
    class Broken(Exception):
        pass

    def fail(_: object) -> None:
        raise Broken

    async def script(ctx: uxk.Context, queue: SubmissionQueue) -> None:
        port.submit_batch([uxk.Request(0, uxk.Op.CALL)])
        queue.submit(uxk.Op.CALL)
        assert ctx.kick()
        await trio.sleep_forever()

    with pytest.raises(Broken):  # noqa: PT012
        async with uxk.Kernel(clock="real") as kernel:
            await kernel.insmod(Echo)
            port = kernel.open_port("kick_echo0", fail)
            await session(kernel, script)
            with trio.fail_after(30):
                await trio.sleep_forever()
    assert not any("oops" in record.text for record in kernel.kmsg.records(source="kick_runner"))


async def test_who_waits_for_quiet_is_told_after_a_kick() -> None:
    async with uxk.Kernel(clock="real") as kernel:
        waited = trio.Event()

        async def script(ctx: uxk.Context, queue: SubmissionQueue) -> None:
            Echo.delay_ns = 1
            queue.submit(uxk.Op.CALL)
            ctx.kick()
            await waited.wait()

        await session(kernel, script)
        with trio.fail_after(30):
            await kernel.run()
            waited.set()
            await Runner.ended.wait()


async def test_the_dead_do_not_kick() -> None:
    kicks: list[bool] = []

    async def script(ctx: uxk.Context, queue: SubmissionQueue) -> None:
        crash(kernel, "kick_runner")
        queue.submit(uxk.Op.CALL)
        kicks.append(ctx.kick())

    async with uxk.Kernel(clock="real") as kernel:
        await session(kernel, script)
        with trio.fail_after(30):
            await Runner.ended.wait()
    assert kicks == [False] and Runner.answers == []


async def test_the_first_step_of_a_task_is_no_longer_than_it_took() -> None:
    async def script(ctx: uxk.Context, queue: SubmissionQueue) -> None:
        queue.submit(uxk.Op.CALL)

    began_ns = time.perf_counter_ns()
    await real(script)
    assert 0 < Runner.module.account.cpu_ns <= time.perf_counter_ns() - began_ns


async def test_time_inside_a_kick_is_billed_once() -> None:
    async def script(ctx: uxk.Context, queue: SubmissionQueue) -> None:
        queue.submit(uxk.Op.CALL)
        ctx.kick()

    kernel = await real(script)
    tasks = kernel._incarnations.task_time
    tasks.before_task_step(trio.lowlevel.current_task())
    began_ns = tasks._began_ns
    tasks.exclude(5)
    assert tasks._began_ns == began_ns + 5


async def test_tasks_that_have_ended_are_not_remembered() -> None:
    async def script(ctx: uxk.Context, queue: SubmissionQueue) -> None:
        async def child() -> None:
            await trio.lowlevel.checkpoint()

        for _ in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
        tasks = Runner.kernel._incarnations.task_time
        remembered = len(tasks._accounts)
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
        assert len(tasks._accounts) == remembered

    kernel = await real(script)
    assert not any("oops" in record.text for record in kernel.kmsg.records(source="kick_runner"))


async def test_a_batch_is_staged_whole_or_not_at_all() -> None:
    rooms: list[int] = []

    async def script(ctx: uxk.Context, queue: SubmissionQueue) -> None:
        plain = (int(uxk.Op.CALL), 0, 0, 0, 0, 0)
        with pytest.raises(uxk.RingFull, match="257 requests, room for 256"):
            queue.submit_batch([plain] * 257)
        rooms.append(queue.room)
        first = queue.submit_batch([plain] * 200)
        rooms.append(queue.room)
        assert queue.submit(uxk.Op.CALL) == first + 200
        assert ctx.kick()
        rooms.append(queue.room)

    await real(script)
    assert rooms == [256, 56, 256]
    assert Runner.answers == [b""] * 201
