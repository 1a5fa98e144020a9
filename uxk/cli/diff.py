"""``uxk diff``: what two run folders have different."""

from __future__ import annotations

import argparse
from pathlib import Path

from uxk.cli.common import FAILED, GOOD, USAGE, Subparsers, UsageExit, add_verb, complain, error_text, print_json
from uxk.errors import UsageError

_EPILOG = "Exit codes: 0 the same, 1 they differ, 2 no such folder or something wrong in it."


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(subparsers, "diff", diff, help="compare two run folders", json=True, epilog=_EPILOG)
    parser.add_argument("first", metavar="RUN", help="a folder that `uxk run --out DIR` made")
    parser.add_argument("second", metavar="RUN", help="another one")


def diff(args: argparse.Namespace) -> int:
    """Prints settings and figures that differ."""
    from uxk.scenario.lfs.report.stored import is_study_folder

    try:
        for path in (args.first, args.second):
            if not Path(path).is_dir():
                raise UsageExit(f"{path}: expected a run folder, as `uxk run --out` makes them")
        kinds = [is_study_folder(path) for path in (args.first, args.second)]
        if kinds[0] != kinds[1]:
            words = ["a study" if kind else "a scenario's run" for kind in kinds]
            raise UsageExit(f"{args.first} is {words[0]}, {args.second} is {words[1]}: expected two of a kind")
        return _studies(args) if kinds[0] else _scenarios(args)
    except UsageError as exc:
        complain("diff", error_text(exc))
        return USAGE


def _studies(args: argparse.Namespace) -> int:
    import msgspec

    from uxk.cli.run import clean_lines
    from uxk.scenario.lfs.differ import diff_studies, text
    from uxk.scenario.lfs.report.stored import open_study

    found = diff_studies(open_study(args.first), open_study(args.second))
    if args.json:
        print_json({"same": found.is_same, **msgspec.to_builtins(found)})
    else:
        print(clean_lines(text(found)))
    return GOOD if found.is_same else FAILED


def _scenarios(args: argparse.Namespace) -> int:
    from uxk.cli.run import clean_lines
    from uxk.scenario.report import table
    from uxk.scenario.saved import differences, open_saved

    first, second = open_saved(args.first), open_saved(args.second)
    parts = {
        "settings": differences(first.settings, second.settings),
        "figures": differences(first.figures, second.figures),
    }  # fmt: skip
    same = not any(parts.values())
    if args.json:
        shown = {
            name: [{**each._asdict(), "ratio": each.ratio} for each in found] for name, found in parts.items()
        }  # fmt: skip
        print_json({"same": same, **shown})
    elif same:
        print("the same settings and figures")
    else:
        for name, found in parts.items():
            rows = [
                [each.name, str(each.first), str(each.second), "" if each.ratio is None else f"{each.ratio:.4g}"]
                for each in found
            ]  # fmt: skip
            if rows:
                print(clean_lines("\n".join(table((name, "first", "second", "ratio"), rows))))
    return GOOD if same else FAILED
