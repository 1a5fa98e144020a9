"""The benchmark of attacks measures, says so in words and in JSON; how fast anything is, is not asked here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench import attacks


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "SAMPLE_QUICK_NS", 10_000_000)
    path = tmp_path / "out.json"
    assert attacks.main(["--quick", "--rounds", "1", "--only", "wire_giant", "--json", str(path)]) == 0
    assert "| wire_giant | " in capsys.readouterr().out
    (case,) = json.loads(path.read_text())["cases"]
    assert case["name"] == "wire_giant" and case["rounds"][0]["ratio"] > 0
    assert attacks.main(["--only", "nonsense"]) == 2


def test_every_attack_is_measured() -> None:
    names = attacks.attacks()
    assert names[0] == "none" and {"flood", "giant", "arena", "log", "guess", "fork", "spin"} < set(names)
