"""Commands that clients hand over whole (uxk.uapi.blk.NvmeOp): capsules instead of rings, checked before all else."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import uxk
from uxk.uapi.blk import NvmeOp, nvme_result
from uxk_nvme.admin import ADMIN_TABLE
from uxk_nvme.bounce import Bounce
from uxk_nvme.capsules import CapsuleQueue, EventQueue
from uxk_nvme.controller import Controller
from uxk_nvme.io import IO_TABLE
from uxk_nvme.iommu import OFFSET_BITS, OFFSET_MASK, Iommu
from uxk_nvme.queues import Done
from uxk_nvme.spec import SQE_BYTES, TRANSFER_MAX_BYTES, Admin, Feature, Refused, Status
from uxk_nvme.subsystem import PRIMARY, Subsystem

QUEUES_MAX: Final = 256
"""Queue identifiers that a host may use."""
HELD_MAX_NS: Final = 20_000_000_000
"""How long a command may take, and a request may wait for an event: less than the kernel's deadline for requests."""
_LOOK_NS: Final = HELD_MAX_NS // 8
SILENCE_MAX_NS: Final = 120_000_000_000
"""A host that says nothing for so long may lose its controller to another: its export may have died."""
NQN_BYTES: Final = 256
NQN_MAX: Final = 223
"""Characters of an NQN (base, section 4.5)."""
HOST_ID_BYTES: Final = 16
_QUEUES_KEPT: Final = 64
"""Of the kernel's own controller: beyond that, clients' queues without commands are forgotten."""
_TO_HOST: Final = 2
"""Bits 1:0 of an opcode say which way data go (base, figure 87)."""


class Wait(NamedTuple):
    """A request that waits for an event, and gives up when it is due."""

    due_ns: int
    controller: Controller
    queue: EventQueue
    tag: int


class Passthrough:
    """Requests of class :class:`NvmeOp`.  What is wrong with a *request* is an errno; a *command* gets its status."""

    def __init__(self, ctx: uxk.Context, subsystem: Subsystem, iommu: Iommu, bounce: Bounce) -> None:
        self._ctx = ctx
        self._subsystem = subsystem
        self._iommu = iommu
        self._bounce = bounce.other()
        self._queues: dict[tuple[int, int], dict[int, CapsuleQueue]] = {}
        """By controller and client: on the kernel's own controller, clients do not see each other's commands."""
        self._events: dict[int, EventQueue] = {}
        self.pending: dict[CapsuleQueue, None] = {}
        """Queues with commands that were taken and are not executed yet."""
        self._waits: dict[int, Wait] = {}
        """Requests that wait for an event, by their number."""
        self._timer: tuple[int, Callable[[], object]] = -1, _nothing
        """When the first of them gives up, and what takes that back."""
        self._looking = False

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

    def run(self) -> None:
        """Executes what was taken, queue by queue."""
        touched, self.pending = self.pending, {}
        now_ns = self._ctx.now_ns
        if touched and not self._looking:
            self._looking = True
            self._ctx.call_later_ns(_LOOK_NS, self._look, daemon=True)
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
        if controller.cntlid == PRIMARY and admin and _is_drivers(request.payload):
            self._ctx.complete(request, status=errno.EPERM)
            return
        if controller.cntlid == PRIMARY and not admin and not qid:
            qid = 1
        if len(request.payload) < SQE_BYTES or (qid != 0 if admin else not 0 < qid <= QUEUES_MAX):
            self._ctx.complete(request, status=errno.EINVAL)
            return
        queue = self._queue(controller, request.port, qid)
        place = self._place(request)
        if isinstance(place, int):
            self._ctx.complete(request, status=place)
            return
        address, length, bounce = place
        queue.add(request, address, length, bounce)
        self.pending[queue] = None

    def _controller(self, request: uxk.Request) -> Controller | int:
        cntlid = request.offset >> 16 or PRIMARY
        found = self._subsystem.controllers.get(cntlid)
        if found is None:
            return errno.ENODEV
        return found if cntlid == PRIMARY or found.port == request.port else errno.EACCES

    def _queue(self, controller: Controller, port: int, qid: int) -> CapsuleQueue:
        key = controller.cntlid, port
        queues = self._queues.get(key)
        if queues is None:
            if len(self._queues) >= _QUEUES_KEPT:
                self._forget_idle()
            queues = self._queues[key] = {}
        queue = queues.get(qid)
        if queue is None:
            queue = queues[qid] = CapsuleQueue(controller, qid, queues, self._answer)
            controller.queues.setdefault(qid, queue)
        return queue

    def _forget_idle(self) -> None:
        """Clients of the kernel's own controller that have no commands under way: they may be gone."""
        for key, queues in list(self._queues.items()):
            if key[0] == PRIMARY and not any(queue.requests for queue in queues.values()):
                del self._queues[key]

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
        if not 0 < len(host) <= NQN_MAX or not name.isprintable() or len(payload) > NQN_BYTES + HOST_ID_BYTES:
            self._ctx.complete(request, status=errno.EINVAL)
            return
        crowd = self._subsystem.crowd(request.port)
        if crowd and not self._evict(crowd):
            self._ctx.complete(request, status=errno.EMFILE)
            return
        made = self._subsystem.add_controller(name, payload[NQN_BYTES:], request.port, (ADMIN_TABLE, IO_TABLE))
        made.queue_limit = QUEUES_MAX
        made.seen_ns = self._ctx.now_ns
        self._ctx.complete(request, result=made.cntlid)

    def _evict(self, crowd: list[Controller]) -> bool:
        """Ends the controller that was silent for longest, if nobody can be there any more; False if none was."""
        oldest = min(crowd, key=lambda each: each.seen_ns)
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

    def release(self, request: uxk.Request) -> None:
        """A client has gone, says the kernel, and its hosts with it."""
        for controller in [each for each in self._subsystem.controllers.values() if each.port == request.port]:
            self.drop(controller)
        self._ctx.complete(request)

    def drop(self, controller: Controller) -> None:
        """Ends a controller: what came before is executed, what still waits is answered as aborted."""
        self.run()
        for held, tag in controller.events.drop():
            held.post([Done(tag, Status.ABORTED_SQ_DELETED)])
        for queue in self._queues.pop((controller.cntlid, controller.port), {}).values():
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
        controller.seen_ns = self._ctx.now_ns
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
            due_ns = self._ctx.now_ns + min(request.length * 1_000_000, HELD_MAX_NS)
            self._waits[request.cid] = Wait(due_ns, controller, queue, tag)
            self._arm()

    def _event(self, request: uxk.Request, done: Done) -> None:
        if self._waits.pop(request.cid, None) is not None:
            self._arm()
        if done.status:
            self._ctx.complete(request, status=errno.ECANCELED)
        else:
            self._ctx.complete(request, result=done.dw0)

    def _arm(self) -> None:
        """One timer for the first request that gives up."""
        due_ns = min((wait.due_ns for wait in self._waits.values()), default=-1)
        at_ns, cancel = self._timer
        if due_ns == at_ns:
            return
        cancel()
        self._timer = -1, _nothing
        if due_ns >= 0:
            self._timer = due_ns, partial(self._ctx.cancel_timer, self._ctx.call_at_ns(due_ns, self._expire))

    def _expire(self, _: object) -> None:
        self._timer = -1, _nothing
        late = [(cid, wait) for cid, wait in self._waits.items() if wait.due_ns <= self._ctx.now_ns]
        for cid, (_, controller, queue, tag) in late:
            del self._waits[cid]
            controller.events.let_go(queue, tag)
            self._ctx.complete(queue.requests.pop(tag), status=errno.ETIMEDOUT)
        self._arm()

    # --- commands that hang ---

    def _look(self, _: object) -> None:
        """Takes back what the controller has had for too long: nobody else would, and its buffer would be gone."""
        now_ns, busy = self._ctx.now_ns, False
        for queue in [queue for queues in self._queues.values() for queue in queues.values()]:
            for tag in queue.watch.late(queue.requests, now_ns, HELD_MAX_NS):
                if queue.controller.forget(queue, tag):
                    request, place = queue.take(tag)
                    if place >= 0:
                        self._bounce.give(place)
                    self._ctx.complete(request, status=errno.ETIMEDOUT)
            busy = busy or bool(queue.requests)
        self._looking = busy
        if busy:
            self._ctx.call_later_ns(_LOOK_NS, self._look, daemon=True)


def _nothing() -> None:
    """There is no timer to take back."""


def _is_drivers(payload: bytes) -> bool:
    """Whether a command would take the driver's own events away."""
    if payload[:1] == bytes((Admin.SET_FEATURES,)):
        return payload[40:41] == bytes((Feature.EVENTS,))
    return payload[:1] == bytes((Admin.ASYNC_EVENT,))
