"""The wait-for graph: everything that waits, and for whom (Linux: lockdep).

A waiter needs *all* that it waits for (a writer waits for every reader), so a cycle is a deadlock.  A wait for
any one of several is one wait for a node that stands for them.

An instance may have many tasks, of which one can wait while the others go on.  What stops whom is :func:`stops`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, TypeAlias

from uxk import limits

NodeKind: TypeAlias = Literal["kernel", "instance", "task", "resource"]
FindingKind: TypeAlias = Literal["cycle", "blocking-decision"]

EDGES_MAX: Final = 16 * limits.QUEUE_DEPTH_MAX
"""Waits watched at once; more are counted as overflow, not watched (Linux: MAX_LOCKDEP_ENTRIES, likewise)."""
_RULE: Final = "-" * 72


class Node(NamedTuple):
    """Who waits or is waited for; only an ``instance`` is an extension."""

    kind: NodeKind
    name: str
    tasks: tuple[int, ...] = ()
    """Of an instance: one of its tasks, then those that cannot end before it, its ancestors.  ``()``: the whole."""

    @property
    def whole(self) -> Node:
        """The instance that a task belongs to; the node itself, if it is no task."""
        return Node(self.kind, self.name) if self.tasks else self

    def __str__(self) -> str:
        return f"task {self.tasks[0]} of {self.whole}" if self.tasks else f"{self.kind} {self.name}"


def stops(waiter: Node, holder: Node) -> bool:
    """Whether a wait of ``waiter`` keeps ``holder`` from giving what it has.

    - A task that waits stops itself and its ancestors, none of the others: a parent cannot leave its nursery before.
    - An instance that waits as a whole (a page fault, ``wait=True``, a request that nobody awaits) stops all its tasks.
    - What an instance as a whole is to give, an answer or a slot, may be in the hands of *any* of its tasks, and the
      kernel does not know which.  It takes the worst for granted: each one that waits stops it.

    The last is a suspicion where tasks are many, and the report says so.  No cycle is missed that consists of waits
    which the kernel sees; waits of tasks for each other (Trio's events, channels) it does not see.
    """
    if waiter.name != holder.name or waiter.kind != holder.kind:
        return False
    return not waiter.tasks or not holder.tasks or holder.tasks[0] in waiter.tasks


class Edge:
    """``waiter`` waits since ``since_ns`` for ``resource``, which ``holder`` has."""

    __slots__ = ("_from", "_to", "_told", "count", "decision", "holder", "resource", "since_ns", "via", "waiter")

    def __init__(self, waiter: Node, holder: Node, resource: str, since_ns: int, decision: bool, via: str) -> None:
        self.waiter = waiter
        self.holder = holder
        self._from = waiter.whole if waiter.tasks else waiter
        self._to = holder.whole if holder.tasks else holder
        self.resource = resource
        self.since_ns = since_ns
        self.decision = decision
        """Whether a kernel decision is held up."""
        self.via = via
        """How the holder has it, in words: ``"read lease, token 7"``."""
        self.count = 1
        """How many such waits there are."""
        self._told = False

    def __str__(self) -> str:
        since = f"{self.since_ns // 1000}.{self.since_ns % 1000:03d}"
        times = f" ({self.count} times)" if self.count > 1 else ""
        how = f" ({self.via})" if self.via else ""
        why = ", to decide" if self.decision else ""
        return f"{self.waiter} waits for {self.resource}{times}{why} since {since} us, held by {self.holder}{how}"


class Finding(NamedTuple):
    """Something that must not be.  ``edges`` is a chain: each one's holder is stopped by the next one's waiter."""

    kind: FindingKind
    edges: tuple[Edge, ...]
    text: str
    """The report, as :func:`report` writes it."""


class WaitStatistics(NamedTuple):
    """Counts of a graph; ``edges`` is of now, the rest since it was made."""

    edges: int
    edges_max: int
    added: int
    cycles: int
    blocking_decisions: int
    overflow: int


_Key: TypeAlias = tuple[Node, Node, str]


class WaitForGraph:
    """Waits as edges from waiter to holder; finds what must not be at the moment it comes to be.

    Everything is kept in the order of insertion, so findings depend on the calls alone.
    """

    __slots__ = ("_added", "_cycles", "_decisions", "_edges", "_edges_max", "_in", "_out", "_overflow", "_violations")

    def __init__(self) -> None:
        self._edges: dict[_Key, Edge] = {}
        self._out: dict[Node, dict[_Key, Edge]] = {}
        """Edges by waiter, those of an instance and of its tasks together."""
        self._in: dict[Node, dict[_Key, Edge]] = {}
        self._decisions: dict[_Key, Edge] = {}
        self._edges_max = self._added = self._cycles = self._violations = self._overflow = 0

    def __len__(self) -> int:
        return len(self._edges)

    def add(
        self, waiter: Node, holder: Node, resource: str, now_ns: int, *, decision: bool = False, via: str = ""
    ) -> tuple[Finding, ...]:
        """Notes a wait, and returns what is wrong since then: mostly nothing, ``()``.

        ``cycle``: a deadlock closed with this edge.  ``blocking-decision``: a wait of the kernel's with
        ``decision`` has come to depend on an extension, directly or through others (the non-blocking law).
        The edge stays until it is removed as often as it was added.  Never raises.
        """
        key = (waiter, holder, resource)
        edge = self._edges.get(key)
        if edge is not None:
            edge.count += 1
            if edge.decision or not decision:
                return ()
            edge.decision = True
            return self._watch_decision(key, edge, now_ns)
        if len(self._edges) >= EDGES_MAX:
            self._overflow += 1
            return ()
        edge = self._edges[key] = Edge(waiter, holder, resource, now_ns, decision, via)
        self._out.setdefault(edge._from, {})[key] = edge
        self._in.setdefault(edge._to, {})[key] = edge
        self._added += 1
        self._edges_max = max(self._edges_max, len(self._edges))
        found = self._close(edge, now_ns)
        if self._decisions:
            found += self._reach(edge, now_ns)
        if decision:
            found += self._watch_decision(key, edge, now_ns)
        return found

    def remove(self, waiter: Node, holder: Node, resource: str) -> bool:
        """Ends one such wait; False if there is none (any more)."""
        key = (waiter, holder, resource)
        edge = self._edges.get(key)
        if edge is None:
            return False
        edge.count -= 1
        if edge.count == 0:
            self._drop(key, edge)
        return True

    def remove_node(self, node: Node) -> int:
        """Ends all waits of and for a node that is gone, with its tasks; returns how many edges that were."""
        node = node.whole
        doomed = {**self._out.get(node, {}), **self._in.get(node, {})}
        for key, edge in doomed.items():
            self._drop(key, edge)
        return len(doomed)

    def edges(self) -> list[Edge]:
        """All edges, oldest first."""
        return list(self._edges.values())

    def waiting_for(self, node: Node) -> list[Edge]:
        """What ``node`` and its tasks wait for, oldest first."""
        return list(self._out.get(node.whole, {}).values())

    def statistics(self) -> WaitStatistics:
        """A consistent copy of the counters."""
        return WaitStatistics(
            len(self._edges), self._edges_max, self._added, self._cycles, self._violations, self._overflow
        )

    def _drop(self, key: _Key, edge: Edge) -> None:
        del self._edges[key]
        self._decisions.pop(key, None)
        for side, node in ((self._out, edge._from), (self._in, edge._to)):
            edges = side[node]
            del edges[key]
            if not edges:
                del side[node]

    # --- finding ---

    def _close(self, edge: Edge, now_ns: int) -> tuple[Finding, ...]:
        """The cycle that the new ``edge`` closes: the shortest one."""
        waiter = edge.waiter
        if edge._from not in self._in or edge._to not in self._out:
            return ()
        path = self._path(edge.holder, lambda node: stops(waiter, node))
        if path is None:
            return ()
        self._cycles += 1
        return (_finding("cycle", [edge, *path], now_ns),)

    def _watch_decision(self, key: _Key, edge: Edge, now_ns: int) -> tuple[Finding, ...]:
        """A decision has begun to wait: does it wait for an extension?"""
        if edge.waiter.kind != "kernel":
            return ()
        self._decisions[key] = edge
        return self._tell(edge, [edge], edge.holder, now_ns)

    def _reach(self, edge: Edge, now_ns: int) -> tuple[Finding, ...]:
        """A wait has been added: does an older decision wait for an extension because of it?"""
        found: tuple[Finding, ...] = ()
        for decision in self._decisions.values():
            if not decision._told:
                path = self._path(decision.holder, lambda node: stops(edge.waiter, node))
                if path is not None:
                    found += self._tell(decision, [decision, *path, edge], edge.holder, now_ns)
        return found

    def _tell(self, decision: Edge, head: list[Edge], node: Node, now_ns: int) -> tuple[Finding, ...]:
        path = self._path(node, lambda node: node.kind == "instance")
        if path is None:
            return ()
        decision._told = True  # once is enough: an oops per wait, not one per later edge
        self._violations += 1
        return (_finding("blocking-decision", head + path, now_ns),)

    def _path(self, start: Node, goal: Callable[[Node], bool]) -> list[Edge] | None:
        """The shortest chain of waits from ``start`` to a node that is the goal; breadth first."""
        if goal(start):
            return []
        came: dict[Node, tuple[Edge, Node] | None] = {start: None}
        queue = deque((start,))
        while queue:
            stopped = queue.popleft()
            for edge in self._out.get(stopped.whole, {}).values():
                node = edge.holder
                if node in came or not stops(edge.waiter, stopped):
                    continue
                came[node] = (edge, stopped)
                if goal(node):
                    return _walk_back(came, node)
                queue.append(node)
        return None


def report(kind: FindingKind, edges: tuple[Edge, ...], now_ns: int) -> str:
    """The report in the manner of lockdep: every edge by name, one line each, with times in microseconds."""
    if kind == "cycle":
        title = f"deadlock: a cycle of {len(edges)} wait{'s' if len(edges) > 1 else ''}"
        verdict = "each waits for the next and the last for the first; the first wait closed the cycle"
    else:
        title = "a decision of the kernel waits for an extension"
        verdict = f"{edges[0].waiter} may not decide later because of {edges[-1].holder}"
    lines = [_RULE, f"{title}, found at {_us(now_ns)} us", _RULE]
    for number, edge in enumerate(edges):
        lines.append(f"#{number} {edge} (waiting for {_us(now_ns - edge.since_ns)} us)")
    lines.append(f"   {verdict}")
    for number, edge in enumerate(edges):
        after = edges[(number + 1) % len(edges)]
        if kind == "cycle" and after.waiter.tasks and not edge.holder.tasks:
            lines.append(f"   unless another task of {edge.holder} gives {edge.resource}")
    return "\n".join([*lines, _RULE])


def _finding(kind: FindingKind, edges: list[Edge], now_ns: int) -> Finding:
    chain = tuple(edges)
    return Finding(kind, chain, report(kind, chain, now_ns))


def _walk_back(came: dict[Node, tuple[Edge, Node] | None], node: Node) -> list[Edge]:
    path: list[Edge] = []
    while (step := came[node]) is not None:
        path.append(step[0])
        node = step[1]
    path.reverse()
    return path


def _us(ns: int) -> str:
    return f"{ns // 1000}.{ns % 1000:03d}"
