"""Whatever a host process says, and wherever it stops, the kernel goes on: random conversations with a sham one."""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk.actor import wire
from uxk.actor.actor import Start
from uxk.actor.link import Link
from uxk.core.codec import encode
from uxk.kernel.process_host import ProcessHost
from uxk.kernel.process_start import described

FRAME = encode([uxk.Completion(1)])
NUMBERS = st.integers(0, 5)
FRAMES = st.lists(st.tuples(st.sampled_from([FRAME, b"", b"\xc1", b"\x91"]), st.integers(-1, 3)), max_size=2)
WAKES = st.none() | st.integers(0, 1 << 20)
MESSAGES = st.one_of(
    st.builds(wire.Hello, st.sampled_from(["uxk", "ux"]), st.integers(0, 2), st.integers(0, 2)),
    st.builds(wire.Out, NUMBERS, FRAMES, FRAMES, WAKES, st.booleans(), NUMBERS, st.booleans(), st.booleans()),
    st.builds(wire.Out, NUMBERS, FRAMES, FRAMES, WAKES, st.just(False), NUMBERS, more=st.just(True)),
    st.builds(wire.Crashed, st.text(max_size=3), st.text(max_size=3), st.text(max_size=3), st.text(max_size=3)),
    st.builds(wire.Map, NUMBERS, st.booleans()),
    st.builds(wire.Saved, NUMBERS, WAKES, st.binary(max_size=3), st.text(max_size=3)),
    st.just(wire.Dirty()),
)
SAYINGS = st.lists(MESSAGES.map(wire.packed) | st.binary(max_size=12), max_size=8)
GREETING = wire.packed(wire.Hello("uxk", 1, 1)) + wire.packed(wire.Out(0, [], [], None, False, 0))


class Quiet(uxk.Extension):
    manifest = uxk.Manifest(name="hostile-quiet")


class Sham:
    """A host process that has said everything already."""

    pid = 0
    tail = b"printed"

    def __init__(self, said: bytes, *, hangs_up: bool) -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.sendall(said)
        self.link: Link[wire.FromChild] = Link(ours, wire.FromChild)
        if hangs_up:
            self.theirs.shutdown(socket.SHUT_WR)

    def drain(self) -> bool:
        return True

    def kill(self) -> None:
        pass

    def end(self) -> str:
        return "status 1"

    async def ended(self) -> str:
        return "signal 9"

    async def watch_stderr(self) -> None:
        pass

    async def bury(self, on_gone: Callable[[], None], *, gently: bool) -> None:
        trio.lowlevel.notify_closing(self.link.sock)
        self.link.close()
        self.theirs.close()
        on_gone()


async def converse(clock: str, said: bytes, hangs_up: bool) -> None:
    async with uxk.Kernel(clock=clock) as kernel:  # type: ignore[arg-type]
        module = await kernel.insmod(Quiet)
        agent = kernel.agents[module.name]
        processes = kernel._incarnations.processes
        processes.nursery, processes.answer_ns, processes.start_ns = kernel._incarnations.nursery, 1, 1
        start = described(agent, Start("quiet", agent.id, 1, 64, 0, b"\x80"), held=clock != "real")
        host = ProcessHost(processes, agent, Sham(said, hangs_up=hangs_up), start, lambda: None)  # type: ignore[arg-type]
        task_host, agent.host = agent.host, host
        host.setup()
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            if agent.host is host:
                agent.turn()
        if agent.host is host:
            agent.collect()
        if agent.host is host:
            processes.settle(True)
            host.checkpoint(lambda saved: None)
            agent.last_words("over")
        if agent.host is host:
            agent.detach()
        if task_host is not None:
            task_host.abandon()
        for _ in range(2):
            await trio.lowlevel.checkpoint()


@given(st.sampled_from(["virtual", "real"]), SAYINGS, st.booleans(), st.booleans())
def test_no_conversation_is_the_kernel_s_end(clock: str, said: list[bytes], greets: bool, hangs_up: bool) -> None:
    trio.run(converse, clock, (GREETING if greets else b"") + b"".join(said), hangs_up)
