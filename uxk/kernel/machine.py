"""What all parts of the kernel share: time, log, tree, capabilities, arena, locks, the run queue.

Holds state and small primitives only; who does what with it is decided in the files above this one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

from uxk import limits
from uxk.core.caps import CapTable
from uxk.core.cost import ClockKind, CostModel
from uxk.core.eventhash import EventHash
from uxk.core.events import EventHeap, EventId
from uxk.core.kmsg import LEVELS, KmsgRing
from uxk.core.lock import LockTable
from uxk.core.site import DecisionSite
from uxk.core.snapshot import SnapshotTable
from uxk.core.streams import RandomStreams
from uxk.core.sysctl import SysctlTable
from uxk.core.tree import Tree
from uxk.core.waitfor import Node, WaitForGraph
from uxk.kernel.dma import DmaPool
from uxk.kernel.seconds import monotonic_ns
from uxk.kernel.sharedmemory import SharedMemory

Level: TypeAlias = Literal["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"]


class Runnable(Protocol):
    """What the dispatcher runs: an instance with something to do."""

    @property
    def id(self) -> int:
        """The instance's number: the order in which output made outside turns is taken."""
        ...

    def turn(self) -> None:
        """One turn; must not raise for anything an extension did."""

    def collect(self) -> None:
        """Takes what a Trio task of the instance has staged outside turns."""


class Machine:
    """The state of one booted kernel."""

    def __init__(self, *, seed: int, clock: ClockKind, cost: CostModel, arena_bytes: int) -> None:
        self.now_ns = 0
        self.clock: ClockKind = clock
        self.cost = cost
        self.heap = EventHeap()
        self.streams = RandomStreams(seed)
        self.hash = EventHash()
        self.kmsg = KmsgRing(limits.KMSG_RECORDS_DEFAULT)
        self.tree = Tree(on_bug=self._attribute_bug)
        self.sysctl = SysctlTable(self.tree)
        self.caps = CapTable()
        self.shared = SharedMemory(arena_bytes)
        self.arena = self.shared.arena
        self.waits = WaitForGraph()
        self.locks = LockTable()
        self.snapshots = SnapshotTable()
        self.sites: dict[str, DecisionSite] = {}
        self.costs_ns: dict[str, int] = {}
        """Cost of one turn by module, measured once on the charged clock; keep it to reproduce the run."""
        self.runnable: deque[Runnable] = deque()
        self.dirty: dict[int, Runnable] = {}
        self.order: Callable[[list[int]], list[int]] = lambda instances: instances
        """In which order their output is taken; from the lowest number on, unless somebody draws it."""
        self.running: Runnable | None = None
        self.turns = 0
        self.stuck: str | None = None
        """Set by the watch on host time: an instance that held the processor too long."""
        self.settle_needed = False
        self.granted_bytes = 0
        """Arena memory that instances may use, together, and that pools of the kernel's own have."""
        self.pools: dict[int, DmaPool] = {}
        self.outstanding = 0
        """Requests and commands without an answer: while there are any, a run is not over."""
        self.parked = False
        """Whether the dispatcher sleeps; who makes something runnable then calls :attr:`wake`."""
        self.wake: Callable[[], None] = lambda: None
        """Set by the dispatcher: ends its sleep."""
        self.settle_hosts: Callable[[bool], None] = lambda take: None
        """Lets tasks of extensions in processes of their own run until they rest; whether to take what they staged."""
        self.host_filter: Callable[[Any, Any], Any] = lambda agent, host: host
        """Wraps the host of every incarnation; fault plans put themselves between an instance and its kernel."""
        self.request_table: Callable[..., Any] | None = None
        """Makes the request tables of instances loaded from now on, in place of the usual: for traces."""
        self.event_hooks: dict[int, Callable[[str, bytes], bool]] = {}
        """By instance: told the topic and the value of every event for it, say whether they have dealt with it."""
        self.on_aside: list[Callable[[int], object]] = []
        """Told of an instance whose incarnation is about to be put aside for another build."""
        self.on_gone: list[Callable[[int], object]] = []
        """Told of an instance that is being unloaded."""
        self._boot_ns = monotonic_ns()

    # --- time ---

    def refresh(self) -> None:
        """On the real clock, reads the host's."""
        if self.clock == "real":
            self.now_ns = monotonic_ns() - self._boot_ns

    def call_later(self, delay_ns: int, callback: Callable[[Any], object], argument: Any = None) -> int:
        """Schedules on the heap, relative to now."""
        return self.heap.call_at(self.now_ns + delay_ns, callback, argument)

    def call_at(self, due_ns: int, callback: Callable[[Any], object], argument: Any = None) -> EventId:
        """Schedules on the heap, for tasks outside the dispatcher: one that sleeps by the real clock hears of it."""
        event = self.heap.call_at(due_ns, callback, argument)
        if self.parked and self.clock == "real":
            self.wake()
        return event

    # --- run queue ---

    def mark_dirty(self, instance: Runnable) -> None:
        """Notes that a Trio task staged output; collected in order of instance ids.

        The dispatcher is woken when the task's step ends (:class:`uxk.kernel.tasktime.TaskTime`), if it must be.
        """
        self.dirty[instance.id] = instance

    # --- waiting ---

    def wait(self, waiter: Node, holder: Node, resource: str, *, decision: bool = False, via: str = "") -> None:
        """Notes a wait; what the wait-for graph finds wrong with it goes to the log at once, line by line."""
        for finding in self.waits.add(waiter, holder, resource, self.now_ns, decision=decision, via=via):
            self.note("finding", 0, finding.kind.encode())
            for line in finding.text.splitlines():
                self.log("err", "kernel", line, finding=finding.kind)

    # --- log ---

    def log(self, level: Level, source: str, text: str, **fields: int | str) -> None:
        """One kmsg record of the kernel's."""
        self.refresh()
        self.kmsg.log(self.now_ns, LEVELS.index(level), source, text, fields)

    def note(self, kind: str, instance: int, data: bytes) -> None:
        """One event for the event hash."""
        self.hash.note(self.now_ns, kind, instance, data)

    def _attribute_bug(self, path: str, exc: BaseException) -> None:
        self.log("err", "sysfs", f"{path}: {type(exc).__name__}: {exc}", bug="attribute")
