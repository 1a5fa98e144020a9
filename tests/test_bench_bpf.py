"""Every contender of the benchmark of compiled models decides, or makes, what it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_every_contender_does_what_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from bench import bpf

    monkeypatch.setattr(bpf, "in_numba", lambda *_: [])  # it takes seconds
    monkeypatch.setattr(bpf, "BATCH_ROWS", bpf.INPUTS)
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


def test_the_tables_of_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from bench.bpf_table import DOCUMENT, tables
    from bench.methods_table import as_markdown, replaced
    from bench.runner import Result, Row, Spread

    def row(name: str, rate: float) -> Row:
        return Row(name, "", 1, [rate], Spread.of([rate]))

    found = tables([
        Result("decide/net (871 instructions)", "", [row("numpy net", 12_340), row("uxk batch", 1_234_567)], []),
        Result("make/10 trees of 10 leaves (1234 instructions)", "", [row("uxk verify", 999)], []),
    ])  # fmt: skip
    decide, make = (dict(zip(*found[name], strict=True)) for name in ("bpf-decide", "bpf-make"))
    assert decide == {"model": "net 8-16-2", "instructions": "871", "river": "12*", "batch": "1,235"}
    assert make == {"program": "10 trees of 10 leaves", "instructions": "1,234", "proof": "1.0"}
    for name, cells in found.items():
        assert as_markdown(cells) in replaced(DOCUMENT.read_text("utf-8"), name, as_markdown(cells))


def test_a_case_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from bench import bpf

    monkeypatch.setattr(bpf, "all_cases", lambda **_: [])
    assert bpf.main(["--only", "nothing"]) == 2
    assert "nothing: no such case" in capsys.readouterr().err
