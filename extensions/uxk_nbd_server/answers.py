"""What a client is told: answers of the device, and of the server itself, as replies in its outbox."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import trio

import uxk
from uxk_nbd_server.checks import Terms, wire_error
from uxk_nbd_server.disk import Disk, Entry
from uxk_nbd_server.jobs import read_status
from uxk_nbd_server.outbox import Outbox
from uxk_nbd_server.receiver import Piece
from uxk_nbd_server.replies import data_header, done, error_chunk, simple, status_chunk
from uxk_nbd_server.sockets import Wire
from uxk_nbd_server.wire import CHUNK_DATA, CHUNK_DONE, CHUNK_MAGIC, SIMPLE, SIMPLE_MAGIC, Chunk, Cmd

_WRITE: Final = int(uxk.Op.WRITE)
_pack_simple = SIMPLE.pack
_pack_data = CHUNK_DATA.pack


class Answers(ABC):
    """The half of a connection that talks."""

    def __init__(self, wire: Wire, disk: Disk, terms: Terms) -> None:
        self.disk = disk
        self.served = 0
        self._wire = wire
        self._terms = terms
        self._busy = 0
        """Requests without an answer."""
        self._statuses = 0
        """Those of them whose answer's length nobody knows: BLOCK_STATUS."""
        self._awaited: trio.Event | None = None
        self._outbox = Outbox(wire, self.wake, self._on_loss)

    @property
    def lost(self) -> str:
        """Why nothing can be sent any more."""
        return self._outbox.lost

    def wake(self) -> None:
        """What it waited for may be there."""
        if self._awaited is not None:
            self._awaited.set()

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
            release(pieces)
            self._say_error(cookie, wire_error(status))
            return
        self._say(data_header(cookie, offset, length) if self._terms.structured else simple(cookie))
        for slot, start, size in pieces:
            self._outbox.show(slot, start, size)

    def answer_status(self, cookie: int, status: int, extents: Sequence[tuple[int, int]]) -> None:
        """The extents that a BLOCK_STATUS asked for, or an error."""
        self.served += 1
        self._busy -= 1
        self._statuses -= 1
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

    @abstractmethod
    def _on_loss(self) -> None:
        """Nothing can be sent any more."""


def release(pieces: Sequence[Piece]) -> None:
    """Lets go of a payload."""
    for piece in pieces:
        piece.slot.release()
