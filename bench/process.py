"""Messages between two processes: ``python -m bench.process [--rounds N] [--only NAME] [--quick]``.

uxk's link alone, and the kernel with an extension in a process of its own, beside what others use.
Every contender's peer is a fresh interpreter, started before the clock is.  The frames of ``uxk link`` and of pyzmq are
the same bytes, from the same codec; multiprocessing.Queue pickles lists of the same entries, as its users do.  With
``one core`` both processes share one processor, so whoever spins in vain shows.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final

import trio

import uxk
from bench.__main__ import SAMPLE_NS, SAMPLE_QUICK_NS
from bench.report import add_options, begun, chosen, parsed, plain, save, show
from bench.ring import RingEnd
from bench.runner import Case, Contender, Measure, Target, run_case
from uxk.actor import wire
from uxk.actor.link import Gone, Link
from uxk.core.codec import completion_codec, down_codec, down_reply_codec, encode
from uxk.core.cost import ClockKind
from uxk.uapi.entries import Completion, Event

STEM: Final = "process-"
_ROOM_S: Final = 1e-4
"""Until there is room in the queue again, about."""
PAYLOAD = b"12345678"
DEPTH = 256
ENTRIES_MAX = 1 << 16
_BUDGET = uxk.Budget(queue_depth=DEPTH, memory_bytes=0)
_SPAWN = multiprocessing.get_context("spawn")
HAS_ZMQ = find_spec("zmq") is not None


def _batches(count: int, batch: int) -> int:
    return max(1, -(-count // batch))


def _events(batch: int) -> list[Event]:
    return [Event("bench", "", PAYLOAD) for _ in range(batch)]


def _requests(batch: int) -> list[uxk.Request]:
    return [uxk.Request(n + 1, uxk.Op.CALL, PAYLOAD) for n in range(batch)]


@contextmanager
def _peer(target: Callable[..., None], *args: Any) -> Iterator[None]:
    """A process that runs ``target(*args)``; it must come to its end by itself."""
    process = _SPAWN.Process(target=target, args=args, daemon=True)
    process.start()
    try:
        yield
        process.join(30)
    finally:
        process.kill()
        process.join()
        process.close()


@contextmanager
def _folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="uxk-bench-") as folder:
        yield folder


# --- uxk's link alone -------------------------------------------------------------------------------------


def _link_sink(path: str, batches: int) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    link: Link[wire.FromKernel] = Link(sock, wire.FromKernel)
    link.send_all(wire.Dirty())
    heard = 0
    while heard < batches:
        for message in link.wait_for_messages():
            assert isinstance(message, wire.Turn)
            for frame in message.down:
                down_codec.decode(frame, ENTRIES_MAX)
            heard += 1
    link.send_all(wire.Dirty())


def _link_echo(path: str) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    link: Link[wire.FromKernel] = Link(sock, wire.FromKernel)
    link.send_all(wire.Dirty())
    try:
        while True:
            for message in link.wait_for_messages():
                assert isinstance(message, wire.Turn)
                requests = down_codec.decode_usual(message.down[0], ENTRIES_MAX)
                assert requests is not None
                frame = encode([Completion(request.cid, 0, 0, request.payload) for request in requests])
                link.send_all(wire.Out(0, [(frame, len(requests))], [], None, False, 0))
    except Gone:
        return


@contextmanager
def _linked(target: Callable[..., None], *args: Any) -> Iterator[Link[wire.FromChild]]:
    with _folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = str(Path(folder) / "link")
        listener.bind(path)
        listener.listen()
        with _peer(target, path, *args):
            link: Link[wire.FromChild] = Link(listener.accept()[0], wire.FromChild)
            link.wait_for_messages()
            yield link
            link.close()


def link_oneway(batch: int, count: int) -> tuple[int, int]:
    """A frame of events per message; the peer decodes each."""
    batches = _batches(count, batch)
    with _linked(_link_sink, batches) as link:
        began_ns = perf_counter_ns()
        for number in range(batches):
            link.send_all(wire.Turn(number, [encode(_events(batch))], []))
        link.wait_for_messages()
        took_ns = perf_counter_ns() - began_ns
    return batches * batch, took_ns


def link_roundtrip(batch: int, count: int) -> tuple[int, int]:
    """A frame of requests, and one of completions back."""
    batches = _batches(count, batch)
    with _linked(_link_echo) as link:
        began_ns = perf_counter_ns()
        for number in range(batches):
            link.send_all(wire.Turn(number, [encode(_requests(batch))], []))
            (message,) = link.wait_for_messages()
            assert isinstance(message, wire.Out)
            assert down_reply_codec.decode_usual(message.replies[0][0], ENTRIES_MAX) is not None
        took_ns = perf_counter_ns() - began_ns
    return batches * batch, took_ns


# --- rings in shared memory ------------------------------------------------------------------------------------


def _ring_sink(folder: str, batches: int) -> None:
    with RingEnd(folder, first=False) as ring:
        ring.send(b"")
        for _ in range(batches):
            down_codec.decode(ring.receive(), ENTRIES_MAX)
        ring.send(b"")


def _ring_echo(folder: str, batches: int) -> None:
    with RingEnd(folder, first=False) as ring:
        ring.send(b"")
        for _ in range(batches):
            requests = down_codec.decode_usual(ring.receive(), ENTRIES_MAX)
            assert requests is not None
            ring.send(encode([Completion(request.cid, 0, 0, request.payload) for request in requests]))


def ring_oneway(batch: int, count: int) -> tuple[int, int]:
    """The same frames through a ring."""
    batches = _batches(count, batch)
    with _folder() as folder, RingEnd(folder, first=True) as ring, _peer(_ring_sink, folder, batches):
        ring.receive()
        began_ns = perf_counter_ns()
        for _ in range(batches):
            ring.send(encode(_events(batch)))
        ring.receive()
        took_ns = perf_counter_ns() - began_ns
    return batches * batch, took_ns


def ring_roundtrip(batch: int, count: int) -> tuple[int, int]:
    """There and back."""
    batches = _batches(count, batch)
    with _folder() as folder, RingEnd(folder, first=True) as ring, _peer(_ring_echo, folder, batches):
        ring.receive()
        began_ns = perf_counter_ns()
        for _ in range(batches):
            ring.send(encode(_requests(batch)))
            completion_codec.decode(ring.receive(), ENTRIES_MAX)
        took_ns = perf_counter_ns() - began_ns
    return batches * batch, took_ns


# --- the kernel and an extension in a process --------------------------------------------------------------


class Echo(uxk.Extension):
    """Completes every request with its own payload."""

    manifest = uxk.Manifest(name="bench-process-echo", budget=_BUDGET, placement="process")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.complete_batch(requests, [request.payload for request in requests])


class Sink(uxk.Extension):
    """Takes events in, and tells at the end of them."""

    manifest = uxk.Manifest(name="bench-process-sink", budget=_BUDGET, placement="process")
    events = 0

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        self.events += 1

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.complete(requests[0], b"%d" % self.events)


def _kernel(clock: ClockKind) -> uxk.Kernel:
    kernel = uxk.Kernel(seed=1, clock=clock)
    kernel.dispatcher.turns_per_instant_max = 1 << 40
    return kernel


async def _kernel_oneway(clock: ClockKind, batch: int, count: int) -> tuple[int, int]:
    batches = _batches(count, batch)
    async with _kernel(clock) as kernel:
        module = await kernel.insmod(Sink)
        agent = kernel.agents[module.name]
        sent = 0
        began_ns = perf_counter_ns()
        while sent < batches:
            while sent < batches and agent.queues.sq.depth - len(agent.queues.staged) >= batch:
                agent.send_batch(_events(batch))
                sent += 1
            if clock == "real":
                await trio.sleep(_ROOM_S)  # polling would take the processor from the peer, if there is one only
            else:
                await kernel.run()
        answer = await module.submit()
        took_ns = perf_counter_ns() - began_ns
        assert int(answer.payload) == batches * batch, (answer.payload, module.account.rejects)
    return batches * batch, took_ns


def kernel_oneway(clock: ClockKind, batch: int, count: int) -> tuple[int, int]:
    """Events, booked and hashed; on the real clock as fast as its queue takes them, else an exchange for a batch."""
    return trio.run(_kernel_oneway, clock, batch, count)


async def _kernel_roundtrip(clock: ClockKind, batch: int, count: int) -> tuple[int, int]:
    count = _batches(count, batch) * batch
    async with _kernel(clock) as kernel:
        module = await kernel.insmod(Echo)
        left, answered = count - batch, 0
        done = kernel.dispatcher.goal("all answers")

        def on_completions(completions: list[uxk.Completion]) -> None:
            nonlocal left, answered
            answered += len(completions)
            if left > 0:
                left -= len(completions)
                port.submit_batch([uxk.Request(0, uxk.Op.CALL, PAYLOAD) for _ in completions])
            elif answered == count:
                done.reach()

        port = module.open_port(on_completions)
        began_ns = perf_counter_ns()
        port.submit_batch([uxk.Request(0, uxk.Op.CALL, PAYLOAD) for _ in range(batch)])
        await kernel.dispatcher.wait(done)
        took_ns = perf_counter_ns() - began_ns
        assert answered == module.account.completed == count
    return count, took_ns


def kernel_roundtrip(clock: ClockKind, batch: int, count: int) -> tuple[int, int]:
    """Requests of a port, echoed by ``on_batch`` over there; the completion callback submits the next batch."""
    return trio.run(_kernel_roundtrip, clock, batch, count)


# --- multiprocessing.Queue ----------------------------------------------------------------------------------


def _queue_sink(there: Any, back: Any, messages: int) -> None:
    back.put(None)
    for _ in range(messages):
        there.get()
    back.put(None)


def _queue_echo(there: Any, back: Any, messages: int) -> None:
    back.put(None)
    for _ in range(messages):
        back.put([Completion(request.cid, 0, 0, request.payload) for request in there.get()])


def queue_oneway(batch: int, lists: bool, count: int) -> tuple[int, int]:
    """``put`` of a list of events, or of every event alone."""
    batches = _batches(count, batch)
    there, back = _SPAWN.Queue(), _SPAWN.Queue()
    with _peer(_queue_sink, there, back, batches if lists else batches * batch):
        back.get()
        began_ns = perf_counter_ns()
        for _ in range(batches):
            if lists:
                there.put(_events(batch))
            else:
                for event in _events(batch):
                    there.put(event)
        back.get()
        took_ns = perf_counter_ns() - began_ns
    return batches * batch, took_ns


def queue_roundtrip(batch: int, count: int) -> tuple[int, int]:
    """Lists of requests, and of completions back."""
    batches = _batches(count, batch)
    there, back = _SPAWN.Queue(), _SPAWN.Queue()
    with _peer(_queue_echo, there, back, batches):
        back.get()
        began_ns = perf_counter_ns()
        for _ in range(batches):
            there.put(_requests(batch))
            back.get()
        took_ns = perf_counter_ns() - began_ns
    return batches * batch, took_ns


# --- pyzmq ----------------------------------------------------------------------------------------------------


def _zmq_pair(folder: str, *, bind: bool) -> tuple[Any, Any]:
    """PUSH to the peer and PULL from it."""
    import zmq

    context: Any = zmq.Context.instance()
    push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    names = ("ipc://" + folder + "/there", "ipc://" + folder + "/back")
    for name, each in zip(names if bind else reversed(names), (push, pull), strict=True):
        (each.bind if bind else each.connect)(name)
    return push, pull


def _zmq_sink(folder: str, batches: int) -> None:
    push, pull = _zmq_pair(folder, bind=False)
    push.send(b"")
    for _ in range(batches):
        down_codec.decode(pull.recv(), ENTRIES_MAX)
    push.send(b"")
    push.close()
    pull.close()


def _zmq_echo(folder: str, batches: int) -> None:
    push, pull = _zmq_pair(folder, bind=False)
    push.send(b"")
    for _ in range(batches):
        requests = down_codec.decode_usual(pull.recv(), ENTRIES_MAX)
        assert requests is not None
        push.send(encode([Completion(request.cid, 0, 0, request.payload) for request in requests]))
    push.close()
    pull.close()


def zmq_oneway(batch: int, count: int) -> tuple[int, int]:
    """The same frames as through the link, over ``ipc://``."""
    batches = _batches(count, batch)
    with _folder() as folder:
        push, pull = _zmq_pair(folder, bind=True)
        with _peer(_zmq_sink, folder, batches):
            pull.recv()
            began_ns = perf_counter_ns()
            for _ in range(batches):
                push.send(encode(_events(batch)))
            pull.recv()
            took_ns = perf_counter_ns() - began_ns
        push.close()
        pull.close()
    return batches * batch, took_ns


def zmq_roundtrip(batch: int, count: int) -> tuple[int, int]:
    """PUSH/PULL there and back."""
    batches = _batches(count, batch)
    with _folder() as folder:
        push, pull = _zmq_pair(folder, bind=True)
        with _peer(_zmq_echo, folder, batches):
            pull.recv()
            began_ns = perf_counter_ns()
            for _ in range(batches):
                push.send(encode(_requests(batch)))
                completion_codec.decode(pull.recv(), ENTRIES_MAX)
            took_ns = perf_counter_ns() - began_ns
        push.close()
        pull.close()
    return batches * batch, took_ns


# --- the questions ----------------------------------------------------------------------------------------------


def pinned(measure: Measure, count: int) -> tuple[int, int]:
    """The same with both processes on one processor."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        return measure(count)
    finally:
        os.sched_setaffinity(0, cpus)


def oneway() -> list[Contender]:
    """Batches of 32."""
    contenders = [
        Contender("uxk link", partial(link_oneway, 32)),
        Contender("uxk, real clock", partial(kernel_oneway, "real", 32), "booked, hashed, dispatched"),
        Contender("uxk, virtual clock", partial(kernel_oneway, "virtual", 32), "an exchange for every batch"),
        Contender("shared-memory ring", partial(ring_oneway, 32), "not taken: see docs/benchmarks.md"),
        Contender("multiprocessing.Queue", partial(queue_oneway, 32, True), "lists of 32"),
        Contender("multiprocessing.Queue, single", partial(queue_oneway, 32, False)),
    ]
    return contenders + ([Contender("pyzmq PUSH/PULL", partial(zmq_oneway, 32))] if HAS_ZMQ else [])


def roundtrip(depth: int) -> list[Contender]:
    """``depth`` in flight, as one batch."""
    contenders = [
        Contender("uxk link", partial(link_roundtrip, depth)),
        Contender("uxk, virtual clock", partial(kernel_roundtrip, "virtual", depth), "booked, hashed, dispatched"),
        Contender("uxk, real clock", partial(kernel_roundtrip, "real", depth), "through Trio on the kernel's side"),
        Contender("shared-memory ring", partial(ring_roundtrip, depth), "not taken"),
        Contender("multiprocessing.Queue", partial(queue_roundtrip, depth)),
    ]
    return contenders + ([Contender("pyzmq PUSH/PULL", partial(zmq_roundtrip, depth))] if HAS_ZMQ else [])


def cases() -> list[Case]:
    """On as many processors as there are, and on one."""
    zmq = [Target("uxk link", "pyzmq PUSH/PULL", 0.8)] if HAS_ZMQ else []
    free = [
        Case("free/oneway/32", "messages/s", oneway(), [Target("uxk link", "multiprocessing.Queue", 6.0), *zmq]),
        *(
            Case(
                f"free/roundtrip/{depth}", "round trips/s", roundtrip(depth),
                [Target(ours, "multiprocessing.Queue", floor) for ours in ("uxk link", "uxk, virtual clock")],
            )
            for depth, floor in ((1, 10.0), (32, 8.0))
        ),
    ]  # fmt: skip
    one = [
        Case(
            case.name.replace("free/", "one-core/"), case.unit,
            [each._replace(measure=partial(pinned, each.measure)) for each in case.contenders],
        )
        for case in free
    ]  # fmt: skip
    return free + one


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what was asked for.  0; 2 if no case has such a name."""
    parser = argparse.ArgumentParser(prog="python -m bench.process", description="Messages between processes.")
    add_options(parser, STEM, "samples of 30 ms instead of 300")
    args = parsed(parser, argv)
    wanted = chosen(cases(), args.only, lambda case: case.name)
    if not wanted:
        return 2
    if not HAS_ZMQ:
        print("pyzmq is not installed: left out")
    report = begun(rounds=args.rounds)
    for case in wanted:
        result = run_case(case, rounds=args.rounds, sample_ns=SAMPLE_QUICK_NS if args.quick else SAMPLE_NS)
        print(show(result), flush=True)
        report["cases"].append(plain(result))
    save(report, args.json, STEM)
    return 0


if __name__ == "__main__":
    sys.exit(main())
