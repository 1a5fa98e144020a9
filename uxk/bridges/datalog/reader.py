"""Reads a log, also while it is written; what is damaged is left out and told, never guessed at.

Nothing in the files is trusted: every size is bounded, every record has its checksum, and whatever a file has in it,
reading raises UsageError or OSError, or goes on behind the damage.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uxk.bridges.datalog import files
from uxk.bridges.datalog import format as f
from uxk.core.suggest import did_you_mean
from uxk.errors import UsageError

EXTRA: Final = (("uxk_run", "<u4"), ("uxk_time_ns", "<u8"), ("uxk_generation", "<u8"))
"""Columns that a log adds to its rows: the run's number from 1, the time of the publication, its generation."""
PROBLEMS_MAX: Final = 10_000
"""Problems that one reading remembers; further ones are only counted."""


class Run(NamedTuple):
    """One kernel that wrote into the log."""

    number: int
    head: f.Head
    """Of the oldest of its segments that is left."""


class Batch(NamedTuple):
    """Rows as they were published; ``rows`` is read-only."""

    run: Run
    description: f.Description
    meta: f.Meta
    rows: NDArray[Any]

    @property
    def name(self) -> str:
        """``MODEL/DATASET``."""
        return self.description.name


class Problem(NamedTuple):
    """Something that is not as it was written."""

    file: str
    offset: int
    bytes: int
    """0 if what is missing has left no bytes."""
    frames: int
    """Records missing, as far as their numbers tell."""
    why: str
    torn: bool = False
    """It is the end of the last segment, which was never ended: what its writer left behind, or is writing now."""

    def __str__(self) -> str:
        what = "unfinished" if self.torn else "damaged"
        return f"{self.file}: {what} at offset {self.offset}, {self.bytes} bytes: {self.why}"


class Generation(NamedTuple):
    """All rows of one publication."""

    run: Run
    description: f.Description
    time_ns: int
    generation: int
    lost: int
    rows: NDArray[Any]


class DataLog:
    """A log's directory, to be read.  UsageError (ENOENT, ENOTDIR, ...) if it is none."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            found = files.segments(self.folder)
        except OSError as exc:
            raise UsageError(f"dataset log {folder}: {exc.strerror}", errno=exc.errno) from None
        if not found and not (self.folder / files.LOCK).exists():
            raise UsageError(f"{folder}: no dataset log: it has no segments", errno=errno.ENOENT)

    @property
    def segments(self) -> list[files.Segment]:
        """Its files now, oldest first."""
        return files.segments(self.folder)

    def scan(self) -> Scan:
        """A reading of everything there is now, from the beginning."""
        return Scan(self.folder)

    def batches(
        self, name: str = "", *, run: int = 0, damaged: bool = False, newest_segments: int = 0
    ) -> Iterator[Batch]:  # fmt: skip
        """Batches in the order of their publication, of one dataset if it is named, of one run if that is.

        With ``damaged`` the reading goes on behind damage; else it ends with UsageError (EIO).  An unfinished record at
        the end of a segment is left out, always.  ``newest_segments`` reads no more than these; 0: all.
        """
        scan = Scan(self.folder, newest_segments)
        for batch in scan:
            if not damaged:
                scan.check()
            if (not name or batch.name == name) and run in (0, batch.run.number):
                yield batch
        if not damaged:
            scan.check()

    def generations(
        self, name: str = "", *, run: int = 0, damaged: bool = False, newest_segments: int = 0
    ) -> Iterator[Generation]:  # fmt: skip
        """Whole publications, put together again; one of which a part is missing is left out.  See :meth:`batches`."""
        parts: dict[str, list[Batch]] = {}
        for batch in self.batches(name, run=run, damaged=damaged, newest_segments=newest_segments):
            meta = batch.meta
            if meta.first == 0:
                parts[batch.name] = []
            have = parts.setdefault(batch.name, [])
            if have and (have[-1].meta.generation, have[-1].run) != (meta.generation, batch.run):
                have.clear()
            if (have[-1].meta.first + have[-1].meta.rows if have else 0) != meta.first:
                continue
            have.append(batch)
            if meta.first + meta.rows == meta.total:
                rows = batch.rows if len(have) == 1 else np.concatenate([each.rows for each in have])
                yield Generation(batch.run, batch.description, meta.time_ns, meta.generation, meta.lost, rows)
                del parts[batch.name]

    def __getitem__(self, name: str) -> LoggedDataset:
        return self.dataset(name)

    def dataset(self, name: str, *, run: int = 0, damaged: bool = False) -> LoggedDataset:
        """One dataset's rows.  UsageError (ENOENT) if there is none; EINVAL if its columns changed on the way, and
        no ``run`` says which ones are wanted."""
        scan, dtypes = self.scan(), dict[str, f.Description]()
        for batch in scan:
            if run not in (0, batch.run.number):
                continue
            known = dtypes.setdefault(batch.name, batch.description)
            if batch.name == name and known.schema != batch.description.schema:
                raise UsageError(f"{name}: its columns change in run {batch.run.number}: name a run")
        if name not in dtypes:
            there = ", ".join(sorted(dtypes)) or "none"
            raise UsageError(f"no dataset {name!r}{did_you_mean(name, dtypes)}; there are: {there}", errno=errno.ENOENT)
        if not damaged:
            scan.check()
        return LoggedDataset(self, dtypes[name], run, damaged)


class Scan:
    """One pass over a log: iterate for the batches.  What it met is in its attributes, complete at the end."""

    def __init__(self, folder: Path, newest_segments: int = 0) -> None:
        self._folder = folder
        self._newest = newest_segments
        self.runs: dict[str, Run] = {}
        self.problems: list[Problem] = []
        self.problem_count = 0
        self.losses: list[tuple[Run, f.Loss]] = []
        """What did not get into the log, as the log itself says."""
        self.frames = self.bytes = self.segments = 0

    @property
    def damage(self) -> list[Problem]:
        """Problems that are more than an unfinished end."""
        return [each for each in self.problems if not each.torn]

    def check(self) -> None:
        """UsageError (EIO) if something is damaged."""
        if self.damage:
            raise UsageError(f"dataset log {self._folder}: {self.damage[0]}", errno=errno.EIO)

    def __iter__(self) -> Iterator[Batch]:
        before = 0
        found = files.segments(self._folder)[-self._newest :]
        for each in found:
            if before and each.number > before + 1:
                missing = f"{each.number - before - 1} segments before it are missing"
                self._problem(Problem(each.path.name, 0, 0, 0, missing))
            before = each.number
            try:
                data = files.read(each.path)
            except FileNotFoundError:  # retention was faster
                continue
            self.segments += 1
            self.bytes += len(data)
            yield from self._segment(each, data, each is found[-1])

    def _segment(self, each: files.Segment, data: bytes, last: bool) -> Iterator[Batch]:
        name = each.path.name
        head = f.head_of(data, each.number)
        if head is None:
            torn = last and f.is_begun(data)
            if data or not torn:
                self._problem(Problem(name, 0, len(data), 0, "no head: nothing in it can be told", torn))
            return
        run = self.runs.setdefault(head.run, Run(len(self.runs) + 1, head))
        known: dict[int, tuple[f.Description, np.dtype[Any]]] = {}
        ended, holes = False, list[f.Hole]()
        for found in f.frames(data, head.nonce):
            if isinstance(found, f.Hole):
                holes.append(found)
                continue
            self.frames += 1
            if found.kind is f.Kind.BATCH:
                batch = self._batch(name, run, found, known)
                if batch is not None:
                    yield batch
            elif not self._words(name, run, found, known):
                self._problem(Problem(name, found.offset, len(found.payload), 1, f"{found.kind.name}: unreadable"))
            ended = ended or found.kind is f.Kind.END
        for hole in holes:
            torn = last and not ended and hole is holes[-1] and hole.bytes > 0 and hole.offset + hole.bytes == len(data)
            self._problem(Problem(name, hole.offset, hole.bytes, hole.frames, hole.why, torn))

    def _batch(
        self, file: str, run: Run, found: f.Frame, known: Mapping[int, tuple[f.Description, np.dtype[Any]]]
    ) -> Batch | None:
        described = known.get(found.number)
        if described is None:
            self._problem(Problem(file, found.offset, len(found.payload), 1, "a batch whose description is missing"))
            return None
        description, dtype = described
        meta = f.read_meta(found.payload, dtype.itemsize)
        if meta is None:
            self._problem(Problem(file, found.offset, len(found.payload), 1, f"no batch of {description.name}"))
            return None
        rows: NDArray[Any] = np.frombuffer(found.payload, dtype, meta.rows, f.META.size)
        rows.flags.writeable = False
        return Batch(run, description, meta, rows)

    def _words(
        self, file: str, run: Run, found: f.Frame, known: dict[int, tuple[f.Description, np.dtype[Any]]]
    ) -> bool:
        """Takes in a frame that is no batch; False if it is unreadable."""
        if found.kind is f.Kind.SCHEMA:
            description = f.read_words(found.payload, f.Description)
            if description is None:
                known.pop(found.number, None)
                return False
            try:
                known[found.number] = description, f.dtype_of(description.schema)
            except UsageError:
                return False
        elif found.kind is f.Kind.LOSS:
            loss = f.read_words(found.payload, f.Loss)
            if loss is None:
                return False
            if len(self.losses) < PROBLEMS_MAX:
                self.losses.append((run, loss))
        elif found.kind is f.Kind.END:
            return f.read_words(found.payload, f.End) is not None
        return found.kind is not f.Kind.HEAD

    def _problem(self, problem: Problem) -> None:
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


class LoggedDataset:
    """One dataset of a log.  pyarrow, pandas, polars and DuckDB read it as it is: it is an Arrow stream."""

    def __init__(self, log: DataLog, description: f.Description, run: int, damaged: bool) -> None:
        self._log = log
        self._run = run
        self._damaged = damaged
        self.description = description
        self.dtype = f.dtype_of(description.schema)

    def batches(self) -> Iterator[Batch]:
        """Its batches in order."""
        return self._log.batches(self.description.name, run=self._run, damaged=self._damaged)

    def rows(self) -> NDArray[Any]:
        """All rows as one structured array, with the columns of :data:`EXTRA` in front."""
        parts = [with_extra(batch) for batch in self.batches()]
        return np.concatenate(parts) if parts else np.empty(0, extended(self.dtype))

    def arrow(self) -> Any:
        """A ``pyarrow.RecordBatchReader``; UsageError (ENOPKG) without pyarrow."""
        from uxk.bridges.datalog.arrow import reader_of

        return reader_of(self)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Arrow's PyCapsule interface."""
        return self.arrow().__arrow_c_stream__(requested_schema)


def extended(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A dataset's dtype with the log's columns in front; a column of its own with such a name takes its place."""
    names = dtype.names or ()
    extra = [column for column in EXTRA if column[0] not in names]
    return np.dtype([*extra, *((name, dtype[name]) for name in names)])


def with_extra(batch: Batch) -> NDArray[Any]:
    """A batch's rows with the log's columns."""
    own = batch.rows.dtype.names or ()
    rows = np.empty(len(batch.rows), extended(batch.rows.dtype))
    for name in own:
        rows[name] = batch.rows[name]
    values = (batch.run.number, batch.meta.time_ns, batch.meta.generation)
    for (name, _), value in zip(EXTRA, values, strict=True):
        if name not in own:
            rows[name] = value
    return rows
