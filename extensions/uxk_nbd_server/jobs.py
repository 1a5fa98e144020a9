"""Requests that take more than one of the device's, or another answer than data or a plain yes."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import uxk
from uxk.uapi.blk import IoFlag, unpack_extents
from uxk_nbd_server.disk import Disk, Entry, pieces_of
from uxk_nbd_server.memory import SLOT_BYTES, Slot
from uxk_nbd_server.receiver import Piece
from uxk_nbd_server.replies import extents_for

if TYPE_CHECKING:
    from uxk_nbd_server.starting import Starting

_DISCARD: Final = int(uxk.Op.DISCARD)
_FLUSH: Final = int(uxk.Op.FLUSH)
_READ: Final = int(uxk.Op.READ)
_WRITE: Final = int(uxk.Op.WRITE)
_WRITE_ZEROES: Final = int(uxk.Op.WRITE_ZEROES)
_EXTENTS: Final = int(uxk.Op.EXTENTS)
_U32_MAX: Final = (1 << 32) - 1

Step = tuple[int, Slot | None, int, int, int, int]
"""Opcode, slot, where in there, length, offset, flags."""


class Job:
    """A client's request, done in steps; what is wrong with one ends it.

    Subclasses say how it is answered.  The slots of its data are let go of when it is done, unless they are part of
    the answer.
    """

    def __init__(
        self, connection: Starting, cookie: int, steps: Iterable[Step], *, slots: Sequence[Slot] = (),
        flush: bool = False,
    ) -> None:  # fmt: skip
        self.connection = connection
        self._disk: Disk = connection.disk
        self.cookie = cookie
        self._steps: Iterator[Step] = iter(steps)
        self._exhausted = False
        self._left = 0
        self._flush = flush
        """Whether a FLUSH follows, because the device does not know FUA."""
        self._slots = slots
        self.status = 0

    def next_entry(self) -> Entry | None:
        """The next step as an entry, or None if there is none now."""
        if not self._exhausted:
            if self.connection.lost:  # whoever asked is gone
                self.status = self.status or errno.ESHUTDOWN
            step = None if self.status else next(self._steps, None)
            if step is not None:
                self._left += 1
                opcode, slot, start, length, offset, flags = step
                return self, opcode, self.cookie, slot, start, length, offset, flags
            self._exhausted = True
            if not self._left:
                self._end()
        return None

    def finished(self, done: Sequence[tuple[Entry, uxk.Completion]]) -> None:
        """Some steps are done."""
        self._disk.job_inflight -= len(done)
        self._left -= len(done)
        for entry, completion in done:
            status = self.take(entry, completion)
            if status and not self.status:
                self.status = status
        if self._exhausted and not self._left:
            self._end()

    def _end(self) -> None:
        if self._flush and not self.status and not self.connection.lost:
            self._flush = False
            self._exhausted = False
            self._steps = iter([(_FLUSH, None, 0, 0, 0, 0)])
            self._disk.start(self)
            return
        self.answer()

    def take(self, entry: Entry, completion: uxk.Completion) -> int:
        """What one completion brings; its errno."""
        return completion.status

    def answer(self) -> None:
        """Tells the client."""
        self.connection.answer(self.cookie, self.status)
        for slot in self._slots:
            slot.release()


class ReadJob(Job):
    """A READ longer than the device's requests, or than a slot."""

    def __init__(self, connection: Starting, cookie: int, offset: int, length: int, slots: list[Slot]) -> None:
        self._offset = offset
        self._length = length
        self._read_slots = slots
        most = connection.disk.piece_max_bytes
        super().__init__(connection, cookie, _steps(_READ, whole_slots(slots, length), offset, most, 0))

    def take(self, entry: Entry, completion: uxk.Completion) -> int:
        """Its data are in the slot, or come with the completion."""
        return read_status(entry, completion)

    def answer(self) -> None:
        """The data, or an error in their place."""
        pieces = whole_slots(self._read_slots, self._length)
        self.connection.answer_read(self.cookie, self.status, self._offset, self._length, pieces)


class StatusJob(Job):
    """A BLOCK_STATUS."""

    def __init__(self, connection: Starting, cookie: int, offset: int, length: int, *, one: bool) -> None:
        self._length = length
        self._one = one
        self._payload = b""
        super().__init__(connection, cookie, [(_EXTENTS, None, 0, length, offset, 0)])

    def take(self, entry: Entry, completion: uxk.Completion) -> int:
        """A device that has no idea of its extents is all data."""
        if completion.status in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return 0
        self._payload = completion.payload
        return completion.status

    def answer(self) -> None:
        """Extents, or an error in their place."""
        extents: list[tuple[int, int]] = []
        if not self.status:
            whole = len(self._payload) - len(self._payload) % 12
            found = unpack_extents(self._payload[:whole])
            extents = extents_for(found, self._length, one=self._one)
        self.connection.answer_status(self.cookie, self.status, extents)


def write_job(
    connection: Starting, cookie: int, offset: int, pieces: Sequence[Piece], flags: int, *, flush: bool
) -> Job:  # fmt: skip
    """A WRITE longer than the device's requests, or with a FLUSH behind it."""
    steps = _steps(_WRITE, pieces, offset, connection.disk.piece_max_bytes, flags)
    return Job(connection, cookie, steps, slots=[piece.slot for piece in pieces], flush=flush)


def flush_job(connection: Starting, cookie: int) -> Job:
    """A FLUSH."""
    return Job(connection, cookie, [(_FLUSH, None, 0, 0, 0, 0)])


def trim_job(connection: Starting, cookie: int, offset: int, length: int, *, flush: bool) -> Job:
    """A TRIM, in the device's portions."""
    limits = connection.disk.limits
    most = _portion(limits.max_discard_bytes, limits.logical_block_bytes)
    parts = pieces_of(offset, length, most)
    return Job(connection, cookie, ((_DISCARD, None, 0, size, start, 0) for start, size in parts), flush=flush)


def zero_job(
    connection: Starting, cookie: int, offset: int, length: int, zeros: Slot | None, *, keep: bool, flags: int,
    flush: bool,
) -> Job:  # fmt: skip
    """A WRITE_ZEROES: the device's own, or writes of ``zeros``, a slot full of them."""
    limits = connection.disk.limits
    if zeros is None:
        most = _portion(limits.max_write_zeroes_bytes, limits.logical_block_bytes)
        flags |= int(IoFlag.NOUNMAP) if keep else 0
        parts = pieces_of(offset, length, most)
        steps = ((_WRITE_ZEROES, None, 0, size, start, flags) for start, size in parts)
        return Job(connection, cookie, steps, flush=flush)
    parts = pieces_of(offset, length, connection.disk.piece_max_bytes)
    writes = ((_WRITE, zeros, 0, size, start, flags) for start, size in parts)
    return Job(connection, cookie, writes, slots=[zeros], flush=flush)


def read_status(entry: Entry, completion: uxk.Completion) -> int:
    """The errno of a READ; data that came with the completion go to where they are wanted."""
    if completion.status:
        return completion.status
    _, _, _, slot, start, length, _, _ = entry
    payload = completion.payload
    if payload:
        if len(payload) != length or slot is None:
            return errno.EIO
        slot.view[start : start + length] = payload
        return 0
    return 0 if completion.result == length else errno.EIO


def whole_slots(slots: Sequence[Slot], length: int) -> list[Piece]:
    """Pieces that fill slots one after the other."""
    return [Piece(slot, 0, min(SLOT_BYTES, length - index * SLOT_BYTES)) for index, slot in enumerate(slots)]


def _steps(opcode: int, pieces: Iterable[Piece], offset: int, most: int, flags: int) -> Iterator[Step]:
    """Data in pieces of memory as requests of at most ``most`` bytes."""
    for slot, start, length in pieces:
        for inside, size in pieces_of(start, length, most):
            yield opcode, slot, inside, size, offset, flags
            offset += size


def _portion(most: int, block: int) -> int:
    """The longest range of one request: whole blocks, and in 32 bits."""
    most = min(most, _U32_MAX)
    return max(block, most - most % block)
