"""``uxk run lfs-gc``: studies, which run the same writes under several policies."""

from __future__ import annotations

import argparse
import sys
from shutil import get_terminal_size
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from uxk.cli.common import UsageExit, clean, note, print_json

if TYPE_CHECKING:
    from uxk.scenario.lfs.outcome import Live
    from uxk.scenario.lfs.study import Study

_OPTIONS: Final = ("trace", "format", "workload", "policy", "jobs")
"""Those that only studies take."""
_PROGRESS_S: Final = 0.1
_BAR_CHARS: Final = 20
_HEAT: Final = " ▁▂▃▄▅▆▇█"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what a study takes beside the options of scenarios."""
    group = parser.add_argument_group("for studies (lfs-gc)")
    group.add_argument("--trace", metavar="FILE", help="a block trace to play")
    group.add_argument("--format", metavar="F", help="its format (default: what it looks like): msr, systor, alibaba, "
                       "tencent, vscsi, disksim-hp, mqsim, blkparse, fio, pages")  # fmt: skip
    group.add_argument("--workload", metavar="NAME", help="a synthetic workload or a bundled trace: zipf1.0, mixed, "
                       "hot-cold-80-20, shifting-zipf, sqlite-oltp, ...")  # fmt: skip
    group.add_argument("--policy", metavar="P", nargs="+", action="extend", help="what to compare: placement/selection "
                       "such as sepbit/cb-age, humans (all published ones), default, fkg6 (the oracle), an agent's "
                       "module such as uxk_gc or uxk_gc:KEY=VALUE, PLACEMENT/program:FILE with an eBPF program that "
                       "scores segments, or FILE.py with a policy or an agent")  # fmt: skip
    group.add_argument("--jobs", type=int, metavar="N", help="processes that share the runs (default: 1)")


def refuse_options(args: argparse.Namespace, what: str = "a scenario") -> None:
    """Raises UsageExit for an option that only studies of policies take; ``what`` is run instead."""
    for name in _OPTIONS:
        if getattr(args, name) is not None:
            raise UsageExit(f"--{name}: only for studies such as lfs-gc; {args.scenario} is {what}")


def run_lfs(args: argparse.Namespace, study: Study, text: str, options: dict[str, str], on_record: Any) -> int:
    """Runs a study and prints what came of it; returns the exit code."""
    from msgspec.structs import replace

    from uxk.bridges.datalog.settings import DataLogSettings
    from uxk.scenario.lfs.compare import run_study
    from uxk.scenario.lfs.folder import check_folder, write_study
    from uxk.scenario.lfs.report import add_report
    from uxk.scenario.lfs.study import with_study_options

    if args.costs is not None:
        raise UsageExit("--costs: only for scenarios")
    if args.format is not None and args.trace is None:
        raise UsageExit(f"--format {args.format}: needs --trace FILE")
    if args.trace is not None and args.workload is not None:
        raise UsageExit(f"--trace {args.trace} and --workload {args.workload}: expected one of them")
    study = with_study_options(_with_arguments(study, args), options)
    if args.datasets is not None:
        study = replace(study, datalog=replace(study.datalog or DataLogSettings(), dir=args.datasets))
    if args.out is not None:
        check_folder(args.out)
    progress = _Progress() if sys.stderr.isatty() and not args.verbose else None
    try:
        verdict = run_study(
            study, jobs=1 if args.jobs is None else args.jobs, on_live=progress, on_record=on_record, on_note=note
        )
    finally:
        if progress is not None:
            progress.clear()
    if args.out is not None:
        write_study(args.out, verdict, text)
        if advice := add_report(args.out):
            note(advice)
    if args.json:
        print_json(verdict.to_dict())
    else:
        from uxk.cli.run import clean_lines

        print(clean_lines(verdict.report()))
    return verdict.exit_code


def _with_arguments(study: Study, args: argparse.Namespace) -> Study:
    from msgspec.structs import replace

    from uxk.scenario.lfs.study import SEEDS_MAX, WorkloadSpec

    changes: dict[str, Any] = {}
    if args.seed is not None:
        changes["seed"] = args.seed
    if args.seeds is not None:
        if args.seeds > SEEDS_MAX:
            raise UsageExit(f"--seeds {args.seeds}: expected 1 to {SEEDS_MAX}")
        changes["seeds"] = args.seeds
    if args.policy is not None:
        changes["policies"] = tuple(args.policy)
    if args.trace is not None:
        changes["workload"] = WorkloadSpec(
            trace=args.trace, format=args.format or "", page_bytes=study.workload.page_bytes
        )  # fmt: skip
    elif args.workload is not None:
        changes["workload"] = replace(study.workload, name=args.workload, trace="", format="", device="")
    return replace(study, **changes)


class _Progress:
    """One line on stderr: which run, how far, its write amplification at this moment, mode, and segment heat."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def __call__(self, live: Live) -> None:
        if (now_s := monotonic()) < self._next_s:
            return
        self._next_s = now_s + _PROGRESS_S
        columns = get_terminal_size().columns - 1  # a line that wraps cannot be taken back
        print(f"\r\033[K{clean(progress_line(live))[:columns]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Takes the line away."""
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def progress_line(live: Live) -> str:
    """``3/7 dac/cb-age ██████░░ 61 %  WA 1.53  learning  ▁▁▃█``: the last are segments by valid blocks."""
    filled = _BAR_CHARS * live.done // max(live.total, 1)
    bar = "█" * filled + "░" * (_BAR_CHARS - filled)
    most = max(live.heat, default=0) or 1
    heat = "".join(_HEAT[-(-count * (len(_HEAT) - 1) // most)] for count in live.heat)
    mode = f"  {live.mode}" if live.mode else ""
    percent = 100 * live.done // max(live.total, 1)
    return f"{live.number}/{live.runs} {live.policy} {bar} {percent} %  WA {live.wa_ppm / 1e6:.2f}{mode}  [{heat}]"
