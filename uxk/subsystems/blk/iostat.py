"""What ``iostat -x`` makes of two looks at a disk's counters (sysstat 12: iostat.c, write_plain_ext_stat).

Figures are in hundredths, as iostat prints two digits behind the point.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from uxk.errors import UsageError
from uxk.limits import NS_PER_S

FIELDS: Final = 17
_HUNDREDTHS: Final = 100
_SECTORS_PER_KB: Final = 2


class Group(NamedTuple):
    """Of one direction, in hundredths of what the name says."""

    per_s: int
    kb_per_s: int
    merged_per_s: int
    merged_percent: int
    await_ms: int
    """Mean time from being accepted to being answered."""
    size_kb: int
    """Mean size."""


class Figures(NamedTuple):
    """One line of ``iostat -x``, in hundredths."""

    reads: Group
    writes: Group
    discards: Group
    flushes_per_s: int
    flush_await_ms: int
    queue: int
    """aqu-sz: requests under way on average."""
    util_percent: int


class Snapshot(NamedTuple):
    """A disk's ``stat`` at one moment."""

    now_ns: int
    fields: tuple[int, ...]


def parse_stat(text: str, now_ns: int) -> Snapshot:
    """The text of ``/sys/block/NAME/stat``.  UsageError if it is none."""
    try:
        fields = tuple(map(int, text.split()))
    except ValueError:
        fields = ()
    if len(fields) != FIELDS:
        raise UsageError(f"stat: {text[:80]!r}, expected {FIELDS} integers")
    return Snapshot(now_ns, fields)


def _share(part: int, whole: int) -> int:
    """Hundredths of ``part`` for each of ``whole``, rounded half up; nothing for nothing."""
    return (2 * _HUNDREDTHS * part + whole) // (2 * whole) if whole > 0 else 0


def _rate(count: int, elapsed_ns: int) -> int:
    return _share(count * NS_PER_S, elapsed_ns)


def extended(before: Snapshot, after: Snapshot) -> Figures:
    """What happened between two looks; a counter that went back, as a new disk's has, counts as nothing.

    The counters are read a little later than the clock, so that a disk can seem busier than all the time: it is not.
    """
    elapsed_ns = after.now_ns - before.now_ns
    delta = [max(late - early, 0) for early, late in zip(before.fields, after.fields, strict=True)]

    def group(first: int) -> Group:
        ios, merges, sectors, ticks_ms = delta[first : first + 4]
        return Group(
            _rate(ios, elapsed_ns), _share(sectors * NS_PER_S, _SECTORS_PER_KB * elapsed_ns),
            _rate(merges, elapsed_ns), _share(100 * merges, merges + ios), _share(ticks_ms, ios),
            _share(sectors, _SECTORS_PER_KB * ios),
        )  # fmt: skip

    per_ms = NS_PER_S // 1000
    flushes, flush_ms = delta[15], delta[16]
    return Figures(
        group(0), group(4), group(11), _rate(flushes, elapsed_ns), _share(flush_ms, flushes),
        _share(delta[10] * per_ms, elapsed_ns), min(_share(100 * delta[9] * per_ms, elapsed_ns), 100 * _HUNDREDTHS),
    )  # fmt: skip


HEADERS: Final = (
    "r/s", "rkB/s", "rrqm/s", "%rrqm", "r_await", "rareq-sz", "w/s", "wkB/s", "wrqm/s", "%wrqm", "w_await", "wareq-sz",
    "d/s", "dkB/s", "drqm/s", "%drqm", "d_await", "dareq-sz", "f/s", "f_await", "aqu-sz", "%util",
)  # fmt: skip
"""Columns, as iostat orders them."""


def columns(figures: Figures) -> tuple[int, ...]:
    """The figures in the order of :data:`HEADERS`, in hundredths."""
    reads, writes, discards, *rest = figures
    return (*reads, *writes, *discards, *rest)
