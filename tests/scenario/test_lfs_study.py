"""Studies: what may be in one, who takes part, runs without a kernel, scores, the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from uxk.errors import ConfigError, UsageError
from uxk.scenario.find import open_scenario
from uxk.scenario.lfs.batch import half_of, next_writes, run_policy, spans
from uxk.scenario.lfs.compare import run_study
from uxk.scenario.lfs.entrants import resolve
from uxk.scenario.lfs.folder import load_study, write_study
from uxk.scenario.lfs.report.stored import is_study_folder
from uxk.scenario.lfs.study import Study, StudyParams, WorkloadSpec, open_study, with_study_options
from uxk.scenario.lfs.verdict import Verdict
from uxk.scenario.pages.load import load_pages
from uxk.subsystems.lfs import policies

SMALL = Study(
    lfs=StudyParams(segment_blocks=32, engine="reference"),
    workload=WorkloadSpec(name="zipf1.0", pages=1024, writes=6000),
    policies=("default", "nosep/greedy", "fkg6"),
)
DEFAULT = "sepbit/cb-age"

MINE = '''
from uxk.subsystems.lfs.policies import Placement

class Young(Placement):
    """Pages written lately apart from the others."""
    name = "young"
    moved_log = 2
    logs_needed = 3

    def user(self, volume, page):
        last = volume.last[page]
        return 0 if last >= 0 and volume.now - last < volume.pages else 1
'''


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return run_study(SMALL)


def by_policy(verdict: Verdict, seed: int = 0) -> dict[str, dict[str, Any]]:
    return {each["policy"]: each for each in verdict.to_dict()["results"] if each["seed"] == seed}


# --- what may be in a study -------------------------------------------------------------------------------


def test_the_bundled_study_is_good_and_its_policies_exist() -> None:
    study, text = open_study("lfs-gc") or pytest.fail("no study")
    assert 'study = "lfs-gc"' in text
    assert study.workload.name == "rocksdb-overwrite"
    published = [policy for policy in study.policies if policy != "uxk_gc"]
    kinds = [entrant.kind for entrant in resolve(published, study.lfs.default)]
    assert kinds.count("human") >= 5
    assert kinds[-1] == "oracle"


def test_scenarios_are_no_studies() -> None:
    assert open_study("crash-under-load") is None
    with pytest.raises(ConfigError, match="a study, not a scenario"):
        open_scenario("lfs-gc")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[lfs]\nsegment_block = 1", r"own.toml: lfs: unknown key 'segment_block' \(did you mean 'segment_blocks'"),
        ("polices = []", "did you mean 'policies'"),
        ("[workload]\nwrite = 1", "did you mean 'writes'"),
        ("policies = []", "policies: none"),
        ("[lfs]\nengine = 'quick'", "lfs.engine = 'quick'.*expected one of batch, reference, timed"),
        ("seeds = 0", "seeds = 0"),
        ("[workload]\nname = 'mixed'\ntrace = 'x'", "both name='mixed' and trace='x'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(f'study = "lfs-gc"\n{text}\n')
    with pytest.raises(ConfigError, match=complaint):
        open_study(path)


def test_options_replace_values_and_know_the_workload_by_two_names() -> None:
    study = with_study_options(SMALL, {"lfs.segment_blocks": "64", "lfs.writes": "9", "workload.pages": "2000"})
    assert (study.lfs.segment_blocks, study.workload.writes, study.workload.pages) == (64, 9, 2000)
    assert study.volume.segment_blocks == 64
    assert with_study_options(SMALL, {"lfs.write_ns": "1us"}).lfs.write_ns == 1000
    for key, nearest in (("lfs.segment_block", "segment_blocks"), ("workload.page", "pages"), ("lsf.logs", "lfs")):
        with pytest.raises(ConfigError, match=f"did you mean '{nearest}'"):
            with_study_options(SMALL, {key: "64"})


# --- who takes part ---------------------------------------------------------------------------------------


def test_names_stand_for_what_they_say() -> None:
    found = resolve(["default", "fkg6", "humans", DEFAULT], DEFAULT)
    names = [entrant.name for entrant in found]
    assert len(names) == len(set(names))
    assert set(policies.HUMANS) | {"fkg6"} == set(names)
    assert {entrant.kind for entrant in found} == {"human", "oracle"}


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("sepbt/cb-age", "did you mean 'sepbit/cb-age'"),
        ("human", "did you mean 'humans'"),
        ("dac/best", "selections: greedy"),
        ("null", "is a driver"),
        ("nowhere.py", "no such file"),
        ("uxk_echo:depth", "expected KEY=VALUE"),
    ],
)
def test_a_wrong_policy_is_refused(word: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        resolve([word], DEFAULT)


def test_a_policy_from_a_file(tmp_path: Path, verdict: Verdict) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    mine = by_policy(run_study(replace(SMALL, policies=(str(path), "default"))))
    assert mine["mine.py"]["kind"] == "own"
    assert mine[DEFAULT]["event_hash"] == by_policy(verdict)[DEFAULT]["event_hash"]
    assert 1 < mine["mine.py"]["wa"] != mine[DEFAULT]["wa"]
    assert mine["mine.py"]["scores"]["best_human"] == DEFAULT


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (MINE.replace("return 0 if", "return 1 // 0 if"), "ZeroDivisionError"),
        (MINE.replace("import Placement", "import Placment"), "ImportError"),
        (MINE + "\nclass Other(Placement):\n    pass\n", "2 placements: Young, Other"),
    ],
)
def test_a_faulty_policy_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "faulty.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"faulty.py.*{complaint}"):
        run_study(replace(SMALL, policies=(str(path),)))


# --- runs -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 20), max_size=100))
def test_the_future_is_that_of_the_specification(pages: list[int]) -> None:
    assert next_writes(np.array(pages, np.int32)).tolist() == list(policies.next_writes(pages))


@given(st.integers(1, 2000), st.integers(0, 2000), st.integers(1, 300))
def test_epochs_cover_every_write_once(writes: int, fill: int, epoch: int) -> None:
    fill = min(fill, writes)
    found = list(spans(writes, fill, epoch))
    assert [start for start, _, _ in found] == [0, *(stop for _, stop, _ in found[:-1])]
    assert found[-1][1] == writes
    assert found[-1][2]
    assert [half for _, _, half in found] == sorted(half for _, _, half in found)
    assert next(start for start, _, half in found if half) == half_of(writes, fill, epoch)


def test_both_engines_do_the_same_write_by_write() -> None:
    pytest.importorskip("numba")
    run = load_pages("zipf1.0", pages=1024, writes=6000)
    for entrant in resolve(["default", "fkg6", "dac/cb-sqrt", "nosep/greedy"], DEFAULT):
        batch, reference = (
            run_policy(entrant, replace(SMALL.lfs, engine=engine), run, 0) for engine in ("batch", "reference")
        )
        assert batch.event_hash == reference.event_hash
        assert [replace(epoch, victim=None) for epoch in batch.epochs] == reference.epochs
        assert (batch.latency, batch.clean_min) == (reference.latency, reference.clean_min)


def test_figures_of_a_run_fit_together(verdict: Verdict) -> None:
    found = verdict.to_dict()
    assert found["writes"] == 7024
    assert found["winner"] == DEFAULT
    for each, outcome in zip(found["results"], verdict.outcomes, strict=True):
        assert each["user_blocks"] == 7024 == sum(epoch.user for epoch in outcome.epochs)
        assert each["moved_blocks"] == sum(epoch.moved for epoch in outcome.epochs)
        assert each["wa"] == pytest.approx(1 + each["moved_blocks"] / 7024, abs=1e-6)
        half = each["second_half"]
        assert each["wa_second_half"] == pytest.approx(1 + half["moved_blocks"] / half["user_blocks"], abs=1e-6)
        assert each["write_latency"]["p50_ns"] <= each["write_latency"]["p99_ns"] <= each["write_latency"]["max_ns"]
        assert each["hints"]["received"] == each["crossings"] == 0
        assert not each["missing"]


def test_scores_say_who_is_better(verdict: Verdict) -> None:
    found = by_policy(verdict)
    oracle, default, worst = found["fkg6"], found[DEFAULT], found["nosep/greedy"]
    assert oracle["wa_second_half"] < default["wa_second_half"] < worst["wa_second_half"]
    assert (default["scores"]["gap_closed"], oracle["scores"]["gap_closed"]) == (0, 1)
    assert worst["scores"]["gap_closed"] < 0
    assert worst["scores"]["vs_default"] == worst["scores"]["vs_best_human"] > 1
    assert [each.policy for each in verdict.summaries] == ["fkg6", DEFAULT, "nosep/greedy"]


def test_what_was_not_run_is_not_compared_with() -> None:
    verdict = run_study(replace(SMALL, policies=("nosep/greedy",)))
    scores = by_policy(verdict)["nosep/greedy"]["scores"]
    assert scores["vs_default"] is scores["gap_closed"] is scores["vs_oracle"] is None
    report = verdict.report()
    assert f"the default {DEFAULT} was not run" in report
    assert "the oracle fkg6 was not run" in report


def test_the_report_shows_wins_and_losses(verdict: Verdict, tmp_path: Path) -> None:
    lines = verdict.report().splitlines()
    assert any(line.startswith(f"* {DEFAULT} (default)") for line in lines)
    assert any(line.startswith("  fkg6 (oracle)") for line in lines)
    assert f"winner: {DEFAULT}" in "\n".join(lines)
    path = tmp_path / "mine.py"
    path.write_text(MINE.replace("return 0 if", "return 1 if True else 0 if"))  # one log for all: it must lose
    lost = run_study(replace(SMALL, policies=("default", str(path)))).report()
    assert "% worse than the default" in lost
    assert "no published policy but the default was run" in lost
    lost = run_study(replace(SMALL, policies=("nosep/greedy", "default", str(path)))).report()
    assert f"% worse than the best of 2 published policies ({DEFAULT})" in lost


def test_seeds_give_different_writes_and_the_same_seed_the_same_result(verdict: Verdict) -> None:
    three = run_study(replace(SMALL, seeds=3, policies=("default",)))
    hashes = [outcome.event_hash for outcome in three.outcomes]
    assert len(set(hashes)) == 3
    assert hashes[0] == by_policy(verdict)[DEFAULT]["event_hash"]
    spread = three.summaries[0].wa
    assert spread.min < spread.mean < spread.max
    assert ".." in three.report()


def test_the_timed_engine_says_what_it_does_not_know() -> None:
    study = replace(SMALL, lfs=StudyParams(segment_blocks=32, engine="timed"), policies=("default",))
    found = by_policy(run_study(study))[DEFAULT]
    assert found["wa_second_half"] is None
    assert "wa_second_half" in found["missing"]
    assert found["write_latency"]["p99_ns"] > 0


# --- the folder -------------------------------------------------------------------------------------------


def test_a_folder_is_read_back_as_written(verdict: Verdict, tmp_path: Path) -> None:
    write_study(tmp_path / "out", verdict, "the text")
    assert is_study_folder(tmp_path / "out")
    stored = load_study(tmp_path / "out")
    assert stored.manifest.study == SMALL
    assert stored.manifest.study_text == "the text"
    assert stored.results == json.loads(json.dumps(verdict.to_dict()))
    assert [run.entry.policy for run in stored.runs] == [outcome.policy for outcome in verdict.outcomes]
    for run, outcome in zip(stored.runs, verdict.outcomes, strict=True):
        assert run.epochs == outcome.epochs
        assert run.result["event_hash"] == outcome.event_hash == run.entry.event_hash
    with pytest.raises(UsageError, match="not an empty folder"):
        write_study(tmp_path / "out", verdict, "")


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("manifest.json", "{", "manifest.json"),
        ("manifest.json", '{"layout": 99}', "manifest.json"),
        ("results.json", "[]", "results.json: Expected `object`"),
        ("runs/seed-0/fkg6/events.jsonl", '{"epoch": "x"}\n', "events.jsonl: line 1"),
        ("runs/seed-0/fkg6/events.jsonl", None, "No such file"),
    ],
)
def test_a_damaged_folder_is_refused(
    verdict: Verdict, tmp_path: Path, file: str, text: str | None, complaint: str
) -> None:
    write_study(tmp_path, verdict, "")
    if text is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_study(tmp_path)


def test_a_manifest_cannot_lead_outside(verdict: Verdict, tmp_path: Path) -> None:
    write_study(tmp_path, verdict, "")
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("runs/seed-0/fkg6", "../../etc"))
    with pytest.raises(ConfigError, match="not inside"):
        load_study(tmp_path)
