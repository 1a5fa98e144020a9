"""One disk: its request queue, between the ports of its clients and its driver (Linux: block/blk-mq.c).

The way of a client's request: checked; joined to one that waits, or cut into pieces that the driver can take; a tag
for each piece; through the flush machine if it must be; into the scheduler; out of it while the driver has room; and,
when all pieces are answered, back.  Nothing waits: what finds no tag is kept in order, as much as ``nr_requests``
allows, and what is beyond that is refused with EAGAIN.
"""

from __future__ import annotations

import errno
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
from uxk.subsystems.blk.checks import length_of, verdict
from uxk.subsystems.blk.elevator import Scheduler, Shape
from uxk.subsystems.blk.flush import DATA, FlushMachine
from uxk.subsystems.blk.hardware import Hardware
from uxk.subsystems.blk.intake import Intake
from uxk.subsystems.blk.limits import REQUESTS_DEFAULT, QueueLimits
from uxk.subsystems.blk.port import DiskPort, Flight
from uxk.subsystems.blk.request import READ, ZEROES, Bio, Rq
from uxk.subsystems.blk.schedulers import make_scheduler
from uxk.subsystems.blk.stats import Stats
from uxk.subsystems.blk.timeouts import Timeouts
from uxk.uapi.blk import BlockLimits
from uxk.uapi.entries import Completion, Request

WAITING_MIN: Final = 256
"""Clients' requests that are kept at least, whatever ``nr_requests`` is."""


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
        self.intake = Intake(self)
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
        self.switching: Scheduler | None = None
        """The scheduler that is to come when the queue has run empty."""
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
        plain = not self.gone and self.switching is None and self.scheduler.name == "none" and not self.trace.on
        self._plain = plain and self.limits.iostats
        self.clear = self._nothing_waits()
        self.fast = self._plain and self.clear

    def _nothing_waits(self) -> bool:
        return not (self.intake.waiting or self.hardware.held or len(self.scheduler) or self.switching is not None)

    @property
    def switching_to(self) -> str:
        """The scheduler that is to come; empty if none is."""
        return "" if self.switching is None else self.switching.name

    @property
    def inflight(self) -> str:
        """Reads and writes under way, as ``/sys/block/NAME/inflight`` shows them."""
        return f"{self.stats.inflight_reads:>8} {self.stats.inflight_writes:>8}"

    def set_scheduler(self, name: str) -> None:
        """Takes effect when what is in the queue is done; what comes meanwhile waits.  UsageError: unknown."""
        self.switching = make_scheduler(name, self.shape)
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
        """Takes all requests into the queue, or raises: RequestError (ENODEV), RingFull (EAGAIN).

        A queue without any takes a batch of any size: it would never have more room.
        """
        agent, count = self.device.agent, len(requests)
        if self.gone or agent.requests.door is Door.CLOSED:
            raise RequestError(f"{self.name}: the disk is gone", errno=errno.ENODEV)
        if self.answers.open and self.answers.open + count > self.waiting_max:
            agent.account.reject("queue_full", count)
            raise RingFull(
                f"{self.name}: {count} more requests: {self.answers.open} are waiting, at most {self.waiting_max}"
            )
        self.answers.expect(count)
        port.under_way += count
        self.intake.accept(port, requests)
        self.advance()

    def take_over(self, port: DiskPort, request: Request, cid: int, started_ns: int) -> None:
        """A request that took the short way and ran into its deadline; it keeps its tag, and gets one more chance."""
        length = length_of(request)
        bio = Bio(port, cid, request, length)
        self.answers.expect(1)
        rq = self.intake.take(bio, request.opcode, 0, length)
        rq.started_ns, rq.retries, rq.counted = started_ns, 1, True
        self.hardware.held.append(rq)
        self.clear = self.fast = False

    # --- out ---

    def _hold(self, rq: Rq) -> None:
        """Next to go: data of a flush sequence."""
        self.hardware.held.append(rq)

    def _start_flush(self) -> None:
        self.hardware.held.append(self.intake.flush())

    def advance(self) -> None:
        """Does all that can be done now: tags for who waits, requests for the driver, a scheduler for another."""
        while True:
            if self.switching is None:
                self.intake.advance()
            if self.hardware.run():  # no answer will come to go on with
                self._drop()
            if self.switching is None or self.tags_used:
                break
            self._install(self.switching)
        self.clear = self._nothing_waits()
        self.fast = self._plain and self.clear
        self.answers.soon()

    def _install(self, scheduler: Scheduler) -> None:
        self.scheduler, self.switching = scheduler, None
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
        if status == errno.EOPNOTSUPP and rq.op == ZEROES:
            if not self.gone:
                self._without_zeroes(rq)
                return
            completion = Completion(0, errno.ENODEV)  # nobody can write them any more
        if not rq.segments:
            if self.limits.iostats and rq.issued_ns >= 0:
                self.stats.flushed(now_ns - rq.issued_ns)
            self.flush.flushed(status, now_ns)
        elif rq.step == DATA:
            status = verdict(rq, completion, whole=False)
            left_undone = errno.ENODEV if self.gone and rq.steps else 0
            self.flush.data_done(rq, status or left_undone, now_ns)
        else:
            self._end(rq, completion.status, completion)

    def _without_zeroes(self, rq: Rq) -> None:
        """The driver cannot do after all what it promised: zeroes are written from now on."""
        self.limits.no_zeroes = True
        self.limits.work_out()
        self.tags_used -= 1
        if rq.counted:
            self.stats.inflight[rq.group] -= 1
        if rq.step == DATA:
            self.flush.withdraw(self.machine.now_ns)
        self.intake.put_back(rq)

    def _end(self, rq: Rq, status: int, completion: Completion | None = None) -> None:
        """A request is over: its tag is free, and the clients' requests in it are so much nearer to their end."""
        self.tags_used -= 1
        if rq.counted:
            now_ns = self.machine.now_ns
            self.stats.end(rq.group, now_ns, now_ns - rq.started_ns, rq.length)
        data = None
        if completion is not None:
            bio, _, count = rq.segments[0]
            whole = len(rq.segments) == 1 and count == bio.length and rq.op == bio.op
            status = verdict(rq, completion, whole=whole)
            if whole:
                bio.whole = completion if status == completion.status else Completion(0, status)
            elif rq.op == READ and not rq.region and not status:
                data = completion.payload
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

    def _drop(self) -> None:
        """There is nobody to give it to: what the driver has not got is answered with ENODEV, uncut."""
        waiting, held = self.intake.waiting, self.hardware.held
        while waiting:
            work = waiting.popleft()
            work.bio.status = work.bio.status or errno.ENODEV
            work.bio.left_bytes -= work.end - work.at
            if work.bio.left_bytes <= 0:
                self.answers.add(work.bio)
        for rq in self.flush.drop():
            self._end(rq, errno.ENODEV)
        lost = [*held]
        held.clear()
        while (late := self.scheduler.dispatch(I64_MAX)) is not None:  # nobody is held back so late
            lost.append(late)
        for rq in lost:
            self.served(rq, Completion(0, errno.ENODEV))

    def close(self) -> None:
        """The disk is gone: what the driver has not got is answered with ENODEV, what it has is still its own."""
        self.gone = True
        self.switching = None
        self._drop()
        self.trace.stop()
        self.hardware.close()
        self.refresh()
        self.answers.deliver()


def _nobody() -> None:
    """Nobody is to be told."""
