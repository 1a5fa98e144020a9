"""uxk's contenders: a booted kernel as its user gets it, every entry encoded, validated, booked and hashed.

Written as an author would: the extension is ``on_batch`` or ``on_event``; the kernel's side is a port with a
completion callback, or a callback on the event heap.  Booting and loading are not timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter_ns

import trio

import uxk

PAYLOAD = b"12345678"
DEPTH = 256
_BUDGET = uxk.Budget(queue_depth=DEPTH, memory_bytes=0)


class Echo(uxk.Extension):
    """Completes every request with its own payload."""

    manifest = uxk.Manifest(name="bench-echo", budget=_BUDGET)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request, request.payload)


class Sink(uxk.Extension):
    """Takes events and requests in; a request's completion carries nothing."""

    manifest = uxk.Manifest(name="bench-sink", budget=_BUDGET)
    events = 0

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        Sink.events += 1

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request)


class Client(uxk.Extension):
    """Keeps ``offset`` requests to the device it is bound to in flight, until ``length`` are answered."""

    manifest = uxk.Manifest(name="bench-client", binds=(uxk.Bind({"module": "bench-echo"}),), budget=_BUDGET)
    cap = left = unsent = 0
    order: uxk.Request

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic == "device_add":
            self.cap = event.cap

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        self.order = requests[0]
        self.left = self.order.length
        self.unsent = self.left - self.order.offset
        self.ctx = ctx
        for _ in range(self.order.offset):
            ctx.submit(self.cap, uxk.Op.CALL, PAYLOAD).then(self.on_answer)

    def on_answer(self, completion: uxk.Completion) -> None:
        self.left -= 1
        if self.unsent > 0:
            self.unsent -= 1
            self.ctx.submit(self.cap, uxk.Op.CALL, PAYLOAD).then(self.on_answer)
        elif self.left == 0:
            self.ctx.complete(self.order)


class Queued(Client):
    """As ``Client``, through a submission queue: answers come a batch at a time."""

    manifest = uxk.Manifest(name="bench-queued", binds=(uxk.Bind({"module": "bench-echo"}),), budget=_BUDGET)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        self.order = requests[0]
        self.left = self.order.length
        self.unsent = self.left - self.order.offset
        self.ctx = ctx
        self.queue = ctx.queue(self.cap, self.on_answers)
        for _ in range(self.order.offset):
            self.queue.submit(uxk.Op.CALL, payload=PAYLOAD)

    def on_answers(self, completions: list[uxk.Completion]) -> None:
        self.left -= len(completions)
        if self.unsent > 0:
            again = min(len(completions), self.unsent)
            self.unsent -= again
            submit = self.queue.submit
            for _ in range(again):
                submit(uxk.Op.CALL, payload=PAYLOAD)
        elif self.left == 0:
            self.ctx.complete(self.order)


def _kernel() -> uxk.Kernel:
    kernel = uxk.Kernel(seed=1)
    # All of it happens at one instant of virtual time, which the livelock check is there to end.
    kernel.dispatcher.turns_per_instant_max = 1 << 40
    return kernel


def _batches(count: int, batch: int) -> int:
    """``count`` rounded up to whole batches."""
    return -(-count // batch) * batch


async def _requests(extension: type[uxk.Extension], batch: int, count: int) -> tuple[int, int]:
    count = _batches(count, batch)
    async with _kernel() as kernel:
        module = await kernel.insmod(extension)
        left = count - batch
        answered = 0

        def on_completions(completions: list[uxk.Completion]) -> None:
            nonlocal left, answered
            answered += len(completions)
            if left > 0:
                left -= len(completions)
                port.submit_batch([uxk.Request(0, uxk.Op.CALL, PAYLOAD) for _ in completions])

        port = module.open_port(on_completions)
        began_ns = perf_counter_ns()
        port.submit_batch([uxk.Request(0, uxk.Op.CALL, PAYLOAD) for _ in range(batch)])
        await kernel.run()
        took_ns = perf_counter_ns() - began_ns
        assert answered == module.account.completed == count and not module.account.failed
    return count, took_ns


def roundtrip(depth: int, count: int) -> tuple[int, int]:
    """Requests of a port, echoed by ``on_batch``; the completion callback submits the next batch."""
    return trio.run(_requests, Echo, depth, count)


def oneway_requests(batch: int, count: int) -> tuple[int, int]:
    """Requests counted once, although each one's (empty) completion travels back, too."""
    return trio.run(_requests, Sink, batch, count)


async def _events(batch: int, count: int) -> tuple[int, int]:
    count = _batches(count, batch)
    Sink.events = 0
    async with _kernel() as kernel:
        module = await kernel.insmod(Sink)
        send_batch = kernel.agents[module.name].send_batch
        left = count

        def produce(_: object) -> None:
            nonlocal left
            left -= batch
            send_batch([uxk.Event("bench", "", PAYLOAD) for _ in range(batch)])
            if left > 0:
                kernel.call_at_ns(kernel.now_ns + 1, produce)

        began_ns = perf_counter_ns()
        kernel.call_at_ns(0, produce)
        await kernel.run()
        took_ns = perf_counter_ns() - began_ns
        assert Sink.events == count and not module.account.rejects
    return count, took_ns


def oneway_events(batch: int, count: int) -> tuple[int, int]:
    """Events, which have no answer, sent by a callback on the event heap, a batch per nanosecond."""
    return trio.run(_events, batch, count)


async def _peers(client_class: type[uxk.Extension], depth: int, count: int) -> tuple[int, int]:
    count = max(count, depth)
    async with _kernel() as kernel:
        echo = await kernel.insmod(Echo)
        client = await kernel.insmod(client_class)
        began_ns = perf_counter_ns()
        await client.submit(offset=depth, length=count)
        took_ns = perf_counter_ns() - began_ns
        assert echo.account.completed == client.account.submitted == count
    return count, took_ns


def roundtrip_peers(depth: int, count: int) -> tuple[int, int]:
    """One extension's ``ctx.submit(...).then(...)`` to another's device, through the kernel: two queue pairs."""
    return trio.run(_peers, Client, depth, count)


def roundtrip_queue(depth: int, count: int) -> tuple[int, int]:
    """The same through ``ctx.queue``, whose answers come a batch at a time."""
    return trio.run(_peers, Queued, depth, count)


async def _sleepers(sleepers: int, count: int) -> tuple[int, int]:
    until_ns = horizon(sleepers, count)
    done = 0
    async with _kernel() as kernel:

        def tick(period_ns: int) -> None:
            nonlocal done
            done += 1
            kernel.call_at_ns(kernel.now_ns + period_ns, tick, period_ns)

        for period_ns in periods(sleepers):
            kernel.call_at_ns(period_ns, tick, period_ns)
        began_ns = perf_counter_ns()
        await kernel.run_until_ns(until_ns)
        took_ns = perf_counter_ns() - began_ns
    return done, took_ns


def sleepers(sleepers: int, count: int) -> tuple[int, int]:
    """Callbacks that schedule themselves again with ``kernel.call_at_ns``, run by the dispatcher."""
    return trio.run(_sleepers, sleepers, count)


def periods(sleepers: int) -> range:
    """Different periods, so that few events share an instant: sharing would favour the dispatcher."""
    return range(1000, 1000 + sleepers)


def horizon(sleepers: int, count: int) -> int:
    """Until when to run for about ``count`` events."""
    return max(int(count / sum(1 / period for period in periods(sleepers))), 1000 + sleepers)
