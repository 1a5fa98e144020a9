"""Hot upgrades of agents that have programs in the kernel: what stays, who judges it, and what goes with its build."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
import trio
from numpy.typing import NDArray

import uxk
from uxk.bpf.asm import assemble
from uxk.bpf.compiler.schema import Feature, Schema
from uxk.core.site import DecisionSite
from uxk.errors import UpgradeError
from uxk.kernel.bpf.policy import PolicyPort
from uxk.kernel.bpf.registry import HANDOVER_NS
from uxk.kernel.bpf.shadow import InjectionConfig
from uxk.testing.kernels import crash
from uxk.uapi import ml
from uxk.uapi.ml import PolicyStep

MS = 1_000_000
SCHEMA = Schema([Feature("age", 0, 1000), Feature("heat", -10, 10)])
OLD = assemble("r0 = 0\nr2 = *(u64 *)(r1 + 0)\nif r2 s<= 500 goto out\nr0 = 1\nout:\nexit")
CONFIG = InjectionConfig(decisions_min=8, batch=4, audit_every=1, interval_ns=0, audit_ns=MS, lifetime_ns=10 * MS)


class Judge(uxk.MLAgent):
    """Judges by a limit, and keeps what it hears."""

    manifest = uxk.Manifest(
        name="judge", version="1", capabilities=("bpf:agent/judge",), restart=uxk.RestartPolicy(mode="temporary"),
    )  # fmt: skip
    policies = ("disk.pick",)
    limit: ClassVar[int] = 500
    silent: ClassVar[bool] = False
    asked: ClassVar[list[str]] = []
    steps: ClassVar[list[tuple[str, ml.PolicyChange]]] = []
    answers: ClassVar[list[tuple[int, int, str]]] = []
    ctx: ClassVar[uxk.Context]

    def setup(self, ctx: uxk.Context) -> None:
        Judge.ctx = ctx

    def judge(self, ctx: uxk.Context, site: str, rows: NDArray[np.int64]) -> list[int] | None:
        self.asked.extend([self.manifest.version] * len(rows))
        return None if self.silent else [int(age > self.limit) for age, _ in rows.tolist()]

    def on_policy(self, ctx: uxk.Context, site: str, change: ml.PolicyChange) -> None:
        self.steps.append((self.manifest.version, change))

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()

    @classmethod
    def inject(cls) -> None:
        reply = Judge.ctx.inject("disk.pick", OLD)
        reply.then(lambda done: cls.answers.append((done.status, done.result, done.payload.decode())))


def build(version: str, base: type[Any] = Judge, **body: Any) -> type[Any]:
    """Another build."""
    return type(f"Build{version}", (base,), {
        "manifest": msgspec.structs.replace(base.manifest, version=version), **body
    })  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> None:
    for heard in (Judge.asked, Judge.steps, Judge.answers):
        heard.clear()
    Judge.limit, Judge.silent = 500, False


@asynccontextmanager
async def kernel_with() -> AsyncIterator[tuple[uxk.Kernel, PolicyPort]]:
    async with uxk.Kernel(seed=2) as kernel:
        site = DecisionSite("disk.pick", lambda payload: "")
        port = kernel.policies.offer(site, SCHEMA, (0, 1), config=CONFIG)
        await kernel.insmod(Judge)
        yield kernel, port


async def decide(kernel: uxk.Kernel, port: PolicyPort, count: int = 8) -> list[int | None]:
    found = []
    for number in range(count):
        verdict = port.decide(number * 613 % 1001, 0)
        found.append(None if verdict is None else verdict.value)
        await kernel.sleep_ns(1000)
    await kernel.sleep_ns(10_000)
    return found


async def in_force(kernel: uxk.Kernel, port: PolicyPort) -> None:
    Judge.inject()
    await kernel.sleep_ns(1000)
    await decide(kernel, port)
    assert port.current is not None and Judge.answers == [(0, 1, "")]


async def test_a_policy_stays_over_an_upgrade_and_the_new_build_judges_it() -> None:
    async with kernel_with() as (kernel, port):
        await in_force(kernel, port)
        await kernel.upgrade("judge", build("2"), probation_ns=MS)
        generation, Judge.asked[:] = port.generation, []
        assert None not in await decide(kernel, port, 20) and set(Judge.asked) == {"2"} and len(Judge.asked) == 20
        version, step = Judge.steps[-1]
        assert (version, step.injection, step.step, port.generation) == ("2", 1, PolicyStep.SWAPPED, generation)
        Judge.limit = 100
        await decide(kernel, port, 40)
        assert port.current is None and "the model agrees in" in port.last_end
        assert Judge.steps[-1][0] == "2" and Judge.steps[-1][1].step is PolicyStep.ENDED


async def test_the_new_build_may_move_the_weights_of_what_it_took_over() -> None:
    async with kernel_with() as (kernel, port):
        Judge.ctx.inject("disk.pick", OLD, weights=bytes(8))
        await kernel.sleep_ns(1000)
        await decide(kernel, port)
        await kernel.upgrade("judge", build("2"), probation_ns=MS)
        replies: list[int] = []
        Judge.ctx.update_weights(Judge.steps[-1][1].injection, bytes(8)).then(lambda done: replies.append(done.status))
        await kernel.sleep_ns(1000)
        assert replies == [0] and port.generation == 2


async def test_an_upgrade_that_fails_leaves_the_old_build_with_its_policy() -> None:
    class Broken(Judge):
        manifest = msgspec.structs.replace(Judge.manifest, version="2", ready="explicit")

        def setup(self, ctx: uxk.Context) -> None:
            ctx.load_program("agent/judge", assemble("r0 = 0\nexit"))
            ctx.call_later_ns(1000, lambda _: 1 // 0)

    async with kernel_with() as (kernel, port):
        await in_force(kernel, port)
        Judge.ctx.load_program("agent/judge", assemble("r0 = 0\nexit"))
        await kernel.sleep_ns(1000)
        before = [(each.id, sorted(each.attached)) for each in kernel.bpf]
        with pytest.raises(UpgradeError, match="ZeroDivisionError"):
            await kernel.upgrade("judge", Broken, probation_ns=MS)
        assert [(each.id, sorted(each.attached)) for each in kernel.bpf] == before and port.current is not None
        Judge.asked.clear()
        assert None not in await decide(kernel, port, 32) and Judge.asked == ["1"] * 32
        assert port.injection is not None and port.injection.comparison.oldest is None


async def test_what_is_in_the_shadow_ends_with_the_command_that_brought_it() -> None:
    async with kernel_with() as (kernel, port):
        Judge.inject()
        await kernel.sleep_ns(1000)
        assert port.candidate is not None
        await kernel.upgrade("judge", build("2"), probation_ns=MS)
        assert port.candidate is None and not kernel.bpf.programs
        assert any("injection 1 refused: judge is being upgraded" in each.text for each in kernel.kmsg.records())
        Judge.inject()
        await kernel.sleep_ns(1000)
        await decide(kernel, port)
        assert port.current is not None


async def test_a_build_that_may_no_more_gives_its_policy_up() -> None:
    class Meek(Judge):
        manifest = uxk.Manifest(name="judge", version="2", restart=uxk.RestartPolicy(mode="temporary"))
        policies = ()

    async with kernel_with() as (kernel, port):
        await in_force(kernel, port)
        await kernel.upgrade("judge", Meek, probation_ns=MS)
        assert port.current is None and "may not any more" in port.last_end and not kernel.bpf.programs


NULL = assemble("r2 = *(u64 *)(r1 + 40)\n*(u64 *)(r1 + 64) = r2\nr0 = 1\nexit")
NEGATED = assemble("r2 = *(u64 *)(r1 + 40)\nr2 = -r2\n*(u64 *)(r1 + 64) = r2\nr0 = 1\nexit")


class Null(uxk.Extension):
    """A driver whose kernel side is a program."""

    manifest = uxk.Manifest(name="up_null", version="1", capabilities=("bpf:queue/up_null0",))
    code: ClassVar[bytes] = NULL

    def setup(self, ctx: uxk.Context) -> None:
        if self.code:
            ctx.load_program("queue/up_null0", self.code)


@pytest.mark.parametrize(("code", "answer"), [(NULL, 9), (NEGATED, -9), (b"", 0)])
async def test_programs_of_a_build_are_replaced_by_those_of_the_next(code: bytes, answer: int) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Null)
        for version in range(2, 6):
            await kernel.upgrade("up_null", build(str(version), Null, code=code), probation_ns=MS)
            await kernel.sleep_ns(2 * HANDOVER_NS)
        assert len(kernel.bpf.programs) == len(kernel.queues.point("up_null0").programs) == bool(code)
        answers: list[int] = []
        kernel.open_port("up_null0", lambda done: answers.extend(each.result for each in done)).submit(
            uxk.Request(0, uxk.Op.READ, length=9)
        )
        await kernel.sleep_ns(1000)
        assert answers == [answer]


async def test_a_program_takes_the_place_of_another_in_one_step() -> None:
    class Own(Null):
        ctx: ClassVar[uxk.Context]

        def setup(self, ctx: uxk.Context) -> None:
            Own.ctx = ctx

        async def run(self, ctx: uxk.Context) -> None:
            await trio.sleep_forever()

    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Own)
        replies: list[tuple[int, int]] = []

        async def load(code: bytes, replaces: int = 0) -> tuple[int, int]:
            reply = Own.ctx.load_program("queue/up_null0", code, replaces=replaces)
            reply.then(lambda done: replies.append((done.status, done.result)))
            await kernel.sleep_ns(1000)
            return replies[-1]

        assert await load(NULL) == (0, 1) and await load(assemble("r0 = 0\nexit")) == (0, 2)
        assert await load(NEGATED, 1) == (0, 3)
        assert (
            [each.id for each in kernel.queues.point("up_null0").programs]
            == [3, 2]
            == sorted(kernel.bpf.programs)[::-1]
        )
        assert await load(NULL, 1) == (errno.ENOENT, 0) and await load(b"\x95", 2) == (errno.EINVAL, 0)
        assert [each.id for each in kernel.queues.point("up_null0").programs] == [3, 2]
        assert "program 1 (up_null) detached from queue/up_null0: program 3 takes its place" in [
            record.text for record in kernel.kmsg.records(source="bpf")
        ]


async def test_a_policy_that_nobody_audits_goes() -> None:
    async with kernel_with() as (kernel, port):
        await in_force(kernel, port)
        Judge.silent = True
        assert None not in await decide(kernel, port)
        await kernel.sleep_ns(2 * MS)
        assert port.current is None and "did not judge decision 8 within" in port.last_end


async def test_an_agent_that_keeps_its_audits_from_itself_loses_its_policy() -> None:
    async with kernel_with() as (kernel, port):
        await in_force(kernel, port)
        Judge.ctx.load_program("agent/judge", assemble("r0 = 1\nexit"))
        await kernel.sleep_ns(1000)
        await decide(kernel, port)
        await kernel.sleep_ns(2 * MS)
        assert port.current is None and "did not judge" in port.last_end and Judge.asked == ["1"] * 8


async def test_audits_that_come_late_but_in_time_are_good() -> None:
    async with kernel_with() as (kernel, port):
        await in_force(kernel, port)
        for _ in range(10):
            await decide(kernel, port)
            await kernel.sleep_ns(MS * 3 // 4)
        assert port.current is not None


async def test_a_pinned_policy_outlives_its_agent_and_is_audited_by_nobody() -> None:
    async with kernel_with() as (kernel, port):
        await in_force(kernel, port)
        kernel.sysfs.write(f"/sys/fs/bpf/prog/{port.current.id if port.current else 0}/pin", "kept")
        crash(kernel, "judge")
        await decide(kernel, port)
        await kernel.sleep_ns(5 * MS)
        assert port.current is not None and not kernel.policies._live[1].comparison.oldest
        kernel.sysfs.write("/sys/fs/bpf/unpin", "kept")
        assert port.current is None and not kernel.bpf.programs and kernel.sysfs.read("/sys/fs/bpf/memory") == ""


async def test_ranked_scores_may_be_floats_and_verdicts_may_not() -> None:
    class Floating(Judge):
        manifest = msgspec.structs.replace(Judge.manifest, name="floating")

        def judge(self, ctx: uxk.Context, site: str, rows: NDArray[np.int64]) -> Any:
            return [age * 0.5 for age, _ in rows.tolist()]

    async with uxk.Kernel(seed=2) as kernel:
        first, second = (DecisionSite(name, lambda payload: "") for name in ("disk.pick", "disk.rank"))
        port = kernel.policies.offer(first, SCHEMA, (0, 1), config=CONFIG)
        ranked = kernel.policies.offer(second, SCHEMA, (0, 1000), config=CONFIG, ranked=True)
        Floating.policies = ("disk.pick", "disk.rank")
        await kernel.insmod(build("1", Floating, policies=("disk.pick", "disk.rank")))
        Judge.ctx.inject("disk.rank", assemble("r0 = *(u64 *)(r1 + 0)\nexit"))
        await kernel.sleep_ns(1000)
        for at in range(8):
            ranked.rank([(at, 0), (7, 0), (3, 0)])
        await kernel.sleep_ns(10_000)
        assert ranked.current is not None
        Judge.ctx.inject("disk.pick", OLD)
        await kernel.sleep_ns(1000)
        await decide(kernel, port)
        assert port.current is None
        assert any("the kernel has no floats" in each.text for each in kernel.kmsg.records())
