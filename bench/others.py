"""The others' contenders, each in its own idiom: one message per call, bounded by the batch or depth in question.

*lists of 32* rows send a list where one would normally send a message: shown because batching by hand is possible
there, too, though then every layer of the program has to speak in lists.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator
from time import perf_counter_ns
from typing import Any

import pykka
import simpy
import trio
from trio.testing import MockClock

from bench.uxk_side import PAYLOAD, horizon, periods

# --- trio ---


def trio_oneway(buffer: int, count: int, message: object = PAYLOAD, size: int = 1) -> tuple[int, int]:
    """``await send(...)`` and ``async for`` over a memory channel with a buffer of ``buffer``."""

    async def main() -> int:
        send, receive = trio.open_memory_channel[object](buffer)

        async def consumer() -> None:
            async for _ in receive:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consumer)
            began_ns = perf_counter_ns()
            async with send:
                for _ in range(count):
                    await send.send(message)
        return perf_counter_ns() - began_ns

    return count * size, trio.run(main)


def trio_oneway_lists(count: int) -> tuple[int, int]:
    """Lists of 32 through a channel with room for one."""
    return trio_oneway(1, -(-count // 32), [PAYLOAD] * 32, 32)


def trio_roundtrip(depth: int, count: int) -> tuple[int, int]:
    """Two memory channels; the client keeps ``depth`` messages in flight."""
    count = max(count, depth)

    async def main() -> int:
        send, requests = trio.open_memory_channel[bytes](depth)
        reply, receive = trio.open_memory_channel[bytes](depth)

        async def server() -> None:
            async for message in requests:
                await reply.send(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(server)
            began_ns = perf_counter_ns()
            for _ in range(depth):
                await send.send(PAYLOAD)
            for _ in range(count - depth):
                await receive.receive()
                await send.send(PAYLOAD)
            for _ in range(depth):
                await receive.receive()
            took_ns = perf_counter_ns() - began_ns
            await send.aclose()
        return took_ns

    return count, trio.run(main)


def trio_sleepers(sleepers: int, count: int) -> tuple[int, int]:
    """``trio.sleep`` under a MockClock that jumps when all tasks are blocked."""
    until = horizon(sleepers, count)
    done = began_ns = 0

    async def sleeper(period: int) -> None:
        nonlocal done, began_ns
        began_ns = began_ns or perf_counter_ns()
        while True:
            await trio.sleep(period)
            done += 1

    async def main() -> int:
        with trio.move_on_after(until):
            async with trio.open_nursery() as nursery:
                for period in periods(sleepers):
                    nursery.start_soon(sleeper, period)
        return perf_counter_ns() - began_ns

    took_ns = trio.run(main, clock=MockClock(autojump_threshold=0))
    return done, took_ns


# --- asyncio ---


def asyncio_oneway(maxsize: int, count: int, message: object = PAYLOAD, size: int = 1) -> tuple[int, int]:
    """``await put(...)`` and ``await get()`` on a queue of ``maxsize``."""

    async def main() -> int:
        queue: asyncio.Queue[object] = asyncio.Queue(maxsize)

        async def consumer() -> None:
            for _ in range(count):
                await queue.get()

        task = asyncio.create_task(consumer())
        began_ns = perf_counter_ns()
        for _ in range(count):
            await queue.put(message)
        await task
        return perf_counter_ns() - began_ns

    return count * size, asyncio.run(main())


def asyncio_oneway_lists(count: int) -> tuple[int, int]:
    """Lists of 32 through a queue with room for one."""
    return asyncio_oneway(1, -(-count // 32), [PAYLOAD] * 32, 32)


def asyncio_roundtrip(depth: int, count: int) -> tuple[int, int]:
    """Two queues; the client keeps ``depth`` messages in flight."""
    count = max(count, depth)

    async def main() -> int:
        requests: asyncio.Queue[bytes] = asyncio.Queue(depth)
        replies: asyncio.Queue[bytes] = asyncio.Queue(depth)

        async def server() -> None:
            for _ in range(count):
                await replies.put(await requests.get())

        task = asyncio.create_task(server())
        began_ns = perf_counter_ns()
        for _ in range(depth):
            await requests.put(PAYLOAD)
        for _ in range(count - depth):
            await replies.get()
            await requests.put(PAYLOAD)
        for _ in range(depth):
            await replies.get()
        took_ns = perf_counter_ns() - began_ns
        await task
        return took_ns

    return count, asyncio.run(main())


# --- SimPy ---


def simpy_oneway(capacity: int, count: int) -> tuple[int, int]:
    """A Store of ``capacity``; producer and consumer are processes."""
    env = simpy.Environment()
    store = simpy.Store(env, capacity)

    def producer() -> Generator[simpy.Event, Any, None]:
        for _ in range(count):
            yield store.put(PAYLOAD)

    def consumer() -> Generator[simpy.Event, Any, None]:
        for _ in range(count):
            yield store.get()

    env.process(producer())
    last = env.process(consumer())
    began_ns = perf_counter_ns()
    env.run(last)
    return count, perf_counter_ns() - began_ns


def simpy_roundtrip(depth: int, count: int) -> tuple[int, int]:
    """Two Stores; the client keeps ``depth`` messages in flight."""
    count = max(count, depth)
    env = simpy.Environment()
    requests, replies = simpy.Store(env, depth), simpy.Store(env, depth)

    def server() -> Generator[simpy.Event, Any, None]:
        for _ in range(count):
            message = yield requests.get()
            yield replies.put(message)

    def client() -> Generator[simpy.Event, Any, None]:
        for _ in range(depth):
            yield requests.put(PAYLOAD)
        for _ in range(count - depth):
            yield replies.get()
            yield requests.put(PAYLOAD)
        for _ in range(depth):
            yield replies.get()

    env.process(server())
    last = env.process(client())
    began_ns = perf_counter_ns()
    env.run(last)
    return count, perf_counter_ns() - began_ns


def simpy_sleepers(sleepers: int, count: int) -> tuple[int, int]:
    """Processes that ``yield env.timeout(period)`` for ever."""
    env = simpy.Environment()
    done = 0

    def sleeper(period: int) -> Generator[simpy.Event, Any, None]:
        nonlocal done
        while True:
            yield env.timeout(period)
            done += 1

    for period in periods(sleepers):
        env.process(sleeper(period))
    began_ns = perf_counter_ns()
    env.run(until=horizon(sleepers, count))
    return done, perf_counter_ns() - began_ns


# --- pykka ---


class _Actor(pykka.ThreadingActor):
    """Answers what it is told with the same."""

    def on_receive(self, message: Any) -> Any:
        return message


def pykka_oneway(count: int) -> tuple[int, int]:
    """``tell`` to a threading actor, whose inbox is unbounded, and one ``ask`` behind the last."""
    ref = _Actor.start()
    try:
        began_ns = perf_counter_ns()
        for _ in range(count):
            ref.tell(PAYLOAD)
        ref.ask(PAYLOAD)
        return count, perf_counter_ns() - began_ns
    finally:
        ref.stop()


def pykka_roundtrip(depth: int, count: int) -> tuple[int, int]:
    """``ask(block=False)``; the client keeps ``depth`` futures."""
    count = max(count, depth)
    ref = _Actor.start()
    try:
        began_ns = perf_counter_ns()
        futures = deque(ref.ask(PAYLOAD, block=False) for _ in range(depth))
        for _ in range(count - depth):
            futures.popleft().get()
            futures.append(ref.ask(PAYLOAD, block=False))
        while futures:
            futures.popleft().get()
        return count, perf_counter_ns() - began_ns
    finally:
        ref.stop()
