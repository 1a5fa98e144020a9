"""``uxk run``: scenarios and studies.  Exit codes: 0 good, 1 a check failed, 2 usage, 3 an invariant broken.

1 is also for a workload with a ``count`` that stopped early because its device was gone, unless a check of the
scenario names that workload's ``issued``, ``refused`` or ``failed``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
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
from uxk.cli.log_options import add_log_options, log_to
from uxk.cli.run_lfs import add_options, refuse_options, run_lfs
from uxk.cli.run_mm import run_mm
from uxk.errors import ModuleError, UsageError

if TYPE_CHECKING:
    from uxk.scenario.results import Result
    from uxk.uapi.info import Record

SEEDS_MAX: Final = 100_000
"""Seeds of one command."""
_PROGRESS_S: Final = 0.2
_EPILOG: Final = "Exit codes: 0 good, 1 a check failed, 2 wrong usage, 3 an invariant is broken."


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(subparsers, "run", run, help="run an emulation scenario", json=True, epilog=_EPILOG)
    parser.add_argument("scenario", metavar="FILE|NAME|list", help="a TOML or Python file, a bundled scenario, or list")
    parser.add_argument("--seed", type=_number, metavar="N", help="instead of the scenario's own")
    parser.add_argument("--seeds", type=_number, metavar="N", help="run N times, with this and the following seeds")
    parser.add_argument(
        "-o", "--option", action="append", default=[], metavar="KEY=VALUE",
        help="replace a value: until=1s, workloads.load.depth=64, modules.null.params.size=1GiB",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="write a run folder: manifest, events, kmsg, summary")
    parser.add_argument("--costs", metavar="FILE", help="costs of turns that an earlier run's manifest.json has")
    add_log_options(parser)
    parser.add_argument("--datasets", metavar="DIR", help="keep what models publish in a dataset log")
    parser.add_argument("--perfetto", metavar="FILE", help="write a trace of the run; with --seeds, {seed} in its name")
    parser.add_argument("-v", "--verbose", action="store_true", help="print kmsg to stderr as it comes")
    add_options(parser)


def _number(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 <= value < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 to 2**63 - 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Runs one scenario with one seed or several; the exit code is the worst."""
    if args.scenario == "list":
        return _list(args.json)
    if args.seeds is not None and not 1 <= args.seeds <= SEEDS_MAX:
        raise UsageExit(f"--seeds {args.seeds}: expected 1 to {SEEDS_MAX}")
    try:
        return _run(args)
    except (UsageError, ModuleError) as exc:
        complain("run", error_text(exc))
        return USAGE
    except BaseExceptionGroup as group:
        error = only_error(group)
        if not isinstance(error, (UsageError, ModuleError)):
            raise
        complain("run", error_text(error))
        return USAGE


def _list(json: bool) -> int:
    import tomllib

    from uxk.scenario.find import bundled

    descriptions = {name: str(tomllib.loads(text)["description"]) for name, text in bundled().items()}
    if json:
        print_json(descriptions)
    else:
        width = max(map(len, descriptions), default=0)
        for name, text in descriptions.items():
            print(f"{name.ljust(width)}  {text}")
    return GOOD


def _run(args: argparse.Namespace) -> int:
    from uxk.scenario.find import open_scenario
    from uxk.scenario.lfs.study import open_study
    from uxk.scenario.mm.study import open_lab
    from uxk.scenario.run import run_one, run_seeds

    lab = open_lab(args.scenario)
    found = open_study(args.scenario) if lab is None else None
    if (lab is not None or found is not None) and (args.log or args.perfetto):
        raise UsageExit("--log and --perfetto are for scenarios, this is a study")
    if lab is not None and args.datasets:
        raise UsageExit(f"--datasets: not for the study {args.scenario}")
    if lab is not None:
        refuse_options(args, "the deadlock laboratory, whose policies are in its file")
        return run_mm(args, lab[0], option_values(args.option))
    if found is not None:
        return run_lfs(args, *found, option_values(args.option), _printer() if args.verbose else None)
    refuse_options(args)
    scenario, text = open_scenario(args.scenario)
    if args.seeds is not None:
        _check_names({"--log": args.log, "--perfetto": args.perfetto})
    progress = _Progress(scenario.until) if sys.stderr.isatty() and not args.verbose else None
    first = scenario.seed if args.seed is None else args.seed
    settings: dict[str, Any] = {
        "options": option_values(args.option), "text": text, "where": args.scenario, "costs": args.costs,
        "out": args.out, "log": log_to(args), "trace": args.perfetto, "datasets": args.datasets,
        "on_record": _printer() if args.verbose else None, "on_progress": progress,
    }  # fmt: skip
    try:
        if args.seeds is None:
            seed = None if args.seed is None and any(o.startswith("seed=") for o in args.option) else first
            results = [run_one(scenario, seed=seed, **settings)]
        else:
            results = run_seeds(scenario, range(first, first + args.seeds), **settings)
    finally:
        if progress is not None:
            progress.clear()
    _print(results, args.json, args.out)
    return max(result.exit_code for result in results)


def _check_names(files: dict[str, str | None]) -> None:
    """Several runs need several files."""
    for option, name in files.items():
        if name is not None and "{seed}" not in name:
            raise UsageExit(f"{option} {name}: with --seeds, expected {{seed}} in the name")


def option_values(words: list[str]) -> dict[str, str]:
    """``["until=1s"]`` as a dict.  Raises UsageExit."""
    options: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UsageExit(f"-o {word!r}: expected KEY=VALUE")
        options[key] = value
    return options


def _print(results: list[Result], json: bool, out: str | None) -> None:
    if json:
        for result in results:
            print_json(result.to_dict())
        return
    if len(results) == 1:
        print(clean_lines(results[0].report()))
        return
    for result in results:
        print(f"seed {result.seed}: hash {result.event_hash} {_summary(result, out)}")
    print(f"{sum(result.ok for result in results)} of {len(results)} runs good")


def _summary(result: Result, out: str | None) -> str:
    """``✔``, or why a run was not good and the folder to look at."""
    if result.ok:
        return "✔"
    wrong = [f"{v.what} ({v.seen})" if v.seen else v.what for v in (*result.checks, *result.invariants) if not v.good]
    stopped = tuple(f"{name}: " for name in result.unfinished)
    wrong += [note for note in result.notes if stopped and note.startswith(stopped)]
    folder = f"; see {Path(out) / f'seed-{result.seed}'}" if out else ""
    return clean("✘ " + ", ".join(wrong) + folder)


def _printer() -> Callable[[Record], None]:
    from uxk.core.kmsg import format_dmesg

    return lambda record: print(clean_lines(format_dmesg(record)), file=sys.stderr)


def clean_lines(text: str) -> str:
    """Several lines for a terminal."""
    return "\n".join(clean(line) for line in text.split("\n"))


class _Progress:
    """One line on stderr that follows virtual time; fed by the run, so that it cannot disturb it."""

    def __init__(self, until: int | str) -> None:
        self._until = until
        self._next_s = monotonic() + _PROGRESS_S

    def __call__(self, elapsed_ns: int) -> None:
        if (now_s := monotonic()) < self._next_s:
            return
        self._next_s = now_s + _PROGRESS_S
        share = f" of {self._until / 1e6:.0f}" if isinstance(self._until, int) else ""
        print(f"\r{elapsed_ns / 1e6:.0f}{share} ms of virtual time ", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Takes the line away."""
        print("\r\033[K", end="", file=sys.stderr, flush=True)
