"""The end of a run in words and tables, for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from uxk.limits import NS_PER_S
from uxk.scenario.results import Result, Verdict, events_per_s

_MODULE_COLUMNS: Final = ("requests", "completed", "failed", "timeouts", "restarts")
_WORKLOAD_COLUMNS: Final = ("issued", "completed", "failed", "refused", "verified", "mismatches")
_QUANTILES: Final = ("p50_ns", "p99_ns", "p999_ns")
_QUANTILE_HEADS: Final = ("p50", "p99", "p99.9")


def duration(ns: int) -> str:
    """Nanoseconds for people, with four digits: ``1.5 ms``."""
    for unit, factor in (("s", NS_PER_S), ("ms", 1_000_000), ("us", 1_000)):
        if ns >= factor:
            return f"{ns / factor:.4g} {unit}"
    return f"{ns} ns"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as they need to be; the first is flush left, the others flush right."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    out = []
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        out.append("  ".join([line[0].ljust(widths[0]), *cells]).rstrip())
    return out


def _verdicts(verdicts: Sequence[Verdict]) -> list[str]:
    lines = []
    for verdict in verdicts:
        seen = f"  ({verdict.seen})" if verdict.seen else ""
        mark = "-" if not verdict.checked else "✔" if verdict.good else "✘"
        lines.append(f"  {mark} {verdict.what}{seen.replace('  ', ' ', 1) if not verdict.checked else seen}")
    return lines


def _figures(rows: dict[str, Any], columns: Sequence[str], last: str = "") -> list[list[str]]:
    return [
        [
            name,
            *(str(row[column]) for column in columns),
            *(duration(row[q]) for q in _QUANTILES),
            *([str(row[last])] if last else []),
        ]
        for name, row in rows.items()
    ]


def report(result: Result) -> str:
    """See :meth:`Result.report`."""
    scenario, values = result.scenario, result.values
    until = scenario.until if isinstance(scenario.until, str) else duration(scenario.until)
    lines = [f"{scenario.name}: {scenario.description}".rstrip(": ")]
    lines += [f"seed {result.seed}, {scenario.clock} clock, until {until}", ""]
    heads = ("module", *_MODULE_COLUMNS, *_QUANTILE_HEADS, "crossings")
    lines += table(heads, _figures(values["modules"], _MODULE_COLUMNS, "crossings"))
    if values["workloads"]:
        lines += ["", *table(
            ("workload", *_WORKLOAD_COLUMNS, *_QUANTILE_HEADS), _figures(values["workloads"], _WORKLOAD_COLUMNS)
        )]  # fmt: skip
    if values["faults"]:
        rows = [[name, fault["module"], str(fault["fired"])] for name, fault in values["faults"].items()]
        lines += ["", *table(("fault", "module", "fired"), rows)]
    if result.notes:
        lines += ["", *result.notes]
    if result.checks:
        lines += ["", "checks", *_verdicts(result.checks)]
    if result.invariants:
        lines += ["", "invariants", *_verdicts(result.invariants)]
    lines += ["", f"virtual time {duration(result.virtual_ns)}, {result.events} events, hash {result.event_hash}"]
    messages = sum(row["messages_in"] + row["messages_out"] for row in values["modules"].values())
    per_s = messages * NS_PER_S // max(1, result.host_ns)
    lines += [f"host time {duration(result.host_ns)}, {events_per_s(result)} events/s, {per_s} messages/s"]
    return "\n".join(lines)
