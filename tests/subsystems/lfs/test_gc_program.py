"""A program that scores segments inside the batch: both engines, the site around it, and every way out of force."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

import uxk
from uxk.bpf.asm import assemble
from uxk.bpf.program import Program
from uxk.errors import ConfigError
from uxk.kernel.bpf.loaded import Loaded
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs import policies
from uxk.subsystems.lfs.data import segment_rows
from uxk.subsystems.lfs.fast.kernel import run
from uxk.subsystems.lfs.fast.select import candidate_rows
from uxk.subsystems.lfs.fast.volume import Volume, make_volume, registers, set_policy
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.hint import GcHint, encode_hint
from uxk.subsystems.lfs.policies.programmed import Programmed
from uxk.subsystems.lfs.policy import parse_policy
from uxk.subsystems.lfs.reference import Volume as Reference
from uxk.subsystems.lfs.rows import SCHEMA, VERDICT, feature_rows, row_of
from uxk.subsystems.lfs.scorer import Scorer, scorer_of
from uxk.subsystems.lfs.subsystem import Lfs
from uxk.testing import boot, volume
from uxk.uapi import ml
from uxk.uapi.ml import Mode

PAGES, SIZE, LOGS, GP_PPM = 600, 16, 6, 150_000
SITE = "lfs0.gc"
BENEFIT = """
    r0 = *(u64 *)(r1 + 0)
    r2 = *(u64 *)(r1 + 16)
    r0 += r2
    r2 = *(u64 *)(r1 + 8)
    r0 -= r2
    exit
"""
LESS_THAN_NOTHING = f"{BENEFIT.rsplit('exit', 1)[0]} r0 -= 1000000\n exit\n"


def program(text: str) -> Program:
    return Program(assemble(text), SCHEMA.spec(VERDICT, trusted=True), helpers={})


def drawn(rng: random.Random) -> Program:
    """Some arithmetic and a branch or two; r0 may be anything."""
    lines = [f"r{2 + slot} = *(u64 *)(r1 + {8 * slot})" for slot in range(5)] + ["r0 = 0"]
    for number in range(rng.randint(1, 10)):
        to, of = rng.choice("0234"), rng.choice("23456")
        match rng.randrange(4):
            case 0:
                lines.append(f"r{to} {rng.choice(['+=', '-=', '*=', '^=', '|=', '&='])} r{of}")
            case 1:
                lines.append(f"r{to} {rng.choice(['<<=', '>>=', 's>>='])} {rng.randint(0, 20)}")
            case 2:
                lines.append(f"r{to} = -r{to}")
            case _:
                lines += [f"if r{of} s> {rng.randint(0, 9000)} goto l{number}", f"r0 += {rng.randint(-9999, 9999)}"]
                lines.append(f"l{number}:")
    return program("\n".join([*lines, "exit"]))


def writes(seed: int, count: int = 6_000) -> np.ndarray[Any, np.dtype[np.int32]]:
    rng = np.random.default_rng(seed)
    return np.concatenate([np.arange(PAGES), (rng.random(count) ** 3 * PAGES).astype(np.int64)]).astype(np.int32)


def fast(scorer: Scorer, placement: str, ops: np.ndarray[Any, Any]) -> Volume:
    made = make_volume(PAGES, SIZE, GP_PPM, LOGS)
    set_policy(made, *parse_policy(f"{placement}/program").codes)
    scorer.serve(made)
    run(*made, ops, 0, len(ops))
    assert not made.reg[c.FULL]
    return made


# --- engines ---


@pytest.mark.parametrize("seed", range(12))
def test_engines_agree_on_programs_drawn_at_random(seed: int) -> None:
    rng = random.Random(seed)
    made, placement, ops = drawn(rng), rng.choice(("nosep", "sepgc", "dac", "sepbit")), writes(seed)
    scorer = scorer_of(made)
    ours = fast(scorer, placement, ops)
    reference = policies.Policy(policies.PLACEMENTS[placement](), Programmed(made.translation.function))
    theirs = Reference(Geometry(PAGES, SIZE, GP_PPM, LOGS), reference)
    theirs.run(ops)
    assert ours.page[:, c.BLOCK].tolist() == list(theirs.block_of)
    assert (ours.reg[c.MOVED], ours.reg[c.CLEANED]) == (theirs.moved, theirs.cleaned)
    assert ours.reg[c.PROGRAM_RUNS] >= ours.reg[c.PROGRAM_CHOSE] > 0
    if scorer.is_native:  # and by a call back into Python
        again = fast(Scorer(made.translation.function), placement, ops)
        assert (again.page == ours.page).all() and again.reg[c.PROGRAM_RUNS] == ours.reg[c.PROGRAM_RUNS]


def test_negative_scores_rank_as_positive_ones() -> None:
    ops = writes(3)
    assert (fast(scorer_of(program(BENEFIT)), "dac", ops).page == fast(
        scorer_of(program(LESS_THAN_NOTHING)), "dac", ops
    ).page).all()  # fmt: skip


def test_without_a_program_and_after_a_fault_it_is_cost_benefit() -> None:
    ops = writes(4)
    plain = make_volume(PAGES, SIZE, GP_PPM, LOGS)
    set_policy(plain, *parse_policy("dac/cb-age").codes)
    run(*plain, ops, 0, len(ops))
    empty = make_volume(PAGES, SIZE, GP_PPM, LOGS)
    set_policy(empty, *parse_policy("dac/program").codes)
    run(*empty, ops, 0, len(ops))
    assert (plain.page == empty.page).all()
    asked = []
    faulty = fast(Scorer(lambda row: asked.append(row)), "dac", ops)
    assert (plain.page == faulty.page).all() and len(asked) == 1 and not faulty.reg[c.PROGRAM_AT]


def test_an_agent_computes_what_the_kernel_shows() -> None:
    made = fast(scorer_of(program(BENEFIT)), "sepbit", writes(5))
    count = int(made.reg[c.SEGMENTS])
    rows, numbers = np.zeros((count, c.ROW_WORDS), np.int64), np.zeros(count, np.int64)
    found = candidate_rows(registers(made), made.seg, rows, numbers)
    published = segment_rows(made)
    mine = published[np.isin(published["segment"], numbers[:found])]
    assert found > 5 and (feature_rows(mine, SIZE, PAGES) == rows[:found, :-1]).all()
    for each, row in zip(mine.tolist(), rows[:found].tolist(), strict=True):
        _, live, _, _, log, age, fill = each
        assert row_of(live, age, fill, log, SIZE, PAGES) == tuple(row)


@pytest.mark.parametrize("times", [(0, 0), (-5, 1), (1 << 62, 1 << 60), (1 << 40, (1 << 63) - 1)])
def test_features_stay_within_the_schema(times: tuple[int, int]) -> None:
    for live in (0, 1, SIZE):
        for log in (-1, 0, 15, 99):
            row = row_of(live, *times, log, SIZE, 1)
            assert SCHEMA.clamped(row[:-1]) == row[:-1] and row[-1] == 0


# --- the site ---


STATUS: list[int] = []
"""Answers to injections."""


class Params(uxk.Params):
    """What it sends, and whether it agrees."""

    text: str = BENEFIT
    again: bool = False
    contrary_after: int = 1 << 40
    constant: bool = False


class Sender(uxk.Extension[Params]):
    """Injects a program, answers for it by the same sum, and asks for no datasets: nothing else crosses."""

    manifest = uxk.Manifest(
        name="sender", license="MIT", kind="ml-agent", params=Params, capabilities=(f"bpf:site/{SITE}",)
    )

    def setup(self, ctx: uxk.Context) -> None:
        STATUS.clear()
        self.judged = 0
        for _ in range(1 + self.params.again):
            ctx.inject(SITE, assemble(self.params.text)).then(lambda done: STATUS.append(done.status))

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic == "shadow":
            shown = ml.decode_shadow(event.value)
            rows = np.frombuffer(shown.rows, "<i8").reshape(-1, shown.width)
            scores, said, at = rows[:, 0] + rows[:, 2] - rows[:, 1], list[int](), 0
            for count in shown.counts:
                best = int(np.argmax(scores[at : at + count]))
                best = 0 if self.params.constant else best
                said.append(best if self.judged < self.params.contrary_after else (best + 1) % count)
                self.judged += 1
                at += count
            ctx.judge(shown.injection, shown.first, said)


@asynccontextmanager
async def at_work(seed: int = 1, **settings: Any) -> AsyncIterator[tuple[uxk.Kernel, Lfs]]:
    """A small volume that follows whoever is there."""
    async with boot(seed=seed) as kernel:
        yield kernel, volume(kernel, pages=8_192, segment_blocks=32, **{"modes": "recommendation", **settings})


async def until(kernel: uxk.Kernel, lfs: Lfs, done: Callable[[], bool], epochs: int = 70) -> None:
    """Epoch by epoch."""
    for _ in range(epochs):
        if done():
            return
        await kernel.sleep_ns(lfs.epoch_blocks * lfs.params.write_ns)
    raise AssertionError(f"not in {epochs} epochs")


async def in_force(kernel: uxk.Kernel, lfs: Lfs, **params: Any) -> Any:
    """The agent, once its program decides."""
    agent = await kernel.insmod(Sender, **params)
    await until(kernel, lfs, lambda: lfs.programs.counted.named > 0)
    return agent


async def test_it_decides_without_a_crossing() -> None:
    async with at_work(audit_epochs=0) as (kernel, lfs):
        agent = await in_force(kernel, lfs)
        port, crossings = lfs.programs.port, agent.account.crossings
        assert port.current is not None and port.injection is not None
        followed, runs, before = port.followed, port.current.runs, lfs.programs.counted.runs
        done = len(lfs.epochs)
        await until(kernel, lfs, lambda: len(lfs.epochs) >= done + 20)
        assert agent.account.crossings == crossings  # not one, datasets and audits included
        assert port.followed - followed > 100 and port.decisions >= port.followed == lfs.programs.counted.named
        assert port.current.runs - runs == lfs.programs.counted.runs - before > 1_000
        assert port.charged_ns == lfs.programs.counted.runs * port.current.cost_ns
        assert lfs.epochs[-1].policy == "sepbit/program"
        assert kernel.sysfs.read(f"/sys/fs/bpf/site/{SITE}/policy") == str(port.current.id)
        assert int(kernel.sysfs.read(f"/sys/fs/bpf/site/{SITE}/followed")) == port.followed


async def test_audits_go_on_and_disagreement_ends_it() -> None:
    async with at_work(audit_epochs=2) as (kernel, lfs):
        agent = await in_force(kernel, lfs, contrary_after=80)
        await until(kernel, lfs, lambda: lfs.programs.port.current is None)
        assert "the model agrees in" in lfs.programs.port.last_end and agent.state.name == "LIVE"
        await at_the_default(kernel, lfs)


async def at_the_default(kernel: uxk.Kernel, lfs: Lfs) -> None:
    """From the present epoch on no program is asked."""
    runs, epochs = lfs.programs.counted.runs, len(lfs.epochs)
    await until(kernel, lfs, lambda: len(lfs.epochs) > epochs)
    assert lfs.programs.counted.runs == runs and lfs.epochs[-1].policy == ""
    assert not registers(lfs.volume, 1)[c.PROGRAM_AT] and registers(lfs.volume, 1)[c.SELECTION] == c.CB_AGE
    assert kernel.sysfs.read(f"/sys/fs/bpf/site/{SITE}/policy") == "built-in"
    assert any("fallback" in each.text for each in kernel.kmsg.records(source="bpf"))


async def _emergency(kernel: uxk.Kernel, lfs: Lfs, agent: Any) -> None:
    lfs.proxy.override(Mode.EMERGENCY)


async def _removed(kernel: uxk.Kernel, lfs: Lfs, agent: Any) -> None:
    await kernel.rmmod("sender")


async def _by_hand(kernel: uxk.Kernel, lfs: Lfs, agent: Any) -> None:
    kernel.sysfs.write(f"/sys/fs/bpf/site/{SITE}/control", "fallback")


async def _fault(kernel: uxk.Kernel, lfs: Lfs, agent: Any) -> None:
    assert lfs.programs.port.current is not None
    lfs.programs.port.current.fail("on purpose")


@pytest.mark.parametrize("end", [_emergency, _removed, _by_hand, _fault])
async def test_whatever_ends_it_the_volumes_own_policy_is_back(end: Callable[..., Any]) -> None:
    async with at_work() as (kernel, lfs):
        agent = await in_force(kernel, lfs)
        await end(kernel, lfs, agent)
        assert lfs.programs.port.current is None
        await at_the_default(kernel, lfs)


async def test_a_wrong_translation_is_found_by_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    async with at_work(audit_epochs=1) as (kernel, lfs):
        await in_force(kernel, lfs)
        scorer = lfs.programs._scorer
        assert scorer is not None
        if not scorer.is_native:
            pytest.skip("no machine code here")
        monkeypatch.setattr(scorer, "scores", lambda rows: [7] * len(rows))
        await until(kernel, lfs, lambda: lfs.programs.port.current is None, 2)
        assert "the interpreter says" in lfs.programs.port.last_end


async def test_a_program_with_a_map_decides_and_its_fault_in_the_batch_falls_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with at_work() as (kernel, lfs):
        await in_force(kernel, lfs, text="call 5\nr0 = 7\nexit\n", constant=True)
        port = lfs.programs.port
        assert port.current is not None and port.current.runs > 0  # it counts for itself
        assert not registers(lfs.volume, 1)[c.PROGRAM_PURE]
        current, runs = port.current, port.current.runs
        monkeypatch.setattr(current.program, "run", lambda memory: 1 // 0)
        await until(kernel, lfs, lambda: port.current is None, 3)
        assert current.faults == 1 and current.runs == runs + 1 and "ZeroDivisionError" in port.last_end
        await until(kernel, lfs, lambda: lfs.epochs[-1].policy == "", 3)


async def test_what_must_not_come_into_force() -> None:
    async with at_work() as (kernel, lfs):
        await kernel.insmod(Sender, text="r0 = *(u64 *)(r1 + 80)\nexit\n")  # another schema's
        await kernel.sleep_ns(1_000)
        assert STATUS == [22] and lfs.programs.port.candidate is None
        await kernel.rmmod("sender")
        await kernel.sleep_ns(lfs.epoch_blocks * lfs.params.write_ns)
        await kernel.insmod(Sender, again=True, contrary_after=0)
        await until(kernel, lfs, lambda: len(STATUS) == 2)
        assert STATUS == [16, 125]  # one is in the shadow; and of that the model says otherwise
        assert lfs.programs.counted.named == 0 and all(epoch.policy == "" for epoch in lfs.epochs)


async def test_hints_may_name_the_program_once_there_is_one() -> None:
    async with at_work() as (kernel, lfs):
        payload = encode_hint(GcHint(policy="dac/program"))
        assert lfs.site.check(payload) == "no_program"
        await in_force(kernel, lfs)
        assert lfs.site.check(payload) == ""
        with pytest.raises(ConfigError, match="a program comes later"):
            volume(kernel, pages=4_096, segment_blocks=32, default="dac/program")


async def _hash(**settings: Any) -> tuple[str, int]:
    async with at_work(**settings) as (kernel, lfs):
        await in_force(kernel, lfs)
        await until(kernel, lfs, lambda: len(lfs.epochs) >= 40)
        return kernel.event_hash(), lfs.programs.counted.runs


async def test_runs_repeat_with_machine_code_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    first = await _hash()
    assert await _hash() == first
    monkeypatch.setattr("uxk.subsystems.lfs.scorer.native_of", lambda program: None)
    assert await _hash() == first


async def test_somebody_elses_scores_take_its_place_where_a_comparison_asks_for_it() -> None:
    async with at_work() as (kernel, lfs):
        asked: list[tuple[int, ...]] = []
        seen: list[Loaded] = []

        def score(row: tuple[int, ...]) -> int:
            asked.append(row)
            return row[0] + row[2] - row[1]

        def twin(program: Loaded) -> Scorer:
            seen.append(program)
            return Scorer(score)

        lfs.programs.twin = twin
        await in_force(kernel, lfs)
        assert len(seen) == 1 and len(asked) >= lfs.programs.counted.runs > 0
