"""The life of an instance: probe, readiness, refusal, removal, shutdown; a failure leaves no trace."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import trio

import uxk
from uxk.core.cost import CostModel
from uxk.core.lifecycle import ModuleState
from uxk.errors import NoSuchModule, ProbeError, ReadyTimeout, UxkError

MS = 1_000_000


class Server(uxk.Extension):
    """Answers with the payload; the class others are clients of."""

    manifest = uxk.Manifest(name="life_server")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request, payload=request.payload)


class Mute(uxk.Extension):
    """Never answers."""

    manifest = uxk.Manifest(name="life_mute", watchdog=uxk.Watchdog(timeouts_max=1000))

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        pass


def _cancel(scope: trio.CancelScope, _: object) -> None:
    scope.cancel()


def trace(kernel: uxk.Kernel) -> dict[str, Any]:
    """Everything that a failed load might leave behind."""
    machine, loader, arena = kernel.machine, kernel._loader, kernel.machine.arena.statistics()
    return {
        "agents": sorted(kernel.agents), "devices": sorted(kernel.devices.devices),
        "chardevs": sorted(kernel.chardevs.devices), "kobjects": machine.tree.kobject_count,
        "links": machine.tree.link_count, "attributes": machine.tree.attribute_count,
        "waiters": machine.tree.waiter_count, "caps": len(machine.caps), "arena": (arena.used_bytes, arena.regions),
        "locks": [(lock.name, lock.holders(), lock.waiters()) for lock in machine.locks.locks()],
        "lasting": machine.heap.lasting, "outstanding": machine.outstanding, "edges": machine.waits.edges(),
        "pins": [cell.readers() for cell in machine.snapshots.cells()], "granted": machine.granted_bytes,
        "loading": dict(loader._loading),
        "life": [agent.name for agent in kernel.agents.values() if agent._life_timer is not None],
        "forwarders": len(loader._services.forwarders), "dirty": dict(machine.dirty),
        "followers": len(machine.kmsg._followers), "goals": len(kernel.dispatcher._goals),
    }  # fmt: skip


def untouched(before: dict[str, Any], kernel: uxk.Kernel) -> None:
    assert trace(kernel) == before


# --- states ---


async def test_states_are_seen_in_sysfs_in_linux_words() -> None:
    seen: list[str] = []
    path = "/sys/module/life_states/initstate"

    class States(uxk.Extension):
        manifest = uxk.Manifest(name="life_states", ready="explicit")

        def __init__(self) -> None:
            look()

        def setup(self, ctx: uxk.Context) -> None:
            look()
            ctx.call_later_ns(5 * MS, lambda _: ctx.ready())

        def on_stop(self, ctx: uxk.Context, reason: str) -> None:
            look()
            seen.append(reason)

    async with uxk.Kernel() as kernel:

        def look() -> None:
            seen.append(kernel.sysfs.read(path).strip())

        module = await kernel.modprobe("life_states")
        look()
        assert kernel.now_ns == 5 * MS and module.state == ModuleState.LIVE
        await kernel.rmmod("life_states")
        assert seen == ["coming", "coming", "live", "going", "rmmod"]
        assert module.state.name == "GONE" and not kernel.sysfs.exists("/sys/module/life_states")
        with pytest.raises(UxkError) as caught:
            await module.submit(b"")
        assert caught.value.errno == errno.ENODEV


async def test_readiness_from_a_task() -> None:
    class Slow(uxk.Extension):
        manifest = uxk.Manifest(name="life_slow", ready="explicit")

        async def run(self, ctx: uxk.Context) -> None:
            for _ in range(3):
                await ctx.sleep_ns(MS)
            ctx.ready()
            async for batch in ctx.batches():
                for request in batch:
                    ctx.complete(request, result=ctx.now_ns)

    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("life_slow")
        assert kernel.now_ns == 3 * MS
        assert (await module.submit()).result == 3 * MS


async def test_readiness_that_never_comes_fails_at_exactly_the_limit() -> None:
    class Never(uxk.Extension):
        manifest = uxk.Manifest(name="life_never", ready="explicit", ready_timeout_ns=7 * MS)

    async with uxk.Kernel() as kernel:
        await kernel.run_until_ns(1000)
        before = trace(kernel)
        with pytest.raises(ReadyTimeout, match="life_never: not ready within 7000000 ns") as caught:
            await kernel.modprobe("life_never")
        assert caught.value.errno == errno.ETIMEDOUT and kernel.now_ns == 1000 + 7 * MS
        untouched(before, kernel)


@pytest.mark.parametrize(("at_ns", "good"), [(0, True), (7 * MS, True), (7 * MS + 1, False)])
async def test_the_limit_itself_is_in_time(at_ns: int, good: bool) -> None:
    class Edge(uxk.Extension):
        manifest = uxk.Manifest(name="life_edge", ready="explicit", ready_timeout_ns=7 * MS)

        def setup(self, ctx: uxk.Context) -> None:
            ctx.call_at_ns(at_ns, lambda _: ctx.ready())

    async with uxk.Kernel() as kernel:
        if good:
            assert (await kernel.modprobe("life_edge")).state is ModuleState.LIVE
            assert kernel.now_ns == at_ns
        else:
            with pytest.raises(ReadyTimeout):
                await kernel.modprobe("life_edge")


async def test_ready_twice_and_ready_unasked_are_counted_not_believed() -> None:
    class Eager(uxk.Extension):
        manifest = uxk.Manifest(name="life_eager")

        def setup(self, ctx: uxk.Context) -> None:
            ctx.ready()
            ctx.ready()

    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("life_eager")
        await kernel.run()
        assert module.account.rejects == {"ready_twice": 2} and module.state == ModuleState.LIVE


# --- failed probes ---


def failing(stage: str, error: Callable[[], BaseException]) -> type[uxk.Extension]:
    """An extension that takes whatever it can get and then fails at ``stage``."""

    class Failing(uxk.Extension):
        manifest = uxk.Manifest(
            name="life_failing", ready="explicit", budget=uxk.Budget(memory_bytes=1 << 16),
            capabilities=("kmsg:read", "lock:life_*", "snapshot:life_*:read,write", "device:life_*",
                          "sysfs:/sys/*:read"),
            binds=(uxk.Bind({"class": "misc"}),),
        )  # fmt: skip

        def __init__(self) -> None:
            if stage == "__init__":
                raise error()

        def setup(self, ctx: uxk.Context) -> None:
            self.grab(ctx)
            if stage == "setup":
                raise error()

        def grab(self, ctx: uxk.Context) -> None:
            def fail(_: Any) -> None:
                raise error()

            ctx.allocate(8192)
            ctx.allocate(4096, keep="medium")
            ctx.follow_kmsg(oldest=True)
            ctx.set_attribute("progress", 1, writable=True)
            ctx.add_device("life_extra", colour="red")
            ctx.add_chardev("life_char")
            ctx.log("hello")
            ctx.call_later_ns(MS, lambda _: None)
            ctx.call_later_ns(MS, lambda _: None, daemon=True)
            ctx.open("lock", "life_lock", uxk.Rights.LOCK).then(lambda done: ctx.acquire(done.result))
            ctx.open_device("life_server0").then(lambda done: ctx.submit(done.result, payload=b"x", wait=True))
            ctx.open_device("life_mute0").then(lambda done: ctx.submit(done.result, payload=b"x", wait=True))
            ctx.open("snapshot", "life_snap", uxk.Rights.READ).then(lambda done: ctx.pin(done.result))
            if stage == "reply":
                ctx.read("/sys/kernel/seed").then(fail)
            if stage == "timer":
                ctx.call_later_ns(10, fail)
            if stage == "event":
                ctx.log("to be followed")

        def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
            if stage == "event":
                raise error()

        async def run(self, ctx: uxk.Context) -> None:
            await ctx.sleep_ns(MS)
            if stage == "run":
                raise error()
            if stage == "exits":
                return
            await trio.sleep_forever()

    return Failing


@pytest.mark.parametrize("stage", ["__init__", "setup", "reply", "timer", "event", "run", "never", "exits"])
@pytest.mark.parametrize("error", [ValueError, SystemExit, RecursionError])
async def test_a_failed_probe_leaves_no_trace(stage: str, error: type[BaseException]) -> None:
    cls = failing(stage, lambda: error("no hardware"))
    _keep = [Server, Mute]
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("life_server")
        await kernel.modprobe("life_mute")
        await kernel.run_until_ns(5)
        before = trace(kernel)
        with pytest.raises(ProbeError) as caught:
            await kernel.insmod(cls)
        if stage in ("never", "exits"):
            assert isinstance(caught.value, ReadyTimeout)
        else:
            assert error.__name__ in str(caught.value) and "no hardware" in str(caught.value)
            assert any("oops" in r.text for r in kernel.kmsg.records(source="life_failing"))
        with trio.move_on_after(1):
            await kernel.run_until_ns(kernel.now_ns + 60_000 * MS)  # what is in flight at others ends, too
        untouched(before, kernel)
        # and it can be loaded anew, under the same names
        assert (await kernel.insmod(failing_no_more(), instance="life_failing")).state is ModuleState.LIVE


def failing_no_more() -> type[uxk.Extension]:
    class Good(uxk.Extension):
        manifest = uxk.Manifest(name="life_good")

        def setup(self, ctx: uxk.Context) -> None:
            ctx.add_device("life_extra")
            ctx.add_chardev("life_char")

    return Good


async def test_the_first_turn_may_fail_after_a_probe_that_was_good() -> None:
    class Late(uxk.Extension):
        manifest = uxk.Manifest(name="life_late", restart=uxk.RestartPolicy(mode="temporary"))

        def setup(self, ctx: uxk.Context) -> None:
            def fail(_: Any) -> None:
                raise ValueError("late")

            ctx.call_later_ns(0, fail)

    async with uxk.Kernel() as kernel:
        before = trace(kernel)
        await kernel.modprobe("life_late")
        await kernel.run()
        untouched(before, kernel)
        assert any("late" in record.text for record in kernel.kmsg.records(source="life_late"))


async def test_a_crash_of_another_module_does_not_fail_a_probe() -> None:
    class Bomb(uxk.Extension):
        manifest = uxk.Manifest(name="life_bomb", restart=uxk.RestartPolicy(mode="temporary"))

        def setup(self, ctx: uxk.Context) -> None:
            def fail(_: Any) -> None:
                raise ValueError("bang")

            ctx.call_later_ns(MS, fail)

    class Patient(uxk.Extension):
        manifest = uxk.Manifest(name="life_patient", ready="explicit")

        def setup(self, ctx: uxk.Context) -> None:
            ctx.call_later_ns(2 * MS, lambda _: ctx.ready())

    async with uxk.Kernel() as kernel:
        await kernel.modprobe("life_bomb")
        await kernel.modprobe("life_patient")
        assert [row.name for row in kernel.lsmod()] == ["life_patient"]


# --- concurrency ---


class Waiting(uxk.Extension):
    """Ready after 5 ms."""

    manifest = uxk.Manifest(name="life_waiting", ready="explicit")

    def setup(self, ctx: uxk.Context) -> None:
        ctx.call_later_ns(5 * MS, lambda _: ctx.ready())


class Hopeless(uxk.Extension):
    """Never ready."""

    manifest = uxk.Manifest(name="life_hopeless", ready="explicit", ready_timeout_ns=5 * MS)


async def test_two_tasks_that_load_the_same_get_the_same_and_both_wait() -> None:
    got: list[tuple[int, ModuleState, int]] = []
    _keep = Waiting
    async with uxk.Kernel() as kernel:

        async def load() -> None:
            module = await kernel.modprobe("life_waiting")
            got.append((module.id, module.state, kernel.now_ns))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(load)
        assert got == [(1, ModuleState.LIVE, 5 * MS)] * 3


async def test_two_tasks_that_load_what_cannot_be_loaded_both_fail() -> None:
    failed: list[int] = []
    _keep = Hopeless
    async with uxk.Kernel() as kernel:
        before = trace(kernel)

        async def load() -> None:
            with pytest.raises(ReadyTimeout):
                await kernel.modprobe("life_hopeless")
            failed.append(kernel.now_ns)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            nursery.start_soon(load)
        assert failed == [5 * MS, 10 * MS]
        untouched(before, kernel)


async def test_a_dependency_that_is_still_coming_is_waited_for() -> None:
    order: list[str] = []

    class Dependent(uxk.Extension):
        manifest = uxk.Manifest(name="life_dependent", depends=("life_waiting",))

        def setup(self, ctx: uxk.Context) -> None:
            order.append(kernel.sysfs.read("/sys/module/life_waiting/initstate").strip())

    class Dependent2(Dependent):
        manifest = uxk.Manifest(name="life_dependent2", depends=("life_waiting",))

    _keep = Waiting
    async with uxk.Kernel() as kernel:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.modprobe, "life_dependent")
            nursery.start_soon(kernel.modprobe, "life_dependent2")
        assert order == ["live", "live"] and len(kernel.lsmod()) == 3


async def test_different_modules_load_side_by_side() -> None:
    _keep = [Waiting, Server, Hopeless]
    async with uxk.Kernel() as kernel:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.modprobe, "life_waiting")
            nursery.start_soon(kernel.modprobe, "life_server")
        assert kernel.now_ns == 5 * MS and len(kernel.lsmod()) == 2


async def test_a_probe_under_way_cannot_be_removed_or_doubled() -> None:
    _keep = Waiting
    async with uxk.Kernel() as kernel, trio.open_nursery() as nursery:
        nursery.start_soon(kernel.modprobe, "life_waiting")
        await kernel.run_until_ns(MS)
        with pytest.raises(uxk.InUse, match="probe"):
            await kernel.rmmod("life_waiting")
        with pytest.raises(UxkError, match="already loaded"):
            await kernel.insmod(Waiting)


async def test_a_cancelled_modprobe_leaves_no_trace() -> None:
    _keep = [Waiting, failing("never", ValueError)]
    async with uxk.Kernel() as kernel:
        before = trace(kernel)
        for name in ("life_waiting", "life_failing"):
            with trio.CancelScope() as scope:
                kernel.call_at_ns(kernel.now_ns + 2 * MS, partial(_cancel, scope))
                await kernel.modprobe(name)
            assert scope.cancelled_caught
            await kernel.run()
            untouched(before, kernel)
        assert (await kernel.modprobe("life_waiting")).state is ModuleState.LIVE


async def test_one_who_waits_loads_it_when_the_first_is_cancelled() -> None:
    _keep = Waiting
    states: list[ModuleState] = []
    async with uxk.Kernel() as kernel:

        async def second() -> None:
            states.append((await kernel.modprobe("life_waiting")).state)

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(second)
                kernel.call_at_ns(2 * MS, lambda _: scope.cancel())
                await kernel.modprobe("life_waiting")
        assert states == [ModuleState.LIVE] and kernel.now_ns == 7 * MS


# --- rmmod ---


async def test_rmmod_names_clients_open_files_and_requests_in_flight() -> None:
    class Client(uxk.Extension):
        manifest = uxk.Manifest(name="life_client", kind="ml-agent", capabilities=("device:life_mute0",))

        def setup(self, ctx: uxk.Context) -> None:
            ctx.open_device("life_mute0").then(lambda done: ctx.submit(done.result))

    class Char(uxk.Extension):
        manifest = uxk.Manifest(name="life_chars")

        def setup(self, ctx: uxk.Context) -> None:
            ctx.add_chardev("life_dev")

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            for request in requests:
                ctx.complete(request)

    _keep = Mute
    async with uxk.Kernel() as kernel:
        mute = await kernel.modprobe("life_mute")
        await kernel.modprobe("life_client")
        await kernel.run_until_ns(1)
        with pytest.raises(uxk.InUse, match="life_mute is in use by: life_client") as caught:
            await kernel.rmmod("life_mute")
        assert caught.value.errno == errno.EBUSY
        await kernel.rmmod("life_client")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: mute.submit(check=False))
            await kernel.run_until_ns(2)
            with pytest.raises(uxk.InUse, match="in use by: user"):
                await kernel.rmmod("life_mute")
        assert mute.account.timeouts == 2
        await kernel.rmmod("life_mute")
        assert mute.account.holdings() == {}
        await kernel.modprobe("life_chars")
        file = await kernel.open("/dev/life_dev", client="cat")
        with pytest.raises(uxk.InUse, match="life_chars is in use by: cat"):
            await kernel.rmmod("life_chars")
        await file.close()
        await kernel.rmmod("life_chars")


async def test_a_module_that_holds_a_device_to_itself_can_be_removed() -> None:
    class Selfish(uxk.Extension):
        manifest = uxk.Manifest(name="life_selfish", capabilities=("device:life_selfish0",))

        def setup(self, ctx: uxk.Context) -> None:
            def submit(done: uxk.Completion) -> None:
                if not done.status:
                    ctx.submit(done.result, payload=b"me")

            ctx.call_later_ns(1, lambda _: ctx.open_device("life_selfish0").then(submit))

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            pass

    async with uxk.Kernel() as kernel:
        before = trace(kernel)
        module = await kernel.modprobe("life_selfish")
        await kernel.run_until_ns(5)
        assert module.account.requests == 1
        await kernel.rmmod("life_selfish")
        untouched(before, kernel)


async def test_rmmod_waits_for_a_task_that_shields_itself_briefly() -> None:
    ended: list[str] = []

    class Shielding(uxk.Extension):
        manifest = uxk.Manifest(name="life_shielding")

        async def run(self, ctx: uxk.Context) -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    for _ in range(5):
                        await trio.lowlevel.checkpoint()
                    ctx.log("said too late")
                    ended.append("clean")

    async with uxk.Kernel() as kernel:
        before = trace(kernel)
        await kernel.modprobe("life_shielding")
        await kernel.run()
        await kernel.rmmod("life_shielding")
        assert ended == ["clean"]
        assert not any("too late" in record.text for record in kernel.kmsg.records())
        await kernel.run()
        untouched(before, kernel)


async def test_rmmod_of_what_never_ends_gives_up_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uxk.kernel.loader._GRACE_NS", 1000)
    release = trio.Event()

    class Undying(uxk.Extension):
        manifest = uxk.Manifest(name="life_undying")

        async def run(self, ctx: uxk.Context) -> None:
            with trio.CancelScope(shield=True):
                await release.wait()

    async with uxk.Kernel() as kernel:
        await kernel.modprobe("life_undying")
        await kernel.run()
        await kernel.rmmod("life_undying")
        assert any("its task goes on" in record.text for record in kernel.kmsg.records())
        release.set()


async def test_on_stop_may_complete_requests_and_may_crash() -> None:
    class Parting(uxk.Extension):
        manifest = uxk.Manifest(name="life_parting")

        def setup(self, ctx: uxk.Context) -> None:
            self.waiting: list[uxk.Request] = []

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            self.waiting += requests

        def on_stop(self, ctx: uxk.Context, reason: str) -> None:
            for request in self.waiting:
                ctx.complete(request, payload=reason.encode())
            ctx.log("goodbye")
            if len(self.waiting) > 1:
                raise ValueError("in the end")

    for count, clock in ((1, "virtual"), (2, "virtual"), (1, "charged"), (2, "charged")):
        done: list[uxk.Completion] = []
        async with uxk.Kernel(clock=clock, cost=CostModel()) as kernel:  # type: ignore[arg-type]
            before = trace(kernel)
            module = await kernel.modprobe("life_parting")
            port = module.open_port(done.extend)
            port.submit_batch([uxk.Request(0) for _ in range(count)])
            await kernel.run_until_ns(1000)
            kernel._loader._unload(kernel.agents["life_parting"], "end")
            assert [completion.payload for completion in done] == [b"end"] * count, clock
            assert any("goodbye" in record.text for record in kernel.kmsg.records())
            await kernel.run()
            untouched(before, kernel)
            assert not any("restarts in" in record.text for record in kernel.kmsg.records())


async def test_rmmod_while_waiting_for_a_restart() -> None:
    class Phoenix(uxk.Extension):
        manifest = uxk.Manifest(name="life_phoenix", restart=uxk.RestartPolicy(backoff_ns=10 * MS))

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            raise ValueError("ashes")

    async with uxk.Kernel() as kernel:
        before = trace(kernel)
        module = await kernel.modprobe("life_phoenix")
        assert (await module.submit(check=False)).status == errno.EIO
        assert module.state == ModuleState.RESTARTING
        assert kernel.sysfs.read("/sys/module/life_phoenix/initstate").strip() == "restarting"
        await kernel.rmmod("life_phoenix")
        await kernel.run()
        untouched(before, kernel)
        assert module.state.name == "GONE"


async def test_loading_and_unloading_over_and_over_leaves_nothing() -> None:
    _keep = [Server, Mute]
    cls = failing("none", ValueError)

    class Full(cls):  # type: ignore[misc,valid-type]
        manifest = uxk.Manifest(
            **{
                **{name: getattr(cls.manifest, name) for name in cls.manifest.__struct_fields__},
                "name": "life_full", "ready": "setup",
            }
        )  # fmt: skip

    async with uxk.Kernel() as kernel:
        await kernel.modprobe("life_server")
        await kernel.modprobe("life_mute")
        await kernel.run_until_ns(MS)
        before: dict[str, Any] | None = None
        for _ in range(20):
            module = await kernel.modprobe("life_full")
            await kernel.run_until_ns(kernel.now_ns + 2 * MS)
            assert module.account.locks == 1 and module.account.arena_bytes == 12288
            await kernel.rmmod("life_full")
            assert module.account.holdings() == {}
            await kernel.run_until_ns(kernel.now_ns + 60_000 * MS)
            if before is None:
                before = trace(kernel)
            else:
                untouched(before, kernel)
                before = trace(kernel)


async def test_the_module_that_is_not_there() -> None:
    async with uxk.Kernel() as kernel:
        for name in ("life_nothing", "", "../x"):
            with pytest.raises(NoSuchModule):
                await kernel.rmmod(name)
