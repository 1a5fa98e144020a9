"""Recommended sysctl writes: on trial, watched, undone; an administrator's word is the last one."""

from __future__ import annotations

import errno
from typing import Any, ClassVar

import pytest
import trio

import uxk
from uxk.core.action import ActionConfig
from uxk.core.sysctl import Sysctl
from uxk.errors import TreeError, UsageError
from uxk.kernel.actions import PATH, KpiWatch
from uxk.testing.kernels import usage
from uxk.uapi.action import ActionChange, Step, decode_action

NAME = "fs/tide/gp_ppm"
FILE = f"/proc/sys/{NAME}"


class Tuner(uxk.Extension):
    """The tests speak through ``Tuner.of[NAME]``; what it hears of its actions is kept."""

    manifest = uxk.Manifest(
        name="tuner", capabilities=("sysctl:fs/tide/*:submit",), restart=uxk.RestartPolicy(backoff_ns=100)
    )
    of: ClassVar[dict[str, uxk.Context]] = {}
    heard: ClassVar[list[ActionChange]] = []

    def setup(self, ctx: uxk.Context) -> None:
        Tuner.of[ctx.name] = ctx

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic == "action":
            Tuner.heard.append(decode_action(event.value))
        if event.topic == "crash":
            raise ValueError("boom")

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


class Tide:
    """A subsystem: two thresholds, a switch, and a KPI that the test sets."""

    def __init__(self, kernel: uxk.Kernel, **config: Any) -> None:
        self.kpi: int | None = 100
        self.fails = False
        sysctl = kernel.sysctl
        self.gp = sysctl.register(Sysctl(NAME, 150_000, minimum=0, maximum=1_000_000, on_change=self.on_change))
        self.pair = sysctl.register(Sysctl("fs/tide/pair", (1, 2), minimum=0, maximum=9))
        self.switch = sysctl.register(Sysctl("fs/tide/switch", False))
        sysctl.register(Sysctl("fs/tide/alone", 1))
        sysctl.register(Sysctl("fs/tide/fixed", 1, read_only=True))
        self.watch: KpiWatch = kernel.actions.watch(NAME, lambda: self.kpi, config=ActionConfig(**config))
        kernel.actions.watch("fs.tide.pair", self.watch)
        kernel.actions.watch("fs/tide/switch", self.watch)
        self.epochs(2)

    def on_change(self, value: int) -> None:
        if self.fails:
            raise UsageError(f"tide cannot have {value} now", errno=errno.EBUSY)

    def epochs(self, count: int, kpi: int = 100) -> None:
        self.kpi = kpi
        for _ in range(count):
            self.watch.epoch()


async def boot(kernel: uxk.Kernel, name: str = "tuner") -> uxk.Context:
    Tuner.heard.clear()
    await kernel.insmod(Tuner, instance=name)
    return Tuner.of[name]


async def ask(kernel: uxk.Kernel, reply: uxk.Reply) -> uxk.Completion:
    await kernel.sleep_ns(0)
    assert reply.completion is not None
    return reply.completion


async def applied(kernel: uxk.Kernel, ctx: uxk.Context, value: int = 120_000, **kwargs: Any) -> int:
    done = await ask(kernel, ctx.recommend_sysctl(NAME, value, **kwargs))
    assert done.status == 0, done.payload
    return done.result


def lines(kernel: uxk.Kernel) -> list[str]:
    return [record.text for record in kernel.kmsg.records(source="actions")]


async def test_applied_and_confirmed() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        tide, ctx = Tide(kernel), await boot(kernel)
        number = await applied(kernel, ctx, lifetime_ns=1000, why="fewer moves")
        assert (tide.gp.value, tide.gp.writer) == (120_000, "tuner")
        assert kernel.sysfs.read(f"{PATH}/pending") == f"{number} {NAME} 120000 was 150000 by tuner"
        early = await ask(kernel, ctx.settle_action(number, keep=True))
        assert (early.status, early.payload[:15]) == (errno.EAGAIN, f"action {number} on fs/".encode())
        tide.epochs(2, 90)
        assert (await ask(kernel, ctx.settle_action(number, keep=True))).status == 0
        await kernel.sleep_ns(5000)
        assert tide.gp.value == 120_000
        assert lines(kernel) == [
            f"{NAME}: action 1 of tuner applied: 150000 -> 120000 until 1000 ns: fewer moves",
            f"{NAME}: action 1 of tuner confirmed: 120000 stays: KPI 100 -> 90 in 2 epochs",
        ]
        assert [(change.step, change.value) for change in Tuner.heard] == [
            (Step.APPLIED, "120000"), (Step.CONFIRMED, "120000"),
        ]  # fmt: skip
        assert (await ask(kernel, ctx.settle_action(number, keep=False))).status == errno.ENOENT
        assert kernel.sysfs.read(f"{PATH}/confirmed") == "1"


async def test_what_makes_it_worse_is_reverted() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        tide, ctx = Tide(kernel, worse_ppm=50_000), await boot(kernel)
        await applied(kernel, ctx)
        tide.epochs(2, 106)
        assert (tide.gp.value, tide.gp.writer) == (150_000, "kernel")
        assert lines(kernel)[-1] == (
            f"{NAME}: action 1 of tuner reverted: 120000 -> 150000: "
            "worse by more than 50000 ppm: KPI 100 -> 106 in 2 epochs"
        )
        await kernel.sleep_ns(0)
        assert Tuner.heard[-1].step is Step.REVERTED


async def test_lifetime_ends_it() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        tide, ctx = Tide(kernel), await boot(kernel)
        await applied(kernel, ctx, lifetime_ns=1000)
        await kernel.sleep_ns(999)
        assert tide.gp.value == 120_000
        await kernel.sleep_ns(1)
        assert tide.gp.value == 150_000
        assert "its lifetime is over: KPI 100 before, no epoch since" in lines(kernel)[-1]


@pytest.mark.parametrize("value", [7, 120_000, 150_000])
async def test_an_administrators_write_is_never_undone(value: int) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        tide, ctx = Tide(kernel), await boot(kernel)
        await applied(kernel, ctx, lifetime_ns=1000)
        kernel.sysfs.write(FILE, str(value))
        assert tide.gp.value == value
        assert lines(kernel)[-1].endswith(f"superseded: {value} stays, written by root")
        tide.epochs(8, 1000)
        await kernel.sleep_ns(5000)
        await kernel.rmmod("tuner")
        assert (tide.gp.value, tide.gp.writer) == (value, "root")


@pytest.mark.parametrize("how", ["crash", "rmmod", "revoke", "close", "withdraw"])
async def test_nothing_stays_on_trial_without_its_agent_or_subsystem(how: str) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        tide, ctx = Tide(kernel), await boot(kernel)
        number = await applied(kernel, ctx)
        if how == "crash":
            kernel.agents["tuner"].event("crash")
            await kernel.sleep_ns(1)
        elif how == "rmmod":
            await kernel.rmmod("tuner")
        elif how == "revoke":
            kernel.machine.caps.revoke_target("sysctl", "fs/tide/*")
        elif how == "close":
            tide.watch.close()
            assert (await ask(kernel, ctx.recommend_sysctl(NAME, 1))).status == errno.ENODEV
        else:
            assert (await ask(kernel, ctx.settle_action(number, keep=False))).status == 0
        assert tide.gp.value == 150_000
        why = {"crash": "tuner is gone", "rmmod": "tuner is gone", "revoke": "tuner may not any more",
               "close": "its subsystem is going", "withdraw": "withdrawn"}[how]  # fmt: skip
        assert lines(kernel)[-1] == f"{NAME}: action 1 of tuner reverted: 120000 -> 150000: {why}"
        assert kernel.sysfs.read(f"{PATH}/pending") == ""


async def test_what_is_confirmed_outlives_its_agent() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        tide, ctx = Tide(kernel), await boot(kernel)
        number = await applied(kernel, ctx)
        tide.epochs(2)
        await ask(kernel, ctx.settle_action(number, keep=True))
        await kernel.rmmod("tuner")
        assert tide.gp.value == 120_000


@pytest.mark.parametrize(
    ("sysctl", "value", "status", "says"),
    [
        (NAME, -1, errno.EINVAL, "an integer in 0..1000000"),
        (NAME, "much", errno.EINVAL, "an integer in 0..1000000"),
        (NAME, 150_000, errno.EALREADY, "it is 150000 already"),
        (NAME, 1, errno.EINVAL, "lifetime of 99"),
        ("fs/tide/alone", 2, errno.ENODEV, "no subsystem offers it"),
        ("fs/tide/gp_pm", 2, errno.ENODEV, "did you mean 'fs/tide/gp_ppm'"),
        ("kernel/lock_lease_ns", 2, errno.EACCES, "sysctl:kernel/lock_lease_ns:submit"),
        ("fs/tide/../../kernel/lock_lease_ns", 2, errno.EACCES, "does not ask for"),
    ],
)
async def test_refusals_are_told_and_counted(sysctl: str, value: int | str, status: int, says: str) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        tide, ctx = Tide(kernel, lifetime_max_ns=50), await boot(kernel)
        lifetime_ns = 99 if "99" in says else 0
        done = await ask(kernel, ctx.recommend_sysctl(sysctl, value, lifetime_ns=lifetime_ns))
        assert done.status == status
        assert says in done.payload.decode()
        told = [record.text for record in kernel.kmsg.records(source="tuner") if record.fields.get("errno") == status]
        assert len(told) == 1 and says in told[0]
        assert (tide.gp.value, kernel.sysfs.read(f"{PATH}/refused")) == (150_000, "1")
        assert kernel.agents["tuner"].account.rejects["action_refused"] == 1
        assert lines(kernel) == []


async def test_one_at_a_time_then_a_pause_and_a_rate() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        tide, ctx, other = Tide(kernel, burst=1, interval_ns=1000), await boot(kernel), await boot(kernel, "second")
        number = await applied(kernel, ctx)
        assert (await ask(kernel, other.recommend_sysctl("fs/tide/pair", (3, 4)))).status == errno.EBUSY
        assert (await ask(kernel, other.settle_action(number, keep=False))).status == errno.ENOENT
        await ask(kernel, ctx.settle_action(number, keep=False))
        assert (await ask(kernel, other.recommend_sysctl("fs/tide/pair", (3, 4)))).status == errno.EAGAIN
        tide.epochs(2)
        assert (await ask(kernel, ctx.recommend_sysctl(NAME, 1))).status == errno.EDQUOT
        assert (await ask(kernel, other.recommend_sysctl("fs.tide.pair", (3, 4)))).status == 0
        assert tide.pair.value == (3, 4)
        kernel.sysfs.write("/proc/sys/fs/tide/switch", "1")
        assert tide.pair.value == (1, 2), "the epochs before say nothing any more"
        tide.epochs(2)
        assert (await ask(kernel, ctx.recommend_sysctl("fs/tide/switch", False))).status == 0
        assert tide.switch.value is False


async def test_recommending_is_not_writing() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        tide, ctx = Tide(kernel), await boot(kernel)
        assert (await ask(kernel, ctx.write(FILE, "1"))).status == errno.EACCES
        assert tide.gp.value == 150_000


async def test_a_subsystem_that_refuses() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        tide, ctx = Tide(kernel), await boot(kernel)
        tide.fails = True
        done = await ask(kernel, ctx.recommend_sysctl(NAME, 1))
        assert (done.status, done.payload) == (errno.EBUSY, b"tide cannot have 1 now")
        tide.fails = False
        await applied(kernel, ctx, 5, lifetime_ns=10)
        tide.fails = True
        await kernel.sleep_ns(10)
        assert tide.gp.value == 5
        assert "the value from before was refused: tide cannot have 150000 now" in lines(kernel)[-2]
        assert lines(kernel)[-1].endswith("still 5, the value from before was refused: its lifetime is over: "
                                          "KPI 100 before, no epoch since")  # fmt: skip


class Linked:
    """Two thresholds of which the subsystem itself keeps the lower one below the other."""

    def __init__(self, kernel: uxk.Kernel) -> None:
        table = self.table = kernel.sysctl
        self.low = table.register(Sysctl("fs/tide/low", 1, minimum=0, maximum=99))
        self.high = table.register(Sysctl("fs/tide/high", 2, minimum=0, maximum=99, on_change=self.on_change))
        self.watch = kernel.actions.watch("fs/tide/high", lambda: 100)
        kernel.actions.watch("fs/tide/low", self.watch)
        for _ in range(2):
            self.watch.epoch()

    def on_change(self, value: int) -> None:
        self.table.set("fs/tide/low", value - 1)

    @property
    def values(self) -> tuple[int, int]:
        return self.low.value, self.high.value


async def test_what_the_subsystem_adjusts_by_itself_belongs_to_the_action() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        linked, ctx = Linked(kernel), await boot(kernel)
        assert (await ask(kernel, ctx.recommend_sysctl("fs/tide/high", 7, lifetime_ns=50))).status == 0
        assert linked.values == (6, 7)
        await kernel.sleep_ns(60)
        assert linked.values == (1, 2)
        assert lines(kernel)[-1].endswith("reverted: 7 -> 2: its lifetime is over: KPI 100 before, no epoch since")


async def test_an_administrators_write_stays_whatever_it_adjusts() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        linked, ctx = Linked(kernel), await boot(kernel)
        assert (await ask(kernel, ctx.recommend_sysctl("fs/tide/high", 7, lifetime_ns=50))).status == 0
        kernel.sysfs.write("/proc/sys/fs/tide/high", "30")
        assert linked.values == (29, 30)
        await kernel.sleep_ns(60)
        assert (linked.values, linked.high.writer) == ((29, 30), "root")
        assert lines(kernel)[-1].endswith("superseded: 30 stays, written meanwhile")


async def test_watching_is_checked() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        tide = Tide(kernel)
        with pytest.raises(UsageError, match="read-only"):
            kernel.actions.watch("fs/tide/fixed", tide.watch)
        with pytest.raises(UsageError, match="watched already"):
            kernel.actions.watch(NAME, lambda: 1)
        with pytest.raises(TreeError, match="no sysctl 'fs/tide/gone'"):
            kernel.actions.watch("fs/tide/gone", lambda: 1)
        with pytest.raises(UsageError, match="settled with the first"):
            kernel.actions.watch("fs/tide/alone", tide.watch, config=ActionConfig())
        tide.kpi = None
        tide.watch.epoch()  # nothing measured


async def test_equal_seeds_equal_hashes_and_nothing_left() -> None:
    hashes = []
    for _ in range(2):
        async with uxk.Kernel(seed=3) as kernel:
            before = usage(kernel)
            tide, ctx = Tide(kernel), await boot(kernel)
            for _ in range(3):
                await applied(kernel, ctx, lifetime_ns=50)
                await kernel.sleep_ns(50)
                tide.epochs(2)
            hashes.append(kernel.event_hash())
            await kernel.rmmod("tuner")
            assert usage(kernel)["capabilities"] == before["capabilities"]
    assert hashes[0] == hashes[1]
