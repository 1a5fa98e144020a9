"""``uxk explore``: a scenario under random faults and schedules.  Exit codes: 0 good, 2 usage, 3 a broken invariant."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from uxk.cli.common import (
    GOOD,
    USAGE,
    Subparsers,
    UsageExit,
    add_verb,
    clean,
    complain,
    error_text,
    only_error,
    print_json,
)
from uxk.errors import ModuleError, UsageError

if TYPE_CHECKING:
    from uxk.testing.exploring import Finding, Outcome, Report, Trial

BROKEN: Final = 3
"""As ``uxk run`` has it."""
SEEDS_MAX: Final = 1_000_000
_EPILOG: Final = """\
Every seed stands for a fault plan, a schedule and the chance of one run. After the scenario's end the faults stop, and
all instances and devices must be well again. A trial that breaks an invariant is shrunk, written to a file in the
present folder, and ends the search, unless --findings asks for more. The scenario's own faults and checks are left out.

  uxk explore crash-under-load --seeds 100
  uxk explore crash-under-load --replay explore-crash-under-load-17.toml
"""


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(
        subparsers,
        "explore",
        explore,
        json=True,
        epilog=_EPILOG,
        help="run a scenario under random faults and schedules",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("scenario", metavar="FILE|NAME", help="as of uxk run; it may have a table [explore]")
    parser.add_argument("--seeds", type=int, metavar="N", default=20, help="trials, one for each seed (default: 20)")
    parser.add_argument("--start", type=int, metavar="S", default=0, help="the first seed (default: 0)")
    parser.add_argument("--findings", type=int, metavar="N", default=1, help="go on until N seeds fail (default: 1)")
    parser.add_argument("--replay", metavar="FILE", help="run the trial of this file, and compare")
    parser.add_argument(
        "-o", "--option", action="append", default=[], metavar="KEY=VALUE", help="replace a value, as of uxk run"
    )
    parser.add_argument("--out", metavar="DIR", default=".", help="where files of findings go (default: here)")
    parser.add_argument(
        "--twice", action="store_true", help="run all once more in another process with another hash seed, and compare"
    )
    parser.add_argument("--hashes", action="store_true", help="print seeds and event hashes only")


def explore(args: argparse.Namespace) -> int:
    """Explores, or replays."""
    if not 1 <= args.seeds <= SEEDS_MAX:
        raise UsageExit(f"--seeds {args.seeds}: expected 1 to {SEEDS_MAX}")
    if args.start < 0 or args.findings < 1:
        raise UsageExit(f"--start {args.start}, --findings {args.findings}: expected 0 and 1 or more")
    try:
        return _replay(args) if args.replay else _explore(args)
    except (UsageError, ModuleError) as exc:
        complain("explore", error_text(exc))
        return USAGE
    except BaseExceptionGroup as group:
        error = only_error(group)
        if not isinstance(error, (UsageError, ModuleError)):
            raise
        complain("explore", error_text(error))
        return USAGE


def _scenario(name: str, words: list[str]) -> Any:
    from uxk.cli.run import option_values
    from uxk.scenario.find import open_scenario
    from uxk.scenario.read import with_options

    scenario, _ = open_scenario(name)
    return with_options(scenario, option_values(words))


def _explore(args: argparse.Namespace) -> int:
    from uxk.testing.exploring import explore as explore_seeds

    scenario = _scenario(args.scenario, args.option)
    seeds = range(args.start, args.start + args.seeds)
    shows = sys.stderr.isatty()

    def on_trial(trial: Trial, outcome: Outcome) -> None:
        if shows:
            print(f"\rseed {trial.seed} ", end="", file=sys.stderr, flush=True)

    report = explore_seeds(scenario, seeds, findings_max=args.findings, on_trial=on_trial)
    if shows:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    if args.hashes:
        for seed, digest in report.hashes.items():
            print(seed, digest)
        return BROKEN if report.findings else GOOD
    files = [_written(args, finding, report.normal_ns) for finding in report.findings]
    differ = _differing(args, report) if args.twice else []
    if args.json:
        print_json(_plain(args, report, files, differ))
    else:
        _print(args, report, files, differ)
    return BROKEN if report.findings or differ else GOOD


def _written(args: argparse.Namespace, finding: Finding, normal_ns: int) -> str:
    from uxk.testing.exploring import write_trial

    path = Path(args.out) / f"explore-{Path(args.scenario).stem}-{finding.seed}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    options = finding.shrunk.options
    given = dict(word.split("=", 1) for word in args.option)
    trial = finding.shrunk._replace(options={**given, **options})
    write_trial(path, args.scenario, trial, finding.shrunk_outcome, normal_ns=normal_ns)
    return str(path)


def _differing(args: argparse.Namespace, report: Report) -> list[int]:
    """Seeds whose event hash is another in a process with another hash seed of Python's."""
    words = [sys.executable, "-m", "uxk", "explore", args.scenario, "--hashes", "--seeds", str(args.seeds)]
    words += ["--start", str(args.start), "--findings", str(args.findings), *(f"-o{word}" for word in args.option)]
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        words, env={**os.environ, "PYTHONHASHSEED": other}, stdout=subprocess.PIPE, text=True, check=False
    )
    there = dict(line.split() for line in done.stdout.splitlines())
    return [seed for seed, digest in report.hashes.items() if there.get(str(seed)) != digest]


def _print(args: argparse.Namespace, report: Report, files: list[str], differ: list[int]) -> None:
    for finding, file in zip(report.findings, files, strict=True):
        _print_finding(args, finding, file)
    for seed in differ:
        print(f"seed {seed}: same-hash: another process, with another hash seed, had another event hash")
    drawn = ", ".join(f"{kind} {count}" for kind, count in report.drawn.items())
    good = report.trials - len(report.findings)
    print(f"{good} of {report.trials} seeds good; faults struck {report.struck} times ({drawn or 'none were drawn'})")
    if args.twice and not differ:
        print("the same event hashes in another process, with another hash seed")


def _print_finding(args: argparse.Namespace, finding: Finding, file: str) -> None:
    from uxk.testing.exploring.files import fault_lines

    for name, text in finding.outcome.broken.items():
        print(clean(f"seed {finding.seed}: {name}: {text}"))
    trial = finding.shrunk
    what = "no fault" if not trial.faults else "1 fault" if len(trial.faults) == 1 else f"{len(trial.faults)} faults"
    options = "".join(f", {key}={value}" for key, value in trial.options.items())
    print(f"shrunk in {finding.shrink_runs} runs to {what}, schedule {trial.schedule}{options}")
    for fault in trial.faults:
        print(clean("  " + ", ".join(fault_lines(fault))))
    for name, text in finding.shrunk_outcome.broken.items():
        print(clean(f"  {name}: {text}"))
    if finding.shrunk_outcome.trace:
        for line in finding.shrunk_outcome.trace.rstrip().splitlines()[-3:]:
            print(clean(f"  | {line}"))
    print(f"again: uxk explore {args.scenario} --replay {file}")


def _plain(args: argparse.Namespace, report: Report, files: list[str], differ: list[int]) -> dict[str, Any]:
    return {
        "scenario": args.scenario, "trials": report.trials, "struck": report.struck, "drawn": report.drawn,
        "findings": [
            {
                "seed": f.seed, "broken": f.outcome.broken, "file": file, "shrink_runs": f.shrink_runs,
                "shrunk": {**f.shrunk._asdict(), "broken": f.shrunk_outcome.broken},
            }
            for f, file in zip(report.findings, files, strict=True)
        ],
        "other_hash": differ,
    }  # fmt: skip


def _replay(args: argparse.Namespace) -> int:
    """Runs a saved trial again: what it breaks now, and whether the same happened."""
    from uxk.testing.exploring import read_trial, run_trial

    saved = read_trial(Path(args.replay))
    scenario = _scenario(args.scenario, args.option)
    outcome = run_trial(scenario, saved.trial, normal_ns=saved.normal_ns)
    same = outcome.event_hash == saved.event_hash
    if args.json:
        print_json({**outcome._asdict(), "targets": [], "same": same})
    else:
        for name, text in outcome.broken.items():
            print(clean(f"seed {saved.seed}: {name}: {text}"))
        if not outcome.broken:
            print(f"seed {saved.seed}: all invariants hold")
        if outcome.trace:
            print("\n".join(clean(line) for line in outcome.trace.rstrip().splitlines()))
        print("the same run" if same else f"another run: event hash {outcome.event_hash}, saved {saved.event_hash}")
    return BROKEN if outcome.broken else GOOD
