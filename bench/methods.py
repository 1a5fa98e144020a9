"""``python -m bench.methods``: one decision, six ways to have user space take part in it (docs/methods.md).

Everything but the host times is virtual, and the same on every machine.  ``--docs`` writes the tables and the plot of
docs/methods.md anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec

from bench.methods_flow import Setup
from bench.methods_run import Outcome, run_ways
from bench.methods_table import (
    ENTRIES,
    HANG_SHARE,
    PUSHES,
    SWEEP,
    WORKLOADS,
    Entry,
    HostRow,
    as_markdown,
    as_text,
    hang_table,
    host_table,
    main_table,
    replaced,
    traffic_table,
    workload_table,
)
from bench.report import add_options, begun, chosen, parsed, save
from bench.runner import Spread

SEEDS: Final = (1, 2, 3, 4, 5)
QUICK_SEEDS: Final = (1,)
QUICK_WRITES: Final = 2_048
DOCUMENT: Final = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
PLOT: Final = DOCUMENT.with_name("methods.svg")
IN_KERNEL: Final = "in-kernel"


def _once(entry: Entry, base: Setup) -> Outcome:
    return run_ways([entry.way], entry.setup(base))[entry.way]


def compare(entries: Sequence[Entry], base: Setup, seeds: Sequence[int]) -> dict[str, list[Outcome]]:
    """Every entry with every seed."""
    return {
        entry.label: [_once(entry, msgspec.structs.replace(base, seed=seed)) for seed in seeds] for entry in entries
    }


def hang(entries: Sequence[Entry], base: Setup) -> dict[str, Outcome]:
    """Every entry that has an adviser, which stops answering in the middle."""
    base = msgspec.structs.replace(base, hang_ns=base.writes * base.gap_ns // HANG_SHARE)
    return {entry.label: _once(entry, base) for entry in entries if entry.way not in ("default", IN_KERNEL)}


def host(entries: Sequence[Entry], base: Setup, rounds: int) -> list[HostRow]:
    """Host time, contenders interleaved; a first round is for warming up."""
    base = msgspec.structs.replace(base, shadow=False)
    timed = [*entries, *(entry for entry in ENTRIES if entry.way == IN_KERNEL and entry not in entries)]
    found: dict[str, list[tuple[float, float]]] = {entry.label: [] for entry in timed}
    for number in range(rounds + 1):
        outcomes = {entry.label: (entry.way, _once(entry, base)) for entry in timed}
        beside_ns = next(outcome.host_ns for way, outcome in outcomes.values() if way == IN_KERNEL)
        for label, (_, outcome) in outcomes.items():
            if number:
                per_decision_us = outcome.host_ns / 1e3 / max(outcome.decisions, 1)
                found[label].append((per_decision_us, outcome.host_ns / beside_ns))
    return [
        HostRow(entry.label, Spread.of([us for us, _ in found[entry.label]]),
                Spread.of([ratio for _, ratio in found[entry.label]]))
        for entry in entries
    ]  # fmt: skip


def workloads(base: Setup) -> dict[str, dict[str | int, Outcome]]:
    """Hints on other writes, more and less often, between the default and fresh state."""
    found: dict[str, dict[str | int, Outcome]] = {}
    for name in WORKLOADS:
        on = msgspec.structs.replace(base, workload=name, shadow=False)
        runs = found[name] = {}
        runs.update(run_ways(["default", IN_KERNEL], on))
        runs.update({push: _once(Entry("", "hints", {"push": push}), on) for push in PUSHES})
    return found


def sweep(base: Setup) -> dict[str, list[Outcome]]:
    """What the plot shows: how often user space hears of the state, from always to hardly ever."""
    return {
        way: [_once(Entry("", way, {name: value}), base) for value in values] for way, (name, values) in SWEEP.items()
    }


def _plain(outcome: Outcome) -> dict[str, object]:
    return {name: value for name, value in msgspec.to_builtins(outcome).items() if name not in ("victims", "report")}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.methods", description=(__doc__ or "").splitlines()[0])
    add_options(parser, "methods-", f"one seed, {QUICK_WRITES:,} writes")
    parser.add_argument("--docs", action="store_true", help="write the tables and the plot of docs/methods.md anew")
    args = parsed(parser, argv)
    if args.docs and (args.only or args.quick):
        parser.error("--docs: needs all methods at full length")
    if args.docs and find_spec("matplotlib") is None:
        parser.error("--docs: needs matplotlib, of the extra `report`")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what was asked for.  0; 2 if no method has such a name."""
    args = _parse(argv)
    entries = chosen(ENTRIES, args.only, lambda entry: entry.label)
    if not entries:
        return 2
    seeds, base = (QUICK_SEEDS, Setup(writes=QUICK_WRITES)) if args.quick else (SEEDS, Setup())
    print(f"{base.writes:,} writes of {base.workload!r}, one every {base.gap_ns / 1e3:g} µs; seeds {seeds[0]} to "
          f"{seeds[-1]}; the charged clock\n")  # fmt: skip
    outcomes = compare(entries, base, seeds)
    tables = {"traffic": traffic_table(outcomes), "methods": main_table(outcomes)}
    print(f"{as_text(tables['traffic'])}\n\n{as_text(tables['methods'])}", flush=True)
    hung = hang(entries, base)
    tables["hang"] = hang_table(hung)
    print(f"\nThe adviser stops answering in the middle (seed {base.seed})\n\n{as_text(tables['hang'])}", flush=True)
    rows = host(entries, base, args.rounds)
    tables["host"] = host_table(rows)
    print(f"\nHost time, {args.rounds} rounds, contenders interleaved\n\n{as_text(tables['host'])}\n")
    report = begun(setup=msgspec.to_builtins(base), seeds=seeds, rounds=args.rounds)
    report["methods"] = {label: [_plain(run) for run in runs] for label, runs in outcomes.items()}
    report["hang"] = {label: _plain(run) for label, run in hung.items()}
    report["host"] = [row._asdict() for row in rows]
    if args.docs:
        from bench.methods_plot import picture

        others = workloads(base)
        tables["workloads"] = workload_table(others)
        report["workloads"] = {
            name: {str(key): _plain(run) for key, run in runs.items()} for name, runs in others.items()
        }  # fmt: skip
        swept = sweep(base)
        report["sweep"] = {way: [_plain(run) for run in runs] for way, runs in swept.items()}
        alone = {run.way: run for runs in outcomes.values() for run in runs[:1]}
        PLOT.write_text(picture(swept, alone), encoding="utf-8")
        text = DOCUMENT.read_text("utf-8")
        for name, cells in tables.items():
            text = replaced(text, name, as_markdown(cells))
        text = replaced(text, "report", f"```text\n{alone['upcall'].report}\n```")
        DOCUMENT.write_text(text, encoding="utf-8")
        print(f"written: {DOCUMENT}, {PLOT}")
    save(report, args.json, "methods-")
    return 0


if __name__ == "__main__":
    sys.exit(main())
