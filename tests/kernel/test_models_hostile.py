"""Agents that mean harm, and administrators that slip: the subsystem goes on, and nothing is left behind."""

from __future__ import annotations

import errno
from typing import Any, ClassVar

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk.core.mode import ModeConfig
from uxk.errors import TreeError, UsageError
from uxk.kernel.proxy import MLModelProxy
from uxk.limits import HINTS_PER_SECOND_DEFAULT, I64_MAX, PAYLOAD_MAX_BYTES, PPM
from uxk.testing.kernels import crash, residue, usage
from uxk.uapi import ml
from uxk.uapi.ml import OVERRIDES, DatasetState, Mode, ModelCommand

ROWS = np.dtype([("lba", "<u4")])
PATH = "/sys/kernel/ml/lfs/lfs0"


class Fiend(uxk.Extension):
    """May do everything to lfs0 that a manifest can ask for; the tests speak for it."""

    manifest = uxk.Manifest(
        name="fiend", kind="ml-agent", restart=uxk.RestartPolicy(mode="temporary"),
        capabilities=("model:lfs*:read,write", "site:lfs0.*"),
    )  # fmt: skip
    of: ClassVar[dict[str, uxk.Context]] = {}
    heard: ClassVar[dict[str, list[uxk.Event]]] = {}

    def setup(self, ctx: uxk.Context) -> None:
        Fiend.of[ctx.name], Fiend.heard[ctx.name] = ctx, []
        ctx.attach("lfs0")

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        Fiend.heard[ctx.name].append(event)

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


def fine(payload: bytes) -> str:
    return "" if payload.startswith(b"ok") else "malformed"


async def status(kernel: uxk.Kernel, reply: uxk.Reply) -> int:
    await kernel.sleep_ns(0)
    assert reply.completion is not None
    return reply.completion.status


def bugs(kernel: uxk.Kernel) -> list[str]:
    return [record.text for record in kernel.kmsg.records() if "bug" in record.fields]


def feedback(name: str) -> list[ml.Feedback]:
    return [
        each for event in Fiend.heard[name] if event.topic == "feedback" for each in ml.decode_feedback(event.value)
    ]


# --- hints ---


async def test_a_flood_of_hints_is_cut_and_holds_no_memory() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0")
        site = proxy.site("lfs0.gc", fine, depth=4)
        await kernel.insmod(Fiend)
        ctx = Fiend.of["fiend"]
        statuses = [
            await status(kernel, ctx.hint("lfs0.gc", 0, I64_MAX, b"ok %d" % number))
            for number in range(HINTS_PER_SECOND_DEFAULT + 200)
        ]
        assert statuses.count(0) == HINTS_PER_SECOND_DEFAULT and set(statuses[-200:]) == {errno.EDQUOT}
        assert (site.held, site.superseded) == (4, HINTS_PER_SECOND_DEFAULT - 4)
        taken = site.take(kernel.now_ns)
        assert taken is not None and taken.payload == b"ok 996"
        assert (proxy.mode, bugs(kernel)) == (Mode.LEARNING, [])


@pytest.mark.parametrize("bad", [
    {"generation": -1}, {"generation": 1 << 63}, {"ttl_ns": -1}, {"ttl_ns": 1.5}, {"predicted": float("nan")},
    {"predicted": -(1 << 63)}, {"payload": b"ok" * PAYLOAD_MAX_BYTES}, {"payload": "ok"}, {"dataset": -1},
    {"site": ""}, {"site": "lfs0." + "g" * 60}, {"standing": 2},
])  # fmt: skip
async def test_what_no_hint_can_hold_is_answered_and_reaches_no_site(bad: dict[str, Any]) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        site = kernel.create_model("lfs", "lfs0").site("lfs0.gc", fine)
        await kernel.insmod(Fiend)
        ctx = Fiend.of["fiend"]
        hint = {"site": "lfs0.gc", "generation": 0, "ttl_ns": 9, "payload": b"ok", **bad}
        assert await status(kernel, ctx.hint(**hint)) == errno.EINVAL
        assert (site.hints_received, site.held, bugs(kernel)) == (0, 0, [])
        assert await status(kernel, ctx.hint("lfs0.gc", 0, 9, b"ok")) == 0


async def test_old_and_future_advice_is_refused_and_counted() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0")
        site, data = proxy.site("lfs0.gc", fine, lag_max=1), proxy.dataset("writes", ROWS, 4)
        await kernel.insmod(Fiend)
        ctx = Fiend.of["fiend"]
        site.advance()
        for _ in range(3):
            data.publish()
        for generation, dataset, lag in ((0, 0, 0), (2, 0, 0), (I64_MAX, 0, 0), (1, data.id, 1), (1, data.id, I64_MAX)):
            sent = ctx.hint("lfs0.gc", generation, 9, b"ok", dataset, dataset_generation=lag)
            assert await status(kernel, sent) == errno.EINVAL
        assert site.rejects == {"stale_generation": 3, "stale_dataset": 1, "forged": 1}
        assert site.take(kernel.now_ns) is None


async def test_hints_for_a_model_that_is_stopped_are_counted_as_such() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0")
        site = proxy.site("lfs0.gc", fine)
        await kernel.insmod(Fiend)
        ctx = Fiend.of["fiend"]
        assert await status(kernel, ctx.hint("lfs0.gc", 0, 9, b"ok", standing=True)) == 0
        proxy.stop()
        refused = ctx.hint("lfs0.gc", 0, 9, b"ok")
        assert await status(kernel, refused) == errno.EINVAL
        assert refused.completion is not None and refused.completion.payload == b"stopped"
        assert [each.reject for each in feedback("fiend")] == ["stopped"]
        assert (site.held, kernel.sysfs.read(f"{PATH}/rejects/stopped")) == (0, "1")
        assert proxy.estimate_system_state() == {}, "no fault of its agents'"


async def test_two_agents_of_one_model_are_kept_apart() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0", config=ModeConfig(rejects_min=4))
        site = proxy.site("lfs0.gc", fine, depth=2)
        await kernel.insmod(Fiend, instance="good")
        await kernel.insmod(Fiend, instance="evil")
        good, evil = Fiend.of["good"], Fiend.of["evil"]
        for ctx, payload in ((good, b"ok good"), (evil, b"ok evil")):
            assert await status(kernel, ctx.hint("lfs0.gc", 0, 9, payload)) == 0
        for expected in (b"ok good", b"ok evil"):
            found = site.take(kernel.now_ns)
            assert found is not None and found.payload == expected
            site.applied(found, outcome=len(expected))
        await kernel.sleep_ns(0)
        assert len(feedback("good")) == len(feedback("evil")) == 1, "though both command ids are alike"
        assert await status(kernel, good.hint("lfs0.gc", 0, 9, b"ok", standing=True)) == 0
        crash(kernel, "evil")
        assert site.standing(kernel.now_ns) is not None and proxy.mode is Mode.LEARNING
        crash(kernel, "good")
        assert site.standing(kernel.now_ns) is None and proxy.mode is Mode.EMERGENCY


# --- control ---


async def test_an_agent_with_all_rights_gets_round_neither_emergency_nor_override() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0", config=ModeConfig(calm_epochs=2))
        site = proxy.site("lfs0.gc", fine, units=4)
        await kernel.insmod(Fiend)
        ctx = Fiend.of["fiend"]

        async def restart() -> Mode:
            for command in (ModelCommand.STOP, ModelCommand.START):
                assert await status(kernel, ctx.model("lfs0", command)) == 0
            return proxy.mode

        assert await restart() is Mode.LEARNING
        assert site.epoch(default_kpi=100, hinted_kpi=200, weight=100) is Mode.EMERGENCY
        assert await restart() is Mode.EMERGENCY
        site.epoch(default_kpi=100, hinted_kpi=None, weight=10_000)
        assert await restart() is Mode.EMERGENCY
        assert site.epoch(default_kpi=100, hinted_kpi=None, weight=10_000) is Mode.LEARNING
        kernel.sysfs.write(f"{PATH}/mode_override", "emergency")
        assert await restart() is Mode.EMERGENCY
        assert kernel.sysfs.read(f"{PATH}/mode_override") == "emergency"


async def test_an_emergency_in_the_midst_of_an_epoch_does_not_hide_what_it_cost() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0")
        site = proxy.site("lfs0.gc", fine, units=2)
        site.watermark("load", critical=True)
        site.epoch(default_kpi=100, hinted_kpi=140, weight=10)
        assert proxy.modes.ledger.loss == 40 * 5
        site.epoch(default_kpi=100, hinted_kpi=140, weight=10)
        assert proxy.modes.ledger.loss == 40 * 5, "nobody follows hints any more"


@given(text=st.text(max_size=40) | st.sampled_from(["auto\n\n", "Emergency", "start ", "stop\0", "\ud800", "x" * 5000]))
def test_garbage_in_control_files_changes_nothing(text: str) -> None:
    async def main() -> None:
        async with uxk.Kernel(seed=1, arena_bytes=1 << 20) as kernel:
            proxy = kernel.create_model("lfs", "lfs0")
            for name in ("mode_override", "control"):
                if text.removesuffix("\n") not in {*OVERRIDES, *ml.CONTROL_COMMANDS}:
                    with pytest.raises(TreeError):
                        kernel.sysfs.write(f"{PATH}/{name}", text)
            assert (proxy.mode, proxy.modes.override, bugs(kernel)) == (Mode.LEARNING, None, [])

    trio.run(main)


# --- datasets ---


async def test_a_model_may_go_in_the_midst_of_a_pull() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        before = usage(kernel)
        proxy = kernel.create_model("lfs", "lfs0")
        data = proxy.dataset("writes", ROWS, 4, extract=lambda data: proxy.close())
        await kernel.insmod(Fiend)
        assert await status(kernel, Fiend.of["fiend"].model("lfs0", ModelCommand.GET_DATASET, "writes")) == errno.EINVAL
        assert data.state is DatasetState.UNKNOWN
        await kernel.rmmod("fiend")
        assert (residue(kernel, before), bugs(kernel)) == ({}, [])


@given(st.lists(st.tuples(st.integers(0, 24) | st.just(I64_MAX), st.integers(0, 24) | st.just(I64_MAX)), max_size=8))
def test_any_portions_are_read_in_order_or_refused(asked: list[tuple[int, int]]) -> None:
    async def main() -> None:
        async with uxk.Kernel(seed=1, arena_bytes=1 << 20) as kernel:
            proxy = kernel.create_model("lfs", "lfs0")
            data = proxy.dataset("writes", ROWS, 4)
            await kernel.insmod(Fiend)
            data.append([(1,), (2,), (3,), (4,)])
            extracted = 0
            for offset, size in asked:
                reply = Fiend.of["fiend"].model("lfs0", ModelCommand.GET_DATASET, "writes", offset=offset, size=size)
                length = size or max(0, 16 - offset)
                good = offset <= extracted and offset + length <= 16
                assert await status(kernel, reply) == (0 if good else errno.EINVAL)
                if good:
                    assert reply.completion is not None
                    portion = ml.decode_dataset(reply.completion.payload)
                    assert (portion.portion_offset, portion.portion_size) == (offset, length)
                    extracted = max(extracted, offset + length)
            assert data.extracted == extracted

    trio.run(main)


# --- anything at all ---

HINTS = st.tuples(
    st.just("hint"), st.sampled_from(["lfs0.gc", "lfs1.gc", "nowhere"]), st.sampled_from([0, 1, 2, I64_MAX]),
    st.sampled_from([0, 5, I64_MAX]), st.sampled_from([b"ok", b"bad", b"", b"ok" * 5000]), st.integers(0, 3),
    st.integers(0, 3), st.booleans(),
)  # fmt: skip
COMMANDS = st.tuples(
    st.just("model"), st.sampled_from(["lfs0", "lfs1", "nowhere"]), st.sampled_from([*ModelCommand, 99]),
    st.sampled_from(["", "writes", "nothing"]), st.integers(0, 20), st.integers(0, 20),
)  # fmt: skip
KPIS = st.none() | st.integers(1, 9) | st.just(I64_MAX)
DEEDS = st.one_of(
    HINTS, COMMANDS, st.tuples(st.just("epoch"), KPIS, KPIS), st.tuples(st.just("wait"), st.integers(1, 9)),
    st.tuples(st.sampled_from(["publish", "advance", "decide", "crash", "recreate", "watermark", "calm", "override"])),
)  # fmt: skip


class World:
    """A subsystem, a fiend, and what they do to each other."""

    def __init__(self, kernel: uxk.Kernel) -> None:
        self.kernel = kernel
        self.overrides = 0
        self.make()

    def make(self) -> None:
        config = ModeConfig(calm_epochs=1, rejects_min=2)
        self.proxy: MLModelProxy = self.kernel.create_model("lfs", "lfs0", config=config)
        self.site = self.proxy.site("lfs0.gc", fine, units=4, depth=2)
        self.data = self.proxy.dataset("writes", ROWS, 4)

    async def act(self, name: str, *args: Any) -> None:
        ctx = Fiend.of["fiend"]
        if name == "hint":
            site, generation, ttl_ns, payload, dataset, of, standing = args
            ctx.hint(site, generation, ttl_ns, payload, dataset, dataset_generation=of, standing=standing)
        elif name == "model":
            model, command, dataset, offset, size = args
            ctx.model(model, command, dataset, offset=offset, size=size)
        elif name == "epoch":
            self.site.epoch(default_kpi=args[0], hinted_kpi=args[1], weight=100)
        elif name == "wait":
            await self.kernel.sleep_ns(args[0])
        elif name == "crash":
            crash(self.kernel, "fiend")
            await self.kernel.sleep_ns(0)
            if "fiend" in self.kernel.agents:
                await self.kernel.rmmod("fiend")
            await self.kernel.insmod(Fiend)
        else:
            self.subsystem(name)
        await self.kernel.sleep_ns(0)

    def subsystem(self, name: str) -> None:
        if name == "publish":
            self.data.append([(7,), (8,), (9,)])
            self.data.publish()
        elif name == "advance":
            self.site.advance()
        elif name == "recreate":
            self.proxy.close()
            self.make()
        elif name == "override":
            self.overrides += 1
            self.proxy.override([None, *list(Mode)[1:]][self.overrides % 5])
        elif name in ("watermark", "calm"):
            self.site.watermark("load", critical=name == "watermark")
        else:
            for unit in range(4):
                for found in (self.site.standing(self.kernel.now_ns, unit), self.site.take(self.kernel.now_ns, unit)):
                    if found is not None:
                        assert self.proxy.mode is not Mode.EMERGENCY and self.site.follows(unit)
                        assert found.generation == self.site.generation and fine(found.payload) == ""
                        self.site.applied(found, outcome=unit)

    def check(self) -> None:
        site, proxy = self.site, self.proxy
        assert bugs(self.kernel) == []
        assert site.held <= 3 and (site.share_ppm == 0) == (proxy.mode is Mode.EMERGENCY)
        if not proxy.runs:
            assert (site.held, proxy.mode) == (0, Mode.EMERGENCY)
        if proxy.modes.critical and proxy.modes.override is None:
            assert proxy.mode is Mode.EMERGENCY
        assert proxy.modes.ledger.loss >= 0 and abs(proxy.efficiency_ppm) <= I64_MAX * PPM
        counted = sum(count for reason, count in site.rejects.items() if reason not in ("forged", "stopped"))
        assert counted <= site.hints_refused <= site.hints_received + site.hints_applied


@given(st.lists(DEEDS, max_size=40))
def test_whatever_happens_the_kernel_decides_and_nothing_is_left_behind(deeds: list[tuple[Any, ...]]) -> None:
    async def main() -> None:
        async with uxk.Kernel(seed=1, arena_bytes=1 << 20) as kernel:
            before = usage(kernel)
            world = World(kernel)
            await kernel.insmod(Fiend)
            for deed in deeds:
                try:
                    await world.act(*deed)
                except UsageError as exc:  # an epoch of a model that its agent stopped is none of these
                    raise AssertionError(deed) from exc
                world.check()
            for path, stat in list(kernel.sysfs.walk(PATH)):
                if stat.kind == "file" and stat.mode & 0o444:
                    kernel.sysfs.read(path)
            if "fiend" in kernel.agents:
                await kernel.rmmod("fiend")
            world.proxy.close()
            await kernel.sleep_ns(0)
            assert (residue(kernel, before), bugs(kernel)) == ({}, [])

    trio.run(main)
