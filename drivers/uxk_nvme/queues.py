"""Queue pairs in arena memory: 64-byte commands, 16-byte completions, phase tags, doorbells (base, sections 3.3, 4.1).

:class:`HostQueue` is the driver's end, :class:`DeviceQueue` the controller's.  They share nothing but bytes: the two
rings and a page of doorbells, where queue ``q`` has its SQ tail at ``8 q`` and its CQ head at ``8 q + 4`` (CAP.DSTRD =
0, from register offset 1000h on).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, Protocol, TypeAlias

from uxk_nvme.spec import CQE, CQE_BYTES, SQE_BYTES, SQE_DWORDS, SQE_FAST, Refused, Status

DOORBELL: Final = struct.Struct("<I")
DOORBELL_BYTES: Final = 4096
_GLANCE: Final = 64
"""Completions that are looked at together."""
Fast: TypeAlias = tuple[int, ...]
"""A command as :data:`SQE_FAST` reads it."""


class Done(NamedTuple):
    """A completion that says more than success."""

    tag: int
    status: int
    dw0: int = 0


Item: TypeAlias = "int | Done"
"""A completion on its way: the tag alone means success with DW0 = 0."""


class ReplyQueue(Protocol):
    """Where a command came from and its completion goes to."""

    qid: int
    peers: Mapping[int, ReplyQueue] | None
    """The queues that an Abort command of this one may name; None: all of its controller."""

    def dwords(self, index: int) -> tuple[int, ...]:
        """All 16 dwords of the command at ``index`` in the present batch."""
        ...

    def post(self, items: Sequence[Item]) -> None:
        """Delivers completions."""

    def command_id(self, tag: int) -> int:
        """The host's command identifier."""
        ...

    def tag_of(self, command_id: int) -> int | None:
        """The tag of a command by its identifier."""


class Rings(NamedTuple):
    """The memory of one queue pair."""

    qid: int
    entries: int
    sq: memoryview
    cq: memoryview
    doorbells: memoryview


def ring_bytes(entries: int) -> int:
    """Bytes of a queue pair's two rings."""
    return entries * (SQE_BYTES + CQE_BYTES)


@lru_cache(maxsize=512)
def _successes(count: int) -> struct.Struct:
    """``count`` completions with DW0 = 0, packed at once."""
    return struct.Struct("<" + "8xQ" * count)


_TWO: Final = _successes(2)


@lru_cache(maxsize=512)
def _commands(count: int) -> struct.Struct:
    """``count`` commands of the five words that plain I/O needs."""
    return struct.Struct("<" + SQE_FAST.format.removeprefix("<") * count)


class HostQueue:
    """The driver's end: puts commands, rings, takes completions."""

    __slots__ = ("_cq", "_doorbells", "_head", "_phase", "_sq", "_tail", "entries", "qid")

    def __init__(self, rings: Rings) -> None:
        self._sq, self._cq, self._doorbells = rings.sq, rings.cq, rings.doorbells
        self.qid = rings.qid
        self.entries = rings.entries
        self._tail = 0
        self._head = 0
        self._phase = 1

    def put(self, flat: Sequence[int]) -> None:
        """Writes commands, five words each as :data:`SQE_FAST` has them.  The caller knows that there is room."""
        sq, tail = self._sq, self._tail
        if len(flat) == 5:
            SQE_FAST.pack_into(sq, tail * SQE_BYTES, *flat)
            self._tail = (tail + 1) % self.entries
            return
        count = len(flat) // 5
        first = min(count, self.entries - tail)
        _commands(first).pack_into(sq, tail * SQE_BYTES, *flat[: 5 * first])
        if first < count:
            _commands(count - first).pack_into(sq, 0, *flat[5 * first :])
        self._tail = (tail + count) % self.entries

    def put_dwords(self, dwords: Sequence[int]) -> None:
        """Writes one command, all of it."""
        SQE_DWORDS.pack_into(self._sq, self._tail * SQE_BYTES, *dwords)
        self._tail = (self._tail + 1) % self.entries

    def ring(self) -> None:
        """Writes the submission doorbell.  The controller has to be told as well: memory here raises no event."""
        DOORBELL.pack_into(self._doorbells, 8 * self.qid, self._tail)

    def reap(self) -> list[tuple[int, int]]:
        """New completions as their two quadwords; frees their places by the head doorbell."""
        cq, entries = self._cq, self.entries
        taken: list[tuple[int, int]] = []
        self._head += self._collect(cq[self._head * CQE_BYTES :], taken)
        if self._head == entries:  # the ring goes on at its beginning, with the other phase
            self._phase ^= 1
            self._head = self._collect(cq, taken)
        if taken:
            DOORBELL.pack_into(self._doorbells, 8 * self.qid + 4, self._head)
        return taken

    def reap_plain(self, expected: int) -> tuple[list[int], bool]:
        """Identifiers of the next completions that say success, up to ``expected``; and whether more may be there.

        Those that say more, or are mixed with such, are left to :meth:`reap`.
        """
        head, good = self._head, self._phase
        count = min(expected, self.entries - head, _GLANCE)
        if count > 1:
            words = _TWO.unpack_from(self._cq, head * CQE_BYTES)
            if words[0] >> 48 == good != words[1] >> 48 & 1:  # one alone, as when each ends at a time of its own
                self._head = head + 1
                DOORBELL.pack_into(self._doorbells, 8 * self.qid + 4, head + 1)
                return [words[0] >> 32 & 0xFFFF], False
        words = _successes(count).unpack_from(self._cq, head * CQE_BYTES)
        plain = [word >> 32 & 0xFFFF for word in words if word >> 48 == good]
        taken = len(plain)
        # Those that have come lie in front.  If one of them is not plain, the word behind as many as are is new, too.
        if not taken or (taken < len(words) and words[taken] >> 48 & 1 == good):
            return [], True
        more = taken == count and taken < expected
        self._head = head = head + taken
        if head == self.entries:
            self._head, self._phase = 0, good ^ 1
        DOORBELL.pack_into(self._doorbells, 8 * self.qid + 4, self._head)
        return plain, more

    def _collect(self, part: memoryview, taken: list[tuple[int, int]]) -> int:
        phase, before = self._phase, len(taken)
        for words in CQE.iter_unpack(part):
            if words[1] >> 48 & 1 != phase:
                break
            taken.append(words)
        return len(taken) - before


class DeviceQueue:
    """The controller's end: fetches commands, posts completions, interrupts once for each batch of them."""

    __slots__ = (
        "_batch", "_cq", "_cq_tail", "_doorbells", "_interrupt", "_phase", "_sq", "_sq_head", "entries", "overflow",
        "peers", "qid",
    )  # fmt: skip

    def __init__(self, rings: Rings, interrupt: Callable[[int], object]) -> None:
        self._sq, self._cq, self._doorbells = rings.sq, rings.cq, rings.doorbells
        self._interrupt = interrupt
        self.qid = rings.qid
        self.peers: Mapping[int, ReplyQueue] | None = None
        self.entries = rings.entries
        self._sq_head = 0
        self._cq_tail = 0
        self._phase = 1
        self._batch = 0
        self.overflow: deque[Item] = deque()
        """Completions that wait for room: the host has not moved its head."""

    def fetch(self) -> list[Fast]:
        """The commands up to the doorbell.  Refused: a doorbell beyond the queue (base, section 3.1.3.24)."""
        entries, sq, head = self.entries, self._sq, self._sq_head
        tail = DOORBELL.unpack_from(self._doorbells, 8 * self.qid)[0]
        if tail >= entries:
            raise Refused(Status.INVALID_FIELD)
        self._batch, self._sq_head = head, tail
        if tail == head + 1:
            return [SQE_FAST.unpack_from(sq, head * SQE_BYTES)]
        if tail >= head:
            return list(SQE_FAST.iter_unpack(sq[head * SQE_BYTES : tail * SQE_BYTES]))
        return [
            *SQE_FAST.iter_unpack(sq[head * SQE_BYTES : entries * SQE_BYTES]),
            *SQE_FAST.iter_unpack(sq[: tail * SQE_BYTES]),
        ]

    def dwords(self, index: int) -> tuple[int, ...]:
        """All 16 dwords of a command of the batch that was fetched last."""
        return SQE_DWORDS.unpack_from(self._sq, (self._batch + index) % self.entries * SQE_BYTES)

    def command_id(self, tag: int) -> int:
        """Tags are command identifiers here."""
        return tag

    def tag_of(self, command_id: int) -> int | None:
        """Tags are command identifiers here."""
        return command_id

    def post(self, items: Sequence[Item]) -> None:
        """Writes completions and interrupts; what finds no room waits for :meth:`head_moved`."""
        if self.overflow:
            self.overflow.extend(items)
            return
        tail, entries = self._cq_tail, self.entries
        room = (DOORBELL.unpack_from(self._doorbells, 8 * self.qid + 4)[0] - tail - 1) % entries
        if len(items) == 1 and room and tail + 1 < entries and isinstance(item := items[0], int):
            # One alone that fits, as when each command ends at a time of its own.
            words = self._sq_head | self.qid << 16 | self._phase << 48 | item << 32
            CQE.pack_into(self._cq, tail * CQE_BYTES, 0, words)
            self._cq_tail = tail + 1
            self._interrupt(self.qid)
            return
        if len(items) > room:
            self.overflow.extend(items[room:])
            items = items[:room]
        first = entries - tail
        if len(items) < first:
            self._write(items)
        else:
            self._write(items[:first])
            self._cq_tail, self._phase = 0, self._phase ^ 1
            self._write(items[first:])
        if items:
            self._interrupt(self.qid)

    def head_moved(self) -> None:
        """The host rang the completion doorbell: there may be room for what waits."""
        if self.overflow:
            items = list(self.overflow)
            self.overflow.clear()
            self.post(items)

    def _write(self, items: Sequence[Item]) -> None:
        if not items:
            return
        base = self._sq_head | self.qid << 16 | self._phase << 48
        cq, at = self._cq, self._cq_tail * CQE_BYTES
        self._cq_tail += len(items)
        plain = [base | item << 32 for item in items if type(item) is int]
        if len(plain) == len(items):
            _successes(len(plain)).pack_into(cq, at, *plain)
            return
        for item in items:
            done = Done(item, 0) if isinstance(item, int) else item
            CQE.pack_into(cq, at, done.dw0, base | done.tag << 32 | done.status << 49)
            at += CQE_BYTES
