"""The client's half of the transmission phase, without I/O: bytes become requests, payloads stay where they arrive.

The socket is read straight into a slot of the device's memory.  The payload of a short WRITE is used where it lies
between two headers; a long one gets slots of its own, into which the socket is read directly.  Nothing is allocated
by what a client claims beyond that.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from uxk_nbd_server.memory import SLOT_BYTES, Purse, Slot
from uxk_nbd_server.wire import REQUEST, REQUEST_MAGIC, REQUEST_MAX_BYTES, Cmd

IN_PLACE_MAX_BYTES: Final = 64 << 10
"""Longest payload for which the rest of a slot is waited for, or what has arrived is moved to another."""
WINDOW_BYTES: Final = 4096
"""Room for what follows a long payload: little, so that little of the next one must be moved."""
_LOW_BYTES: Final = 16 << 10
"""With less room a slot is left for a fresh one."""
_VIEWS_MAX: Final = 16
_HEADER: Final = REQUEST.size
_WRITE: Final = int(Cmd.WRITE)
_unpack = REQUEST.unpack_from


class Piece(NamedTuple):
    """A part of a payload: a slot that is held for it, and where in there."""

    slot: Slot
    start: int
    length: int


Incoming: TypeAlias = tuple[int, int, int, int, int, tuple[Piece, ...]]
"""Type, flags, cookie, offset, length, and the payload; who takes it releases each piece's slot in the end."""


class _Long:
    """A WRITE with a payload in slots of its own."""

    __slots__ = ("filled", "header", "length", "slots")

    def __init__(self, header: tuple[int, int, int, int], length: int) -> None:
        self.header = header
        self.length = length
        self.slots: list[Slot] = []
        self.filled = 0

    def rest(self) -> list[memoryview]:
        """Where the next bytes of it go; not all of it if it is very long."""
        index, inside = divmod(self.filled, SLOT_BYTES)
        views = []
        for number in range(index, min(len(self.slots), index + _VIEWS_MAX)):
            end = min(SLOT_BYTES, self.length - number * SLOT_BYTES)
            if inside < end:
                views.append(self.slots[number].view[inside:end])
            inside = 0
        return views

    def pieces(self) -> tuple[Piece, ...]:
        """All of it, in order."""
        return tuple(
            Piece(slot, 0, min(SLOT_BYTES, self.length - number * SLOT_BYTES)) for number, slot in enumerate(self.slots)
        )


class Receiver:
    """Requests from bytes.  Receive into :meth:`views`, say how much with :meth:`received`, take :meth:`requests`."""

    __slots__ = ("_begin", "_end", "_long", "_purse", "_slot", "broken", "short_of")

    def __init__(self, purse: Purse) -> None:
        self._purse = purse
        self._slot: Slot | None = None
        self._begin = self._end = 0
        """Bytes of the slot that are received and not yet understood."""
        self._long: _Long | None = None
        self.broken = ""
        """Why nothing that follows can be understood; empty as long as it can."""
        self.short_of = 0
        """Slots that :meth:`views` would have needed, when it had none to give."""

    @property
    def partial(self) -> bool:
        """Whether a request has begun and is not complete."""
        return self._long is not None or self._end > self._begin

    # --- receiving ---

    def views(self) -> list[memoryview]:
        """Where the next bytes belong; empty while there is no memory for them, or the stream is broken."""
        if self.broken:
            return []
        long = self._long
        if long is not None:
            if not long.slots and not self._place(long):
                return []
            views = long.rest()
            if long.filled + sum(map(len, views)) < long.length:
                return views
            slot = self._slot
            assert slot is not None
            if slot.references == 1:
                self._begin = self._end = 0
            window = slot.view[self._end : self._end + WINDOW_BYTES]
            return [*views, window] if len(window) else views
        slot = self._slot
        if slot is None:
            taken = self._take(1)
            if not taken:
                return []
            slot = self._slot = taken[0]
            self._begin = self._end = 0
        elif slot.references == 1 and self._begin:
            self._to_front(slot)
        elif SLOT_BYTES - self._end < _LOW_BYTES:
            fresh = self._take(1)
            if fresh:
                self._move(slot, fresh[0])
                slot = fresh[0]
            elif self._end == SLOT_BYTES:
                return []
        view = slot.view[self._end :]
        return [view] if len(view) else []

    def received(self, count: int) -> None:
        """So many bytes have come into the views, in order."""
        long = self._long
        if long is not None and long.slots:
            taken = min(count, long.length - long.filled)
            long.filled += taken
            count -= taken
        self._end += count

    def feed(self, data: bytes) -> int:
        """Takes bytes that were received elsewhere; returns how many there was room for."""
        taken = 0
        while taken < len(data) and (views := self.views()):
            for view in views:
                part = data[taken : taken + len(view)]
                view[: len(part)] = part
                self.received(len(part))
                taken += len(part)
        return taken

    # --- understanding ---

    def requests(self, most: int) -> list[Incoming]:
        """Complete requests, at most so many; what is left stays for the next call."""
        found: list[Incoming] = []
        long = self._long
        if long is not None:
            if long.filled < long.length:
                return found
            kind, flags, cookie, offset = long.header
            found.append((kind, flags, cookie, offset, long.length, long.pieces()))
            self._long = None
        slot, begin, end = self._slot, self._begin, self._end
        if slot is None or self.broken:
            return found
        view = slot.view
        while end - begin >= _HEADER and len(found) < most:
            magic, flags, kind, cookie, offset, length = _unpack(view, begin)
            if magic != REQUEST_MAGIC:
                self.broken = f"request with magic {magic:#x}"
                break
            if kind != _WRITE or not length:
                found.append((kind, flags, cookie, offset, length, ()))
                begin += _HEADER
                continue
            if length > REQUEST_MAX_BYTES:
                self.broken = f"payload of {length} bytes, at most {REQUEST_MAX_BYTES}"
                break
            if end - begin - _HEADER >= length:
                slot.references += 1
                found.append((kind, flags, cookie, offset, length, (Piece(slot, begin + _HEADER, length),)))
                begin += _HEADER + length
                continue
            if length > IN_PLACE_MAX_BYTES:
                self._long = _Long((kind, flags, cookie, offset), length)
                begin += _HEADER
            break
        self._begin = begin
        return found

    # --- memory ---

    def close(self) -> None:
        """Lets go of all that no request needs."""
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()
        long, self._long = self._long, None
        if long is not None:
            for each in long.slots:
                each.release()

    def _take(self, count: int) -> list[Slot]:
        taken = self._purse.take(count)
        self.short_of = 0 if taken is not None else count
        return taken or []

    def _to_front(self, slot: Slot) -> None:
        """Nobody else needs the slot: what is left in it goes to the front, if that is worth it."""
        begin, end = self._begin, self._end
        if begin == end:
            self._begin = self._end = 0
        elif end - begin <= begin and (SLOT_BYTES - end < IN_PLACE_MAX_BYTES + _HEADER):
            slot.view[: end - begin] = slot.view[begin:end]
            self._begin, self._end = 0, end - begin

    def _move(self, old: Slot, new: Slot) -> None:
        """What is left in the old slot goes to the front of the new one."""
        size = self._end - self._begin
        new.view[:size] = old.view[self._begin : self._end]
        self._slot, self._begin, self._end = new, 0, size
        old.release()

    def _place(self, long: _Long) -> bool:
        """Memory for a long payload, and what has arrived of it goes there; False if there is not enough now."""
        long.slots = self._take(-(-long.length // SLOT_BYTES))
        if not long.slots:
            return False
        assert self._slot is not None
        begin, end = self._begin, self._end
        for target in long.rest():
            size = min(len(target), end - begin)
            target[:size] = self._slot.view[begin : begin + size]
            begin += size
            long.filled += size
        self._begin = self._end = end
        return True
