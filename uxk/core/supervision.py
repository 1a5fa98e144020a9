"""Trees of supervisors: who is stopped and started when a child dies.  OTP's ``supervisor``, without I/O.

Strategies, order and intensity are those of stdlib's supervisor (Erlang/OTP, ``supervisor`` and "Supervision
Principles"): children stop in the reverse order of their start; more than ``max_restarts`` restarts within
``period_ns`` and the supervisor gives up, which to its parent is the death of a child.  Whether a child is started
again at all says its own mode.  Unlike OTP, a row of restarts backs off (:mod:`uxk.core.restart`), a child that dies
before it is ready counts with its own supervisor like any death, and a child that has left is a child no more.

Events in (:meth:`Supervision.exited`, :meth:`~Supervision.started`, :meth:`~Supervision.due`), steps out, to be done in
their order.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

import msgspec

from uxk.core.manifest import name_problem
from uxk.core.restart import GiveUp, Restart, Restarter
from uxk.core.suggest import did_you_mean
from uxk.errors import UsageError
from uxk.uapi.manifest import Restart as Mode
from uxk.uapi.manifest import RestartPolicy
from uxk.uapi.supervisor import SupervisorSpec

SUPERVISORS_MAX: Final = 256
DEPTH_MAX: Final = 16
"""Supervisors above each other: bounds an escalation."""


class Stop(msgspec.Struct, frozen=True):
    """Take a healthy instance down; it will be started again."""

    name: str


class Leave(msgspec.Struct, frozen=True):
    """Take an instance down for good, whatever state it is in."""

    name: str
    why: str


class Start(msgspec.Struct, frozen=True):
    """Start an instance that is down; answer with :meth:`Supervision.started` or :meth:`Supervision.exited`."""

    name: str


class Wait(msgspec.Struct, frozen=True):
    """Call :meth:`Supervision.due` with ``batch`` after ``delay_ns``."""

    batch: int
    delay_ns: int


class Tell(msgspec.Struct, frozen=True):
    """For the log."""

    supervisor: str
    text: str
    grave: bool = False


Step: TypeAlias = Stop | Leave | Start | Wait | Tell


class Leaf:
    """An instance as its supervisor sees it."""

    __slots__ = ("batch", "group", "mode", "name", "runs")

    def __init__(self, name: str, mode: Mode, group: Group) -> None:
        self.name = name
        self.mode = mode
        self.group = group
        self.runs = True
        """Up, or being started."""
        self.batch: Batch | None = None
        """The restart that it is part of, until it is up."""


class Group:
    """A supervisor at work."""

    __slots__ = ("members", "parent", "restarter", "restarts", "spec")

    def __init__(self, spec: SupervisorSpec, parent: Group | None) -> None:
        self.spec = spec
        self.parent = parent
        self.members: list[Leaf | Group] = []
        self.restarts = 0
        """Restarts altogether, those before it was restarted itself included."""
        self.restarter = self._fresh()

    def _fresh(self) -> Restarter:
        spec = self.spec
        return Restarter(RestartPolicy(
            mode="permanent", max_restarts=spec.max_restarts, period_ns=spec.period_ns, backoff_ns=spec.backoff_ns,
            backoff_max_ns=spec.backoff_max_ns,
        ))  # fmt: skip

    def begin_anew(self) -> None:
        """It was restarted by its parent, and those below it with it: nobody remembers what was."""
        self.restarter = self._fresh()
        for member in self.members:
            if isinstance(member, Group):
                member.begin_anew()

    def leaves(self) -> Iterator[Leaf]:
        """Instances below it in the order of their start."""
        for member in self.members:
            yield from _leaves(member)

    def groups(self) -> Iterator[Group]:
        """Itself, and supervisors below it."""
        yield self
        for member in self.members:
            if isinstance(member, Group):
                yield from member.groups()


class Batch:
    """A restart that is under way: who is still to be started, in order; the first one when ``running``."""

    __slots__ = ("leaves", "number", "running")

    def __init__(self, number: int, leaves: list[Leaf]) -> None:
        self.number = number
        self.leaves = leaves
        self.running = False


class Supervision:
    """All supervisors of a kernel.  Every instance has at most one."""

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}
        self._leaves: dict[str, Leaf] = {}
        self._batches: dict[int, Batch] = {}
        self._last = 0

    def __contains__(self, name: object) -> bool:
        return name in self._leaves

    def pending(self, group: Group) -> list[str]:
        """Instances below ``group`` that are still to be started, in order."""
        return [leaf.name for leaf in group.leaves() if leaf.batch is not None]

    # --- making ---

    def add(self, spec: SupervisorSpec, modes: Mapping[str, Mode]) -> Group:
        """A new supervisor over running instances, whose modes are ``modes``.

        UsageError: EEXIST for a name in use or a child that has a supervisor, ENOENT for an unknown child or parent,
        ENOSPC, ELOOP over :data:`DEPTH_MAX`.
        """
        where = f"supervisor {spec.name!r}"
        if problem := name_problem(spec.name):
            raise UsageError(f"supervisor: {problem}")
        if spec.name in self.groups:
            raise UsageError(f"{where} exists already", errno=errno.EEXIST)
        if len(self.groups) >= SUPERVISORS_MAX:
            raise UsageError(f"{where}: {SUPERVISORS_MAX} supervisors at most", errno=errno.ENOSPC)
        for number, name in enumerate(spec.children):
            if name in spec.children[:number]:
                raise UsageError(f"{where}: child {name!r} is named twice")
            if name not in modes:
                raise UsageError(f"{where}: no instance {name!r}{did_you_mean(name, modes)}", errno=errno.ENOENT)
            if name in self._leaves:
                owner = self._leaves[name].group.spec.name
                raise UsageError(f"{where}: {name} is supervised by {owner}", errno=errno.EEXIST)
        parent = self._parent(spec, where)
        group = self.groups[spec.name] = Group(spec, parent)
        if parent is not None:
            parent.members.append(group)
        for name in spec.children:
            leaf = self._leaves[name] = Leaf(name, modes[name], group)
            group.members.append(leaf)
        return group

    def _parent(self, spec: SupervisorSpec, where: str) -> Group | None:
        if not spec.parent:
            return None
        parent = self.groups.get(spec.parent)
        if parent is None:
            hint = did_you_mean(spec.parent, self.groups)
            raise UsageError(f"{where}: no supervisor {spec.parent!r}{hint}", errno=errno.ENOENT)
        depth, above = 1, parent
        while above.parent is not None:
            depth, above = depth + 1, above.parent
        if depth >= DEPTH_MAX:
            raise UsageError(f"{where}: {DEPTH_MAX} supervisors above each other at most", errno=errno.ELOOP)
        return parent

    def adopt(self, name: str, mode: Mode) -> Group | None:
        """An instance was loaded, and is up: if a supervisor counts it among its children, it is supervised again."""
        for group in self.groups.values():
            if name in group.spec.children and name not in self._leaves:
                leaf = self._leaves[name] = Leaf(name, mode, group)
                order = {child: number for number, child in enumerate(group.spec.children)}
                before = [m for m in group.members if isinstance(m, Leaf) and order[m.name] < order[name]]
                group.members.insert(len(before), leaf)
                return group
        return None

    def forget(self, name: str) -> list[Step]:
        """Somebody else has taken an instance down for good."""
        leaf = self._leaves.get(name)
        return [] if leaf is None else self._drop(leaf)

    def remove(self, name: str) -> None:
        """No supervisor of that name any more; its children go on without.  ENOENT; EBUSY if it has supervisors."""
        group = self.groups.get(name)
        if group is None:
            raise UsageError(f"no supervisor {name!r}{did_you_mean(name, self.groups)}", errno=errno.ENOENT)
        below = [member.spec.name for member in group.members if isinstance(member, Group)]
        waiting = self.pending(group)
        if below or waiting:
            raise UsageError(f"supervisor {name}: busy with {', '.join(below + waiting)}", errno=errno.EBUSY)
        for leaf in list(group.leaves()):
            self._drop(leaf)
        self._unlink(group)

    # --- events ---

    def exited(self, now_ns: int, name: str, *, crashed: bool, why: str) -> list[Step]:
        """A child died, or failed to start; ``crashed`` is false for a normal end."""
        leaf = self._leaves[name]
        leaf.runs = False
        if leaf.mode == "temporary" or (leaf.mode == "transient" and not crashed):
            return [Leave(name, f"{leaf.mode}: {why}"), *self._drop(leaf)]
        return self._restart(now_ns, leaf.group, leaf, f"{name}: {why}")

    def started(self, name: str) -> list[Step]:
        """A child is up: the next one of its batch may be started."""
        leaf = self._leaves.get(name)
        if leaf is None or leaf.batch is None or not leaf.runs:
            return []
        batch, leaf.batch = leaf.batch, None
        batch.leaves.remove(leaf)
        return self._next(batch)

    def due(self, batch: int) -> list[Step]:
        """The back-off of a batch is over."""
        found = self._batches.get(batch)
        return [] if found is None else self._next(found)

    # --- strategies ---

    def _restart(self, now_ns: int, group: Group, member: Leaf | Group, why: str) -> list[Step]:
        spec = group.spec
        decision = group.restarter.on_exit(now_ns, crashed=True)
        if not isinstance(decision, Restart):
            assert isinstance(decision, GiveUp)
            return self._give_up(now_ns, group, f"{decision.reason}; last {why}")
        group.restarts += 1
        at = group.members.index(member)
        affected = {
            "one_for_one": [member], "one_for_all": group.members, "rest_for_one": group.members[at:],
        }[spec.strategy]  # fmt: skip
        for each in affected:
            if isinstance(each, Group):
                each.begin_anew()
        leaves = [leaf for each in affected for leaf in _leaves(each)]
        batch = self._gather(group, leaves)
        steps: list[Step] = []
        for leaf in reversed(leaves):
            if leaf.mode == "temporary":
                self._drop(leaf)
                steps.append(Leave(leaf.name, f"temporary, and {spec.name} restarts its children"))
            elif leaf.runs:
                leaf.runs = False
                steps.append(Stop(leaf.name))
        names = ", ".join(leaf.name for leaf in leaves if leaf.mode != "temporary") or "nobody"
        tell = Tell(spec.name, f"{spec.strategy}: restarts {names} in {decision.delay_ns} ns ({why})")
        wait = [Wait(batch.number, decision.delay_ns)] if batch.leaves else []
        return [tell, *steps, *wait]

    def _give_up(self, now_ns: int, group: Group, why: str) -> list[Step]:
        """Takes the subtree down in order, and tells the parent; at the top everything stays down."""
        name, parent = group.spec.name, group.parent
        leaves = list(group.leaves())
        if parent is None:
            for each in list(group.groups()):
                self._unlink(each)
            for leaf in leaves:
                self._drop(leaf)
            down = ", ".join(leaf.name for leaf in reversed(leaves))
            tell = Tell(name, f"gives up: {why}; nobody is above: {down} stay down", grave=True)
            return [tell, *(Leave(leaf.name, f"supervisor {name} gave up") for leaf in reversed(leaves))]
        steps: list[Step] = [Tell(name, f"gives up: {why}; tells {parent.spec.name}", grave=True)]
        for leaf in reversed(leaves):
            if leaf.runs and leaf.mode != "temporary":
                leaf.runs = False
                steps.append(Stop(leaf.name))
        return steps + self._restart(now_ns, parent, group, f"supervisor {name}: gave up")

    # --- batches ---

    def _gather(self, group: Group, leaves: list[Leaf]) -> Batch:
        """One batch of these, and of who waits for any of them; in the order of the tree."""
        for old in {leaf.batch.number: leaf.batch for leaf in leaves if leaf.batch is not None}.values():
            leaves = [*leaves, *(leaf for leaf in old.leaves if leaf not in leaves)]
            del self._batches[old.number]
        while group.parent is not None:
            group = group.parent
        wanted = set(leaves)
        self._last += 1
        batch = self._batches[self._last] = Batch(self._last, [leaf for leaf in group.leaves() if leaf in wanted])
        for leaf in batch.leaves:
            leaf.batch = batch
        return batch

    def _next(self, batch: Batch) -> list[Step]:
        if not batch.leaves:
            del self._batches[batch.number]
            return []
        batch.running = batch.leaves[0].runs = True
        return [Start(batch.leaves[0].name)]

    def _drop(self, leaf: Leaf) -> list[Step]:
        """It is no child any more; who waited for it does not wait any longer."""
        del self._leaves[leaf.name]
        leaf.group.members.remove(leaf)
        batch, leaf.batch = leaf.batch, None
        if batch is None:
            return []
        first = batch.leaves[0] is leaf
        batch.leaves.remove(leaf)
        if not batch.leaves or (first and batch.running):
            return self._next(batch)
        return []

    def _unlink(self, group: Group) -> None:
        del self.groups[group.spec.name]
        if group.parent is not None:
            group.parent.members.remove(group)


def _leaves(member: Leaf | Group) -> Iterator[Leaf]:
    if isinstance(member, Leaf):
        yield member
    else:
        yield from member.leaves()
