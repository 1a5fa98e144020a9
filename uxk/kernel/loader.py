"""insmod, modprobe, rmmod: transactions that either complete or leave nothing behind.

Grants come first: manifest, parameters, capabilities and budget are checked before any of the instance's code
runs; then UNFORMED, COMING, setup, the readiness signal, LIVE (kernel/module/main.c: load_module, do_init_module).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, cast, get_args

import trio

from uxk import limits
from uxk.actor.actor import Crash
from uxk.core.budget import memory_bytes, memory_terms
from uxk.core.depgraph import ModuleGraph
from uxk.core.lifecycle import Event, ModuleState, advance
from uxk.core.manifest import canonical, name_problem
from uxk.core.params import parse_integer, parse_params
from uxk.errors import (
    BudgetError,
    InUse,
    KernelBug,
    NoSuchModule,
    ParamError,
    ProbeError,
    ReadyTimeout,
    UsageError,
    UxkError,
    errno_name,
)  # fmt: skip
from uxk.kernel import views
from uxk.kernel.agent import KernelAgent
from uxk.kernel.catalog import Catalog, ExtensionClass, checked
from uxk.kernel.devices import DeviceRegistry
from uxk.kernel.dispatcher import Dispatcher
from uxk.kernel.foreign import Foreign
from uxk.kernel.incarnation import Incarnations
from uxk.kernel.machine import Machine
from uxk.kernel.reclaim import Reclaimer
from uxk.kernel.seconds import to_seconds
from uxk.kernel.services import Services
from uxk.kernel.warm import take_warm
from uxk.uapi.ids import InstanceId
from uxk.uapi.manifest import Manifest, Params, Placement

PLACEMENTS: Final[tuple[str, ...]] = get_args(Placement)
_GRACE_NS: Final = 2_000_000_000
"""Host time that rmmod waits for the end of a cancelled task that shields itself."""


class Loader:
    """Loads and unloads instances."""

    def __init__(
        self, machine: Machine, dispatcher: Dispatcher, catalog: Catalog, agents: dict[str, KernelAgent],
        devices: DeviceRegistry, services: Services, reclaimer: Reclaimer, incarnations: Incarnations,
    ) -> None:  # fmt: skip
        self._machine = machine
        self._dispatcher = dispatcher
        self._catalog = catalog
        self._agents = agents
        self._devices = devices
        self._services = services
        self._reclaimer = reclaimer
        self._incarnations = incarnations
        self._names: dict[InstanceId, str] = {}
        self._dependents: dict[str, dict[str, None]] = {}
        """Loaded instances that depend on an instance, by its name."""
        self._next_id = 0
        self._loading: dict[str, trio.Event] = {}
        """Instances whose probe is under way, and what is set when it ends."""
        incarnations.supervisor.give_up = self._unload

    # --- loading ---

    async def modprobe(self, name: str, params: Mapping[str, object], *, instance: str | None = None) -> KernelAgent:
        """Loads ``name`` and what it depends on; what is loaded already stays as it is, as on Linux."""
        graph = self._catalog.graph_for(name)
        resolved = graph.resolve(name)
        steps = graph.load_order(name)
        if resolved not in self._agents:
            self._tell_skipped(graph, resolved, {step.name for step in steps})
        given = {canonical(key): value for key, value in params.items()}
        loaded: KernelAgent | None = None
        for step in steps:
            is_target = step.name == resolved
            wanted = canonical(instance or step.name) if is_target else step.name
            options = {**self._catalog.config.options.get(step.name, {}), **(given if is_target else {})}
            try:
                agent = await self._have(self._catalog.get(step.name), options, wanted)
            except UxkError as exc:
                if not step.soft:
                    raise
                self._machine.log("notice", wanted, f"soft dependency of {resolved} not loaded: {exc}")
                continue
            loaded = agent if is_target else loaded
        assert loaded is not None
        return loaded

    def _tell_skipped(self, graph: ModuleGraph, name: str, taken: set[str]) -> None:
        """One line for every soft dependency that cannot be had."""
        for word in graph.soft_dependencies(name):
            try:
                if graph.resolve(word) not in taken:
                    graph.load_order(word)
            except UxkError as exc:
                self._machine.log("notice", name, f"soft dependency {word} skipped: {exc}")

    async def _have(self, cls: ExtensionClass, options: Mapping[str, object], instance: str) -> KernelAgent:
        """The instance, if it is there, after the end of its probe if one is under way; else loads it."""
        while True:
            known = self._agents.get(instance)
            if known is None:
                return await self.load(cls, options, instance=instance)
            if canonical(known.manifest.name) != canonical(cls.manifest.name):
                raise UsageError(f"{instance}: already an instance of {known.manifest.name}", errno=errno.EEXIST)
            loading = self._loading.get(instance)
            if loading is None:
                return known
            await loading.wait()

    async def load(self, cls: ExtensionClass, params: Mapping[str, object], *, instance: str) -> KernelAgent:
        """Loads one class as ``instance``.  Raises, and leaves no trace, if anything is refused or fails."""
        manifest = checked(cls)
        params = dict(params)
        placement = _placement(instance, cls, params.pop("placement", manifest.placement))
        cpu_ppm = _ceiling_ppm(instance, params.pop("cpu_ppm", limits.PPM))
        warm = take_warm(instance, cls, params)
        values = self._admit(manifest, params, instance)
        self._next_id += 1
        agent = KernelAgent(self._machine, InstanceId(self._next_id), instance, cls, values)
        agent.placement = placement
        agent.limit_cpu(cpu_ppm)
        agent.handed = warm
        device = self._devices.devices.get(agent.device_name)
        if device is not None and manifest.kind != "ml-agent":
            raise UsageError(
                f"{instance}: its device {device.name!r} belongs to {device.agent.name}", errno=errno.EEXIST
            )
        agent.users = partial(self.users, agent)
        agent.on_up = self._services.serve
        agent.on_crash = self._incarnations.supervisor.crashed
        self.depend(agent, self.dependencies(manifest, instance))
        self._names[agent.id] = instance
        self._agents[instance] = agent
        self._machine.granted_bytes += agent.memory_bytes
        self._loading[instance] = trio.Event()
        try:
            views.add_instance(self._machine, agent)
            agent.state = advance(agent.state, Event.FORM)
            await self._probe(agent)
        except BaseException as exc:
            self._unload(agent, f"probe failed: {exc}")
            raise
        finally:
            self._loading.pop(instance).set()
        if (supervisors := self._incarnations.supervisor.supervisors) is not None:
            supervisors.loaded(agent)
        self._machine.log("info", instance, f"loaded, version {manifest.version}", id=agent.id)
        return agent

    def _admit(self, manifest: Manifest, params: Mapping[str, object], instance: str) -> Params:
        """Everything that is checked before there is an instance; returns its parameters."""
        if self._incarnations.nursery is None:
            raise UsageError(f"modprobe {manifest.name}: the kernel is not running", errno=errno.ESHUTDOWN)
        problem = name_problem(instance)
        if problem:
            raise UsageError(f"modprobe {manifest.name}: {problem}")
        if instance in self._agents:
            raise UsageError(f"{instance}: already loaded", errno=errno.EEXIST)
        values = parse_params(manifest.name, manifest.params, params)
        self._check_budget(manifest, values, instance)
        return values

    def depend(self, agent: KernelAgent, deps: tuple[str, ...]) -> None:
        """What an instance depends on, from now on."""
        for dependency in agent.deps:
            self._dependents[dependency].pop(agent.name, None)
        agent.deps = deps
        for dependency in deps:
            self._dependents.setdefault(dependency, {})[agent.name] = None

    def dependencies(self, manifest: Manifest, instance: str) -> tuple[str, ...]:
        """Real names of what it depends on, all of it live: it may have gone while others were loaded."""
        names = tuple(self._catalog.resolve(dep) for dep in manifest.depends)
        missing = [name for name in names if name not in self._agents or name in self._loading]
        if missing:
            raise NoSuchModule(f"{instance}: needs {', '.join(missing)}, not loaded (modprobe would load them)")
        return names

    async def _probe(self, agent: KernelAgent) -> None:
        failure: list[Crash] = []
        goal = self._dispatcher.goal(
            f"{agent.name} to become ready", until_ns=self._machine.now_ns + self._incarnations.ready_timeout_ns(agent)
        )
        agent.on_live = goal.reach

        def on_failed(crash: Crash) -> None:
            failure.append(crash)
            goal.reach()

        agent.on_failed = on_failed
        self._incarnations.start(agent)
        try:
            if not agent.ready and not failure:
                await self._dispatcher.wait(goal)
        finally:
            agent.on_live = _ignore
            agent.on_failed = _ignore
        if failure:
            raise _probe_error(agent.name, failure[0])
        if not agent.ready:
            limit_ns = self._incarnations.ready_timeout_ns(agent)
            raise ReadyTimeout(f"{agent.name}: not ready within {limit_ns} ns")

    def _check_budget(self, manifest: Manifest, params: Params, instance: str) -> None:
        """Admission: what all instances may use together must exist (R8)."""
        wanted, budget = memory_bytes(manifest, params), manifest.budget
        granted = self._machine.granted_bytes
        total = self._machine.arena.size_bytes
        if granted + wanted > total:
            self._machine.log("err", instance, f"ENOMEM: budget of {wanted} bytes refused", errno=errno.ENOMEM)
            terms = memory_terms(manifest, params)
            enough_gib = (granted + wanted + (1 << 30) - 1) >> 30
            raise BudgetError(
                f"{instance}: budget {' + '.join(terms)}: {total - granted} of {total} bytes are left to grant (the "
                f"size of the arena is set at boot: --arena {enough_gib}GiB; it is address space until it is used)",
                errno=errno.ENOMEM,
            )
        if budget.queue_depth > limits.QUEUE_DEPTH_MAX:
            raise BudgetError(f"{instance}: budget queue_depth={budget.queue_depth}: at most {limits.QUEUE_DEPTH_MAX}")

    # --- unloading ---

    async def rmmod(self, name: str) -> None:
        """Unloads an instance.  InUse (EBUSY) names those who hold it."""
        agent = self._agents.get(canonical(name))
        if agent is None:
            raise NoSuchModule(f"{name!r} is not loaded")
        if agent.name in self._loading:
            raise InUse(f"{agent.name} is in use by: its own probe, which is under way")
        if agent.upgrade is not None:
            raise InUse(f"{agent.name} is in use by: its own upgrade, which is under way")
        users = self.users(agent)
        if users:
            raise InUse(f"{agent.name} is in use by: {', '.join(users)}")
        host = agent.host
        if host is not None:
            await host.farewell("rmmod")
            host = agent.host
        self._unload(agent, "rmmod")
        if host is not None and host.done is not None:
            with trio.move_on_after(to_seconds(_GRACE_NS)):
                await host.done.wait()
                return
            self._machine.log("warning", agent.name, f"its task goes on, {_GRACE_NS} ns after it was cancelled")

    def users(self, agent: KernelAgent) -> list[str]:
        """Who holds an instance: dependents and clients, extensions and open files."""
        caps = self._machine.caps
        opened = [holder for name in agent.devices for holder in caps.holders("device", name)]
        opened += [holder for name in agent.chardevs for holder in caps.holders("chardev", name)]
        names = {self._names[holder] for holder in opened}
        names |= {port.client for device in agent.devices.values() for port in device.openers}
        return sorted({*agent.clients(), *names, *self._dependents.get(agent.name, ())} - {agent.name})

    def _unload(self, agent: KernelAgent, reason: str) -> None:
        if agent.state in (ModuleState.GOING, ModuleState.GONE):
            return
        if agent.upgrade is not None:
            agent.upgrade.interrupt(reason)
        agent.state = advance(agent.state, Event.STOP)
        if agent.host is not None and agent.host.crash is None:
            agent.last_words(reason)
        agent.detach()
        if (supervisors := self._incarnations.supervisor.supervisors) is not None:
            supervisors.gone(agent)
        try:
            self._reclaimer.gone(agent)
        finally:
            views.remove_instance(self._machine, agent)
            self._agents.pop(agent.name, None)
            del self._names[agent.id]
            self.depend(agent, ())
            self._machine.granted_bytes -= agent.memory_bytes
        agent.state = advance(agent.state, Event.RECLAIMED)
        self._machine.note("gone", agent.id, b"")
        self._machine.log("info", agent.name, f"unloaded: {reason}")

    def unload_all(self) -> None:
        """Shutdown: everything, the newest first, so that nothing outlives what it depends on."""
        if (supervisors := self._incarnations.supervisor.supervisors) is not None:
            supervisors.close()
        bugs: list[Exception] = []
        for agent in list(reversed(self._agents.values())):
            try:
                self._unload(agent, "shutdown")
            except KernelBug as bug:  # the others are taken down all the same
                bugs.append(bug)
        if bugs:
            raise bugs[0]


def _probe_error(name: str, crash: Crash) -> ProbeError:
    """What ended a probe: a refusal in its own words, anything else with its kind and place; both with their errno."""
    text = crash.message.removeprefix(f"{name}: ").removesuffix(f" [{errno_name(crash.errno)}]")
    if not crash.refusal:
        text = f"{crash.kind} in {crash.where}: {text}"
    error = ProbeError(f"{name}: {text}", errno=crash.errno or None)
    error.refusal = crash.refusal
    return error


def _placement(instance: str, cls: ExtensionClass, value: object) -> Placement:
    """``"task"`` or ``"process"``; UsageError for anything else."""
    if issubclass(cls, Foreign) and value != "process":
        raise UsageError(f"{instance}: placement={value!r}, expected process: {cls.command[0]} is a program of its own")
    if value not in PLACEMENTS:
        raise UsageError(f"{instance}: placement={value!r}, expected {' or '.join(PLACEMENTS)}")
    return cast("Placement", value)


def _ceiling_ppm(instance: str, value: object) -> int:
    """What whoever loads it allows of a processor: a number, or its text.  ParamError for anything else."""
    try:
        ppm = parse_integer(value, "") if isinstance(value, str) else value
    except ValueError:
        ppm = None
    if type(ppm) is not int or not 1 <= ppm <= limits.PPM:
        raise ParamError(f"{instance}: cpu_ppm={value!r}, expected 1 to {limits.PPM}, millionths of a processor")
    return ppm


def _ignore(*_: Any) -> None:
    """Nobody waits any more."""
