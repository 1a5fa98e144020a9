"""A plan of faults on one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uxk.actor.actor import Crash
from uxk.core.manifest import canonical
from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError
from uxk.faults.host import FaultyHost
from uxk.faults.model import FAULTS_MAX, Fault, problem
from uxk.faults.strike import Striker
from uxk.kernel.agent import KernelAgent
from uxk.kernel.host import TaskHost
from uxk.kernel.kernel import Kernel


class FaultPlan:
    """Make it before any module is loaded; :meth:`start` begins the time that ``at_ns`` counts.

    Raises :class:`ConfigError` for a fault that makes no sense.
    """

    def __init__(self, kernel: Kernel, faults: Sequence[Fault]) -> None:
        if len(faults) > FAULTS_MAX:
            raise ConfigError(f"{len(faults)} faults, at most {FAULTS_MAX}")
        self._kernel = kernel
        machine = kernel.machine
        self.strikers: list[Striker] = []
        for index, fault in enumerate(faults):
            if wrong := problem(fault):
                raise ConfigError(f"faults[{index}]: {wrong}")
            self.strikers.append(Striker(index, fault, machine.streams.stream(f"fault/{index}")))
        self._by_module: dict[str, list[Striker]] = {}
        for striker in self.strikers:
            self._by_module.setdefault(canonical(striker.fault.module), []).append(striker)
        if self.strikers:
            machine.host_filter = self._wrap

    def _wrap(self, agent: KernelAgent, host: TaskHost) -> Any:
        strikers = self._by_module.get(agent.name)
        return FaultyHost(agent, host, strikers) if strikers else host

    def start(self) -> None:
        """Begins.  ConfigError if a fault names an instance that is not loaded."""
        machine = self._kernel.machine
        for striker in self.strikers:
            name = canonical(striker.fault.module)
            if name not in self._kernel.agents:
                hint = did_you_mean(name, self._kernel.agents)
                raise ConfigError(f"faults[{striker.index}]: module {name!r} is not loaded{hint}")
            striker.origin_ns = machine.now_ns
            if striker.fault.timed:
                machine.heap.call_at(machine.now_ns + striker.fault.at_ns, self._strike, striker)

    def _strike(self, striker: Striker) -> None:
        """A crash or hang whose time has come; one that finds its instance down waits for the next time."""
        fault, machine = striker.fault, self._kernel.machine
        agent = self._kernel.agents.get(canonical(fault.module))
        if agent is None:
            return
        host: Any = agent.host
        if host is None:
            machine.log("notice", agent.name, f"fault {striker.name}: not struck, the instance is down")
        elif fault.kind == "crash":
            striker.note(agent, "")
            agent.on_crash(agent, Crash("fault", "Injected", f"fault {striker.name}", ""))
        else:
            striker.note(agent, "")
            host.hang(fault.duration_ns)
        if fault.every_ns and not striker.exhausted:
            machine.call_later(fault.every_ns, self._strike, striker)

    def results(self) -> dict[str, dict[str, object]]:
        """Per fault, by name: kind, module, and how often it has struck."""
        return {
            s.name: {"kind": s.fault.kind, "module": s.fault.module, "fired": s.fired, "at_ns": s.fault.at_ns}
            for s in self.strikers
        }
