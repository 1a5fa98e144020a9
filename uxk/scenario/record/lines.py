"""The text of the kernel's ``block_rq_issue`` tracepoint, one event a line, as ``trace_pipe`` prints it.

Layout of the event: ``include/trace/events/block.h``; of the prefix and of lost events: ``kernel/trace/trace.c``
and ``trace_output.c``.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

EVENT: Final = "block_rq_issue"
"""The tracepoint: a request handed to the driver, after merges and splits."""

SECTOR_BYTES: Final = 512
"""The unit of every sector number of the kernel's block layer, whatever the device."""


OPERATIONS: Final[tuple[str, ...]] = ("read", "write", "discard", "flush", "other")
"""What :func:`operation` returns."""


class Request(NamedTuple):
    """One request: ``time_us`` on the trace clock, ``rwbs`` as the kernel flags it, sectors of 512 bytes.

    A flush has neither place nor length: ``sector`` and ``sectors`` are 0.
    """

    time_us: int
    cpu: int
    pid: int
    rwbs: str
    sector: int
    sectors: int
    comm: str


class Lost(NamedTuple):
    """The kernel overwrote ``events`` events of one CPU before they were read."""

    cpu: int
    events: int


class Malformed(NamedTuple):
    """A line that is no event, and why."""

    text: str
    reason: str


# The name of a task may hold anything, so that the numbers are anchored from both sides. `(cmd)` is empty for all
# but passthrough requests; the I/O priority came with Linux 6.6.
_REQUEST: Final = re.compile(
    r"(?P<task>.*)-(?P<pid>\d+) +(?:\([ \d-]*\) +)?\[(?P<cpu>\d+)\] +(?:\S+ +)?(?P<s>\d+)\.(?P<us>\d{6}): "
    + EVENT
    + r": \d+,\d+ (?P<rwbs>[A-Z]+) (?P<bytes>\d+) \(.*?\) (?P<sector>\d+) \+ (?P<sectors>\d+) "
    r"(?:\w+,\d+,\d+ )?\[(?P<comm>.*)\]"
)
_LOST: Final = re.compile(r"CPU:(?P<cpu>\d+) \[LOST (?P<events>\d+) EVENTS\]")
_SHOWN: Final = 80
_SECTOR_MAX: Final = (1 << 63) // SECTOR_BYTES


def parse_line(line: str) -> Request | Lost | Malformed | None:
    """One line of ``trace_pipe``; None for an empty one and for the header's comments."""
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    if found := _REQUEST.fullmatch(text):
        sector, sectors = int(found["sector"]), int(found["sectors"])
        if sector + sectors > _SECTOR_MAX:
            return Malformed(text[:_SHOWN], f"sector {sector} + {sectors} is beyond any device")
        time_us = int(found["s"]) * 1_000_000 + int(found["us"])
        return Request(time_us, int(found["cpu"]), int(found["pid"]), found["rwbs"], sector, sectors, found["comm"])
    if found := _LOST.fullmatch(text):
        return Lost(int(found["cpu"]), int(found["events"]))
    return Malformed(text[:_SHOWN], f"expected a {EVENT} event or a note on lost ones")


def operation(rwbs: str) -> str:
    """``read``, ``write``, ``discard``, ``flush`` or ``other`` for the kernel's flags (``blk_fill_rwbs``).

    An ``F`` in front of a ``W`` asks for a flush before the write; alone, or before another ``F``, it is the flush.
    Writing zeros (``WZ``, Linux 6.17; ``N`` before) moves no data; it counts as ``discard`` where it can be told.
    """
    if "WZ" in rwbs:
        return "discard"
    letter = rwbs[1:2] if rwbs.startswith("F") and rwbs[1:2] in ("R", "W", "D") else rwbs[:1]
    return {"R": "read", "W": "write", "D": "discard", "F": "flush"}.get(letter, "other")


def lost_of_stats(text: str) -> int:
    """Events that one CPU's buffer lost: overwritten, or never stored (``per_cpu/cpuN/stats``)."""
    lost = 0
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in ("overrun", "commit overrun", "dropped events") and value.strip().isdigit():
            lost += int(value)
    return lost
