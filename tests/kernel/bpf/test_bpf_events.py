"""Agents whose kernel-side logic is a program: a driver that never wakes, and one that hears of emergencies only."""

from __future__ import annotations

import errno
from typing import ClassVar

import trio

import uxk
from uxk.bpf.asm import assemble
from uxk.core.mode import ModeConfig
from uxk.kernel.bpf.events import SPEC, TOPICS
from uxk.kernel.bpf.functions import KFUNCS
from uxk.uapi.ml import Mode

NULL = """
    r2 = *(u64 *)(r1 + 40)
    *(u64 *)(r1 + 64) = r2
    r0 = 1
    exit
"""
"""A null disk: every request is answered with its length."""
EMERGENCIES = f"""
    r2 = *(u64 *)(r1 + 0)
    r0 = 0
    if r2 != {TOPICS.index("mode")} goto out
    r3 = *(u64 *)(r1 + 8)
    if r3 == {int(Mode.EMERGENCY)} goto out
    r0 = 1
out:
    exit
"""
STOP = f"""
    r2 = *(u64 *)(r1 + 8)
    if r2 != {int(Mode.EMERGENCY)} goto out
    r1 = 1
    call kfunc#{KFUNCS["bpf_ml_model_lookup"]}
    if r0 == 0 goto out
    r6 = r0
    r1 = r6
    call kfunc#{KFUNCS["bpf_ml_model_stop"]}
    r1 = r6
    call kfunc#{KFUNCS["bpf_ml_model_release"]}
out:
    r0 = 0
    exit
"""


class NullDriver(uxk.Extension):
    """Loads its program, and that is all."""

    manifest = uxk.Manifest(name="be_null", version="1", capabilities=("bpf:queue/be_null0",))
    replies: ClassVar[list[tuple[int, bytes]]]

    def setup(self, ctx: uxk.Context) -> None:
        type(self).replies = []
        ctx.call_later_ns(1, lambda _: self.load(ctx))

    def load(self, ctx: uxk.Context) -> None:
        reply = ctx.load_program("queue/be_null0", assemble(NULL))
        reply.then(lambda done: self.replies.append((done.status, done.payload)))


class Listener(uxk.Extension):
    """Hears events of a model, as its program lets it."""

    manifest = uxk.Manifest(
        name="be_ear", kind="ml-agent", version="1", capabilities=("bpf:agent/be_ear", "model:disk", "bpf:site/x"),
    )  # fmt: skip
    heard: ClassVar[list[str]]
    ctx: ClassVar[uxk.Context]

    def setup(self, ctx: uxk.Context) -> None:
        type(self).heard, type(self).ctx = [], ctx
        ctx.attach("disk")

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        self.heard.append(event.topic)

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


async def test_a_driver_that_is_a_program_is_never_woken() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        driver = await kernel.insmod(NullDriver)
        await kernel.sleep_ns(1000)
        assert NullDriver.replies == [(0, b"")]
        before = (driver.account.crossings, driver.account.turns, driver.account.messages_in)
        answers: list[tuple[int, int]] = []
        port = kernel.open_port("be_null0", lambda done: answers.extend((each.status, each.result) for each in done))
        for length in range(1, 101):
            port.submit_batch([uxk.Request(0, uxk.Op.READ, length=length)])
            if length % 50 == 0:
                await kernel.run()
        assert answers == [(0, length) for length in range(1, 101)]
        assert (driver.account.crossings, driver.account.turns, driver.account.messages_in) == before
        assert (driver.account.completed, driver.account.inflight) == (100, 0)


async def test_events_end_in_the_kernel() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        listener = await kernel.insmod(Listener)
        model = kernel.create_model("blk", "disk", config=ModeConfig(calm_epochs=1))
        await kernel.sleep_ns(1000)
        Listener.heard.clear()
        Listener.ctx.load_program("agent/be_ear", assemble(EMERGENCIES))
        await kernel.sleep_ns(1000)
        (program,) = kernel.bpf
        assert program.spec == SPEC
        for mode in (Mode.COLLABORATION, Mode.EMERGENCY, Mode.LEARNING):
            model.override(mode)
        await kernel.sleep_ns(1000)
        assert Listener.heard == ["mode"] and program.runs == 3
        kernel.bpf.give_up(program, "enough")
        model.override(Mode.COLLABORATION)
        await kernel.sleep_ns(1000)
        assert Listener.heard == ["mode", "mode"]
        await kernel.rmmod(listener.name)
        assert not kernel.machine.event_hooks


async def test_commands_need_the_owners_right() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Listener)
        model = kernel.create_model("blk", "disk")
        Listener.ctx.load_program("agent/be_ear", assemble(STOP))
        await kernel.sleep_ns(1000)
        model.override(Mode.EMERGENCY)
        await kernel.sleep_ns(1000)
        assert model.runs  # the manifest asks for reading only
        kernel.bpf.attach(kernel.bpf.load(assemble(STOP), "agent/be_ear"))
        model.override(Mode.LEARNING)
        model.override(Mode.EMERGENCY)
        assert model.runs  # not in the midst of what the event tells of
        await kernel.sleep_ns(1000)
        assert not model.runs


async def test_what_may_not_be_loaded() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Listener)
        answers: list[int] = []
        for at, arrays in (
            ("agent/be_null", ()), ("queue/be_null0", ()), ("site/x", ()), ("agent/be_ear", ((1 << 21, 1),)),
            ("agent/be_ear", ((0, 1),)),
        ):  # fmt: skip
            reply = Listener.ctx.load_program(at, assemble("r0 = 0\nexit"), arrays=arrays)
            reply.then(lambda done: answers.append(done.status))
            await kernel.sleep_ns(1000)
        assert answers == [errno.EACCES, errno.EACCES, errno.ENODEV, errno.ENOMEM, errno.EINVAL]
        assert not kernel.bpf.programs and not kernel.bpf.maps


async def test_another_instance_of_that_name_has_its_own_point() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        first = await kernel.insmod(Listener)
        kernel.bpf.attach(kernel.bpf.load(assemble(EMERGENCIES), "agent/be_ear"))
        await kernel.rmmod(first.name)
        await kernel.insmod(Listener)
        point = kernel.bpf.point("agent/be_ear")
        assert not point.gone and not kernel.machine.event_hooks
        kernel.bpf.attach(kernel.bpf.load(assemble(EMERGENCIES), "agent/be_ear"))
        assert list(kernel.machine.event_hooks) == [kernel.agents["be_ear"].id]
