"""``uxk replay``: a study again from its folder, bit for bit."""

from __future__ import annotations

import argparse
import sys

from uxk.cli.common import (
    FAILED,
    GOOD,
    USAGE,
    Subparsers,
    UsageExit,
    add_verb,
    clean,
    complain,
    error_text,
    note,
    print_json,
)
from uxk.errors import ModuleError, UsageError

_EPILOG = (
    "Exit codes: 0 all the same, 1 something differs, 2 no such folder, something wrong in it, or no way to repeat."
)


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(
        subparsers, "replay", replay, help="repeat a study from its folder: agents' runs from the recorded hints",
        json=True, epilog=_EPILOG,
    )  # fmt: skip
    parser.add_argument("folder", metavar="RUN", help="a folder that `uxk run lfs-gc --out DIR` made")
    parser.add_argument("--policy", metavar="P", action="append", default=[], help="only this one; may be repeated")


def replay(args: argparse.Namespace) -> int:
    """Runs everything again and prints what was verified."""
    from uxk.scenario.folder import versions
    from uxk.scenario.lfs.replay import replay_study
    from uxk.scenario.lfs.report.stored import is_study_folder, open_study

    try:
        if not is_study_folder(args.folder):
            raise UsageExit(
                f"{args.folder}: expected the folder of a study, with results.json (`uxk run lfs-gc --out`)"
            )
        stored, verdict = open_study(args.folder)
        ours = versions()
        for name, version in stored.manifest.versions.items():
            if ours.get(name) != version:
                note(clean(f"recorded with {name} {version}, replayed with {ours.get(name)}"))
        tell = (lambda text: note(clean(text))) if sys.stderr.isatty() else None
        found = replay_study(stored, verdict, args.policy, tell)
    except (UsageError, ModuleError) as exc:
        complain("replay", error_text(exc))
        return USAGE
    good = all(each.same for each in found)
    if args.json:
        print_json({"same": good, "runs": found})
    else:
        for each in found:
            print(clean(f"{'✔' if each.same else '✘'} {each.policy}, seed {each.seed}: {each.verified}"))
        print(f"{sum(each.same for each in found)} of {len(found)} runs are the same")
    return GOOD if good else FAILED
