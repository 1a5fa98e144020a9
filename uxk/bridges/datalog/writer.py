"""Writes segments: one writer per log, records only ever appended, everything bounded.

What one call has written is in the file when it returns, so a killed process loses nothing of it; what a power cut
may cost says ``sync``.  A write that fails takes back what got there of it, so that a full disk leaves whole records
only; those that cannot be written are counted, and the count follows once there is room again.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from uxk.bridges.datalog import files
from uxk.bridges.datalog import format as f
from uxk.bridges.datalog.files import Recovery
from uxk.bridges.datalog.settings import DataLogSettings
from uxk.errors import UsageError, errno_name
from uxk.limits import NS_PER_S

RETRY_NS: Final = NS_PER_S
"""Host time after a failed write before the next is tried; what comes meanwhile is counted as lost."""
_END_ROOM: Final = 1024
"""Kept free in a segment: its end, and what was lost."""
_WHYS_MAX: Final = 1024
"""Losses that are told apart until they can be written."""


class Origin(NamedTuple):
    """Where publications come from: a kernel's run."""

    seed: int
    clock: str
    scenario: str = ""
    versions: Mapping[str, str] = {}


class Publication(NamedTuple):
    """One generation of a dataset: ``rows`` are bytes of its dtype."""

    description: f.Description
    itemsize: int
    time_ns: int
    generation: int
    lost: int
    rows: bytes


class Counters:
    """What a writer has done since it began; read from other threads, too."""

    def __init__(self) -> None:
        self.batches = self.rows = self.bytes = self.segments = self.syncs = 0
        self.lost_batches = self.lost_rows = 0
        """Publications that could not be written."""
        self.retired_segments = self.retired_bytes = 0
        """Deleted, because the log would be too large or they were too old."""
        self.error = ""
        """Of the last write, ``""`` if it was good."""


class LogWriter:
    """A log that is open for writing.  Raises InUse (EBUSY), UsageError or OSError if it cannot be."""

    def __init__(self, folder: str | Path, origin: Origin, settings: DataLogSettings | None = None) -> None:
        self.folder = Path(folder)
        self.settings = (settings or DataLogSettings()).validate()
        self.counters = Counters()
        self.recovery: Recovery | None = None
        """What had to be cut off of what the last writer left."""
        self._origin = origin
        self._run = os.urandom(8).hex()
        self._handle = self._end = self._index = self._nonce = 0
        self._path = self.folder
        self._created_ns = self._synced_ns = self._failed_ns = 0
        self._dirty = False
        self._span: tuple[int, int] | None = None
        """Times of the first and the last publication in the segment."""
        self._numbers: dict[str, tuple[int, f.Description]] = {}
        self._encoded: dict[str, tuple[f.Description, bytes]] = {}
        self._losses: dict[tuple[str, str], f.Loss] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = files.lock(self.folder)
        try:
            found = files.segments(self.folder)
            if found:
                self.recovery = files.recover(found[-1], sync=self.settings.sync != "none")
                found = files.segments(self.folder)
            self._last = found[-1].number if found else 0
            self._retire(time.time_ns())
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def run(self) -> str:
        """The number of this run in the log."""
        return self._run

    # --- writing ---

    def write(self, publications: Sequence[Publication]) -> None:
        """Appends; whatever goes wrong on the disk is counted, not raised."""
        now_ns = time.time_ns()
        for each in publications:
            if self._failed_ns and now_ns - self._failed_ns < RETRY_NS:
                self._lose(each, self.counters.error)
                continue
            try:
                self._publication(each, now_ns)
                self._failed_ns, self.counters.error = 0, ""
            except OSError as exc:
                self._failed(exc)
                self._lose(each, self.counters.error)
        self._synced("batch", now_ns)

    def lose(self, description: f.Description, time_ns: int, batches: int, rows: int, why: str) -> None:
        """Counts publications that do not get into the log; the log says so when it can."""
        self.counters.lost_batches += batches
        self.counters.lost_rows += rows
        name = description.name
        before = self._losses.get((name, why))
        if before is not None:
            batches, rows = batches + before.batches, rows + before.rows
        elif len(self._losses) >= _WHYS_MAX:
            return
        self._losses[name, why] = f.Loss(time_ns, name, batches, rows, why)

    def _lose(self, each: Publication, why: str) -> None:
        self.lose(each.description, each.time_ns, 1, len(each.rows) // each.itemsize, why)

    def tick(self) -> None:
        """To be called now and then, also if nothing comes: for what the host's time makes due."""
        now_ns = time.time_ns()
        self._synced("second", now_ns)
        if self.settings.max_age_ns:
            if self._handle and now_ns - self._created_ns > self.settings.max_age_ns // 4:
                self._finish("rotated")
            self._retire(now_ns)

    def close(self) -> None:
        """Ends the log in good order, as far as the disk lets it; twice is once."""
        if self._lock < 0:
            return
        try:
            if self._losses:
                self._try_losses()
            self._finish("closed")
        finally:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside ---

    def _publication(self, each: Publication, now_ns: int) -> None:
        """One generation, in as many batches as it takes.  OSError; what is missing then is its end."""
        total, view = len(each.rows) // each.itemsize, memoryview(each.rows)
        room = min(f.ROWS_MAX_BYTES, self.settings.segment_bytes // 4)
        if each.itemsize > room or len(self._words(each.description)) > room:
            self._lose(each, "too_large")
            return
        step, first = room // each.itemsize, 0
        while True:
            rows = view[first * each.itemsize : (first + step) * each.itemsize]
            meta = f.Meta(each.time_ns, each.generation, each.lost, first, total, len(rows) // each.itemsize)
            self._batch(each.description, meta, rows, now_ns)
            first += meta.rows
            if first >= total:
                break
        self.counters.batches += 1
        self.counters.rows += total

    def _batch(self, description: f.Description, meta: f.Meta, rows: memoryview, now_ns: int) -> None:
        if self._losses:
            self._write_losses()
        words = self._words(description)
        self._room(2 * f.HEADER.size + f.META.size + len(rows) + len(words), now_ns)
        known = self._numbers.get(description.name)
        parts: list[Any] = []
        index = self._index
        if known is None or (known[1] is not description and known[1] != description):
            known = (len(self._numbers) + 1 if known is None else known[0], description)
            parts += f.frame(f.Kind.SCHEMA, known[0], index, [words], self._nonce)
            index += 1
        parts += f.frame(f.Kind.BATCH, known[0], index, [f.META.pack(*meta), rows], self._nonce)
        self._append(parts)
        self._numbers[description.name] = known
        self._span = (self._span[0] if self._span else meta.time_ns, meta.time_ns)
        self._index = index + 1

    def _words(self, description: f.Description) -> bytes:
        """A description as bytes; it is asked for with every batch, and most are the same object."""
        known = self._encoded.get(description.name)
        if known is None or known[0] is not description:
            known = self._encoded[description.name] = description, f.words(description)
        return known[1]

    def _room(self, size: int, now_ns: int) -> None:
        """Sees to it that so many bytes fit into the segment."""
        if self._handle and self._end + size + _END_ROOM > self.settings.segment_bytes:
            self._finish("rotated")
        if not self._handle:
            self._begin(now_ns)

    def _begin(self, now_ns: int) -> None:
        """The next segment, and room for it."""
        self._retire(now_ns)
        self._nonce = int.from_bytes(os.urandom(4), "little")
        origin, number = self._origin, self._last + 1
        head = f.Head(
            f.FORMAT, number, self._nonce, self._run, now_ns, origin.seed, origin.clock, origin.scenario,
            dict(origin.versions),
        )  # fmt: skip
        self._path = self.folder / f.file_name(number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._handle = os.open(self._path, flags, 0o644)
        self._last = number
        self._end, self._index, self._created_ns, self._span = 0, 1, now_ns, None
        self._numbers.clear()
        self.counters.segments += 1
        self._append(f.frame(f.Kind.HEAD, 0, 0, [f.words(head)], self._nonce))
        if self.settings.sync != "none":
            files.sync_folder(self.folder)

    def _append(self, parts: list[Any]) -> None:
        """All of it, or nothing.  OSError."""
        wanted = sum(len(part) for part in parts)
        written = 0
        try:
            written = os.writev(self._handle, parts)
            if written < wanted:
                rest = memoryview(b"".join(parts))
                while written < wanted:
                    written += os.write(self._handle, rest[written:])
        except OSError:
            self._take_back()
            raise
        self._end += wanted
        self.counters.bytes += wanted
        self._dirty = True

    def _take_back(self) -> None:
        """What a failed write has left; a segment of which it cannot be taken back is written to no more."""
        try:
            os.ftruncate(self._handle, self._end)
            if self._end:
                return
            self._path.unlink()  # without a head it is no segment, and leaves its number to the next
            self._last -= 1
        except OSError:
            pass
        os.close(self._handle)
        self._handle = 0

    def _failed(self, exc: OSError) -> None:
        self._failed_ns = time.time_ns()
        self.counters.error = errno_name(exc.errno or errno.EIO)

    def _write_losses(self) -> None:
        for key, loss in list(self._losses.items()):
            payload = f.words(loss)
            self._room(f.HEADER.size + len(payload), time.time_ns())
            self._append(f.frame(f.Kind.LOSS, 0, self._index, [payload], self._nonce))
            self._index += 1
            del self._losses[key]

    def _try_losses(self) -> None:
        try:
            self._room(f.HEADER.size, time.time_ns())
            self._write_losses()
        except OSError as exc:
            self._failed(exc)

    def _finish(self, why: str) -> None:
        """Ends the segment; one that cannot get an end does without."""
        if not self._handle:
            return
        try:
            end = f.End(why, self._index + 1, *(self._span or (0, 0)))
            self._append(f.frame(f.Kind.END, 0, self._index, [f.words(end)], self._nonce))
            if self.settings.sync != "none":
                self._sync()
        except OSError as exc:
            self._failed(exc)
        if self._handle:
            os.close(self._handle)
            self._handle = 0
        self._dirty = False

    def _synced(self, policy: str, now_ns: int) -> None:
        """Forces the segment to the disk, if it is due."""
        due = self.settings.sync == "batch" or (
            self.settings.sync == "second" and now_ns - self._synced_ns >= NS_PER_S
        )  # fmt: skip
        if not due or not self._dirty or not self._handle:
            return
        try:
            self._sync()
            self._synced_ns = now_ns
        except OSError as exc:
            self._failed(exc)

    def _sync(self) -> None:
        os.fdatasync(self._handle)
        self.counters.syncs += 1
        self._dirty = False

    def _retire(self, now_ns: int) -> None:
        """Deletes the oldest segments, until another one fits, and those that are too old."""
        try:
            found = [each for each in files.segments(self.folder) if not self._handle or each.number != self._last]
        except OSError as exc:
            self._failed(exc)
            return
        used = sum(each.size_bytes for each in found)
        age_ns = self.settings.max_age_ns
        for each in found:
            late = age_ns and now_ns - each.changed_ns > age_ns
            if used + self.settings.segment_bytes <= self.settings.max_bytes and not late:
                break
            try:
                each.path.unlink()
            except OSError as exc:
                self._failed(exc)
                break
            used -= each.size_bytes
            self.counters.retired_segments += 1
            self.counters.retired_bytes += each.size_bytes


def check_itemsize(description: f.Description) -> int:
    """Bytes of a row.  UsageError for a schema that the log cannot keep."""
    try:
        return f.dtype_of(description.schema).itemsize
    except UsageError as exc:
        raise UsageError(f"dataset {description.name}: {exc}") from None
