"""``uxk dataset``: what is in a dataset log, as a table, as rows, as files for other programs.

Exit codes: 0 good, 1 the log is damaged (or another failure), 2 wrong usage.
"""

from __future__ import annotations

import argparse
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from uxk.cli.common import FAILED, GOOD, Subparsers, UsageExit, add_verb, clean, complain, note, print_json

if TYPE_CHECKING:
    from uxk.bridges.datalog.reader import Batch, DataLog, Scan

_WHAT: Final = ("ls", "show", "head", "export", "verify")
_TOLD_MAX: Final = 20
"""Problems printed; the rest are counted."""
_EPILOG: Final = """\
ls DIR: datasets. show DIR: runs, and what is missing; with NAME, a dataset's columns. head DIR NAME: first rows as
JSON lines, -n says how many. export DIR NAME OUT: .parquet, .arrow, .csv or .jsonl, by OUT's ending. verify DIR: reads
every record. NAME is MODEL/DATASET. What is damaged is an error, unless --damaged reads on behind it.
"""


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(subparsers, "dataset", dataset, help="look into a dataset log", json=True, epilog=_EPILOG)
    parser.add_argument("what", choices=_WHAT, metavar="|".join(_WHAT))
    parser.add_argument("dir", metavar="DIR", help="the log's directory")
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="MODEL/DATASET")
    parser.add_argument("out", metavar="OUT", nargs="?", default="", help="file to write")
    parser.add_argument("-n", "--rows", type=int, default=10, metavar="N", help="rows to print (default: 10)")
    parser.add_argument("--run", type=int, default=0, metavar="N", help="one of the runs in the log (default: all)")
    parser.add_argument("--damaged", action="store_true", help="leave out what is damaged, and go on")


def dataset(args: argparse.Namespace) -> int:
    """One look at a log."""
    from uxk.bridges.datalog.reader import DataLog

    if args.out and args.what != "export":
        raise UsageExit(f"{args.what}: one word too many: {args.out}")
    if args.what in ("head", "export") and not args.name:
        raise UsageExit(f"{args.what}: needs a dataset: uxk dataset ls {args.dir}")
    if args.what == "export" and not args.out:
        raise UsageExit("export: needs a file to write, whose ending says how: .parquet, .arrow, .csv, .jsonl")
    log = DataLog(args.dir)
    match args.what:
        case "ls":
            return _ls(log, args)
        case "show":
            return _show(log, args) if not args.name else _columns(log, args)
        case "head":
            return _head(log, args)
        case "export":
            return _export(log, args)
        case _:
            return _verify(log, args)


class _Totals:
    """One dataset's, over a log."""

    def __init__(self, first: Batch) -> None:
        self.description = first.description
        self.batches = self.rows = self.bytes = self.lost = 0
        self.first_ns = self.last_ns = first.meta.time_ns
        self.runs: Counter[int] = Counter()

    def add(self, batch: Batch) -> None:
        """One more batch."""
        self.batches += 1
        self.rows += len(batch.rows)
        self.bytes += batch.rows.nbytes
        self.lost += batch.meta.lost if batch.meta.first == 0 else 0
        self.first_ns, self.last_ns = min(self.first_ns, batch.meta.time_ns), max(self.last_ns, batch.meta.time_ns)
        self.runs[batch.run.number] += 1


def _totals(log: DataLog, args: argparse.Namespace) -> tuple[dict[str, _Totals], Scan]:
    found: dict[str, _Totals] = {}
    scan = log.scan()
    for batch in scan:
        if args.run in (0, batch.run.number):
            found.setdefault(batch.name, _Totals(batch)).add(batch)
    return found, scan


def _ls(log: DataLog, args: argparse.Namespace) -> int:
    found, scan = _totals(log, args)
    if args.json:
        print_json([_plain(name, each) for name, each in sorted(found.items())])
    else:
        width = max(map(len, [*found, "DATASET"]))
        print(
            f"{'DATASET':{width}} {'RUNS':>4} {'BATCHES':>8} {'ROWS':>10} {'BYTES':>12} {'FROM_NS':>15} {'TO_NS':>15}"
        )
        for name, each in sorted(found.items()):
            print(clean(f"{name:{width}} {len(each.runs):>4} {each.batches:>8} {each.rows:>10} {each.bytes:>12} "
                        f"{each.first_ns:>15} {each.last_ns:>15}"))  # fmt: skip
    return _tell(scan, args)


def _plain(name: str, each: _Totals) -> dict[str, Any]:
    return {
        "dataset": name, "subsystem": each.description.subsystem, "runs": sorted(each.runs), "batches": each.batches,
        "rows": each.rows, "bytes": each.bytes, "rows_lost_before": each.lost, "from_ns": each.first_ns,
        "to_ns": each.last_ns, "columns": dict(each.description.schema),
    }  # fmt: skip


def _show(log: DataLog, args: argparse.Namespace) -> int:
    found, scan = _totals(log, args)
    if args.json:
        print_json({
            "dir": str(log.folder), "segments": scan.segments, "bytes": scan.bytes, "records": scan.frames,
            "runs": [{"number": run.number, **_head_facts(run.head)} for run in scan.runs.values()],
            "losses": [{"run": run.number, **_fields(loss)} for run, loss in scan.losses],
            "datasets": [_plain(name, each) for name, each in sorted(found.items())],
            "problems": [each._asdict() for each in scan.problems],
        })  # fmt: skip
        return _tell(scan, args)
    print(f"{scan.segments} segments, {scan.bytes} bytes, {scan.frames} records")
    for run in scan.runs.values():
        facts = _head_facts(run.head)
        versions = " ".join(f"{name}={text}" for name, text in sorted(facts.pop("versions").items()))
        print(clean(f"run {run.number}: " + " ".join(f"{key}={value}" for key, value in facts.items())))
        print(clean(f"  {versions}"))
    for run, loss in scan.losses:
        print(clean(f"run {run.number}: {loss.name}: {loss.batches} publications of {loss.rows} rows not written: "
                    f"{loss.why}"))  # fmt: skip
    return _tell(scan, args)


def _head_facts(head: Any) -> dict[str, Any]:
    from datetime import UTC, datetime

    try:
        began = datetime.fromtimestamp(head.created_ns / 1e9, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        began = str(head.created_ns)
    return {
        "id": head.run, "began": began, "seed": head.seed, "clock": head.clock, "scenario": head.scenario,
        "versions": dict(head.versions),
    }  # fmt: skip


def _fields(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def _columns(log: DataLog, args: argparse.Namespace) -> int:
    found, scan = _totals(log, args)
    if args.name not in found:
        log.dataset(args.name, run=args.run, damaged=True)  # says what there is
    each = found[args.name]
    if args.json:
        print_json(_plain(args.name, each))
    else:
        print(clean(f"{args.name} of {each.description.subsystem}: {each.rows} rows in {each.batches} batches, "
                    f"{each.first_ns} to {each.last_ns} ns"))  # fmt: skip
        for name, kind in each.description.schema:
            print(clean(f"  {name} {kind}"))
    return _tell(scan, args)


def _head(log: DataLog, args: argparse.Namespace) -> int:
    from uxk.bridges.datalog.arrow import json_rows

    data = log.dataset(args.name, run=args.run, damaged=args.damaged)
    for row in islice(json_rows(data), max(0, args.rows)):
        print(clean(row.decode()))
    return GOOD


def _export(log: DataLog, args: argparse.Namespace) -> int:
    from uxk.bridges.datalog.arrow import export

    data = log.dataset(args.name, run=args.run, damaged=args.damaged)
    count = export(data, args.out)
    if args.json:
        print_json({"dataset": args.name, "rows": count, "out": args.out})
    else:
        print(clean(f"{args.name}: {count} rows to {args.out}"))
    return GOOD


def _verify(log: DataLog, args: argparse.Namespace) -> int:
    scan = log.scan()
    batches = sum(1 for _ in scan)
    lost = sum(loss.batches for _, loss in scan.losses)
    if args.json:
        print_json({
            "good": not scan.damage, "segments": scan.segments, "bytes": scan.bytes, "records": scan.frames,
            "batches": batches, "not_written": lost, "problems": [each._asdict() for each in scan.problems],
        })  # fmt: skip
        return FAILED if scan.damage else GOOD
    print(f"{scan.segments} segments, {scan.bytes} bytes: {scan.frames} records are whole, {batches} of them batches")
    if lost:
        print(f"{lost} publications were not written, as the log itself says")
    return _tell(scan, args)


def _tell(scan: Scan, args: argparse.Namespace) -> int:
    """Problems, on stderr; the exit code."""
    for each in scan.problems[:_TOLD_MAX]:
        if each.torn:
            note(clean(each))
        else:
            complain("dataset", clean(each))
    if scan.problem_count > _TOLD_MAX:
        note(f"{scan.problem_count - _TOLD_MAX} further problems")
    return FAILED if scan.damage and not args.damaged else GOOD
