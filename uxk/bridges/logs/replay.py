"""A log file as a dataset: rows of another run's log, in their own rhythm, for agents of this one (R13).

The model ``NAME`` of subsystem ``log`` has one dataset, ``records``, and no decision site: whoever attaches learns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

from uxk.bridges.logs.reader import LineError, read_logs
from uxk.errors import UsageError
from uxk.kernel.kernel import Kernel
from uxk.limits import I64_MAX, NAME_MAX_BYTES
from uxk.uapi.info import Record
from uxk.uapi.manifest import Params, param

TEXT_BYTES: Final = 240
FIELDS_BYTES: Final = 256
COLUMNS: Final = (
    ("boot", "<u4"), ("seq", "<u8"), ("time_ns", "<u8"), ("level", "u1"), ("facility", "<u2"),
    ("source", f"S{NAME_MAX_BYTES}"), ("text_bytes", "<u2"), ("text", f"S{TEXT_BYTES}"), ("fields", f"S{FIELDS_BYTES}"),
)  # fmt: skip
"""Columns of the dataset.  ``boot`` counts the logs in the files, ``time_ns`` is that log's own; ``text`` may be cut,
``text_bytes`` is its length; ``fields`` is JSON, without the last fields if they have no room."""
ERRORS_TOLD: Final = 8
"""Bad lines that the log tells one by one; all are counted."""
ERRORS_MAX: Final = 10_000
"""Bad lines after which the file is given up: it is no log, and reading on would hold the run."""


class LogReplayParams(Params):
    """Parameters of ``[subsystems.log]``."""

    file: Annotated[str, param(help="log file, in either form; what it was rotated to comes before it")]
    model: Annotated[str, param(help="name of the model that publishes the rows")] = "kmsg"
    every_ns: Annotated[int, param(ge=1000, unit="ns", help="rows within this time are published together")] = 1_000_000
    rows_max: Annotated[int, param(ge=1, le=65_536, help="rows of one publication, at most")] = 256


class LogReplay:
    """Publishes the rows of a log into a kernel; begins with its first instant, whenever that was."""

    def __init__(self, kernel: Kernel, params: LogReplayParams) -> None:
        self._kernel = kernel
        self._every_ns = params.every_ns
        self._rows_max = params.rows_max
        self.lines_bad = self.rows = self.batches = self.boots = 0
        self.problem = ""
        self.proxy = kernel.create_model("log", params.model)
        self.dataset = self.proxy.dataset("records", list(COLUMNS), params.rows_max)
        self._records = self._timed(read_logs(Path(params.file), self._on_error))
        self._next: tuple[int, Record] | None = None

    def start(self) -> None:
        """Schedules the first publication.  UsageError if the file cannot be read."""
        self._next = next(self._records, None)
        self._schedule()

    def results(self) -> dict[str, Any]:
        """Figures for the results of a run."""
        return {
            "rows": self.rows, "batches": self.batches, "boots": self.boots, "lines_bad": self.lines_bad,
            "done": int(self._next is None), "problem": self.problem,
        }  # fmt: skip

    def _on_error(self, error: LineError) -> None:
        self.lines_bad += 1
        if self.lines_bad > ERRORS_MAX:
            raise UsageError(f"{error.path}: more than {ERRORS_MAX} lines are no records")
        if self.lines_bad <= ERRORS_TOLD:
            self._kernel.machine.log("warning", "log", str(error)[:200], line=error.number)

    def _timed(self, records: Iterator[Record]) -> Iterator[tuple[int, Record]]:
        """Records with this kernel's time for them: a log whose numbers begin again is another boot's, right behind."""
        base_ns, last_ns, last_seq = self._kernel.now_ns, 0, -1
        first_ns: int | None = None
        for record in records:
            if first_ns is None or record.seq <= last_seq:
                base_ns += last_ns - (first_ns or 0)
                first_ns, last_ns = record.time_ns, record.time_ns
                self.boots += 1
            last_seq, last_ns = record.seq, max(last_ns, record.time_ns)  # never back
            yield base_ns + last_ns - first_ns, record

    def _schedule(self) -> None:
        if self._next is None:
            return
        due_ns = self._next[0] + self._every_ns
        if due_ns > I64_MAX:
            self._end(f"record {self._next[1].seq}: its time is beyond what a run can have")
            return
        self._kernel.call_at_ns(due_ns, self._publish)

    def _publish(self, _: object) -> None:
        """What is due until now, as one generation."""
        rows: list[tuple[Any, ...]] = []
        while self._next is not None and self._next[0] <= self._kernel.now_ns and len(rows) < self._rows_max:
            rows.append(_row(self.boots, self._next[1]))
            try:
                self._next = next(self._records, None)
            except UsageError as exc:  # the file system failed in the middle
                self._end(str(exc))
        if self.proxy.runs:  # else an agent has stopped it, or it is gone
            self.dataset.append(rows)
            self.dataset.publish()
            self.rows += len(rows)
            self.batches += 1
        self._schedule()

    def _end(self, why: str) -> None:
        self._next = None
        self.problem = why
        self._kernel.machine.log("err", "log", f"replay ended: {why}"[:200])


def replay_log(kernel: Kernel, file: str | Path, **params: Any) -> LogReplay:
    """Starts a replay; ``params`` as :class:`LogReplayParams` has them.  UsageError if there is no such file."""
    replay = LogReplay(kernel, LogReplayParams(file=str(file), **params))
    replay.start()
    return replay


def attach(kernel: Kernel, params: LogReplayParams) -> LogReplay:
    """For ``[subsystems.log]`` of a scenario."""
    replay = LogReplay(kernel, params)
    replay.start()
    return replay


def _row(boot: int, record: Record) -> tuple[Any, ...]:
    text = record.text.encode()
    return (
        boot, record.seq, record.time_ns, record.level, record.facility, record.source.encode(), len(text),
        text[:TEXT_BYTES], _fields(record.fields),
    )  # fmt: skip


def _fields(fields: dict[str, str | int]) -> bytes:
    kept = dict(fields)
    while len(found := json.dumps(kept, separators=(",", ":")).encode()) > FIELDS_BYTES:
        kept.popitem()
    return found
