"""One life of an instance: from the grants to the readiness signal, for the first one and after every crash."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
import trio

from uxk.actor.actor import Crash, Start
from uxk.core.caps import Capability
from uxk.core.lifecycle import Event, ModuleState, advance
from uxk.core.manifest import parse_capability
from uxk.errors import UxkError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.devices import DeviceRegistry
from uxk.kernel.host import Host, TaskHost
from uxk.kernel.machine import Machine
from uxk.kernel.process import Processes
from uxk.kernel.seconds import cpu_ns
from uxk.kernel.supervisor import Supervisor
from uxk.kernel.tasktime import TaskTime
from uxk.uapi.rights import Rights, rights_of


class Incarnations:
    """Starts actors and makes instances live.  ``map_region`` gives them their view of the arena."""

    def __init__(
        self, machine: Machine, agents: dict[str, KernelAgent], devices: DeviceRegistry, supervisor: Supervisor,
        map_region: Callable[[KernelAgent, int, bool], memoryview],
    ) -> None:  # fmt: skip
        self._machine = machine
        self._agents = agents
        self._devices = devices
        self._map_region = map_region
        self.supervisor = supervisor
        self.task_time = TaskTime(machine)
        self.kick: Callable[[], bool] = _no_kick
        """Lets the dispatcher act inside a task's call; set by who has one."""
        self.processes = Processes(machine)
        self.nursery: trio.Nursery | None = None
        """Where tasks of extensions run; there is one while the kernel is up."""
        machine.caps.on_delete["queue"] = self._queues_revoked
        supervisor.start = self.start

    def start(self, agent: KernelAgent) -> None:
        """Grants, runs the extension's setup, and returns; readiness may come later."""
        machine, restarted = self._machine, agent.incarnation > 0
        try:
            self._grant(agent)
            host: Host = machine.host_filter(agent, self._host(agent))
        except UxkError as exc:
            if not restarted:
                raise
            self.supervisor.not_started(agent, exc)
            return
        agent.host = host
        agent.on_ready = partial(self._ready, agent)
        agent.on_exit = partial(self.supervisor.exited, agent)
        machine.note("start", agent.id, f"{agent.name} {agent.incarnation}".encode())
        if restarted:  # the first time, the loader waits and has a limit of its own
            agent.set_life_timer(self.ready_timeout_ns(agent), partial(self._not_ready, agent))
        began_ns = cpu_ns()
        set_up = host.setup()
        agent.account.cpu_ns += cpu_ns() - began_ns
        if not set_up:
            return  # the process says when
        if host.runs and host.crash is None:
            assert self.nursery is not None
            host.start_task(
                self.nursery, lambda: machine.now_ns, partial(machine.mark_dirty, agent),
                partial(self._task_ended, agent, agent.incarnation),
                partial(self.task_time.book, account=agent.account), self.kick,
            )  # fmt: skip
            machine.settle_needed = True
        if agent.manifest.ready == "setup" and host.crash is None:
            self._ready(agent)
        agent.collect()  # what setup asked for is there when modprobe returns

    def _host(self, agent: KernelAgent) -> Host:
        machine = self._machine
        state, agent.handed = agent.handed, None
        start = Start(
            name=agent.name, instance=agent.id, depth=agent.queues.sq.depth, now_ns=machine.now_ns,
            seed=machine.streams.integer(f"instance/{agent.name}/{agent.incarnation}"),
            params=msgspec.msgpack.encode(agent.params), device=agent.device_name, state=state,
        )  # fmt: skip
        if agent.placement == "process":
            self.processes.nursery = self.nursery
            return self.processes.host(agent, start, partial(self._set_up, agent))
        return TaskHost(agent.extension_class, start, partial(self._map_region, agent))

    def _set_up(self, agent: KernelAgent) -> None:
        """A process on the real clock has finished setup."""
        if agent.manifest.ready == "setup":
            self._ready(agent)

    def ready_timeout_ns(self, agent: KernelAgent) -> int:
        """Limit of the way to readiness; on the real clock the start of a process is not the module's to answer for."""
        starting = agent.placement == "process" and self._machine.clock == "real"
        return agent.manifest.ready_timeout_ns + (self.processes.start_ns if starting else 0)

    def _grant(self, agent: KernelAgent) -> None:
        caps = self._machine.caps
        agent.queue_cap = caps.grant(agent.id, "queue", agent.name, Rights.SUBMIT)
        for text in agent.manifest.capabilities:
            request = parse_capability(text)
            caps.grant(agent.id, request.kind, request.target, rights_of(request.rights))

    def _queues_revoked(self, cap: Capability) -> None:
        """From now on the instance is not heard; what waits for it runs into its deadlines."""
        agent = self._agents.get(cap.target)
        if agent is not None and agent.queue_cap == cap.id:
            agent.queue_cap = 0

    def _task_ended(self, agent: KernelAgent, incarnation: int) -> None:
        """``run`` came to an end; its last words are taken in order of instances, and what follows from it then."""
        if agent.incarnation == incarnation and agent.host is not None:
            self._machine.mark_dirty(agent)

    def _not_ready(self, agent: KernelAgent) -> None:
        self.supervisor.hung(agent, f"not ready within {self.ready_timeout_ns(agent)} ns after its restart")

    def _ready(self, agent: KernelAgent) -> None:
        """The readiness signal."""
        if agent.ready or agent.state is not ModuleState.COMING:
            agent.account.reject("ready_twice")
            return
        if agent.manifest.kind != "ml-agent":
            try:
                self._devices.add(agent, agent.device_name, {})
            except UxkError as exc:  # somebody took its name meanwhile
                self.supervisor.crashed(agent, Crash("ready", type(exc).__name__, str(exc), ""))
                return
        agent.ready = True
        agent.state = advance(agent.state, Event.READY)
        agent.clear_life_timer()
        self.supervisor.watch(agent)
        agent.requests.open()
        self._devices.bind_all(agent)
        if agent.incarnation:
            self._machine.log("notice", agent.name, f"live again, incarnation {agent.incarnation}")
        agent.on_live()


def _no_kick() -> bool:
    return False
