"""One client in the transmission phase: requests from its socket to the disk, replies back.

A round is: receive what is there, understand all of it, submit it as one batch, let the kernel act on it, send all
replies at once.  Where nothing has to wait, a round needs no switch of tasks.  What cannot be sent at once is left to
a second task; while too much of it waits, or too much is under way, nothing more is received.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

import trio

import uxk
from uxk.uapi.blk import IoFlag
from uxk_nbd_server.checks import Terms, refusal, wire_error
from uxk_nbd_server.disk import Disk, Entry
from uxk_nbd_server.jobs import (
    Job,
    ReadJob,
    StatusJob,
    flush_job,
    read_status,
    trim_job,
    write_job,
    zero_job,
)
from uxk_nbd_server.memory import SLOT_BYTES, Purse, Slot
from uxk_nbd_server.outbox import BACKLOG_MAX, Outbox
from uxk_nbd_server.receiver import Incoming, Piece, Receiver
from uxk_nbd_server.replies import data_header, done, error_chunk, simple, status_chunk
from uxk_nbd_server.sockets import Wire
from uxk_nbd_server.wire import CHUNK_DATA, CHUNK_DONE, CHUNK_MAGIC, SIMPLE, SIMPLE_MAGIC, Chunk, Cmd, CmdFlag, Err

if TYPE_CHECKING:
    from uxk_nbd_server.idle import Spinner

BATCH: Final = 128
"""Requests understood at a time."""
ROUNDS_MAX: Final = 8
"""Rounds at a time that the kernel hears of together."""
YIELD_NS: Final = 2_000_000
"""Other tasks get in at least so often."""
LINGER_S: Final = 10
"""A client that has said goodbye has so long to take the next of its replies."""
_ALIGN: Final = 4095
_NO_FLUSH: Final = frozenset({Cmd.READ, Cmd.CACHE, Cmd.FLUSH, Cmd.BLOCK_STATUS})
_READ: Final = int(uxk.Op.READ)
_WRITE: Final = int(uxk.Op.WRITE)
_WRITE_KIND: Final = int(Cmd.WRITE)
_pack_simple = SIMPLE.pack
_pack_data = CHUNK_DATA.pack


class Connection:
    """The transmission phase of one client."""

    def __init__(self, wire: Wire, disk: Disk, terms: Terms, purse: Purse, requests_max: int, spinner: Spinner) -> None:
        self.disk = disk
        self.served = 0
        self.ended = ""
        """Why nothing is received any more."""
        self.short_of_memory = False
        self.on_shortage: Callable[[], Awaitable[None]] = trio.sleep_forever
        """Runs while it waits for memory."""
        self._short_of_room = False
        self._wire = wire
        self._terms = terms
        self._purse = purse
        self._requests_max = requests_max
        self._spinner = spinner
        self._receiver = Receiver(purse)
        self._todo: deque[Incoming] = deque()
        self._received_bytes = 0
        self._rounds = 0
        """Since the kernel was last told."""
        self._busy = 0
        """Requests without an answer."""
        self._slot: Slot | None = None
        self._filled = 0
        """Bytes of the slot that answers of READs are in."""
        self._outbox = Outbox(wire, self.wake, self._on_loss)
        self._awaited: trio.Event | None = None
        self._reading = trio.CancelScope()
        limits = disk.limits
        self._fast_max_bytes = disk.piece_max_bytes
        self._emulates_fua = bool(limits.write_cache and not limits.fua)
        self._fua = int(IoFlag.FUA) if limits.fua else 0

    @property
    def lost(self) -> str:
        """Why nothing can be sent any more."""
        return self._outbox.lost

    @property
    def moved_bytes(self) -> int:
        """Received and sent: who does not move is stalled."""
        return self._received_bytes + self._outbox.sent_bytes

    @property
    def stalled_on_client(self) -> bool:
        """Whether it holds memory that only its client can free."""
        return self._purse.borrowed > 0 and (self._outbox.waiting > 0 or self._receiver.partial)

    # --- life ---

    async def serve(self, rest: bytes) -> None:
        """Until the client goes, or :meth:`stop`; ``rest`` is what came with the handshake's last option."""
        self._receiver.feed(rest)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._outbox.write)
                with self._reading:
                    await self._read()
                await self._drain()
                nursery.cancel_scope.cancel()
        finally:
            self._lose("closed")
            self._receiver.close()
            for request in self._todo:
                _release(request[5])
            self._todo.clear()
            slot, self._slot = self._slot, None
            if slot is not None:
                slot.release()
            self._purse.close()

    def stop(self, reason: str) -> None:
        """Receives no more; what is under way is answered."""
        if not self.ended:
            self.ended = reason
        self._reading.cancel()

    def kill(self, reason: str) -> None:
        """Ends it at once."""
        self.stop(reason)
        self._lose(reason)

    def wake(self) -> None:
        """What it waited for may be there."""
        if self._awaited is not None:
            self._awaited.set()

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
        if self._push():
            return
        if not self.short_of_memory:
            await self._change()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.on_shortage)
            await self._change()
            nursery.cancel_scope.cancel()

    async def _drain(self) -> None:
        """Everything under way is answered, and the client takes it; or does not, for too long."""
        while self._busy and not self.lost:
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
                self._want_memory()
                await self._wait()
                continue
            try:
                count = wire.receive(views)
            except BlockingIOError:
                if not self._push() and (self._busy or not self._spinner.look(wire.fileno())):
                    await trio.lowlevel.wait_readable(wire.fileno())
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

    def _round(self) -> bool:
        """Starts what can be started of what was understood; False if something is in the way of all of it."""
        todo, started = self._todo, False
        while todo and not self.ended:
            if self._busy >= self._requests_max or self._outbox.waiting >= BACKLOG_MAX:
                break
            count = self._start_plain()
            if not count:
                if not self._start_other(todo[0]):
                    break
                todo.popleft()
            started = True
        if started:
            self._rounds += 1
            if not self._receiver.partial or self._rounds >= ROUNDS_MAX:
                self._push()
        return started

    def _push(self) -> bool:
        """Lets the kernel act on what was started, and sends what has come of it; False if nothing was.

        Not after every round: when the next request has begun to arrive, it may go with those before.
        """
        if not self._rounds:
            return False
        self._rounds = 0
        self.disk.kick()
        self.flush()
        return True

    def _start_plain(self) -> int:
        """Begins plain READs and WRITEs of one request of the device's, as many as come first; returns how many.

        Here is where a client at speed spends its time: no calls that can be avoided.
        """
        todo, disk, terms = self._todo, self.disk, self._terms
        most = min(len(todo), self._requests_max - self._busy, disk.depth - disk.inflight)
        if not disk.alive or most <= 0:
            return 0
        mask, size_bytes, fast_max_bytes = terms.block_bytes - 1, terms.size_bytes, self._fast_max_bytes
        kinds = 0 if terms.read_only else _WRITE_KIND
        slot, filled = self._slot, self._filled
        entries: list[Entry] = []
        if slot is not None and slot.references == 1:
            filled = 0
        while len(entries) < most:
            kind, flags, cookie, offset, length, pieces = todo[0]
            if (
                flags or kind > kinds or offset + length > size_bytes or (offset | length) & mask
                or not 0 < length <= fast_max_bytes
            ):  # fmt: skip
                break
            if kind:
                written, start, _ = pieces[0]
                entries.append((self, _WRITE, cookie, written, start, length, offset, 0))
            else:
                if slot is None or filled + length > SLOT_BYTES:
                    slot, filled = self._fresh_slot(), 0
                    if slot is None:
                        break
                slot.references += 1
                entries.append((self, _READ, cookie, slot, filled, length, offset, 0))
                filled = filled + length + _ALIGN & ~_ALIGN
            todo.popleft()
        self._filled = filled
        if entries:
            self._busy += len(entries)
            disk.put_batch(entries)
        return len(entries)

    def _start_other(self, request: Incoming) -> bool:
        """Whatever it is; False if it must wait."""
        kind, flags, cookie, offset, length, pieces = request
        if self.disk.inflight >= self.disk.depth:
            if not self._short_of_room:
                self._short_of_room = True
                self.disk.when_room(self.room_came)
            return False
        if kind == Cmd.DISC:
            self.ended = "disconnected by the client"
            return True
        error = refusal(self._terms, kind, flags, offset, length)
        if not error and not self.disk.alive:
            error = int(Err.SHUTDOWN)
        if error or kind == Cmd.CACHE or not (length or kind == Cmd.FLUSH):
            _release(pieces)
            self._refuse(kind, cookie, error)
            return True
        flush = bool(flags & CmdFlag.FUA) and self._emulates_fua and kind not in _NO_FLUSH
        job = self._job(request, flush)
        if job is None:
            return False
        self._busy += 1
        self.disk.start(job)
        return True

    def _job(self, request: Incoming, flush: bool) -> Job | None:
        """What becomes of a valid request; None if there is no memory for it now."""
        kind, flags, cookie, offset, length, pieces = request
        fua = self._fua if flags & CmdFlag.FUA else 0
        match kind:
            case Cmd.READ:
                slots = self._take(-(-length // SLOT_BYTES))
                return ReadJob(self, cookie, offset, length, slots) if slots else None
            case Cmd.WRITE:
                return write_job(self, cookie, offset, pieces, fua, flush=flush)
            case Cmd.FLUSH:
                return flush_job(self, cookie)
            case Cmd.TRIM:
                return trim_job(self, cookie, offset, length, flush=flush)
            case Cmd.WRITE_ZEROES:
                return self._zeroes(request, fua, flush)
            case _:
                return StatusJob(self, cookie, offset, length, one=bool(flags & CmdFlag.REQ_ONE))

    def _zeroes(self, request: Incoming, fua: int, flush: bool) -> Job | None:
        """The device's own operation, or, where it has none, writes of one slot of zeros."""
        _, flags, cookie, offset, length, _ = request
        zeros = None
        if not self.disk.limits.max_write_zeroes_bytes:
            taken = self._take(1)
            if not taken:
                return None
            zeros = taken[0]
            size = min(length, self._fast_max_bytes)
            zeros.view[:size] = bytes(size)
        keep = bool(flags & CmdFlag.NO_HOLE)
        return zero_job(self, cookie, offset, length, zeros, keep=keep, flags=fua, flush=flush)

    def _take(self, count: int) -> list[Slot] | None:
        slots = self._purse.take(count)
        if slots is None:
            self._want_memory()
        return slots

    def _want_memory(self) -> None:
        """Is told when the common stock grows, once."""
        if not self.short_of_memory:
            self.short_of_memory = True
            self._purse.when_free(self._memory_came)

    def _memory_came(self) -> None:
        self.short_of_memory = False
        self.wake()

    def room_came(self) -> None:
        """The device takes more again."""
        self._short_of_room = False
        self.wake()

    def _fresh_slot(self) -> Slot | None:
        taken = self._take(1)
        if not taken:
            return None
        if self._slot is not None:
            self._slot.release()
        self._slot = taken[0]
        return taken[0]

    # --- answers ---

    def finished(self, done: Sequence[tuple[Entry, uxk.Completion]]) -> None:
        """READs and WRITEs of one request of the device's are done."""
        outbox, structured = self._outbox, self._terms.structured
        out, owners = outbox.buffers, outbox.owners
        size = 0
        self.disk.touched[self] = None
        self._busy -= len(done)
        self.served += len(done)
        for entry, completion in done:
            _, opcode, cookie, slot, start, length, offset, _ = entry
            assert slot is not None
            status = completion.status
            if opcode == _WRITE:
                slot.release()
                out.append(_pack_simple(SIMPLE_MAGIC, wire_error(status) if status else 0, cookie))
                size += SIMPLE.size
                continue
            if status or completion.result != length or completion.payload:
                status = read_status(entry, completion)
                if status:
                    slot.release()
                    self._say_error(cookie, wire_error(status))
                    continue
            if structured:
                out.append(_pack_data(CHUNK_MAGIC, CHUNK_DONE, Chunk.OFFSET_DATA, cookie, 8 + length, offset))
                size += CHUNK_DATA.size
            else:
                out.append(_pack_simple(SIMPLE_MAGIC, 0, cookie))
                size += SIMPLE.size
            out.append(slot.view[start : start + length])
            owners.append(slot)
            size += length
        outbox.size_bytes += size

    def answer(self, cookie: int, status: int) -> None:
        """Done, or not, and nothing more to say."""
        self.served += 1
        self._busy -= 1
        self._say(simple(cookie, wire_error(status)))

    def answer_read(self, cookie: int, status: int, offset: int, length: int, pieces: Sequence[Piece]) -> None:
        """The data of a READ, or an error; lets go of the pieces when they are sent."""
        self.served += 1
        self._busy -= 1
        if status:
            _release(pieces)
            self._say_error(cookie, wire_error(status))
            return
        self._say(data_header(cookie, offset, length) if self._terms.structured else simple(cookie))
        for slot, start, size in pieces:
            self._outbox.show(slot, start, size)

    def answer_status(self, cookie: int, status: int, extents: Sequence[tuple[int, int]]) -> None:
        """The extents that a BLOCK_STATUS asked for, or an error."""
        self.served += 1
        self._busy -= 1
        if status:
            self._say_error(cookie, wire_error(status))
        else:
            self._say(status_chunk(cookie, extents))

    def _refuse(self, kind: int, cookie: int, error: int) -> None:
        """Answers a request that the device never sees."""
        self.served += 1
        if kind not in (Cmd.READ, Cmd.BLOCK_STATUS):
            self._say(simple(cookie, error))
        elif error:
            self._say_error(cookie, error)
        else:
            self._say(done(cookie) if self._terms.structured else simple(cookie))

    def _say_error(self, cookie: int, error: int) -> None:
        self._say(error_chunk(cookie, error) if self._terms.structured else simple(cookie, error))

    def _say(self, data: bytes) -> None:
        self.disk.touched[self] = None
        self._outbox.say(data)

    def flush(self) -> None:
        """Sends what is to be said."""
        self._outbox.flush()
        if self._awaited is not None:
            self._awaited.set()

    def _lose(self, reason: str) -> None:
        self._outbox.lose(reason)

    def _on_loss(self) -> None:
        self._reading.cancel()
        self.wake()


def _release(pieces: Sequence[Piece]) -> None:
    for piece in pieces:
        piece.slot.release()
