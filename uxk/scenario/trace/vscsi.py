"""vSCSI traces as CSV: ``version,time,op,size,lbn``, the operation a SCSI command in hexadecimal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from uxk.scenario.trace.fields import Fields
from uxk.scenario.trace.lines import SKIP, LineFormat, show
from uxk.scenario.trace.model import SECTOR_BYTES, Bools, Ints, Row, TraceOp

COMMANDS: Final[dict[int, int]] = {
    **dict.fromkeys((0x08, 0x28, 0x88, 0xA8), int(TraceOp.READ)),
    # WRITE(6, 10, 16, 12), WRITE AND VERIFY, WRITE SAME
    **dict.fromkeys((0x0A, 0x2A, 0x8A, 0xAA, 0x2E, 0x8E, 0xAE, 0x41, 0x93), int(TraceOp.WRITE)),
    0x42: int(TraceOp.DISCARD),
    **dict.fromkeys((0x35, 0x91), int(TraceOp.FLUSH)),
}
"""Operation of each SCSI command that moves data (SBC-4); the others are skipped."""


@dataclass
class _Commands:
    """From text to operation, remembering what was seen."""

    seen: set[int] = field(default_factory=set)

    def __call__(self, word: bytes) -> int:
        digits = word.removeprefix(b"0x")
        try:
            if not 0 < len(digits) <= 2 or not digits.isalnum():
                raise ValueError
            command = int(digits, 16)
        except ValueError:
            raise ValueError(f"op {show(word)}: expected a SCSI command in hexadecimal, such as 2a") from None
        self.seen.add(command)
        return COMMANDS.get(command, SKIP)


@dataclass(frozen=True)
class Vscsi(LineFormat):
    """Notices other CSV files, whose first column is longer, and commands written in decimal."""

    def ops(self, fields: Fields) -> tuple[Ints, Bools]:
        """Only with a version of one digit."""
        op, good = super().ops(fields)
        return op, good & (fields.end[0] - fields.start[0] == 1)

    def slow(self, line: bytes) -> Row | None:
        """One line."""
        if (row := super().slow(line)) is not None and len(version := line.split(b",")[0].strip()) != 1:
            raise ValueError(f"version {show(version)}: expected 1 or 2")
        return row

    def objection(self) -> str:
        """40 and 42 are READ(10) and WRITE(10) in decimal; in hexadecimal 40 is obsolete, and 42 an unmap."""
        seen = self.op_of.seen if isinstance(self.op_of, _Commands) else set[int]()
        moved = {command for command in seen if COMMANDS.get(command) in (TraceOp.READ, TraceOp.WRITE)}
        if not moved and 0x40 in seen:
            return "op 40 and never 28 or 2a: commands in decimal; expected hexadecimal"
        return ""


def vscsi() -> LineFormat:
    """VMware vSCSI traces, CloudPhysics' among them (Waldspurger et al., FAST 2015): microseconds, bytes, sectors."""
    columns = ("version", "time", "op", "size", "lbn")
    return Vscsi("vscsi", columns, 1, 2, 4, 3, (), _Commands(), places=3, offset_unit_bytes=SECTOR_BYTES, numbers=(0,))
