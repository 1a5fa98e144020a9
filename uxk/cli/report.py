"""``uxk report``: the table of a run folder, and ``report.html`` made anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from uxk.cli.common import FAILED, GOOD, USAGE, Subparsers, add_verb, clean, complain, error_text, note, print_json
from uxk.errors import UsageError

_EPILOG = "Exit codes: 0 good, 1 no page could be made, 2 no such folder or something wrong in it."


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(
        subparsers, "report", report, help="tell a run folder: a table, and report.html", json=True, epilog=_EPILOG
    )
    parser.add_argument("folder", metavar="DIR", help="a folder that `uxk run --out DIR` made")
    parser.add_argument("-o", "--out", metavar="FILE", help="the page (default: DIR/report.html)")


def report(args: argparse.Namespace) -> int:
    """Prints the figures and writes the page."""
    from uxk.scenario.lfs.report.stored import is_study_folder

    try:
        advice = _study(args) if is_study_folder(args.folder) else _scenario(args)
    except UsageError as exc:
        complain("report", error_text(exc))
        return USAGE
    if advice:
        complain("report", advice)
        return FAILED
    note(f"page: {clean(_out(args))}")
    return GOOD


def _out(args: argparse.Namespace) -> Path:
    from uxk.scenario.lfs.report.page import REPORT

    return Path(args.out) if args.out is not None else Path(args.folder) / REPORT


def _study(args: argparse.Namespace) -> str:
    from uxk.cli.run import clean_lines
    from uxk.scenario.lfs.report import add_report
    from uxk.scenario.lfs.report.stored import open_study

    stored, verdict = open_study(args.folder)
    if args.json:
        print_json(stored.results)
    else:
        print(clean_lines(verdict.report(everything=True)))
    return add_report(args.folder, _out(args))


def _scenario(args: argparse.Namespace) -> str:
    from uxk.cli.run import clean_lines
    from uxk.scenario.lfs.report.page import ADVICE, available, write_page
    from uxk.scenario.lfs.report.plain import scenario_page, scenario_text
    from uxk.scenario.saved import open_saved

    saved = open_saved(args.folder)
    if args.json:
        print_json(saved.summary)
    else:
        print(clean_lines(scenario_text(saved)))
    if not available():
        return ADVICE
    write_page(_out(args), scenario_page(saved))
    return ""
