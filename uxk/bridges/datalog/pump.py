"""Between a kernel and its log: a bounded queue, and a thread that writes.

The kernel never waits: what finds no room in the queue is dropped and counted, and the log says so.  A thread, not a
Trio task: the run loop of a deterministic kernel gets no wake-ups from the disk.
"""

from __future__ import annotations

from collections import deque
from threading import Condition, Thread
from typing import Final, NamedTuple

from uxk.bridges.datalog.format import Description
from uxk.bridges.datalog.writer import LogWriter, Publication

GATHER_S: Final = 0.02
"""How long a publication may wait for others that are written with it: what a killed process may lose."""
IDLE_S: Final = 1.0
"""How often the writer looks at the clock while nothing comes."""
_OVERHEAD_BYTES: Final = 256
"""Of a publication in the queue, beside its rows: so that empty ones have a bound, too."""
_DROPS_MAX: Final = 1024
"""Datasets whose dropped publications are told apart until the writer takes the count over."""


class Drops(NamedTuple):
    """Publications of one dataset that found no room."""

    description: Description
    time_ns: int
    batches: int
    rows: int


class Pump:
    """Feeds one writer; a context manager.  The writer belongs to the pump's thread until :meth:`close`."""

    def __init__(self, writer: LogWriter) -> None:
        self.writer = writer
        self.queued_bytes = self.dropped_batches = self.dropped_rows = 0
        self.error = ""
        """What ended the thread, if it was no disk's error: a defect."""
        self._room_bytes = writer.settings.queue_bytes
        self._queue: deque[Publication] = deque()
        self._drops: dict[str, Drops] = {}
        self._changed = Condition()
        self._closing = False
        self._thread = Thread(target=self._run, name="uxk datalog", daemon=True)
        self._thread.start()

    def offer(self, publication: Publication) -> bool:
        """Takes a publication, or drops it and returns False; never waits for the disk."""
        size = len(publication.rows) + _OVERHEAD_BYTES
        with self._changed:
            if self._closing or self.error or self.queued_bytes + size > self._room_bytes:
                self._drop(publication)
                return False
            self._queue.append(publication)
            self.queued_bytes += size
            if len(self._queue) == 1:
                self._changed.notify()
            return True

    def close(self) -> None:
        """Writes what waits, and closes the writer; may take as long as the disk does.  Twice is once."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self.writer.close()

    def __enter__(self) -> Pump:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop(self, publication: Publication) -> None:
        count, name = len(publication.rows) // publication.itemsize, publication.description.name
        self.dropped_batches += 1
        self.dropped_rows += count
        before = self._drops.get(name)
        if before is not None:
            self._drops[name] = before._replace(batches=before.batches + 1, rows=before.rows + count)
        elif len(self._drops) < _DROPS_MAX:
            self._drops[name] = Drops(publication.description, publication.time_ns, 1, count)

    # --- the thread ---

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as exc:
            self.error = f"{type(exc).__name__}: {exc}"

    def _turn(self) -> bool:
        """Writes what there is; returns whether there can be more."""
        with self._changed:
            if not self._queue and not self._closing:
                self._changed.wait(IDLE_S)
            if self._queue and not self._closing:
                self._changed.wait(GATHER_S)
            taken, self._queue = self._queue, deque()
            drops, self._drops = self._drops, {}
            closing = self._closing
        for each in drops.values():
            self.writer.lose(*each, why="queue")
        self.writer.write(taken)
        self.writer.tick()
        with self._changed:
            self.queued_bytes -= sum(len(each.rows) + _OVERHEAD_BYTES for each in taken)
        return not closing
