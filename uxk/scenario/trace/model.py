"""What every reader returns: requests as columns, what was left out, and how many bad lines are borne."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from uxk.errors import ConfigError

Ints: TypeAlias = npt.NDArray[np.int64]
Small: TypeAlias = npt.NDArray[np.uint8]
Bools: TypeAlias = npt.NDArray[np.bool_]

SECTOR_BYTES: Final = 512
REQUEST_MAX_BYTES: Final = 1 << 30
"""A longer read or write is a corrupt line: no block layer sends one."""
REQUESTS_MAX: Final = 1 << 27
"""Requests of one trace in memory, 29 bytes each: 3.6 GiB."""
DEVICES_MAX: Final = 1 << 20
"""Different devices in one trace."""
I64_MAX: Final = (1 << 63) - 1
MALFORMED_KEPT: Final = 20
"""Malformed lines that are described; the others are only counted."""
TOLERATE_LINES: Final = 100
TOLERATE_ONE_IN: Final = 100
"""By default 100 malformed lines are borne, or one in a hundred, whichever is more; never most of a file."""


class TraceOp(IntEnum):
    """What a request does; the values of :attr:`Trace.op`."""

    READ = 0
    WRITE = 1
    DISCARD = 2
    """Trim, unmap, secure erase, write of zeros: the data are gone."""
    FLUSH = 3


class Malformed(NamedTuple):
    """A line, or a record of a binary file, that could not be used."""

    line: int
    """From 1."""
    reason: str


@dataclass(frozen=True)
class Trace:
    """Requests in file order, as columns of equal length.

    ``time_ns`` counts from the first request kept; a file that is not sorted has steps back.  ``device`` indexes
    ``devices``.  ``skipped`` are well-formed lines that are no request: other events, headers, empty requests.
    """

    time_ns: Ints
    op: Small
    """:class:`TraceOp`."""
    offset_bytes: Ints
    length_bytes: Ints
    device: npt.NDArray[np.int32]
    devices: tuple[str, ...]
    name: str
    format: str
    lines: int
    """Lines or records seen, malformed and skipped ones included."""
    skipped: int
    malformed: int
    malformed_lines: tuple[Malformed, ...]
    """The first :data:`MALFORMED_KEPT`."""

    def __len__(self) -> int:
        return len(self.op)

    def counts(self) -> dict[str, int]:
        """Requests by operation, and lines by fate."""
        by_op = np.bincount(self.op, minlength=len(TraceOp))
        return {
            "lines": self.lines, "skipped": self.skipped, "malformed": self.malformed, "requests": len(self),
            "reads": int(by_op[TraceOp.READ]), "writes": int(by_op[TraceOp.WRITE]),
            "discards": int(by_op[TraceOp.DISCARD]), "flushes": int(by_op[TraceOp.FLUSH]),
        }  # fmt: skip


class Row(NamedTuple):
    """One request as its line says it; the time in the format's own unit."""

    time: int
    op: int
    offset_bytes: int
    length_bytes: int
    device: bytes


def check_extent(op: int, offset_bytes: int, length_bytes: int) -> None:
    """Raises ``ValueError`` with the reason if no disk could hold the request."""
    if op in (TraceOp.READ, TraceOp.WRITE) and length_bytes > REQUEST_MAX_BYTES:
        raise ValueError(f"size of {length_bytes} bytes: more than {REQUEST_MAX_BYTES}")
    if offset_bytes + length_bytes > I64_MAX:
        raise ValueError(f"ends at byte {offset_bytes + length_bytes}: beyond 2^63-1")


class Complaints:
    """Counts malformed lines and decides when they are too many."""

    def __init__(self, name: str, tolerate: int | None) -> None:
        if tolerate is not None and tolerate < 0:
            raise ConfigError(f"tolerate={tolerate}: expected 0 or more malformed lines")
        self._name = name
        self._tolerate = tolerate
        self.count = 0
        self.kept: list[Malformed] = []

    def add(self, line: int, reason: str) -> None:
        """One more malformed line."""
        self.count += 1
        if len(self.kept) < MALFORMED_KEPT:
            self.kept.append(Malformed(line, reason))

    def bound(self, lines: int) -> int:
        """How many of ``lines`` may be malformed."""
        if self._tolerate is not None:
            return self._tolerate
        return max(TOLERATE_LINES, lines // TOLERATE_ONE_IN)

    def too_many(self, lines: int) -> bool:
        """Whether reading should stop here."""
        return self.count > self.bound(lines)

    def mostly(self, lines: int) -> bool:
        """By default, whether more than half of a whole file is malformed; a bound that was given stands alone."""
        return self._tolerate is None and 2 * self.count > lines

    def error(self, lines: int, guess: str) -> ConfigError:
        """Names file, line and reason of the first malformed line, how many there are, and ``guess``."""
        first = self.kept[0]
        bound = min(self.bound(lines), lines // 2) if self._tolerate is None else self._tolerate
        told = f"{self.count} of {lines} lines malformed, at most {bound} tolerated"
        return ConfigError(f"{self._name}: line {first.line}: {first.reason} ({told}){guess}")
