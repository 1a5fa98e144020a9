"""Every contender of the dataset log's benchmark keeps what it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

import uxk

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("pyarrow", reason="the extra `data` is not installed")


def test_every_contender_appends_what_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from bench.datalog import all_cases, shapes

    for case, rows in zip(all_cases(tmp_path), shapes().values(), strict=True):
        for contender in case.contenders:
            done, took_ns = contender.measure(7)
            assert (done, took_ns > 0) == (7, True), (case.name, contender.name)
        found = list(uxk.DataLog(tmp_path / "log").generations())
        assert [each.generation for each in found[-7:]] == [*range(7)]
        assert all((each.rows == rows).all() for each in found[-7:])
