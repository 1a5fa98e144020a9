"""A site's policy as a program: shadow, agreement, swap, weights, and every way back to the built-in rule."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
import trio

import uxk
from uxk.bpf.asm import assemble
from uxk.bpf.compiler.schema import Feature, Schema
from uxk.core.mode import ModeConfig
from uxk.core.site import DecisionSite
from uxk.errors import UsageError
from uxk.kernel.bpf.injection import Injections
from uxk.kernel.bpf.policy import REFUSALS_OF, PolicyPort, Verdict
from uxk.kernel.bpf.shadow import Comparison, InjectionConfig
from uxk.limits import PPM
from uxk.testing.kernels import crash
from uxk.uapi import ml
from uxk.uapi.ml import Mode, PolicyStep, ShadowRows

SITE = "/sys/fs/bpf/site/disk.pick"
SCHEMA = Schema([Feature("age", 0, 1000, "writes"), Feature("heat", -10, 10)])
OLD = assemble("r0 = 0\nr2 = *(u64 *)(r1 + 0)\nif r2 s<= 500 goto out\nr0 = 1\nout:\nexit")
"""1 for an age above 500."""
SUM = assemble("r0 = *(u64 *)(r1 + 0)\nr2 = *(u64 *)(r1 + 8)\nr0 += r2\nexit")
WEIGHTED = assemble("""
    r6 = *(u64 *)(r1 + 0)
    r2 = map[fd:0][0]+0
    r3 = *(u64 *)(r2 + 0)
    r3 &= 1
    r3 <<= 3
    r2 += r3
    r3 = *(u64 *)(r2 + 8)
    r0 = 0
    if r6 s<= r3 goto out
    r0 = 1
out:
    exit
""")
"""1 for an age above the weight that counts."""
CONFIG = InjectionConfig(decisions_min=20, batch=8, audit_every=4, interval_ns=0, lifetime_ns=1_000_000)


class Learner(uxk.Extension):
    """Judges what the program in the shadow says by ``model``."""

    manifest = uxk.Manifest(
        name="learner", kind="ml-agent", version="1", capabilities=("bpf:site/disk.*", "site:disk.pick"),
        restart=uxk.RestartPolicy(mode="temporary"),
    )  # fmt: skip
    ctx: ClassVar[uxk.Context]
    model: ClassVar[Callable[..., int]]
    steps: ClassVar[list[ml.PolicyChange]]
    answers: ClassVar[list[tuple[int, int, str]]]
    asked: ClassVar[int]

    def setup(self, ctx: uxk.Context) -> None:
        cls = type(self)
        cls.ctx, cls.steps, cls.answers, cls.asked = ctx, [], [], 0
        cls.model = staticmethod(lambda age, heat: int(age > 500))

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic == "policy":
            self.steps.append(ml.decode_policy(event.value))
        elif event.topic == "shadow":
            rows = ml.decode_shadow(event.value)
            values = memoryview(rows.rows).cast("q").tolist()
            vectors = [values[at : at + rows.width] for at in range(0, len(values), rows.width)]
            groups, at = [], 0
            for count in rows.counts or [1] * len(vectors):
                groups.append(vectors[at : at + count])
                at += count
            said = [self.say(group, ranked=bool(rows.counts)) for group in groups]
            type(self).asked += len(said)
            ctx.judge(rows.injection, rows.first, said)

    def say(self, group: list[list[int]], *, ranked: bool) -> int:
        scores = [type(self).model(*vector) for vector in group]
        return scores.index(max(scores)) if ranked else scores[0]

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()

    @classmethod
    def inject(cls, code: bytes, weights: bytes = b"", site: str = "disk.pick") -> None:
        reply = cls.ctx.inject(site, code, weights=weights, why="a test")
        reply.then(lambda done: cls.answers.append((done.status, done.result, done.payload.decode())))


class Bench:
    """A kernel with one site, which decides as often as it is told to."""

    def __init__(self, kernel: uxk.Kernel, *, ranked: bool, verdict: tuple[int, int], **modes: int) -> None:
        self.kernel = kernel
        config = ModeConfig(learning_share_ppm=PPM, **modes)
        self.proxy = kernel.create_model("blk", "disk", config=config)
        self.site = self.proxy.site("disk.pick", lambda payload: "")
        self.port: PolicyPort = kernel.policies.offer(self.site, SCHEMA, verdict, config=CONFIG, ranked=ranked)
        self.ages = [age % 1001 for age in range(0, 100_000, 37)]
        self.at = 0

    async def decide(self, count: int) -> list[Verdict | None]:
        found: list[Verdict | None] = []
        for _ in range(count):
            self.at += 1
            found.append(self.port.decide(self.ages[self.at], 0))
            if self.at % 8 == 0:
                await self.kernel.sleep_ns(1000)
        await self.kernel.sleep_ns(10_000)
        return found

    def lines(self) -> list[str]:
        return [record.text for record in self.kernel.kmsg.records(source="bpf") if "injection" in record.text]


@asynccontextmanager
async def bench(*, ranked: bool = False, verdict: tuple[int, int] = (0, 1), **modes: int) -> AsyncIterator[Bench]:
    async with uxk.Kernel(seed=5) as kernel:
        made = Bench(kernel, ranked=ranked, verdict=verdict, **modes)
        await kernel.insmod(Learner)
        yield made


async def swapped(made: Bench, code: bytes = OLD, weights: bytes = b"") -> None:
    Learner.inject(code, weights)
    await made.kernel.sleep_ns(1000)
    await made.decide(24)
    assert made.port.injection is not None


async def test_shadow_agreement_swap() -> None:
    async with bench() as made:
        port, read = made.port, made.kernel.sysfs.read
        Learner.inject(OLD)
        await made.kernel.sleep_ns(1000)
        assert await made.decide(16) == [None] * 16
        assert read(f"{SITE}/policy") == "built-in" and read(f"{SITE}/agreement") == "1000000 16 shadow"
        assert not Learner.answers
        await made.decide(8)
        assert Learner.answers == [(0, 1, "")] and read(f"{SITE}/policy") == "1"
        assert read(f"{SITE}/generation") == "1"
        found = await made.decide(40)
        assert found == [Verdict(int(age > 500), 1, port.current.cost_ns) for age in made.ages[25:65]]
        assert [step.step for step in Learner.steps] == [PolicyStep.SHADOW, PolicyStep.SWAPPED]
        assert Learner.steps[-1].agreement_ppm == PPM and Learner.asked == 24 + 8
        assert made.lines()[-1] == (
            "site/disk.pick: injection 1 swapped: program 1 decides, generation 1: 1000000 ppm of 24 agreed"
        )
        assert read("/sys/fs/bpf/prog/1/owner") == "learner" and int(read("/sys/fs/bpf/prog/1/runs")) == 64
        assert port.charged_ns == 40 * port.current.cost_ns > 0


async def test_a_decision_crosses_nothing_without_audits() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        site = DecisionSite("disk.pick", lambda payload: "")
        config = InjectionConfig(decisions_min=1, batch=1, audit_every=0)
        port = kernel.policies.offer(site, SCHEMA, (0, 1), config=config)
        learner = await kernel.insmod(Learner)
        Learner.inject(OLD)
        await kernel.sleep_ns(1000)
        port.decide(1, 1)
        await kernel.sleep_ns(1000)
        before = learner.account.crossings
        verdicts = [port.decide(age, 0) for age in range(1000)]
        await kernel.sleep_ns(1_000_000)
        assert learner.account.crossings == before and None not in verdicts


async def test_disagreement_in_the_shadow_refuses() -> None:
    async with bench() as made:
        Learner.model = staticmethod(lambda age, heat: int(age > 400))
        Learner.inject(OLD)
        await made.kernel.sleep_ns(1000)
        await made.decide(24)
        ((status, generation, why),) = Learner.answers
        assert status == errno.ECANCELED and generation == 0 and "the model agreed in" in why
        assert made.port.current is None and not made.kernel.bpf.programs
        assert Learner.steps[-1].step is PolicyStep.REFUSED and Learner.steps[-1].agreement_ppm < PPM


async def test_disagreement_later_falls_back() -> None:
    async with bench() as made:
        await swapped(made)
        Learner.model = staticmethod(lambda age, heat: int(age > 100))
        found = await made.decide(120)
        assert found[0] is not None and found[-1] is None
        assert "the model agrees in" in made.port.last_end and made.port.generation == 2
        assert made.port.fallbacks == 1 and not made.kernel.bpf.programs
        assert Learner.steps[-1].step is PolicyStep.ENDED
        assert "fallback to the built-in rule" in made.kernel.kmsg.records(source="bpf")[-5:].__repr__()
        await swapped(made, code=assemble("r0 = 0\nr2 = *(u64 *)(r1 + 0)\nif r2 s<= 100 goto out\nr0 = 1\nout:\nexit"))
        assert made.port.generation == 3


async def test_an_emergency_ends_both_and_nothing_starts_in_it() -> None:
    async with bench() as made:
        await swapped(made)
        Learner.inject(OLD)
        await made.kernel.sleep_ns(1000)
        assert made.port.candidate is not None
        made.proxy.watermark("full", critical=True, why="it is full")
        assert made.port.current is None and made.port.candidate is None
        assert made.port.last_end.startswith("emergency:") and "it is full" in made.port.last_end
        assert made.port.decide(600, 0) is None
        await made.kernel.sleep_ns(1000)
        assert Learner.answers[-1][0] == errno.ECANCELED
        Learner.inject(OLD)
        await made.kernel.sleep_ns(1000)
        assert Learner.answers[-1][0] == errno.EAGAIN and "emergency" in Learner.answers[-1][2]


async def test_a_fault_falls_back_in_the_same_step() -> None:
    async with bench() as made:
        await swapped(made)
        program = made.port.current
        assert program is not None
        program.program.translation.function = lambda fields: 1 // 0
        assert made.port.decide(600, 0) is None and made.port.current is None
        assert "ZeroDivisionError" in made.port.last_end and program.faults == 1
        Learner.inject(OLD)
        await made.kernel.sleep_ns(1000)
        candidate = made.port.candidate
        assert candidate is not None
        candidate.program.program.translation.function = lambda fields: 1 // 0
        assert made.port.decide(600, 0) is None and made.port.candidate is None
        await made.kernel.sleep_ns(1000)
        assert Learner.answers[-1][0] == errno.ECANCELED and "fault" in Learner.answers[-1][2]


async def test_a_site_that_refuses_most_verdicts_gets_its_own_rule_back() -> None:
    async with bench() as made:
        await swapped(made)
        count = 0
        while (verdict := made.port.decide(600, 0)) is not None:
            made.port.refuse(verdict, "out_of_range")
            count += 1
        assert count == REFUSALS_OF and "out_of_range" in made.port.last_end


@pytest.mark.parametrize(
    ("code", "site", "status", "why"),
    [
        (assemble("r0 = 2\nexit"), "disk.pick", errno.EINVAL, "insn 1"),
        (assemble("r0 = *(u64 *)(r1 + 24)\nexit"), "disk.pick", errno.EINVAL, "insn 0"),
        (b"\x95", "disk.pick", errno.EINVAL, ""),
        (OLD, "disk.other", errno.ENODEV, "takes no program"),
        (OLD, "tape.pick", errno.EACCES, "does not ask for bpf:site/tape.pick:write"),
    ],
)  # fmt: skip
async def test_what_is_refused_at_once(code: bytes, site: str, status: int, why: str) -> None:
    async with bench() as made:
        Learner.inject(code, site=site)
        await made.kernel.sleep_ns(1000)
        assert Learner.answers[0][0] == status and why in Learner.answers[0][2]
        assert not made.kernel.bpf.programs and not made.kernel.bpf.maps and made.port.candidate is None


async def test_a_silent_model_never_gets_its_program_in() -> None:
    async with bench() as made:
        Learner.inject(OLD)
        await made.kernel.sleep_ns(1000)
        Learner.inject(OLD)
        await made.kernel.sleep_ns(1000)
        assert Learner.answers == [(errno.EBUSY, 0, "site disk.pick: a program of learner is in the shadow")]
        await made.kernel.sleep_ns(CONFIG.lifetime_ns)
        assert Learner.answers[-1][0] == errno.ECANCELED and "judged 0 decisions in time" in Learner.answers[-1][2]


async def test_weights_move_without_a_new_program() -> None:
    def packed(limit: int) -> bytes:
        return limit.to_bytes(8, "little", signed=True)

    async with bench() as made:
        await swapped(made, WEIGHTED, packed(500))
        port = made.port
        assert port.decide(501, 0) == Verdict(1, 1, port.current.cost_ns)
        for generation, limit in enumerate((900, 100, 700), 2):
            Learner.model = staticmethod(lambda age, heat, limit=limit: int(age > limit))
            Learner.ctx.update_weights(1, packed(limit))
            await made.kernel.sleep_ns(1000)
            assert [port.decide(limit, 0).value, port.decide(limit + 1, 0).value] == [0, 1]
            assert port.generation == generation
        replies: list[tuple[int, str]] = []
        for number, data in ((1, b"123"), (7, packed(1))):
            reply = Learner.ctx.update_weights(number, data)
            reply.then(lambda done: replies.append((done.status, done.payload.decode())))
        await made.kernel.sleep_ns(1000)
        assert replies == [
            (errno.EINVAL, "weights of 3 bytes, expected 8 as before"),
            (errno.ENOENT, "injection 7: learner has none of it"),
        ]  # fmt: skip


async def test_ranking() -> None:
    async with bench(ranked=True, verdict=(-100, 2000)) as made:
        Learner.model = staticmethod(lambda age, heat: age + heat)
        Learner.inject(SUM)
        await made.kernel.sleep_ns(1000)
        rows = [[(5, 1), (9, -3), (6, 0)], [(5, 1), (9, -2), (7, 0)], [(1, 0)]]
        for count in range(24):
            assert made.port.rank(rows[count % 3]) is None
            if count % 8 == 7:
                await made.kernel.sleep_ns(10_000)
        assert [made.port.rank(each).value for each in rows] == [0, 1, 0]
        assert made.port.rank(rows[0]).cost_ns == 3 * made.port.current.cost_ns and made.port.rank([]) is None


async def test_features_out_of_range_are_brought_into_it() -> None:
    async with bench(verdict=(-10, 1010)) as made:
        made.kernel.bpf.attach(made.kernel.bpf.load(SUM, "site/disk.pick"))
        assert made.port.decide(5000, -50).value == 990 and made.port.clamped == 1
        with pytest.raises(UsageError, match="1 features, expected 2"):
            made.port.decide(1)


async def test_it_goes_with_its_agent_unless_it_is_pinned() -> None:
    for pinned in (False, True):
        async with bench() as made:
            await swapped(made)
            if pinned:
                made.kernel.sysfs.write("/sys/fs/bpf/prog/1/pin", "keep")
            crash(made.kernel, "learner")
            await made.kernel.sleep_ns(1000)
            assert (made.port.decide(600, 0) is not None) == pinned
            assert pinned or "learner" in made.port.last_end
            await made.decide(100)
            if pinned:
                made.kernel.sysfs.write(f"{SITE}/control", "fallback")
                assert made.port.decide(600, 0) is None and made.port.last_end == "by the administrator"


async def test_an_injected_program_that_is_detached_from_below_is_over() -> None:
    async with bench() as made:
        await swapped(made)
        (program,) = made.kernel.bpf
        made.kernel.bpf.pin(program, "keep")
        crash(made.kernel, "learner")
        await made.kernel.sleep_ns(1000)
        assert made.port.current is program
        made.kernel.bpf.unpin("keep")
        assert made.port.current is None and not made.kernel.bpf.programs
        assert made.lines()[-1].startswith("site/disk.pick: injection 1 ended: learner is gone")


async def test_nobody_judges_for_another() -> None:
    class Stranger(Learner):
        manifest = uxk.Manifest(name="stranger", version="1", capabilities=("bpf:site/disk.*",))

    async with bench() as made:
        Learner.inject(OLD)
        await made.kernel.sleep_ns(1000)
        made.port.decide(1, 1)
        await made.kernel.insmod(Stranger)
        answers: list[int] = []
        for reply in (Stranger.ctx.judge(1, 0, [0]), Stranger.ctx.update_weights(1, b"")):
            reply.then(lambda done: answers.append(done.status))
        await made.kernel.sleep_ns(1000)
        assert answers == [errno.ENOENT, errno.ENOENT] and made.port.candidate is not None


async def test_a_model_that_goes_takes_the_site_along() -> None:
    async with bench() as made:
        await swapped(made)
        made.proxy.close()
        assert made.port.current is None and not made.kernel.sysfs.exists(SITE) and not made.kernel.bpf.programs


async def test_the_same_seed_gives_the_same_hash() -> None:
    async def run() -> str:
        async with bench() as made:
            await swapped(made)
            await made.decide(50)
            return made.kernel.event_hash()

    assert await run() == await run()


def test_only_decisions_that_were_asked_about_are_judged() -> None:
    sent: list[ShadowRows] = []

    def send(rows: ShadowRows) -> bool:
        sent.append(rows)
        return len(sent) != 2

    compared = Comparison(1, 2, InjectionConfig(batch=2, decisions_min=3), send, ranked=False)
    for value in range(5):
        compared.note([(value, 0, 0)], value)
    assert [(rows.first, len(rows.rows)) for rows in sent] == [(0, 32), (2, 32)] and compared.skipped == 2
    one = (0).to_bytes(8, "little")
    for first, verdicts, why in ((4, one, "decision 4"), (2, one, "decision 2"), (0, b"1", "1 bytes")):
        with pytest.raises(UsageError, match=why):
            compared.judge(first, verdicts)
    compared.judge(0, one + one)
    assert (compared.judged, compared.agreed, compared.agreement_ppm) == (2, 1, PPM // 2)
    with pytest.raises(UsageError, match="decision 0"):
        compared.judge(0, one)


@pytest.mark.parametrize(("name", "value"), [("decisions_min", 0), ("agreement_ppm", PPM + 1), ("batch", 0)])
def test_settings_have_ranges(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        InjectionConfig(**{name: value})


def test_sites_are_offered_once() -> None:
    kernel = uxk.Kernel()
    site = DecisionSite("disk.pick", lambda payload: "")
    assert isinstance(kernel.policies, Injections)
    kernel.policies.offer(site, SCHEMA, (0, 1))
    with pytest.raises(UsageError, match="already"):
        kernel.policies.offer(site, SCHEMA, (0, 1))
    assert kernel.sysfs.read(f"{SITE}/schema") == "age 0 1000 writes\nheat -10 10" and Mode.LEARNING
