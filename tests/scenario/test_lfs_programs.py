"""Programs in studies: a file's as a selection, an agent's by injection, and its float model in its place."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from uxk.bpf.asm import assemble
from uxk.errors import ConfigError
from uxk.scenario.lfs.compare import run_study
from uxk.scenario.lfs.entrants import resolve
from uxk.scenario.lfs.floats import ordered
from uxk.scenario.lfs.programs import read_program
from uxk.scenario.lfs.replay import replay_agent
from uxk.scenario.lfs.study import Study, StudyParams, WorkloadSpec
from uxk.scenario.lfs.verdict import Verdict

pytest.importorskip("numba")
BENEFIT = """
    r0 = *(u64 *)(r1 + 0)       // garbage
    r2 = *(u64 *)(r1 + 16)      // age
    r0 += r2
    r2 = *(u64 *)(r1 + 8)       // valid
    r0 -= r2
    exit
"""
STUDY = Study(
    lfs=StudyParams(segment_blocks=32, modes="recommendation"),
    workload=WorkloadSpec(name="hot-cold-80-20", pages=4096),
    policies=("default", "uxk_gc_model", "uxk_gc_model:backend=float"),
)


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return run_study(STUDY)


def test_the_injected_model_decides_and_is_accounted_for(verdict: Verdict) -> None:
    _, agent, _ = verdict.outcomes
    account = agent.account
    assert account["program_victims"] > account["victims"] // 2 > 0
    assert account["program_runs"] > 20 * account["program_victims"]
    assert 0 < account["program_crossings"] < account["program_victims"] // 4
    assert "0 crossings for each" in verdict.report()
    assert agent.epochs[-1].policy == "sepbit/program"


def test_its_float_model_is_a_row_beside_it(verdict: Verdict) -> None:
    _, agent, floating = verdict.outcomes
    assert floating.account["program_victims"] > 0
    assert [epoch.policy for epoch in floating.epochs] == [epoch.policy for epoch in agent.epochs]
    assert abs(floating.wa_ppm - agent.wa_ppm) < 10_000


def test_the_float_model_is_asked_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its scores turned round, the worst segments are cleaned."""
    import uxk_gc_model

    asked = uxk_gc_model.GcModel.float_scores

    def turned(self: uxk_gc_model.GcModel, code: bytes) -> object:
        score = asked(self, code)
        return None if score is None else lambda row: -score(row)

    monkeypatch.setattr(uxk_gc_model.GcModel, "float_scores", turned)
    study = replace(STUDY, policies=("uxk_gc_model", "uxk_gc_model:backend=float"), seeds=1)
    agent, floating = run_study(study).outcomes
    assert floating.wa_ppm > agent.wa_ppm + 100_000


def test_runs_repeat(verdict: Verdict) -> None:
    again = run_study(replace(STUDY, policies=("uxk_gc_model", "uxk_gc_model:backend=float")))
    assert [each.event_hash for each in again.outcomes] == [each.event_hash for each in verdict.outcomes[1:]]


def test_hints_alone_do_not_repeat_it(verdict: Verdict) -> None:
    with pytest.raises(ConfigError, match="an injected program has decided"):
        replay_agent(verdict.outcomes[1], STUDY)


# --- a file's ---


@pytest.mark.parametrize("engine", ["batch", "reference"])
def test_a_file_scores_segments(engine: str, tmp_path: Path) -> None:
    (tmp_path / "benefit.s").write_text(BENEFIT)
    (tmp_path / "benefit.bpf").write_bytes(assemble(BENEFIT))
    words = tuple(f"sepbit/program:{tmp_path}/benefit.{suffix}" for suffix in ("s", "bpf"))
    made = Study(
        lfs=StudyParams(segment_blocks=32, engine=engine), workload=WorkloadSpec(name="zipf1.0", pages=2048),
        policies=("default", *words),
    )  # fmt: skip
    default, text, code = run_study(made).outcomes
    assert (text.policy, text.kind) == ("sepbit/program:benefit.s", "own")
    assert text.event_hash == code.event_hash != default.event_hash
    assert abs(text.wa_ppm - default.wa_ppm) < default.wa_ppm // 20  # it is nearly the same rule
    assert text.engine == engine


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("r0 = *(u64 *)(r1 + 80)\nexit\n", "it has 48.*garbage, valid, age, fill, log, 0"),
        ("r0 = 1\n", "exit"),
        ("call 5\nexit\n", "helper"),
        ("r0 = what\nexit\n", "what"),
        ("", "bad.s"),
    ],
)
def test_a_program_that_will_not_do_is_told_why(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "bad.s").write_text(text)
    with pytest.raises(ConfigError, match=why):
        resolve([f"sepbit/program:{tmp_path}/bad.s"], "sepbit/cb-age")


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("sepbit/program:/no/such.s", "No such file"),
        ("sepbitt/program:x.s", "did you mean 'sepbit'"),
        ("sepbit/program", "no such policy"),
        ("sepbit/program:", "No such file|Is a directory"),
    ],
)
def test_words_that_name_nothing(word: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        resolve([word], "sepbit/cb-age")


def test_a_file_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "long.bpf").write_bytes(bytes((1 << 20) + 8))
    with pytest.raises(ConfigError, match="more than 1048576 bytes"):
        read_program(str(tmp_path / "long.bpf"))


# --- floats in order ---


def test_the_order_of_floats_is_kept() -> None:
    values = [-math.inf, -1e300, -2.5, -1.0, -5e-324, 0.0, 5e-324, 1.0, 2.5, 1e300, math.inf]
    assert all(ordered(less) < ordered(more) for less, more in pairwise(values))
    assert ordered(-0.0) == ordered(0.0)
    with pytest.raises(ValueError, match="no number"):
        ordered(math.nan)
