"""A disk to experiment on: a driver over plain bytes that remembers what it was asked, and does as it is told."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

import uxk
from uxk.actor.actor import Crash
from uxk.kernel.kernel import Kernel
from uxk.subsystems.blk.disk import Disk
from uxk.subsystems.blk.layer import BlockLayer
from uxk.subsystems.blk.port import DiskPort
from uxk.uapi.blk import BlockLimits, properties_of
from uxk.uapi.entries import Completion, Op, Request

KB = 1 << 10
MS = 1_000_000
LIMITS = BlockLimits(
    capacity_bytes=1 << 20, max_transfer_bytes=64 * KB, max_discard_bytes=256 * KB, max_write_zeroes_bytes=256 * KB,
    write_cache=1,
)  # fmt: skip


class Medium:
    """What a driver has behind it, and how it behaves."""

    def __init__(self, size_bytes: int) -> None:
        self.cache = bytearray(size_bytes)
        """What a read gives."""
        self.platter = bytearray(size_bytes)
        """What a loss of power leaves."""
        self.seen: list[Request] = []
        self.latency_ns = 0
        self.volatile = True
        self.swallow: Callable[[Request], bool] = lambda request: False
        """Requests that are never answered."""
        self.judge: Callable[[Request], int] = lambda request: 0
        """The errno of an answer."""
        self.events: list[tuple[str, bytes]] = []

    def ops(self) -> list[tuple[int, int, int]]:
        """What was asked: opcode, offset, length."""
        return [(r.opcode, r.offset, r.length) for r in self.seen]

    def serve(self, request: Request) -> tuple[int, bytes]:
        """Status and payload; data change at once."""
        status = self.judge(request)
        start, end = request.offset, request.offset + request.length
        if status or end > len(self.cache):
            return status or errno.EIO, b""
        match request.opcode:
            case Op.READ:
                return 0, bytes(self.cache[start:end])
            case Op.WRITE:
                assert len(request.payload) == request.length
                self.cache[start:end] = request.payload
            case Op.DISCARD | Op.WRITE_ZEROES:
                self.cache[start:end] = bytes(request.length)
            case Op.FLUSH:
                self.platter[:] = self.cache
            case _:
                return 0, b"other"
        if not self.volatile or request.flags & 1:
            self.platter[start:end] = self.cache[start:end]
        return 0, b""


def make_driver(medium: Medium, limits: BlockLimits | None, manifest: dict[str, Any]) -> type[uxk.Extension]:
    """A driver class of its own, so that each test has its own medium."""

    class BlkRam(uxk.Extension):
        """Serves from the medium."""

        def setup(self, ctx: uxk.Context) -> None:
            if limits is not None:
                ctx.call_later_ns(0, lambda _: ctx.add_device(ctx.device, **properties_of(limits)))

        def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
            medium.events.append((event.topic, event.value))

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            medium.seen += requests
            answers = [(r, *medium.serve(r)) for r in requests if not medium.swallow(r)]

            def finish(_: object) -> None:
                for request, status, payload in answers:
                    ctx.complete(request, payload, status=status, result=0 if status else request.length)

            if medium.latency_ns:
                ctx.call_later_ns(medium.latency_ns, finish)
            else:
                finish(None)

    BlkRam.manifest = uxk.Manifest(name="blkram", driver_class="block", **manifest)
    return BlkRam


class Client:
    """Whoever uses the disk."""

    def __init__(self, disk: Disk, name: str = "", *, tagged: bool = False) -> None:
        self.port: DiskPort = disk.open_port(name, self._take, tagged=tagged)
        self.answers: dict[int, Completion] = {}
        self.order: list[int] = []
        self.on_answer: Callable[[], None] = lambda: None

    def _take(self, completions: list[Completion]) -> None:
        for completion in completions:
            assert completion.cid not in self.answers, "answered twice"
            self.answers[completion.cid] = completion
            self.order.append(completion.cid)
        self.on_answer()

    def submit(self, *requests: Request) -> list[int]:
        """As one batch; returns the command ids."""
        self.port.submit_batch(requests)
        return [request.cid for request in requests]

    def status(self, cids: Sequence[int]) -> list[int]:
        """How each was answered."""
        return [self.answers[cid].status for cid in cids]


class Lab:
    """One kernel with one disk."""

    def __init__(self, kernel: Kernel, layer: BlockLayer, medium: Medium) -> None:
        self.kernel = kernel
        self.layer = layer
        self.medium = medium
        self.disk: Any = layer.disks.get("blkram0")
        self.path = "/sys/block/blkram0"

    def client(self, name: str = "", *, tagged: bool = False) -> Client:
        """A new client."""
        return Client(self.disk, name, tagged=tagged)

    async def run(self) -> None:
        """Until nothing is left to do."""
        await self.kernel.run()

    def crash(self) -> None:
        """The driver dies, here and now."""
        agent = self.kernel.agents["blkram"]
        if agent.host is not None:
            agent.on_crash(agent, Crash("test", "Test", "died", ""))

    def set(self, name: str, value: object) -> None:
        """Writes an attribute under ``queue``."""
        self.kernel.sysfs.write(f"{self.path}/queue/{name}", str(value))

    def get(self, name: str) -> str:
        """Reads one."""
        return self.kernel.sysfs.read(f"{self.path}/queue/{name}")

    def stat(self) -> list[int]:
        """The 17 fields."""
        return [int(word) for word in self.kernel.sysfs.read(f"{self.path}/stat").split()]

    def check_empty(self) -> None:
        """Nothing is left in the queue, and the books agree."""
        disk = self.disk
        assert (disk.issued, disk.tags_used, disk.answers.open) == (0, 0, 0)
        assert not (disk.flights or disk.hardware.under_way or disk.hardware.held or len(disk.scheduler))
        assert disk.clear
        assert disk.flush.waiting == 0
        assert disk.stats.inflight == [0, 0, 0, 0]
        assert self.kernel.machine.outstanding == 0


@asynccontextmanager
async def lab_of(
    limits: BlockLimits | None = LIMITS, *, cpus: int = 2, depth: int = 8, manifest: dict[str, Any] | None = None,
    seed: int = 0, **changes: Any,
) -> AsyncIterator[Lab]:  # fmt: skip
    """A kernel with a block layer, and a disk as described; ``changes`` are fields of its limits."""
    if limits is not None and changes:
        limits = msgspec.structs.replace(limits, **changes)
    medium = Medium(limits.capacity_bytes if limits else 1 << 20)
    async with Kernel(seed=seed) as kernel:
        layer = BlockLayer(kernel, cpus=cpus)
        driver = make_driver(medium, limits, {"budget": uxk.Budget(queue_depth=depth), **(manifest or {})})
        await kernel.insmod(driver)
        await kernel.run()
        yield Lab(kernel, layer, medium)


@pytest.fixture
def lab() -> Any:
    """``async with lab(max_transfer_bytes=4096) as it``."""
    return lab_of
