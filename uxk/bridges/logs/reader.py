"""Reads log files of either form.  Nothing in them is trusted: a bad line costs that line, and has its number told."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final, NamedTuple

from uxk.bridges.logs.lines import parse_line
from uxk.bridges.logs.settings import BACKUPS_MAX
from uxk.errors import UsageError
from uxk.uapi.info import Record

LINE_MAX_BYTES: Final = 64 << 10
"""Longest line: any record fits, with every byte of it escaped."""


class LineError(NamedTuple):
    """A line that is no record."""

    path: Path
    number: int
    """From 1."""
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: {self.reason}"


def _ignore(_: LineError) -> None:
    """Nobody asks for what was skipped."""


def log_files(path: str | Path) -> list[Path]:
    """The file and what it was rotated to, the oldest first.  UsageError (ENOENT) if there is none."""
    path = Path(path)
    suffix = re.compile(rf"{re.escape(path.name)}\.(\d{{1,{len(str(BACKUPS_MAX))}}})", re.ASCII)
    try:
        numbered = [(int(m[1]), each) for each in path.parent.iterdir() if (m := suffix.fullmatch(each.name))]
        found = [each for _, each in sorted(numbered, reverse=True)]
        if not found or path.exists():
            _check_regular(path)
            found.append(path)
    except OSError as exc:
        raise UsageError(f"log {path}: {exc.strerror}", errno=exc.errno) from None
    return found


def read_log(path: str | Path, on_error: Callable[[LineError], object] = _ignore) -> Iterator[Record]:
    """Records of one file in their order; holds one line at a time.  Empty lines are none.  UsageError (ENOENT, ...)"""
    path = Path(path)
    try:
        _check_regular(path)
        with path.open("rb") as file:
            for number, line in _lines(file):
                if line is None:
                    on_error(LineError(path, number, f"longer than {LINE_MAX_BYTES} bytes"))
                    continue
                if not (line := line.strip(b" \t\r\n")):
                    continue
                try:
                    record = parse_line(line)
                except UsageError as exc:
                    on_error(LineError(path, number, str(exc)))
                else:
                    yield record
    except OSError as exc:
        raise UsageError(f"log {path}: {exc.strerror}", errno=exc.errno) from None


def read_logs(path: str | Path, on_error: Callable[[LineError], object] = _ignore) -> Iterator[Record]:
    """As :func:`read_log`, with the files it was rotated to before it."""
    for each in log_files(path):
        yield from read_log(each, on_error)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Lines by number; None for one that is too long."""
    number = 0
    while line := file.readline(LINE_MAX_BYTES + 1):
        number += 1
        if len(line) <= LINE_MAX_BYTES or line.endswith(b"\n"):
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LINE_MAX_BYTES)
        yield number, None


def _check_regular(path: Path) -> None:
    if not stat.S_ISREG(path.stat().st_mode):
        raise UsageError(f"log {path}: no regular file")
