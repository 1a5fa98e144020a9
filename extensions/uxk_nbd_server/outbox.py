"""What one client is to be sent: joined and sent at once if the socket takes it, by a task of its own if not.

Data of READs are sent from the memory that the device has put them in; their slots are let go of afterwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

import trio

from uxk_nbd_server.memory import Slot
from uxk_nbd_server.sockets import Wire

BACKLOG_MAX: Final = 256
"""Buffers that wait for the socket before nothing more is to be said."""
BACKLOG_MAX_BYTES: Final = 64 << 10
"""The same for bytes of replies, which are in no pool; the data of READs do not count."""
_SEND_BUFFERS: Final = 64


class Outbox:
    """Replies of one connection.  ``on_loss`` is called once, when nothing can be sent any more."""

    __slots__ = (
        "_backlog", "_on_change", "_on_loss", "_wire", "_writable", "buffers", "lost", "owners", "reply_bytes",
        "sent_bytes", "size_bytes",
    )  # fmt: skip

    def __init__(self, wire: Wire, on_change: Callable[[], None], on_loss: Callable[[], None]) -> None:
        self._wire = wire
        self._on_change = on_change
        self._on_loss = on_loss
        self.buffers: list[bytes | memoryview] = []
        """What is to be sent next: replies as bytes, data as views."""
        self.owners: list[Slot] = []
        """Slots of the views, in order."""
        self.size_bytes = 0
        """Of all buffers."""
        self.sent_bytes = 0
        self.lost = ""
        """Why nothing can be sent any more."""
        self.reply_bytes = 0
        """Of replies that the socket did not take yet, without data of READs."""
        self._backlog: deque[tuple[bytes | memoryview, Slot | None]] = deque()
        self._writable = trio.Event()

    @property
    def waiting(self) -> int:
        """Buffers that the socket did not take yet."""
        return len(self._backlog)

    def say(self, data: bytes) -> None:
        """A reply."""
        self.buffers.append(data)
        self.size_bytes += len(data)

    def show(self, slot: Slot, start: int, length: int) -> None:
        """Data of a READ."""
        self.buffers.append(slot.view[start : start + length])
        self.owners.append(slot)
        self.size_bytes += length

    def flush(self) -> None:
        """Sends as much as the socket takes; the rest is left to :meth:`write`."""
        buffers = self.buffers
        if not buffers:
            return
        owners, size = self.owners, self.size_bytes
        self.buffers, self.owners, self.size_bytes = [], [], 0
        sent = 0
        if not self._backlog and not self.lost:
            try:
                sent = self._wire.send(buffers)
            except BlockingIOError:
                pass
            except OSError as exc:
                self.lose(str(exc))
        if sent == size or self.lost:
            self.sent_bytes += sent
            for slot in owners:
                slot.release()
        else:
            slots = iter(owners)
            self._backlog.extend((each, next(slots) if type(each) is memoryview else None) for each in buffers)
            self.reply_bytes += sum(len(each) for each in buffers if type(each) is bytes)
            self._gone(sent)
            self._writable.set()

    async def write(self) -> None:
        """Sends the backlog as the socket takes it; runs until cancelled."""
        while True:
            await self._writable.wait()
            self._writable = trio.Event()
            while self._backlog and not self.lost:
                try:
                    self._gone(self._wire.send([buffer for buffer, _ in islice(self._backlog, _SEND_BUFFERS)]))
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._wire.fileno())
                except OSError as exc:
                    self.lose(str(exc))
                self._on_change()

    def lose(self, reason: str) -> None:
        """Nothing can be sent any more: whatever waits for it is let go of."""
        first = not self.lost
        self.lost = self.lost or reason
        backlog = self._backlog
        while backlog:
            slot = backlog.popleft()[1]
            if slot is not None:
                slot.release()
        self.reply_bytes = 0
        if first:
            self._on_loss()

    def _gone(self, sent: int) -> None:
        """So many bytes of the backlog have been sent."""
        backlog = self._backlog
        self.sent_bytes += sent
        while sent:
            buffer, slot = backlog.popleft()
            part = min(sent, len(buffer))
            sent -= part
            if slot is None:
                self.reply_bytes -= part
            if part < len(buffer):
                backlog.appendleft((memoryview(buffer)[part:], slot))
            elif slot is not None:
                slot.release()
