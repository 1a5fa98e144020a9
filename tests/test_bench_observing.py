"""The benchmark of looking: every contender does what it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import observing

pytest.importorskip("prometheus_client")
pytest.importorskip("perfetto")
CASES = observing.all_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_contender_does_what_it_counts(case: observing.Case) -> None:
    for contender in case.contenders:
        done, took_ns = contender.measure(100)
        assert done >= 100 and took_ns > 0, contender.name


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "SAMPLE_QUICK_NS", 1)
    out = tmp_path / "out.json"
    assert observing.main(["--quick", "--rounds", "1", "--only", "log", "--json", str(out)]) == 0
    assert "uxk json / plain" in capsys.readouterr().out and out.exists()
    assert observing.main(["--only", "nothing"]) == 2
