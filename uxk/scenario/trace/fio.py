"""fio's I/O logs, versions 2 and 3."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from uxk.scenario.trace.lines import Batch, LineFormat, one_of, show, whole
from uxk.scenario.trace.model import I64_MAX, Row, TraceOp, check_extent

ACTIONS: Final = {
    b"read": int(TraceOp.READ), b"write": int(TraceOp.WRITE), b"trim": int(TraceOp.DISCARD),
    b"sync": int(TraceOp.FLUSH), b"datasync": int(TraceOp.FLUSH),
}  # fmt: skip
NAME_MAX_BYTES: Final = 256
"""Of a file, as in fio."""
_FILE_ACTIONS: Final = frozenset({b"add", b"open", b"close", b"unlink"})
_HEADERS: Final = {b"fio version 2 iolog": 2, b"fio version 3 iolog": 3}


@dataclass
class _State:
    """Of one reading: a line depends on those before it."""

    version: int = 0
    now_us: int = 0
    """Version 2: the sum of the waits so far."""


@dataclass(frozen=True)
class Fio(LineFormat):
    """``[time] file action [offset length]`` after a line with the version; a file is a device.

    Times are microseconds: in version 3 since the log began, in version 2 from ``wait`` lines (fio's HOWTO: relative
    to the wait before).
    """

    timed: LineFormat = field(kw_only=True)
    """Version 3."""
    state: _State = field(default_factory=_State)

    def fast(self, block: bytes) -> Batch:
        """Version 3, and version 2 as long as no wait moves the time."""
        if self.state.version == 3:
            return self.timed.fast(block)
        batch = super().fast(block)
        good = batch.good & (b"wait" not in block)
        return batch._replace(good=good, time=np.full(len(batch.rows), self.state.now_us, np.int64))

    def check_first(self, line: bytes) -> str:
        """Without its version a log cannot be read."""
        if (version := _HEADERS.get(line.strip())) is None:
            return f"{show(line)}: expected 'fio version 2 iolog' or 'fio version 3 iolog'"
        self.state.version = version
        return ""

    def slow(self, line: bytes) -> Row | None:
        """One line, in order."""
        parts = line.split()
        if not parts or line.strip() in _HEADERS:
            return None
        time = self.state.now_us
        if self.state.version == 3:
            time = whole(parts[0], "time")
            parts = parts[1:]
        if len(parts) == 2 and parts[1] in _FILE_ACTIONS:
            return None
        if len(parts) != 4:
            raise ValueError(f"{show(line)}: expected file, action, offset and length")
        name, action = parts[0], parts[1]
        if action == b"wait":
            self.state.now_us = min(time + whole(parts[2], "wait"), I64_MAX)
            return None
        op = self.op_of(action)
        if len(name) > NAME_MAX_BYTES:
            raise ValueError(f"file {show(name)}: expected a name of at most {NAME_MAX_BYTES} bytes")
        offset, length = whole(parts[2], "offset"), whole(parts[3], "length")
        check_extent(op, offset, length)
        return Row(time, op, offset, length, name)


def fio() -> LineFormat:
    """Of fio(1), ``write_iolog``; iolog.c in its sources."""
    op_of = one_of(ACTIONS, "action")
    timed = LineFormat(
        "fio", ("time", "file", "action", "offset", "length"), 0, 2, 3, 4, (1,), op_of, tick_ns=1000, blanks=True
    )
    columns = ("file", "action", "offset", "length")
    # Version 2 has no time on its lines: the column that stands in for it is overwritten.
    return Fio("fio", columns, 2, 1, 2, 3, (0,), op_of, tick_ns=1000, blanks=True, timed=timed)
