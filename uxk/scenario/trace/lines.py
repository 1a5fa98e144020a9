"""Formats of one request a line, as tables: a block of lines at once, or one line with the reason it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from uxk.scenario.trace.fields import (
    WORD_MAX_BYTES,
    Fields,
    decimals,
    split_blanks,
    split_commas,
    whole_numbers,
    words,
)
from uxk.scenario.trace.model import (
    I64_MAX,
    REQUEST_MAX_BYTES,
    SECTOR_BYTES,
    Bools,
    Ints,
    Row,
    TraceOp,
    check_extent,
)

SKIP: Final = -1
"""In place of an operation: a line that is well formed and no request."""
REFUSED: Final = -2
_SHOWN_BYTES: Final = 40


class Batch(NamedTuple):
    """Requests of a block, for those of its lines that the fast way may take."""

    line_start: Ints
    line_end: Ints
    rows: Ints
    """Line numbers within the block."""
    good: Bools
    """Which of ``rows`` are requests, or lines to skip (``op`` is :data:`SKIP`); the others need the slow way."""
    time: Ints
    op: Ints
    offset_bytes: Ints
    length_bytes: Ints
    devices: list[bytes]
    device: Ints
    """Index into ``devices``."""


def show(text: bytes) -> str:
    """A field for a complaint."""
    shown = repr(text[:_SHOWN_BYTES].decode(errors="backslashreplace"))
    return f"{shown}..." if len(text) > _SHOWN_BYTES else shown


def whole(text: bytes, what: str) -> int:
    """A number from 0 to 2^63-1, or ``ValueError`` with the reason."""
    if not text.isdigit():
        raise ValueError(f"{what} {show(text)}: expected a whole number from 0")
    value = int(text) if len(text) <= 4 * WORD_MAX_BYTES else I64_MAX + 1
    if value > I64_MAX:
        raise ValueError(f"{what} {show(text)}: more than 2^63-1")
    return value


def decimal(text: bytes, what: str, places: int) -> int:
    """A decimal fraction times ``10**places``, cut off there, or ``ValueError`` with the reason."""
    before, point, after = text.partition(b".")
    if not before.isdigit() or (point and not after.isdigit()):
        raise ValueError(f"{what} {show(text)}: expected a number from 0")
    unit: int = 10**places
    if (seconds := whole(before, what)) >= I64_MAX // unit:
        raise ValueError(f"{what} {show(text)}: too large")
    return seconds * unit + int(after[:places].ljust(places, b"0") or b"0")


def one_of(table: dict[bytes, int], what: str) -> Callable[[bytes], int]:
    """A function from a word in small letters to an operation."""
    known = ", ".join(word.decode() for word in table)

    def op_of(word: bytes) -> int:
        if (op := table.get(word)) is None:
            raise ValueError(f"{what} {show(word)}: expected {known}")
        return op

    return op_of


@dataclass(frozen=True)
class LineFormat:
    """Where the columns are and what they mean."""

    name: str
    columns: tuple[str, ...]
    time: int
    op: int
    offset: int
    size: int
    device: tuple[int, ...]
    """Adjacent columns that name the device; none if a file is one device."""
    op_of: Callable[[bytes], int]
    """From the word in small letters; ``ValueError`` with the reason if there is no such operation."""
    tick_ns: int = 1
    """What a unit of time is, after ``places``."""
    places: int = 0
    """Decimal places of the time that are read; 0: it is a whole number."""
    offset_unit_bytes: int = 1
    size_unit_bytes: int = 1
    numbers: tuple[int, ...] = ()
    """Further columns that must be whole numbers."""
    blanks: bool = False
    """Blanks between the columns, not commas."""
    more: bool = False
    """Whether a line may have further columns."""

    def split(self, block: bytes) -> Fields:
        """Fields of a block of whole lines."""
        count = len(self.columns)
        return split_blanks(block, count, more=self.more) if self.blanks else split_commas(block, count)

    def ops(self, fields: Fields) -> tuple[Ints, Bools]:
        """Operation of each row, and which are good."""
        different, which, good = words(fields.data, fields.start[self.op], fields.end[self.op], lower=True)
        codes = np.array([self._op_or_refused(word) for word in different], np.int64)
        op = codes[which] if len(codes) else np.zeros(0, np.int64)
        return op, good & (op != REFUSED)

    def _op_or_refused(self, word: bytes) -> int:
        try:
            return self.op_of(word)
        except ValueError:
            return REFUSED

    def fast(self, block: bytes) -> Batch:
        """Everything that is plain about a block without zero bytes."""
        fields = self.split(block)
        data, start, end = fields.data, fields.start, fields.end
        op, known = self.ops(fields)
        if self.places:
            time, good = decimals(data, start[self.time], end[self.time], self.places)
        else:
            time, good = whole_numbers(data, start[self.time], end[self.time])
        offset, fine = whole_numbers(data, start[self.offset], end[self.offset])
        length, clean = whole_numbers(data, start[self.size], end[self.size])
        good &= fine & clean
        good &= (offset <= I64_MAX // self.offset_unit_bytes) & (length <= I64_MAX // self.size_unit_bytes)
        offset, length = offset * self.offset_unit_bytes, length * self.size_unit_bytes
        good &= (length <= REQUEST_MAX_BYTES) & (offset <= I64_MAX - REQUEST_MAX_BYTES)
        for i in self.numbers:
            good &= whole_numbers(data, start[i], end[i])[1]
        devices, device = [b""], np.zeros(len(op), np.int64)
        if self.device:
            raw, device, fine = words(data, start[self.device[0]], end[self.device[-1]], lower=False)
            devices = [self.device_name(name.split(b",") if len(self.device) > 1 else [name]) for name in raw]
            good &= fine
        good = known & (good | (op == SKIP))
        return Batch(fields.line_start, fields.line_end, fields.rows, good, time, op, offset, length, devices, device)

    def device_name(self, parts: list[bytes]) -> bytes:
        """``usr_0`` of the columns ``usr`` and ``0``."""
        return b"_".join(part.strip() for part in parts)

    def fields_of(self, line: bytes) -> list[bytes]:
        """Fields of one line."""
        return line.split() if self.blanks else [field.strip() for field in line.split(b",")]

    def is_header(self, parts: list[bytes]) -> bool:
        """Whether a line names the columns."""
        return [part.decode("latin-1").casefold() for part in parts] == [name.casefold() for name in self.columns]

    def check_first(self, line: bytes) -> str:
        """A complaint if the first line is a header of other columns: reading on would mistake one for another."""
        parts = [part.strip(b' "') for part in self.fields_of(line)]
        named = len(parts) > 2 and all(part.replace(b"_", b"").replace(b" ", b"").isalpha() for part in parts)
        if named and not self.is_header(parts):
            return f"columns {show(b','.join(parts))}: expected {','.join(self.columns)}"
        return ""

    def slow(self, line: bytes) -> Row | None:
        """One line, ``None`` if it is no request; ``ValueError`` with the reason if it is malformed."""
        parts = self.fields_of(line)
        if not line.strip() or line.startswith(b"#") or self.is_header(parts):
            return None
        wanted = len(self.columns)
        if len(parts) < wanted or (len(parts) > wanted and not self.more):
            between = " ".join(self.columns) if self.blanks else ",".join(self.columns)
            raise ValueError(f"{len(parts)} fields in {show(line)}: expected {wanted}: {between}")
        if (op := self.op_of(parts[self.op].lower())) == SKIP:
            return None
        names = self.columns
        if self.places:
            time = decimal(parts[self.time], names[self.time], self.places)
        else:
            time = whole(parts[self.time], names[self.time])
        offset = whole(parts[self.offset], names[self.offset]) * self.offset_unit_bytes
        length = whole(parts[self.size], names[self.size]) * self.size_unit_bytes
        for i in self.numbers:
            whole(parts[i], names[i])
        for i in self.device:
            if not 0 < len(parts[i]) <= WORD_MAX_BYTES:
                raise ValueError(f"{names[i]} {show(parts[i])}: expected a name of 1 to {WORD_MAX_BYTES} bytes")
        check_extent(op, offset, length)
        return Row(time, op, offset, length, self.device_name([parts[i] for i in self.device]))

    def objection(self) -> str:
        """After the last line: a reason why the whole file was misread, or ``""``."""
        return ""


_RW: Final = {b"r": int(TraceOp.READ), b"w": int(TraceOp.WRITE)}
_READ_WRITE: Final = {b"read": int(TraceOp.READ), b"write": int(TraceOp.WRITE)}


def msr() -> LineFormat:
    """MSR Cambridge (Narayanan et al., FAST 2008; SNIA IOTTA 388): Windows file times, bytes."""
    columns = ("Timestamp", "Hostname", "DiskNumber", "Type", "Offset", "Size", "ResponseTime")
    op_of = one_of(_READ_WRITE, "Type")
    return LineFormat("msr", columns, 0, 3, 4, 5, (1, 2), op_of, tick_ns=100, numbers=(2,))


def systor() -> LineFormat:
    """Enterprise VDI traces of SYSTOR 2017 (Lee et al.; SNIA IOTTA): seconds, bytes; Response may be empty."""
    columns = ("Timestamp", "Response", "IOType", "LUN", "Offset", "Size")
    return LineFormat("systor", columns, 0, 2, 4, 5, (3,), one_of(_RW, "IOType"), places=9, numbers=(3,))


def alibaba() -> LineFormat:
    """Alibaba Cloud block traces (Li et al., IISWC 2020): bytes, microseconds."""
    columns = ("device_id", "opcode", "offset", "length", "timestamp")
    return LineFormat("alibaba", columns, 4, 1, 2, 3, (0,), one_of(_RW, "opcode"), tick_ns=1000, numbers=(0,))


def tencent() -> LineFormat:
    """Tencent CBS traces (Zhang et al., ATC 2020; SNIA IOTTA 27917): seconds, sectors of 512 bytes."""
    columns = ("Timestamp", "Offset", "Size", "IOType", "VolumeID")
    op_of = one_of({b"0": int(TraceOp.READ), b"1": int(TraceOp.WRITE)}, "IOType")
    unit = SECTOR_BYTES
    return LineFormat(
        "tencent",
        columns,
        0,
        3,
        1,
        2,
        (4,),
        op_of,
        places=9,
        offset_unit_bytes=unit,
        size_unit_bytes=unit,
        numbers=(4,),
    )


def mqsim() -> LineFormat:
    """Traces of MQSim (Tavakkol et al., FAST 2018): nanoseconds, device, sector, sectors, 1 for a read."""
    columns = ("arrival", "device", "LBA", "sectors", "type")
    op_of = one_of({b"1": int(TraceOp.READ), b"0": int(TraceOp.WRITE)}, "type")
    unit = SECTOR_BYTES
    return LineFormat(
        "mqsim",
        columns,
        0,
        4,
        2,
        3,
        (1,),
        op_of,
        offset_unit_bytes=unit,
        size_unit_bytes=unit,
        numbers=(1,),
        blanks=True,
    )
