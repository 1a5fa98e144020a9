"""Scenarios and studies that keep their datasets."""

from __future__ import annotations

from pathlib import Path

import pytest

import uxk
from uxk.bridges.datalog.settings import DataLogSettings
from uxk.cli import main
from uxk.errors import ConfigError, UsageError
from uxk.scenario.lfs.compare import run_study
from uxk.scenario.lfs.study import Study, StudyParams, WorkloadSpec
from uxk.scenario.read import parse_toml

pytest.importorskip("numba")

TEXT = """
[subsystems.lfs]
workload = "zipf1.0"
pages = 2048
writes = 8192
segment_blocks = 32
"""


def test_a_table_or_an_option_keeps_a_runs_datasets(tmp_path: Path) -> None:
    plain = uxk.run(parse_toml(TEXT, "a.toml"))
    table = f'{TEXT}\n[datalog]\ndir = "{tmp_path}/a"\ndatasets = ["*/state"]\nmax_bytes = "128MiB"\n'
    kept = uxk.run(parse_toml(table, "a.toml"))
    optional = uxk.run(parse_toml(TEXT, "a.toml"), datasets=tmp_path / "b")
    assert plain.event_hash == kept.event_hash == optional.event_hash
    assert not kept.notes
    assert {batch.name for batch in uxk.DataLog(tmp_path / "a").batches()} == {"lfs0/state"}
    state = uxk.DataLog(tmp_path / "b")["lfs0/state"].rows()
    assert len(state) == len(kept.values["subsystems"]["lfs"]["epochs"])
    (head,) = {batch.run.head.run: batch.run.head for batch in uxk.DataLog(tmp_path / "a").batches()}.values()
    assert (head.scenario, head.seed, head.clock) == ("a", 0, "virtual")


def test_what_is_lost_is_in_the_notes(tmp_path: Path) -> None:
    scenario = parse_toml(f'{TEXT}\n[datalog]\ndir = "{tmp_path}"\nqueue_bytes = 4096\n', "a.toml")
    (note,) = uxk.run(scenario).notes
    assert "publications of" in note
    assert "for a full queue" in note
    assert uxk.DataLog(tmp_path).scan().problem_count == 0


def test_a_table_that_cannot_be(tmp_path: Path) -> None:
    for table, match in (
        ('dir = "x"\nsync = "often"', "expected one of"),
        ('dri = "x"', r"did you mean 'dir'\?"),
        ('dir = "x"\nsegment_bytes = 7', "segment_bytes"),
    ):
        with pytest.raises(ConfigError, match=match):
            parse_toml(f"[datalog]\n{table}", "a.toml")
    with pytest.raises(UsageError, match="dir is empty"):
        uxk.run(parse_toml(f"{TEXT}\n[datalog]\n", "a.toml"))
    with pytest.raises(ConfigError, match="at least two segments"):
        uxk.run(parse_toml(f'{TEXT}\n[datalog]\ndir = "{tmp_path}/x"\nmax_bytes = 1000\n', "a.toml"))


def test_a_study_has_a_log_for_every_agent_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(
        lfs=StudyParams(segment_blocks=32), workload=WorkloadSpec(name="zipf1.0", pages=2048, writes=8192),
        policies=("default", "uxk_gc:search=false"), seeds=2, datalog=DataLogSettings(dir=str(tmp_path / "logs")),
    )  # fmt: skip
    assert run_study(study).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "uxk_gc_search=false-seed-0", "uxk_gc_search=false-seed-1"
    ]  # fmt: skip
    log = tmp_path / "logs" / "uxk_gc_search=false-seed-1"
    out = tmp_path / "gc.ckpt"
    assert main(["train", "gc", "-p", "search=false", "--from", str(log), "-o", str(out)]) == 0
    assert capsys.readouterr().out.startswith("gc: ")
    warm = Study(
        lfs=study.lfs, workload=study.workload, policies=(f"uxk_gc:search=false,warm={out}",)
    )  # fmt: skip
    (outcome,) = run_study(warm).outcomes
    assert not any("starting cold" in line for line in outcome.kmsg)
    cold = Study(lfs=study.lfs, workload=study.workload, policies=(f"uxk_gc:warm={out}",))
    (outcome,) = run_study(cold).outcomes
    assert any("starting cold" in line for line in outcome.kmsg), "it was trained with other parameters"


def test_the_lab_keeps_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "reclaim-deadlock", "--datasets", "x"]) in (1, 2)
    assert "--datasets: not for the study" in capsys.readouterr().err
