"""Hot upgrade and restart: state goes over, requests wait, what fails is rolled back, and nothing is lost."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import trio

import uxk
from uxk.core.lifecycle import ModuleState
from uxk.errors import ManifestError, UpgradeError
from uxk.scenario import ClosedLoop, Load
from uxk.testing import Ledger, crash, residue, unload_all

MS = 1_000_000
SIZE_BYTES = 64 << 10
REISSUE: Any = {"fate": "reissue", "restart": uxk.RestartPolicy(mode="transient", max_restarts=3, backoff_ns=MS)}


class DiskParams(uxk.Params):
    latency_ns: Annotated[int, uxk.param(ge=0, unit="ns", writable=True)] = 50_000
    label: str = ""


class Disk(uxk.Extension[DiskParams]):
    """Its medium is kept memory; what it hands over is how often it was asked, and by which builds."""

    manifest = uxk.Manifest(
        name="up_disk", version="1.0", driver_class="block", ready="explicit", params=DiskParams,
        budget=uxk.Budget(memory_bytes=SIZE_BYTES), **REISSUE,
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.ctx, self.served, self.past = ctx, 0, ""
        ctx.allocate(SIZE_BYTES, keep="medium").then(self.on_memory)

    def on_memory(self, done: uxk.Completion) -> None:
        self.medium = self.ctx.map(done.result, writable=True)
        self.ctx.set_attribute("past", self.past + self.manifest.version)
        self.ctx.ready()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        if self.params.latency_ns:
            ctx.call_later_ns(self.params.latency_ns, lambda _: self.serve(requests))
        else:
            self.serve(requests)

    def serve(self, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            area = slice(request.offset, request.offset + request.length)
            if request.opcode == uxk.Op.READ:
                self.ctx.complete(request, bytes(self.medium[area]))
            else:
                self.medium[area] = request.payload
                self.ctx.complete(request)
            self.served += 1
        self.ctx.set_attribute("served", self.served)

    def checkpoint(self) -> bytes:
        return struct.pack("<Q", self.served) + (self.past + self.manifest.version).encode()

    def restore(self, data: bytes) -> None:
        self.served = struct.unpack_from("<Q", data)[0]
        self.past = data[8:].decode() + ">"


def build(version: str, base: type[Disk] = Disk, body: dict[str, Any] | None = None, **changes: Any) -> type[Disk]:
    """Another build of a disk."""
    import msgspec

    manifest = msgspec.structs.replace(base.manifest, version=version, **changes)
    return type(f"Disk_{version}", (base,), {"manifest": manifest, **(body or {})})


class Known(uxk.Extension):
    """Is there, and not loaded."""

    manifest = uxk.Manifest(name="up_known")


class Second(Disk):
    """Its state has another format, from and to which it converts."""

    manifest = uxk.Manifest(
        name="up_disk", version="2.0", driver_class="block", ready="explicit", params=DiskParams, state_version=2,
        budget=uxk.Budget(memory_bytes=2 * SIZE_BYTES), **REISSUE,
    )  # fmt: skip

    def checkpoint(self) -> bytes:
        return b"v2" + super().checkpoint()

    def restore(self, data: bytes) -> None:
        assert data[:2] == b"v2"
        super().restore(data[2:])

    def convert(self, version: int, data: bytes) -> bytes:
        assert version == 1
        return b"v2" + data


def attribute(kernel: uxk.Kernel, name: str) -> str:
    return kernel.sysfs.read(f"/sys/module/up_disk/attributes/{name}").strip()


def told(kernel: uxk.Kernel) -> list[str]:
    return [record.text for record in kernel.kmsg.records(source="up_disk")]


# --- what goes over ---


async def test_state_goes_over_and_the_device_stays() -> None:
    async with uxk.Kernel() as kernel:
        disk = await kernel.insmod(Disk, label="mine")
        device, number, caps = kernel.devices.get("up_disk0"), disk.id, len(kernel.machine.caps)
        await disk.submit(b"data", opcode=uxk.Op.WRITE, length=4)
        await kernel.upgrade("up-disk", Second)
        assert disk.manifest.version == "2.0" and disk.state is ModuleState.LIVE and disk.id == number
        assert kernel.devices.get("up_disk0") is device and not device.removed
        assert (await disk.submit(opcode=uxk.Op.READ, length=4)).payload == b"data"
        assert attribute(kernel, "past") == "1.0>2.0" and attribute(kernel, "served") == "2"
        assert kernel.sysfs.read("/sys/module/up_disk/version").strip() == "2.0"
        assert disk.params == DiskParams(label="mine") and len(kernel.machine.caps) == caps
        assert (disk.account.restarts, disk.account.faults) == (0, 0)
        assert kernel.machine.granted_bytes == 2 * SIZE_BYTES
        assert any("confirmed" in text for text in told(kernel))
        await unload_all(kernel)
        assert residue(kernel) == {}


async def test_a_restart_takes_new_parameters_and_keeps_the_others() -> None:
    async with uxk.Kernel() as kernel:
        disk = await kernel.insmod(Disk, label="mine")
        await kernel.restart("up_disk", latency_ns="5us")
        assert disk.params == DiskParams(label="mine", latency_ns=5000)
        assert kernel.sysfs.read("/sys/module/up_disk/parameters/latency_ns").strip() == "5000"
        assert attribute(kernel, "past") == "1.0>1.0"


async def test_an_extension_without_state_begins_anew() -> None:
    class Plain(uxk.Extension):
        manifest = uxk.Manifest(name="up_plain", version="1")

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            ctx.complete_batch(requests)

    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(Plain)
        await kernel.restart("up_plain")
        await module.submit()


async def test_an_agents_checkpoint_is_its_state() -> None:
    class Learner(uxk.MLAgent):
        manifest = uxk.Manifest(name="up_agent", version="1", budget=uxk.Budget(memory_bytes=1 << 20))
        checkpoint_max_bytes = 4096
        lives: ClassVar[list[bytes]] = []

        def setup(self, ctx: uxk.Context) -> None:
            self.learned = b"nothing"

        def checkpoint(self) -> bytes:
            return self.learned + b"!"

        def restore(self, data: bytes) -> None:
            self.learned = data
            self.lives.append(data)

    async with uxk.Kernel() as kernel:
        await kernel.insmod(Learner)
        for _ in range(2):
            await kernel.restart("up_agent")
        assert Learner.lives == [b"nothing!", b"nothing!!"], "its own, older checkpoint is not read on top"


@pytest.mark.parametrize(
    ("exclusive", "order"), [(True, ["setup", "ended", "setup"]), (False, ["setup", "setup", "ended"])]
)
async def test_the_old_ones_task_is_over_before_the_new_one_begins_if_it_is_exclusive(
    exclusive: bool, order: list[str]
) -> None:
    seen: list[str] = []

    class Runs(uxk.Extension):
        manifest = uxk.Manifest(name="up_runs", kind="ml-agent", exclusive=exclusive)

        def setup(self, ctx: uxk.Context) -> None:
            seen.append("setup")

        async def run(self, ctx: uxk.Context) -> None:
            try:
                await trio.sleep_forever()
            finally:
                seen.append("ended")

    async with uxk.Kernel() as kernel:
        await kernel.insmod(Runs)
        await kernel.restart("up_runs")
        assert seen == order


# --- under load ---


def swinging(upgrades: int, builds: Sequence[Any], outcomes: list[str]) -> Callable[[uxk.Kernel], Any]:
    """Upgrades to one build after the other while the load runs."""

    async def drive(kernel: uxk.Kernel) -> dict[str, int]:
        for number in range(upgrades):
            await kernel.sleep_ns(200_000 + 1_700 * number)
            try:
                await kernel.upgrade("up_disk", builds[number % len(builds)], probation_ns=300_000)
                outcomes.append("good")
            except UpgradeError as exc:
                outcomes.append(str(exc))
        return {"upgrades": len(outcomes)}

    return drive


def dies_at(request: int) -> dict[str, Any]:
    def serve(self: Any, requests: Sequence[uxk.Request]) -> None:
        self.seen = getattr(self, "seen", 0) + len(requests)
        if self.seen > request:
            raise ValueError("a bug")
        Disk.serve(self, requests)

    return {"serve": serve}


def fails_in_setup(self: Any, ctx: uxk.Context) -> None:
    raise ValueError("cannot")


def never_ready(self: Any, done: uxk.Completion) -> None:
    return


def refuses(self: Any, data: bytes) -> None:
    raise uxk.UsageError("not this")


def test_full_load_loses_nothing_over_a_hundred_upgrades() -> None:
    """Each request is answered once, and what is read is what was written: workload and invariants see to it."""
    outcomes: list[str] = []
    builds = [
        build("1.1"), build("1.2", body=dies_at(20)), build("1.3"), build("1.4", body={"setup": fails_in_setup}),
        build("1.5", body={"restore": refuses}), build("1.6", body={"on_memory": never_ready}, ready_timeout_ns=MS),
        build("1.7"), None,
    ]  # fmt: skip
    scenario = uxk.Scenario(
        name="swing", seed=5, until=90 * MS, drive=swinging(100, builds, outcomes),
        modules=(Load(name="up_disk", params={"latency_ns": 100_000}),),
        workloads=(ClosedLoop(
            device="up_disk0", depth=32, count=20_000, span_bytes=SIZE_BYTES, size_bytes=512, verify=True,
        ),),
    )  # fmt: skip
    _first = build("1.0")  # the newest of that name is the one to be found
    result = uxk.run(scenario)
    assert result.exit_code == 0, result.report()
    assert result["workloads.load.failed"] == result["workloads.load.mismatches"] == 0
    whys = [outcome.rpartition("rolled back: ")[2] for outcome in outcomes]
    assert len(outcomes) == 100 and whys.count("good") == 50
    assert set(whys) == {
        "good", "1.2: ValueError in turn: a bug", "1.4: ValueError in setup: cannot",
        "1.5: UsageError in restore: not this",
        "1.6: Hung in watchdog: not ready within 1000000 ns after its restart",
    }  # fmt: skip
    again: list[str] = []
    repeated = uxk.run(uxk.Scenario(**{**_fields(scenario), "drive": swinging(100, builds, again)}))
    assert again == outcomes and repeated.event_hash == result.event_hash


def _fields(scenario: uxk.Scenario) -> dict[str, Any]:
    return {name: getattr(scenario, name) for name in scenario.__struct_fields__}


# --- what fails ---


async def test_a_build_that_serves_badly_gives_its_own_state_back() -> None:
    """Withdrawn, not dead: what it has done since the switch is not forgotten."""
    async with uxk.Kernel() as kernel:
        disk = await kernel.insmod(Disk)
        figures = iter([0, 100, 0, 111, 0, 100, 0, 110])
        later = build("1.1")
        kernel.call_at_ns(15 * MS, lambda _: disk.open_port(list.clear).submit(uxk.Request(0, uxk.Op.READ, b"", 0, 4)))
        with pytest.raises(UpgradeError, match=r"rolled back: KPI 100 -> 111, more than 100000 ppm worse") as caught:
            await kernel.upgrade("up_disk", later, kpi=lambda: next(figures), probation_ns=10 * MS)
        assert caught.value.errno == errno.ECANCELED
        assert disk.manifest.version == "1.0" and attribute(kernel, "past") == "1.0>1.1>1.0"
        await disk.submit(opcode=uxk.Op.READ, length=4)
        assert attribute(kernel, "served") == "2"
        await kernel.upgrade("up_disk", later, kpi=lambda: next(figures))
        assert disk.manifest.version == "1.1"


async def test_a_build_that_cannot_go_back_gives_the_state_of_before() -> None:
    async with uxk.Kernel() as kernel:
        disk = await kernel.insmod(Disk)
        figures = iter([0, 1, 0, 2])
        with pytest.raises(UpgradeError, match="rolled back: KPI 1 -> 2"):
            await kernel.upgrade("up_disk", Second, kpi=lambda: next(figures))
        assert disk.manifest.version == "1.0" and attribute(kernel, "past") == "1.0>1.0"
        assert any("the state from before is taken" in text for text in told(kernel))
        assert kernel.machine.granted_bytes == SIZE_BYTES


async def test_requests_that_time_out_on_probation_bring_the_old_build_back() -> None:
    def deaf(self: Any, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        return

    async with uxk.Kernel() as kernel:
        disk = await kernel.insmod(Disk)
        worse = build("1.1", body={"on_batch": deaf}, watchdog=uxk.Watchdog(request_timeout_ns=MS, timeouts_max=99))
        statuses: list[int] = []
        port = disk.open_port(lambda done: statuses.extend(completion.status for completion in done))
        kernel.call_at_ns(MS, lambda _: port.submit(uxk.Request(0, uxk.Op.READ, b"", 0, 4)))
        with pytest.raises(UpgradeError, match="1 requests timed out on probation"):
            await kernel.upgrade("up_disk", worse)
        assert statuses == [errno.ETIMEDOUT] and disk.manifest.version == "1.0"
        await disk.submit(opcode=uxk.Op.READ, length=4)


async def test_an_instance_that_does_not_come_to_rest_goes_on() -> None:
    async with uxk.Kernel() as kernel:
        disk = await kernel.insmod(Disk, latency_ns=5 * MS)
        ledger = Ledger(kernel, "up_disk")
        ledger.submit([uxk.Request(0, uxk.Op.READ, b"", 0, 4) for _ in range(3)])
        kernel.call_at_ns(MS + 1, lambda _: ledger.submit([uxk.Request(0, uxk.Op.READ, b"", 0, 4)]))
        await kernel.run_until_ns(1)
        with pytest.raises(UpgradeError, match="3 requests are in flight after 2000000 ns"):
            await kernel.upgrade("up_disk", build("1.1"), quiesce_ns=2 * MS)
        await ledger.settle()
        assert ledger.problems() == [] and disk.manifest.version == "1.0" and disk.account.failed == 0


@pytest.mark.parametrize(
    ("answer", "why"),
    [(b"x" * ((1 << 20) + 1), "returned 1048577 bytes, at most 1048576"), ("text", "returned str, expected bytes"),
     (ValueError("not now"), "ValueError in checkpoint: not now")],
)  # fmt: skip
async def test_no_checkpoint_no_upgrade(answer: Any, why: str) -> None:
    def checkpoint(self: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with uxk.Kernel() as kernel:
        disk = await kernel.insmod(build("1.0", body={"checkpoint": checkpoint}))
        with pytest.raises(UpgradeError, match=why):
            await kernel.upgrade("up_disk", Disk)
        await disk.submit(opcode=uxk.Op.READ, length=4)
        assert disk.account.faults == 0 and disk.state is ModuleState.LIVE


async def test_a_crash_while_held_follows_the_policy() -> None:
    async with uxk.Kernel() as kernel:
        disk = await kernel.insmod(Disk, latency_ns=5 * MS)
        ledger = Ledger(kernel, "up_disk")
        ledger.submit([uxk.Request(0, uxk.Op.READ, b"", 0, 4)])
        await kernel.run_until_ns(1)
        kernel.call_at_ns(MS, lambda _: crash(kernel, "up_disk"))
        with pytest.raises(UpgradeError, match=r"1\.0: Injected in outside"):
            await kernel.upgrade("up_disk", build("1.1"))
        await ledger.settle()
        assert ledger.problems() == [] and disk.account.restarts == 1 and disk.manifest.version == "1.0"


async def test_if_the_old_build_does_not_come_back_its_policy_decides() -> None:
    lives: list[int] = []

    def third_time(self: Any, ctx: uxk.Context) -> None:
        lives.append(1)
        if len(lives) == 2:
            raise ValueError("not a second time")
        Disk.setup(self, ctx)

    async with uxk.Kernel() as kernel:
        disk = await kernel.insmod(build("1.0", body={"setup": third_time}, exclusive=True))
        with pytest.raises(UpgradeError, match=r"not rolled back: 1.0: .*not a second time, after 1.1: .*cannot"):
            await kernel.upgrade("up_disk", build("1.1", body={"setup": fails_in_setup}))
        await kernel.run()
        assert disk.state is ModuleState.LIVE and disk.account.restarts == 1 and len(lives) == 3
        await disk.submit(opcode=uxk.Op.READ, length=4)


async def test_who_takes_the_instance_down_ends_its_upgrade() -> None:
    async with uxk.Kernel() as kernel:
        disk = await kernel.insmod(Disk)
        other = await kernel.insmod(type("Other", (Disk,), {"manifest": uxk.Manifest(name="up_other")}))
        kernel.supervise("top", strategy="one_for_all", children=("up_other", "up_disk"))
        kernel.call_at_ns(5 * MS, lambda _: crash(kernel, "up_other"))
        with pytest.raises(UpgradeError, match="interrupted: its supervisor restarts it"):
            await kernel.upgrade("up_disk", build("1.1"), probation_ns=20 * MS)
        await kernel.run()
        assert disk.state is other.state is ModuleState.LIVE and disk.manifest.version == "1.0"
        assert attribute(kernel, "past") == "1.0>1.0"

        async def remove() -> None:
            with pytest.raises(uxk.InUse, match="its own upgrade"):
                await kernel.rmmod("up_disk")
            with pytest.raises(uxk.InUse, match="an upgrade is under way: on probation"):
                await kernel.restart("up_disk")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.restart, "up_disk")
            await kernel.sleep_ns(MS)
            await remove()
    assert disk.state is ModuleState.GONE


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"driver_class": "char"}, UpgradeError, "driver_class 'char', expected 'block'"),
        ({"name": "up_else"}, UpgradeError, "module up_else, expected up_disk"),
        ({"budget": uxk.Budget(queue_depth=8)}, UpgradeError, "queue_depth 8, expected 64: the rings stay"),
        ({"budget": uxk.Budget(memory_bytes=4096)}, uxk.BudgetError, "its kept memory has 65536"),
        ({"budget": uxk.Budget(memory_bytes=1 << 40)}, uxk.BudgetError, "are left to grant"),
        ({"state_version": 3}, UpgradeError, r"state of version 1: it has no convert\(\)"),
        ({"depends": ("up_known",)}, uxk.NoSuchModule, "needs up_known, not loaded"),
        ({"version": 5}, ManifestError, "version"),
    ],
)
async def test_what_does_not_fit_is_refused_before_anything_happens(
    change: dict[str, Any], error: type[Exception], why: str
) -> None:
    async with uxk.Kernel() as kernel:
        await kernel.insmod(Disk)
        hashed = kernel.event_hash()
        with pytest.raises(error, match=why):
            await kernel.upgrade("up_disk", build(**{"version": "9", **change}))
        with pytest.raises(uxk.ParamError):
            await kernel.restart("up_disk", latency_ns="long")
        with pytest.raises(uxk.UsageError, match=r"kpi='latencies' \(did you mean 'latency'\?\)"):
            await kernel.upgrade("up_disk", Disk, kpi="latencies")
        with pytest.raises(uxk.UsageError, match="quiesce_ns=0"):
            await kernel.restart("up_disk", quiesce_ns=0)
        with pytest.raises(uxk.NoSuchModule, match=r"no version '1\.O' of up_disk"):
            await kernel.upgrade("up_disk", "1.O")
        assert kernel.event_hash() == hashed


async def test_files_and_versions(tmp_path: Path) -> None:
    text = """
import uxk

class Filed(uxk.Extension):
    manifest = uxk.Manifest(name="up_filed", version="VERSION")

    def on_batch(self, ctx, requests):
        for request in requests:
            ctx.complete(request, b"VERSION")
"""
    paths = []
    for version in ("1", "2", "3"):
        (tmp_path / version).mkdir()
        paths.append(tmp_path / version / "filed.py")
        paths[-1].write_text(text.replace("VERSION", version))
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(paths[0])
        for path in (str(paths[1]), paths[2]):
            await kernel.upgrade("up_filed", path)
            assert (await module.submit()).payload == Path(path).parent.name.encode()
        await kernel.upgrade("up_filed", "2")
        assert (await module.submit()).payload == b"2" and kernel.modinfo("up_filed").version == "2"
        with pytest.raises(uxk.NoSuchModule, match="no file"):
            await kernel.upgrade("up_filed", tmp_path / "none.py")
