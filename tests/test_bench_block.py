"""The benchmark programs of disks run and count right; how fast anything is, is not asked here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("simpy", reason="the extra `bench` is not installed")
pytest.importorskip("pykka", reason="the extra `bench` is not installed")


@pytest.fixture(autouse=True)
def bench_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


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
