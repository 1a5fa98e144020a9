"""``uxk run reclaim-deadlock``: the deadlock laboratory."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from uxk.cli.common import UsageExit, print_json

if TYPE_CHECKING:
    from uxk.scenario.mm.bench import Run
    from uxk.scenario.mm.study import LabStudy


def run_mm(args: argparse.Namespace, study: LabStudy, options: dict[str, str]) -> int:
    """Runs the laboratory and prints what came of it; returns the exit code."""
    from msgspec import to_builtins
    from msgspec.structs import replace

    from uxk.cli.run import clean_lines
    from uxk.scenario.mm.bench import complaints, exit_code, run_lab
    from uxk.scenario.mm.study import SEEDS_MAX, with_lab_options
    from uxk.scenario.mm.text import report

    if args.costs is not None:
        raise UsageExit("--costs: only for scenarios")
    study = with_lab_options(study, options)
    if args.seed is not None:
        study = replace(study, seed=args.seed)
    if args.seeds is not None:
        if args.seeds > SEEDS_MAX:
            raise UsageExit(f"--seeds {args.seeds}: expected 1 to {SEEDS_MAX}")
        study = replace(study, seeds=args.seeds)
    watched = sys.stderr.isatty()
    try:
        runs = run_lab(study, out=args.out, on_run=_progress if watched else _nothing)
    finally:
        if watched:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    if args.json:
        print_json({
            "study": study.name, "seed": study.seed, "seeds": study.seeds, "runs": to_builtins(runs),
            "complaints": complaints(study, runs),
        })  # fmt: skip
    else:
        print(clean_lines(report(study, runs)))
    return exit_code(study, runs)


def _progress(run: Run) -> None:
    print(f"\r\033[K{run.case}: {run.way}, seed {run.seed}", end="", file=sys.stderr, flush=True)


def _nothing(run: Run) -> None:
    """Nobody looks."""
