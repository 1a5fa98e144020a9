"""One disk: its request queue, between the ports of its clients and its driver (Linux: block/blk-mq.c).

The way of a client's request: checked; joined to one that waits, or cut into pieces that the driver can take; a tag
for each piece; through the flush machine if it must be; into the scheduler; out of it while the driver has room; and,
when all pieces are answered, back.  Nothing waits: what finds no tag is kept in order, as much as ``nr_requests``
allows, and what is beyond that is refused with EAGAIN.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from uxk.errors import RequestError, RingFull
from uxk.kernel.devices import Device
from uxk.kernel.machine import Machine
from uxk.kernel.ports import OnCompletions
from uxk.kernel.requests import Door
from uxk.limits import I64_MAX
from uxk.subsystems.blk import trace as t
from uxk.subsystems.blk.answers import Answers
from uxk.subsystems.blk.checks import known, length_of, refusal
from uxk.subsystems.blk.elevator import Scheduler, Shape
from uxk.subsystems.blk.flush import DATA, FlushMachine
from uxk.subsystems.blk.hardware import Hardware
from uxk.subsystems.blk.limits import REQUESTS_DEFAULT, QueueLimits
from uxk.subsystems.blk.merge import FRONT, join, longest, side_of
from uxk.subsystems.blk.port import DiskPort, Flight
from uxk.subsystems.blk.request import DISCARD, EXTENTS, FLUSH, FUA, PREFLUSH, READ, WRITE, ZEROES, Bio, Rq
from uxk.subsystems.blk.schedulers import make_scheduler
from uxk.subsystems.blk.stats import Stats
from uxk.subsystems.blk.timeouts import Timeouts
from uxk.uapi.blk import BlockLimits
from uxk.uapi.entries import Completion, Request

WAITING_MIN: Final = 256
"""Clients' requests that are kept at least, whatever ``nr_requests`` is."""
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


class Disk:
    """The queue of one block device; the device's gate (:class:`~uxk.kernel.ports.Gate`) while it exists."""

    def __init__(self, machine: Machine, device: Device, hardware: BlockLimits, *, cpus: int, minor: int) -> None:
        agent = device.agent
        self.machine = machine
        self.real = machine.clock == "real"
        """Time passes while the driver works: it is read anew with every answer."""
        self.device = device
        self.name = device.name
        self.below = device.gate
        self.depth = agent.manifest.budget.queue_depth
        """Requests that the driver can have at a time: the tags of all hardware queues together."""
        self.limits: QueueLimits = QueueLimits(hardware, agent.manifest.watchdog.request_timeout_ns)
        self.shape = Shape(self.limits, cpus, min(hardware.queues, cpus))
        self.minor = minor
        self.stats = Stats()
        self.trace: t.Tracer = t.Tracer(device.name, minor, cpus)
        self.scheduler: Scheduler = make_scheduler("none", self.shape)
        self.hardware = Hardware(self)
        self.answers = Answers(machine, device.name)
        self.flush = FlushMachine(self._start_flush, self._hold, self._end)
        self.timeouts = Timeouts(self)
        self.ports: dict[int, DiskPort] = {}
        self.flights: dict[int, Flight] = {}
        """What took the short way, by the driver's command id."""
        self.issued = 0
        """Requests that the driver has."""
        self.tags_used = 0
        self.gone = False
        self.clear = self.fast = True
        """Nothing waits here; and nothing is to be done for a simple batch."""
        self._waiting: deque[Work] = deque()
        self._plug: list[Rq] | None = None
        self._switch: Scheduler | None = None
        self._numbers = 0
        self._cid = _CID_BASE
        self._ports_opened = 0
        self.on_switched: Callable[[], None] = _nobody
        """A scheduler was installed: for who shows its attributes."""
        self.set_requests(self.depth)
        self.refresh()
        self.timeouts.set()

    # --- settings ---

    def set_requests(self, count: int) -> None:
        """How many requests may be in the queue, and so what is refused."""
        self.nr_requests = count
        self.tags = min(count, self.depth)
        self.waiting_max = max(2 * count, WAITING_MIN)
        """Most clients' requests in the queue."""

    def set_hardware(self, hardware: BlockLimits) -> None:
        """The device has become another: a resize, for instance.  What is under way is not affected."""
        self.limits.hardware = hardware
        self.limits.work_out()
        self.refresh()

    def refresh(self) -> None:
        """After a change of anything that the short way depends on."""
        plain = not self.gone and self._switch is None and self.scheduler.name == "none" and not self.trace.on
        self._plain = plain and self.limits.iostats
        self.clear = not (self._waiting or self.hardware.held or len(self.scheduler) or self._switch is not None)
        self.fast = self._plain and self.clear

    @property
    def switching_to(self) -> str:
        """The scheduler that is to come; empty if none is."""
        return "" if self._switch is None else self._switch.name

    @property
    def inflight(self) -> str:
        """Reads and writes under way, as ``/sys/block/NAME/inflight`` shows them."""
        return f"{self.stats.inflight_reads:>8} {self.stats.inflight_writes:>8}"

    def set_scheduler(self, name: str) -> None:
        """Takes effect when what is in the queue is done; what comes meanwhile waits.  UsageError: unknown."""
        self._switch = make_scheduler(name, self.shape)
        self.refresh()
        self.advance()

    # --- the gate ---

    def open_port(self, client: str, on_completions: OnCompletions, *, tagged: bool = False) -> DiskPort:
        """A new client's connection; clients are spread over the CPUs in the order in which they come."""
        cpu = self._ports_opened % self.shape.cpus
        self._ports_opened += 1
        port = DiskPort(self, self.below, client, on_completions, cpu, tagged=tagged)
        self.ports[port.id] = port
        return port

    def submit(self, port: DiskPort, requests: Sequence[Request]) -> None:
        """Takes all requests into the queue, or raises: RequestError (ENODEV), RingFull (EAGAIN)."""
        agent, count = self.device.agent, len(requests)
        if self.gone or agent.requests.door is Door.CLOSED:
            raise RequestError(f"{self.name}: the disk is gone", errno=errno.ENODEV)
        if self.answers.open + count > self.waiting_max:
            agent.account.reject("queue_full", count)
            raise RingFull(
                f"{self.name}: {count} more requests: {self.answers.open} are waiting, at most {self.waiting_max}"
            )
        self.answers.expect(count)
        port.under_way += count
        self._plug = [] if count > 1 else None
        for request in requests:
            self._accept(port, request)
        plug, self._plug = self._plug, None
        if plug:
            self._unplug(plug)
        self.advance()

    def take_over(self, port: DiskPort, request: Request, cid: int, started_ns: int) -> None:
        """A request that took the short way and ran into its deadline; it keeps its tag, and gets one more chance."""
        length = length_of(request)
        bio = Bio(port, cid, request, length)
        self.answers.expect(1)
        rq = self._new(bio, request.opcode, 0, length)
        rq.started_ns, rq.retries, rq.counted = started_ns, 1, True
        self.hardware.held.append(rq)
        self.clear = self.fast = False

    # --- in ---

    def _accept(self, port: DiskPort, request: Request) -> None:
        self._cid = request.cid = self._cid + 1
        if port.tagged:
            request.port = port.id
        length, op = length_of(request), request.opcode
        bio = Bio(port, request.cid, request, length)
        if known(op):
            bio.status = refusal(request, length, self.limits)
            if bio.status:
                self.answers.add(bio)
                return
            if op == READ or not self.limits.cache:
                bio.flags &= ~PREFLUSH if op == READ else ~(PREFLUSH | FUA)
            if not length and not (self.limits.cache and (op == FLUSH or bio.flags & PREFLUSH)):
                self.answers.add(bio)  # nothing to do
                return
            if self.trace.on and op != EXTENTS:
                self.trace.of_bio(self.machine.now_ns, t.QUEUE, bio, 0, length)
        work = Work(bio, 0, length)
        if self._waiting or self._switch is not None or not self._carve(work):
            if self.trace.on:
                self.trace.of_bio(self.machine.now_ns, t.SLEEPRQ, bio, work.at, length - work.at)
            self._waiting.append(work)

    def _carve(self, work: Work) -> bool:
        """Turns a client's request into requests for the driver; False if there is no tag for all of it yet."""
        bio, limits = work.bio, self.limits
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
                if self.tags_used >= self.nr_requests:
                    return False
                self._enter(self._begin(bio, op, at, count))
            work.at = at + count
            if work.at >= work.end:
                return True
            if self.trace.on:
                self.trace.of_bio(self.machine.now_ns, t.SPLIT, bio, at, rest, number=(bio.offset + work.at) >> 9)

    def _merge(self, bio: Bio, at: int, count: int) -> bool:
        """Joins a piece to one that waits: the newest of the plug, or any that the scheduler finds."""
        limits = self.limits
        if limits.nomerges > 1:
            return False
        found, plug = None, self._plug
        if plug:
            side = side_of(plug[-1], bio, at, count, limits)
            found = None if side is None else (plug[-1], side)
        plugged = found is not None
        if found is None and not limits.nomerges:
            found = self.scheduler.merge(bio, at, count)
        if found is None:
            return False
        rq, side = found
        before = (rq.offset, rq.length)
        join(rq, bio, at, count, side)
        if rq.counted:
            self.stats.merged(rq.group, self.machine.now_ns)
        if self.trace.on:
            self.trace.of_bio(self.machine.now_ns, t.FRONTMERGE if side is FRONT else t.BACKMERGE, bio, at, count)
        absorbed = None if plugged else self.scheduler.joined(rq, before, side)
        if absorbed is not None:
            self.tags_used -= 1
            if absorbed.counted:
                self.stats.absorbed(absorbed.group, self.machine.now_ns)
        return True

    def _new(self, bio: Bio, op: int, at: int, count: int) -> Rq:
        self._numbers += 1
        port, request = bio.port, bio.request
        rq = Rq(op, bio.offset + at, count, bio.flags, port.cpu, self._numbers)
        rq.segments.append((bio, at, count))
        rq.prio = port.prio
        rq.hctx = self.shape.hctx_of(port.cpu)
        if request.region and op == bio.op:
            rq.region, rq.buffer = request.region, request.buffer + at
        return rq

    def _begin(self, bio: Bio, op: int, at: int, count: int) -> Rq:
        """A request with a tag."""
        rq = self._new(bio, op, at, count)
        rq.started_ns = now_ns = self.machine.now_ns
        rq.opaque = op == EXTENTS or not known(op)
        rq.counted = self.limits.iostats and not rq.opaque
        self.tags_used += 1
        if rq.counted:
            self.stats.begin(rq.group, now_ns)
        if self.trace.on:
            self.trace.of_rq(self.machine.now_ns, t.GETRQ, rq)
        return rq

    def _enter(self, rq: Rq) -> None:
        """Into the flush machine, the plug, or the scheduler; what is not looked at goes past them."""
        now_ns = self.machine.now_ns
        if rq.opaque:
            self.hardware.held.append(rq)
        elif (
            (rq.op == FLUSH or (rq.op != READ and rq.flags & (FUA | PREFLUSH)))
            and self.limits.cache
            and self.flush.insert(rq, self.limits, now_ns)
        ):
            pass
        elif self._plug is not None:
            if self.trace.on and not self._plug:
                self.trace.of_rq(self.machine.now_ns, t.PLUG, rq)
            self._plug.append(rq)
        else:
            self._insert(rq)

    def _insert(self, rq: Rq) -> None:
        rq.queued = True
        self.scheduler.insert(rq, self.machine.now_ns)
        if self.trace.on:
            self.trace.of_rq(self.machine.now_ns, t.INSERT, rq)

    def _unplug(self, plug: list[Rq]) -> None:
        if self.trace.on:
            self.trace.of_rq(self.machine.now_ns, t.UNPLUG_IO, plug[0], number=len(plug))
        for rq in plug:
            self._insert(rq)

    def _hold(self, rq: Rq) -> None:
        """Next to go: data of a flush sequence."""
        self.hardware.held.append(rq)

    def _start_flush(self) -> None:
        self._numbers += 1
        rq = Rq(FLUSH, 0, 0, PREFLUSH, 0, self._numbers)
        self.hardware.held.append(rq)

    # --- out ---

    def advance(self) -> None:
        """Does all that can be done now: tags for who waits, requests for the driver, a scheduler for another."""
        while True:
            waiting = self._waiting
            while waiting and self._switch is None and self._carve(waiting[0]):
                waiting.popleft()
            self.hardware.run()
            if self._switch is None or self.tags_used:
                break
            self._install(self._switch)
        self.clear = not (self._waiting or self.hardware.held or len(self.scheduler) or self._switch is not None)
        self.fast = self._plain and self.clear
        self.answers.soon()

    def _install(self, scheduler: Scheduler) -> None:
        self.scheduler, self._switch = scheduler, None
        usual = self.depth if scheduler.name == "none" else 2 * min(self.depth, REQUESTS_DEFAULT)
        self.set_requests(usual)
        self.on_switched()
        self.refresh()

    # --- back ---

    def served(self, rq: Rq, completion: Completion) -> None:
        """The driver's answer to a request."""
        now_ns, status = self.machine.now_ns, completion.status
        if self.trace.on:
            self.trace.of_rq(self.machine.now_ns, t.COMPLETE, rq, error=status)
        if rq.queued:
            self.scheduler.completed(rq)
        if not rq.segments:
            if self.limits.iostats:
                self.stats.flushed(now_ns - rq.issued_ns)
            self.flush.flushed(status, now_ns)
        elif rq.step == DATA:
            self.flush.data_done(rq, status, now_ns)
        elif status == errno.EOPNOTSUPP and rq.op == ZEROES:
            self._without_zeroes(rq)
        else:
            self._end(rq, status, completion)

    def _without_zeroes(self, rq: Rq) -> None:
        """The driver cannot do after all what it promised: zeroes are written from now on."""
        self.limits.no_zeroes = True
        self.limits.work_out()
        self.tags_used -= 1
        if rq.counted:
            self.stats.inflight[rq.group] -= 1
        bio, at, count = rq.segments[0]
        self._waiting.appendleft(Work(bio, at, at + count))

    def _end(self, rq: Rq, status: int, completion: Completion | None = None) -> None:
        """A request is over: its tag is free, and the clients' requests in it are so much nearer to their end."""
        self.tags_used -= 1
        if rq.counted:
            now_ns = self.machine.now_ns
            self.stats.end(rq.group, now_ns, now_ns - rq.started_ns, rq.length)
        data = None
        if completion is not None:
            bio, _, count = rq.segments[0]
            if len(rq.segments) == 1 and count == bio.length and rq.op == bio.op:
                bio.whole = completion
            elif rq.op == READ and not rq.region and not status:
                data = completion.payload
                if len(data) != rq.length:  # a part of a read is of no use to anybody
                    status, data = errno.EIO, None
        place = 0
        for bio, at, count in rq.segments:
            bio.left_bytes -= count
            if status:
                bio.status = bio.status or status
            elif data is not None:
                if bio.chunks is None:
                    bio.chunks = {}
                bio.chunks[at] = data[place : place + count]
                place += count
            if bio.left_bytes <= 0:
                self.answers.add(bio)

    def close(self) -> None:
        """The disk is gone: what the driver has not got is answered with ENODEV, what it has is still its own."""
        self.gone = True
        self._switch = None
        lost = [*self.hardware.held]
        self.hardware.held.clear()
        while (rq := self.scheduler.dispatch(I64_MAX)) is not None:  # so late that nobody is held back any more
            lost.append(rq)
        for rq in lost:
            self.served(rq, Completion(0, errno.ENODEV))
        self.hardware.held.clear()
        for rq in self.flush.drop():
            self._end(rq, errno.ENODEV)
        while self._waiting:
            work = self._waiting.popleft()
            work.bio.status = errno.ENODEV
            work.bio.left_bytes -= work.end - work.at
            if work.bio.left_bytes <= 0:
                self.answers.add(work.bio)
        self.trace.stop()
        self.refresh()
        self.answers.deliver()


def _nobody() -> None:
    """Nobody is to be told."""
