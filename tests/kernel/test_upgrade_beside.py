"""Old and new side by side: until the new build is ready the old one is complete, and goes on if it must."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

import uxk
from uxk.core.lifecycle import ModuleState
from uxk.errors import UpgradeError
from uxk.testing import residue, unload_all, usage
from uxk.uapi.manifest import Placement

KEEPER = Path(__file__).resolve().parent / "hosted/keeper.py"
MS = 1_000_000
PAGE = 4096
PLACEMENTS = ("task", "process")
FAILURES = {
    "setup": "ValueError in setup: as asked",
    "restore": "ValueError in restore: as asked",
    "never": "Hung in watchdog: not ready within 1000000 ns",
    "extra": "ValueError in turn: as asked, with 0",
    "grabs": r"device 'keeper_side': the build before it may come back to it",
}


async def ask(module: uxk.Module) -> str:
    return (await module.submit(opcode=uxk.Op.READ)).payload.decode()


def told(kernel: uxk.Kernel, name: str = "keeper") -> list[str]:
    return [record.text for record in kernel.kmsg.records(source=name)]


async def failing(placement: Placement, clock: Any = "virtual") -> str:
    """Every way not to become ready, one after the other, on one instance; returns the event hash."""
    async with uxk.Kernel(seed=2, clock=clock) as kernel:
        module = await kernel.insmod(KEEPER, placement=placement)
        kernel.sysfs.write("/sys/module/keeper/attributes/mood", "brave")
        if clock == "virtual":
            await kernel.sleep_ns(1)
        memory, before = await ask(module), usage(kernel)
        incarnation, granted_bytes = kernel.agents[module.name].incarnation, kernel.machine.granted_bytes
        for fails, why in FAILURES.items():
            if fails == "never" and (placement, clock) == ("process", "real"):  # it has a minute to start
                continue
            with pytest.raises(UpgradeError, match=why):
                await kernel.restart("keeper", fails=fails)
            assert await ask(module) == memory, fails
            assert kernel.agents[module.name].incarnation == incarnation and module.state is ModuleState.LIVE
            assert kernel.machine.granted_bytes == granted_bytes and kernel.agents[module.name].aside is None
            if clock == "virtual":
                await kernel.sleep_ns(1)
                assert usage(kernel) == before, fails
        assert memory.endswith("private! b'brav'")
        assert kernel.sysfs.read("/sys/module/keeper/attributes/mood").strip() == "brave"
        assert sorted(kernel.agents["keeper"].chardevs) == ["keeper"] and kernel.chardevs.get("/dev/keeper").mask == 1
        assert sorted(kernel.agents[module.name].devices) == ["keeper0", "keeper_side"]
        assert kernel.agents[module.name].devices["keeper_side"].properties["build"] == "good"
        kernel.sysfs.write("/sys/module/keeper/attributes/mood", "calm")
        released = await module.submit(opcode=uxk.Op.WRITE)
        assert released.payload == b"0 0", "lock and pin are its own as before"
        assert (await ask(module)).endswith("private! b'calm'")
        assert module.account.restarts == module.account.failed == module.account.timeouts == 0
        if clock == "virtual":
            await kernel.sleep_ns(5000 * MS)  # several heartbeats, which it answers
        await unload_all(kernel)
        if clock == "virtual":
            assert residue(kernel) == {}
    return kernel.event_hash()


@pytest.mark.parametrize("placement", PLACEMENTS)
async def test_the_old_build_goes_on_with_its_memory(placement: Placement) -> None:
    assert await failing(placement) == await failing("task")


@pytest.mark.parametrize("placement", PLACEMENTS)
async def test_on_the_real_clock_as_well(placement: Placement) -> None:
    with trio.fail_after(120):
        await failing(placement, "real")


@pytest.mark.parametrize("placement", PLACEMENTS)
async def test_what_is_handed_over_at_the_switch(placement: Placement) -> None:
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(KEEPER, placement=placement)
        kernel.sysfs.write("/sys/module/keeper/attributes/mood", "brave")
        first, before = await ask(module), usage(kernel)
        token = kernel.machine.locks.get("kept").grant_of(kernel.agents[module.name].id).token  # type: ignore[union-attr]
        await kernel.restart("keeper")
        assert kernel.machine.locks.get("kept").grant_of(kernel.agents[module.name].id).token == token  # type: ignore[union-attr]
        second = await ask(module)
        assert first.split()[0] == "1" and second.split()[0] == "2" and second.endswith("private! b'brav'")
        assert usage(kernel) == before, "of the old one nothing is left"
        assert "generation 1: upgrade" in told(kernel), "its last words are heard"
        assert kernel.sysfs.read("/sys/module/keeper/attributes/mood").strip() == "calm", "but act on nothing"
        assert (await module.submit(opcode=uxk.Op.WRITE)).payload == b"0 0"
        await unload_all(kernel)
        assert residue(kernel) == {}


async def test_locks_that_the_new_build_does_not_ask_for_are_let_go() -> None:
    waits: list[str] = []

    class Holder(uxk.Extension):
        manifest = uxk.Manifest(name="ub_holder", version="1", capabilities=("lock:l:lock",), kind="ml-agent")

        def setup(self, ctx: uxk.Context) -> None:
            ctx.open("lock", "l", uxk.Rights.LOCK).then(lambda done: ctx.acquire(done.result, lease_ns=10**12))

    class Without(uxk.Extension):
        manifest = uxk.Manifest(name="ub_holder", version="2", capabilities=("lock:l:lock",), kind="ml-agent")

    class Waiter(uxk.Extension):
        manifest = uxk.Manifest(name="ub_waiter", version="1", capabilities=("lock:l:lock",), kind="ml-agent")

        def setup(self, ctx: uxk.Context) -> None:
            ctx.open("lock", "l", uxk.Rights.LOCK).then(lambda done: ctx.acquire(done.result).then(self.on_lock))

        def on_lock(self, done: uxk.Completion) -> None:
            waits.append(errno.errorcode.get(done.status, "granted"))

    class Broken(Waiter):
        manifest = uxk.Manifest(
            name="ub_waiter", version="2", capabilities=("lock:l:lock",), kind="ml-agent", ready="explicit",
            ready_timeout_ns=1000,
        )  # fmt: skip

        def setup(self, ctx: uxk.Context) -> None:
            return

    async with uxk.Kernel() as kernel:
        await kernel.insmod(Holder)
        await kernel.insmod(Waiter)
        with pytest.raises(UpgradeError, match="rolled back"):
            await kernel.upgrade("ub_waiter", Broken)
        await kernel.sleep_ns(1)
        assert waits == ["ECANCELED"], "who waits for a lock hears that it does not any more"
        await kernel.restart("ub_waiter")
        assert waits == ["ECANCELED"]
        await kernel.upgrade("ub_holder", Without)
        assert waits == ["ECANCELED", "granted"]


async def test_without_room_for_both_the_old_one_goes_on() -> None:
    class Big(uxk.Extension):
        manifest = uxk.Manifest(name="ub_big", version="1", budget=uxk.Budget(memory_bytes=40 * PAGE))

        def setup(self, ctx: uxk.Context) -> None:
            ctx.allocate(self.manifest.budget.memory_bytes)

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            ctx.complete_batch(requests)

    class Alone(Big):
        manifest = uxk.Manifest(name="ub_big", version="2", budget=uxk.Budget(memory_bytes=60 * PAGE), exclusive=True)

    async with uxk.Kernel(arena_bytes=64 * PAGE) as kernel:
        module = await kernel.insmod(Big)
        hashed = kernel.event_hash()
        with pytest.raises(uxk.BudgetError, match=r"163840 bytes beside the .* 163840, .*98304 of 262144") as error:
            await kernel.restart("ub_big")
        assert error.value.errno == errno.ENOMEM and kernel.event_hash() == hashed
        await module.submit()
        await kernel.upgrade("ub_big", Alone)
        assert kernel.machine.granted_bytes == 60 * PAGE == module.account.arena_bytes


async def test_the_new_one_has_its_own_budget_and_its_own_rights() -> None:
    statuses: list[tuple[str, int]] = []

    class Wide(uxk.Extension):
        manifest = uxk.Manifest(
            name="ub_wide", version="1", kind="ml-agent", capabilities=("lock:*:lock",),
            budget=uxk.Budget(memory_bytes=2 * PAGE),
        )  # fmt: skip

        def setup(self, ctx: uxk.Context) -> None:
            ctx.allocate(2 * PAGE)

    class Narrow(uxk.Extension):
        manifest = uxk.Manifest(
            name="ub_wide", version="2", kind="ml-agent", budget=uxk.Budget(memory_bytes=PAGE), ready="explicit"
        )

        def setup(self, ctx: uxk.Context) -> None:
            ctx.open("lock", "x", uxk.Rights.LOCK).then(lambda done: statuses.append(("lock", done.status)))
            ctx.allocate(2 * PAGE).then(lambda done: statuses.append(("two", done.status)))
            ctx.allocate(PAGE).then(lambda done: (statuses.append(("one", done.status)), ctx.ready()))

    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(Wide)
        await kernel.upgrade("ub_wide", Narrow)
        assert statuses == [("lock", errno.EACCES), ("two", errno.EDQUOT), ("one", 0)]
        assert module.account.arena_bytes == kernel.machine.granted_bytes == PAGE


async def test_an_old_build_that_dies_aside_follows_its_policy_when_it_comes_back() -> None:
    """Its task ends with an error while it rests."""
    rests = trio.Event()
    lives: list[int] = []

    class Runs(uxk.Extension):
        manifest = uxk.Manifest(
            name="ub_runs", version="1", restart=uxk.RestartPolicy(mode="transient", backoff_ns=MS), fate="reissue"
        )

        async def run(self, ctx: uxk.Context) -> None:
            lives.append(1)
            if len(lives) == 1:
                await rests.wait()
                raise ValueError("at the wrong time")
            async for batch in ctx.batches():
                ctx.complete_batch(batch)

    class Never(uxk.Extension):
        manifest = uxk.Manifest(name="ub_runs", version="2", fate="reissue", ready="explicit", ready_timeout_ns=MS)

        def setup(self, ctx: uxk.Context) -> None:
            rests.set()

    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(Runs)
        with pytest.raises(UpgradeError, match="rolled back: 2: Hung"):
            await kernel.upgrade("ub_runs", Never)
        await module.submit()
        assert len(lives) == 2 and module.account.restarts == 1 and kernel.agents[module.name].manifest.version == "1"


async def test_shutdown_and_supervisors_end_both() -> None:
    class Never(uxk.Extension):
        manifest = uxk.Manifest(name="ub_never", version="2", ready="explicit", ready_timeout_ns=100 * MS)

    class Good(uxk.Extension):
        manifest = uxk.Manifest(name="ub_never", version="1", budget=uxk.Budget(memory_bytes=PAGE))

        def setup(self, ctx: uxk.Context) -> None:
            ctx.allocate(PAGE)

    class Other(uxk.Extension):
        manifest = uxk.Manifest(name="ub_never_other")

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            raise ValueError("a bug")

    async with uxk.Kernel() as kernel:
        module, other = await kernel.insmod(Good), await kernel.insmod(Other)
        other_bytes = kernel.agents["ub_never_other"].memory_bytes
        kernel.supervise("all", strategy="one_for_all", children=("ub_never", "ub_never_other"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupted, kernel, Never)
            await kernel.sleep_ns(MS)
            assert kernel.agents[module.name].aside is not None and module.state is ModuleState.COMING
            await other.submit(check=False)
        await kernel.run()
        assert module.state is ModuleState.LIVE and kernel.agents[module.name].manifest.version == "1"
        assert module.account.arena_bytes == PAGE == kernel.machine.granted_bytes - other_bytes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupted, kernel, Never)
            await kernel.sleep_ns(MS)
            with pytest.raises(uxk.InUse, match="its own upgrade"):
                await kernel.rmmod("ub_never")
            kernel._loader.unload_all()
        assert module.state is ModuleState.GONE and module.account.holdings() == {}


async def interrupted(kernel: uxk.Kernel, cls: type[uxk.Extension]) -> None:
    with pytest.raises(UpgradeError, match="interrupted: "):
        await kernel.upgrade("ub_never", cls)
