"""One client in the transmission phase: requests from its socket to the disk, replies back.

A round is: receive what is there, understand all of it, submit it as one batch, let the kernel act on it, send all
replies at once.  Where nothing has to wait, a round needs no switch of tasks.  What cannot be sent at once is left to
a second task; while too much of it waits, or too much is under way, nothing more is received.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

import trio

from uxk_nbd_server.answers import release
from uxk_nbd_server.checks import Terms
from uxk_nbd_server.disk import Disk
from uxk_nbd_server.memory import Purse
from uxk_nbd_server.sockets import Wire
from uxk_nbd_server.starting import Starting

if TYPE_CHECKING:
    from uxk_nbd_server.idle import Spinner

BATCH: Final = 128
"""Requests understood at a time."""
YIELD_NS: Final = 2_000_000
"""Other tasks get in at least so often."""
LINGER_S: Final = 10
"""A client that has said goodbye has so long to take the next of its replies."""


class Connection(Starting):
    """The transmission phase of one client."""

    def __init__(self, wire: Wire, disk: Disk, terms: Terms, purse: Purse, requests_max: int, spinner: Spinner) -> None:
        super().__init__(wire, disk, terms, purse, requests_max)
        self.on_shortage: Callable[[], Awaitable[None]] = trio.sleep_forever
        """Runs while it waits for memory."""
        self._spinner = spinner
        self._received_bytes = 0
        self._listening = False
        """Whether it waits for the client to say more."""
        self._reading = trio.CancelScope()

    @property
    def moved_bytes(self) -> int:
        """Received and sent: who does not move is stalled."""
        return self._received_bytes + self._outbox.sent_bytes

    @property
    def borrowed(self) -> int:
        """Slots that it holds of the common stock."""
        return self._purse.borrowed

    def mark(self) -> tuple[int, int] | None:
        """What has been received, or -1 if that is not what it waits for, and sent, likewise.

        None unless it holds memory that only its client can free.
        """
        if not self._purse.borrowed:
            return None
        received = self._received_bytes if self._listening and self._receiver.partial else -1
        sent = self._outbox.sent_bytes if self._outbox.waiting else -1
        return (received, sent) if received >= 0 or sent >= 0 else None

    def lags(self, mark: tuple[int, int], least_bytes: int) -> bool:
        """Whether it has waited for its client all the time since ``mark``, and no more than so much has gone.

        Each direction for itself: who sends and does not listen keeps what he should take.
        """
        now = self.mark()
        return now is not None and any(0 <= old <= new <= old + least_bytes for old, new in zip(mark, now, strict=True))

    # --- life ---

    async def serve(self, rest: bytes) -> None:
        """Until the client goes, or :meth:`stop`; ``rest`` is what came with the handshake's last option."""
        self._receiver.feed(rest)
        fd = self._wire.fileno()
        self._spinner.add(fd)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._outbox.write)
                try:
                    with self._reading:
                        await self._read()
                finally:
                    self._spinner.remove(fd)
                    self._read_no_more()
                await self._drain()
                nursery.cancel_scope.cancel()
        finally:
            self._lose("closed")
            slot, self._slot = self._slot, None
            if slot is not None:
                slot.release()
            self._purse.close()

    def _read_no_more(self) -> None:
        """Lets go of what was received and never begun."""
        self._listening = False
        self._purse.forget()
        self._receiver.close()
        for request in self._todo:
            release(request[5])
        self._todo.clear()

    def stop(self, reason: str) -> None:
        """Receives no more; what is under way is answered."""
        if not self.ended:
            self.ended = reason
        self._reading.cancel()

    def kill(self, reason: str) -> None:
        """Ends it at once."""
        self.stop(reason)
        self._lose(reason)
        self._wire.hang_up()

    async def _change(self) -> None:
        """Until something may have become possible."""
        self._awaited = trio.Event()
        try:
            await self._awaited.wait()
        finally:
            self._awaited = None

    async def _wait(self) -> None:
        """As :meth:`_change`, unless something was still to be pushed.

        If it is memory that is wanted, whoever holds some without need gives way.
        """
        if self._push() or self._memory_there:
            self._memory_there = False
            return
        if not self._purse.waits:
            await self._change()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.on_shortage)
            await self._change()
            nursery.cancel_scope.cancel()

    async def _drain(self) -> None:
        """Everything under way is answered, and the client takes it; or does not, for too long.

        A client that is lost keeps its place until the device has answered: coming back must not gain it another.
        """
        while self._busy:
            await self._change()
        while self._outbox.waiting and not self.lost:
            before = self.moved_bytes
            with trio.move_on_after(LINGER_S) as patience:
                while self._outbox.waiting and not self.lost and self.moved_bytes == before:
                    await self._change()
            if patience.cancelled_caught:
                break

    # --- receiving ---

    async def _read(self) -> None:
        """Rounds, until the end of the stream."""
        receiver, wire = self._receiver, self._wire
        yielded_ns = perf_counter_ns()
        while not self.ended and not self.lost:
            if perf_counter_ns() - yielded_ns > YIELD_NS:
                self._push()
                await trio.lowlevel.checkpoint()
                yielded_ns = perf_counter_ns()
            if not self._todo:
                self._todo.extend(receiver.requests(BATCH))
            if self._todo:
                if not self._round():
                    await self._wait()
                continue
            if receiver.broken:
                self.ended = receiver.broken
                break
            views = receiver.views()
            if not views:
                self._want_memory(receiver.short_of or 1)
                await self._wait()
                continue
            try:
                count = wire.receive(views)
            except BlockingIOError:
                if not self._push() and (self._busy or not self._spinner.look(wire.fileno())):
                    self._purse.forget()
                    self._listening = True
                    await trio.lowlevel.wait_readable(wire.fileno())
                    self._listening = False
                    yielded_ns = perf_counter_ns()
                continue
            except OSError as exc:
                self._lose(str(exc))
                break
            if not count:
                self.ended = "the client is gone in the middle of a request" if receiver.partial else "end of stream"
                break
            self._received_bytes += count
            receiver.received(count)
        self._push()

    def _lose(self, reason: str) -> None:
        self._outbox.lose(reason)

    def _on_loss(self) -> None:
        self._reading.cancel()
        self.disk.drop(self)
        self._outbox.flush()
        self.wake()
