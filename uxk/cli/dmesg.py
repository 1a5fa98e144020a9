"""``uxk dmesg``: the kernel's log."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from uxk.cli.common import (
    FAILED,
    GOOD,
    Subparsers,
    UsageExit,
    add_verb,
    clean,
    complain,
    note,
    print_json,
    with_kernel,
)
from uxk.errors import UsageError

if TYPE_CHECKING:
    from uxk.bridges.control_client import ControlClient
    from uxk.uapi.info import Record

ALL_LEVELS = 255
_ERRORS_SHOWN = 8


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(
        subparsers, "dmesg", dmesg, kernel=True, help="print the kernel's log", json=True,
        epilog="LEVELS: names or numbers, with commas; `warn+` is warn and all more urgent, `+warn` all less urgent. "
        "With --json, one object per line.",
    )  # fmt: skip
    parser.add_argument("-l", "--level", metavar="LEVELS", default="", help="only these levels")
    parser.add_argument("-F", "--file", metavar="FILE", help="a log file, and what it was rotated to; no kernel needed")
    parser.add_argument("-w", "--follow", action="store_true", help="wait for new records, until Ctrl-C")


def dmesg(args: argparse.Namespace) -> int:
    """Needs a running kernel, or a file."""
    mask = level_mask(args.level)
    if args.file is not None:
        if args.follow:
            raise UsageExit("--follow: not with --file")
        return _show_file(args, mask)

    async def show(kernel: ControlClient) -> int:
        if not args.follow:
            print_records(await kernel.dmesg(mask), args.json)
            return GOOD
        async for records, lost in await kernel.follow(mask):
            if lost:
                note(f"{lost} records lost: overwritten before they could be read")
            print_records(records, args.json)
        return GOOD

    return with_kernel(args, show)


def _show_file(args: argparse.Namespace, mask: int) -> int:
    """The exit code is 1 if lines were no records; those are named on stderr."""
    from uxk.bridges.logs.lines import to_json_line
    from uxk.bridges.logs.reader import LineError, read_logs

    bad: list[int] = []

    def on_error(error: LineError) -> None:
        bad.append(error.number)
        if len(bad) <= _ERRORS_SHOWN:
            complain("dmesg", clean(error))

    records = (record for record in read_logs(args.file, on_error) if mask >> record.level & 1)
    if args.json:
        for record in records:
            print(to_json_line(record))
    else:
        print_records(records, False)
    if len(bad) > _ERRORS_SHOWN:
        complain("dmesg", f"{len(bad)} lines are no records")
    return FAILED if bad else GOOD


def print_records(records: Iterable[Record], json: bool) -> None:
    """As dmesg prints them, or one JSON object per line."""
    from uxk.core.kmsg import format_dmesg, to_json

    for record in records:
        if json:
            print_json(to_json(record))
        else:
            print(format_dmesg(record), flush=True)


def level_mask(text: str) -> int:
    """Bit n for level n, from the list that ``dmesg --level`` takes; everything for none.  Raises UsageExit."""
    from uxk.core.kmsg import parse_level

    mask = 0
    for word in text.split(",") if text else []:
        try:
            level = parse_level(word.strip().removeprefix("+").removesuffix("+"))
        except UsageError as exc:
            raise UsageExit(str(exc)) from None
        mask |= 1 << level
        if word.endswith("+"):
            mask |= (1 << level) - 1
        if word.startswith("+"):
            mask |= ALL_LEVELS & ~((1 << level) - 1)
    return mask if text else ALL_LEVELS
