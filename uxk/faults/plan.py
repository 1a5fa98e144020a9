"""A plan of faults on one kernel."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, cast

from uxk.actor.actor import Crash
from uxk.core.manifest import canonical
from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError
from uxk.faults.device import Channel, DeviceFault
from uxk.faults.host import FaultyHost
from uxk.faults.model import FAULTS_MAX, Fault, problem
from uxk.faults.strike import Striker
from uxk.faults.trigger import Triggers
from uxk.kernel.agent import KernelAgent
from uxk.kernel.host import TaskHost
from uxk.kernel.kernel import Kernel


def stream_of(index: int, fault: Fault) -> str:
    """The random stream of a fault: a name of its own keeps its chance when others of the plan go."""
    return f"fault/{fault.name or index}"


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
        self._by_module: dict[str, list[Striker]] = {}
        self._channels: dict[tuple[str, str], Channel] = {}
        self._devices: dict[int, DeviceFault] = {}
        self._next = len(faults)
        self._triggers = Triggers(kernel)
        for index, fault in enumerate(faults):
            if wrong := problem(fault):
                raise ConfigError(f"faults[{index}]: {wrong}")
            self._enter(Striker(index, fault, machine.streams.stream(stream_of(index, fault))))

    def _enter(self, striker: Striker) -> None:
        """Takes one more into the plan; those on messages act from the instance's next incarnation on."""
        fault, kernel = striker.fault, self._kernel
        name = canonical(fault.module)
        self.strikers.append(striker)
        if fault.kind == "device":
            key = (name, fault.attribute)
            channel = self._channels.setdefault(key, Channel(kernel, *key))
            self._devices[striker.index] = DeviceFault(kernel, striker, channel, name)
        else:
            self._by_module.setdefault(name, []).append(striker)
            kernel.machine.host_filter = self._wrap

    def _wrap(self, agent: KernelAgent, host: TaskHost) -> Any:
        strikers = self._by_module.get(agent.name)
        return FaultyHost(agent, host, strikers) if strikers else host

    def start(self) -> None:
        """Begins.  ConfigError if a fault names an instance that is not loaded."""
        for striker in self.strikers:
            self._agent_of(striker.fault, f"faults[{striker.index}]: ")
            self._arm(striker)

    def _agent_of(self, fault: Fault, place: str) -> KernelAgent:
        name = canonical(fault.module)
        agent = self._kernel.agents.get(name)
        if agent is None:
            raise ConfigError(f"{place}module {name!r} is not loaded{did_you_mean(name, self._kernel.agents)}")
        return agent

    def _arm(self, striker: Striker) -> None:
        """Begins its time: now, or when what it waits for has come to pass."""
        device = self._devices.get(striker.index)
        if device is not None:
            device.check()
        fault = striker.fault
        if fault.when:
            striker.cancel = self._triggers.wait(fault.when, fault.module, lambda _: self._begin(striker))
        else:
            self._begin(striker)

    def _begin(self, striker: Striker) -> None:
        if striker not in self.strikers or striker.origin_ns is not None:
            return
        machine = self._kernel.machine
        striker.origin_ns, striker.cancel = machine.now_ns, None
        device = self._devices.get(striker.index)
        if device is not None:
            device.start()
        elif striker.fault.timed:
            striker.timer = machine.heap.call_at(machine.now_ns + striker.fault.at_ns, self._strike, striker)

    # --- while it runs ---

    def add(self, fault: Fault) -> str:
        """Adds a fault, whose times count from now, and returns its name.  ConfigError says what is wrong.

        Device faults have no place here.
        """
        wrong = problem(fault)
        if wrong or fault.kind == "device":
            raise ConfigError(
                wrong or f"kind=device: write the rule to attribute {fault.attribute!r} of {fault.module}"
            )
        if len(self.strikers) >= FAULTS_MAX:
            raise ConfigError(f"{len(self.strikers)} faults, at most {FAULTS_MAX}", errno=errno.ENOSPC)
        agent = self._agent_of(fault, "")
        stream = self._kernel.machine.streams.stream(stream_of(self._next, fault))
        striker = Striker(self._next, fault, stream)
        if any(other.name == striker.name for other in self.strikers):
            raise ConfigError(f"name={striker.name}: there is a fault of that name", errno=errno.EEXIST)
        self._next += 1
        self._enter(striker)
        self._aim(agent)
        self._arm(striker)
        return striker.name

    def remove(self, name: str) -> None:
        """Takes a fault away, unless it has struck already.  ConfigError (ENOENT) if there is none of that name."""
        striker = next((striker for striker in self.strikers if striker.name == name), None)
        if striker is None:
            names = [striker.name for striker in self.strikers]
            hint = did_you_mean(name, names)
            raise ConfigError(f"no fault {name!r}{hint}; there are: {', '.join(names) or 'none'}", errno=errno.ENOENT)
        self._disarm(striker)
        self.strikers.remove(striker)
        module = canonical(striker.fault.module)
        if striker in self._by_module.get(module, ()):
            self._by_module[module].remove(striker)
        if (agent := self._kernel.agents.get(module)) is not None:
            self._aim(agent)

    def stop(self) -> None:
        """No fault strikes any more; what they did stays counted, and what they hold back is still to come."""
        for striker in self.strikers:
            self._disarm(striker)

    def _disarm(self, striker: Striker) -> None:
        striker.origin_ns = None
        if striker.cancel is not None:
            striker.cancel()
            striker.cancel = None
        if striker.timer is not None:
            self._kernel.machine.heap.cancel(striker.timer)
            striker.timer = None

    def _aim(self, agent: KernelAgent) -> None:
        """Gives an instance that runs the faults that it has now.  Between two turns a host may be exchanged."""
        host: Any = agent.host
        strikers = self._by_module.get(agent.name, [])
        if isinstance(host, FaultyHost):
            host.aim(strikers)
        elif host is not None and strikers:
            agent.host = cast("Any", FaultyHost(agent, host, strikers))

    def _strike(self, striker: Striker) -> None:
        """A fault of a whole instance whose time has come; one that finds its instance down waits for the next time."""
        fault, machine = striker.fault, self._kernel.machine
        striker.timer = None
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
            host.strike_now(fault)
        again_ns = machine.now_ns + fault.every_ns
        if fault.every_ns and not striker.exhausted and striker.open_at(again_ns):
            striker.timer = machine.heap.call_at(again_ns, self._strike, striker)

    def results(self) -> dict[str, dict[str, object]]:
        """Per fault, by name: kind, module, and how often it has struck."""
        return {
            s.name: {"kind": s.fault.kind, "module": s.fault.module, "fired": self.fired(s), "at_ns": s.fault.at_ns}
            for s in self.strikers
        }

    def fired(self, striker: Striker) -> int:
        """How often a fault has struck; for one of a device, the commands that its rule struck."""
        device = self._devices.get(striker.index)
        return striker.fired if device is None else device.struck

    def failures(self) -> dict[str, str]:
        """Device faults, by name, that did not come to pass: place, rule, and what the module said."""
        failed = {s.name: self._devices[s.index].problem() for s in self.strikers if s.index in self._devices}
        return {name: text for name, text in failed.items() if text}
