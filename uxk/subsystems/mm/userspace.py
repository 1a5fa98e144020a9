"""Memory under an extension: in user space, thinking takes pages, and stores to a mapped file dirty them.

A :class:`PagedHost` stands below an instance: whatever the kernel tells it is heard only when the process has the pages
that it needs for that, faulted in by a thread of its own which may wait in direct reclaim, for writeback, or at the
dirty limit.  The extension knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uxk.actor.actor import Output
from uxk.kernel.agent import KernelAgent
from uxk.kernel.host import TaskHost
from uxk.subsystems.kthread import Flow, Kthread
from uxk.subsystems.mm.memory import Memory
from uxk.subsystems.mm.zone import Use


class Process:
    """The memory of one instance, over all its incarnations.

    ``anon_pages`` are taken for each turn that hears something, and given back at its end.  ``stores`` pages of the
    mapped ``file`` of ``file_pages`` are changed in each, one after the other.
    """

    __slots__ = ("_memory", "_next", "anon_pages", "blocked", "file", "file_pages", "held", "stores", "thread", "turns")

    def __init__(
        self, memory: Memory, agent: KernelAgent, *, anon_pages: int, file: int, file_pages: int, stores: int
    ) -> None:  # fmt: skip
        self._memory = memory
        self._next = 0
        self.anon_pages, self.file, self.file_pages, self.stores = anon_pages, file, file_pages, stores
        self.thread = Kthread(agent.machine, agent.node)
        self.held = 0
        """Anonymous pages that it has."""
        self.turns = 0
        """Turns that it had the pages for."""
        self.blocked = 0
        """Turns that had to wait for them in virtual time."""

    def fault_in(self, host: PagedHost) -> None:
        """Begins to fault in what a turn needs; then ``host`` goes on."""
        self.thread.start(self._faults(host))

    def release(self) -> None:
        """The turn is over: its memory is given back."""
        self.turns += 1
        self._give_back()

    def exit(self) -> None:
        """The process is gone, wherever it stood."""
        self.thread.kill()
        self._give_back()

    def _give_back(self) -> None:
        held, self.held = self.held, 0
        if held:
            self._memory.free_anon(held)

    def _faults(self, host: PagedHost) -> Flow[None]:
        began_ns = host.now_ns
        while self.held < self.anon_pages:
            self.held += yield from self._memory.alloc_some(self.thread, Use.ANON, self.anon_pages - self.held)
        for _ in range(self.stores):
            index, self._next = self._next, (self._next + 1) % self.file_pages
            yield from self._memory.store(self.thread, self.file, index)
        self.blocked += host.now_ns > began_ns
        host.resident()


class PagedHost:
    """Wraps one incarnation's host, as a filter of faults does; one that is replaced lets go of its pages."""

    __slots__ = ("_agent", "_answers", "_down", "_inner", "_process", "_ready")

    def __init__(self, agent: KernelAgent, inner: TaskHost, process: Process) -> None:
        process.exit()
        self._agent = agent
        self._inner = inner
        self._process = process
        self._ready = False
        self._down: list[bytes] = []
        self._answers: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def now_ns(self) -> int:
        """The present instant."""
        return self._agent.machine.now_ns

    def turn(self, now_ns: int, down: Sequence[bytes], answers: Sequence[bytes]) -> Output:
        """One turn, if it has the memory for it; else what it would have heard is kept until it has."""
        if self._ready:
            self._ready = False
            down, self._down = [*self._down, *down], []
            answers, self._answers = [*self._answers, *answers], []
            output = self._inner.turn(now_ns, down, answers)
            self._process.release()
            return output
        blocked = not self._process.thread.over
        if not (blocked or down):
            return self._inner.turn(now_ns, down, answers)  # a timer, or an answer to what it has said
        self._down.extend(down)
        self._answers.extend(answers)
        if not blocked:
            self._process.fault_in(self)
        return Output((), (), None, False)

    def resident(self) -> None:
        """All pages are there."""
        self._ready = True
        self._agent.wake()

    def stop(self, reason: str) -> Output:
        """A process that is blocked in a fault says nothing."""
        blocked = not self._process.thread.over
        self._process.exit()
        return Output((), (), None, False) if blocked else self._inner.stop(reason)

    def abandon(self) -> None:
        """Cut off, dead or alive: its memory is free again."""
        self._process.exit()
        self._inner.abandon()
