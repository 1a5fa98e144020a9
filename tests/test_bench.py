"""The benchmark programs run and count right; how fast anything is, is not asked here."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOAK = bool(os.environ.get("UXK_SOAK"))

pytest.importorskip("simpy", reason="the extra `bench` is not installed")
pytest.importorskip("pykka", reason="the extra `bench` is not installed")


@pytest.fixture(autouse=True)
def bench_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_every_contender_does_what_it_counts() -> None:
    from bench.cases import all_cases

    for case in all_cases():
        for contender in case.contenders:
            done, took_ns = contender.measure(600)
            assert done >= 512, (case.name, contender.name)
            assert took_ns > 0


def test_every_target_names_contenders_of_its_case() -> None:
    from bench.cases import all_cases

    for case in all_cases():
        names = {contender.name for contender in case.contenders}
        assert {name for target in case.targets for name in (target.of, target.over)} <= names


def test_ratios_are_taken_within_a_round() -> None:
    from bench.runner import Case, Contender, Target, run_case

    rates = {"uxk": iter([8, 6, 6, 2]), "other": iter([4, 1, 3, 2])}  # the first of each is the trial

    def measure(name: str) -> Contender:
        return Contender(name, lambda count: (next(rates[name]), 1_000_000_000))

    case = Case("x", "things/s", [measure("uxk"), measure("other")], [Target("uxk", "other", 2.0)])
    result = run_case(case, rounds=3, sample_ns=1)
    (ratio,) = result.ratios
    assert ratio.per_round == [6.0, 2.0, 1.0]
    assert (ratio.spread.median, ratio.spread.min, ratio.spread.max) == (2.0, 1.0, 6.0)
    assert ratio.met
    assert result.rows[0].rates == [6.0, 6.0, 2.0]


def test_calibration_grows_the_count_until_a_sample_is_long_enough() -> None:
    from bench.runner import calibrate

    assert calibrate(lambda count: (count, count * 10), sample_ns=1) == 512
    assert calibrate(lambda count: (count, count * 10), sample_ns=1_000_000) >= 100_000


def test_idle_extensions_are_weighed_in_fresh_processes() -> None:
    from bench.memory import weigh

    weight = weigh(50)
    assert weight.instances == 50
    assert weight.traced_bytes > 0
    assert weight.load_ns > 0


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import __main__ as program

    monkeypatch.setattr(program, "SAMPLE_QUICK_NS", 1)
    path = tmp_path / "deep" / "out.json"
    assert program.main(["--quick", "--rounds", "2", "--only", "roundtrip/1", "--json", str(path)]) == 0
    text = capsys.readouterr().out
    assert "roundtrip/1  (" in text
    assert "target ≥ 3x" in text
    report = json.loads(path.read_text("utf-8"))
    assert [case["name"] for case in report["cases"]] == ["roundtrip/1"]
    rows = report["cases"][0]["rows"]
    assert {row["name"] for row in rows} >= {"uxk", "trio channels", "asyncio.Queue", "SimPy Store", "pykka ask"}
    assert all(len(row["rates"]) == 2 for row in rows)


def test_an_unknown_case_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    from bench.__main__ import main

    assert main(["--only", "nonsense"]) == 2
    assert "roundtrip/32" in capsys.readouterr().err


# --- disks ---


def test_every_contender_in_virtual_time_does_what_it_counts() -> None:
    from bench.block_virtual import cases

    for case in cases():
        for contender in case.contenders:
            done, took_ns = contender.measure(100)
            assert done == 100, (case.name, contender.name)
            assert took_ns > 0


def test_goals_and_targets_name_contenders() -> None:
    from bench.block_virtual import GOALS, cases

    names = {contender.name for case in cases() for contender in case.contenders}
    assert set(GOALS) <= names
    assert {name for case in cases() for target in case.targets for name in (target.of, target.over)} <= names


def test_table_and_json_of_virtual_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import block_virtual as program

    monkeypatch.setattr(program, "SAMPLE_QUICK_NS", 1)
    path = tmp_path / "deep" / "out.json"
    assert program.main(["--quick", "--rounds", "1", "--only", "ftl", "--json", str(path)]) == 0
    assert "uxk ftl: goal ≥ 80 k" in capsys.readouterr().out
    assert [case["name"] for case in json.loads(path.read_text("utf-8"))["cases"]] == ["virtual/ftl"]
    assert program.main(["--only", "nonsense"]) == 2


def test_fio_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import block_serve as program

    assert program.main(["--only", "nonsense"]) == 2
    if missing := [name for name in program.NEEDED if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    monkeypatch.setattr(program, "SIZE_BYTES", 1 << 20)
    path = tmp_path / "out.json"
    words = ["--rounds", "1", "--seconds", "0.1", "--only", "randrw/4k/8", "--json", str(path)]
    assert program.main(words) == 0
    assert "uxk / nbdkit" in capsys.readouterr().out
    (case,) = json.loads(path.read_text("utf-8"))["cases"]
    assert [row["name"] for row in case["rows"]] == ["uxk", "nbdkit", "qemu-nbd"]
    assert all(rate > 0 for row in case["rows"] for rate in row["rates"])


@pytest.mark.parametrize("case", ["free/oneway/32", "free/roundtrip/32"] if SOAK else ["free/roundtrip/32"])
def test_every_contender_between_processes_does_what_it_counts(case: str) -> None:
    from bench.process import cases

    found = {each.name: each for each in cases()}
    for contender in found[case].contenders:
        if SOAK or contender.name in ("uxk link", "uxk, virtual clock", "uxk, real clock"):
            done, took_ns = contender.measure(64)
            assert done >= 64 and took_ns > 0, contender.name
    assert {name.partition("/")[2] for name in found} == {"oneway/32", "roundtrip/1", "roundtrip/32"}
