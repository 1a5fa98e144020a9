"""Threads of the emulated kernel that can wait, and what they wait on (Linux: kthread, wait_queue_head, wait_event).

A thread is a generator on the event heap: it yields only inside the wait primitives of this file, so that whoever
blocks somewhere deep in a call chain stands in the wait-for graph with the resource and its holder.  Nothing else
adds edges.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from uxk.core.waitfor import Node
from uxk.errors import KernelBug
from uxk.kernel.machine import Machine

T = TypeVar("T")


class Pause(Protocol):
    """What a thread yields: something that wakes it again."""

    def park(self, thread: Kthread) -> None:
        """Sees to it that ``thread.wake`` is called later."""
        ...


Flow: TypeAlias = Generator[Pause, None, T]
"""A function that may wait: call it with ``yield from``."""


class Kthread:
    """One thread.  ``node`` is its name in the wait-for graph; a user-space thread has that of its instance."""

    __slots__ = ("_machine", "_woken", "dirtied", "flow", "node", "over")

    def __init__(self, machine: Machine, node: Node) -> None:
        self._machine = machine
        self._woken = False
        self.flow: Flow[Any] | None = None
        """What it does now."""
        self.node = node
        self.over = True
        """Whether it does nothing now."""
        self.dirtied = 0
        """Pages that it has dirtied since it last looked at the limits (Linux: ``current->nr_dirtied``)."""

    def start(self, flow: Flow[Any]) -> None:
        """Begins at the present instant, after what is due already.  One thing at a time."""
        if not self.over:
            raise KernelBug(f"{self.node} is busy")
        self.flow, self.over = flow, False
        self.wake()

    def wake(self) -> None:
        """Goes on at the present instant; more than once counts once."""
        if not self._woken and not self.over:
            self._woken = True
            self._machine.heap.call_at(self._machine.now_ns, self._step, self.flow)

    def wake_if(self, flow: Flow[Any] | None) -> None:
        """As :meth:`wake`, if it still does what it did then."""
        if flow is self.flow:
            self.wake()

    def kill(self) -> None:
        """Ends it where it stands: what its ``finally`` clauses give back is given back."""
        flow, self.flow, self.over, self._woken = self.flow, None, True, False
        if flow is not None:
            flow.close()

    def _step(self, flow: Flow[Any]) -> None:
        if flow is not self.flow:  # killed, and perhaps started anew
            return
        self._woken = False
        try:
            pause = next(flow)
        except StopIteration:
            self.flow, self.over = None, True
        else:
            pause.park(self)


class Delay:
    """A time that passes by itself: nobody has to do anything for it, so it is no wait for anybody."""

    __slots__ = ("_delay_ns", "_machine")

    def __init__(self, machine: Machine, delay_ns: int) -> None:
        self._machine = machine
        self._delay_ns = delay_ns

    def park(self, thread: Kthread) -> None:
        """Wakes the thread when the time is over."""
        self._machine.call_later(self._delay_ns, thread.wake_if, thread.flow)


class _Waiter:
    """One thread in a queue: what it waits for to be so, and whether the graph has its edge now."""

    __slots__ = ("in_graph", "parked", "ready", "thread")

    def __init__(self, thread: Kthread, ready: Callable[[], bool]) -> None:
        self.thread = thread
        self.ready = ready
        self.in_graph = self.parked = False


class WaitQueue:
    """Threads that wait until something is so; ``holder`` is who has to make it so.

    Without a holder it is rest, not waiting: a thread that has nothing to do.  ``decision``: a decision of the
    kernel's is held up meanwhile, which the law of uxk forbids if the holder is an extension.

    An edge stands in the graph exactly while the thread could not go on: it goes when the condition comes to hold, not
    only when the thread runs again.  Whoever may make a condition true calls :meth:`wake_all` in the same step.
    """

    __slots__ = (
        "_decision", "_machine", "_waiters", "holder", "longest_ns", "resource", "total_ns", "via", "waits",
    )  # fmt: skip

    def __init__(
        self, machine: Machine, resource: str, holder: Node | None = None, *, decision: bool = False, via: str = ""
    ) -> None:
        self._machine = machine
        self._decision = decision
        self._waiters: dict[_Waiter, None] = {}
        self.resource = resource
        self.holder = holder
        self.via = via
        """How the holder has it, in words."""
        self.waits = self.total_ns = self.longest_ns = 0
        """Waits that there were, and how long they took: all together, and the longest that is over."""

    @property
    def waiting(self) -> int:
        """Threads that wait now."""
        return len(self._waiters)

    def wait_until(self, thread: Kthread, ready: Callable[[], bool]) -> Flow[None]:
        """Returns when ``ready()`` holds, at once if it does already (Linux: ``wait_event``).

        ``ready`` changes nothing: it is asked more than once.
        """
        if not ready():
            with self._wait(thread, ready) as waiter:
                while not ready():
                    self._enter(waiter)
                    waiter.parked = True
                    yield _PARKED

    def poll_until(self, thread: Kthread, ready: Callable[[], bool], pause_ns: Callable[[], int]) -> Flow[None]:
        """As :meth:`wait_until`, but looks every ``pause_ns()`` by itself, and not when it is woken."""
        if not ready():
            with self._wait(thread, ready) as waiter:
                while not ready():
                    self._enter(waiter)
                    yield Delay(self._machine, pause_ns())

    def wake_all(self) -> None:
        """Something has changed: who can go on does, in the order in which they came."""
        for waiter in list(self._waiters):
            if waiter.ready():
                self._leave(waiter)
                if waiter.parked:
                    waiter.parked = False
                    waiter.thread.wake()

    @contextmanager
    def _wait(self, thread: Kthread, ready: Callable[[], bool]) -> Iterator[_Waiter]:
        waiter, began_ns = _Waiter(thread, ready), self._machine.now_ns
        self._waiters[waiter] = None
        self.waits += 1
        try:
            yield waiter
        finally:
            del self._waiters[waiter]
            self._leave(waiter)
            waited_ns = self._machine.now_ns - began_ns
            self.total_ns += waited_ns
            self.longest_ns = max(self.longest_ns, waited_ns)

    def _enter(self, waiter: _Waiter) -> None:
        """The one place where edges come from."""
        if self.holder is not None and not waiter.in_graph:
            waiter.in_graph = True
            self._machine.wait(
                waiter.thread.node, self.holder, self.resource, decision=self._decision, via=self.via
            )  # fmt: skip

    def _leave(self, waiter: _Waiter) -> None:
        if self.holder is not None and waiter.in_graph:
            waiter.in_graph = False
            self._machine.waits.remove(waiter.thread.node, self.holder, self.resource)


class _Parked:
    """A thread in a queue, which has its name: nothing else needs to be done."""

    def park(self, thread: Kthread) -> None:
        """Nothing."""


_PARKED: Final = _Parked()
