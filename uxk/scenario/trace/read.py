"""Reads a block trace, whatever of the known formats it is in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError
from uxk.scenario.trace.binary import NPY_MAGIC, SRT_MAGIC, read_pages, read_srt
from uxk.scenario.trace.blkparse import blkparse
from uxk.scenario.trace.collect import Collector, take_block
from uxk.scenario.trace.files import LINE_MAX_BYTES, Bytes, blocks
from uxk.scenario.trace.fio import fio
from uxk.scenario.trace.lines import LineFormat, alibaba, mqsim, msr, systor, tencent
from uxk.scenario.trace.model import REQUEST_MAX_BYTES, Trace
from uxk.scenario.trace.vscsi import vscsi

LINE_FORMATS: Final[dict[str, Callable[[], LineFormat]]] = {
    "msr": msr, "systor": systor, "alibaba": alibaba, "tencent": tencent, "vscsi": vscsi, "mqsim": mqsim,
    "blkparse": blkparse, "fio": fio,
}  # fmt: skip
"""A new one for each reading: some remember what they saw."""
FORMATS: Final = (*LINE_FORMATS, "disksim-hp", "pages")
"""Every name that :func:`read_trace` takes."""
_GUESS_LINES: Final = 50
_TAR_MAGIC: Final = (257, b"ustar")
_BOM: Final = b"\xef\xbb\xbf"


def read_trace(
    path: str | Path,
    format: str,
    *,
    device: str | None = None,
    limit: int | None = None,
    tolerate: int | None = None,
    page_bytes: int = 4096,
) -> Trace:
    """All requests of a file, or of one ``device``, or the first ``limit`` of them.

    gzip, bzip2 and xz are told by their magic numbers.  ``tolerate`` bounds the malformed lines (default: 100, or one
    in a hundred if that is more, and never more than half).  ``page_bytes`` is what a number of format ``pages``
    stands for.  Raises :class:`ConfigError` naming file, line and reason, and the format that the file looks like.
    """
    if format not in FORMATS:
        raise ConfigError(f"trace format {format!r}{did_you_mean(format, FORMATS)}: expected {', '.join(FORMATS)}")
    if not 1 <= page_bytes <= REQUEST_MAX_BYTES:
        raise ConfigError(f"page_bytes={page_bytes}: expected 1 to {REQUEST_MAX_BYTES}")
    path = Path(path)
    with Bytes(path) as stream:
        form = LINE_FORMATS[format]() if format in LINE_FORMATS else None
        tick_ns = form.tick_ns if form else 1000 if format == "disksim-hp" else 1
        collector = Collector(str(path), format, tick_ns=tick_ns, tolerate=tolerate, device=device, limit=limit)
        if form is not None:
            return _read_lines(stream, collector, form)
        guess = _telling(path, format)
        if format == "disksim-hp":
            read_srt(stream, collector, guess)
        else:
            read_pages(stream, collector, guess, page_bytes, limit if device is None else None)
        return collector.trace(guess)


def _read_lines(stream: Bytes, collector: Collector, form: LineFormat) -> Trace:
    head = stream.read(LINE_MAX_BYTES).removeprefix(_BOM)
    guess = _hint(head, form.name)
    if head[_TAR_MAGIC[0] :].startswith(_TAR_MAGIC[1]):
        raise ConfigError(f"{stream.path}: a tar archive: unpack it first, and read the files in it")
    started = False
    for block in blocks(stream, head):
        if not started and (line := block.lstrip().split(b"\n", 1)[0].strip()):
            started = True
            if complaint := form.check_first(line):
                raise ConfigError(f"{stream.path}: line 1: {complaint}{guess}")
        take_block(collector, form, block, guess)
        if collector.full:
            break
    return collector.trace(guess, form.objection())


def looks_like(head: bytes) -> str:
    """The format that the beginning of an unpacked file is in, or ``""``: its first lines vote."""
    if head.startswith(SRT_MAGIC):
        return "disksim-hp"
    if head.startswith(NPY_MAGIC):
        return "pages"
    lines = [line for line in head.split(b"\n")[:_GUESS_LINES] if line.strip()]
    if len(lines) > 1 and not head.endswith(b"\n"):
        lines.pop()  # cut off in the middle
    best, most = "", 0
    for name, make in LINE_FORMATS.items():
        form = make()
        if not lines or form.check_first(lines[0].strip()):
            continue
        fit = sum(_fit(form, line) for line in lines)
        if fit > most:
            best, most = name, fit
    return best


def _fit(form: LineFormat, line: bytes) -> int:
    """A line's vote: for a format it is a request of, against one that it is malformed in."""
    try:
        return int(form.slow(line) is not None)
    except ValueError:
        return -1


def guess_format(path: str | Path) -> str:
    """The format that a file looks like, or ``""``.  Raises :class:`ConfigError` if it cannot be read."""
    with Bytes(Path(path)) as stream:
        return looks_like(stream.read(LINE_MAX_BYTES).removeprefix(_BOM))


def _hint(head: bytes, format: str) -> str:
    found = looks_like(head)
    return f"; it looks like format {found}" if found and found != format else ""


def _telling(path: Path, format: str) -> str:
    found = guess_format(path)
    return f"; it looks like format {found}" if found and found != format else ""
