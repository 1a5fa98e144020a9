"""Who uses memory in the laboratory: writers, and a process that wants a lot at once."""

from __future__ import annotations

from typing import Final

from uxk.core.waitfor import Node
from uxk.kernel.machine import Machine
from uxk.scenario.mm.params import MmScenario
from uxk.subsystems.kthread import Delay, Flow, Kthread
from uxk.subsystems.mm.memory import Memory
from uxk.subsystems.mm.zone import Use

COPY_NS: Final = 1_000
"""Time of copying a page into the cache."""
BATCH: Final = 16
"""Pages between two looks at the clock."""
DRAW: Final = 4_096
HOT_PARTS: Final = 5
"""One part in so many is hot."""


class Writer:
    """A task that changes pages of a file, in bursts, for ever."""

    def __init__(
        self, machine: Machine, memory: Memory, number: int, file: int, pages: int, params: MmScenario
    ) -> None:  # fmt: skip
        self._machine = machine
        self._memory = memory
        self._file, self._pages, self._hot_ppm = file, pages, params.hot_ppm
        self._burst_ns, self._rest_ns = params.burst_ns, params.rest_ns
        self._stream = machine.streams.stream(f"mm/writer-{number}")
        self.done = 0
        """Pages changed."""
        self.thread = Kthread(machine, Node("task", f"writer {number}"))
        self.thread.start(self._run())

    def _run(self) -> Flow[None]:
        began_ns = self._machine.now_ns
        while True:
            for page in self._draw():
                yield from self._memory.store(self.thread, self._file, page)
                self.done += 1
                if self.done % BATCH == 0:
                    yield Delay(self._machine, BATCH * COPY_NS)
                if self._rest_ns and self._machine.now_ns - began_ns >= self._burst_ns:
                    yield Delay(self._machine, self._rest_ns)
                    began_ns = self._machine.now_ns

    def _draw(self) -> list[int]:
        """Pages: hot ones, the first fifth, by their share, and any."""
        hot = self._stream.integers(0, 1_000_000, DRAW) < self._hot_ppm
        pages = self._stream.integers(0, self._pages, DRAW)
        pages[hot] //= HOT_PARTS
        drawn: list[int] = pages.tolist()
        return drawn


class Hog:
    """A process that starts and takes its memory, once; it keeps it."""

    def __init__(self, machine: Machine, memory: Memory, params: MmScenario) -> None:
        self._memory = memory
        self._pages = params.hog_pages
        self.held = 0
        self.thread = Kthread(machine, Node("task", "hog"))
        machine.call_later(params.hog_at_ns, lambda _: self.thread.start(self._run()))

    def _run(self) -> Flow[None]:
        while self.held < self._pages:
            self.held += yield from self._memory.alloc_some(self.thread, Use.ANON, self._pages - self.held)
