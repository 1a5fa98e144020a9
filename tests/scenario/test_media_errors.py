"""The bundled scenario of a drive that wears out."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import uxk

ROOT = Path(__file__).resolve().parents[2]


def test_a_drive_that_wears_out_harms_only_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "drivers"))
    importlib.import_module("uxk_nvme")
    result = uxk.run("media-errors")
    assert result.exit_code == 0, result.report()
    errors = result["workloads.load.errors"]
    assert errors == {"ENODATA": result["faults.bad-blocks.fired"], "ETIMEDOUT": 3}
    assert result["workloads.load.mismatches"] == 0
    assert str(result["modules.nvme.attributes.faults"]).startswith("add id=1002 "), "the others were taken back"


def test_a_rule_that_the_drive_does_not_know_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "drivers"))
    importlib.import_module("uxk_nvme")
    options = {
        "faults.lost.rule": "opcode=wriet action=drop",
        "faults.lost.at_ns": "1ms",
        "workloads.load.count": "100",
    }
    result = uxk.run("media-errors", options=options)
    assert result.exit_code == 1
    (failed,) = (verdict for verdict in result.checks if verdict.what == "fault lost")
    assert failed.seen.startswith("faults[2] at 1000000 ns: nvme, 'opcode=wriet action=drop': ")
    assert "did you mean 'write'" in failed.seen
