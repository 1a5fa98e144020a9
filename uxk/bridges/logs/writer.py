"""kmsg into a file, by a thread: the kernel hands records over and goes on.

The queue between them is bounded.  On the real clock a record that finds it full is lost, and a line in the file says
how many there were; where time is virtual, the run waits for the file in host time, which costs none of its own, so
that the file is a function of the seed.  That patience is bounded as well.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import socket
import stat
import sys
import time
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

from uxk.bridges.logs.lines import Origin, format_line
from uxk.bridges.logs.settings import (
    BACKUPS_DEFAULT,
    BACKUPS_MAX,
    MAX_BYTES_DEFAULT,
    MAX_BYTES_MIN,
    LogFormat,
    LogTo,
)
from uxk.core.kmsg import WARNING
from uxk.errors import UsageError
from uxk.limits import KMSG_RECORDS_DEFAULT
from uxk.uapi.info import Record

if TYPE_CHECKING:
    from uxk.kernel.kernel import Kernel

SOURCE: Final = "log"
"""Source of the lines that tell of losses."""
_PATIENCE_S: Final = 10
"""Host time that a run waits for its file, altogether; and that closing waits."""


class LogStatistics(NamedTuple):
    """Counts since the file was opened."""

    taken: int
    """Records handed to the writer."""
    written: int
    dropped: int
    """Records that found the queue full."""
    failed: int
    """Records that the file did not take."""
    problem: str
    """What the file's last failure was."""


class LogFile:
    """A file that follows a kernel's log.  Use it as a context manager around the kernel, and :meth:`follow` it.

    At ``max_bytes`` the file becomes ``FILE.1``, that one ``FILE.2``, up to ``backups``.  ``wait`` None: where time is
    virtual.  Raises UsageError if the file cannot be opened, or is none.
    """

    def __init__(
        self, path: str | Path, form: LogFormat = "json", *, max_bytes: int = MAX_BYTES_DEFAULT,
        backups: int = BACKUPS_DEFAULT, depth: int = KMSG_RECORDS_DEFAULT, wait: bool | None = None,
        fresh: bool = False,
    ) -> None:  # fmt: skip
        _check(form, max_bytes, backups, depth)
        self.path = Path(path)
        self._wait = wait
        self._waits = False
        self._patience_s = float(_PATIENCE_S)
        self._handler = _File(self.path, form, max_bytes, backups, fresh)
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._thread = _Listener(self._queue, self._handler)
        self._cancel: Callable[[], None] | None = None
        self._lost: tuple[Record, int] | None = None
        self._taken = self._dropped = 0

    def follow(self, kernel: Kernel) -> None:
        """Takes every record held and all that come; once, for one kernel."""
        if self._cancel is not None:
            raise UsageError(f"{self.path}: follows a kernel already")
        machine = kernel.machine
        if machine.clock == "real":
            self._handler.origin = Origin(time.time_ns() - kernel.now_ns, socket.gethostname() or "-")
        self._waits = machine.clock != "real" if self._wait is None else self._wait
        reader = kernel.kmsg.reader("oldest")

        def take() -> None:
            for record in reader:
                self.put(record)

        self._cancel = kernel.kmsg.subscribe(take)
        take()

    def put(self, record: Record) -> None:
        """Hands a record over.  Never raises, and waits only where a run's time stands still meanwhile."""
        if self._lost is not None:
            if not self._offer(_loss(*self._lost, "the file could not keep up")):
                self._drop(record)
                return
            self._lost = None
        if self._offer(record):
            self._taken += 1
        else:
            self._drop(record)

    def _offer(self, record: Record) -> bool:
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            if not self._waits or self._patience_s <= 0:
                return False
            began_s = time.monotonic()
            try:
                self._queue.put(record, timeout=self._patience_s)
            except queue.Full:
                return False
            finally:
                self._patience_s -= time.monotonic() - began_s
        return True

    def _drop(self, record: Record) -> None:
        self._dropped += 1
        first, count = self._lost or (record, 0)
        self._lost = (first, count + 1)

    def statistics(self) -> LogStatistics:
        """Counts so far."""
        handler = self._handler
        return LogStatistics(self._taken, handler.written, self._dropped, handler.failed, handler.problem)

    @property
    def complaint(self) -> str:
        """What did not get into the file, in one line; ``""`` if everything did.  Complete once it is closed."""
        lost, problem = self._dropped + self._handler.failed, self._handler.problem
        if not lost and not problem:
            return ""
        return f"log {self.path}: {lost} records are lost" + (f" ({problem})" if problem else "")

    def __enter__(self) -> LogFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Writes what is queued and closes the file; a file that hangs is left to itself after a few seconds."""
        if self._cancel is not None:
            self._cancel()
        self._waits, self._patience_s = True, float(_PATIENCE_S)
        if self._lost is not None and self._offer(_loss(*self._lost, "the file could not keep up")):
            self._lost = None
        if self._thread.end(_PATIENCE_S):
            self._handler.close()


def open_run_log(to: LogTo, kernel: Kernel) -> LogFile:
    """The file that a scenario asks for, begun anew and following the run's kernel; the caller closes it."""
    path = to.file.replace("{seed}", str(kernel.seed))
    log = LogFile(path, to.format, max_bytes=to.max_bytes, backups=to.backups, fresh=True)
    log.follow(kernel)
    return log


def _check(form: str, max_bytes: int, backups: int, depth: int) -> None:
    if form not in get_args(LogFormat):
        raise UsageError(f"log: format {form!r}, expected one of {', '.join(get_args(LogFormat))}")
    if max_bytes < MAX_BYTES_MIN:
        raise UsageError(f"log: max_bytes={max_bytes}, expected at least {MAX_BYTES_MIN}")
    if not 1 <= backups <= BACKUPS_MAX:
        raise UsageError(f"log: backups={backups}, expected 1 to {BACKUPS_MAX}")
    if depth < 2:
        raise UsageError(f"log: depth={depth}, expected at least 2")


def _loss(first: Record, count: int, why: str) -> Record:
    """A line in place of ``count`` records, the first of which it replaces."""
    text = f"{count} records lost: {why}"
    return Record(first.seq, first.time_ns, WARNING, 0, SOURCE, text, {"lost": count})


def _remove_backups(path: Path) -> None:
    """What an earlier run's log was rotated to is no part of this one's."""
    for number in range(1, BACKUPS_MAX + 1):
        try:
            path.with_name(f"{path.name}.{number}").unlink()
        except FileNotFoundError:
            return


def _private(path: str | Path, flags: int) -> int:
    """open(2) of a file that is not the world's to read, if it makes one."""
    return os.open(path, flags, 0o640)


class _File(logging.handlers.RotatingFileHandler):
    """The standard library's rotating file, fed with kmsg records; what it cannot write it counts, and tells later."""

    def __init__(self, path: Path, form: LogFormat, max_bytes: int, backups: int, fresh: bool) -> None:
        self.form: LogFormat = form
        self.origin = Origin()
        self.written = self.failed = 0
        self.problem = ""
        self._missing: tuple[Record, int] | None = None
        self._ok = True
        try:
            flags = os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
            number = _private(path, flags)  # a pipe without a reader is an error
            try:
                if not stat.S_ISREG(os.fstat(number).st_mode):
                    raise UsageError(f"log {path}: no regular file")
                if fresh:
                    os.ftruncate(number, 0)
                    _remove_backups(path)
            finally:
                os.close(number)
            super().__init__(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")
        except OSError as exc:
            raise UsageError(f"log {path}: {exc.strerror}", errno=exc.errno) from None

    def _open(self) -> TextIOWrapper:
        """The file, at first and after each rotation, with a mode of its own; called by the base class."""
        return open(self.baseFilename, "a", encoding="utf-8", opener=_private)

    def format(self, record: logging.LogRecord) -> str:
        """A line; called by the thread."""
        return format_line(record.kmsg, self.form, self.origin)  # type: ignore[attr-defined]

    def take(self, record: Record) -> None:
        """Writes a record, and before it what is known to be missing."""
        if self._missing is not None and self._write(_loss(*self._missing, self.problem)):
            self._missing = None
        if self._missing is None and self._write(record):
            self.written += 1
            return
        self.failed += 1
        first, count = self._missing or (record, 0)
        self._missing = (first, count + 1)

    def _write(self, record: Record) -> bool:
        self._ok = True
        self.handle(logging.makeLogRecord({"kmsg": record, "msg": ""}))
        return self._ok

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the base class's name
        """The file did not take a line."""
        self._ok = False
        error = sys.exc_info()[1]
        self.problem = getattr(error, "strerror", None) or type(error).__name__

    def close(self) -> None:
        """A file system that is full may refuse even this."""
        try:
            super().close()
        except OSError as exc:
            self.problem = exc.strerror or type(exc).__name__


class _Listener(logging.handlers.QueueListener):
    """The standard library's thread between queue and file."""

    def __init__(self, source: queue.Queue[Any], file: _File) -> None:
        super().__init__(source, file)
        self._file = file
        self.start()

    def handle(self, record: Any) -> None:
        """One record of the queue."""
        self._file.take(record)

    def end(self, timeout_s: float) -> bool:
        """Lets the thread finish what is queued; False if it has not after ``timeout_s``."""
        thread, self._thread = self._thread, None
        if thread is None:
            return True
        try:
            self.queue.put(self._sentinel, timeout=timeout_s)  # type: ignore[attr-defined]
        except queue.Full:
            return False
        thread.join(timeout_s)
        return not thread.is_alive()
