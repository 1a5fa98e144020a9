"""Upgrades at the worst moments: with dependants, two at once, amid restarts, and with what only the kernel holds."""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
import trio

import uxk
from uxk.core.lifecycle import ModuleState
from uxk.errors import TreeError, UpgradeError
from uxk.testing import crash, residue, unload_all
from uxk.testing.kernels import usage

KEEPER = Path(__file__).resolve().parent / "hosted/keeper.py"
MS = 1_000_000
PAGE = 4096
QUICK: Any = {"fate": "reissue", "restart": uxk.RestartPolicy(backoff_ns=MS)}


class Store(uxk.Extension):
    """A driver of memory, slow enough to have something in flight."""

    manifest = uxk.Manifest(name="uh_store", version="1", budget=uxk.Budget(memory_bytes=PAGE), **QUICK)

    def setup(self, ctx: uxk.Context) -> None:
        self.ctx = ctx
        ctx.allocate(PAGE, keep="medium").then(self.on_memory)

    def on_memory(self, done: uxk.Completion) -> None:
        self.medium = self.ctx.map(done.result, writable=True)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.call_later_ns(20_000, lambda _: self.serve(ctx, requests))

    def serve(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            try:
                data = ctx.map(request.region, writable=request.opcode == uxk.Op.READ)
            except uxk.CapabilityError as exc:  # the client has gone meanwhile
                ctx.fail(request, exc.errno or errno.EIO)
                continue
            mine = slice(request.offset, request.offset + request.length)
            its = slice(request.buffer, request.buffer + request.length)
            if request.opcode == uxk.Op.READ:
                data[its] = self.medium[mine]
            else:
                self.medium[mine] = data[its]
            ctx.complete(request, result=request.length)


class Store2(Store):
    """The next version."""

    manifest = uxk.Manifest(name="uh_store", version="2", budget=uxk.Budget(memory_bytes=PAGE), **QUICK)


class Store3(Store):
    """Cannot be set up."""

    manifest = uxk.Manifest(name="uh_store", version="3", budget=uxk.Budget(memory_bytes=PAGE), **QUICK)

    def setup(self, ctx: uxk.Context) -> None:
        raise ValueError("cannot")


class Client(uxk.Extension):
    """Depends on the store, and writes and reads back a word of its own memory for ever: lent, or handed over."""

    manifest = uxk.Manifest(
        name="uh_client", version="1", depends=("uh_store",), kind="ml-agent",
        capabilities=("device:uh_store0:submit",), budget=uxk.Budget(memory_bytes=PAGE),
    )  # fmt: skip
    hands_over = False
    rounds = 0
    wrong: list[object] = []  # noqa: RUF012 - of all of them

    def setup(self, ctx: uxk.Context) -> None:
        self.ctx, self.number, self.stopped = ctx, 0, False
        ctx.allocate(PAGE).then(self.on_memory)

    def on_memory(self, done: uxk.Completion) -> None:
        self.cap = done.result
        self.memory = self.ctx.map(self.cap, writable=True)
        if self.hands_over:
            self.ctx.derive(self.cap, "uh_store", uxk.Rights.READ | uxk.Rights.WRITE)
        self.ctx.open_device("uh_store0").then(self.on_device)

    def on_device(self, done: uxk.Completion) -> None:
        self.device = done.result
        self.write()

    def write(self) -> None:
        self.number += 1
        self.memory[:8] = b"%08d" % self.number
        self.ctx.submit(self.device, uxk.Op.WRITE, region=self.cap, length=8).then(self.on_written)

    def on_written(self, done: uxk.Completion) -> None:
        if done.status:
            self.wrong.append(("write", done.status))
        else:
            self.memory[:8] = bytes(8)
            self.ctx.submit(self.device, uxk.Op.READ, region=self.cap, length=8).then(self.on_read)

    def on_read(self, done: uxk.Completion) -> None:
        if done.status or bytes(self.memory[:8]) != b"%08d" % self.number:
            self.wrong.append(("read", done.status, bytes(self.memory[:8])))
        Client.rounds += 1
        if not self.stopped:
            self.write()

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic == "quiesce":
            self.stopped = True
        elif event.topic == "resume":
            self.stopped = False
            self.write()


class Giver(Client):
    """Hands its memory over beforehand."""

    manifest = uxk.Manifest(
        name="uh_client", version="2", depends=("uh_store",), kind="ml-agent",
        capabilities=("device:uh_store0:submit,grant",), budget=uxk.Budget(memory_bytes=PAGE),
    )  # fmt: skip
    hands_over = True


@pytest.fixture(autouse=True)
def anew() -> None:
    Client.rounds = 0
    Client.wrong.clear()


@pytest.mark.parametrize("client", [Client, Giver])
async def test_dependants_and_their_memory_notice_nothing(client: type[Client]) -> None:
    async with uxk.Kernel() as kernel:
        await kernel.insmod(Store)
        await kernel.insmod(client)
        await kernel.sleep_ns(MS)
        for build, good in ((Store2, True), (Store3, False), (Store, True), (Store3, False)):
            try:
                await kernel.upgrade("uh_store", build, probation_ns=MS)
                assert good
            except UpgradeError:
                assert not good
            rounds = Client.rounds
            await kernel.sleep_ns(MS)
            assert Client.rounds > rounds + 10 and Client.wrong == []
        with pytest.raises(uxk.InUse, match="uh_client"):
            await kernel.rmmod("uh_store")
        await unload_all(kernel)
        assert residue(kernel) == {}


async def test_driver_and_client_are_upgraded_at_once() -> None:
    async with uxk.Kernel() as kernel:
        store, client = await kernel.insmod(Store), await kernel.insmod(Client)
        await kernel.sleep_ns(MS)
        for build, other in ((Store2, Giver), (Store, Client), (Store2, Client)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kernel.upgrade, "uh_store", build)
                nursery.start_soon(kernel.upgrade, "uh_client", other)
                await kernel.sleep_ns(1)
                with pytest.raises(uxk.InUse, match="an upgrade is under way"):
                    await kernel.upgrade("uh_store", build)
            rounds = Client.rounds
            await kernel.sleep_ns(MS)
            assert Client.rounds > rounds + 10 and Client.wrong == []
        assert (store.state, client.state) == (ModuleState.LIVE, ModuleState.LIVE)
        assert store.account.failed == store.account.timeouts == 0
        await unload_all(kernel)
        assert residue(kernel) == {}


async def test_a_client_that_is_rolled_back_goes_on_with_its_connection() -> None:
    class Never(Client):
        manifest = uxk.Manifest(
            name="uh_client", version="9", depends=("uh_store",), kind="ml-agent", ready="explicit",
            capabilities=("device:uh_store0:submit",), budget=uxk.Budget(memory_bytes=PAGE), ready_timeout_ns=MS,
        )  # fmt: skip

    async with uxk.Kernel() as kernel:
        await kernel.insmod(Store)
        await kernel.insmod(Client)
        await kernel.sleep_ns(MS)
        before = usage(kernel)["capabilities"]
        with pytest.raises(UpgradeError, match="rolled back: 9: Hung"):
            await kernel.upgrade("uh_client", Never)
        rounds = Client.rounds
        await kernel.sleep_ns(MS)
        assert Client.rounds > rounds + 10 and Client.wrong == []
        assert usage(kernel)["capabilities"] == before
        crash(kernel, "uh_store")
        await kernel.sleep_ns(2 * MS)
        assert Client.wrong == [], "its fate is reissue"


async def test_no_upgrade_amid_a_restart() -> None:
    async with uxk.Kernel() as kernel:
        store = await kernel.insmod(Store)
        crash(kernel, "uh_store")
        for _ in range(2):
            with pytest.raises(uxk.UsageError, match="it is restarting, expected live") as error:
                await kernel.upgrade("uh_store", Store2)
            assert error.value.errno == errno.EAGAIN
        await kernel.run()
        await kernel.upgrade("uh_store", Store2)
        assert store.account.restarts == 1


async def test_a_death_on_probation_is_not_its_supervisors_business_but_later_ones_are() -> None:
    async with uxk.Kernel() as kernel:
        store = await kernel.insmod(Store)
        kernel.supervise("none", children=("uh_store",), max_restarts=0)
        kernel.call_at_ns(MS, lambda _: crash(kernel, "uh_store"))
        with pytest.raises(UpgradeError, match="rolled back: 2: Injected"):
            await kernel.upgrade("uh_store", Store2, probation_ns=10 * MS)
        assert store.state is ModuleState.LIVE
        with pytest.raises(UpgradeError, match="rolled back: 3: "):
            await kernel.upgrade("uh_store", Store3)
        assert store.state is ModuleState.LIVE and store.account.restarts == 0
        crash(kernel, "uh_store")
        assert store.state is ModuleState.GONE, "an intensity of 0 is no restart at all"
        assert not kernel.sysfs.exists("/sys/kernel/supervisors/none")
        assert residue(kernel) == {}


async def test_last_words_that_fail_harm_nobody() -> None:
    class Spiteful(Store):
        manifest = uxk.Manifest(name="uh_store", version="1", budget=uxk.Budget(memory_bytes=PAGE), **QUICK)

        def on_stop(self, ctx: uxk.Context, reason: str) -> None:
            ctx.log("ouch")
            raise ValueError("not without a fight")

    async with uxk.Kernel() as kernel:
        store = await kernel.insmod(Spiteful)
        await kernel.upgrade("uh_store", Store2)
        assert store.state is ModuleState.LIVE and store.account.faults == 0
        assert "ouch" in [record.text for record in kernel.kmsg.records(source="uh_store")]


async def test_kill_9_of_a_build_that_rests() -> None:
    """It is dead when it comes back: its policy starts it again, and who waited is served."""
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(KEEPER, placement="process")
        agent = kernel.agents["keeper"]

        def kill(_: object) -> None:
            assert agent.aside is not None
            put_to_death(agent.aside.host.pid)

        kernel.call_at_ns(kernel.now_ns + MS // 2, kill)
        with pytest.raises(UpgradeError, match="rolled back: 1: Hung"):
            await kernel.restart("keeper", fails="never")
        answer = await module.submit(opcode=uxk.Op.READ)
        assert answer.payload.startswith(b"1 ") and module.account.restarts == 1


def put_to_death(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(10_000)
    finally:
        os.close(descriptor)


# --- what only the kernel holds ---


class Agent(uxk.Extension):
    """Attached to a model and, by rule, to devices; offers nothing."""

    manifest = uxk.Manifest(
        name="uh_agent", version="1", kind="ml-agent", capabilities=("model:uh*:read", "kmsg:read"),
        binds=(uxk.Bind(match={"class": "uhclass"}),),
    )  # fmt: skip
    heard: list[str] = []  # noqa: RUF012 - of all of them

    def setup(self, ctx: uxk.Context) -> None:
        ctx.attach("uh0")
        ctx.follow_kmsg()

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic != "kmsg" or "mark" in event.value.decode():
            self.heard.append(f"{self.manifest.version} {event.topic} {event.name}")


class NeverAgent(Agent):
    """Sets everything up, and says nothing."""

    manifest = uxk.Manifest(
        name="uh_agent", version="2", kind="ml-agent", capabilities=("model:uh*:read", "kmsg:read"), ready="explicit",
        ready_timeout_ns=MS, binds=(uxk.Bind(match={"class": "uhclass"}),),
    )  # fmt: skip


async def test_what_it_followed_and_was_attached_to_it_is_again() -> None:
    def disk(name: str) -> type[uxk.Extension]:
        return type(name, (uxk.Extension,), {"manifest": uxk.Manifest(name=name, driver_class="uhclass")})

    Agent.heard.clear()
    async with uxk.Kernel() as kernel:
        model = kernel.create_model("uh", "uh0")
        await kernel.insmod(disk("uh_a"))
        await kernel.insmod(disk("uh_b"))
        await kernel.insmod(Agent)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, kernel, NeverAgent)
            await kernel.sleep_ns(MS // 2)
            assert kernel.agents["uh_agent"].aside is not None
            await kernel.rmmod("uh_a")
            await kernel.insmod(disk("uh_c"))
            kernel.machine.log("info", "test", "mark one")
        kernel.machine.log("info", "test", "mark two")
        await kernel.run()
        assert [agent.name for agent in model.agents.values()] == ["uh_agent"]
        bound = {name for name, device in kernel.devices.devices.items() if "uh_agent" in device.bound}
        assert bound == {"uh_b0", "uh_c0"}
        first = [text for text in Agent.heard if text.startswith("1 ")]
        assert first.count("1 device_remove uh_a0") == first.count("1 device_add uh_c0") == 1
        assert first.count("1 kmsg test") == 2, "what was logged meanwhile comes later"
        await unload_all(kernel)


async def refused(kernel: uxk.Kernel, cls: type[uxk.Extension]) -> None:
    with pytest.raises(UpgradeError, match="rolled back"):
        await kernel.upgrade(canonical_name(cls), cls)


def canonical_name(cls: type[uxk.Extension]) -> str:
    return cls.manifest.name


async def test_a_drivers_own_sites_are_offered_again() -> None:
    class Decides(uxk.Extension):
        manifest = uxk.Manifest(name="uh_site", version="1")

        def setup(self, ctx: uxk.Context) -> None:
            self.ctx = ctx
            ctx.offer_site("uh_site0.pick", units=2)

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            for request in requests:
                ctx.end_epoch("uh_site0.pick", default_kpi=1).then(
                    lambda done, request=request: ctx.complete(request, status=done.status)
                )

    class Fails(Decides):
        manifest = uxk.Manifest(name="uh_site", version="2")

        def setup(self, ctx: uxk.Context) -> None:
            ctx.offer_site("uh_site0.pick", units=3)
            raise ValueError("after all")

    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(Decides)
        await module.submit()
        with pytest.raises(UpgradeError, match="after all"):
            await kernel.upgrade("uh_site", Fails)
        await module.submit()
        await kernel.restart("uh_site")
        await module.submit()
        assert len(kernel.models) == 1


# --- parameters ---


class P(uxk.Params):
    speed: Annotated[int, uxk.param(writable=True)] = 1
    grade: int = 1


async def test_a_parameter_that_is_written_meanwhile() -> None:
    class Runs(uxk.Extension[P]):
        manifest = uxk.Manifest(name="uh_runs", version="1", params=P)

    class Slow(Runs):
        manifest = uxk.Manifest(name="uh_runs", version="2", params=P, ready="explicit", ready_timeout_ns=MS)

        def setup(self, ctx: uxk.Context) -> None:
            ctx.call_later_ns(MS // 2, lambda _: ctx.ready())

    path = "/sys/module/uh_runs/parameters/speed"
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(Runs, grade=7)
        kernel.call_at_ns(MS, lambda _: kernel.sysfs.write(path, "5"))  # while the KPI is observed
        refusals: list[int | None] = []

        def too_late(_: object) -> None:
            try:
                kernel.sysfs.write(path, "6")
            except (uxk.UsageError, TreeError) as exc:
                refusals.append(exc.errno)

        kernel.call_at_ns(2 * MS + MS // 4, too_late)
        await kernel.upgrade("uh_runs", Slow, probation_ns=2 * MS, kpi=lambda: 1)
        assert (module.params.speed, module.params.grade) == (5, 7)  # type: ignore[attr-defined]
        assert refusals == [errno.EBUSY]
