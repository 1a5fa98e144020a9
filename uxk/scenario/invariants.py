"""What must hold in every run: named functions, called during it and after everything is unloaded.

Each gets the :class:`Watched` run and returns what is wrong, or ``""``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeAlias

from uxk.core.kmsg import FACILITY_KERNEL
from uxk.core.lifecycle import ModuleState
from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError, UsageError
from uxk.faults.plan import FaultPlan
from uxk.kernel.agent import KernelAgent
from uxk.kernel.kernel import Kernel
from uxk.scenario.workload import Generator
from uxk.subsystems.blk.port import DiskPort
from uxk.uapi.info import Record

STALL_NS: Final = 120_000_000_000
"""Virtual time without any event while requests are open: nothing will come any more."""


class Watched:
    """A run as its invariants see it."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.agents: dict[str, KernelAgent] = {}
        """Every instance of the run, also those that are gone."""
        self.generators: list[Generator] = []
        self.plan = FaultPlan(kernel, ())
        """The run's faults."""
        self.bugs: list[str] = []
        """Lines in which the kernel admits a bug."""
        self.oopses: dict[int, str] = {}
        """What each instance died of last, by its id."""
        self.given_up: set[str] = set()
        """Instances that stay down by their restart policy, rather than because somebody has removed them."""
        self.stalled = ""
        self.last_turns: dict[str, tuple[int, int]] = {}
        """By name, for rules: turns so far of an instance that is held back, and since when it has had no more."""
        self._last: tuple[int, int] = (0, 0)

    def refresh(self) -> None:
        """Takes note of instances loaded since."""
        for agent in self.kernel.agents.values():
            if self.agents.setdefault(agent.name, agent) is not agent:  # loaded anew under an old name
                self.agents[f"{agent.name}#{agent.id}"] = agent

    def on_record(self, record: Record) -> None:
        """A line of kmsg."""
        if record.facility == FACILITY_KERNEL and ("bug" in record.fields or record.text.startswith("BUG")):
            self.bugs.append(record.text)
        elif record.facility == FACILITY_KERNEL and record.text.startswith("stays down: "):
            self.given_up.add(record.source)
        elif record.facility == FACILITY_KERNEL and record.text.startswith("oops: ") and "incarnation" in record.fields:
            agent = self.kernel.agents.get(record.source)
            if agent is not None:
                self.oopses[agent.id] = record.text.removeprefix("oops: ").partition("\n")[0]

    def notes(self) -> list[str]:
        """What figures do not tell: modules that are not live, workloads with errors or that gave up."""
        self.refresh()
        lines = []
        for name, agent in self.agents.items():
            if agent.state is ModuleState.LIVE:
                continue
            restarts = agent.account.restarts
            why = self.oopses.get(agent.id, "")
            after = f" after {restarts} restart{'' if restarts == 1 else 's'}" if restarts or why else ""
            lines.append(f"{name}: {agent.state.name.lower()}{after}" + (f": {why}" if why else ""))
        return lines + [f"{g.spec.name}: {text}" for g in self.generators if (text := g.note())]

    def notice_stall(self) -> None:
        """Called periodically: time that only daemons move leads nowhere."""
        machine = self.kernel.machine
        count, since_ns = self._last
        if machine.hash.count != count or machine.heap.lasting or machine.runnable or not machine.outstanding:
            self._last = (machine.hash.count, machine.now_ns)
        elif machine.now_ns - since_ns >= STALL_NS and not self.stalled:
            self.stalled = f"{machine.outstanding} requests are open, and nothing has happened for {STALL_NS} ns"


Rule: TypeAlias = Callable[[Watched], str]


class Invariant(NamedTuple):
    """Rules for during and after the run."""

    during: Rule
    after: Rule


def _holds(_: Watched) -> str:
    return ""


def _first(complaints: Iterable[str]) -> str:
    return next((complaint for complaint in complaints if complaint), "")


def _nothing_lost(run: Watched) -> str:
    for name, agent in run.agents.items():
        account = agent.account
        if account.requests != account.completed + account.inflight:
            return (
                f"{name}: {account.requests} requests, but {account.completed} completed and "
                f"{account.inflight} in flight"
            )
    return _first(
        f"workload {g.spec.name}: {len(g.outstanding)} requests wait, but {_held(g)} are in flight"
        for g in run.generators
        if len(g.outstanding) != _held(g)
    )


def _held(generator: Generator) -> int:
    """Requests of a workload's that the kernel has."""
    port = generator.port
    if isinstance(port, DiskPort):
        return port.under_way
    table = generator.agent.requests
    return sum(batch.port is port for book in (table.inflight, table.backlog) for batch in book.values())


def _nothing_lost_after(run: Watched) -> str:
    return _nothing_lost(run) or _first(
        f"workload {g.spec.name}: {len(g.outstanding)} requests were never answered"
        for g in run.generators
        if g.outstanding
    )


def _nothing_twice(run: Watched) -> str:
    return _first(
        f"workload {g.spec.name}: {g.unexpected} answers to requests that were not open"
        for g in run.generators
        if g.unexpected
    )


def _no_negative(run: Watched) -> str:
    return _first(
        f"{name}: {gauge} is {value}"
        for name, agent in run.agents.items()
        for gauge, value in agent.account.holdings().items()
        if value < 0
    )


def _all_back(run: Watched) -> str:
    machine = run.kernel.machine
    if machine.outstanding:
        return f"{machine.outstanding} requests or commands are still counted as open"
    if run.kernel.agents:
        return f"still loaded: {', '.join(run.kernel.agents)}"
    return _first(
        f"{name} still holds {holdings}" for name, agent in run.agents.items() if (holdings := agent.account.holdings())
    )


def _no_bug(run: Watched) -> str:
    return f"{len(run.bugs)} times; the first: {run.bugs[0]}" if run.bugs else ""


def _non_blocking(run: Watched) -> str:
    waits = run.kernel.machine.waits.statistics()
    if waits.cycles or waits.blocking_decisions:
        return f"{waits.cycles} cycles of waits, {waits.blocking_decisions} decisions that waited for an extension"
    return ""


def _progress(run: Watched) -> str:
    return run.stalled


def _data_intact(run: Watched) -> str:
    return _first(
        f"workload {g.spec.name}: {g.mismatches} reads gave other data than was written; the first: {g.first_mismatch}"
        for g in run.generators
        if g.mismatches
    )


def not_checked(name: str, run: Watched) -> str:
    """Why an invariant that holds says nothing about this run, or ``""``."""
    if name != "data-intact" or any(g.verified or g.mismatches for g in run.generators):
        return ""
    verifying = any(g.spec.verify for g in run.generators)
    return "not checked: no read could be verified" if verifying else "not checked: no workload has verify"


INVARIANTS: Final[dict[str, Invariant]] = {
    "no-lost-request": Invariant(_nothing_lost, _nothing_lost_after),
    "no-duplicate-request": Invariant(_nothing_twice, _nothing_twice),
    "accounts-balance": Invariant(_no_negative, _all_back),
    "no-kernel-bug": Invariant(_no_bug, _no_bug),
    "non-blocking": Invariant(_non_blocking, _non_blocking),
    "data-intact": Invariant(_data_intact, _data_intact),
    "progress": Invariant(_progress, _progress),
}
"""By name.  The law of non-blocking: docs/ARCHITECTURE.md."""


def register_invariant(name: str, *, during: Rule = _holds, after: Rule = _holds) -> None:
    """Makes an invariant known to scenarios.  UsageError (EEXIST) if the name is taken."""
    if name in INVARIANTS:
        raise UsageError(f"invariant {name!r} is registered already", errno=errno.EEXIST)
    INVARIANTS[name] = Invariant(during, after)


def check_names(names: Iterable[str]) -> None:
    """Raises :class:`ConfigError`, with what is known, for an unknown invariant."""
    for name in names:
        if name not in INVARIANTS:
            known = ", ".join(sorted(INVARIANTS))
            raise ConfigError(f"invariants: unknown {name!r}{did_you_mean(name, INVARIANTS)}; known: {known}")
