"""The kernel log: a bounded ring of structured records (kernel/printk).

Sequence numbers count from 0 and never repeat.  A full ring overwrites its oldest record; a reader
that was too slow is told how many it lost.  Logging never raises for what is logged, it bounds it;
the formats escape it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal, TypeAlias

import msgspec

from uxk import limits
from uxk.core.waitlist import WaitList
from uxk.errors import UsageError
from uxk.uapi.info import Record

LEVELS: Final = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
"""Names of the levels 0 to 7 (include/linux/kern_levels.h)."""
EMERG, ALERT, CRIT, ERR, WARNING, NOTICE, INFO, DEBUG = range(8)
FACILITY_KERNEL: Final = 0
FACILITY_USER: Final = 1
TRUNCATED: Final = "<truncated>"
"""Mark at the end of a text that was cut (kernel/printk: trunc_msg)."""
FIELD_NAME_MAX_BYTES: Final = 32
FIELD_VALUE_MAX_BYTES: Final = 256
"""Bounds of a structured field, so that a record stays of bounded size."""

_ALIASES: Final = {"panic": EMERG, "error": ERR, "warn": WARNING}
Start: TypeAlias = int | Literal["oldest", "now"] | None


class KmsgStatistics(msgspec.Struct, frozen=True):
    """Counts of a ring since it was made."""

    capacity: int
    held: int
    logged: int
    dropped: int
    """Records overwritten by newer ones."""
    truncated: int
    """Records that had a text, source or field cut, or fields left out."""
    by_level: tuple[int, ...]
    followers: int


class KmsgRing:
    """The ring; memory for its slots is taken as they fill."""

    __slots__ = ("_by_level", "_followers", "_slots", "_truncated", "capacity", "next_seq")

    def __init__(self, capacity: int = limits.KMSG_RECORDS_DEFAULT) -> None:
        if capacity < 1:
            raise UsageError(f"kmsg: capacity {capacity}, expected 1 or more")
        self.capacity = capacity
        self.next_seq = 0
        """Sequence number of the next record."""
        self._slots: list[Record] = []
        self._by_level = [0] * len(LEVELS)
        self._truncated = 0
        self._followers = WaitList()

    @property
    def first_seq(self) -> int:
        """Sequence number of the oldest record held."""
        return self.next_seq - len(self._slots)

    def log(
        self,
        now_ns: int,
        level: int,
        source: str,
        text: str,
        fields: Mapping[str, str | int] | None = None,
        *,
        facility: int = FACILITY_KERNEL,
    ) -> int:
        """Adds a record, wakes the followers, and returns its sequence number.

        A level outside 0..7 counts as the nearest; a newline at the end of the text is dropped.
        """
        level = min(max(level, EMERG), DEBUG)
        kept, fields_cut = _bounded_fields(fields) if fields else ({}, False)
        name, name_cut = _bounded(source, limits.NAME_MAX_BYTES, "")
        line, line_cut = _bounded(text.removesuffix("\n"), limits.KMSG_TEXT_MAX_BYTES, TRUNCATED)
        record = Record(self.next_seq, now_ns, level, facility, name, line, kept)
        if len(self._slots) < self.capacity:
            self._slots.append(record)
        else:
            self._slots[record.seq % self.capacity] = record
        self.next_seq += 1
        self._by_level[level] += 1
        self._truncated += fields_cut or name_cut or line_cut
        if self._followers:
            self._followers.wake(lambda exc: self._follower_failed(now_ns, exc))
        return record.seq

    def get(self, seq: int) -> Record:
        """The record of that number; ``UsageError`` (ENOENT) if it is not held."""
        if not self.first_seq <= seq < self.next_seq:
            held = f"{self.first_seq}..{self.next_seq - 1}" if self._slots else "none"
            raise UsageError(f"kmsg: no record {seq}, held are {held}", errno=errno.ENOENT)
        return self._slots[seq % self.capacity]

    def reader(self, from_seq: Start = None, *, max_level: int = DEBUG) -> KmsgReader:
        """A reader from a number, from the oldest record (also None), or of what comes from now on.

        Only levels 0 to ``max_level`` are read.  Numbers already overwritten count as lost.
        """
        if from_seq is None or from_seq == "oldest":
            return KmsgReader(self, self.first_seq, max_level)
        if isinstance(from_seq, int):
            return KmsgReader(self, min(max(from_seq, 0), self.next_seq), max_level)
        return KmsgReader(self, self.next_seq, max_level)

    def records(self, *, max_level: int = DEBUG, source: str | None = None, newest: int | None = None) -> list[Record]:
        """Held records, oldest first: levels 0 to ``max_level``, one source, the newest few."""
        found = [
            record
            for record in map(self.get, range(self.first_seq, self.next_seq))
            if record.level <= max_level and source in (None, record.source)
        ]
        return found if newest is None else found[max(0, len(found) - max(0, newest)) :]

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` when there is something to read; returns what cancels it.

        Followers read through their own reader.  One that raises is dropped and logged; records
        logged by followers wake them once more, not for ever.  ``TreeError`` (ENOSPC) if too many.
        """
        return self._followers.add(callback)

    def statistics(self) -> KmsgStatistics:
        """Counts since the ring was made."""
        return KmsgStatistics(
            capacity=self.capacity,
            held=len(self._slots),
            logged=self.next_seq,
            dropped=self.first_seq,
            truncated=self._truncated,
            by_level=tuple(self._by_level),
            followers=len(self._followers),
        )

    def _follower_failed(self, now_ns: int, exc: Exception) -> None:
        try:
            text = f"follower dropped: {type(exc).__name__}: {exc}"
        except Exception:  # a hostile __str__
            text = f"follower dropped: {type(exc).__name__}"
        self.log(now_ns, ERR, "kmsg", text)


class KmsgReader:
    """A position in the ring; holds nothing, so it needs no closing."""

    __slots__ = ("_ring", "lost", "max_level", "next_seq")

    def __init__(self, ring: KmsgRing, next_seq: int, max_level: int) -> None:
        self._ring = ring
        self.next_seq = next_seq
        self.max_level = max_level
        self.lost = 0
        """Records overwritten before they were read (/dev/kmsg answers EPIPE once)."""

    def read(self) -> Record | None:
        """The next record, None if there is none yet; goes on with the oldest after an overrun."""
        ring = self._ring
        if self.next_seq < ring.first_seq:
            self.lost += ring.first_seq - self.next_seq
            self.next_seq = ring.first_seq
        while self.next_seq < ring.next_seq:
            record = ring.get(self.next_seq)
            self.next_seq += 1
            if record.level <= self.max_level:
                return record
        return None

    def __iter__(self) -> Iterator[Record]:
        """Everything that can be read now."""
        while (record := self.read()) is not None:
            yield record


def parse_level(text: str | int) -> int:
    """0 to 7 from a name, alias (``warn``, ``error``, ``panic``) or number; else ``UsageError``."""
    word = str(text).strip().lower() if isinstance(text, str) or 0 <= text < len(LEVELS) else ""
    if word in LEVELS:
        return LEVELS.index(word)
    if word in _ALIASES:
        return _ALIASES[word]
    if len(word) == 1 and word in "01234567":
        return int(word)
    shown = text[:40] if isinstance(text, str) else hex(text)[:40]
    raise UsageError(f"level {shown!r}, expected 0 to 7 or one of {', '.join(LEVELS)}")


def format_dmesg(record: Record) -> str:
    """As dmesg prints it: ``[    5.123456] source: text``, every line with its stamp."""
    microseconds = record.time_ns // 1000
    stamp = f"[{microseconds // 1_000_000:5d}.{microseconds % 1_000_000:06d}] "
    return "\n".join(stamp + _printable(line) for line in _message(record).split("\n"))


def format_dev_kmsg(record: Record) -> str:
    """As /dev/kmsg gives it (Documentation/ABI/testing/dev-kmsg), with the newline at its end.

    ``prefix,seq,timestamp_us,-;text`` and a line `` NAME=value`` per field; every byte that is
    not printable ASCII, and the backslash, is ``\\xHH``.
    """
    head = f"{record.prefix},{record.seq},{record.time_ns // 1000},-"
    pairs = [f" {name}={_ascii(str(value))}\n" for name, value in record.fields.items()]
    return f"{head};{_ascii(_message(record))}\n{''.join(pairs)}"


def to_json(record: Record) -> dict[str, object]:
    """A dict for JSON, with the level by name."""
    return {
        "seq": record.seq,
        "time_ns": record.time_ns,
        "level": LEVELS[record.level],
        "facility": record.facility,
        "source": record.source,
        "text": record.text,
        "fields": dict(record.fields),
    }


def _message(record: Record) -> str:
    return f"{record.source}: {record.text}" if record.source else record.text


def _ascii(text: str) -> str:
    """kernel/printk: append_char."""
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(chr(byte) if 32 <= byte < 127 and byte != 92 else f"\\x{byte:02x}" for byte in text.encode())


def _printable(text: str) -> str:
    """Nothing that a terminal would act upon, but tabs."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\t" else "".join(f"\\x{byte:02x}" for byte in c.encode()) for c in text
    )


def _bounded(text: str, room: int, mark: str) -> tuple[str, bool]:
    """At most ``room`` bytes of valid UTF-8, cut between characters; and whether it was cut."""
    if len(text) <= room and text.isascii():
        return text, False
    raw = text[: room + 1].encode(errors="backslashreplace")
    if len(raw) <= room:
        return raw.decode(), False
    return raw[: room - len(mark)].decode(errors="ignore") + mark, True


def _bounded_fields(fields: Mapping[str, str | int]) -> tuple[dict[str, str | int], bool]:
    kept: dict[str, str | int] = {}
    cut = len(fields) > limits.KMSG_FIELDS_MAX
    for name, value in fields.items():
        if len(kept) >= limits.KMSG_FIELDS_MAX:
            return kept, True
        key, key_cut = _bounded(name, FIELD_NAME_MAX_BYTES, "")
        if not (key.isascii() and key.isidentifier()):
            key = "".join(c if c.isascii() and c.isalnum() else "_" for c in key) or "_"
        if not isinstance(value, int):
            value, value_cut = _bounded(value, FIELD_VALUE_MAX_BYTES, TRUNCATED)
        elif value_cut := abs(value) > limits.U64_MAX:
            value = hex(value)[: FIELD_VALUE_MAX_BYTES - len(TRUNCATED)] + TRUNCATED
        else:
            value = int(value)
        cut = cut or key_cut or value_cut or key in kept
        kept[key] = value
    return kept, cut
