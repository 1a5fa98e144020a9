"""The boundary under attack: whatever is written, the kernel stays whole and every request is answered once."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import uxk
from uxk.core.codec import encode
from uxk.core.lifecycle import ModuleState
from uxk.kernel.agent import KernelAgent
from uxk.limits import FRAME_MAX_BYTES, PAYLOAD_MAX_BYTES
from uxk.uapi import entries as e

Script = Callable[[uxk.Context, Sequence[uxk.Request]], None]
pack = msgspec.msgpack.encode
CALM = uxk.Watchdog(request_timeout_ns=1000, timeouts_max=1_000_000)


class Puppet(uxk.Extension):
    """Does in ``on_batch`` what the test says; keeps the requests it was given."""

    manifest = uxk.Manifest(name="puppet", budget=uxk.Budget(queue_depth=8), watchdog=CALM)
    script: ClassVar[Script]
    ctx: ClassVar[uxk.Context]
    seen: ClassVar[list[uxk.Request]]

    def setup(self, ctx: uxk.Context) -> None:
        Puppet.ctx = ctx
        Puppet.seen = []

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        Puppet.seen.extend(requests)
        type(self).script(ctx, requests)


class Rejecter(Puppet):
    """As Puppet, but says EAGAIN instead of waiting."""

    manifest = uxk.Manifest(name="rejecter", budget=uxk.Budget(queue_depth=8), full="reject", watchdog=CALM)


def hold(ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
    """Keeps the requests without an answer."""


def echo(ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
    for request in requests:
        ctx.complete(request, request.payload)


async def load(kernel: uxk.Kernel, script: Script, cls: type[Puppet] = Puppet) -> uxk.Module:
    cls.script = staticmethod(script)
    return await kernel.insmod(cls)


def agent_of(kernel: uxk.Kernel, name: str = "puppet") -> KernelAgent:
    return kernel.agents[name]


def bugs(kernel: uxk.Kernel) -> list[str]:
    return [record.text for record in kernel.kmsg.records() if "bug" in record.fields]


class Collector:
    """A port's client: keeps every answer with the time it came."""

    def __init__(self, kernel: uxk.Kernel, module: uxk.Module, client: str = "") -> None:
        self.kernel = kernel
        self.answers: list[uxk.Completion] = []
        self.times_ns: list[int] = []
        self.port = module.open_port(self.take, client)

    def take(self, completions: list[uxk.Completion]) -> None:
        self.answers += completions
        self.times_ns += [self.kernel.now_ns] * len(completions)

    @property
    def statuses(self) -> dict[int, int]:
        assert len({answer.cid for answer in self.answers}) == len(self.answers), "answered twice"
        return {answer.cid: answer.status for answer in self.answers}


# --- hostile bytes ---

VALID: list[e.Entry] = [
    e.Submit(1, 2, 3, b"p"), e.Ready(), e.Log(3, "text", {"f": 1}), e.Open(2, "device", "puppet0", 4),
    e.Open(2, "lock", "*", 32), e.Derive(3, 4, "puppet", 1), e.Revoke(4, 5), e.Allocate(5, 4096, "keep"),
    e.Allocate(5, 4096), e.Free(6, 7), e.Acquire(7, 8), e.Release(8, 9, 10), e.Publish(9, 10, b"data"), e.Pin(10, 11),
    e.Unpin(11, 12, 13), e.TreeRead(12, "/sys"), e.TreeRead(12, "/sys/module/puppet/version"),
    e.TreeWrite(13, "/proc/sys/x", "1"), e.SetAttribute("name", "value", True),
    e.AddDevice(14, "disk0", {"vendor": "u"}), e.RemoveDevice(15, "disk0"), e.AddChardev(16, "tap"),
    e.SetPoll("tap", 5), e.FollowKmsg(17, 4, True),
    e.Hint(18, "site", 1, 2, b"hint"), e.Charge(1000), e.Completion(1), e.Completion(1, 5, -1, b"x"), e.Pong(1),
    e.Pong((1 << 63) - 1),
]  # fmt: skip
numbers = st.sampled_from([0, 1, -1, 255, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]) | st.integers(0, 60)
words = st.sampled_from(["", ".", "..", "/", "a/b", "../x", "\0", "é" * 55, "x" * 5000, "*"])
scalars = st.none() | st.booleans() | numbers | st.floats() | words | st.binary(max_size=6)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=2),
    max_leaves=5,
)


def mutate(entry: e.Entry, at: int, value: Any) -> list[Any]:
    fields: list[Any] = msgspec.msgpack.decode(pack(entry))
    return [*fields[:at], value, *fields[at + 1 :]]


one = st.sampled_from(VALID).map(lambda entry: msgspec.msgpack.decode(pack(entry))) | st.builds(
    mutate, st.sampled_from(VALID), st.integers(0, 7), values
)
hostile = st.tuples(
    st.one_of(
        st.lists(one, max_size=6).map(pack),
        st.binary(max_size=40),
        st.lists(one, min_size=1).map(lambda entries: pack(entries)[:-1]),
    ),
    st.integers(-2, 9),
    st.booleans(),
)


@settings(max_examples=150)
@given(st.lists(hostile, min_size=1, max_size=8))
def test_no_bytes_raise_in_the_kernel_or_touch_anybody_elses_request(frames: list[tuple[bytes, int, bool]]) -> None:
    def script(ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        if requests[0].opcode == 200:
            for frame, count, up in frames:
                ctx.write_raw(frame, count, up=up)
        else:
            echo(ctx, requests)

    async def main() -> None:
        async with uxk.Kernel(seed=1) as kernel:
            module = await load(kernel, script)
            assert (await module.submit(b"hello")).payload == b"hello"
            client = Collector(kernel, module)
            client.port.submit_batch([uxk.Request(0, 200), uxk.Request(0, 200), uxk.Request(0, 200)])
            await kernel.run()
            await kernel.sleep_ns(2000)
            assert len(client.statuses) == 3
            assert bugs(kernel) == []
            agent = agent_of(kernel)
            assert agent.account.inflight == 0
            assert kernel.machine.outstanding == len(agent.commands)
            assert module.state is ModuleState.LIVE
            assert (await module.submit(b"again")).payload == b"again"
            client.port.close()
            await kernel.rmmod("puppet")
            assert agent.account.holdings() == {}
            assert kernel.machine.outstanding == 0
            assert kernel.sysfs.waiter_count == 0
            assert kernel.machine.arena.statistics().used_bytes == 0
            assert kernel.machine.caps.statistics().live == 0

    trio.run(main)


async def test_forged_late_and_duplicated_completions_are_counted_and_dropped() -> None:
    def script(ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        echo(ctx, requests)
        echo(ctx, requests)
        ctx.complete(uxk.Request(12345), b"forged")

    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, script)
        client = Collector(kernel, module)
        client.port.submit_batch([uxk.Request(0, payload=b"a"), uxk.Request(0, payload=b"b")])
        await kernel.run()
        assert [answer.payload for answer in client.answers] == [b"a", b"b"]
        assert module.account.rejects == {"stale_cid": 2, "unknown_cid": 1}
        assert (module.account.requests, module.account.completed, module.account.failed) == (2, 2, 0)


async def test_a_completion_after_the_deadline_is_stale() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, hold)
        with pytest.raises(uxk.RequestError) as caught:
            await module.submit(b"slow")
        assert (caught.value.errno, kernel.now_ns) == (errno.ETIMEDOUT, 1000)
        late = Puppet.seen[0]
        Puppet.script = staticmethod(lambda ctx, requests: echo(ctx, [late, *requests]))
        assert (await module.submit(b"quick")).payload == b"quick"
        assert module.account.rejects == {"stale_cid": 1}
        assert module.account.timeouts == 1
        assert kernel.machine.outstanding == 0


async def test_unreadable_answers_fail_the_requests_they_name_and_make_room_for_the_waiting() -> None:
    def script(ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.write_raw(pack([[16, request.cid, "no status"] for request in requests]), len(requests))

    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, script)
        client = Collector(kernel, module)
        client.port.submit_batch([uxk.Request(0) for _ in range(8)])
        client.port.submit_batch([uxk.Request(0) for _ in range(8)])
        await kernel.run()
        assert Counter(client.statuses.values()) == {errno.EBADMSG: 16}
        assert client.times_ns == [0] * 16
        assert module.account.rejects == {"malformed_entry": 16}


async def test_a_flood_in_one_turn_is_cut_at_the_depth_of_the_ring() -> None:
    def script(ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        echo(ctx, requests)
        for _ in range(50):
            ctx.write_raw(encode([e.Completion(1)] * 8), 8)
            ctx.write_raw(encode([e.Log(6, "spam")] * 8), 8, up=True)
        ctx.write_raw(encode([e.Log(6, "spam")] * 9), 9, up=True)

    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, script)
        await module.submit()
        rejects = module.account.rejects
        assert rejects["sq_full"] >= 9
        assert len(kernel.kmsg.records(source="puppet")) <= 70
        assert module.account.messages_out < 200  # one ring of each queue, give or take, not all that was written


async def test_a_frame_full_of_tiny_entries_is_refused_as_a_whole() -> None:
    """A megabyte may hold half a million entries: more than claimed is not worth reading one by one."""

    def script(ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        echo(ctx, requests)
        ctx.write_raw(b"\xdd\x00\x04\x00\x00" + b"\x91\x21" * (1 << 18), 8, up=True)

    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, script)
        await module.submit()
        assert module.account.rejects["too_many"] == (1 << 18) - 8
        assert len(kernel.kmsg.records(source="puppet")) <= 70


# --- back-pressure and deadlines ---


async def test_deferred_requests_wait_their_turn_and_come_in_order() -> None:
    def script(ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.call_later_ns(10, lambda batch: echo(ctx, batch), list(requests))

    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, script)
        client = Collector(kernel, module)
        for first in (0, 8):
            client.port.submit_batch([uxk.Request(0, payload=b"%d" % (first + n)) for n in range(8)])
        with pytest.raises(uxk.RingFull) as caught:
            client.port.submit(uxk.Request(0))
        assert caught.value.errno == errno.EAGAIN
        await kernel.run()
        assert [int(answer.payload) for answer in client.answers] == list(range(16))
        assert client.times_ns == [10] * 8 + [20] * 8
        assert (module.account.deferred, module.account.rejects) == (8, {"queue_full": 1})
        assert module.statistics()["latency"]["p50_ns"] == 10
        assert module.statistics()["latency"]["max_ns"] == 20


async def test_a_batch_that_does_not_quite_fit_still_uses_the_room_there_is() -> None:
    """A driver that answers only full queues must not starve because the window was never filled."""

    def script(ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        if len(Puppet.seen) % 8 == 0:
            echo(ctx, Puppet.seen[-8:])

    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, script)
        client = Collector(kernel, module)
        client.port.submit_batch([uxk.Request(0) for _ in range(5)])
        client.port.submit_batch([uxk.Request(0) for _ in range(5)])
        await kernel.sleep_ns(0)
        assert len(client.answers) == 8


async def test_the_policy_reject_never_waits() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, hold, Rejecter)
        client = Collector(kernel, module)
        client.port.submit_batch([uxk.Request(0) for _ in range(6)])
        with pytest.raises(uxk.RingFull):
            client.port.submit_batch([uxk.Request(0) for _ in range(3)])
        client.port.submit_batch([uxk.Request(0) for _ in range(2)])
        assert (module.account.deferred, module.account.requests) == (0, 8)
        await kernel.run()
        assert Counter(client.statuses.values()) == {errno.ETIMEDOUT: 8}


async def test_waiting_requests_time_out_with_those_in_flight() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, hold)
        client = Collector(kernel, module)
        client.port.submit_batch([uxk.Request(0) for _ in range(8)])
        await kernel.sleep_ns(300)
        client.port.submit_batch([uxk.Request(0) for _ in range(8)])
        await kernel.run()
        assert client.times_ns == [1000] * 8 + [1300] * 8
        assert module.account.timeouts == 16


async def test_pings_beside_a_full_queue_of_answers_cost_no_answer() -> None:
    class Beating(uxk.Extension):
        manifest = uxk.Manifest(
            name="beating",
            budget=uxk.Budget(queue_depth=4),
            watchdog=uxk.Watchdog(heartbeat_ns=100, request_timeout_ns=1000),
        )

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            for request in requests:
                ctx.call_at_ns(100, lambda request: ctx.complete(request), request)

    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Beating)
        answers = await module.submit_batch([uxk.Request(0) for _ in range(4)])
        assert [answer.status for answer in answers] == [0] * 4
        assert module.account.rejects == {}


# --- sizes ---


async def test_the_largest_payload_passes_both_ways_and_one_byte_more_neither() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, echo)
        payload = bytes(range(256)) * (PAYLOAD_MAX_BYTES // 256)
        assert (await module.submit(payload)).payload == payload
        with pytest.raises(uxk.UsageError):
            await module.submit(payload + b"x")
        Puppet.script = staticmethod(lambda ctx, requests: ctx.complete(requests[0], payload + b"x"))
        with pytest.raises(uxk.RequestError) as caught:
            await module.submit()
        assert caught.value.errno == errno.EBADMSG


async def test_more_than_a_frame_in_one_batch_is_split_both_ways() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, echo)
        payloads = [bytes([n]) * PAYLOAD_MAX_BYTES for n in range(8)]
        assert sum(map(len, payloads)) > FRAME_MAX_BYTES
        answers = await module.submit_batch([uxk.Request(0, payload=payload) for payload in payloads])
        assert [answer.payload for answer in answers] == payloads
        account = module.account
        assert (account.messages_in, account.messages_out) == (8, 8)
        assert account.batches_in > 1 and account.batches_out > 1
        assert account.rejects == {}


BAD_FIELDS: list[dict[str, Any]] = [
    {"opcode": -1}, {"opcode": 1 << 31}, {"offset": -1}, {"offset": 1 << 63}, {"offset": 1 << 70}, {"length": 1 << 32},
    {"length": -1}, {"device": -1}, {"device": 1 << 64}, {"opcode": "x"}, {"payload": "text"},
]  # fmt: skip


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=str)
async def test_an_impossible_request_is_the_users_fault_and_never_reaches_the_driver(fields: dict[str, Any]) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, echo)
        with pytest.raises(uxk.UsageError):
            await module.submit(**fields)
        with pytest.raises(uxk.UsageError):
            await module.submit_batch([uxk.Request(0), uxk.Request(0, **fields)])
        assert (await module.submit(b"x")).payload == b"x"
        assert module.account.faults == 0


async def test_the_same_request_object_may_be_submitted_again() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, echo)
        answers = await module.submit_batch([uxk.Request(0, payload=b"x")] * 3)
        assert [answer.payload for answer in answers] == [b"x"] * 3
        assert kernel.now_ns == 0


# --- ports ---


async def test_answers_for_a_closed_port_are_dropped_and_the_books_balance() -> None:
    def script(ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.call_later_ns(10, lambda batch: echo(ctx, batch), list(requests))

    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, script)
        client, other = Collector(kernel, module, "one"), Collector(kernel, module, "two")
        client.port.submit_batch([uxk.Request(0) for _ in range(3)])
        other.port.submit(uxk.Request(0))
        with pytest.raises(uxk.InUse, match=r"one.*two"):
            await kernel.rmmod("puppet")
        await kernel.sleep_ns(0)
        client.port.close()
        client.port.close()
        await kernel.run()
        assert (client.answers, len(other.answers)) == ([], 1)
        assert (module.account.completed, module.account.inflight, kernel.machine.outstanding) == (4, 0, 0)
        other.port.close()
        await kernel.rmmod("puppet")


async def test_a_port_number_is_not_used_again_for_another_client() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, hold)
        old = Collector(kernel, module)
        old.port.submit(uxk.Request(0))
        await kernel.sleep_ns(0)
        old.port.close()
        assert Collector(kernel, module).port.id != old.port.id


async def test_a_port_on_a_module_that_is_gone_says_enodev() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await load(kernel, echo)
        port = Collector(kernel, module).port
        await kernel.rmmod("puppet")
        with pytest.raises(uxk.RequestError) as caught:
            port.submit(uxk.Request(0))
        assert caught.value.errno == errno.ENODEV
        with pytest.raises(uxk.RequestError):
            await module.submit()


# --- the account ---


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 5), st.integers(0, 500)), min_size=1, max_size=12))
def test_the_account_is_exact(batches: list[tuple[int, int, int]]) -> None:
    """Beside a count of every byte that the host carried, and latency to the nanosecond."""
    carried = Counter[str]()

    def script(ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.call_later_ns(request.length, lambda request: ctx.complete(request, request.payload), request)

    async def main() -> None:
        async with uxk.Kernel(seed=1) as kernel:
            module = await load(kernel, script)
            host: Any = agent_of(kernel).host
            actor = host._actor

            class Spy:
                ctx, crash, runs = actor.ctx, None, False

                def turn(self, now_ns: int, down: Sequence[bytes], answers: Sequence[bytes]) -> Any:
                    output = actor.turn(now_ns, down, answers)
                    for frame in down:
                        carried["bytes_in"] += len(frame)
                        carried["messages_in"] += len(msgspec.msgpack.decode(frame))
                        carried["batches_in"] += 1
                    for frame, count in output.replies:
                        carried["bytes_out"] += len(frame)
                        carried["messages_out"] += count
                        carried["batches_out"] += 1
                    carried["crossings"] += bool(down) + bool(output.replies)
                    carried["turns"] += 1
                    return output

                def __getattr__(self, name: str) -> Any:
                    return getattr(actor, name)

            host._actor = Spy()
            client = Collector(kernel, module)
            latencies: list[int] = []
            for size, count, delay_ns in batches:
                client.port.submit_batch([uxk.Request(0, payload=bytes(size), length=delay_ns) for _ in range(count)])
                latencies += [delay_ns] * count
                await kernel.run_until_ns(kernel.now_ns + delay_ns)
            await kernel.run()
            account = module.account
            for name, value in carried.items():
                assert getattr(account, name) == value, name
            assert account.messages_in == account.messages_out == account.requests == account.completed
            assert (account.latency.count, account.latency.total) == (len(latencies), sum(latencies))
            assert account.latency.max == max(latencies)
            rings = module.statistics()["rings"]
            assert rings["sq"]["bytes"] == account.bytes_in and rings["cq"]["bytes"] == account.bytes_out
            assert rings["sq"]["used"] == rings["cq"]["used"] == 0
            assert kernel.sysfs.read("/sys/module/puppet/statistics/bytes_in") == str(account.bytes_in)

    trio.run(main)
