"""``--log FILE`` and how it is kept: what boot and run share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, get_args

from uxk.bridges.logs.settings import BACKUPS_DEFAULT, MAX_BYTES_DEFAULT, LogFormat, LogTo
from uxk.cli.common import clean, note
from uxk.core.params import parse_integer

if TYPE_CHECKING:
    from uxk.bridges.logs.writer import LogFile


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    parser.add_argument("--log", metavar="FILE", help="write kmsg to a file, with rotation")
    parser.add_argument("--log-format", choices=get_args(LogFormat), default="json", help="JSON lines, or RFC 5424")
    parser.add_argument(
        "--log-bytes", type=_bytes, default=MAX_BYTES_DEFAULT, metavar="SIZE",
        help="at this size FILE becomes FILE.1 (default: 16MiB)",
    )  # fmt: skip
    parser.add_argument(
        "--log-backups", type=int, default=BACKUPS_DEFAULT, metavar="N", help="files kept beside it (default: 4)"
    )


def _bytes(text: str) -> int:
    try:
        return parse_integer(text, "bytes")
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r}: {exc}; expected bytes, for example '16MiB'") from None


def log_to(args: argparse.Namespace) -> LogTo | None:
    """For a run that writes its log anew; None without --log."""
    if args.log is None:
        return None
    return LogTo(file=args.log, format=args.log_format, max_bytes=args.log_bytes, backups=args.log_backups)


@contextmanager
def log_file(args: argparse.Namespace) -> Iterator[LogFile | None]:
    """The file, which goes on where it ended; says on stderr what it could not take."""
    if args.log is None:
        yield None
        return
    from uxk.bridges.logs.writer import LogFile

    with LogFile(args.log, args.log_format, max_bytes=args.log_bytes, backups=args.log_backups) as log:
        yield log
    if log.complaint:
        note(clean(log.complaint))
