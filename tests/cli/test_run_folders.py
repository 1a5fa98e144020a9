"""``uxk report``, ``uxk diff`` and ``uxk replay`` from outside: what they print, exit codes, usage errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from uxk.cli import main

SMALL = ("--workload", "zipf1.0", "-o", "lfs.segment_blocks=32", "-o", "lfs.engine=reference", "-o",
         "workload.pages=1024", "-o", "workload.writes=4000", "--seeds", "1")  # fmt: skip
SCENARIO = 'seed = 3\nuntil = "1ms"\n'


def study(out: Path, *words: str) -> Path:
    assert main(["run", "lfs-gc", *SMALL, "--out", str(out), *words]) == 0
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("runs") / "study", "--policy", "default", "dac/greedy")


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    (path / "idle.toml").write_text(SCENARIO)
    assert main(["run", str(path / "idle.toml"), "--out", str(path / "out")]) == 0
    return path / "out"


# --- report -------------------------------------------------------------------------------------------------


def test_report_prints_the_table_and_makes_the_page_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (folder / "report.html").unlink(missing_ok=True)
    assert main(["report", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "\n* dac/greedy " in out and "\n  sepbit/cb-age (default) " in out
    assert str(folder / "report.html") in err
    assert (folder / "report.html").is_file()


def test_report_as_json_elsewhere(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["report", str(folder), "--json", "-o", str(tmp_path / "page.html")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((folder / "results.json").read_text())
    assert "<svg" in (tmp_path / "page.html").read_text("utf-8")


def test_report_of_a_scenario(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["report", str(scenario)]) == 0
    assert "idle, seed 3" in capsys.readouterr().out
    assert "event hash" in (scenario / "report.html").read_text("utf-8")


@pytest.mark.parametrize("verb", ["report", "replay"])
def test_no_folder(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, str(tmp_path / "nowhere")]) == 2
    assert "nowhere: expected" in capsys.readouterr().err


# --- diff ---------------------------------------------------------------------------------------------------


def test_diff_of_equal_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = study(tmp_path / "again", "--policy", "default", "dac/greedy")
    capsys.readouterr()
    assert main(["diff", str(folder), str(again)]) == 0
    assert capsys.readouterr().out == "the same settings and results\n"


def test_diff_of_others(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = study(tmp_path / "other", "--policy", "default", "-o", "lfs.gp_ppm=100000")
    capsys.readouterr()
    assert main(["diff", str(folder), str(other)]) == 1
    out = capsys.readouterr().out
    assert "lfs.gp_ppm" in out and "only in the first: dac/greedy, seed 0" in out
    assert main(["diff", str(folder), str(other), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is False
    assert found["policies"][0]["ratio"] > 1


def test_diff_of_scenarios(scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "idle.toml").write_text(SCENARIO.replace("1ms", "2ms"))
    assert main(["run", str(tmp_path / "idle.toml"), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["diff", str(scenario), str(scenario)]) == 0
    assert "the same" in capsys.readouterr().out
    assert main(["diff", str(scenario), str(tmp_path / "out")]) == 1
    assert "virtual_ns" in capsys.readouterr().out


def test_diff_wants_two_of_a_kind(
    folder: Path, scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", str(folder), str(scenario)]) == 2
    assert "expected two of a kind" in capsys.readouterr().err
    assert main(["diff", str(folder), str(tmp_path / "nowhere")]) == 2
    assert "nowhere: expected a run folder" in capsys.readouterr().err


# --- replay -------------------------------------------------------------------------------------------------


def test_replay_says_what_was_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("✔ sepbit/cb-age, seed 0: WA ")
    assert lines[-1] == "2 of 2 runs are the same"
    assert main(["replay", str(folder), "--policy", "dac/greedy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] and [each["policy"] for each in found["runs"]] == ["dac/greedy"]


def test_replay_of_what_has_changed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = study(tmp_path / "other", "--policy", "default")
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"gp_ppm": 150000', '"gp_ppm": 140000').replace("0.1.0", "0.0.9"))
    capsys.readouterr()
    assert main(["replay", str(other)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("✘ sepbit/cb-age, seed 0: epoch ")
    assert "0 of 1 runs are the same" in out
    assert "recorded with uxk 0.0.9" in err


def test_replay_is_for_studies(folder: Path, scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(scenario)]) == 2
    assert "expected the folder of a study" in capsys.readouterr().err
    assert main(["replay", str(folder), "--policy", "dac/gredy"]) == 2
    assert "not in this folder" in capsys.readouterr().err
