"""Budgets fail loudly at the moment of excess, shares are kept, and the end leaves nothing behind (R7, R8, R10)."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import trio

import uxk
from uxk.core.lifecycle import ModuleState
from uxk.core.site import DecisionSite
from uxk.kernel.agent import KernelAgent
from uxk.kernel.pace import CPU_PERIOD_NS
from uxk.limits import NS_PER_S, PPM

PAGE = 4096
MS = 1_000_000
FREE = uxk.CostModel(crossing_ns=0, entry_ns=0, kib_ns=0)


class Puppet(uxk.Extension):
    """Has a Trio task, so that the test can speak through ``Puppet.ctx`` at any time."""

    manifest = uxk.Manifest(
        name="puppet", restart=uxk.RestartPolicy(mode="temporary"),
        capabilities=("lock:*:lock", "snapshot:*:read,write,grant", "device:other0:submit", "kmsg:read", "site:*"),
        budget=uxk.Budget(memory_bytes=4 * PAGE, hints_per_s=10, log_burst=5),
    )  # fmt: skip
    ctx: ClassVar[uxk.Context]

    def setup(self, ctx: uxk.Context) -> None:
        Puppet.ctx = ctx

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


class Other(uxk.Extension):
    """A driver that never answers by itself."""

    manifest = uxk.Manifest(name="other", capabilities=("lock:taken:lock",))
    ctx: ClassVar[uxk.Context]
    held: ClassVar[list[uxk.Request]]

    def setup(self, ctx: uxk.Context) -> None:
        Other.ctx, Other.held = ctx, []

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        Other.held.extend(requests)

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


async def ask(kernel: uxk.Kernel, reply: uxk.Reply) -> uxk.Completion:
    await kernel.sleep_ns(0)
    assert reply.completion is not None
    return reply.completion


def lines(kernel: uxk.Kernel, source: str) -> list[tuple[int, str]]:
    return [(record.time_ns, record.text) for record in kernel.kmsg.records(source=source)]


def agent_of(kernel: uxk.Kernel, name: str) -> KernelAgent:
    return kernel.agents[name]


# --- budgets ---


async def test_memory_over_budget_is_edquot_with_a_line_at_that_moment() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Puppet)
        ctx = Puppet.ctx
        await kernel.sleep_ns(500)
        first = await ask(kernel, ctx.allocate(3 * PAGE))
        assert first.status == 0
        assert (await ask(kernel, ctx.allocate(PAGE + 1))).status == errno.EDQUOT
        assert [text for now, text in lines(kernel, "puppet") if now == 500 and text.startswith("EDQUOT")] != []
        assert (await ask(kernel, ctx.allocate(0))).status == errno.EINVAL
        assert (await ask(kernel, ctx.allocate((1 << 63) - 1))).status == errno.EDQUOT
        assert (await ask(kernel, ctx.allocate(1))).status == 0
        assert (module.account.arena_bytes, module.account.arena_bytes_max) == (4 * PAGE, 4 * PAGE)
        assert (await ask(kernel, ctx.free(first.result))).status == 0
        assert (module.account.arena_bytes, module.account.arena_bytes_max) == (PAGE, 4 * PAGE)
        assert module.account.rejects == {"edquot": 2, "einval": 1}


async def test_admission_refuses_what_does_not_exist_before_any_code_runs() -> None:
    ran: list[str] = []

    class Greedy(uxk.Extension):
        manifest = uxk.Manifest(name="greedy", budget=uxk.Budget(memory_bytes=3 * PAGE))

        def setup(self, ctx: uxk.Context) -> None:
            ran.append(ctx.name)

    async with uxk.Kernel(seed=1, arena_bytes=8 * PAGE) as kernel:
        await kernel.insmod(Greedy)
        await kernel.insmod(Greedy, instance="second")
        with pytest.raises(uxk.BudgetError) as caught:
            await kernel.insmod(Greedy, instance="third")
        assert caught.value.errno == errno.ENOMEM
        assert ran == ["greedy", "second"]
        assert any("ENOMEM" in text for _, text in lines(kernel, "third"))
        assert not kernel.sysfs.exists("/sys/module/third")
        await kernel.rmmod("greedy")
        await kernel.insmod(Greedy, instance="third")


async def test_hints_a_second_are_counted_in_virtual_time() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Puppet)
        kernel.machine.sites["site"] = box = DecisionSite("site", lambda payload: "")

        async def hint() -> int:
            return (await ask(kernel, Puppet.ctx.hint("site", 0, 100, b"x"))).status

        assert [await hint() for _ in range(12)] == [0] * 10 + [errno.EDQUOT] * 2
        assert any(text.startswith("EDQUOT") for _, text in lines(kernel, "puppet"))
        await kernel.sleep_ns(NS_PER_S // 10 - 1)
        assert await hint() == errno.EDQUOT
        await kernel.sleep_ns(1)
        assert [await hint(), await hint()] == [0, errno.EDQUOT]
        assert module.account.hints == 11
        assert box.take(kernel.now_ns) is not None


async def test_a_hint_for_no_site_or_of_another_generation_is_refused_with_its_reason() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Puppet)
        kernel.machine.sites["site"] = DecisionSite("site", lambda payload: "")
        assert (await ask(kernel, Puppet.ctx.hint("nowhere", 0, 100, b"x"))).status == errno.ENODEV
        refused = await ask(kernel, Puppet.ctx.hint("site", 3, 100, b"x"))
        assert (refused.status, refused.payload) == (errno.EINVAL, b"stale_generation")
        assert module.account.rejects["hint_stale_generation"] == 1


async def test_a_burst_of_log_lines_is_cut_and_the_number_of_the_lost_is_told() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Puppet)
        for n in range(9):
            Puppet.ctx.log(f"line {n}")
        await kernel.sleep_ns(0)
        logged = [text for _, text in lines(kernel, "puppet") if text.startswith("line")]
        assert logged == [f"line {n}" for n in range(5)]
        assert (module.account.log_lines, module.account.log_suppressed) == (5, 4)
        await kernel.sleep_ns(5 * NS_PER_S)
        Puppet.ctx.log("after")
        await kernel.sleep_ns(0)
        assert [text for _, text in lines(kernel, "puppet")][-2:] == ["4 lines suppressed", "after"]


# --- processor time ---


def worker(share_ppm: int, cost_ns: int, declared: bool) -> type[uxk.Extension]:
    """Answers one request a turn, each for ``cost_ns``; wants to run all the time."""

    class Worker(uxk.Extension):
        manifest = uxk.Manifest(
            name="worker", budget=uxk.Budget(cpu_ppm=share_ppm), turn_cost_ns=0 if declared else cost_ns,
            watchdog=uxk.Watchdog(request_timeout_ns=1 << 60),
        )  # fmt: skip

        def setup(self, ctx: uxk.Context) -> None:
            self.work(ctx)

        def work(self, ctx: uxk.Context) -> None:
            if declared:
                ctx.charge_ns(cost_ns)
            ctx.call_later_ns(1, self.work, ctx)

    return Worker


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("cost_ns", [MS, 30 * MS, 250 * MS])
@pytest.mark.parametrize("share_ppm", [50_000, 200_000, PPM])
async def test_a_share_of_the_processor_is_kept_however_long_the_turns(
    share_ppm: int, cost_ns: int, declared: bool
) -> None:
    async with uxk.Kernel(seed=1, clock="charged", cost=FREE) as kernel:
        module = await kernel.insmod(worker(share_ppm, cost_ns, declared))
        await kernel.run_until_ns(100 * CPU_PERIOD_NS)
        granted_ns = 100 * CPU_PERIOD_NS * share_ppm // PPM
        assert granted_ns * 9 // 10 - cost_ns <= module.account.charged_ns <= granted_ns + 2 * cost_ns
        assert bool(module.account.throttled) is (share_ppm < PPM)


async def test_thinking_delays_what_is_said_and_nothing_overtakes() -> None:
    """On the charged clock an answer comes when its cost has passed, and words of ``run`` queue up behind it."""

    class Thinker(uxk.Extension):
        manifest = uxk.Manifest(name="thinker", turn_cost_ns=1000)

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            ctx.log("first")
            for request in requests:
                ctx.complete(request)
            self.event.set()

        async def run(self, ctx: uxk.Context) -> None:
            self.event = trio.Event()
            await self.event.wait()
            ctx.log("second")

    async with uxk.Kernel(seed=1, clock="charged", cost=FREE) as kernel:
        module = await kernel.insmod(Thinker)
        await kernel.sleep_ns(5000)
        began_ns = kernel.now_ns
        await module.submit()
        assert kernel.now_ns - began_ns == 1000
        await kernel.run()
        said = [(now - began_ns, text) for now, text in lines(kernel, "thinker") if text in ("first", "second")]
        assert said == [(1000, "first"), (2000, "second")]


async def test_thinking_without_a_word_takes_time_too() -> None:
    class Ponderer(uxk.Extension):
        manifest = uxk.Manifest(name="ponderer", turn_cost_ns=1000)

        def setup(self, ctx: uxk.Context) -> None:
            self.held: list[uxk.Request] = []

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            self.held += requests
            if len(self.held) == 3:
                for request in self.held:
                    ctx.complete(request)

    async with uxk.Kernel(seed=1, clock="charged", cost=FREE) as kernel:
        module = await kernel.insmod(Ponderer)
        await kernel.sleep_ns(5000)
        began_ns = kernel.now_ns
        port = module.open_port(lambda completions: done.append(kernel.now_ns - began_ns))
        done: list[int] = []
        for n in range(3):
            kernel.call_at_ns(began_ns + n, lambda _: port.submit(uxk.Request(0)))
        await kernel.run()
        assert done == [2000]  # the first alone, the two others together when that was thought over


async def test_on_the_virtual_clock_thinking_is_booked_but_free() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Puppet)
        Puppet.ctx.charge_ns(12_345)
        before = module.account.charged_ns
        await kernel.run()
        assert (kernel.now_ns, module.account.declared_ns) == (0, 12_345)
        assert module.account.charged_ns > before


async def test_an_absurd_charge_hurts_only_who_declares_it() -> None:
    async with uxk.Kernel(seed=1, clock="charged", cost=FREE) as kernel:
        await kernel.insmod(Puppet)
        other = await kernel.insmod(Other)
        for _ in range(3):
            Puppet.ctx.charge_ns((1 << 63) - 1)
        Puppet.ctx.log("never")
        await kernel.run_until_ns(10 * NS_PER_S)
        assert (kernel.now_ns, other.state) == (10 * NS_PER_S, ModuleState.LIVE)
        assert ("never") not in [text for _, text in lines(kernel, "puppet")]
        await kernel.rmmod("puppet")
        kernel.event_hash()


async def test_an_extension_cannot_read_the_hosts_clock_out_of_its_account() -> None:
    """What differs from run to run may be seen by people, not by actors."""
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Puppet)
        assert int(kernel.sysfs.read("/sys/module/puppet/statistics/cpu_ns")) >= 0
        answer = await ask(kernel, Puppet.ctx.read("/sys/module/puppet/statistics/cpu_ns"))
        assert answer.status == errno.EACCES
        assert (await ask(kernel, Puppet.ctx.read("/sys/kernel/costs_ns"))).status == errno.EACCES
        assert (await ask(kernel, Puppet.ctx.read("/sys/module/puppet/statistics/turns"))).status == 0


# --- reclaim ---


async def hoard(kernel: uxk.Kernel) -> None:
    """Makes the puppet hold something of everything, and wait for the rest."""
    ctx = Puppet.ctx
    lock = await ask(kernel, ctx.open("lock", "mine", uxk.Rights.LOCK))
    taken = await ask(kernel, ctx.open("lock", "taken", uxk.Rights.LOCK))
    snapshot = await ask(kernel, ctx.open("snapshot", "map", uxk.Rights.READ | uxk.Rights.WRITE))
    device = await ask(kernel, ctx.open_device("other0"))
    memory = await ask(kernel, ctx.allocate(PAGE))
    for reply in (
        ctx.acquire(lock.result, lease_ns=NS_PER_S), ctx.publish(snapshot.result, b"v1"),
        ctx.allocate(PAGE, keep="medium"), ctx.pin(snapshot.result), ctx.pin(snapshot.result),
        ctx.add_device("extra", colour="red"), ctx.add_chardev("tap"), ctx.follow_kmsg(),
        ctx.derive(memory.result, "other", uxk.Rights.READ),
    ):  # fmt: skip
        assert (await ask(kernel, reply)).status == 0, reply
    ctx.set_attribute("colour", "red", writable=True)
    ctx.map(memory.result, writable=True)[:3] = b"abc"
    ctx.submit(device.result, wait=True)
    ctx.acquire(taken.result)
    ctx.call_later_ns(50, lambda _: None)
    await kernel.sleep_ns(0)
    assert agent_of(kernel, "puppet").commands != set()
    assert len(kernel.machine.waits) == 2


def traces(kernel: uxk.Kernel) -> dict[str, Any]:
    """What the kernel as a whole holds; equal before and after if nothing leaked."""
    machine = kernel.machine
    return {
        "outstanding": machine.outstanding, "caps": machine.caps.statistics().live, "waits": len(machine.waits),
        "arena": machine.arena.statistics().used_bytes, "kobjects": machine.tree.kobject_count,
        "attributes": machine.tree.attribute_count, "waiters": machine.tree.waiter_count,
        "links": machine.tree.link_count,
        "chardevs": sorted(kernel.chardevs.devices), "devices": sorted(kernel.devices.devices),
        "followers": machine.kmsg.statistics().followers,
        "readers": sorted(reader for cell in machine.snapshots.cells() for reader in cell.readers()),
    }  # fmt: skip


async def stage(kernel: uxk.Kernel) -> tuple[dict[str, Any], uxk.Module]:
    await kernel.insmod(Other)
    lock = await ask(kernel, Other.ctx.open("lock", "taken", uxk.Rights.LOCK))
    assert (await ask(kernel, Other.ctx.acquire(lock.result, lease_ns=NS_PER_S))).status == 0
    before = traces(kernel)
    module = await kernel.insmod(Puppet)
    await hoard(kernel)
    return before, module


def check_gone(kernel: uxk.Kernel, before: dict[str, Any], module: uxk.Module) -> None:
    after = traces(kernel)
    before["outstanding"] += len(Other.held)  # the other driver has not answered yet; nobody listens
    assert after == before
    assert module.account.holdings() == {}
    assert module.state is ModuleState.GONE
    assert not any("bug" in record.fields for record in kernel.kmsg.records())


async def test_rmmod_takes_everything_back() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        before, module = await stage(kernel)
        answers: list[uxk.Completion] = []
        port = module.open_port(answers.extend, "user")
        port.submit(uxk.Request(0))
        with pytest.raises(uxk.InUse, match="user"):
            await kernel.rmmod("puppet")
        port.close()
        await kernel.rmmod("puppet")
        check_gone(kernel, before, module)
        assert answers == []
        await kernel.rmmod("other")
        assert kernel.machine.outstanding == 0


class Bomb(Exception):
    pass


def explode(*_: object) -> None:
    raise Bomb("boom")


CRASHES: dict[str, Callable[[uxk.Kernel, uxk.Module], Any]] = {
    "timer": lambda kernel, module: Puppet.ctx.call_later_ns(0, explode),
    "reply": lambda kernel, module: Puppet.ctx.read("/sys/kernel/seed").then(explode),
    "encode": lambda kernel, module: Puppet.ctx.log("\ud800"),
    "event": lambda kernel, module: kernel.sysfs.write("/sys/module/puppet/attributes/colour", "blue"),
}


@pytest.mark.parametrize("where", CRASHES)
async def test_a_crash_takes_everything_back_too(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Puppet, "on_event", lambda self, ctx, event: explode() if event.topic == "store" else None)
    async with uxk.Kernel(seed=1) as kernel:
        before, module = await stage(kernel)
        CRASHES[where](kernel, module)
        await kernel.sleep_ns(0)
        check_gone(kernel, before, module)
        assert any("oops" in text for _, text in lines(kernel, "puppet"))
        await kernel.run()  # until what it asked of the other driver has timed out
        assert kernel.machine.outstanding == 0


async def test_a_crash_of_run_while_it_holds_and_waits_takes_everything_back() -> None:
    class Runner(Puppet):
        manifest = uxk.Manifest(
            name="runner", capabilities=("lock:*:lock",), restart=uxk.RestartPolicy(mode="temporary")
        )

        async def run(self, ctx: uxk.Context) -> None:
            cap = (await ctx.open("lock", "mine", uxk.Rights.LOCK)).result
            async with ctx.lock(cap):
                await ctx.allocate(PAGE)
                await ctx.sleep_ns(100)
                raise Bomb("in run")

    async with uxk.Kernel(seed=1) as kernel:
        before = traces(kernel)
        module = await kernel.insmod(Runner)
        await kernel.sleep_ns(99)
        assert module.account.holdings().keys() >= {"locks", "arena_bytes"}
        await kernel.run()
        assert (module.account.holdings(), module.state, kernel.now_ns) == ({}, ModuleState.GONE, 100)
        assert traces(kernel) == before


@pytest.mark.parametrize("where", ["__init__", "setup", "run"])
async def test_a_failed_probe_leaves_no_trace(where: str) -> None:
    def setup(self: Any, ctx: uxk.Context) -> None:
        ctx.allocate(PAGE)
        ctx.add_device("early")
        ctx.add_chardev("early")
        ctx.set_attribute("early", 1)
        if where == "setup":
            raise Bomb("boom")

    async def run(self: Any, ctx: uxk.Context) -> None:
        await ctx.sleep_ns(10)
        raise Bomb("boom")

    def init(self: Any) -> None:
        raise Bomb("boom")

    methods: dict[str, Any] = {"setup": setup, **({"run": run} if where == "run" else {})}
    if where == "__init__":
        methods["__init__"] = init
    manifest = uxk.Manifest(name="fragile", ready="explicit" if where == "run" else "setup")
    cls: Any = type("Fragile", (uxk.Extension,), {**methods, "manifest": manifest})
    async with uxk.Kernel(seed=1) as kernel:
        before = traces(kernel)
        with pytest.raises(uxk.ProbeError, match="Bomb"):
            await kernel.insmod(cls)
        assert traces(kernel) == before
        assert kernel.lsmod() == []


async def test_an_extension_that_fails_to_say_goodbye_is_unloaded_all_the_same() -> None:
    class Sulker(uxk.Extension):
        manifest = uxk.Manifest(name="sulker", restart=uxk.RestartPolicy(backoff_ns=10))

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            raise Bomb("boom")

        def on_stop(self, ctx: uxk.Context, reason: str) -> None:
            raise Bomb("sulks")

    async with uxk.Kernel(seed=1) as kernel:
        for crashes in (0, 1):
            module = await kernel.insmod(Sulker)
            for _ in range(crashes):
                await module.submit(check=False)
                await kernel.run()
            await kernel.rmmod("sulker")
            assert (module.account.holdings(), module.state) == ({}, ModuleState.GONE)
        assert kernel.lsmod() == []


async def test_the_report_of_a_crash_is_bounded() -> None:
    """One oops must not wash the log out: an exception's text is the extension's to choose."""

    class Verbose(uxk.Extension):
        manifest = uxk.Manifest(name="verbose", restart=uxk.RestartPolicy(mode="temporary"))

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            raise Bomb("line\n" * 100_000)

    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Verbose)
        await module.submit(check=False)
        await kernel.run()
        assert len(kernel.kmsg.records(source="verbose")) < 200
        assert "booted" in kernel.kmsg.records()[0].text


async def test_capabilities_held_are_counted_exactly() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Puppet)
        table, ctx = kernel.machine.caps, Puppet.ctx

        def same() -> bool:
            shown = kernel.sysfs.read("/sys/module/puppet/statistics/capabilities")
            return int(shown) == table.count(module.id)  # type: ignore[arg-type]

        assert same()
        cap = (await ask(kernel, ctx.open("lock", "l", uxk.Rights.LOCK))).result
        memory = (await ask(kernel, ctx.allocate(PAGE))).result
        assert same()
        assert (await ask(kernel, ctx.revoke(cap))).status == 0
        assert same()
        assert (await ask(kernel, ctx.free(memory))).status == 0
        assert same()


async def test_an_extension_cannot_use_up_the_kernels_complaints_of_it() -> None:
    class Loud(uxk.Extension):
        manifest = uxk.Manifest(name="acc_loud", budget=uxk.Budget(memory_bytes=4096, log_burst=10))

        def setup(self, ctx: uxk.Context) -> None:
            for number in range(40):
                ctx.log(f"line {number}")
            ctx.allocate(1 << 20)

    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Loud)
        await kernel.run()
        lines = [record.text for record in kernel.kmsg.records(source="acc_loud") if record.fields.get("errno")]
        assert [line.split(":")[0] for line in lines] == ["EDQUOT", "EDQUOT"]
        assert "more than 10 log lines" in lines[0] and "bytes of memory" in lines[1]


async def test_setup_run_and_farewell_are_on_the_account() -> None:
    def burn() -> None:
        deadline_ns = time.perf_counter_ns() + 2_000_000
        while time.perf_counter_ns() < deadline_ns:
            pass

    class Busy(uxk.Extension):
        manifest = uxk.Manifest(name="acc_busy")

        def setup(self, ctx: uxk.Context) -> None:
            burn()

        async def run(self, ctx: uxk.Context) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.child)

        async def child(self) -> None:
            burn()
            await trio.lowlevel.checkpoint()
            burn()

        def on_stop(self, ctx: uxk.Context, reason: str) -> None:
            burn()

    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Busy)
        assert module.account.cpu_ns >= 2_000_000
        await kernel.run()
        assert module.account.cpu_ns >= 6_000_000
        await kernel.rmmod("acc_busy")
        assert module.account.cpu_ns >= 8_000_000
