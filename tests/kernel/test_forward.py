"""Extension to extension: batches, registered buffers, gates, and who pays for the data (io_uring's words)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import uxk
from uxk.kernel.ports import GatePort, OnCompletions
from uxk.testing.kernels import crash, residue, usage

PAGE = 4096
READ, WRITE = uxk.Op.READ, uxk.Op.WRITE
RW = uxk.Rights.READ | uxk.Rights.WRITE


class Store(uxk.Extension):
    """A medium of 64 pages; holds its requests back while ``hold`` is set."""

    manifest = uxk.Manifest(
        name="store", restart=uxk.RestartPolicy(backoff_ns=10, max_restarts=100), fate="reissue",
        budget=uxk.Budget(queue_depth=8), watchdog=uxk.Watchdog(request_timeout_ns=10_000, timeouts_max=1000),
    )  # fmt: skip
    hold: ClassVar[bool]
    held: ClassVar[list[uxk.Request]]
    seen: ClassVar[list[uxk.Request]]
    batches: ClassVar[list[int]]
    ctx: ClassVar[uxk.Context]
    medium: ClassVar[bytearray]

    def setup(self, ctx: uxk.Context) -> None:
        Store.ctx = ctx

    @classmethod
    def reset(cls) -> None:
        cls.hold, cls.held, cls.seen, cls.batches, cls.medium = False, [], [], [], bytearray(64 * PAGE)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        Store.batches.append(len(requests))
        Store.seen.extend(requests)
        for request in requests:
            if Store.hold:
                Store.held.append(request)
            else:
                self.serve(ctx, request)

    @staticmethod
    def serve(ctx: uxk.Context, request: uxk.Request) -> None:
        at, length = request.offset, request.length or len(request.payload)
        if at + length > len(Store.medium) or request.opcode not in (READ, WRITE):
            ctx.fail(request, errno.EINVAL)
            return
        try:
            data = (
                ctx.map(request.region, writable=request.opcode == READ)[request.buffer :] if request.region else None
            )
        except uxk.CapabilityError as exc:
            ctx.fail(request, exc.errno or errno.EIO)
            return
        if request.opcode == READ:
            if data is None:
                ctx.complete(request, bytes(Store.medium[at : at + length]))
                return
            data[:length] = Store.medium[at : at + length]
        else:
            Store.medium[at : at + length] = request.payload if data is None else data[:length]
        ctx.complete(request, result=length)

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


class Client(uxk.Extension):
    """The test speaks through ``Client.ctx``; answers of its queue are kept, a list for each batch."""

    manifest = uxk.Manifest(
        name="client", capabilities=("device:*:submit",), restart=uxk.RestartPolicy(backoff_ns=10),
        budget=uxk.Budget(queue_depth=64, memory_bytes=64 * PAGE),
    )  # fmt: skip
    ctx: ClassVar[uxk.Context]
    answers: ClassVar[list[list[uxk.Completion]]]
    events: ClassVar[list[uxk.Event]]

    def setup(self, ctx: uxk.Context) -> None:
        Client.ctx, Client.answers, Client.events = ctx, [], []

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        Client.events.append(event)

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


async def ask(kernel: uxk.Kernel, reply: uxk.Reply) -> uxk.Completion:
    await kernel.sleep_ns(0)
    assert reply.completion is not None
    return reply.completion


async def pair(kernel: uxk.Kernel) -> tuple[uxk.Context, Any]:
    """Both loaded; the client's context and a queue to the store."""
    Store.reset()
    await kernel.insmod(Store)
    await kernel.insmod(Client)
    opened = await ask(kernel, Client.ctx.open_device("store0"))
    assert opened.payload == b"store"  # whom to hand memory to
    return Client.ctx, Client.ctx.queue(opened.result, Client.answers.append)


def answered() -> dict[int, uxk.Completion]:
    return {done.cid: done for batch in Client.answers for done in batch}


async def memory(kernel: uxk.Kernel, pages: int = 4) -> int:
    return (await ask(kernel, Client.ctx.allocate(pages * PAGE))).result


# --- batches ---


async def test_a_burst_reaches_the_driver_as_one_batch_and_comes_back_as_one() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        _, queue = await pair(kernel)
        cids = [queue.submit(WRITE, 8 * index, 0, bytes([index] * 8)) for index in range(6)]
        assert queue.room == 58
        await kernel.sleep_ns(0)
        assert Store.batches == [6]
        assert [[done.cid for done in batch] for batch in Client.answers] == [cids]
        assert all(done.status == 0 and done.result == 8 for done in Client.answers[0])
        assert Store.medium[40:48] == bytes([5] * 8)
        assert kernel.module("client").account.submitted == 6
        assert queue.room == 64


async def test_a_request_that_cannot_be_does_not_keep_its_neighbours_from_the_driver() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx, queue = await pair(kernel)
        good = [queue.submit(READ, 0, 8) for _ in range(2)]
        bad = [queue.submit(READ, (1 << 63) - 5, 8), queue.submit(READ, 0, 8, region=12345)]
        more = queue.submit(READ, 0, 8, flags=5)
        stranger = ctx.queue(queue.cap + 1, Client.answers.append).submit(READ, 0, 8)
        await kernel.sleep_ns(0)
        status = {cid: done.status for cid, done in answered().items()}
        assert [status[cid] for cid in (*good, more)] == [0, 0, 0]
        assert [status[cid] for cid in (*bad, stranger)] == [errno.EACCES, errno.EBADF, errno.EBADF]
        assert Store.seen[-1].flags == 5


async def test_more_than_the_driver_takes_waits_and_shows_in_the_wait_for_graph() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        _, queue = await pair(kernel)
        Store.hold = True
        cids = [queue.submit(READ, 0, 8) for _ in range(20)]
        await kernel.sleep_ns(0)
        # 8 are with the driver, 8 wait for a slot, the others do not fit.
        assert [done.status for done in answered().values()] == [errno.EAGAIN] * 4
        (wait,) = map(str, kernel.machine.waits.edges())
        assert wait.startswith("instance client waits for queue slot of store since")
        Store.hold = False
        while Store.held:
            Store.serve(Store.ctx, Store.held.pop())
        await kernel.run_until_ns(20_000)
        assert set(answered()) == set(cids)
        assert not kernel.machine.waits.edges()


async def test_answers_of_queues_and_of_commands_keep_their_order() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx, queue = await pair(kernel)
        told: list[str] = []
        queue.on_completions = lambda batch: told.append(f"queue {len(batch)}")
        queue.submit(READ, 0, 8)
        queue.submit(READ, 0, 8)
        ctx.submit(queue.cap, READ, length=8).then(lambda done: told.append(f"reply {len(done.payload)}"))
        queue.submit(READ, 0, 8)
        await kernel.sleep_ns(0)
        assert told == ["queue 2", "reply 8", "queue 1"]


async def test_a_full_queue_is_told_at_once() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        _, queue = await pair(kernel)
        for _ in range(64):
            queue.submit(READ, 0, 8)
        assert queue.room == 0
        with pytest.raises(uxk.RingFull, match="client: 64 commands"):
            queue.submit(READ, 0, 8)


# --- registered buffers ---


async def test_lent_memory_begins_where_the_request_says_and_must_hold_it() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx, queue = await pair(kernel)
        region = await memory(kernel)
        Store.medium[:4] = b"abcd"
        done = await ask(kernel, ctx.submit(queue.cap, READ, length=4, region=region, buffer=PAGE + 1))
        assert (done.status, done.result, done.payload) == (0, 4, b"")
        assert bytes(ctx.map(region)[PAGE : PAGE + 6]) == b"\0abcd\0"
        for buffer, length in ((4 * PAGE - 3, 4), (4 * PAGE, 1), (1 << 60, 1)):
            done = await ask(kernel, ctx.submit(queue.cap, READ, length=length, region=region, buffer=buffer))
            assert done.status == errno.EFAULT, (buffer, length)
        assert kernel.machine.caps.statistics().derived == 2  # the device's, and one loan


async def test_a_registered_buffer_costs_no_grant_per_request() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx, queue = await pair(kernel)
        region = await memory(kernel)
        handed = (await ask(kernel, ctx.derive(region, "store", RW, start=PAGE, length=2 * PAGE))).result
        derived = kernel.machine.caps.statistics().derived
        ctx.map(region, writable=True)[PAGE : PAGE + 4] = b"data"
        for _ in range(3):
            queue.submit(WRITE, 0, 4, region=region, buffer=PAGE)
        queue.submit(READ, 0, 4, region=region, buffer=3 * PAGE - 4)
        await kernel.sleep_ns(0)
        assert {request.region for request in Store.seen} == {handed}
        assert [request.buffer for request in Store.seen] == [0, 0, 0, 2 * PAGE - 4]
        assert bytes(ctx.map(region)[3 * PAGE - 4 : 3 * PAGE]) == b"data"
        assert kernel.machine.caps.statistics().derived == derived
        # What it does not hold is lent as ever.
        done = await ask(kernel, ctx.submit(queue.cap, READ, length=4, region=region, buffer=3 * PAGE - 2))
        assert done.status == 0 and Store.seen[-1].region != handed
        assert kernel.machine.caps.statistics().derived == derived + 1


async def test_a_buffer_that_the_driver_may_only_read_is_not_read_into() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx, queue = await pair(kernel)
        region = await memory(kernel)
        handed = (await ask(kernel, ctx.derive(region, "store", uxk.Rights.READ))).result
        for opcode, same in ((WRITE, True), (READ, False)):
            done = await ask(kernel, ctx.submit(queue.cap, opcode, length=4, region=region))
            assert done.status == 0
            assert (Store.seen[-1].region == handed) is same


async def test_a_registered_buffer_outlives_the_death_of_the_driver() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx, queue = await pair(kernel)
        region = await memory(kernel)
        handed = (await ask(kernel, ctx.derive(region, "store", RW))).result
        Store.medium[:4], Store.hold = b"live", True
        queue.submit(READ, 0, 4, region=region)
        queue.submit(READ, 0, 4, region=region, buffer=4)
        await kernel.sleep_ns(0)
        Store.hold = False
        crash(kernel, "store")
        await kernel.sleep_ns(100)  # reissued to the next incarnation, under the same capability
        assert [done.status for done in answered().values()] == [0, 0]
        assert {request.region for request in Store.seen} == {handed}
        assert bytes(ctx.map(region)[:8]) == b"livelive"
        queue.submit(READ, 0, 4, region=region, buffer=8)
        await kernel.sleep_ns(0)
        assert Store.seen[-1].region == handed


async def test_a_revoked_or_freed_buffer_is_refused_and_its_memory_waits_for_the_driver() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx, queue = await pair(kernel)
        region = await memory(kernel)
        handed = (await ask(kernel, ctx.derive(region, "store", RW))).result
        Store.hold = True
        queue.submit(READ, 0, 4, region=region)
        queue.submit(READ, 0, 4, region=region)
        await kernel.sleep_ns(0)
        assert (await ask(kernel, ctx.free(region))).status == 0
        assert kernel.machine.arena.statistics().lingering_bytes == 4 * PAGE
        done = await ask(kernel, ctx.submit(queue.cap, READ, length=4, region=region))
        assert done.status == errno.ESTALE
        for request in Store.held:
            Store.serve(Store.ctx, request)  # says ESTALE, too
        await kernel.run_until_ns(20_000)
        assert {done.status for done in answered().values()} <= {errno.ESTALE, errno.ETIMEDOUT}
        assert kernel.machine.arena.statistics().used_bytes == 0
        # Revoked alone, it is lent again.
        region = await memory(kernel)
        Store.hold = False
        handed = (await ask(kernel, ctx.derive(region, "store", RW))).result
        assert (await ask(kernel, ctx.submit(queue.cap, READ, length=4, region=region))).status == 0
        assert Store.seen[-1].region == handed
        assert (await ask(kernel, ctx.revoke(handed))).status == 0
        assert (await ask(kernel, ctx.submit(queue.cap, READ, length=4, region=region))).status == 0
        assert Store.seen[-1].region != handed


async def test_the_death_of_the_client_takes_its_buffers_from_the_driver() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx, queue = await pair(kernel)
        region = await memory(kernel)
        await ask(kernel, ctx.derive(region, "store", RW))
        Store.hold = True
        queue.submit(READ, 0, 4, region=region)
        queue.submit(READ, 0, 4)
        await kernel.sleep_ns(0)
        crash(kernel, "client")
        await kernel.sleep_ns(100)
        arena = kernel.machine.arena
        assert (arena.statistics().used_bytes, arena.statistics().lingering_bytes) == (4 * PAGE, 4 * PAGE)
        Store.ctx.fail(Store.held[0], errno.EIO)
        await kernel.sleep_ns(0)
        assert arena.statistics().used_bytes == 0
        await kernel.run_until_ns(50_000)
        await kernel.rmmod("client")
        await kernel.rmmod("store")
        assert residue(kernel) == {}


# --- gates ---


class Late:
    """A gate that holds requests back until told, or answers some inside the submission."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.waiting: list[tuple[LatePort, uxk.Request]] = []
        self.ports: list[LatePort] = []
        self.at_once = False
        self.full = False

    def open_port(self, client: str, on_completions: OnCompletions, *, tagged: bool = False) -> GatePort:
        port = LatePort(self, len(self.ports) + 1, client, on_completions)
        self.ports.append(port)
        return port

    def let_go(self) -> None:
        waiting, self.waiting = self.waiting, []
        for port, request in waiting:
            port.on_completions([uxk.Completion(request.cid, 0, request.length)])


class LatePort:
    def __init__(self, gate: Late, number: int, client: str, on_completions: OnCompletions) -> None:
        self.gate, self.id, self.client, self.on_completions, self.cid = gate, number, client, on_completions, 0
        self.closed = False

    def submit(self, request: uxk.Request) -> int:
        self.submit_batch([request])
        return request.cid

    def submit_batch(self, requests: Sequence[uxk.Request]) -> None:
        if self.gate.full and len(requests) > 1:
            raise uxk.RingFull("late: one at a time")
        for request in requests:
            self.cid += 1
            request.cid = self.cid
            self.gate.waiting.append((self, request))
        if self.gate.at_once:
            self.gate.let_go()

    def waits_for(self) -> str:
        return "queue slot of late" if any(port is self for port, _ in self.gate.waiting) else ""

    def close(self, on_late: OnCompletions | None = None) -> None:
        self.closed = True
        self.on_completions = on_late or (lambda _: None)


async def test_requests_of_extensions_and_of_the_kernel_pass_the_gate_of_their_device() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        _, queue = await pair(kernel)
        device = kernel.devices.get("store0")
        gate = Late(device.agent)
        device.gate = gate
        cids = [queue.submit(READ, 0, 8), queue.submit(READ, 8, 8)]
        await kernel.sleep_ns(0)
        assert not Store.seen and [request.offset for _, request in gate.waiting] == [0, 8]
        done: list[uxk.Completion] = []
        port = kernel.open_port("store0", done.extend, "someone")
        assert port.submit(uxk.Request(0, READ, device=77)) == 1
        assert (gate.waiting[-1][1].device, port.client, port.id) == (0, "someone", 2)
        with pytest.raises(uxk.InUse, match="someone"):
            await kernel.rmmod("store")
        gate.let_go()
        await kernel.sleep_ns(0)
        assert list(answered()) == cids and len(done) == 1
        port.close()
        assert gate.ports[1].closed and "someone" not in kernel.lsmod()[-1].used_by


@pytest.mark.parametrize("mode", ["at_once", "full"])
async def test_a_gate_may_answer_at_once_or_take_requests_one_by_one(mode: str) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx, queue = await pair(kernel)
        gate = Late(None)
        setattr(gate, mode, True)
        kernel.devices.get("store0").gate = gate
        region = await memory(kernel)
        await ask(kernel, ctx.derive(region, "store", RW))
        for _ in range(3):
            queue.submit(WRITE, 0, 8, region=region)
        single = ctx.submit(queue.cap, WRITE, length=8, region=region, buffer=8)
        await kernel.sleep_ns(0)
        gate.let_go()
        await kernel.sleep_ns(0)
        assert len(answered()) == 3 and single.completion is not None
        assert kernel.module("client").account.io_written_bytes == 32
        assert not kernel.machine.outstanding


async def test_connections_to_gates_that_are_gone_are_not_kept() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        _, queue = await pair(kernel)
        device = kernel.devices.get("store0")
        gates = [Late(None) for _ in range(3)]
        for gate in gates:
            gate.at_once = True
            device.gate = gate
            queue.submit(READ, 0, 8)
            queue.submit(READ, 0, 8)
            await kernel.sleep_ns(0)
        assert [gate.ports[0].closed for gate in gates] == [True, True, False]
        await kernel.rmmod("client")
        assert gates[2].ports[0].closed


async def test_a_port_on_a_device_that_was_removed_says_so() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await pair(kernel)
        extra = await ask(kernel, Store.ctx.add_device("extra"))
        assert extra.result == 1
        done: list[uxk.Completion] = []
        port = kernel.open_port("extra", done.extend)
        request = uxk.Request(0, READ, length=8)
        port.submit_batch([request])
        await kernel.sleep_ns(0)
        assert request.device == 1 and len(done) == 1
        await ask(kernel, Store.ctx.remove_device("extra"))
        with pytest.raises(uxk.RequestError, match="'extra' was removed") as caught:
            port.submit(request)
        assert caught.value.errno == errno.ENODEV
        with pytest.raises(uxk.UsageError, match="no device 'extra'"):
            kernel.open_port("extra", done.extend)


# --- accounts ---


async def test_data_are_booked_with_the_driver_and_with_the_client() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx, queue = await pair(kernel)
        region = await memory(kernel)
        await ask(kernel, ctx.derive(region, "store", RW))
        queue.submit(WRITE, 0, 0, bytes(100))
        queue.submit(WRITE, 0, 1000, region=region)
        queue.submit(READ, 0, 30)
        queue.submit(READ, 0, 2000, region=region)
        queue.submit(READ, 64 * PAGE, 8)  # fails
        queue.submit(uxk.Op.FLUSH, 0, 512)
        await kernel.sleep_ns(0)
        await kernel.module("store").submit(bytes(7), opcode=WRITE)
        driver, client = kernel.module("store").statistics(), kernel.module("client").statistics()
        assert (driver["read_bytes"], driver["written_bytes"]) == (2030, 1107)
        assert (driver["io_read_bytes"], driver["io_written_bytes"]) == (0, 0)
        assert (client["io_read_bytes"], client["io_written_bytes"]) == (2030, 1100)
        assert (client["read_bytes"], client["written_bytes"]) == (0, 0)
        assert kernel.sysfs.read("/sys/module/store/statistics/written_bytes").strip() == "1107"


async def test_what_timed_out_or_died_moved_nothing_and_what_was_done_again_moved_once() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        _, queue = await pair(kernel)
        account, mine = kernel.module("store").account, kernel.module("client").account
        Store.hold = True
        queue.submit(WRITE, 0, 0, bytes(8))
        queue.submit(WRITE, 8, 0, bytes(8))
        await kernel.run_until_ns(50_000)
        assert [done.status for done in answered().values()] == [errno.ETIMEDOUT] * 2
        Store.ctx.complete(Store.held[0], result=8)  # too late
        await kernel.sleep_ns(0)
        assert (account.written_bytes, mine.io_written_bytes) == (0, 0)
        queue.submit(WRITE, 0, 0, bytes(8))
        await kernel.sleep_ns(0)
        Store.hold = False
        crash(kernel, "store")
        await kernel.sleep_ns(100)
        assert (account.written_bytes, mine.io_written_bytes) == (8, 8)


@pytest.mark.parametrize(
    ("opcode", "asked", "payload", "result", "booked"),
    [
        (READ, 100, b"short", 0, 5),
        (READ, 100, b"", 1 << 62, 0),
        (WRITE, 100, b"", 60, 60),
        (WRITE, 100, b"", 1 << 62, 100),
        (WRITE, 100, b"", -7, 100),
    ],
)
async def test_a_driver_cannot_claim_more_than_it_was_asked_for(
    opcode: int, asked: int, payload: bytes, result: int, booked: int
) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await pair(kernel)
        Store.hold = True
        done: list[uxk.Completion] = []
        data = b"" if opcode == READ else bytes(asked)
        kernel.module("store").open_port(done.extend).submit(uxk.Request(0, opcode, data, 0, asked))
        await kernel.sleep_ns(0)
        Store.ctx.complete(Store.held[0], payload, result=result)
        await kernel.sleep_ns(0)
        account = kernel.module("store").account
        assert account.read_bytes + account.written_bytes == booked


# --- everything at once ---

STEPS = st.lists(
    st.sampled_from(["write", "read", "region", "flush", "bad", "hold", "go", "run", "crash", "wait", "gate"]),
    min_size=1, max_size=30,
)  # fmt: skip


@settings(max_examples=40)
@given(steps=STEPS)
def test_whatever_happens_everything_is_answered_once_and_nothing_is_left(steps: list[str]) -> None:
    async def scenario() -> None:
        async with uxk.Kernel(seed=1) as kernel:
            before = usage(kernel)
            ctx, queue = await pair(kernel)
            region = await memory(kernel)
            await ask(kernel, ctx.derive(region, "store", RW))
            asked: set[int] = set()
            actions: dict[str, Callable[[], object]] = {
                "write": lambda: asked.add(queue.submit(WRITE, 0, 0, b"12345678")),
                "read": lambda: asked.add(queue.submit(READ, 0, 8)),
                "region": lambda: asked.add(queue.submit(READ, 0, 8, region=region, buffer=16)),
                "flush": lambda: asked.add(queue.submit(uxk.Op.FLUSH)),
                "bad": lambda: asked.add(queue.submit(READ, 0, 8, region=region, buffer=1 << 40)),
                "wait": lambda: ctx.submit(queue.cap, READ, length=8, wait=True),
                "hold": lambda: setattr(Store, "hold", True),
                "go": lambda: setattr(Store, "hold", False),
                "crash": lambda: crash(kernel, "store") if kernel.agents["store"].host is not None else None,
            }
            late = Late(None)
            for step in steps:
                if step == "run":
                    await kernel.sleep_ns(500)
                elif step == "gate":
                    device = kernel.devices.get("store0")
                    device.gate = late if device.gate is device.agent else device.agent
                elif queue.room > 1:
                    actions[step]()
            Store.hold = False
            await kernel.sleep_ns(0)
            late.let_go()
            await kernel.sleep_ns(50_000)
            got = [done.cid for batch in Client.answers for done in batch]
            assert sorted(got) == sorted(asked)
            await kernel.rmmod("client")
            await kernel.rmmod("store")
            assert residue(kernel, before) == {}

    trio.run(scenario)
