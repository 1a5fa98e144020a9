"""What the programs that compare have in common: options, text, and a report in JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from bench.runner import Ratio, Result, Row

RESULTS: Final = Path(__file__).resolve().parent / "results"
T = TypeVar("T")

# --- options ---


def add_options(parser: argparse.ArgumentParser, stem: str, quick: str) -> None:
    """``--rounds``, ``--only``, ``--quick`` (with this help) and ``--json``; ``stem`` is what its file begins with."""
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--only", action="append", metavar="NAME", help="cases whose name contains NAME; repeatable")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"where JSON goes (bench/results/{stem}TIME.json)")


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with one round at least."""
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: expected at least 1")
    return args


def wanted(name: str, only: Sequence[str] | None) -> bool:
    """Whether ``--only`` lets a case of this name through."""
    return not only or any(part in name for part in only)


def chosen(cases: Sequence[T], only: Sequence[str] | None, name: Callable[[T], str]) -> list[T]:
    """The cases that ``--only`` asks for; if none is so called, says which there are."""
    found = [case for case in cases if wanted(name(case), only)]
    if not found:
        complain(only, map(name, cases))
    return found


def complain(only: Sequence[str] | None, names: Iterable[str]) -> None:
    """``--only`` lets nothing through."""
    print(f"bench: --only {' '.join(only or ())}: no such case; there are {', '.join(names)}", file=sys.stderr)


# --- text ---


def mark(met: bool | None) -> str:
    """What stands behind a target."""
    return {None: "", True: " ✔", False: " ✘"}[met]


def _show_row(row: Row) -> str:
    low, mid, high = (value / 1e3 for value in (row.spread.min, row.spread.median, row.spread.max))
    return f"  {row.name:<24}{mid:>10,.1f} k  {low:>10,.1f} .. {high:<10,.1f} {row.note}".rstrip()


def _show_ratio(ratio: Ratio) -> str:
    wanted = "" if ratio.target is None else f"  target ≥ {ratio.target:g}x{mark(ratio.met)}"
    pair = f"{ratio.of} / {ratio.over}"
    return f"  {pair:<40}{ratio.spread.median:>8.2f}x  {ratio.spread.min:.2f} .. {ratio.spread.max:.2f}{wanted}"


def show(result: Result) -> str:
    """A case as text."""
    head = f"{result.name}  (thousand {result.unit}: median, min .. max)"
    return "\n".join([head, *map(_show_row, result.rows), *map(_show_ratio, result.ratios), ""])


# --- JSON ---


def begun(**more: Any) -> dict[str, Any]:
    """A report: when, where, and what else is to be said; :func:`plain` results go into ``cases``."""
    machine = {"machine": platform.platform(), "cpus": os.cpu_count()}
    return {"time": datetime.now(UTC).isoformat(timespec="seconds"), **machine, **more, "cases": []}


def plain(result: Result) -> dict[str, Any]:
    """A case as plain data."""
    return {
        "name": result.name,
        "unit": result.unit,
        "rows": [{**row._asdict(), "spread": row.spread._asdict()} for row in result.rows],
        "ratios": [{**r._asdict(), "spread": r.spread._asdict(), "met": r.met} for r in result.ratios],
    }


def save(report: dict[str, Any], path: Path | None, stem: str) -> None:
    """Writes a report where ``--json`` says, or to a file of its time, and tells where."""
    time = datetime.fromisoformat(report["time"])
    path = path or RESULTS / f"{stem}{time:%Y%m%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"JSON: {path}")
