"""A small NVMe controller for tests of the export: one namespace in memory, asynchronous events, one counter."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence
from typing import Any

import uxk
from uxk.uapi.blk import NvmeOp, nvme_result

BLOCK = 512
BLOCKS = 1 << 13
DNR = 1 << 14
CONTROLLERS_MAX = 8


class FakeDevice:
    """Answers passthrough requests; sans-IO."""

    def __init__(self) -> None:
        self.medium = bytearray(BLOCK * BLOCKS)
        self.hosts: dict[int, bytes] = {}
        self.waiting: dict[int, list[Callable[[int, int, bytes], object]]] = {}
        self.events: dict[int, list[int]] = {}
        self.flushes = 0
        self.enabled: dict[int, int] = {}

    def act(
        self, op: int, offset: int, length: int, payload: bytes, data: memoryview | None,
        then: Callable[[int, int, bytes], object],
    ) -> None:  # fmt: skip
        """One request; ``data`` is its part of the shared region."""
        cntlid = offset >> 16
        if op == NvmeOp.ATTACH:
            free = [number for number in range(1, CONTROLLERS_MAX + 1) if number not in self.hosts]
            if not free or len(payload) != 272:
                then(errno.ENOSPC if not free else errno.EINVAL, 0, b"")
                return
            self.hosts[free[0]] = payload
            then(0, free[0], b"")
        elif cntlid not in self.hosts:
            then(errno.ENODEV, 0, b"")
        elif op == NvmeOp.DETACH:
            del self.hosts[cntlid]
            self.enabled.pop(cntlid, None)
            then(0, 0, b"")
            for waiting in self.waiting.pop(cntlid, []):
                waiting(errno.ECANCELED, 0, b"")
        elif op == NvmeOp.WAIT_EVENT:
            if self.events.get(cntlid):
                then(0, self.events[cntlid].pop(0), b"")
            else:
                self.waiting.setdefault(cntlid, []).append(then)
        elif op in (NvmeOp.ADMIN, NvmeOp.IO):
            answer = bytearray(length) if data is None else data
            serve = self.admin if op == NvmeOp.ADMIN else self.io
            status, dw0 = serve(cntlid, payload, length, answer)
            then(0, nvme_result(dw0, status), bytes(answer) if data is None and not status else b"")
        else:
            then(errno.EOPNOTSUPP, 0, b"")

    def happen(self, dw0: int) -> None:
        """An event for every controller."""
        for cntlid in self.hosts:
            if self.waiting.get(cntlid):
                self.waiting[cntlid].pop(0)(0, dw0, b"")
            else:
                self.events.setdefault(cntlid, []).append(dw0)

    def admin(self, cntlid: int, sqe: bytes, length: int, data: Any) -> tuple[int, int]:
        """Identify, Get Log Page 02h, feature 0Bh, Abort."""
        opcode, dw10, dw11 = sqe[0], *struct.unpack_from("<II", sqe, 40)
        if opcode == 6:
            if dw10 & 0xFF == 1:
                data[4:24] = b"FAKE".ljust(20)
                data[77], data[78:80] = 3, cntlid.to_bytes(2, "little")
                data[80:84] = (0x20000).to_bytes(4, "little")
                data[92:96] = (1 << 8).to_bytes(4, "little")
                data[259] = 1
                data[516:520] = (1).to_bytes(4, "little")
            elif dw10 & 0xFF == 0:
                data[0:24] = struct.pack("<QQQ", BLOCKS, BLOCKS, BLOCKS)
                data[130] = 9
            else:
                return 2 | DNR, 0
            return 0, 0
        if opcode == 2:
            data[:1] = bytes([dw10 & 0xFF])[:length]
            return 0, 0
        if opcode == 9 and dw10 & 0xFF == 0x0B:
            self.enabled[cntlid] = dw11
            return 0, 0
        if opcode == 8:
            return 0, 1
        return 1 | DNR, 0

    def io(self, cntlid: int, sqe: bytes, length: int, data: Any) -> tuple[int, int]:
        """Read, Write, Flush."""
        if sqe[0] == 0:
            self.flushes += 1
            return 0, 0
        slba, blocks = struct.unpack_from("<QH", sqe, 40)
        start, size = slba * BLOCK, (blocks + 1) * BLOCK
        if slba + blocks >= BLOCKS:
            return 0x80 | DNR, 0
        if size != length:
            return 0x0F | DNR, 0
        if sqe[0] == 1:
            self.medium[start : start + size] = data[:size]
        elif sqe[0] == 2:
            data[:size] = self.medium[start : start + size]
        else:
            return 1 | DNR, 0
        return 0, 0


class FakeBackend:
    """A backend of the target without a kernel: answers at once, or when told to."""

    def __init__(self, view: memoryview, *, at_once: bool = True) -> None:
        self.device = FakeDevice()
        self.view = view
        self.at_once = at_once
        self.held: list[Callable[[], None]] = []
        self.requests = 0

    def request(
        self, op: int, cntlid: int, qid: int, payload: bytes, then: Any, *, length: int = 0, buffer: int = -1
    ) -> None:
        """See :class:`uxk_nvmet_tcp.backend.Backend`."""
        self.requests += 1
        data = self.view[buffer : buffer + length] if buffer >= 0 else None

        def act() -> None:
            self.device.act(op, cntlid << 16 | qid, length, payload, data, then)

        if self.at_once:
            act()
        else:
            self.held.append(act)

    def answer(self, count: int = 1 << 30) -> None:
        """Answers held requests, the oldest first."""
        while self.held and count:
            self.held.pop(0)()
            count -= 1


class FakeNvme(uxk.Extension[uxk.Params]):
    """The same as a driver: an event is posted by writing its DW0 to ``event``; ``die`` makes it crash."""

    manifest = uxk.Manifest(
        name="fake_nvme", kind="driver", driver_class="block", passthrough="nvme", budget=uxk.Budget(queue_depth=256),
        restart=uxk.RestartPolicy(max_restarts=100),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        """A fresh medium."""
        self.device = FakeDevice()
        ctx.set_attribute("event", "", writable=True)
        ctx.set_attribute("die", "", writable=True)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        """Answers what it can at once."""
        for request in requests:
            data = None
            if request.region:
                data = ctx.map(request.region, writable=True)[request.buffer : request.buffer + request.length]

            def then(status: int, result: int, payload: bytes, request: uxk.Request = request) -> None:
                ctx.complete(request, payload, status=status, result=result)

            self.device.act(request.opcode, request.offset, request.length, request.payload, data, then)

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        """Written attributes."""
        if event.topic == "store" and event.name == "event":
            self.device.happen(int(event.value, 0))
        elif event.topic == "store" and event.name == "die":
            raise RuntimeError("told to die")
