"""Studies with agents: a kernel of its own for each, its figures, its hints, and what stays when it misbehaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

import uxk
from uxk.errors import ConfigError
from uxk.scenario.lfs.compare import run_study
from uxk.scenario.lfs.folder import load_study, write_study
from uxk.scenario.lfs.outcome import Live
from uxk.scenario.lfs.study import Study, StudyParams, WorkloadSpec
from uxk.scenario.lfs.verdict import Verdict
from uxk.subsystems.lfs.hint import GcHint, decode_hint, encode_hint

pytest.importorskip("numba")


class Params(uxk.Params):
    """What it recommends."""

    policy: str = "dac/cb-sqrt"
    crash: bool = False


class StudyAgent(uxk.MLAgent[Params]):
    """Recommends one policy, always."""

    manifest = uxk.Manifest(
        name="study-agent", license="MIT", kind="ml-agent", params=Params, restart=uxk.RestartPolicy(max_restarts=1)
    )
    model = "lfs0"
    sites = ("lfs0.gc",)

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        if self.params.crash:
            raise RuntimeError("on purpose")

    def recommend(self, ctx: uxk.Context, site: str) -> bytes:
        return encode_hint(GcHint(policy=self.params.policy))


STUDY = Study(
    lfs=StudyParams(segment_blocks=32, modes="recommendation"),
    workload=WorkloadSpec(name="zipf1.0", pages=4096, writes=20_000),
    policies=("default", "dac/cb-sqrt", "study-agent"),
)


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return run_study(STUDY)


def test_an_agent_is_followed_and_accounted_for(verdict: Verdict) -> None:
    default, human, agent = verdict.to_dict()["results"]
    assert agent["kind"] == "agent"
    assert agent["user_blocks"] == 24_096
    assert agent["wa_second_half"] == pytest.approx(human["wa_second_half"], rel=0.05)
    assert agent["wa_second_half"] < default["wa_second_half"]
    assert agent["mode_share_ppm"] == {"recommendation": 1_000_000}
    assert agent["hints"]["received"] > 0 < agent["hints"]["applied"]
    assert agent["crossings"] > 0 < agent["thinking"]["charged_ns"]
    assert agent["thinking"]["cpu_ns"] > 0
    assert agent["scores"]["best_human"] == "dac/cb-sqrt"
    for name, why in agent["missing"].items():
        assert agent[name] is None
        assert why
    report = verdict.report()
    assert "100 % recommendation" in report
    assert "study-agent, seed 0" in report


def test_equal_seeds_give_equal_runs(verdict: Verdict) -> None:
    again = run_study(replace(STUDY, policies=("study-agent",)))
    first = verdict.outcomes[-1]
    assert again.outcomes[0].event_hash == first.event_hash
    assert again.outcomes[0].epochs == first.epochs
    assert again.outcomes[0].hint_log == first.hint_log


def test_hints_are_recorded_as_they_came(verdict: Verdict, tmp_path: Path) -> None:
    write_study(tmp_path, verdict, "")
    stored = load_study(tmp_path).runs[-1]
    assert stored.hints == verdict.outcomes[-1].hint_log
    assert len(stored.hints) == verdict.outcomes[-1].received
    first = decode_hint(bytes.fromhex(stored.hints[0].payload))
    assert first is not None and first.policy == "dac/cb-sqrt"
    assert not any(hint.refused for hint in stored.hints)
    assert any("study-agent" in line or "study_agent" in line for line in stored.kmsg)


def test_refused_hints_are_counted_by_reason() -> None:
    verdict = run_study(replace(STUDY, policies=("default", "study-agent:policy=dac/best")))
    default, agent = verdict.to_dict()["results"]
    assert agent["policy"] == "study-agent:policy=dac/best"
    assert set(agent["hints"]["refused"]) == {"unknown_policy"}
    assert {hint.refused for hint in verdict.outcomes[1].hint_log} == {"unknown_policy"}
    assert agent["wa_second_half"] == pytest.approx(default["wa_second_half"], rel=0.01)
    assert "unknown_policy" in verdict.report()


def test_an_agent_that_dies_costs_nothing_but_its_advice() -> None:
    default, agent = run_study(replace(STUDY, policies=("default", "study-agent:crash=yes"))).to_dict()["results"]
    assert agent["user_blocks"] == default["user_blocks"]
    assert agent["wa_second_half"] == pytest.approx(default["wa_second_half"], rel=0.01)
    assert agent["restarts"] == 1
    assert any("on purpose" in note for note in agent["notes"])


def test_what_cannot_be_loaded_is_named() -> None:
    with pytest.raises(uxk.errors.UxkError, match="unknown parameter 'polcy'"):
        run_study(replace(STUDY, policies=("study-agent:polcy=x",)))
    with pytest.raises(ConfigError, match="agents run on a kernel"):
        run_study(replace(STUDY, lfs=StudyParams(engine="timed")))


def test_progress_changes_nothing(verdict: Verdict) -> None:
    seen: list[Live] = []
    watched = run_study(replace(STUDY, policies=("default", "study-agent")), on_live=seen.append)
    hashes = {outcome.policy: outcome.event_hash for outcome in verdict.outcomes}
    assert all(hashes[outcome.policy] == outcome.event_hash for outcome in watched.outcomes)
    last = {live.policy: live for live in seen}
    assert last["sepbit/cb-age"].done == last["sepbit/cb-age"].total == 24_096
    assert last["study-agent"].mode == "recommendation"
    assert sum(last["study-agent"].heat) > 0
