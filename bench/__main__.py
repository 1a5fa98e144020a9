"""``python -m bench``: a table on standard output, JSON in a file."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.cases import IDLE_MAX_BYTES, all_cases
from bench.memory import Weight, weigh
from bench.runner import Ratio, Result, Row, run_case

RESULTS = Path(__file__).resolve().parent / "results"
SAMPLE_NS = 300_000_000
SAMPLE_QUICK_NS = 30_000_000
IDLE_COUNT = 10_000
IDLE_QUICK_COUNT = 1_000


def _mark(met: bool | None) -> str:
    return {None: "", True: " ✔", False: " ✘"}[met]


def _show_row(row: Row) -> str:
    low, mid, high = (value / 1e3 for value in (row.spread.min, row.spread.median, row.spread.max))
    return f"  {row.name:<24}{mid:>10,.1f} k  {low:>10,.1f} .. {high:<10,.1f} {row.note}".rstrip()


def _show_ratio(ratio: Ratio) -> str:
    wanted = "" if ratio.target is None else f"  target ≥ {ratio.target:g}x{_mark(ratio.met)}"
    pair = f"{ratio.of} / {ratio.over}"
    return f"  {pair:<40}{ratio.spread.median:>8.2f}x  {ratio.spread.min:.2f} .. {ratio.spread.max:.2f}{wanted}"


def show(result: Result) -> str:
    """A case as text."""
    head = f"{result.name}  (thousand {result.unit}: median, min .. max)"
    return "\n".join([head, *map(_show_row, result.rows), *map(_show_ratio, result.ratios), ""])


def show_weight(weight: Weight) -> str:
    """Memory as text."""
    kib = weight.rss_bytes / 1024
    met = _mark(weight.rss_bytes <= IDLE_MAX_BYTES)
    return "\n".join([
        f"memory  ({weight.instances:,} idle extensions in a fresh process)",
        f"  resident, each          {kib:>10.2f} KiB  target ≤ {IDLE_MAX_BYTES >> 10} KiB{met}",
        f"  live objects, each      {weight.traced_bytes / 1024:>10.2f} KiB  (tracemalloc)",
        f"  loading, each           {weight.load_ns / 1e3:>10.1f} µs   (last tenth {weight.load_max_ns / 1e3:.1f} µs)",
        "",
    ])  # fmt: skip


def _versions() -> dict[str, str]:
    names = ("trio", "msgspec", "numpy", "simpy", "pykka")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures uxk beside its alternatives.")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--only", action="append", metavar="NAME", help="cases whose name contains NAME; repeatable")
    parser.add_argument("--quick", action="store_true", help="samples of 30 ms instead of 300; 1,000 idle extensions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where JSON goes (bench/results/TIME.json)")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: expected at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what was asked for.  0; 2 if no case has such a name."""
    args = _parse(argv)

    def wanted(name: str) -> bool:
        return not args.only or any(part in name for part in args.only)

    cases = [case for case in all_cases() if wanted(case.name)]
    if not cases and not wanted("memory"):
        names = ", ".join([*(case.name for case in all_cases()), "memory"])
        print(f"bench: --only {' '.join(args.only)}: no such case; there are {names}", file=sys.stderr)
        return 2
    sample_ns = SAMPLE_QUICK_NS if args.quick else SAMPLE_NS
    now = datetime.now(UTC)
    versions = _versions()
    print(f"{os.cpu_count()} CPUs, {', '.join(f'{name} {version}' for name, version in versions.items())}")
    print(f"{args.rounds} rounds, contenders interleaved, samples of {sample_ns // 1_000_000} ms or more\n")
    report: dict[str, Any] = {
        "time": now.isoformat(timespec="seconds"), "machine": platform.platform(), "cpus": os.cpu_count(),
        "versions": versions, "rounds": args.rounds, "sample_ns": sample_ns, "cases": [],
    }  # fmt: skip
    for case in cases:
        result = run_case(case, rounds=args.rounds, sample_ns=sample_ns)
        print(show(result), flush=True)
        report["cases"].append(plain(result))
    if wanted("memory"):
        weight = weigh(IDLE_QUICK_COUNT if args.quick else IDLE_COUNT)
        print(show_weight(weight))
        report["memory"] = {**weight._asdict(), "target_bytes": IDLE_MAX_BYTES}
    path = args.json or RESULTS / f"{now:%Y%m%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"JSON: {path}")
    return 0


def plain(result: Result) -> dict[str, Any]:
    """A case as plain data."""
    return {
        "name": result.name,
        "unit": result.unit,
        "rows": [{**row._asdict(), "spread": row.spread._asdict()} for row in result.rows],
        "ratios": [{**r._asdict(), "spread": r.spread._asdict(), "met": r.met} for r in result.ratios],
    }


if __name__ == "__main__":
    sys.exit(main())
