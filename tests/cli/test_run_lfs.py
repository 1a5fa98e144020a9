"""``uxk run lfs-gc`` from outside: options, JSON, exit codes, usage errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from uxk.cli import main
from uxk.cli.run_lfs import _Progress, progress_line
from uxk.scenario.lfs.outcome import Live

SMALL = ("-o", "lfs.segment_blocks=32", "-o", "lfs.engine=reference")
ZIPF = ("--workload", "zipf1.0", "-o", "workload.pages=1024", "-o", "workload.writes=4000", *SMALL)


def uxk_run(*words: object) -> int:
    return main(["run", "lfs-gc", *map(str, words)])


def test_json_is_one_object_with_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert uxk_run(*ZIPF, "--policy", "default", "dac/greedy", "--policy", "fkg6", "--seeds", 2, "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""  # no terminal: no progress
    found = json.loads(out)
    assert [(each["policy"], each["seed"]) for each in found["results"]] == [
        (policy, seed) for seed in (0, 1) for policy in ("sepbit/cb-age", "dac/greedy", "fkg6")
    ]
    assert {each["policy"]: each["seeds"] for each in found["summary"]}["fkg6"] == 2
    assert found["options"]["segment_blocks"] == 32


def test_a_trace_and_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "own.npy"
    np.save(trace, np.tile(np.arange(512, dtype=np.uint32), 8))
    for words in (("--format", "pages"), ()):
        out = tmp_path / f"out-{len(words)}"
        assert uxk_run("--trace", trace, *words, "--policy", "default", *SMALL, "--seeds", 2, "--out", out) == 0
        text = capsys.readouterr().out
        assert "own.npy, 4,096 writes of 512 pages, seeds 0 to 1" in text
        assert "ran once, for all seeds" in text
        manifest = json.loads((out / "manifest.json").read_text())
        assert len(manifest["trace_sha256"]) == 64
        assert (out / "runs/seed-1/sepbit-cb-age/events.jsonl").is_file()


def test_a_study_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "short.toml"
    path.write_text('study = "lfs-gc"\npolicies = ["nosep/greedy"]\n[lfs]\nsegment_blocks = 32\nengine = "reference"\n'
                    '[workload]\nname = "uniform"\npages = 1024\nwrites = 2000\n')  # fmt: skip
    assert main(["run", str(path), "-o", "workload.writes=1000"]) == 0
    assert "short: uniform, 2,024 writes of 1,024 pages" in capsys.readouterr().out
    assert main(["run", str(path), "--workload", "mixed"]) == 0  # of the same size
    assert "short: mixed, 3,024 writes of 1,024 pages" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--policy", "sepbt/cb-age"], "did you mean 'sepbit/cb-age'"),
        (["--policy", "uxk_nothing"], "neither a policy nor a module"),
        (["--workload", "mixd"], "did you mean 'mixed'"),
        (["--trace", "nowhere.csv", "--format", "msr"], "No such file"),
        (["--trace", "/dev/null", "--format", "mrs"], "did you mean 'msr'"),
        (["--format", "msr"], "needs --trace"),
        (["--trace", "x", "--workload", "y"], "expected one of them"),
        (["-o", "lfs.segment_block=64"], "did you mean 'segment_blocks'"),
        (["-o", "segment_blocks=64"], "did you mean 'lfs.segment_blocks'"),
        (["-o", "pages=64"], "did you mean 'workload.pages'"),
        (["-o", "lfs.gp_ppm=1"], "-o lfs.gp_ppm = 1"),
        (["-o", "lfs.engine=fast"], "expected one of batch, reference, timed"),
        (["-o", "lfs.default=fkg6"], "expected a published policy"),
        (["--costs", "x"], "only for scenarios"),
        (["--seeds", "2000"], "expected 1 to 1000"),
        (["--jobs", "0"], "jobs=0"),
        (["--out", "/dev/null"], "not an empty folder"),
    ],
)
def test_wrong_usage_exits_with_2(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert uxk_run(*words, *(() if "--policy" in words else ("--policy", "default"))) == 2
    out, err = capsys.readouterr()
    assert complaint in err
    assert out == ""


@pytest.mark.parametrize(
    "words", [["--policy", "default"], ["--trace", "x"], ["--workload", "mixed"], ["--format", "msr"], ["--jobs", "2"]]
)
def test_other_scenarios_refuse_options_of_studies(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "crash-under-load", *words]) == 2
    assert f"{words[0]}: only for studies such as lfs-gc" in capsys.readouterr().err


def test_the_list_has_the_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "list"]) == 0
    assert any(line.startswith("lfs-gc ") for line in capsys.readouterr().out.splitlines())


def test_progress_shows_how_far_it_is() -> None:
    live = Live("dac/cb-age", 0, 3, 7, 610, 1000, 1_534_000, "learning", [0, 1, 0, 8])
    assert progress_line(live).startswith("3/7 dac/cb-age ████████████░░░░░░░░ 61 %  WA 1.53  learning  [")
    assert progress_line(live).endswith(" ▁ █]")


def test_progress_never_wraps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    progress = _Progress()
    progress(Live("a\x1b[31m/" + "long" * 20, 0, 3, 7, 610, 1000, 1_534_000, "learning", [0, 1, 0, 8]))
    progress.clear()
    shown = capsys.readouterr().err.split("\r\033[K")
    assert len(shown[1]) == 39
    assert "\x1b" not in shown[1]
    assert shown[2] == ""
