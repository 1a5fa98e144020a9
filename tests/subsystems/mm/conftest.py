"""A machine whose heap the test turns itself, memory on it, and a store that has room when the test says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from uxk.core.cost import CostModel
from uxk.core.waitfor import Node
from uxk.kernel.machine import Machine
from uxk.subsystems.kthread import Flow, Kthread, WaitQueue
from uxk.subsystems.mm.flusher import Flusher
from uxk.subsystems.mm.memory import Memory
from uxk.subsystems.mm.mempool import Mempool
from uxk.subsystems.mm.params import MmParams

WRITE_NS = 10_000


class Store:
    """A volume of which only the room matters."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.blocks = 1 << 40
        self.room = WaitQueue(machine, "a block", Node("kernel", "cleaner"))

    def has_room(self) -> bool:
        return self.blocks > 0

    def wait_for_room(self, thread: Kthread) -> Flow[None]:
        yield from self.room.wait_until(thread, self.has_room)

    def put(self, file: int, index: int) -> None:
        self.blocks -= 1

    def write(self, blocks: int, done: Callable[[int], object]) -> None:
        self._machine.call_later(WRITE_NS * blocks, done, blocks)

    def give(self, blocks: int) -> None:
        self.blocks = blocks
        self.room.wake_all()


class Bench:
    """Memory with everything that belongs to it."""

    def __init__(self, *, pool: int = 8, **params: Any) -> None:
        self.machine = Machine(seed=0, clock="virtual", cost=CostModel(), arena_bytes=1 << 20)
        self.memory = Memory(self.machine, MmParams(**{"pages": 512, **params}), Node("kernel", "flusher"))
        self.store = Store(self.machine)
        pool_ = Mempool(self.machine, self.memory.zone, "writeback", pool) if pool else None
        self.flusher = Flusher(
            self.machine, self.memory, self.store, Node("kernel", "flusher"), lambda _: -1, pool_
        )  # fmt: skip
        self.memory.flush = self.flusher.flush
        self._tasks = 0

    def spawn(self, flow: Callable[[Kthread], Flow[Any]], name: str = "") -> Kthread:
        """A task that does this."""
        self._tasks += 1
        thread = Kthread(self.machine, Node("task", name or f"task {self._tasks}"))
        thread.start(flow(thread))
        return thread

    def run(self, ns: int = 0) -> None:
        """Lets so much time pass."""
        machine, until_ns = self.machine, self.machine.now_ns + ns
        while (event := machine.heap.pop_until(until_ns)) is not None:
            machine.now_ns = max(machine.now_ns, event[0])
            event[2](event[3])
        machine.now_ns = until_ns

    def edges(self) -> list[str]:
        """The wait-for graph as it is."""
        return [f"{edge.waiter} -> {edge.holder}: {edge.resource}" for edge in self.machine.waits.edges()]

    def check(self) -> None:
        """Every page has one use, and the lists agree with the counts."""
        zone = self.memory.zone
        assert sum(zone.count) == zone.pages
        assert min(zone.count) >= 0
        self.memory.cache.check()


@pytest.fixture
def make_bench() -> type[Bench]:
    """Makes benches."""
    return Bench
