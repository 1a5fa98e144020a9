"""The way into a disk's queue: clients' requests become the driver's (Linux: block/blk-mq.c, blk_mq_submit_bio)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from uxk.subsystems.blk import trace as t
from uxk.subsystems.blk.checks import known, length_of, refusal
from uxk.subsystems.blk.merge import FRONT, join, longest, side_of
from uxk.subsystems.blk.request import DISCARD, EXTENTS, FLUSH, FUA, PREFLUSH, READ, WRITE, ZEROES, Bio, Rq
from uxk.uapi.entries import Request

if TYPE_CHECKING:
    from uxk.subsystems.blk.disk import Disk
    from uxk.subsystems.blk.port import DiskPort

_CID_BASE: Final = 1 << 62
"""Command ids of the queue's own: the driver's never come near."""
_SPLITS: Final = frozenset({READ, WRITE, DISCARD, ZEROES})


class Work:
    """What is left to do of a client's request."""

    __slots__ = ("at", "bio", "end")

    def __init__(self, bio: Bio, at: int, end: int) -> None:
        self.bio = bio
        self.at = at
        self.end = end


class Intake:
    """Checks clients' requests, joins them to what waits, or cuts them into pieces with a tag each."""

    __slots__ = ("_cid", "_disk", "_numbers", "_plug", "waiting")

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.waiting: deque[Work] = deque()
        """What finds no tag, in order."""
        self._plug: list[Rq] | None = None
        self._numbers = 0
        self._cid = _CID_BASE

    def accept(self, port: DiskPort, requests: Sequence[Request]) -> None:
        """Takes requests in, as one plug."""
        self._plug = [] if len(requests) > 1 else None
        for request in requests:
            self._accept(port, request)
        plug, self._plug = self._plug, None
        if plug:
            self._unplug(plug)

    def _accept(self, port: DiskPort, request: Request) -> None:
        disk = self._disk
        self._cid = request.cid = self._cid + 1
        if port.tagged:
            request.port = port.id
        length, op = length_of(request), request.opcode
        bio = Bio(port, request.cid, request, length)
        if known(op):
            limits = disk.limits
            bio.status = refusal(request, length, limits)
            if bio.status:
                disk.answers.add(bio)
                return
            if op == READ or not limits.cache:
                bio.flags &= ~PREFLUSH if op == READ else ~(PREFLUSH | FUA)
            if not length and not (limits.cache and (op == FLUSH or bio.flags & PREFLUSH)):
                disk.answers.add(bio)  # nothing to do
                return
            if disk.trace.on and op != EXTENTS:
                disk.trace.of_bio(disk.machine.now_ns, t.QUEUE, bio, 0, length)
        work = Work(bio, 0, length)
        if self.waiting or disk.switching is not None or not self._carve(work):
            if disk.trace.on:
                disk.trace.of_bio(disk.machine.now_ns, t.SLEEPRQ, bio, work.at, length - work.at)
            self.waiting.append(work)

    def advance(self) -> None:
        """Tags for who waits, as long as there are any."""
        waiting = self.waiting
        while waiting and self._carve(waiting[0]):
            waiting.popleft()

    def put_back(self, rq: Rq) -> None:
        """A request that has lost its tag is carved anew, before all others."""
        bio, at, count = rq.segments[0]
        self.waiting.appendleft(Work(bio, at, at + count))

    def _carve(self, work: Work) -> bool:
        """Turns a client's request into requests for the driver; False if there is no tag for all of it yet."""
        disk, bio = self._disk, work.bio
        limits = disk.limits
        op = WRITE if bio.op == ZEROES and not limits.zeroes_bytes else bio.op
        while True:
            at, rest = work.at, work.end - work.at
            count = rest
            if op in _SPLITS:
                most = limits.zeroes_bytes if op == ZEROES else longest(op, bio.request.region, limits)
                if op != bio.op:  # zeroes are written from inside the entry
                    most = limits.inline_bytes
                count = min(rest, max(most, limits.block_mask + 1))
            if not (rest and op == bio.op and self._merge(bio, at, count)):
                if disk.tags_used >= disk.nr_requests:
                    return False
                self._enter(self._begin(bio, op, at, count))
            work.at = at + count
            if work.at >= work.end:
                return True
            if disk.trace.on:
                disk.trace.of_bio(disk.machine.now_ns, t.SPLIT, bio, at, rest, number=(bio.offset + work.at) >> 9)

    def _merge(self, bio: Bio, at: int, count: int) -> bool:
        """Joins a piece to one that waits: the newest of the plug, or any that the scheduler finds."""
        disk = self._disk
        limits = disk.limits
        if limits.nomerges > 1:
            return False
        found, plug = None, self._plug
        if plug:
            side = side_of(plug[-1], bio, at, count, limits)
            found = None if side is None else (plug[-1], side)
        plugged = found is not None
        if found is None and not limits.nomerges:
            found = disk.scheduler.merge(bio, at, count)
        if found is None:
            return False
        rq, side = found
        before = (rq.offset, rq.length)
        join(rq, bio, at, count, side)
        now_ns = disk.machine.now_ns
        if rq.counted:
            disk.stats.merged(rq.group, now_ns)
        if disk.trace.on:
            disk.trace.of_bio(now_ns, t.FRONTMERGE if side is FRONT else t.BACKMERGE, bio, at, count)
        absorbed = None if plugged else disk.scheduler.joined(rq, before, side)
        if absorbed is not None:
            disk.tags_used -= 1
            if absorbed.counted:
                disk.stats.absorbed(absorbed.group, now_ns)
        return True

    def take(self, bio: Bio, op: int, at: int, count: int) -> Rq:
        """A request about a part of a client's; it has no tag yet."""
        self._numbers += 1
        port, request = bio.port, bio.request
        rq = Rq(op, bio.offset + at, count, bio.flags, port.cpu, self._numbers)
        rq.segments.append((bio, at, count))
        rq.prio = port.prio
        rq.hctx = self._disk.shape.hctx_of(port.cpu)
        if request.region and op == bio.op:
            rq.region, rq.buffer = request.region, request.buffer + at
        return rq

    def flush(self) -> Rq:
        """A flush of the queue's own."""
        self._numbers += 1
        return Rq(FLUSH, 0, 0, PREFLUSH, 0, self._numbers)

    def _begin(self, bio: Bio, op: int, at: int, count: int) -> Rq:
        """A request with a tag."""
        disk = self._disk
        rq = self.take(bio, op, at, count)
        rq.started_ns = now_ns = disk.machine.now_ns
        rq.opaque = op == EXTENTS or not known(op)
        rq.counted = disk.limits.iostats and not rq.opaque
        disk.tags_used += 1
        if rq.counted:
            disk.stats.begin(rq.group, now_ns)
        if disk.trace.on:
            disk.trace.of_rq(now_ns, t.GETRQ, rq)
        return rq

    def _enter(self, rq: Rq) -> None:
        """Into the flush machine, the plug, or the scheduler; what is not looked at goes past them."""
        disk = self._disk
        if rq.opaque:
            disk.hardware.held.append(rq)
        elif (
            (rq.op == FLUSH or (rq.op != READ and rq.flags & (FUA | PREFLUSH)))
            and disk.limits.cache
            and disk.flush.insert(rq, disk.limits, disk.machine.now_ns)
        ):
            pass
        elif self._plug is not None:
            if disk.trace.on and not self._plug:
                disk.trace.of_rq(disk.machine.now_ns, t.PLUG, rq)
            self._plug.append(rq)
        else:
            self._insert(rq)

    def _insert(self, rq: Rq) -> None:
        disk = self._disk
        rq.queued = True
        disk.scheduler.insert(rq, disk.machine.now_ns)
        if disk.trace.on:
            disk.trace.of_rq(disk.machine.now_ns, t.INSERT, rq)

    def _unplug(self, plug: list[Rq]) -> None:
        if self._disk.trace.on:
            self._disk.trace.of_rq(self._disk.machine.now_ns, t.UNPLUG_IO, plug[0], number=len(plug))
        for rq in plug:
            self._insert(rq)
