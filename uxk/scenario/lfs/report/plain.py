"""The report on a scenario's folder: its figures as a table, in the terminal and as a page."""

from __future__ import annotations

from typing import Any

from uxk.scenario.lfs.report.page import KMSG_LINES, render
from uxk.scenario.report import table
from uxk.scenario.saved import Saved


def scenario_text(saved: Saved) -> str:
    """The figures as two columns."""
    figures = [[name, str(value)] for name, value in saved.figures.items()]
    title = f"{saved.summary['scenario']}, seed {saved.summary['seed']}"
    return "\n".join([title, "", *table(("figure", "value"), figures)])


def scenario_page(saved: Saved) -> str:
    """The figures, what was checked, and the end of the log."""
    summary = saved.summary
    versions = ", ".join(f"{name} {version}" for name, version in saved.manifest["versions"].items())
    facts = {"seed": summary["seed"], "event hash": summary["event_hash"], "versions": versions}
    return render(
        "scenario.html.j2", name=summary["scenario"], exit_code=summary.get("exit_code", "unknown"), facts=facts,
        verdicts=[_verdict(each) for kind in ("checks", "invariants") for each in _list(summary.get(kind))],
        figures=[
            (name, value) for name, value in saved.figures.items() if not name.startswith(("checks.", "invariants."))
        ],
        kmsg=saved.kmsg[-KMSG_LINES:],
    )  # fmt: skip


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _verdict(value: Any) -> tuple[str, bool, str]:
    if not isinstance(value, dict):
        return str(value), False, ""
    return str(value.get("what", "?")), bool(value.get("good")), str(value.get("seen", ""))
