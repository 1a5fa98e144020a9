"""``/dev/kmsg`` as a file that grows.

FUSE cannot show a char device that it serves itself, only a regular file, and of a regular file every tool expects a
size and an end.  So this one has the size of the log so far, and reads give as much as was asked for, not one record:
``cat``, ``tail``, ``grep -r`` and ``tar`` come to an end, and ``tail -f`` sees it grow.  Opened with O_DIRECT, it is
read as Linux has it, a record at a time and EAGAIN at the end; pipe(2) calls that packet mode.
"""

from __future__ import annotations

import errno
import time
from bisect import bisect_right
from typing import Final

import trio

from uxk.bridges.face.api import POLLIN, Face, FaceFile
from uxk.errors import TreeError

PATH: Final = "/dev/kmsg"
KEPT_MAX_BYTES: Final = 8 << 20
"""Text kept, the newest: more than ``KMSG_RECORDS_DEFAULT`` lines of usual length."""
DRAIN_MAX: Final = 16384
"""Records taken at a time: one that logs faster than we read keeps nobody waiting for the end."""


class KmsgLog:
    """The log as it was read by this mount, with a place for each byte; one for all who open it."""

    def __init__(self, face: Face, nursery: trio.Nursery) -> None:
        self._face = face
        self._nursery = nursery
        self._file: FaceFile | None = None
        self._busy = trio.Lock()
        self._records: list[bytes] = []
        self._places: list[int] = []
        self.start = 0
        """Place of the first byte kept: what was before it has been dropped."""
        self.end = 0
        self.mtime_ns = 0
        """When the end last moved, or 0."""
        self._grown = trio.Event()
        self._pumping = False
        self._failure: TreeError | None = None

    async def refresh(self) -> None:
        """Takes what the log has got since; what was overwritten before that is a gap in the sequence numbers."""
        async with self._busy:
            file = await self._opened()
            for _ in range(DRAIN_MAX):
                try:
                    self._append(await file.read(wait=False))
                except TreeError as exc:
                    if exc.errno == errno.EPIPE:
                        continue
                    if exc.errno == errno.EAGAIN:
                        return
                    raise

    async def wait(self, place: int) -> None:
        """Returns when there is something at ``place``.  From then on the log is read as it grows."""
        await self.refresh()
        if not self._pumping:
            self._pumping = True
            self._nursery.start_soon(self._pump, name="fuse kmsg")
        while self.end <= place:
            if self._failure is not None:
                raise self._failure
            await self._grown.wait()

    def read(self, place: int, size_bytes: int) -> bytes:
        """What is kept from ``place`` on, cut to size; nothing at the end."""
        if not self.start <= place < self.end:
            return b""
        index = bisect_right(self._places, place) - 1
        skipped = place - self._places[index]
        parts, wanted = [], skipped + size_bytes
        while wanted > 0 and index < len(self._records):
            parts.append(self._records[index])
            wanted -= len(self._records[index])
            index += 1
        return b"".join(parts)[skipped : skipped + size_bytes]

    def record(self, place: int, size_bytes: int) -> bytes:
        """The record at ``place``, or what is left of it, cut to size; nothing at the end."""
        if not self.start <= place < self.end:
            return b""
        index = bisect_right(self._places, place) - 1
        return self._records[index][place - self._places[index] :][:size_bytes]

    async def aclose(self) -> None:
        """Closes the log's file."""
        if self._file is not None:
            await self._file.aclose()

    async def _pump(self) -> None:
        try:
            file = await self._opened()
            while True:
                await file.poll(POLLIN)
                await self.refresh()
        except TreeError as exc:
            self._failure = exc
            self._tell()

    def _tell(self) -> None:
        grown, self._grown = self._grown, trio.Event()
        grown.set()

    async def _opened(self) -> FaceFile:
        if self._file is None:
            self._file = await self._face.open(PATH, "r")
        return self._file

    def _append(self, record: bytes) -> None:
        self._records.append(record)
        self._places.append(self.end)
        self.end += len(record)
        self.mtime_ns = time.time_ns()
        self._tell()
        if self.end - self.start > KEPT_MAX_BYTES:  # a half at a time, since a list shifts what stays
            half = bisect_right(self._places, self.end - KEPT_MAX_BYTES // 2)
            del self._records[:half], self._places[:half]
            self.start = self._places[0] if self._places else self.end
