"""A demonstration of what uxk forbids: a kernel decision that asks user space and waits for the answer.

Nothing but the scenario ``reclaim-deadlock`` with policy ``sync-upcall`` makes one of these.  It is here to be found by
the wait-for graph, which reports it twice: at once, as a decision that waits for an extension, and again at the moment
when the extension comes to wait, at whatever distance, for the kernel thread that asks.  Kernel code of uxk looks at
the hints that have come (:meth:`uxk.core.site.DecisionSite.take`) and goes on in the same step.
"""

from __future__ import annotations

from collections.abc import Callable

from uxk.core.waitfor import Node
from uxk.kernel.machine import Machine
from uxk.subsystems.kthread import Flow, Kthread, WaitQueue


class SyncUpcall:
    """Tells the agent the state, by ``publish``, and waits until it has said something to the site.

    While ``calm`` says no, it does not ask: a trigger alone does not help, as what it sees may come after the question.
    """

    __slots__ = ("_answers", "_calm", "_publish", "_queue", "asked")

    def __init__(
        self, machine: Machine, site: str, agent: Node, publish: Callable[[], object], calm: Callable[[], bool]
    ) -> None:  # fmt: skip
        self._publish = publish
        self._calm = calm
        self._queue = WaitQueue(machine, f"a decision for {site}", agent, decision=True, via="it was asked")
        self._answers = 0
        self.asked = 0
        """Questions so far."""

    @property
    def answers(self) -> int:
        """Answers so far."""
        return self._answers

    def ask_and_wait(self, thread: Kthread) -> Flow[None]:
        """What no kernel thread may ever do."""
        if not self._calm():
            return
        before = self._answers
        self.asked += 1
        self._publish()
        yield from self._queue.wait_until(thread, lambda: self._answers > before)

    def answered(self) -> None:
        """The agent has said something."""
        self._answers += 1
        self._queue.wake_all()
