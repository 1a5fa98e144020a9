"""A client's connection to a disk, and the short way through its queue.

A batch that nothing can be done for (no scheduler, nobody waiting, nothing to merge or to split, no flush) goes to the
driver as it is, in one piece, under the driver's own command ids.  Anything else goes through the queue.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from uxk.errors import RingFull
from uxk.kernel.ports import Gate, OnCompletions
from uxk.subsystems.blk.request import NOMERGE, READ, READS, WRITE, WRITES
from uxk.subsystems.blk.waits import held_back
from uxk.uapi.entries import Completion, Request

if TYPE_CHECKING:
    from uxk.subsystems.blk.disk import Disk

_TIMED_OUT: Final = errno.ETIMEDOUT
DEFAULT_PRIO: Final = 1
"""Best effort, the middle one of three classes (Linux: IOPRIO_CLASS_BE)."""


class Flight(msgspec.Struct, eq=False, gc=False):
    """Requests that took the short way together: one record serves them all."""

    requests: tuple[Request, ...]
    first_cid: int
    left: int
    """Not answered yet; the sums below are of those."""
    started_ns: int
    reads: int
    writes: int
    read_bytes: int
    written_bytes: int
    inline: bool
    """Whether data of a READ come inside its completion."""

    def request(self, cid: int) -> Request:
        """The request with that command id."""
        return self.requests[cid - self.first_cid]

    def answered(self, request: Request) -> int:
        """One of them is: its size in bytes."""
        self.left -= 1
        size_bytes = request.length
        if request.opcode == READ:
            self.reads -= 1
            self.read_bytes -= size_bytes
        else:
            self.writes -= 1
            self.written_bytes -= size_bytes
        return size_bytes

    def check(self, completions: Sequence[Completion]) -> None:
        """Makes an error of every READ whose data are not as long as they should be; all of these are its answers."""
        requests = self.requests
        if [request.length for request in requests] != [len(completion.payload) for completion in completions]:
            first_cid = self.first_cid
            for completion in completions:
                believe(completion, requests[completion.cid - first_cid])


def believe(completion: Completion, request: Request) -> None:
    """A part of a read, or more than was asked for, is of no use to anybody: EIO."""
    if completion.status or request.opcode != READ or request.region:
        return
    if len(completion.payload) != request.length:
        completion.status, completion.result, completion.payload = errno.EIO, 0, b""


class DiskPort:
    """One client of one disk (a :class:`~uxk.kernel.ports.GatePort`)."""

    __slots__ = ("_closed", "_disk", "_lower", "client", "cpu", "on_completions", "prio", "tagged", "under_way")

    def __init__(
        self, disk: Disk, below: Gate, client: str, on_completions: OnCompletions, cpu: int, *, tagged: bool
    ) -> None:
        self._disk = disk
        self._lower = below.open_port(client, self._on_lower, tagged=tagged)
        self._closed = False
        self.client = client
        self.tagged = tagged
        self.on_completions: OnCompletions = on_completions
        self.cpu = cpu
        """On which of the emulated CPUs it runs: which software queue is its own."""
        self.prio = DEFAULT_PRIO
        """Its class of priority, 0 (real time) to 2 (idle), for schedulers that know any."""
        self.under_way = 0
        """Requests accepted and not answered."""

    @property
    def id(self) -> int:
        """Its number among the driver's ports; requests of a tagged one carry it."""
        return self._lower.id

    def submit(self, request: Request) -> int:
        """Submits one request and returns the command id that its completion will carry."""
        self.submit_batch((request,))
        return request.cid

    def submit_batch(self, requests: Sequence[Request]) -> None:
        """Submits all, which are one plug, or raises: RingFull (EAGAIN), or RequestError (ENODEV)."""
        disk, count = self._disk, len(requests)
        if not count:
            return
        if not disk.fast or disk.issued + count > disk.tags or self._closed:
            disk.submit(self, requests)
            return
        sums = plain_sums(requests, disk.limits.plain)
        if sums is None:
            disk.submit(self, requests)
            return
        try:
            self._lower.submit_batch(requests)
        except RingFull:  # others use the driver, too: the queue keeps what does not fit
            disk.submit(self, requests)
            return
        now_ns, first_cid = disk.machine.now_ns, requests[0].cid
        reads, read_bytes, written_bytes, inline = sums
        writes = count - reads
        flight = Flight(tuple(requests), first_cid, count, now_ns, reads, writes, read_bytes, written_bytes, inline)
        if count == 1:
            disk.flights[first_cid] = flight
        else:
            disk.flights.update(dict.fromkeys(range(first_cid, first_cid + count), flight))
        disk.issued += count
        disk.tags_used += count
        self.under_way += count
        stats = disk.stats
        if stats.stamp_ns != now_ns:
            stats.tick(now_ns)
        if reads:
            stats.inflight[READS] += reads
        if writes:
            stats.inflight[WRITES] += writes
        if disk.timeouts.on:
            disk.timeouts.arm(now_ns)

    def _on_lower(self, completions: list[Completion]) -> None:
        """Answers to what took the short way."""
        disk, count = self._disk, len(completions)
        machine = disk.machine
        if disk.real:
            machine.refresh()
        for completion in completions:
            if completion.status == _TIMED_OUT:
                completions = self._try_again(completions)
                count = len(completions)
                break
        pop = disk.flights.pop
        flights = [pop(completions[0].cid, None)] if count == 1 else [pop(each.cid, None) for each in completions]
        first = flights[0] if count else None
        if first is not None and first.left == count and (count == 1 or flights.count(first) == count):
            if first.inline:
                if count == 1:
                    believe(completions[0], first.requests[completions[0].cid - first.first_cid])
                else:
                    first.check(completions)
            stats, now_ns = disk.stats, machine.now_ns
            waited_ns = now_ns - first.started_ns
            if first.reads:
                stats.end(READS, now_ns, waited_ns, first.read_bytes, first.reads)
            if first.writes:
                stats.end(WRITES, now_ns, waited_ns, first.written_bytes, first.writes)
        else:
            self._count_each(completions, flights)
        self.under_way -= count
        disk.issued -= count
        disk.tags_used -= count
        if not disk.clear:
            disk.advance()
        if count:
            self.on_completions(completions)
        if self._closed and not self.under_way:
            self._lower.close()

    def _count_each(self, completions: list[Completion], flights: list[Flight | None]) -> None:
        stats, now_ns = self._disk.stats, self._disk.machine.now_ns
        for completion, flight in zip(completions, flights, strict=True):
            if flight is not None:
                request = flight.request(completion.cid)
                believe(completion, request)
                group = READS if request.opcode == READ else WRITES
                stats.end(group, now_ns, now_ns - flight.started_ns, flight.answered(request))

    def _try_again(self, completions: list[Completion]) -> list[Completion]:
        """Requests that ran into their deadline go on in the queue, once more; returns the other answers."""
        disk, others = self._disk, list[Completion]()
        for completion in completions:
            cid = completion.cid
            flight = disk.flights.get(cid)
            if flight is None or completion.status != errno.ETIMEDOUT or disk.gone:
                others.append(completion)
                continue
            del disk.flights[cid]
            request = flight.request(cid)
            flight.answered(request)
            disk.issued -= 1
            disk.take_over(self, request, cid, flight.started_ns)
        return others

    def deliver(self, completions: list[Completion]) -> None:
        """Answers to what went through the queue."""
        self.under_way -= len(completions)
        self.on_completions(completions)
        if self._closed and not self.under_way:
            self._lower.close()

    def waits_for(self) -> str:
        """A queue slot of the disk, while any of its requests waits for that; not what waits for a flush."""
        return f"queue slot of {self._disk.name}" if self.under_way and held_back(self._disk, self, self._lower) else ""

    def close(self, on_late: OnCompletions | None = None) -> None:
        """Answers to what is still under way go to ``on_late``, or are dropped."""
        self.on_completions = on_late or _nothing
        if not self._closed:
            self._closed = True
            self._disk.ports.pop(self.id, None)
            if not self.under_way:
                self._lower.close()


def _nothing(_: list[Completion]) -> None:
    """The handler of whom nobody listens to any more."""


def contiguous(first: Request, second: Request, most_bytes: int) -> bool:
    """Whether two neighbours of a batch could be one request: then the queue must see them."""
    if first.opcode != second.opcode or first.region != second.region or (first.flags | second.flags) & NOMERGE:
        return False
    if first.length + second.length > most_bytes:
        return False
    if first.offset + first.length == second.offset:
        return not first.region or first.buffer + first.length == second.buffer
    if second.offset + second.length == first.offset:
        return not first.region or second.buffer + second.length == first.buffer
    return False


def plain_sums(
    requests: Sequence[Request], plain: tuple[int, int, int, int, bool, bool]
) -> tuple[int, int, int, bool] | None:
    """Reads, bytes read and written, and whether data of a READ come inside its answer; None if the queue must see it.

    ``plain`` is :attr:`~uxk.subsystems.blk.limits.QueueLimits.plain`.  This loop is what a disk costs: it looks at each
    request once, and at two neighbours only if one begins where the other ends.
    """
    block_mask, capacity_bytes, most_bytes, slow_flags, writable, merge = plain
    reads = read_bytes = written_bytes = 0
    end = begin = usual = -1
    inline = False
    before: Request | None = None
    for request in requests:
        length, offset, opcode = request.length, request.offset, request.opcode
        if length != usual:  # mostly all of a batch are as long
            if not 0 < length <= most_bytes or length & block_mask:
                return None
            usual = length
        if request.flags & slow_flags or offset & block_mask:
            return None
        if opcode == READ:
            reads += 1
            read_bytes += length
            if not request.region:
                inline = True
        elif opcode == WRITE and writable and (request.region or len(request.payload) == length):
            written_bytes += length
        else:
            return None
        behind = offset + length
        if offset < 0 or behind > capacity_bytes:
            return None
        if merge and (offset == end or behind == begin):
            assert before is not None
            if contiguous(before, request, most_bytes):
                return None
        begin, end, before = offset, behind, request
    return reads, read_bytes, written_bytes, inline
