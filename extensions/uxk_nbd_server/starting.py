"""How what was understood of a client begins at the device, as many as may, as few calls as can be."""

from __future__ import annotations

from collections import deque
from typing import Final

import uxk
from uxk.uapi.blk import IoFlag
from uxk_nbd_server.answers import Answers, release
from uxk_nbd_server.checks import Terms, refusal
from uxk_nbd_server.disk import Disk, Entry
from uxk_nbd_server.jobs import Job, ReadJob, StatusJob, flush_job, trim_job, write_job, zero_job
from uxk_nbd_server.memory import SLOT_BYTES, Purse, Slot
from uxk_nbd_server.outbox import BACKLOG_MAX, BACKLOG_MAX_BYTES
from uxk_nbd_server.receiver import Incoming, Receiver
from uxk_nbd_server.sockets import Wire
from uxk_nbd_server.wire import Cmd, CmdFlag, Err

ROUNDS_MAX: Final = 8
"""Rounds at a time that the kernel hears of together."""
STATUSES_MAX: Final = 4
"""Of one client's BLOCK_STATUS under way: their answers are in no pool."""
_ALIGN: Final = 4095
_NO_FLUSH: Final = frozenset({Cmd.READ, Cmd.CACHE, Cmd.FLUSH, Cmd.BLOCK_STATUS})
_READ: Final = int(uxk.Op.READ)
_WRITE: Final = int(uxk.Op.WRITE)
_WRITE_KIND: Final = int(Cmd.WRITE)


class Starting(Answers):
    """The half of a connection that acts."""

    def __init__(self, wire: Wire, disk: Disk, terms: Terms, purse: Purse, requests_max: int) -> None:
        super().__init__(wire, disk, terms)
        self.ended = ""
        """Why nothing is received any more."""
        self._memory_there = False
        """It came since it was last waited for."""
        self._short_of_room = False
        self._purse = purse
        self._requests_max = requests_max
        self._receiver = Receiver(purse)
        self._todo: deque[Incoming] = deque()
        self._rounds = 0
        """Since the kernel was last told."""
        self._slot: Slot | None = None
        self._filled = 0
        """Bytes of the slot that answers of READs are in."""
        limits = disk.limits
        self._fast_max_bytes = disk.piece_max_bytes
        self._emulates_fua = bool(limits.write_cache and not limits.fua)
        self._fua = int(IoFlag.FUA) if limits.fua else 0

    def _round(self) -> bool:
        """Starts what can be started of what was understood; False if something is in the way of all of it."""
        todo, started = self._todo, False
        while todo and not self.ended:
            if self._busy >= self._requests_max or self._is_full():
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

    def _is_full(self) -> bool:
        """Whether so much waits for the client that nothing more is to be said."""
        outbox = self._outbox
        return outbox.waiting >= BACKLOG_MAX or outbox.reply_bytes >= BACKLOG_MAX_BYTES

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
            release(pieces)
            self._refuse(kind, cookie, error)
            return True
        flush = bool(flags & CmdFlag.FUA) and self._emulates_fua and kind not in _NO_FLUSH
        if kind == Cmd.BLOCK_STATUS and self._statuses >= STATUSES_MAX:  # the next answer wakes it
            return False
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
                self._statuses += 1
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
        if slots is None and self._slot is not None and self._slot.references == 1:  # nothing is in it
            self._slot.release()
            self._slot = None
            slots = self._purse.take(count)
        if slots is None:
            self._want_memory(count)
        return slots

    def _want_memory(self, count: int) -> None:
        """Is told when there are so many slots, once."""
        if not self._purse.waits or self._purse.wanted != count:
            self._purse.when_free(count, self._memory_came)

    def _memory_came(self) -> None:
        self._memory_there = True
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
