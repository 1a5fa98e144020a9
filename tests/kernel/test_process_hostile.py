"""Whatever a host process says, and wherever it stops, the kernel goes on: random conversations with a sham one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk import limits
from uxk.actor import wire
from uxk.actor.actor import Crash, Start
from uxk.actor.link import Link
from uxk.core.codec import encode
from uxk.errors import ProtocolError
from uxk.kernel import process_shared
from uxk.kernel.process_child import HostProcess
from uxk.kernel.process_host import ProcessHost
from uxk.kernel.process_shared import SharedHost
from uxk.kernel.process_start import described
from uxk.kernel.process_valve import FRAME_COST_BYTES, OUTPUTS_MAX, Valve

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

    def reap(self) -> str:
        return ""

    def admit(self, send: Callable[[], None]) -> str:
        send()
        return ""

    def set_up(self) -> None:
        pass

    def listen_to_others(self) -> None:
        pass

    def leave(self) -> None:
        pass

    def fell(self, crash: Crash) -> None:
        pass

    def cut(self, *, obedient: bool) -> None:
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


# --- what the kernel holds is bounded by what it takes, however little the process has sent ---

NOTHINGS = [(b"", 0)] * 50_000
"""Frames that are four bytes each on their way, and objects when they are here."""


def out(number: int, *, more: bool) -> wire.Out:
    return wire.Out(number, NOTHINGS, [], None, False, 0, more=more)


async def test_an_output_without_end_of_empty_frames_ends_the_process() -> None:
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(Quiet)
        agent = kernel.agents[module.name]
        processes = kernel._incarnations.processes
        start = described(agent, Start("quiet", agent.id, 1, 64, 0, b"\x80"), held=False)
        sham: Any = Sham(b"", hangs_up=False)
        host = ProcessHost(processes, agent, sham, start, lambda: None)
        host._hear(wire.Hello("uxk", 1, 1))
        for _ in range(wire.ANSWER_MAX_BYTES // (FRAME_COST_BYTES * len(NOTHINGS))):
            host._hear(out(0, more=True))
        with pytest.raises(ProtocolError, match="an OUTPUT of more than"):
            host._hear(out(0, more=True))
        sham.link.close()
        sham.theirs.close()


async def test_a_reader_waits_for_what_is_large_and_for_what_is_much() -> None:
    valve: Any = Valve(None, None)  # type: ignore[arg-type]
    waiting: list[int] = []
    while valve._heard_bytes <= wire.ANSWER_MAX_BYTES:
        assert valve.weigh(out(1, more=False), waiting) == FRAME_COST_BYTES * len(NOTHINGS)
        waiting.append(1)
    assert len(waiting) < OUTPUTS_MAX
    went_on: list[int] = []

    async def read() -> None:
        await valve.room(waiting)
        went_on.append(len(waiting))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for left in (1, 0):
            await trio.testing.wait_all_tasks_blocked()
            assert went_on == []
            del waiting[left:]
            valve.open()
    assert went_on == [0]
    valve.weigh(wire.Out(1, [], [], None, False, 0), waiting)
    waiting += [1] * OUTPUTS_MAX
    await valve.room(waiting)


async def test_what_a_process_says_it_took_stays_a_number_that_can_be_told() -> None:
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(Quiet)
        valve = Valve(kernel.machine, kernel.agents[module.name])
        for _ in range(3):
            valve.believe(limits.I64_MAX)
        assert module.account.cpu_ns == limits.I64_MAX


async def test_what_a_process_prints_is_read_at_a_pace_and_no_more_when_it_is_buried(
    mock_clock: trio.testing.MockClock,
) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    process: Any = HostProcess.__new__(HostProcess)
    process.err, process.tail = read, b""
    sham = Sham(b"", hangs_up=False)
    process.link = sham.link
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.watch_stderr)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(1, 4):
            for _ in range(5):
                os.write(write, b"x")
                await trio.testing.wait_all_tasks_blocked()
            assert len(process.tail) == 5 * (number - 1)
            mock_clock.jump(1)
            await trio.testing.wait_all_tasks_blocked()
            assert len(process.tail) == 5 * number
        os.write(write, b"x")
        await trio.testing.wait_all_tasks_blocked()
        os.close(read)
        process.err = -1
        mock_clock.jump(1)
    assert len(process.tail) == 15
    os.close(write)
    sham.link.close()
    sham.theirs.close()


# --- two that share a process ------------------------------------------------------------------------------


class ShamHouse(Sham):
    """A process that instances share, without any."""

    pid = (1 << 22) + 1
    err = -1

    def __init__(self, argv: list[str]) -> None:
        super().__init__(b"", hangs_up=False)
        self.killed = 0

    def kill(self) -> None:
        self.killed += 1


def talk_in(house: SharedHost, said: bytes, hangs_up: bool) -> socket.socket:
    """The other end of the newest seat's connection, with everything said."""
    (end,) = socket.recv_fds(house.process.theirs, 1, 1)[1]  # type: ignore[attr-defined]
    theirs = socket.socket(fileno=end)
    theirs.sendall(said)
    if hangs_up:
        theirs.shutdown(socket.SHUT_WR)
    return theirs


async def converse_in_one_house(clock: str, said: list[bytes], hangs_up: list[bool]) -> None:
    async with uxk.Kernel(clock=clock) as kernel:  # type: ignore[arg-type]
        processes = kernel._incarnations.processes
        processes.nursery, processes.answer_ns, processes.start_ns = kernel._incarnations.nursery, 1, 1
        agents, hosts, ends, task_hosts, house = [], [], [], [], None
        for name, words, hang_up in zip(("one", "two"), said, hangs_up, strict=True):
            module = await kernel.insmod(Quiet, instance=name)
            agent = kernel.agents[module.name]
            start = described(agent, Start(name, agent.id, 1, 64, 0, b"\x80"), held=clock != "real")
            house = house or SharedHost("house", start, lambda house: None)
            hosts.append(ProcessHost(processes, agent, house.join(start), start, lambda: None))
            ends.append(talk_in(house, words, hang_up))
            agents.append(agent)
            task_hosts.append(agent.host)
            agent.host = hosts[-1]
            hosts[-1].setup()
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            for agent, host in zip(agents, hosts, strict=True):
                if agent.host is host:
                    agent.turn()
        assert house is not None and house.fallen == bool(house.process.killed)  # type: ignore[attr-defined]
        if house.fallen:  # together, and each for itself
            for agent, host in zip(agents, hosts, strict=True):
                if agent.host is host:
                    agent.collect()
            assert all(agent.host is not host for agent, host in zip(agents, hosts, strict=True))
            assert {agent.account.faults for agent in agents} == {1}
        for agent, host, task_host in zip(agents, hosts, task_hosts, strict=True):
            if agent.host is host:
                processes.settle(True)
            if agent.host is host:
                agent.last_words("over")
            if agent.host is host:
                agent.detach()
            if task_host is not None:
                task_host.abandon()
        for end in ends:
            end.close()
        for host in hosts:
            if host._abandoned:
                assert host.done is not None
                await host.done.wait()


TALKS = st.lists(SAYINGS.map(b"".join), min_size=2, max_size=2)


@given(st.sampled_from(["virtual", "real"]), TALKS, st.lists(st.booleans(), min_size=4, max_size=4))
def test_no_conversation_in_one_house_is_more_than_its_end(clock: str, said: list[bytes], choices: list[bool]) -> None:
    greeted = [GREETING + words if greets else words for greets, words in zip(choices, said, strict=False)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_shared, "HostProcess", ShamHouse)
        trio.run(converse_in_one_house, clock, greeted, choices[2:])
