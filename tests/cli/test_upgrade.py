"""Mistakes on the command lines of ``uxk upgrade``, ``restart`` and ``supervise``; what works is in docs/upgrade.md."""

from __future__ import annotations

import pytest

from uxk.cli import main
from uxk.cli.common import UsageExit
from uxk.cli.upgrade import time_ns


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("upgrade null", "--to"),
        ("upgrade null --to 2", "needs a running kernel"),
        ("restart null --probation soon -k x", "--probation 'soon': not an integer; expected a time, such as 10ms"),
        ("restart null --quiesce -1s -k x", "expected"),
        ("restart null a -k x", "expected a parameter as NAME=VALUE"),
        ("restart null --kpi speed -k x", "invalid choice: 'speed'"),
        ("supervise", "needs a running kernel"),
        ("supervise -r -k x", "-r needs the NAME of a supervisor"),
        ("supervise -r top null -k x", "-r takes no instances"),
        ("supervise top null --strategy all -k x", "invalid choice: 'all'"),
        ("supervise top null --max-restarts 2000 -k x", "--max-restarts 2000: expected 0 to 1024"),
        ("supervise top null --period long -k x", "--period 'long'"),
    ],
)
def test_mistakes(words: str, why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UXK_SOCKET", raising=False)
    assert main(words.split()) == 2
    assert why in capsys.readouterr().err


def test_times() -> None:
    assert time_ns("--probation", "1.5ms") == 1_500_000 and time_ns("--probation", None) is None
    with pytest.raises(UsageExit, match="expected at least 0"):
        time_ns("--probation", "-5ms")
