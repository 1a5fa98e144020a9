"""Modules and scenarios to be explored: small, busy, and with data that tell whether they are right.

``scenario("queue")`` and so on; ``uxk explore tests/simulation/cast.py`` explores the one that ``CAST`` names.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import trio

import uxk
from uxk.core.site import DecisionSite
from uxk.errors import RequestError, RingFull, UxkError
from uxk.scenario import ClosedLoop, Load, Scenario
from uxk.scenario.exploring import Exploration
from uxk.scenario.model import BlockQueues
from uxk.testing.invariants import INVARIANTS, Watched, register_invariant
from uxk.uapi.blk import BlockLimits, IoFlag, properties_of
from uxk.uapi.entries import Completion, Op, Request
from uxk.uapi.supervisor import SupervisorSpec

US, MS = 1_000, 1_000_000
BLOCK = 512
BLOCKS = 128
HEADER = struct.Struct("<QQ")
COMMIT = b"commit: "
EXCUSED = (errno.EIO, errno.ENODEV, errno.ETIMEDOUT, errno.ECANCELED, errno.EAGAIN)
"""What a client may be told when its driver dies or is late; all else is somebody's mistake."""

RESTART = uxk.RestartPolicy(mode="transient", max_restarts=64, backoff_ns=20 * US, backoff_max_ns=MS)
WATCHDOG = uxk.Watchdog(heartbeat_ns=MS, request_timeout_ns=2 * MS, timeouts_max=4)
PATIENT = uxk.Watchdog(heartbeat_ns=MS, request_timeout_ns=2 * MS, timeouts_max=1000)


class DiskParams(uxk.Params):
    latency_ns: Annotated[int, uxk.param(ge=0, le=10 * MS)] = 40 * US
    cache: Annotated[bool, uxk.param(help="a volatile write cache: data are safe after a flush")] = False


class Disk(uxk.Extension[DiskParams]):
    """Keeps its data in memory that outlives it; answers out of order."""

    manifest = uxk.Manifest(
        name="sim-disk", driver_class="block", params=DiskParams, restart=RESTART, fate="reissue", watchdog=WATCHDOG,
        turn_cost_ns=2 * US, budget=uxk.Budget(queue_depth=8),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.random = ctx.random("latency")
        self.data: memoryview | None = None
        self.platter: memoryview | None = None
        self.early: list[uxk.Request] = []
        self.violations = 0
        ctx.allocate(BLOCKS * BLOCK, keep="data").then(lambda done: self.opened(ctx, done, "data"))
        ctx.allocate(BLOCKS * BLOCK, keep="platter").then(lambda done: self.opened(ctx, done, "platter"))
        if self.params.cache:
            limits = BlockLimits(capacity_bytes=BLOCKS * BLOCK, max_transfer_bytes=8 * BLOCK, write_cache=1)
            ctx.add_device(ctx.device, **properties_of(limits))

    def opened(self, ctx: uxk.Context, done: uxk.Completion, what: str) -> None:
        setattr(self, what, ctx.map(done.result, writable=True))
        if self.data is not None and self.platter is not None:
            early, self.early = self.early, []
            self.on_batch(ctx, early)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        if self.data is None or self.platter is None:
            self.early += requests
            return
        for request in requests:
            kept = bytes(self.data) if request.opcode == Op.FLUSH else b""
            delay_ns = int(self.random.integers(1, self.params.latency_ns + 2))
            ctx.call_later_ns(delay_ns, self.finishing(ctx, kept), request)

    def finishing(self, ctx: uxk.Context, kept: bytes) -> Callable[[uxk.Request], None]:
        return lambda request: self.finish(ctx, request, kept)

    def finish(self, ctx: uxk.Context, request: uxk.Request, kept: bytes) -> None:
        assert self.data is not None and self.platter is not None
        begin, end = request.offset, request.offset + request.length
        if end > len(self.data):
            ctx.fail(request, errno.EINVAL)
            return
        memory: Any = b""
        if request.region:
            try:
                memory = ctx.map(request.region, writable=request.opcode == Op.READ)
            except UxkError:
                ctx.fail(request, errno.EFAULT)
                return
        match request.opcode:
            case Op.READ if request.region:
                memory[request.buffer : request.buffer + request.length] = self.data[begin:end]
                ctx.complete(request, result=request.length)
            case Op.READ:
                ctx.complete(request, bytes(self.data[begin:end]), result=request.length)
            case Op.WRITE:
                data = memory[request.buffer : request.buffer + request.length] if request.region else request.payload
                self.check_order(ctx, bytes(data[:32]))
                self.data[begin:end] = data
                ctx.complete(request, result=request.length)
            case Op.FLUSH:
                self.platter[:] = kept  # what was there when the flush came
                ctx.complete(request)
            case _:
                ctx.fail(request, errno.EOPNOTSUPP)

    def check_order(self, ctx: uxk.Context, head: bytes) -> None:
        """A commit record says which data must be safe by now."""
        if not head.startswith(COMMIT):
            return
        assert self.platter is not None
        block, number = HEADER.unpack_from(head, len(COMMIT))
        if HEADER.unpack_from(self.platter, block * BLOCK)[1] < number:
            self.violations += 1
            ctx.set_attribute("violations", self.violations)


class Slow(Disk):
    """May use a part of the processor only: it is held back every now and then."""

    manifest = uxk.Manifest(
        name="sim-slow", driver_class="block", params=DiskParams, restart=RESTART, fate="requeue", watchdog=PATIENT,
        turn_cost_ns=2 * US, budget=uxk.Budget(queue_depth=8),
    )  # fmt: skip


class ClientParams(uxk.Params):
    device: str = "sim_disk0"
    first: int = 0
    blocks: int = 16
    operations: int = 120


class Client(uxk.Extension[ClientParams]):
    """Reads and writes blocks of a device through memory of its own, and compares."""

    manifest = uxk.Manifest(
        name="sim-client", kind="ml-agent", params=ClientParams, restart=RESTART, watchdog=WATCHDOG,
        capabilities=("device:sim*",),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.random = ctx.random("client")
        self.version = int(self.random.integers(1 << 40)) << 16
        self.cap = self.region = 0
        self.memory: memoryview | None = None
        self.written: dict[int, int] = {}
        self.busy: set[int] = set()
        self.done = self.wrong = 0
        ctx.open_device(self.params.device).then(lambda done: self.opened(ctx, done))
        ctx.allocate(self.params.blocks * BLOCK).then(lambda done: self.allocated(ctx, done))

    def opened(self, ctx: uxk.Context, done: uxk.Completion) -> None:
        self.cap = done.result
        self.begin(ctx)

    def allocated(self, ctx: uxk.Context, done: uxk.Completion) -> None:
        self.region = done.result
        self.memory = ctx.map(self.region, writable=True)
        if self.random.integers(2):  # registered beforehand, or lent with each request
            ctx.derive(self.region, self.params.device.rstrip("0"), uxk.Rights.READ | uxk.Rights.WRITE)
        self.begin(ctx)

    def begin(self, ctx: uxk.Context) -> None:
        if self.cap and self.memory is not None:
            for _ in range(4):
                self.act(ctx)

    def act(self, ctx: uxk.Context) -> None:
        if self.done >= self.params.operations or self.memory is None:
            return
        self.done += 1
        block = int(self.random.integers(self.params.blocks))
        read = bool(self.random.integers(2))
        if block in self.busy or (read and block not in self.written):
            ctx.call_later_ns(10 * US, lambda _: self.act(ctx))
            return
        at = block * BLOCK
        if read:
            self.memory[at : at + BLOCK] = bytes(BLOCK)
        else:
            self.version += 1
            self.memory[at : at + BLOCK] = HEADER.pack(self.params.first + block, self.version) * (BLOCK >> 4)
        version = self.version
        try:
            reply = ctx.submit(
                self.cap, Op.READ if read else Op.WRITE, offset=(self.params.first + block) * BLOCK, length=BLOCK,
                region=self.region, buffer=at, wait=bool(self.random.integers(4) == 0),
            )  # fmt: skip
        except UxkError:
            ctx.call_later_ns(50 * US, lambda _: self.act(ctx))
            return
        self.busy.add(block)
        reply.then(lambda done: self.answered(ctx, done, block, 0 if read else version))

    def answered(self, ctx: uxk.Context, done: uxk.Completion, block: int, version: int) -> None:
        assert self.memory is not None
        if done.status:  # the driver may have the memory still: another way, another time
            self.written.pop(block, None)
            if done.status not in EXCUSED:
                self.wrong += 1
                ctx.set_attribute("wrong", self.wrong)
            if done.status == errno.ETIMEDOUT:
                ctx.call_later_ns(20 * US, lambda _: self.act(ctx))
                return  # the block stays busy
        elif version:
            self.written[block] = version
        elif block in self.written:
            at = block * BLOCK
            seen = bytes(self.memory[at : at + BLOCK])
            if seen != HEADER.pack(self.params.first + block, self.written[block]) * (BLOCK >> 4):
                self.wrong += 1
                ctx.set_attribute("wrong", self.wrong)
        self.busy.discard(block)
        ctx.call_later_ns(int(self.random.integers(1, 20 * US)), lambda _: self.act(ctx))


class Task(uxk.Extension):
    """A Trio task with children that take locks and publish."""

    manifest = uxk.Manifest(
        name="sim-task", kind="ml-agent", restart=RESTART, watchdog=WATCHDOG,
        capabilities=("lock:sim*", "snapshot:sim*:read,write"),
    )  # fmt: skip

    async def run(self, ctx: uxk.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.pongs, ctx)
            for number in range(3):
                nursery.start_soon(self.child, ctx, number)

    async def pongs(self, ctx: uxk.Context) -> None:
        """Pings are answered by whoever reads the inbox."""
        async for batch in ctx.batches():
            ctx.complete_batch(batch)

    async def child(self, ctx: uxk.Context, number: int) -> None:
        random = ctx.random(f"child{number}")
        lock = (await ctx.open("lock", "sim0", uxk.Rights.LOCK)).result
        cell = (await ctx.open("snapshot", "sim", uxk.Rights.READ | uxk.Rights.WRITE)).result
        for turn in range(12):
            await ctx.sleep_ns(int(random.integers(1, 4)) * 25 * US)  # at the same time as others, often
            try:
                async with ctx.lock(
                    lock, exclusive=bool(random.integers(2)), lease_ns=int(random.integers(10, 90)) * US
                ):
                    await ctx.sleep_ns(int(random.integers(0, 3)) * 25 * US)
                    await ctx.publish(cell, f"{ctx.name} {number} {turn}".encode())
                pin = await ctx.pin(cell)
                await ctx.unpin(cell, pin.result)
            except UxkError:
                continue


class Adviser(uxk.Extension):
    """Gives hints with the generation that it knows."""

    manifest = uxk.Manifest(
        name="sim-adviser", kind="ml-agent", restart=RESTART, watchdog=WATCHDOG, turn_cost_ns=2 * US,
        capabilities=("site:sim-site", "sysfs:/sys/*:read"),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.random = ctx.random("hints")
        self.left = 60
        ctx.call_later_ns(5 * US, lambda _: self.act(ctx))

    def act(self, ctx: uxk.Context) -> None:
        self.left -= 1
        generation = ctx.now_ns // MS
        ctx.hint("sim-site", generation, 300 * US, HEADER.pack(generation, int(self.random.integers(100))))
        if self.left:
            ctx.call_later_ns(int(self.random.integers(1, 100 * US)), lambda _: self.act(ctx))


# --- what must hold ------------------------------------------------------------------------------------------


def _attribute(name: str, says: str) -> Callable[[Watched], str]:
    def rule(run: Watched) -> str:
        bad = [agent.name for agent in run.agents.values() if agent.attributes.get(name, "0") != "0"]
        return f"{bad[0]}: {says}" if bad else ""

    return rule


if "sim-flush-order" not in INVARIANTS:
    register_invariant("sim-flush-order", during=_attribute("violations", "a commit came before its data were safe"))
    register_invariant("sim-clients", during=_attribute("wrong", "was told or given something wrong"))


class StaleAdvice(Exception):
    """A hint for a generation that is over was given out."""


async def decide(kernel: uxk.Kernel) -> None:
    """The site's side: takes a hint now and then, and starts a generation each millisecond."""
    site = kernel.machine.sites["sim-site"]
    for _ in range(40):
        await kernel.sleep_ns(50 * US)
        while site.generation < kernel.now_ns // MS:
            site.advance()
        hint = site.take(kernel.now_ns)
        if hint is None:
            continue
        if hint.generation != site.generation:
            raise StaleAdvice(f"of generation {hint.generation} in {site.generation}")
        site.applied(hint, outcome=1)


async def advised(kernel: uxk.Kernel) -> None:
    kernel.machine.sites["sim-site"] = DecisionSite("sim-site", lambda payload: "" if len(payload) == 16 else "odd")
    await decide(kernel)


async def renewed(kernel: uxk.Kernel) -> None:
    """Replaces the driver by itself under load, whatever befalls it meanwhile."""
    for _ in range(5):
        await kernel.sleep_ns(150 * US)
        try:
            await kernel.restart("sim-disk", quiesce_ns=MS, probation_ns=100 * US)
        except UxkError as exc:
            kernel.machine.log("info", "renewed", f"{type(exc).__name__}")


async def journals(kernel: uxk.Kernel) -> None:
    """Four logs, each of which commits what it has written, 20 times."""
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(_journal, kernel, 64 + 2 * number)


async def _journal(kernel: uxk.Kernel, block: int) -> None:
    random = kernel.machine.streams.stream(f"journal/{block}")
    for number in range(1, 21):
        data = HEADER.pack(block, number) * (BLOCK >> 4)
        if await _write(kernel, block, data, 0):
            continue
        await kernel.sleep_ns(int(random.integers(1, 30 * US)))
        record = COMMIT + HEADER.pack(block, number)
        await _write(kernel, block + 1, record.ljust(BLOCK, b"."), IoFlag.PREFLUSH | IoFlag.FUA)


async def _write(kernel: uxk.Kernel, block: int, data: bytes, flags: int) -> int:
    """The errno of a write that ends; tried again while there is no room."""
    goal = kernel.dispatcher.goal(f"write of block {block}")
    answers: list[Completion] = []

    def heard(completions: list[Completion]) -> None:
        answers.extend(completions)
        goal.reach()

    port = kernel.open_port("sim_disk0", heard)
    try:
        for _ in range(1000):
            try:
                port.submit(Request(0, Op.WRITE, data, block * BLOCK, len(data), flags=int(flags)))
                break
            except (RingFull, RequestError):
                await kernel.sleep_ns(100 * US)
        else:
            return errno.ENODEV
        await kernel.dispatcher.wait(goal)
    finally:
        port.close()
    return answers[0].status


# --- scenarios ------------------------------------------------------------------------------------------------

LOAD = ClosedLoop(
    device="sim_disk0", depth=24, count=300, size_bytes=BLOCK, span_bytes=64 * BLOCK, read_ppm=500_000, verify=True
)
CLIENTS = tuple(
    Load(name="sim-client", instance=f"sim_client{n}", params={"first": 64 + 16 * n, "blocks": 16}) for n in range(2)
)


FAULTY = {
    "queue": (), "journal": (), "clients": ("sim-disk", "sim-client0"), "charged": ("sim-disk", "sim-slow"),
    "renewed": ("sim-disk",), "family": (),
}  # fmt: skip


def scenario(name: str) -> Scenario:
    """One of :data:`NAMES`."""
    disk = Load(name="sim-disk")
    common: dict[str, Any] = {
        "name": name,
        "invariant_interval_ns": 50 * US,
        "explore": Exploration(modules=FAULTY[name]),
    }
    match name:
        case "queue":
            return Scenario(modules=(disk,), workloads=(LOAD,), **common)
        case "journal":
            return Scenario(
                modules=(Load(name="sim-disk", params={"cache": True}),), workloads=(LOAD,), blk=BlockQueues(cpus=2),
                drive=journals, invariants=("sim-flush-order",), **common,
            )  # fmt: skip
        case "clients":
            tasks = (Load(name="sim-task"), Load(name="sim-task", instance="sim_other"))
            modules = (disk, *CLIENTS, *tasks)
            return Scenario(modules=modules, workloads=(LOAD,), invariants=("sim-clients",), **common)
        case "charged":
            modules = (disk, Load(name="sim-slow"), Load(name="sim-adviser"), CLIENTS[0])
            slow = ClosedLoop(
                name="slow",
                device="sim_slow0",
                depth=12,
                count=200,
                size_bytes=BLOCK,
                span_bytes=64 * BLOCK,
                verify=True,
            )
            return Scenario(
                modules=modules, workloads=(LOAD, slow), clock="charged", drive=advised,
                costs_ns={"sim-client": 500, "sim-task": 500}, invariants=("sim-clients",), **common,
            )  # fmt: skip
        case "renewed":
            return Scenario(modules=(disk, CLIENTS[0]), workloads=(LOAD,), drive=renewed, **common)
        case "family":
            supervisor = SupervisorSpec(
                name="family", strategy="rest_for_one", children=("sim-disk", "sim-client0", "sim-task"),
                max_restarts=64, backoff_ns=20 * US, backoff_max_ns=MS,
            )  # fmt: skip
            modules = (disk, CLIENTS[0], Load(name="sim-task"))
            return Scenario(modules=modules, workloads=(LOAD,), supervisors=(supervisor,), **common)
    raise ValueError(name)


NAMES = ("queue", "journal", "clients", "charged", "renewed", "family")
explored = scenario(os.environ.get("CAST", "queue"))
