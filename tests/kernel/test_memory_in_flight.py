"""Memory that a driver works on is nobody else's until the driver has answered or is dead, whatever its client does."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import uxk
from uxk.subsystems.blk.layer import BlockLayer
from uxk.testing.kernels import crash, residue

PAGE = 4096
READ = uxk.Op.READ
RW = uxk.Rights.READ | uxk.Rights.WRITE
TIMEOUT_NS = 10_000
MINE = b"V"


class Slow(uxk.Extension):
    """Maps a request's memory when it comes, as one does, and moves the data when the test says so."""

    manifest = uxk.Manifest(
        name="slow", driver_class="block", fate="reissue", budget=uxk.Budget(queue_depth=8),
        restart=uxk.RestartPolicy(mode="permanent", backoff_ns=10, max_restarts=1000),
        watchdog=uxk.Watchdog(request_timeout_ns=TIMEOUT_NS, timeouts_max=1000),
    )  # fmt: skip
    ctx: ClassVar[uxk.Context]
    held: ClassVar[list[tuple[uxk.Request, memoryview]]]

    def setup(self, ctx: uxk.Context) -> None:
        Slow.ctx, Slow.held = ctx, []  # what the incarnation before had mapped is gone with it
        ctx.add_device(ctx.device, capacity_bytes=str(1 << 20), max_transfer_bytes=str(2 * PAGE))

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            try:
                view = ctx.map(request.region, writable=True)
            except uxk.CapabilityError as exc:
                ctx.fail(request, exc.errno or errno.EIO)
            else:
                Slow.held.append((request, view[request.buffer : request.buffer + request.length]))

    @staticmethod
    def move(which: int = 0) -> None:
        """The device has the data for one of its requests."""
        request, area = Slow.held.pop(which)
        area[:] = b"D" * len(area)
        Slow.ctx.complete(request, result=len(area))

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()  # so that the test may speak for it between turns


class Client(uxk.Extension):
    """Loses interest in many ways."""

    manifest = uxk.Manifest(
        name="client", kind="ml-agent", capabilities=("device:*:submit",),
        restart=uxk.RestartPolicy(mode="permanent", backoff_ns=10, max_restarts=1000),
        budget=uxk.Budget(queue_depth=64, memory_bytes=16 * PAGE),
    )  # fmt: skip
    ctx: ClassVar[uxk.Context]
    device: ClassVar[int]
    regions: ClassVar[list[int]]
    handed: ClassVar[list[int]]
    asked: ClassVar[int]
    answers: ClassVar[list[int]]

    def setup(self, ctx: uxk.Context) -> None:
        Client.ctx, Client.device, Client.regions, Client.handed = ctx, 0, [], []
        Client.asked, Client.answers = 0, []
        self.open()

    @classmethod
    def open(cls) -> None:
        cls.ctx.open_device("slow0").then(lambda done: setattr(cls, "device", done.result))

    @classmethod
    def allocate(cls, *, registered: bool) -> None:
        def on_memory(done: uxk.Completion) -> None:
            if not done.status:
                cls.regions.append(done.result)
                if registered:
                    cls.ctx.derive(done.result, "slow", RW).then(lambda done: cls.handed.append(done.result))

        cls.ctx.allocate(2 * PAGE).then(on_memory)

    @classmethod
    def read(cls, region: int, length: int = 512) -> None:
        incarnation = cls.ctx
        cls.asked += 1
        reply = cls.ctx.submit(cls.device, READ, length=length, region=region)
        reply.then(lambda done: cls.answers.append(done.status) if incarnation is cls.ctx else None)

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


class Victim(uxk.Extension):
    """Owns memory that nobody was given."""

    manifest = uxk.Manifest(name="victim", kind="ml-agent", budget=uxk.Budget(memory_bytes=64 * PAGE))
    ctx: ClassVar[uxk.Context]
    views: ClassVar[list[tuple[int, memoryview]]]

    def setup(self, ctx: uxk.Context) -> None:
        Victim.ctx, Victim.views = ctx, []

    @classmethod
    def allocate(cls) -> None:
        def on_memory(done: uxk.Completion) -> None:
            if not done.status:
                view = cls.ctx.map(done.result, writable=True)
                view[:] = MINE * len(view)
                cls.views.append((done.result, view))

        cls.ctx.allocate(PAGE).then(on_memory)

    @classmethod
    def check(cls) -> None:
        """Nobody but the victim writes to its memory."""
        for _, view in cls.views:
            assert bytes(view) == MINE * len(view)

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


async def three(kernel: uxk.Kernel) -> None:
    for cls in (Slow, Client, Victim):
        await kernel.insmod(cls)
    await kernel.sleep_ns(0)
    assert Client.device


def lingering(kernel: uxk.Kernel) -> int:
    return kernel.machine.arena.statistics().lingering_bytes


async def leave(kernel: uxk.Kernel) -> None:
    """All go, and nothing is left."""
    for name in ("victim", "client", "slow"):
        await kernel.rmmod(name)
    assert lingering(kernel) == 0
    assert residue(kernel) == {}


def revoke_and_free(kernel: uxk.Kernel) -> None:
    Client.ctx.revoke(Client.device)
    Client.ctx.free(Client.regions[0])


WAYS: dict[str, Callable[[uxk.Kernel], object]] = {
    "free": lambda kernel: Client.ctx.free(Client.regions[0]),
    "revoke": revoke_and_free,
    "crash": lambda kernel: crash(kernel, "client"),
}


@pytest.mark.parametrize("layer", [False, True])
@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("way", WAYS)
async def test_memory_in_flight_is_not_given_to_others(way: str, registered: bool, layer: bool) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        blocks = BlockLayer(kernel) if layer else None
        await three(kernel)
        Client.allocate(registered=registered)
        await kernel.sleep_ns(0)
        Client.read(Client.regions[0])
        await kernel.sleep_ns(0)
        WAYS[way](kernel)
        await kernel.sleep_ns(20)
        assert lingering(kernel) == 2 * PAGE and len(Slow.held) == 1
        for _ in range(3):
            Victim.allocate()
        await kernel.sleep_ns(0)
        assert len(Victim.views) == 3
        Slow.move()
        await kernel.sleep_ns(0)
        Victim.check()
        assert lingering(kernel) == 0, "the driver has answered"
        if blocks is not None:
            blocks.close()
        await leave(kernel)


async def test_a_connection_that_is_being_closed_is_no_user_and_goes_with_the_driver() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await three(kernel)
        Client.allocate(registered=True)
        await kernel.sleep_ns(0)
        Client.read(Client.regions[0])
        await kernel.sleep_ns(0)
        revoke_and_free(kernel)
        await kernel.sleep_ns(0)
        assert Client.answers == [errno.ECANCELED] and lingering(kernel) == 2 * PAGE
        await kernel.rmmod("slow")
        assert lingering(kernel) == 0


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("layer", [False, True])
async def test_a_deadline_does_not_take_memory_from_a_driver_that_works_on_it(registered: bool, layer: bool) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        blocks = BlockLayer(kernel) if layer else None
        await three(kernel)
        Client.allocate(registered=registered)
        await kernel.sleep_ns(0)
        Client.read(Client.regions[0])
        await kernel.sleep_ns(5 * TIMEOUT_NS)
        assert Client.answers == [errno.ETIMEDOUT]
        tries = len(Slow.held)
        assert tries == (2 if layer else 1)
        Client.ctx.free(Client.regions[0])
        await kernel.sleep_ns(0)
        for late in range(tries):
            assert lingering(kernel) == 2 * PAGE
            Victim.allocate()
            await kernel.sleep_ns(0)
            if late:
                Slow.move()
            else:
                Slow.ctx.fail(Slow.held.pop(0)[0], errno.EIO)
            await kernel.sleep_ns(0)
            Victim.check()
        assert lingering(kernel) == 0
        assert kernel.module("slow").account.rejects["stale_cid"] == tries
        if blocks is not None:
            blocks.close()
        await leave(kernel)


async def test_what_a_dead_driver_owed_is_no_reason_to_keep_memory() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await three(kernel)
        Client.allocate(registered=True)
        await kernel.sleep_ns(0)
        Client.read(Client.regions[0])
        await kernel.sleep_ns(2 * TIMEOUT_NS)
        Client.ctx.free(Client.regions[0])
        await kernel.sleep_ns(0)
        assert lingering(kernel) == 2 * PAGE
        crash(kernel, "slow")
        await kernel.sleep_ns(100)
        assert lingering(kernel) == 0


@pytest.mark.parametrize("late", [False, True])
async def test_a_pool_that_is_closed_in_the_middle_of_a_request_is_not_given_to_others(late: bool) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Slow)
        await kernel.insmod(Victim)
        answers: list[uxk.Completion] = []
        port = kernel.open_port("slow0", answers.extend)
        with kernel.dma_pool("test", PAGE) as pool:
            region = pool.cap_for(kernel.agents["slow"])
            port.submit_batch([uxk.Request(0, READ, b"", 0, 512, region, buffer=at) for at in (0, 512)])
            await kernel.sleep_ns(2 * TIMEOUT_NS if late else 0)
        assert lingering(kernel) == PAGE and len(Slow.held) == 2
        for left in (PAGE, 0):
            Victim.allocate()
            await kernel.sleep_ns(0)
            Slow.move()
            await kernel.sleep_ns(0)
            Victim.check()
            assert lingering(kernel) == left
        assert [done.status for done in answers] == [errno.ETIMEDOUT if late else 0] * 2
        for name in ("victim", "slow"):
            await kernel.rmmod(name)
        assert residue(kernel) == {}


STEPS = st.lists(
    st.tuples(
        st.sampled_from([
            "allocate", "register", "read", "read", "long", "free", "lose", "revoke", "unregister", "give", "move",
            "run", "wait", "client dies", "driver dies",
        ]),
        st.integers(0, 1 << 16),
    ),
    min_size=10, max_size=40,
)  # fmt: skip


def act(kernel: uxk.Kernel, step: str, number: int) -> None:
    """One step of the story below, if it can be taken now."""
    agents = kernel.agents
    alive = agents["client"].host is not None
    regions, region = Client.regions, Client.regions[number % len(Client.regions)] if Client.regions else 0
    if step == "move" and Slow.held:
        Slow.move(number % len(Slow.held))
    elif step == "give" and Victim.views:
        cap, _ = Victim.views.pop(number % len(Victim.views))
        Victim.ctx.free(cap)
    elif step == "driver dies" and agents["slow"].host is not None:
        crash(kernel, "slow")
        Slow.held = []
    elif not alive:
        return
    elif step == "client dies":
        crash(kernel, "client")
    elif step in ("allocate", "register"):
        Client.allocate(registered=step == "register")
    elif step in ("read", "long") and region:
        Client.read(region, 512 if step == "read" else 2 * PAGE)
    elif step == "free" and region:
        regions.remove(region)
        Client.ctx.free(region)
    elif step == "revoke":
        Client.ctx.revoke(Client.device)
        Client.open()
    elif step == "lose" and region:
        Client.ctx.revoke(Client.device)
        Client.ctx.free(region)
        regions.remove(region)
        Client.open()
    elif step == "unregister" and Client.handed:
        Client.ctx.revoke(Client.handed.pop(number % len(Client.handed)))


@settings(max_examples=30)
@given(steps=STEPS, layer=st.booleans())
def test_whatever_a_client_does_nobody_elses_memory_changes(steps: list[tuple[str, int]], layer: bool) -> None:
    async def story() -> None:
        async with uxk.Kernel(seed=1) as kernel:
            blocks = BlockLayer(kernel) if layer else None
            await three(kernel)
            Client.allocate(registered=True)
            await kernel.sleep_ns(0)
            Client.read(Client.regions[0])
            await kernel.sleep_ns(0)
            for step, number in steps:
                act(kernel, step, number)
                await kernel.sleep_ns({"run": 50, "wait": TIMEOUT_NS}.get(step, number % 2))
                Victim.allocate()
                await kernel.sleep_ns(0)
                Victim.check()
            while Slow.held:
                Slow.move()
                await kernel.sleep_ns(0)
                Victim.check()
            await kernel.sleep_ns(5 * TIMEOUT_NS)
            while Slow.held:
                Slow.move()
                await kernel.sleep_ns(0)
            if blocks is not None:
                blocks.close()
            assert not any("BUG" in record.text for record in kernel.kmsg.records())
            await leave(kernel)

    trio.run(story)
