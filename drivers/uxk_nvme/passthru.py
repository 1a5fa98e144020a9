"""Commands that clients hand over whole (uxk.uapi.blk.NvmeOp): capsules instead of rings, checked before all else."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Final

import uxk
from uxk.uapi.blk import NvmeOp, nvme_result
from uxk_nvme.admin import ADMIN_TABLE
from uxk_nvme.bounce import Bounce
from uxk_nvme.controller import Controller
from uxk_nvme.io import IO_TABLE
from uxk_nvme.iommu import OFFSET_BITS, OFFSET_MASK, Iommu
from uxk_nvme.queues import Done, Fast, Item
from uxk_nvme.spec import (
    PSDT_SGL,
    SQE_BYTES,
    SQE_DWORDS,
    SQE_FAST,
    TRANSFER_MAX_BYTES,
    Admin,
    Feature,
    Refused,
    Status,
)  # fmt: skip
from uxk_nvme.subsystem import CONTROLLERS_MAX, PRIMARY, Subsystem

QUEUES_MAX: Final = 256
"""Queue identifiers that a host may use."""
HELD_MAX_NS: Final = 20_000_000_000
"""How long a request may wait for an event: less than the kernel's deadline for requests."""
SILENCE_MAX_NS: Final = 120_000_000_000
"""A host that says nothing for so long may lose its controller to another: its export may have died."""
NQN_BYTES: Final = 256
HOST_ID_BYTES: Final = 16
_HEAD: Final = ~0xFFFFFC00 & 0xFFFFFFFFFFFFFFFF
"""Opcode, fuse and NSID of a command's first two dwords."""
_EVENT: Final = bytes((Admin.ASYNC_EVENT,))
_TO_HOST: Final = 2
"""Bits 1:0 of an opcode say which way data go (base, figure 87)."""


class CapsuleQueue:
    """One queue of one host's controller: commands come as requests, completions go as their answers."""

    __slots__ = ("_answer", "_batch", "_free", "_last", "batch", "bounces", "controller", "qid", "requests")

    def __init__(
        self, controller: Controller, qid: int, answer: Callable[[CapsuleQueue, uxk.Request, int, Done], object]
    ) -> None:
        self.controller = controller
        self.qid = qid
        self._answer = answer
        self._free: list[int] = []
        self._last = 0
        self.requests: dict[int, uxk.Request] = {}
        """Commands under way by tag: hosts may use identifiers twice."""
        self.bounces: dict[int, int] = {}
        """Their bounce buffers."""
        self.batch: list[Fast] = []
        self._batch: list[uxk.Request] = []

    def add(self, request: uxk.Request, address: int, length: int, place: int) -> None:
        """Puts a command into the batch, with its data where ``address`` says."""
        tag = self._free.pop() if self._free else self._last
        if tag == self._last:
            self._last += 1
        self.requests[tag] = request
        if place >= 0:
            self.bounces[tag] = place
        head, _, _, slba, control = SQE_FAST.unpack_from(request.payload)
        self.batch.append((head & _HEAD | PSDT_SGL << 8 | tag << 16, address, length, slba, control))
        self._batch.append(request)

    def run(self, now_ns: int) -> None:
        """Executes the batch."""
        entries, self.batch = self.batch, []
        if self.qid:
            self.controller.run_io(self, entries, now_ns)
        else:
            self.controller.run_admin(self, entries, now_ns)
        self._batch.clear()

    def dwords(self, index: int) -> tuple[int, ...]:
        """All 16 dwords, as the host wrote them."""
        return SQE_DWORDS.unpack_from(self._batch[index].payload)

    def post(self, items: Sequence[Item]) -> None:
        """Answers requests."""
        for item in items:
            done = Done(item, 0) if isinstance(item, int) else item
            request = self.requests.pop(done.tag)
            self._free.append(done.tag)
            self._answer(self, request, self.bounces.pop(done.tag, -1), done)

    def command_id(self, tag: int) -> int:
        """The identifier that the host gave."""
        return int.from_bytes(self.requests[tag].payload[2:4], "little")

    def tag_of(self, command_id: int) -> int | None:
        """The oldest command with that identifier."""
        return next((tag for tag in self.requests if self.command_id(tag) == command_id), None)


class EventQueue:
    """Requests that wait for an event of a controller (WAIT_EVENT)."""

    __slots__ = ("_answer", "_last", "qid", "requests")

    def __init__(self, answer: Callable[[uxk.Request, Done], object]) -> None:
        self.qid = 0
        self._answer = answer
        self._last = 0
        self.requests: dict[int, uxk.Request] = {}

    def add(self, request: uxk.Request) -> int:
        """A tag for a request."""
        self._last += 1
        self.requests[self._last] = request
        return self._last

    def post(self, items: Sequence[Item]) -> None:
        """Answers requests."""
        for item in items:
            done = Done(item, 0) if isinstance(item, int) else item
            self._answer(self.requests.pop(done.tag), done)

    def dwords(self, index: int) -> tuple[int, ...]:
        """Nothing: these are no commands."""
        return (0,) * 16

    def command_id(self, tag: int) -> int:
        """None."""
        return 0xFFFF

    def tag_of(self, command_id: int) -> int | None:
        """None."""
        return None


class Passthrough:
    """Requests of class :class:`NvmeOp`.  What is wrong with a *request* is an errno; a *command* gets its status."""

    def __init__(self, ctx: uxk.Context, subsystem: Subsystem, iommu: Iommu, bounce: Bounce) -> None:
        self._ctx = ctx
        self._subsystem = subsystem
        self._iommu = iommu
        self._bounce = bounce
        self._queues: dict[tuple[int, int], CapsuleQueue] = {}
        self._events: dict[int, EventQueue] = {}
        self._touched: dict[CapsuleQueue, None] = {}
        self._deadlines: list[tuple[int, int, int, int, int]] = []
        """When a waiting request gives up: time, serial, controller, tag (-1 - tag: of the admin queue), request."""
        self._serial = 0

    def request(self, request: uxk.Request) -> None:
        """Takes one request; commands are executed by :meth:`run`."""
        if not 0 <= request.offset <= 0xFFFFFFFF:
            self._ctx.complete(request, status=errno.EINVAL)
            return
        match request.opcode:
            case NvmeOp.ADMIN | NvmeOp.IO:
                self._command(request)
            case NvmeOp.ATTACH:
                self._attach(request)
            case NvmeOp.DETACH:
                self._detach(request)
            case NvmeOp.WAIT_EVENT:
                self._wait(request)
            case _:
                self._ctx.complete(request, status=errno.EOPNOTSUPP)

    @property
    def pending(self) -> bool:
        """Whether commands were taken that are not executed yet."""
        return bool(self._touched)

    def run(self) -> None:
        """Executes what was taken, queue by queue."""
        touched, self._touched = self._touched, {}
        now_ns = self._ctx.now_ns
        for queue in touched:
            queue.controller.seen_ns = now_ns
            queue.run(now_ns)

    # --- commands ---

    def _command(self, request: uxk.Request) -> None:
        controller, qid = self._controller(request), request.offset & 0xFFFF
        if isinstance(controller, int):
            self._ctx.complete(request, status=controller)
            return
        admin = request.opcode == NvmeOp.ADMIN
        if controller.cntlid == PRIMARY and admin and request.payload[:1] == _EVENT:
            self._ctx.complete(request, status=errno.EPERM)  # its events are the driver's
            return
        if controller.cntlid == PRIMARY and not admin and not qid:
            qid = 1
        if len(request.payload) < SQE_BYTES or (qid != 0 if admin else not 0 < qid <= QUEUES_MAX):
            self._ctx.complete(request, status=errno.EINVAL)
            return
        queue = self._queue(controller, qid)
        place = self._place(request)
        if isinstance(place, int):
            self._ctx.complete(request, status=place)
            return
        address, length, bounce = place
        queue.add(request, address, length, bounce)
        self._touched[queue] = None
        if admin and request.payload[0] == Admin.ASYNC_EVENT:
            self._deadline(HELD_MAX_NS, controller.cntlid, -1 - next(reversed(queue.requests)), request)

    def _controller(self, request: uxk.Request) -> Controller | int:
        cntlid = request.offset >> 16 or PRIMARY
        found = self._subsystem.controllers.get(cntlid)
        if found is None:
            return errno.ENODEV
        return found if cntlid == PRIMARY or found.port == request.port else errno.EACCES

    def _queue(self, controller: Controller, qid: int) -> CapsuleQueue:
        key = controller.cntlid, qid
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = CapsuleQueue(controller, qid, self._answer)
            controller.queues.setdefault(qid, queue)
        return queue

    def _place(self, request: uxk.Request) -> tuple[int, int, int] | int:
        """Bus address, bytes and bounce buffer (or -1) of a command's data; or an errno."""
        to_host = request.payload[0] & 3 == _TO_HOST
        if request.region:
            try:
                handle = self._iommu.handle(request.region, to_host)
            except uxk.UxkError as exc:
                return exc.errno or errno.EFAULT
            view = self._iommu.views[handle]
            if view is None or not 0 <= request.buffer <= OFFSET_MASK or request.buffer + request.length > len(view):
                return errno.EFAULT
            return handle << OFFSET_BITS | request.buffer, request.length, -1
        inline = len(request.payload) - SQE_BYTES
        length = request.length if to_host else inline
        if length > TRANSFER_MAX_BYTES:
            return errno.EINVAL
        if not length:
            return 0, 0, -1
        place = self._bounce.take(length)
        if place < 0:
            return errno.EAGAIN
        if to_host:
            self._bounce.view[place : place + length] = bytes(length)
        else:
            self._bounce.view[place : place + length] = request.payload[SQE_BYTES:]
        return self._bounce.address(place), length, place

    def _answer(self, queue: CapsuleQueue, request: uxk.Request, place: int, done: Done) -> None:
        payload = b""
        if place >= 0:
            if request.payload[0] & 3 == _TO_HOST and not done.status:
                payload = bytes(self._bounce.view[place : place + request.length])
            self._bounce.give(place)
        self._ctx.complete(request, payload, result=nvme_result(done.dw0, done.status))

    # --- hosts ---

    def _attach(self, request: uxk.Request) -> None:
        """A controller for a host: 256 bytes of NQN, padded with NULs, and 16 of host identifier."""
        payload = request.payload
        host = payload[:NQN_BYTES].split(b"\0", 1)[0]
        name = host.decode(errors="replace")
        if not host or not name.isprintable() or len(payload) > NQN_BYTES + HOST_ID_BYTES:
            self._ctx.complete(request, status=errno.EINVAL)
            return
        if len(self._subsystem.controllers) >= CONTROLLERS_MAX and not self._evict():
            self._ctx.complete(request, status=errno.EMFILE)
            return
        made = self._subsystem.add_controller(name, payload[NQN_BYTES:], request.port, (ADMIN_TABLE, IO_TABLE))
        made.queue_limit = QUEUES_MAX
        made.seen_ns = self._ctx.now_ns
        self._ctx.complete(request, result=made.cntlid)

    def _evict(self) -> bool:
        """Ends the controller that was silent for longest, if nobody can be there any more; False if none was."""
        hosts = (each for each in self._subsystem.controllers.values() if each.cntlid != PRIMARY)
        oldest = min(hosts, key=lambda each: each.seen_ns)
        patience_ns = max(SILENCE_MAX_NS, 3_000_000 * oldest.features.value(Feature.KEEP_ALIVE))
        if self._ctx.now_ns - oldest.seen_ns < patience_ns:
            return False
        self.drop(oldest)
        return True

    def _detach(self, request: uxk.Request) -> None:
        controller = self._controller(request)
        if isinstance(controller, int) or controller.cntlid == PRIMARY:
            self._ctx.complete(request, status=controller if isinstance(controller, int) else errno.EPERM)
            return
        self.drop(controller)
        self._ctx.complete(request)

    def drop(self, controller: Controller) -> None:
        """Ends a controller: what came before is executed, what still waits is answered as aborted."""
        self.run()
        for held, tag in controller.events.drop():
            held.post([Done(tag, Status.ABORTED_SQ_DELETED)])
        for key in [key for key in self._queues if key[0] == controller.cntlid]:
            queue = self._queues.pop(key)
            self._subsystem.later.drop(queue)
            queue.post([Done(tag, Status.ABORTED_SQ_DELETED) for tag in list(queue.requests)])
        self._events.pop(controller.cntlid, None)
        self._subsystem.remove_controller(controller)

    # --- events ---

    def _wait(self, request: uxk.Request) -> None:
        controller = self._controller(request)
        if isinstance(controller, int):
            self._ctx.complete(request, status=controller)
            return
        if controller.cntlid == PRIMARY:
            self._ctx.complete(request, status=errno.EPERM)
            return
        queue = self._events.get(controller.cntlid)
        if queue is None:
            queue = self._events[controller.cntlid] = EventQueue(self._event)
        tag = queue.add(request)
        try:
            controller.events.hold(queue, tag)
        except Refused:
            del queue.requests[tag]
            self._ctx.complete(request, status=errno.EBUSY)
            return
        if tag in queue.requests:
            self._deadline(min(request.length * 1_000_000, HELD_MAX_NS), controller.cntlid, tag, request)

    def _event(self, request: uxk.Request, done: Done) -> None:
        if done.status:
            self._ctx.complete(request, status=errno.ECANCELED)
        else:
            self._ctx.complete(request, result=done.dw0)

    def _deadline(self, delay_ns: int, cntlid: int, tag: int, request: uxk.Request) -> None:
        self._serial += 1
        due_ns = self._ctx.now_ns + delay_ns
        if not self._deadlines or due_ns < self._deadlines[0][0]:
            self._ctx.call_at_ns(due_ns, self._expire)
        heappush(self._deadlines, (due_ns, self._serial, cntlid, tag, request.cid))

    def _expire(self, _: object) -> None:
        now_ns = self._ctx.now_ns
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, _, cntlid, tag, cid = heappop(self._deadlines)
            self._give_up(cntlid, tag, cid)
        self._deadlines = [each for each in self._deadlines if self._held(*each[2:]) is not None]
        if self._deadlines:
            self._ctx.call_at_ns(self._deadlines[0][0], self._expire)

    def _held(self, cntlid: int, tag: int, cid: int) -> tuple[CapsuleQueue | EventQueue, int] | None:
        """Queue and tag of a request that still waits."""
        queue = self._events.get(cntlid) if tag >= 0 else self._queues.get((cntlid, 0))
        tag = tag if tag >= 0 else -1 - tag
        waits = queue is not None and tag in queue.requests and queue.requests[tag].cid == cid
        return (queue, tag) if queue is not None and waits else None

    def _give_up(self, cntlid: int, tag: int, cid: int) -> None:
        held, controller = self._held(cntlid, tag, cid), self._subsystem.controllers.get(cntlid)
        if held is not None and controller is not None and controller.events.let_go(*held):
            queue, tag = held
            self._ctx.complete(queue.requests.pop(tag), status=errno.ETIMEDOUT)
