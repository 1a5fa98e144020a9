"""blkparse's default text: ``8,0 1 42 0.000123456 697 D WS 223490 + 8 [jbd2]``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from uxk.scenario.trace.fields import Fields, words
from uxk.scenario.trace.lines import SKIP, LineFormat, decimal, one_of, show, whole
from uxk.scenario.trace.model import SECTOR_BYTES, Bools, Ints, Row, TraceOp, check_extent

QUEUED: Final = 16
"""Added to the operation of a queue event: it counts only if the file has no issue event."""
_DEVICE: Final = 0
_TIME: Final = 3
_ACTION: Final = 5
_RWBS: Final = 6
_SECTOR: Final = 7
_PLUS: Final = 8
_SECTORS: Final = 9
_DEVICE_NUMBER: Final = re.compile(rb"\d+,\d+")
_SUMMARY: Final = (
    b"CPU", b"Reads ", b"Read ", b"PC ", b"IO ", b"Timer ", b"Total", b"Throughput", b"Events", b"Skips", b"Trace ",
    b"Input file", b"Writes ", b"Write ", b"Drops",
)  # fmt: skip


def operation(action: bytes, rwbs: bytes) -> int:
    """Of an event: issue ``D`` and queue ``Q`` of reads, writes, discards and flushes; :data:`SKIP` otherwise.

    rwbs as blk_fill_rwbs() in Linux's kernel/trace/blktrace.c writes it: ``DE`` (secure erase) and newer kernels'
    ``WZ`` (zeros) count as discards, a flush that carries no data is ``F`` without ``W``.
    """
    if action not in (b"D", b"Q"):
        return SKIP
    if b"D" in rwbs or b"WZ" in rwbs:
        op = TraceOp.DISCARD
    elif b"W" in rwbs:
        op = TraceOp.WRITE
    elif b"R" in rwbs and b"Z" not in rwbs:
        op = TraceOp.READ
    elif b"F" in rwbs:
        op = TraceOp.FLUSH
    else:
        return SKIP
    return op + (QUEUED if action == b"Q" else 0)


@dataclass(frozen=True)
class Blkparse(LineFormat):
    """Fields by position; the operation is spread over two."""

    def ops(self, fields: Fields) -> tuple[Ints, Bools]:
        """Of action and rwbs together; only rows that say ``sector + sectors``."""
        actions, which, good = words(fields.data, fields.start[_ACTION], fields.end[_ACTION], lower=False)
        flags, flag, fine = words(fields.data, fields.start[_RWBS], fields.end[_RWBS], lower=False)
        table = np.array([[operation(action, rwbs) for rwbs in flags] for action in actions], np.int64)
        op = table[which, flag] if len(which) else np.zeros(0, np.int64)
        plus = fields.data[fields.start[_PLUS]] == ord("+")
        plus &= fields.end[_PLUS] - fields.start[_PLUS] == 1
        # A line without a device number at its start belongs to the summary, or is malformed.
        names, name, clean = words(fields.data, fields.start[_DEVICE], fields.end[_DEVICE], lower=False)
        devices = np.array([_DEVICE_NUMBER.fullmatch(text) is not None for text in names], np.bool_)
        fine &= clean & (devices[name] if len(name) else clean)
        return op, good & fine & plus

    def slow(self, line: bytes) -> Row | None:
        """One line; a flush or other event without a sector has none."""
        parts = line.split()
        if not parts or line.startswith(b"#") or line.strip().startswith(_SUMMARY):
            return None
        if not _DEVICE_NUMBER.fullmatch(parts[_DEVICE]) or len(parts) <= _RWBS:
            raise ValueError(f"{show(line)}: expected device, cpu, sequence, time, pid, action, rwbs, sector + sectors")
        if (op := operation(parts[_ACTION], parts[_RWBS])) == SKIP:
            return None
        time = decimal(parts[_TIME], "time", self.places)
        if len(parts) <= _SECTORS or parts[_PLUS] != b"+":
            if op & ~QUEUED == TraceOp.FLUSH or b"F" in parts[_RWBS]:
                return Row(time, TraceOp.FLUSH | (op & QUEUED), 0, 0, parts[_DEVICE])
            raise ValueError(
                f"{show(b' '.join(parts[_SECTOR:]))} after {show(parts[_RWBS])}: expected sector + sectors"
            )
        offset = whole(parts[_SECTOR], "sector") * SECTOR_BYTES
        length = whole(parts[_SECTORS], "sectors") * SECTOR_BYTES
        check_extent(op & ~QUEUED, offset, length)
        return Row(time, op, offset, length, parts[_DEVICE])

    def check_first(self, line: bytes) -> str:
        """Has no header."""
        return ""


def blkparse() -> LineFormat:
    """blkparse(1) of the blktrace package; seconds, sectors of 512 bytes."""
    columns = ("device", "cpu", "sequence", "time", "pid", "action", "rwbs", "sector", "+", "sectors")
    unit = SECTOR_BYTES
    return Blkparse(
        "blkparse", columns, _TIME, _ACTION, _SECTOR, _SECTORS, (_DEVICE,), one_of({}, "action"), places=9,
        offset_unit_bytes=unit, size_unit_bytes=unit, blanks=True, more=True,
    )  # fmt: skip
