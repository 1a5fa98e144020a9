"""``/dev/kmsg``: the log as a file, one record a read (kernel/printk/printk.c: devkmsg_read, devkmsg_write)."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from uxk import limits
from uxk.core.kmsg import DEBUG, FACILITY_USER, Start, format_dev_kmsg
from uxk.core.ratelimit import RateLimit
from uxk.errors import TreeError, UsageError
from uxk.kernel.machine import Machine
from uxk.kernel.ownfile import OwnFile
from uxk.uapi.info import Record

if TYPE_CHECKING:
    from uxk.kernel.dispatcher import Dispatcher

PATH: Final = "/dev/kmsg"
RECORD_MAX_BYTES: Final = 64 << 10
"""Room for any record, with every byte of text and fields escaped."""
_LEVEL_DEFAULT: Final = 4
"""Linux: CONFIG_MESSAGE_LOGLEVEL_DEFAULT."""
_PREFIX: Final = re.compile(r"<(\d{1,4})>")


class KmsgFile(OwnFile):
    """An open ``/dev/kmsg``; begins at the oldest record held."""

    path = PATH

    def __init__(self, machine: Machine, dispatcher: Dispatcher, client: str) -> None:
        super().__init__(dispatcher)
        self._machine = machine
        self._client = client
        self._reader = machine.kmsg.reader("oldest")
        self._limit = RateLimit(limits.LOG_BURST_DEFAULT, limits.LOG_INTERVAL_NS_DEFAULT)

    @property
    def readable(self) -> bool:
        """Whether there is a record that was not read."""
        return self._reader.next_seq < self._machine.kmsg.next_seq

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Calls ``wake`` at the next record."""
        return self._machine.kmsg.subscribe(wake)

    def seek(self, start: Start) -> None:
        """Goes to a sequence number, to the ``"oldest"`` record, or past the last one (``"now"``)."""
        self.check_open()
        self._reader = self._machine.kmsg.reader(start)

    async def read(self, size_bytes: int = RECORD_MAX_BYTES, *, wait: bool = True) -> bytes:
        """The next record as a line, with its fields on lines of their own.

        Waits for one, or with ``wait=False`` raises EAGAIN.  EPIPE, once, if records were overwritten before
        they were read; EINVAL for one that ``size_bytes`` do not hold: it stays to be read.
        """
        self.check_open()
        await self.wait_readable(wait=wait)
        line = format_dev_kmsg(self._next()).encode()
        if len(line) > size_bytes:
            self._reader.next_seq -= 1
            raise UsageError(f"{PATH}: the record has {len(line)} bytes, room for {size_bytes}")
        return line

    def _next(self) -> Record:
        lost = self._reader.lost
        record = self._reader.read()
        if self._reader.lost > lost:
            self._reader.next_seq = self._machine.kmsg.first_seq
            raise TreeError(f"{PATH}: {self._reader.lost - lost} records were overwritten", errno=errno.EPIPE)
        assert record is not None  # it was readable, and every level is read
        return record

    async def write(self, data: bytes) -> int:
        """Logs a line, ``<N>text``: N is level and facility << 3, by default 4 (warning); never the kernel's.

        More than ``LOG_BURST_DEFAULT`` lines in five seconds are dropped without a word, as on Linux.
        """
        self.check_open()
        if len(data) > limits.KMSG_TEXT_MAX_BYTES:
            raise UsageError(f"{PATH}: {len(data)} bytes, at most {limits.KMSG_TEXT_MAX_BYTES}")
        self._machine.refresh()
        if not self._limit.allow(self._machine.now_ns):
            return len(data)
        text, level, facility = data.decode(errors="backslashreplace"), _LEVEL_DEFAULT, FACILITY_USER
        prefix = _PREFIX.match(text)
        if prefix is not None:
            number = int(prefix[1])
            text, level, facility = text[prefix.end() :], number & DEBUG, number >> 3 or FACILITY_USER
        self._machine.kmsg.log(self._machine.now_ns, level, self._client, text, facility=facility)
        return len(data)
