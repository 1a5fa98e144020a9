"""Every contender of the benchmark of compiled models decides, or makes, what it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_every_contender_does_what_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from bench import bpf

    monkeypatch.setattr(bpf, "in_batches", lambda *_: None)  # numba takes seconds
    cases = bpf.all_cases(rows=300, rows_of_forest=100, leaves=(3, 10))
    assert [case.name.split(" (")[0] for case in cases] == [
        "decide/tree", "decide/forest", "decide/logistic", "decide/net",
        "make/3 leaves", "make/10 leaves", "make/10 trees of 10 leaves",
    ]  # fmt: skip
    for case in cases:
        names = {contender.name for contender in case.contenders}
        assert {name for target in case.targets for name in (target.of, target.over)} <= names
        for contender in case.contenders:
            done, took_ns = contender.measure(40)
            assert done >= 40, (case.name, contender.name)
            assert took_ns > 0


def test_a_case_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from bench import bpf

    monkeypatch.setattr(bpf, "all_cases", list)
    assert bpf.main(["--only", "nothing"]) == 2
    assert "nothing: no such case" in capsys.readouterr().err
