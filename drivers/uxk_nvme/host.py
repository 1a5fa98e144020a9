"""The driver's half: block requests become commands in rings, completions become answers (Linux: drivers/nvme/host)."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Final, Literal, TypeAlias

import uxk
from uxk.uapi.blk import IoFlag
from uxk_nvme.bounce import Bounce
from uxk_nvme.errnos import errno_of, may_retry
from uxk_nvme.iommu import OFFSET_BITS, OFFSET_MASK, Iommu
from uxk_nvme.ioqueue import IoQueue, Parts
from uxk_nvme.pcie import Registers
from uxk_nvme.spec import CRD_SHIFT, CRDT_100MS, PAGE_BYTES, PSDT_SGL, TRANSFER_MAX_BYTES
from uxk_nvme.translate import Disk, job_of

_PLAIN: Final = PSDT_SGL << 8
_SPECIAL: Final = int(IoFlag.FUA | IoFlag.PREFLUSH)
_READ: Final = int(uxk.Op.READ)
_WRITE: Final = int(uxk.Op.WRITE)
_NO_BASES: Final[dict[int, int]] = {}
_BLOCK: Final = frozenset({uxk.Op.READ, uxk.Op.WRITE, uxk.Op.FLUSH, uxk.Op.DISCARD, uxk.Op.WRITE_ZEROES})


Way: TypeAlias = tuple[int, Disk, int]
"""Bus address of a client's memory, the disk, and the bytes that there are of the memory."""


class Host:
    """Requests of disks, and their way through the queues.  ``other`` takes requests that are none of disks,
    ``after`` ends a turn that a timer began."""

    def __init__(
        self, ctx: uxk.Context, registers: Registers, iommu: Iommu, bounce: Bounce,
        other: Callable[[uxk.Request, Disk | None], object], after: Callable[[], object],
    ) -> None:  # fmt: skip
        self._ctx = ctx
        self._registers = registers
        self._iommu = iommu
        self._bounce = bounce
        self._other = other
        self._after = after
        self.retries = 0
        self.queues: list[IoQueue] = []
        self.disks: dict[int, Disk] = {}
        """By device number; 0 stands for the first."""
        self.pending: dict[int, None] = {}
        """Queues that have interrupted."""
        self._faults = registers.controller.subsystem.faults
        self._waiting: deque[uxk.Request] = deque()
        """Requests for which there was no command identifier: whatever comes behind them waits, too."""
        self._large: deque[uxk.Request] = deque()
        self._small: deque[uxk.Request] = deque()
        """Requests for which there was no bounce buffer of that size: nobody waits for them."""
        self._tries: dict[int, int] = {}
        """By request that was tried again."""

    @property
    def busy(self) -> bool:
        """Whether commands are under way."""
        return any(len(queue.free) < queue.ring.entries - 1 for queue in self.queues)

    # --- submission ---

    def submit(self, requests: Sequence[uxk.Request]) -> None:
        """Takes a batch; what finds no room waits."""
        taken = 0 if self._waiting else self._take(requests)
        if taken < len(requests):
            self._waiting.extend(requests[taken:])

    def _take(self, requests: Sequence[uxk.Request]) -> int:
        """Puts requests into one queue, with one doorbell; returns how many there was room for.

        Neighbours mostly differ in their offsets alone.  So the way of one plain read or write is remembered, and
        taken by those that follow with the same memory, length and device.
        """
        queue = self.queues[requests[0].port % len(self.queues)]
        flat: list[int] = []
        if len(requests) == 1:  # there is nobody to remember it for
            taken = int(self._general(queue, requests[0], flat) is not False)
            if flat:
                self._ring(queue, flat)
            return taken
        free, slots, bases = queue.free, queue.slots, _NO_BASES
        region = length = device = mask = last_offset = last_buffer = head = shift = control = 0
        taken = len(requests)
        for index, request in enumerate(requests):
            opcode, offset, buffer = request.opcode, request.offset, request.buffer
            base = bases.get(opcode)
            if (
                base and request.region == region and request.length == length and request.device == device
                and not offset & mask and offset <= last_offset and buffer <= last_buffer
                and not request.flags & _SPECIAL and free
            ):  # fmt: skip
                cid = free.pop()
                slots[cid] = request
                flat += (head - opcode | cid << 16, base + buffer, length, offset >> shift, control)
                continue
            way = self._general(queue, request, flat)
            if way is False:
                taken = index
                break
            if way is not None:
                if request.region != region or request.length != length or request.device != device:
                    bases = {}
                region, length, device = request.region, request.length, request.device
                bases[opcode], disk, limit = way
                shift, mask = disk.shift, (1 << disk.shift) - 1
                last_offset, last_buffer = disk.size_bytes - length, limit - length
                # READ is 1 in the kernel's words and 2 in NVMe's, WRITE the other way round.
                head, control = 3 + _PLAIN | disk.nsid << 32, (length >> shift) - 1
        if flat:
            self._ring(queue, flat)
        return taken

    def _general(self, queue: IoQueue, request: uxk.Request, flat: list[int]) -> Way | Literal[False] | None:
        """Any request; False if there is no room for it now, the way of a plain read or write of a client's memory."""
        opcode, disk, region = request.opcode, self.disks.get(request.device), request.region
        if disk is None or opcode not in (_READ, _WRITE) or request.flags & _SPECIAL:
            return None if self._special(queue, request, disk, flat) else False
        if not queue.free:
            return False
        length, shift = request.length, disk.shift
        if opcode == _WRITE and not region:
            length = length or len(request.payload)
            length = length if length == len(request.payload) else 0
        if (
            not 0 < length <= TRANSFER_MAX_BYTES or (request.offset | length) & (1 << shift) - 1
            or request.offset + length > disk.size_bytes
        ):  # fmt: skip
            self._ctx.complete(request, status=errno.EINVAL)
            return None
        place = -1
        if region:
            address = self._address(request, length)
            if not address:
                return None
        else:
            bounce = self._bounce
            place = bounce.take(length)
            if place < 0:
                self._starve(request, length)
                return None
            address = bounce.address(place)
            if opcode == _WRITE:
                bounce.view[place : place + length] = request.payload
            elif self._faults.active:
                bounce.view[place : place + length] = bytes(length)  # a transfer may be cut short
        cid = queue.free.pop()
        queue.slots[cid] = request
        flat += (
            3 - opcode | _PLAIN | cid << 16 | disk.nsid << 32, address, length, request.offset >> shift,
            (length >> shift) - 1,
        )  # fmt: skip
        if place >= 0:
            queue.extra[cid] = (place, length, None, None)
            return None
        return address - request.buffer, disk, len(self._iommu.views[address >> OFFSET_BITS] or b"")

    def _ring(self, queue: IoQueue, flat: Sequence[int]) -> None:
        ring = queue.ring
        ring.put(flat)
        ring.ring()
        self._registers.doorbell(ring.qid, self._ctx.now_ns)

    def _address(self, request: uxk.Request, length: int) -> int:
        """The bus address of a request's memory; 0, and the request is answered, if there is none."""
        try:
            handle = self._iommu.handle(request.region, request.opcode == _READ)
        except uxk.UxkError as exc:
            self._ctx.complete(request, status=exc.errno or errno.EFAULT)
            return 0
        view = self._iommu.views[handle]
        if view is None or not 0 <= request.buffer <= OFFSET_MASK or request.buffer + length > len(view):
            self._ctx.complete(request, status=errno.EFAULT)
            return 0
        return handle << OFFSET_BITS | request.buffer

    def _special(self, queue: IoQueue, request: uxk.Request, disk: Disk | None, flat: list[int]) -> bool:
        """Whatever is no plain read or write; False if there is no room for it now."""
        if request.opcode not in _BLOCK:
            self._other(request, disk)
            return True
        job = errno.ENODEV if disk is None else job_of(request, disk)
        if isinstance(job, int):
            self._ctx.complete(request, status=job)
            return True
        count = len(job.commands)
        if count > len(queue.free):
            if count < queue.ring.entries:
                return False
            self._ctx.complete(request, status=errno.EINVAL)  # more than the queue can ever hold
            return True
        place, address = -1, 0
        if request.region and request.opcode in (_READ, _WRITE):
            address = self._address(request, job.moved)
            if not address:
                return True
        elif request.opcode == _READ or job.data:
            length = job.moved if request.opcode == _READ else len(job.data)
            place = self._bounce.take(length)
            if place < 0:
                self._starve(request, length)
                return True
            self._bounce.view[place : place + length] = job.data or bytes(length)
            address = self._bounce.address(place)
        parts = Parts(count, place) if count > 1 else None
        for words in job.commands:
            command = (words[0], address if words[2] else 0, *words[2:])
            cid = queue.free.pop()
            queue.slots[cid] = request
            queue.extra[cid] = (place, job.moved, command, parts)
            flat += (command[0] | cid << 16, *command[1:])
        return True

    def _starve(self, request: uxk.Request, length: int) -> None:
        (self._small if length <= PAGE_BYTES else self._large).append(request)

    def _feed(self) -> int:
        """Puts in requests for which bounce buffers have come back, and returns how many."""
        large, small = self._bounce.free_large, self._bounce.free_small
        some = [self._large.popleft() for _ in range(min(large, len(self._large)))]
        some += [self._small.popleft() for _ in range(min(small + large - len(some), len(self._small)))]
        taken = self._take(some) if some else 0
        self._waiting.extendleft(reversed(some[taken:]))
        return taken

    # --- completion ---

    def poll(self) -> None:
        """Takes what the controller has posted, and puts in what waits, until there is neither."""
        while True:
            while self.pending:
                qid, _ = self.pending.popitem()
                if 0 < qid <= len(self.queues):
                    self._reap(self.queues[qid - 1])
            if not (self._waiting or self._large or self._small):
                return
            taken = self._feed() if self._large or self._small else 0
            if self._waiting:
                some = list(islice(self._waiting, 64))
                count = self._take(some)
                for _ in range(count):
                    self._waiting.popleft()
                taken += count
            if not taken and not self.pending:
                return

    def _reap(self, queue: IoQueue) -> None:
        ring, slots, extra = queue.ring, queue.slots, queue.extra
        under_way = ring.entries - 1 - len(queue.free)
        more = under_way > 0
        while more:
            plain, more = ring.reap_plain(under_way)
            if len(plain) == 1 and not more and not extra:  # as when each ends at a time of its own
                queue.free += plain
                request = slots[plain[0]]
                assert request is not None
                self._ctx.complete(request, result=request.length)
                break
            if not plain:
                words = ring.reap()
                for _, word in words:
                    self._done(queue, word >> 32 & 0xFFFF, word >> 49)
                more = bool(words)
            elif extra and not extra.keys().isdisjoint(plain):
                for cid in plain:
                    self._done(queue, cid, 0)
            else:
                queue.free += plain
                self._ctx.complete_moved([slots[cid] for cid in plain])  # type: ignore[misc]
            under_way = ring.entries - 1 - len(queue.free)
            more = more and under_way > 0
        self._registers.head_doorbell(ring.qid)

    def _done(self, queue: IoQueue, cid: int, status: int) -> None:
        """One completion, whatever it is of."""
        request = queue.slots[cid]
        assert request is not None
        aborted = cid in queue.aborted
        if status and not aborted and may_retry(status) and self._retry(queue, cid, request, status):
            return
        self._finish(queue, cid, request, errno.ETIMEDOUT if aborted and status else errno_of(status))

    def _finish(self, queue: IoQueue, cid: int, request: uxk.Request, failure: int) -> None:
        """A command ends for good, and its request, if it is the last one of it."""
        place, length, _, parts = queue.extra.pop(cid, (-1, request.length, None, None))
        answered = queue.aborted.pop(cid, False)
        queue.free.append(cid)
        if parts is not None:
            parts.status = parts.status or failure
            parts.left -= 1
            if parts.left:
                return
            failure = parts.status
        self._tries.pop(request.cid, None)
        payload = b""
        if place >= 0:
            if request.opcode == _READ and not failure:
                payload = bytes(self._bounce.view[place : place + length])
            self._bounce.give(place)
        if not answered:
            self._ctx.complete(request, payload, status=failure, result=0 if failure else length)

    def _retry(self, queue: IoQueue, cid: int, request: uxk.Request, status: int) -> bool:
        """Tries a command again (Linux: nvme_decide_disposition); False when it has been tried often enough.

        At once, or after the delay that the controller asks for (nvme_retry_req).
        """
        place, length, command, parts = queue.extra.get(cid, (-1, request.length, None, None))
        tries = self._tries.get(request.cid, 0)
        disk = self.disks.get(request.device)
        if tries >= self.retries or disk is None:
            return False
        if command is None:
            job = job_of(request, disk)
            if isinstance(job, int):
                return False
            command = job.commands[0]
        self._tries[request.cid] = tries + 1
        queue.extra[cid] = (place, length, command, parts)
        if status >> CRD_SHIFT & 3:
            delay_ns = CRDT_100MS * 100_000_000
            self._ctx.call_later_ns(delay_ns, lambda _: self._send_again(queue, cid, request, after=True))
        else:
            self._send_again(queue, cid, request)
        return True

    def _send_again(self, queue: IoQueue, cid: int, request: uxk.Request, *, after: bool = False) -> None:
        if queue.slots[cid] is not request or cid not in queue.extra:
            return  # it was answered meanwhile
        place, length, command, parts = queue.extra[cid]
        assert command is not None
        if cid in queue.aborted:  # while it waited
            self._finish(queue, cid, request, errno.ETIMEDOUT)
            self._after()
            return
        if place >= 0 and request.opcode == _READ:
            self._bounce.view[place : place + length] = bytes(length)
        address = 0
        if command[2]:
            # The mapping may be another by now; address 0 is refused by the controller.
            address = self._bounce.address(place) if place >= 0 else self._mapped(request)
        queue.extra[cid] = (place, length, (command[0], address, *command[2:]), parts)
        self._ring(queue, (command[0] | cid << 16, address, *command[2:]))
        if after:
            self._after()

    def _mapped(self, request: uxk.Request) -> int:
        try:
            handle = self._iommu.handle(request.region, request.opcode == _READ)
        except uxk.UxkError:
            return 0
        return handle << OFFSET_BITS | request.buffer

    # --- commands that hang ---

    def hung(self, limit_ns: int) -> list[tuple[int, int]]:
        """Queue and command identifiers of what has been under way for so long; it is noted as aborted."""
        now_ns = self._ctx.now_ns
        return [(queue.ring.qid, cid) for queue in self.queues for cid in queue.hung(now_ns, limit_ns)]

    def taken_back(self, requests: Collection[int]) -> list[tuple[int, int]]:
        """The same, of requests by number that the kernel has answered itself; those that wait are forgotten."""
        for waiting in (self._waiting, self._large, self._small):
            kept = [request for request in waiting if request.cid not in requests]
            if len(kept) < len(waiting):
                waiting.clear()
                waiting.extend(kept)
        return [(queue.ring.qid, cid) for queue in self.queues for cid in queue.taken_back(requests)]
