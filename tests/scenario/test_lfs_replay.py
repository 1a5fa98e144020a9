"""Studies repeated from their folders, and two of them compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from uxk.errors import ConfigError, UxkError
from uxk.scenario.lfs.compare import run_study
from uxk.scenario.lfs.differ import diff_studies, text
from uxk.scenario.lfs.folder import write_study
from uxk.scenario.lfs.replay import Replayed, replay_study
from uxk.scenario.lfs.report.stored import open_study
from uxk.scenario.lfs.study import Study, StudyParams, WorkloadSpec
from uxk.subsystems.lfs.hint import GcHint, encode_hint

pytest.importorskip("numba")

AGENT = '''
import uxk
from uxk.subsystems.lfs.hint import GcHint, encode_hint

class Fickle(uxk.MLAgent):
    """Changes its mind, is wrong now and then."""
    manifest = uxk.Manifest(name="fickle", license="MIT", kind="ml-agent")
    model = "lfs0"
    sites = ("lfs0.gc",)

    def setup(self, ctx):
        self.count = 0

    def recommend(self, ctx, site):
        self.count += 1
        rng = ctx.random("mind")
        name = ("dac/cb-age", "fadac/cb-sqrt", "no/such")[int(rng.integers(3))]
        return encode_hint(GcHint(policy=name))
'''
STUDY = Study(
    lfs=StudyParams(segment_blocks=16), workload=WorkloadSpec(name="zipf1.0", pages=1024, writes=5_000), seeds=2,
    policies=("default", "fkg6"),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with an agent from a file that is there no more."""
    path = tmp_path_factory.mktemp("replay")
    (path / "fickle.py").write_text(AGENT)
    write_study(path / "out", run_study(replace(STUDY, policies=(*STUDY.policies, str(path / "fickle.py")))), "")
    (path / "fickle.py").unlink()
    return path / "out"


def copied(folder: Path, to: Path, file: str, change: Callable[[str], str]) -> Path:
    for path in sorted(folder.rglob("*")):
        target = to / path.relative_to(folder)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    before = (to / file).read_text()
    (to / file).write_text(change(before))
    assert (to / file).read_text() != before
    return to


def replayed(path: Path, *policies: str) -> list[Replayed]:
    return replay_study(*open_study(path), policies)


# --- replay -------------------------------------------------------------------------------------------------


def test_a_study_is_repeated_without_its_agent(folder: Path) -> None:
    told: list[str] = []
    found = replay_study(*open_study(folder), on_run=told.append)
    assert [each.same for each in found] == [True] * 6, [each.verified for each in found]
    assert told == [f"{each.policy}, seed {each.seed}" for each in found]
    agent = next(each for each in found if each.policy == "fickle.py")
    assert "recorded hints, sent without the agent" in agent.verified
    _, verdict = open_study(folder)
    recorded = next(each for each in verdict.outcomes if each.policy == "fickle.py")
    assert recorded.refused.get("unknown_policy")
    assert recorded.latency is not None


def test_one_policy_may_be_picked(folder: Path) -> None:
    assert [(each.policy, each.seed) for each in replayed(folder, "fkg6")] == [("fkg6", 0), ("fkg6", 1)]
    with pytest.raises(
        ConfigError, match=r"policy 'fkg7': not in this folder, which has sepbit/cb-age, fkg6, fickle\.py"
    ):
        replayed(folder, "fkg7")


def other_advice(hints: str) -> str:
    old, new = (encode_hint(GcHint(policy=name)).hex() for name in ("dac/cb-age", "nosep/greedy"))
    return hints.replace(old, new)


def later(hints: str) -> str:
    first, *rest = hints.splitlines(keepends=True)
    hint = json.loads(first)
    return json.dumps(hint | {"now_ns": hint["now_ns"] + 1}) + "\n" + "".join(rest)


@pytest.mark.parametrize(
    ("file", "change", "wrong"),
    [
        ("runs/seed-0/fickle.py/hints.jsonl", other_advice, "epoch "),
        ("runs/seed-0/fickle.py/hints.jsonl", later, "epoch "),
        ("runs/seed-0/fickle.py/hints.jsonl", lambda text: text[text.index("\n") + 1 :], "received was"),
        (
            "runs/seed-0/fickle.py/events.jsonl",
            lambda text: text.replace('"user":128', '"user":127', 1),
            "user was 127",
        ),
        (
            "runs/seed-0/fkg6/events.jsonl",
            lambda text: text[: text[:-1].rindex("\n") + 1],
            "there were 47 epochs, there are 48",
        ),
        ("results.json", lambda text: text.replace('"clean_min": ', '"clean_min": 1', 1), "clean_min was"),
    ],
)
def test_what_differs_is_named(
    folder: Path, tmp_path: Path, file: str, change: Callable[[str], str], wrong: str
) -> None:
    found = replayed(copied(folder, tmp_path / "out", file, change))
    (different,) = [each.verified for each in found if not each.same]
    assert wrong in different


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda text: text.replace('"payload":"', '"payload":"xy', 1),
            "hints.jsonl: line 1: payload is not hexadecimal",
        ),
        (
            lambda text: text.replace(
                encode_hint(GcHint(policy="dac/cb-age")).hex(),
                encode_hint(GcHint(policy="table/cb-age", table="mine")).hex(),
                1,
            ),
            "names the table 'mine'",
        ),
    ],
)
def test_hints_that_cannot_be_sent_again_are_refused(
    folder: Path, tmp_path: Path, change: Callable[[str], str], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        replayed(copied(folder, tmp_path / "out", "runs/seed-1/fickle.py/hints.jsonl", change))


def test_a_policy_of_ones_own_that_is_gone_or_changed(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    body = "from uxk.subsystems.lfs.policies import CbAge\n\nclass Mine(CbAge):\n    name = 'mine'\n"
    path.write_text(body)
    write_study(tmp_path / "out", run_study(replace(STUDY, policies=(str(path), "default"), seeds=1)), "")
    assert all(each.same for each in replayed(tmp_path / "out"))
    path.write_text(body + "\n    def score(self, volume, segment):\n        return segment\n")
    assert [each.same for each in replayed(tmp_path / "out")] == [False, True]
    path.unlink()
    with pytest.raises(UxkError, match=r"mine\.py.*no such file"):
        replayed(tmp_path / "out")
    assert [each.same for each in replayed(tmp_path / "out", "sepbit/cb-age")] == [True]


def test_another_trace_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "own.npy"
    np.save(trace, np.tile(np.arange(256, dtype=np.uint32), 8))
    study = replace(STUDY, workload=WorkloadSpec(trace=str(trace)), policies=("default",))
    write_study(tmp_path / "out", run_study(study), "")
    assert [each.same for each in replayed(tmp_path / "out")] == [True, True]
    np.save(trace, np.tile(np.arange(255, dtype=np.uint32), 8))
    with pytest.raises(ConfigError, match=r"own\.npy: another one than in the run"):
        replayed(tmp_path / "out")
    trace.unlink()
    with pytest.raises(ConfigError, match=r"own\.npy: No such file"):
        replayed(tmp_path / "out")


# --- diff ---------------------------------------------------------------------------------------------------


def test_a_study_is_the_same_as_itself(folder: Path) -> None:
    found = diff_studies(open_study(folder), open_study(folder))
    assert found.is_same
    assert text(found) == "the same settings and results"


def test_settings_and_results_that_differ_are_shown(folder: Path, tmp_path: Path) -> None:
    other = replace(STUDY, policies=("default", "dac/greedy"), lfs=replace(STUDY.lfs, gp_ppm=100_000))
    write_study(tmp_path / "other", run_study(other), "")
    found = diff_studies(open_study(folder), open_study(tmp_path / "other"))
    assert not found.is_same
    assert ("lfs.gp_ppm", 150_000, 100_000) in found.settings
    (pair,) = found.policies
    assert pair.policy == "sepbit/cb-age"
    assert pair.ratio > 1 and pair.beyond_spread
    assert [each.seed for each in pair.seeds] == [0, 1]
    assert found.only_second == ["dac/greedy, seed 0", "dac/greedy, seed 1"]
    shown = text(found)
    assert "beyond the spread of seeds" in shown
    assert "only in the first: fickle.py, seed 1" in shown


def test_one_seed_says_nothing_of_the_spread(tmp_path: Path) -> None:
    for name, gp_ppm in (("a", 150_000), ("b", 200_000)):
        study = replace(STUDY, policies=("default",), seeds=1, lfs=replace(STUDY.lfs, gp_ppm=gp_ppm))
        write_study(tmp_path / name, run_study(study), "")
    found = diff_studies(open_study(tmp_path / "a"), open_study(tmp_path / "b"))
    assert found.policies[0].beyond_spread is None
    assert "one seed: spread unknown" in text(found)
