"""What must hold whatever goes wrong: the invariants that ``uxk explore`` adds to those of scenarios.

Authors of modules declare their own in the same way, in a Python file that defines the scenario::

    register_invariant("no-empty-queue", during=lambda run: "" if ... else "the queue of x is empty")

A rule gets the :class:`Watched` run and returns what is wrong, or ``""``.  ``during`` is asked now and then while the
run goes on, between two events; ``after``, when everything was unloaded.  Rules look and change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from uxk.core.lifecycle import ModuleState
from uxk.kernel.agent import KernelAgent
from uxk.kernel.pace import CPU_PERIOD_NS
from uxk.scenario.invariants import INVARIANTS as INVARIANTS
from uxk.scenario.invariants import Invariant as Invariant
from uxk.scenario.invariants import Watched as Watched
from uxk.scenario.invariants import register_invariant as register_invariant
from uxk.scenario.model import DEFAULT_INVARIANTS
from uxk.testing.kernels import usage
from uxk.testing.subject import PROTOCOL_REASONS

HEARTBEATS_MAX: Final = 8
"""A deaf and mute instance that is pinged is dead after so many intervals at the latest."""
HELD_BACK_NS_MAX: Final = 2 * CPU_PERIOD_NS
"""Longest time between two turns of an instance that has used up its share of the processor."""
_FORGERS: Final = frozenset({"duplicate", "stale", "flood", "corrupt", "lie", "device"})
"""Faults that make an instance break the rules of its queues."""
_LASTING: Final = ("arena_bytes", "granted_bytes", "capabilities", "locks", "pins", "wait_edges", "agents", "devices")
"""Of :func:`~uxk.testing.kernels.usage`: what only instances hold."""

EXPLORED: Final = (
    *DEFAULT_INVARIANTS, "queues-bounded", "no-lost-wakeup", "watchdog-bites", "protocol-clean", "nothing-left",
    "liveness",
)  # fmt: skip
"""Invariants of every explored run; those that the scenario names come on top."""


def _first(complaints: Iterable[str]) -> str:
    return next((complaint for complaint in complaints if complaint), "")


def _queues_bounded(run: Watched) -> str:
    """No more than a queue full in flight; what waits, and what waits again after a death, is at most as much each."""
    for name, agent in run.agents.items():
        table, depth = agent.requests, agent.queues.sq.depth
        if len(table.inflight) > depth:
            return f"{name}: {len(table.inflight)} requests in flight, its queue has {depth} slots"
        if len(table.backlog) > 2 * depth:
            return f"{name}: {len(table.backlog)} requests wait, at most {2 * depth} may"
    return ""


def _no_lost_wakeup(run: Watched) -> str:
    """Whoever has something to hear is runnable, or held back by its budget; that for a while only."""
    queued = {id(each) for each in run.kernel.machine.runnable}
    return _first(_sleeps(run, agent) for agent in run.agents.values() if id(agent) not in queued)


def _sleeps(run: Watched, agent: KernelAgent) -> str:
    machine, queues = agent.machine, agent.queues
    staged = len(queues.staged) + len(queues.staged_answers)
    if agent.host is None or not staged or agent is machine.running:
        return ""
    if not agent.held_back:
        return f"{agent.name}: {staged} messages wait for it, and it sleeps"
    turns, since_ns = run.last_turns.get(agent.name, (-1, 0))
    if turns != agent.account.turns:
        run.last_turns[agent.name] = agent.account.turns, machine.now_ns
    elif machine.now_ns - since_ns > HELD_BACK_NS_MAX:
        return f"{agent.name}: {staged} messages wait for it, and it is held back for {machine.now_ns - since_ns} ns"
    return ""


def _watchdog_bites(run: Watched) -> str:
    """A deaf and mute instance with a heartbeat is found out."""
    now_ns = run.kernel.machine.now_ns
    for name, agent in run.agents.items():
        host: Any = agent.host
        since_ns = getattr(host, "hung_since_ns", None) if host is not None else None
        interval_ns = agent.manifest.watchdog.heartbeat_ns
        if since_ns is None or interval_ns is None or agent.state is not ModuleState.LIVE:
            continue
        if now_ns - since_ns > HEARTBEATS_MAX * interval_ns:
            return f"{name}: deaf and mute for {now_ns - since_ns} ns, pinged every {interval_ns} ns, and still live"
    return ""


def _protocol_clean(run: Watched) -> str:
    """No instance seems to break the rules of its queues unless a fault made it do so, or it answered too late."""
    forged = {s.fault.module.replace("-", "_") for s in run.plan.strikers if s.fault.kind in _FORGERS and s.fired}
    for name, agent in run.agents.items():
        wrong = {reason: n for reason, n in agent.account.rejects.items() if reason in PROTOCOL_REASONS}
        if wrong and agent.name not in forged and not agent.account.timeouts:
            return f"{name}: refused entries {wrong}, and no fault explains them"
    return ""


def _nothing_left(run: Watched) -> str:
    """After the end, no instance has anything."""
    left = {name: value for name, value in usage(run.kernel).items() if name in _LASTING and value}
    return f"left over: {left}" if left else ""


def _never(_: Watched) -> str:
    return ""


def declare() -> None:
    """Makes these invariants known; once."""
    if "queues-bounded" in INVARIANTS:
        return
    register_invariant("queues-bounded", during=_queues_bounded)
    register_invariant("no-lost-wakeup", during=_no_lost_wakeup)
    register_invariant("watchdog-bites", during=_watchdog_bites)
    register_invariant("protocol-clean", during=_protocol_clean)
    register_invariant("nothing-left", after=_nothing_left)
    register_invariant("liveness", during=_never)  # judged by the trial, which asks the devices


declare()
