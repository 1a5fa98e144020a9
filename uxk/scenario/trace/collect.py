"""From lines or records to a trace: one device picked, one stage picked, times from zero, bounds kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError
from uxk.scenario.trace.blkparse import QUEUED
from uxk.scenario.trace.lines import SKIP, Batch, LineFormat
from uxk.scenario.trace.model import (
    DEVICES_MAX,
    I64_MAX,
    REQUESTS_MAX,
    Complaints,
    Ints,
    Row,
    Small,
    Trace,
    TraceOp,
)

_SHOWN_DEVICES: Final = 10


class Collector:
    """Takes requests in file order, a block at a time."""

    def __init__(
        self, name: str, format: str, *, tick_ns: int = 1, tolerate: int | None, device: str | None, limit: int | None
    ) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"limit={limit}: expected at least one request")
        self.name = name
        self.complaints = Complaints(name, tolerate)
        self.lines = 0
        self.skipped = 0
        self._format = format
        self._tick_ns = tick_ns
        self._wanted = device
        self._limit = limit
        self._base: int | None = None
        self._devices: dict[bytes, int] = {}
        self._ops: list[Small] = []
        self._columns: tuple[list[Ints], list[Ints], list[Ints]] = ([], [], [])
        """Times, offsets and lengths."""
        self._device: list[npt.NDArray[np.int32]] = []
        self._issued = self._queued = 0

    @property
    def full(self) -> bool:
        """Whether the limit is reached; queue events fill a trace only if there are no others."""
        return self._limit is not None and self._issued >= self._limit

    def index(self, device: bytes) -> int:
        """The number of a device, new or known."""
        number = self._devices.setdefault(device, len(self._devices))
        if number >= DEVICES_MAX:
            raise ConfigError(f"{self.name}: more than {DEVICES_MAX} devices: no trace of this format")
        return number

    def add(self, line: Ints, time: Ints, op: Ints, offset: Ints, length: Ints, device: Ints) -> None:
        """Requests; ``line`` numbers the lines that they stand on, ``device`` comes from :meth:`index`."""
        empty = (length == 0) & (op & ~QUEUED != TraceOp.FLUSH)
        self.skipped += int(empty.sum())
        if self._base is None and len(time):
            self._base = int(time[0])
        base = self._base or 0
        away = time - base
        far = np.abs(away) > I64_MAX // 2 // self._tick_ns
        for i in np.flatnonzero(far & ~empty):
            self.complaints.add(int(line[i]), f"time {time[i]}: centuries from the first request's {base}")
        keep = ~empty & ~far
        if self._wanted is not None:
            number = self._devices.get(self._wanted.encode(), -1)
            self.skipped += int((keep & (device != number)).sum())
            keep &= device == number
        small = op[keep].astype(np.uint8)
        queued = int((small >= QUEUED).sum())
        self._queued += queued
        self._issued += len(small) - queued
        if self._issued + self._queued > REQUESTS_MAX:
            raise ConfigError(f"{self.name}: more than {REQUESTS_MAX} requests: pass a limit, or a device")
        if len(small):
            self._ops.append(small)
            for column, values in zip(self._columns, (away * self._tick_ns, offset, length), strict=True):
                column.append(values[keep])
            self._device.append(device[keep].astype(np.int32))

    def check(self, guess: str) -> None:
        """Raises :class:`ConfigError` if too many lines were malformed so far."""
        if self.complaints.too_many(self.lines):
            raise self.complaints.error(self.lines, guess)

    def trace(self, guess: str, objection: str = "") -> Trace:
        """The trace; :class:`ConfigError` if nothing of use was found."""
        complaints = self.complaints
        if complaints.too_many(self.lines) or (complaints.count and complaints.mostly(self.lines)):
            raise complaints.error(self.lines, guess)
        if objection:
            raise ConfigError(f"{self.name}: {objection}{guess}")
        if not self._ops:
            raise self._nothing(guess)
        op = np.concatenate(self._ops)
        stage = op < QUEUED if self._issued else op >= QUEUED
        self.skipped += int((~stage).sum())
        time, offset, length = (np.concatenate(column)[stage][: self._limit] for column in self._columns)
        names = [name.decode(errors="backslashreplace") for name in self._devices]
        used, device = np.unique(np.concatenate(self._device)[stage][: self._limit], return_inverse=True)
        return Trace(
            time - time[0], (op[stage][: self._limit] & (QUEUED - 1)).astype(np.uint8), offset, length,
            device.astype(np.int32), tuple(names[i] for i in used.tolist()), self.name, self._format, self.lines,
            self.skipped, complaints.count, tuple(complaints.kept),
        )  # fmt: skip

    def _nothing(self, guess: str) -> ConfigError:
        names = [name.decode(errors="backslashreplace") for name in self._devices]
        if self._wanted is not None and names and self._wanted not in names:
            shown = ", ".join(names[:_SHOWN_DEVICES]) + (", ..." if len(names) > _SHOWN_DEVICES else "")
            return ConfigError(
                f"{self.name}: no request of device {self._wanted!r}{did_you_mean(self._wanted, names)}: it has {shown}"
            )
        if self.complaints.count:
            return self.complaints.error(self.lines, guess)
        if not self.lines:
            return ConfigError(f"{self.name}: empty: expected a trace in format {self._format}")
        return ConfigError(f"{self.name}: no request in {self.lines} lines: expected format {self._format}{guess}")


def take_block(collector: Collector, form: LineFormat, block: bytes, guess: str) -> None:
    """Adds a block of whole lines, each the fast way or else on its own."""
    first = collector.lines + 1
    batch = _fast(form, block)
    count = len(batch.line_start)
    collector.lines += count
    done = np.zeros(count, np.bool_)
    done[batch.rows[batch.good]] = True
    blank = batch.line_start == batch.line_end
    done |= blank
    taken = batch.good & (batch.op != SKIP)
    collector.skipped += int((batch.good & ~taken).sum()) + int(blank.sum())
    number = np.array([collector.index(name) if used else -1 for name, used in _used(batch, taken)], np.int64)
    rows = batch.rows[taken]
    device = number[batch.device[taken]] if len(rows) else np.zeros(0, np.int64)
    columns = [
        first + rows,
        batch.time[taken],
        batch.op[taken],
        batch.offset_bytes[taken],
        batch.length_bytes[taken],
        device,
    ]
    if not done.all():
        slow = _slow(collector, form, block, batch, np.flatnonzero(~done), first, guess)
        columns = [np.concatenate((a, b)) for a, b in zip(columns, slow, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        columns = [column[order] for column in columns]
    collector.add(*columns)
    collector.check(guess)


def _fast(form: LineFormat, block: bytes) -> Batch:
    """Zero bytes would be mistaken for padding: such a block goes line by line."""
    batch = form.fast(block.replace(b"\0", b"?") if b"\0" in block else block)
    return batch._replace(good=np.zeros(len(batch.rows), np.bool_)) if b"\0" in block else batch


def _used(batch: Batch, taken: npt.NDArray[np.bool_]) -> Iterable[tuple[bytes, bool]]:
    """Device names and whether a row that is taken has them."""
    used = np.bincount(batch.device[taken], minlength=len(batch.devices)) > 0
    return zip(batch.devices, used.tolist(), strict=True)


def _slow(
    collector: Collector, form: LineFormat, block: bytes, batch: Batch, left: Ints, first: int, guess: str
) -> tuple[Ints, Ints, Ints, Ints, Ints, Ints]:
    """Line by line; the columns as :meth:`Collector.add` wants them."""
    numbers: list[int] = []
    rows: list[Row] = []
    starts, ends = batch.line_start[left].tolist(), batch.line_end[left].tolist()
    for i, start, end in zip(left.tolist(), starts, ends, strict=True):
        try:
            row = form.slow(block[start:end])
            if row is not None and row.time > I64_MAX:
                raise ValueError(f"time {row.time}: more than 2^63-1")
        except ValueError as exc:
            collector.complaints.add(first + i, str(exc))
            collector.check(guess)
            continue
        if row is None:
            collector.skipped += 1
        else:
            numbers.append(first + i)
            rows.append(row)
    device = [collector.index(row.device) for row in rows]
    table = np.array([row[:4] for row in rows], np.int64).reshape(len(rows), 4)
    columns = (numbers, table[:, 0], table[:, 1], table[:, 2], table[:, 3], device)
    line, time, op, offset, length, which = (np.asarray(column, np.int64) for column in columns)
    return line, time, op, offset, length, which
