"""Virtual, charged and real time: who moves it, when, and what is done before it moves."""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import trio

import uxk
from uxk.errors import Stalled, UsageError, UxkError

MS = 1_000_000


def _cancel(scope: trio.CancelScope, _: object) -> None:
    scope.cancel()


class Server(uxk.Extension):
    """Answers after ``offset`` ns, at once for 0."""

    manifest = uxk.Manifest(name="time_server")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            if request.offset:
                ctx.call_later_ns(request.offset, lambda r: ctx.complete(r, result=ctx.now_ns), request)
            else:
                ctx.complete(request, result=ctx.now_ns)


# --- run and run_until ---


async def test_time_stands_still_while_nobody_waits() -> None:
    fired: list[int] = []
    async with uxk.Kernel() as kernel:
        kernel.call_at_ns(5, fired.append, 5)
        for _ in range(5):
            await trio.testing.wait_all_tasks_blocked()
        assert kernel.now_ns == 0 and fired == []
        await kernel.run()
        assert kernel.now_ns == 5 and fired == [5]


async def test_run_until_includes_the_bound_and_nothing_after() -> None:
    fired: list[tuple[str, int]] = []
    async with uxk.Kernel() as kernel:

        def note(name: str) -> None:
            fired.append((name, kernel.now_ns))
            if name == "at":
                kernel.call_at_ns(kernel.now_ns, note, "at, too")

        for due_ns, name in ((99, "before"), (100, "at"), (101, "after")):
            kernel.call_at_ns(due_ns, note, name)
        await kernel.run_until_ns(100)
        assert fired == [("before", 99), ("at", 100), ("at, too", 100)] and kernel.now_ns == 100
        await kernel.run_until_ns(100)
        await kernel.run_until_ns(50)
        await kernel.run_until_ns(-5)
        assert kernel.now_ns == 100 and len(fired) == 3
        await kernel.sleep_ns(0)
        await kernel.sleep_ns(1)
        assert kernel.now_ns == 101 and fired[-1] == ("after", 101)


async def test_the_work_of_the_last_instant_is_done_although_another_goal_interrupts_it() -> None:
    """A reached goal ends an instant's work early; who waits for the instant must not be let go by that."""
    _keep = Server
    seen: list[str] = []
    async with uxk.Kernel() as kernel:
        one = await kernel.modprobe("time_server")
        others = [await kernel.modprobe("time_server", instance=f"time_s{i}") for i in range(5)]

        async def wait() -> None:
            await kernel.run_until_ns(100)
            seen.append(f"bound {[module.account.completed for module in others]}")

        async def submit() -> None:
            await one.submit(offset=100)
            seen.append(f"answer at {kernel.now_ns}")

        for module in others:
            module.open_port(lambda _: None).submit_batch([uxk.Request(0, offset=100)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(submit)
        assert sorted(seen) == ["answer at 100", "bound [1, 1, 1, 1, 1]"]


async def test_run_waits_for_requests_commands_and_timers_but_for_no_daemon() -> None:
    class Ticking(uxk.Extension):
        manifest = uxk.Manifest(name="time_ticking", watchdog=uxk.Watchdog(heartbeat_ns=MS))

        def setup(self, ctx: uxk.Context) -> None:
            self.ticks = 0
            ctx.call_later_ns(10, self.tick, ctx, daemon=True)
            ctx.call_later_ns(3 * MS + 5, lambda _: ctx.log("last"))

        def tick(self, ctx: uxk.Context) -> None:
            self.ticks += 1
            ctx.set_attribute("ticks", self.ticks)
            ctx.call_later_ns(MS, self.tick, ctx, daemon=True)

    _keep = [Ticking, Server]
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("time_ticking")
        await kernel.run()
        assert kernel.now_ns == 3 * MS + 5
        assert kernel.sysfs.read("/sys/module/time_ticking/attributes/ticks").strip() == "3"
        await kernel.run()
        assert kernel.now_ns == 3 * MS + 5
        server = await kernel.modprobe("time_server")
        server.open_port(lambda _: None).submit(uxk.Request(0, offset=7))
        await kernel.run()
        assert kernel.now_ns == 3 * MS + 12


async def test_a_restart_that_went_well_leaves_nothing_to_wait_for() -> None:
    class Once(uxk.Extension):
        manifest = uxk.Manifest(name="time_once", restart=uxk.RestartPolicy(backoff_ns=MS))

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            raise ValueError("once")

    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("time_once")
        await module.submit(check=False)
        await kernel.run()
        assert kernel.now_ns == MS and module.account.restarts == 1 and module.state.name == "LIVE"


async def test_several_tasks_wait_side_by_side() -> None:
    woken: list[tuple[int, int]] = []
    async with uxk.Kernel() as kernel:

        async def sleep(duration_ns: int) -> None:
            await kernel.sleep_ns(duration_ns)
            woken.append((duration_ns, kernel.now_ns))
            await kernel.sleep_ns(duration_ns)
            woken.append((duration_ns, kernel.now_ns))

        async with trio.open_nursery() as nursery:
            for duration_ns in (30, 10, 20, 10):
                nursery.start_soon(sleep, duration_ns)
        assert sorted(woken, key=lambda item: item[1]) == woken
        assert sorted(woken) == [(10, 10)] * 2 + [(10, 20)] * 2 + [(20, 20), (20, 40), (30, 30), (30, 60)]
        assert all(now_ns in (duration_ns, 2 * duration_ns) for duration_ns, now_ns in woken)


async def test_a_task_that_a_callback_wakes_acts_before_time_moves_on() -> None:
    async with uxk.Kernel() as kernel:
        event = trio.Event()
        woken: list[int] = []

        async def wait() -> None:
            await event.wait()
            woken.append(kernel.now_ns)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            kernel.call_at_ns(10, lambda _: event.set())
            kernel.call_at_ns(20, lambda _: None)
            await kernel.run_until_ns(100)
        assert woken == [10]


async def test_who_waits_may_be_cancelled_at_any_time() -> None:
    _keep = Server
    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("time_server")
        for wait in (kernel.run, lambda: kernel.run_until_ns(10**12), lambda: module.submit(offset=10**9)):
            began_ns = kernel.now_ns
            kernel.call_at_ns(began_ns + 10**10, lambda _: None)
            with trio.CancelScope() as scope:
                kernel.call_at_ns(began_ns + 10, partial(_cancel, scope))
                await wait()
            assert scope.cancelled_caught and kernel.now_ns == began_ns + 10
        await kernel.run()
        assert module.account.inflight == 0 and kernel.machine.outstanding == 0


async def test_a_busy_run_lets_other_tasks_and_cancellation_through() -> None:
    async with uxk.Kernel() as kernel:

        def tick(count: int) -> None:
            kernel.call_at_ns(kernel.now_ns + 1, tick, count + 1)

        tick(0)
        rounds = 0
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def other() -> None:
                    nonlocal rounds
                    for rounds in range(20):  # noqa: B007
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(other)
                await kernel.run()
        assert scope.cancelled_caught and rounds == 19


# --- arguments ---


@pytest.mark.parametrize("value", [1.5, math.nan, math.inf, "5", None, 1 << 64, 10**30])
async def test_time_is_made_of_integers(value: Any) -> None:
    class Sloppy(uxk.Extension):
        manifest = uxk.Manifest(name="time_sloppy", restart=uxk.RestartPolicy(mode="temporary"))

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            ctx.call_at_ns(value, lambda _: None)

    async with uxk.Kernel() as kernel:
        with pytest.raises(UsageError):
            kernel.call_at_ns(value, lambda _: None)
        with pytest.raises(UsageError):
            await kernel.run_until_ns(value)
        with pytest.raises(UsageError):
            await kernel.sleep_ns(value)
        module = await kernel.modprobe("time_sloppy")
        assert (await module.submit(check=False)).status == errno.EIO  # its own fault, in its own code
        await kernel.run()
        assert kernel.now_ns == 0 and type(kernel.now_ns) is int
    with pytest.raises(UsageError):
        async with uxk.Kernel() as kernel:
            await kernel.sleep_ns(-1)


async def test_numpy_integers_become_plain_ones() -> None:
    class Random(uxk.Extension):
        manifest = uxk.Manifest(name="time_random", watchdog=uxk.Watchdog(heartbeat_ns=1))

        def setup(self, ctx: uxk.Context) -> None:
            delay_ns: Any = ctx.random().integers(5, 10)
            ctx.call_later_ns(delay_ns, lambda _: ctx.log(f"at {ctx.now_ns!r}"))

    async with uxk.Kernel() as kernel:
        await kernel.modprobe("time_random")
        await kernel.run()
        assert type(kernel.now_ns) is int and 5 <= kernel.now_ns < 10
        kernel.call_at_ns(np.int64(100), lambda _: None)  # type: ignore[arg-type]
        await kernel.run()
        assert type(kernel.now_ns) is int and kernel.now_ns == 100


async def test_a_time_in_the_past_means_now() -> None:
    fired: list[tuple[str, int]] = []

    class Past(uxk.Extension):
        manifest = uxk.Manifest(name="time_past")

        def setup(self, ctx: uxk.Context) -> None:
            for due_ns in (0, -7):
                ctx.call_at_ns(due_ns, lambda _: fired.append(("extension", ctx.now_ns)))

    async with uxk.Kernel() as kernel:
        await kernel.run_until_ns(50)
        kernel.call_at_ns(10, lambda _: fired.append(("past", kernel.now_ns)))
        kernel.call_at_ns(-1, lambda _: fired.append(("negative", kernel.now_ns)))
        await kernel.modprobe("time_past")
        await kernel.run()
        assert sorted(fired) == [("extension", 50), ("extension", 50), ("negative", 50), ("past", 50)]


async def test_timers_fire_in_order_and_can_be_taken_back_at_any_time() -> None:
    fired: list[str] = []

    class Timers(uxk.Extension):
        manifest = uxk.Manifest(name="time_timers")

        def setup(self, ctx: uxk.Context) -> None:
            timers = [ctx.call_later_ns(10 * i, fired.append, f"t{i}") for i in range(5)]
            ctx.cancel_timer(timers[3])
            ctx.cancel_timer(timers[3])
            ctx.call_later_ns(10, fired.append, "second at 10")
            ctx.call_later_ns(15, lambda _: ctx.cancel_timer(timers[0]))
            ctx.call_later_ns(16, lambda _: ctx.cancel_timer(timers[1]))
            ctx.call_later_ns(500, fired.append, "last")
            ctx.call_later_ns(600, fired.append, "daemon", daemon=True)

    async with uxk.Kernel() as kernel:
        await kernel.modprobe("time_timers")
        await kernel.run()
        assert fired == ["t0", "t1", "second at 10", "t2", "t4", "last"] and kernel.now_ns == 500


async def test_too_many_timers_are_refused() -> None:
    class Greedy(uxk.Extension):
        manifest = uxk.Manifest(name="time_greedy")

        def setup(self, ctx: uxk.Context) -> None:
            while True:
                ctx.call_later_ns(1, lambda _: None)

    async with uxk.Kernel() as kernel:
        with pytest.raises(UxkError, match="65536 timers"):
            await kernel.modprobe("time_greedy")


# --- stalls and livelocks ---


async def test_a_wait_that_cannot_end_is_told() -> None:
    class Char(uxk.Extension):
        manifest = uxk.Manifest(name="time_char")

        def setup(self, ctx: uxk.Context) -> None:
            ctx.add_chardev("time_dev")

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            for request in requests:
                ctx.complete(request)

    async with uxk.Kernel() as kernel:
        await kernel.modprobe("time_char")
        async with await kernel.open("/dev/time_dev") as file:
            with pytest.raises(Stalled, match="/dev/time_dev to become ready") as caught:
                await file.poll(1)
            assert caught.value.errno == errno.EDEADLK
        await kernel.run()  # the kernel goes on


async def test_two_that_keep_each_other_busy_are_a_livelock() -> None:
    class Ping(uxk.Extension):
        manifest = uxk.Manifest(name="time_ping", capabilities=("device:time_p*",))

        def setup(self, ctx: uxk.Context) -> None:
            self.other = "time_pong" if ctx.name == "time_ping" else "time_ping0"
            self.cap = 0

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            for request in requests:
                ctx.complete(request)
            if self.cap:
                ctx.submit(self.cap)
            else:
                ctx.open_device(self.other).then(self.opened(ctx))

        def opened(self, ctx: uxk.Context) -> Any:
            def then(done: uxk.Completion) -> None:
                self.cap = done.result
                ctx.submit(self.cap)

            return then

    async with uxk.Kernel() as kernel:
        kernel.dispatcher.turns_per_instant_max = 2000
        module = await kernel.modprobe("time_ping")
        await kernel.modprobe("time_ping", instance="time_pong")
        module.open_port(lambda _: None).submit(uxk.Request(0))
        with pytest.raises(Stalled, match="2000 turns at 0 ns") as caught:
            await kernel.run()
        assert caught.value.errno == errno.ELOOP


async def test_a_callback_that_schedules_itself_at_once_is_a_livelock() -> None:
    async with uxk.Kernel() as kernel:
        kernel.dispatcher.turns_per_instant_max = 2000

        def again(_: Any) -> None:
            kernel.call_at_ns(kernel.now_ns, again)

        kernel.call_at_ns(5, again)
        with pytest.raises(Stalled, match="at 5 ns"):
            await kernel.run_until_ns(10)


async def test_a_timer_that_sets_itself_at_once_is_a_livelock() -> None:
    class Spin(uxk.Extension):
        manifest = uxk.Manifest(name="time_spin")

        def setup(self, ctx: uxk.Context) -> None:
            def again(_: Any) -> None:
                ctx.call_later_ns(0, again)

            ctx.call_later_ns(5, again)

    async with uxk.Kernel() as kernel:
        kernel.dispatcher.turns_per_instant_max = 2000
        await kernel.modprobe("time_spin")
        with trio.fail_after(20), pytest.raises(Stalled, match="livelock"):
            await kernel.run()


async def test_much_work_over_many_instants_is_no_livelock() -> None:
    async with uxk.Kernel() as kernel:
        kernel.dispatcher.turns_per_instant_max = 1000

        def tick(left: int) -> None:
            if left:
                kernel.call_at_ns(kernel.now_ns + 1, tick, left - 1)

        tick(5000)
        await kernel.run()
        assert kernel.now_ns == 5000


# --- tasks of extensions ---


async def test_tasks_settle_before_time_moves() -> None:
    """However many Trio switches an instant's work takes, the clock waits for it."""

    class Thinking(uxk.Extension):
        manifest = uxk.Manifest(name="time_thinking")

        async def run(self, ctx: uxk.Context) -> None:
            async for batch in ctx.batches():
                for request in batch:
                    for _ in range(20):
                        await trio.lowlevel.checkpoint()
                    ctx.complete(request, result=ctx.now_ns)

    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("time_thinking")
        for i in range(10):
            kernel.call_at_ns(i, lambda _: None)
        for i in range(5):
            assert (await module.submit()).result == 0, i
        assert kernel.now_ns == 0


async def test_sleeping_tasks_wake_in_order_of_time_then_instance() -> None:
    class Sleeper(uxk.Extension):
        manifest = uxk.Manifest(name="time_sleeper", kind="ml-agent")

        async def run(self, ctx: uxk.Context) -> None:
            for delay_ns in (30, 10, 20):
                await ctx.sleep_ns(delay_ns)
                ctx.log(f"{ctx.now_ns}")

    async with uxk.Kernel() as kernel:
        for i in range(4):
            await kernel.modprobe("time_sleeper", instance=f"time_z{9 - i}")
        await kernel.run()
        woken = [(int(r.text), r.source) for r in kernel.kmsg.records() if r.text.isdigit()]
    assert woken == [(at, f"time_z{9 - i}") for at in (30, 40, 60) for i in range(4)]


async def test_a_task_that_waits_for_the_world_holds_up_nobody() -> None:
    here, there = socket.socketpair()
    with here, there:
        ours, theirs = trio.socket.from_stdlib_socket(here), trio.socket.from_stdlib_socket(there)

        class Bridge(uxk.Extension):
            manifest = uxk.Manifest(name="time_bridge", kind="ml-agent")

            async def run(self, ctx: uxk.Context) -> None:
                data = await theirs.recv(16)
                ctx.log(f"got {data.decode()} at {ctx.now_ns}")
                before_ns = ctx.now_ns
                await ctx.sleep_ns(10)
                ctx.log(f"slept {ctx.now_ns - before_ns}")
                await ours.send(b"done")

        async with uxk.Kernel() as kernel:
            await kernel.modprobe("time_bridge")
            await kernel.run_until_ns(1000)
            assert kernel.now_ns == 1000
            await ours.send(b"hello")
            with trio.fail_after(5):
                while not any("got" in record.text for record in kernel.kmsg.records()):
                    await trio.lowlevel.checkpoint()
                    await kernel.run_until_ns(kernel.now_ns)
                await kernel.run()
                assert await theirs.recv(16) == b"done"
            texts = [record.text for record in kernel.kmsg.records(source="time_bridge")]
            assert texts[-2:] == ["got hello at 1000", "slept 10"] and kernel.now_ns == 1010


async def test_a_task_that_returns_is_no_failure() -> None:
    class Short(uxk.Extension):
        manifest = uxk.Manifest(name="time_short")

        async def run(self, ctx: uxk.Context) -> None:
            await ctx.sleep_ns(5)

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            for request in requests:
                ctx.complete(request, result=ctx.now_ns)

    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("time_short")
        await kernel.run()
        assert kernel.now_ns == 5 and (await module.submit()).result == 5 and module.account.faults == 0


# --- replies ---


async def test_a_reply_serves_callbacks_and_many_waiters_before_and_after() -> None:
    class Asker(uxk.Extension):
        manifest = uxk.Manifest(name="time_asker", kind="ml-agent")

        async def run(self, ctx: uxk.Context) -> None:
            reply = ctx.read("/sys/kernel/clock")

            async def wait(name: str) -> None:
                ctx.log(f"{name} {(await reply).payload.decode().strip()}")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, "one")
                nursery.start_soon(wait, "two")
            reply.then(lambda done: ctx.log(f"late {done.payload.decode().strip()}"))
            await wait("again")
            with pytest.raises(uxk.RequestError, match="nothing"):
                await ctx.read("/sys/nothing")
            ctx.log("end")

    async with uxk.Kernel() as kernel:
        await kernel.modprobe("time_asker")
        await kernel.run()
        texts = [record.text for record in kernel.kmsg.records(source="time_asker", max_level=6)]
        texts = [text for text in texts if "virtual" in text or text == "end"]
        assert sorted(texts[:2]) == ["one virtual", "two virtual"]
        assert texts[2:] == ["late virtual", "again virtual", "end"]


# --- the charged clock ---


class Costly(uxk.Extension):
    """A turn costs 1000 ns, and what each request's offset says."""

    manifest = uxk.Manifest(name="time_costly", turn_cost_ns=1000)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.charge_ns(request.offset)
            ctx.complete(request)


FREE = uxk.CostModel(crossing_ns=0, entry_ns=0, kib_ns=0)


async def test_on_the_charged_clock_a_turn_takes_what_it_costs() -> None:
    _keep = Costly
    async with uxk.Kernel(clock="charged", cost=FREE) as kernel:
        module = await kernel.modprobe("time_costly")
        await kernel.run_until_ns(10_000)  # its setup has cost something, too
        charged_ns = module.account.charged_ns
        await module.submit(offset=500)
        assert kernel.now_ns == 11_500
        began_ns, done = kernel.now_ns, []
        port = module.open_port(lambda completions: done.append((kernel.now_ns - began_ns, len(completions))))
        port.submit(uxk.Request(0, offset=100))
        kernel.call_at_ns(began_ns + 50, lambda _: port.submit(uxk.Request(0)))  # finds it busy
        await kernel.run()
        assert done == [(1100, 1), (2100, 1)]
        assert module.account.charged_ns - charged_ns == 1500 + 1100 + 1000


async def test_on_the_virtual_clock_costs_are_booked_and_take_no_time() -> None:
    _keep = Costly
    async with uxk.Kernel(cost=FREE) as kernel:
        module = await kernel.modprobe("time_costly")
        await module.submit(offset=500)
        assert kernel.now_ns == 0 and module.account.charged_ns == 500


async def test_crossings_entries_and_bytes_are_charged_by_the_model() -> None:
    class Plain(uxk.Extension):
        manifest = uxk.Manifest(name="time_plain", turn_cost_ns=0)

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            for request in requests:
                ctx.complete(request, payload=request.payload)

    async with uxk.Kernel(clock="charged", cost=uxk.CostModel(crossing_ns=100, entry_ns=10, kib_ns=0)) as kernel:
        module = await kernel.modprobe("time_plain")
        await kernel.run_until_ns(10_000)
        await module.submit_batch([uxk.Request(0) for _ in range(4)])
        assert kernel.now_ns == 10_000 + 2 * 100 + 8 * 10


async def test_costs_measured_once_make_the_run_reproducible() -> None:
    class Measured(uxk.Extension):
        manifest = uxk.Manifest(name="time_measured")

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            for request in requests:
                ctx.complete(request, payload=bytes(sorted(request.payload)))

    async def run(costs_ns: dict[str, int] | None) -> tuple[str, int, dict[str, int]]:
        async with uxk.Kernel(clock="charged", costs_ns=costs_ns) as kernel:
            module = await kernel.modprobe("time_measured")
            for i in range(40):
                await module.submit(bytes(range(i)))
            return kernel.event_hash(), kernel.now_ns, dict(kernel.machine.costs_ns)

    _, _, costs_ns = await run(None)
    assert set(costs_ns) == {"time_measured"} and costs_ns["time_measured"] > 0
    first, second = await run(costs_ns), await run(costs_ns)
    assert first == second and first[2] == costs_ns
    assert (await run({"time_measured": costs_ns["time_measured"] + 1}))[0] != first[0]


class Tenth(uxk.Extension):
    manifest = uxk.Manifest(
        name="time_tenth", turn_cost_ns=0, budget=uxk.Budget(cpu_ppm=100_000), kind="driver",
    )  # fmt: skip

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.charge_ns(request.offset)
            ctx.complete(request)


async def test_a_cpu_budget_throttles() -> None:
    async with uxk.Kernel(clock="charged", cost=FREE) as kernel:
        module = await kernel.modprobe("time_tenth")
        for _ in range(5):
            await module.submit(offset=10 * MS)
        # 10 ms in every 100 ms: the fifth begins in the fifth period
        assert kernel.now_ns == 410 * MS and module.account.throttled == 4


async def test_who_loads_it_sets_a_ceiling_below_the_manifest_s() -> None:
    async with uxk.Kernel(clock="charged", cost=FREE) as kernel:
        half = await kernel.modprobe("time_tenth", cpu_ppm=50_000)
        for _ in range(3):
            await half.submit(offset=10 * MS)
        assert kernel.now_ns == 410 * MS  # 10 ms in every 200 ms
        await kernel.rmmod("time_tenth")
        as_before = await kernel.insmod(kernel.catalog.get("time_tenth"), cpu_ppm="1000000")
        assert kernel.agents[as_before.name].cpu_ppm == 100_000  # a ceiling gives nothing
        for value in (0, 1_000_001, "much", True, 1.5):
            with pytest.raises(uxk.ParamError, match=r"third: cpu_ppm=.*, expected 1 to 1000000"):
                await kernel.modprobe("time_tenth", instance="third", cpu_ppm=value)  # type: ignore[arg-type]


async def test_a_charge_beyond_all_time_ends_in_a_clear_error() -> None:
    _keep = Costly
    async with uxk.Kernel(clock="charged", cost=FREE) as kernel:
        module = await kernel.modprobe("time_costly")
        answer = await module.submit(offset=(1 << 63) - 1, check=False)
        assert answer.status == errno.ETIMEDOUT and type(kernel.now_ns) is int


# --- the real clock ---


async def test_the_real_clock_runs_by_itself_and_wakes_in_time() -> None:
    fired: list[int] = []

    class Real(uxk.Extension):
        manifest = uxk.Manifest(name="time_real")

        def setup(self, ctx: uxk.Context) -> None:
            ctx.call_later_ns(2 * MS, lambda _: fired.append(ctx.now_ns))

        async def run(self, ctx: uxk.Context) -> None:
            await ctx.sleep_ns(MS)
            fired.append(ctx.now_ns)

    async with uxk.Kernel(clock="real") as kernel:
        await kernel.modprobe("time_real")
        with trio.fail_after(10):
            while len(fired) < 2:
                await trio.lowlevel.checkpoint()
            before_ns = kernel.now_ns
            await kernel.sleep_ns(MS)
            assert kernel.now_ns >= before_ns + MS
        assert fired[0] >= MS and fired[1] >= 2 * MS


@pytest.mark.parametrize("clock", ["", "Virtual", "fast", None])
def test_there_are_three_clocks(clock: Any) -> None:
    with pytest.raises(UsageError, match="'virtual', 'charged' or 'real'"):
        uxk.Kernel(clock=clock)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_seeds_have_64_bits(seed: int) -> None:
    with pytest.raises(UsageError, match="seed"):
        uxk.Kernel(seed=seed)
