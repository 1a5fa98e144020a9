"""The kernel as its user sees it: boot, load, run, look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import trio

from uxk import limits
from uxk.core.cost import ClockKind, CostModel
from uxk.core.events import nanoseconds
from uxk.core.kmsg import KmsgRing
from uxk.core.lock import LEASE_NS_MAX
from uxk.core.manifest import canonical
from uxk.core.modprobe_conf import ModprobeConfig, load_dir
from uxk.core.sysctl import Sysctl, SysctlTable
from uxk.core.tree import Tree
from uxk.errors import NoSuchModule, UpgradeError, UsageError
from uxk.kernel import views
from uxk.kernel.actions import Actions
from uxk.kernel.agent import KernelAgent
from uxk.kernel.bpf.events import EventPoints
from uxk.kernel.bpf.injection import Injections
from uxk.kernel.bpf.queue import Queues
from uxk.kernel.bpf.registry import Bpf
from uxk.kernel.builds import PROBATION_NS, QUIESCE_NS, WORSE_PPM, Kpi
from uxk.kernel.callport import CallPort
from uxk.kernel.catalog import Catalog, ExtensionClass
from uxk.kernel.chardev import Chardev, ChardevTable, File
from uxk.kernel.devices import DeviceRegistry
from uxk.kernel.devkmsg import KmsgFile
from uxk.kernel.devmllib import MlLibFile
from uxk.kernel.dispatcher import Dispatcher
from uxk.kernel.dma import DmaPool
from uxk.kernel.incarnation import Incarnations
from uxk.kernel.info import available_rows, depmod, loaded_rows, module_info
from uxk.kernel.loader import Loader
from uxk.kernel.machine import Machine
from uxk.kernel.memory import Memory
from uxk.kernel.models import Models
from uxk.kernel.module import Module
from uxk.kernel.pin import pin_trio
from uxk.kernel.ports import DevicePort, OnCompletions
from uxk.kernel.publish import Publisher
from uxk.kernel.reclaim import Reclaimer
from uxk.kernel.recompile import Builds
from uxk.kernel.services import Services
from uxk.kernel.sharing import Sharing
from uxk.kernel.supervision import Supervisors
from uxk.kernel.supervisor import Supervisor
from uxk.kernel.upgrade import Upgrades
from uxk.kernel.watch import HostWatch
from uxk.uapi import entries as e
from uxk.uapi.info import Dependencies, ModuleInfo, ModuleRow
from uxk.uapi.supervisor import Strategy, SupervisorSpec


class Kernel:
    """A kernel.  ``async with uxk.Kernel(seed=7) as kernel`` boots it; leaving the block shuts it down.

    ``clock`` is ``"virtual"`` (thinking is free), ``"charged"`` (thinking and crossings take virtual time) or
    ``"real"``.  ``modprobe_d`` is a directory of modprobe.d files.  ``costs_ns`` gives turn costs by module, as
    an earlier charged run measured them.
    """

    def __init__(
        self, *, seed: int = 0, clock: ClockKind = "virtual", cost: CostModel | None = None,
        arena_bytes: int = limits.ARENA_BYTES_DEFAULT, modprobe_d: str | Path | None = None,
        costs_ns: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        if clock not in ("virtual", "charged", "real"):
            raise UsageError(f"clock={clock!r}: expected 'virtual', 'charged' or 'real'")
        machine = Machine(seed=seed, clock=clock, cost=cost or CostModel(), arena_bytes=arena_bytes)
        machine.costs_ns.update(costs_ns or {})
        self.machine = machine
        self.agents: dict[str, KernelAgent] = {}
        self.catalog = Catalog(load_dir(modprobe_d) if modprobe_d else ModprobeConfig(), modprobe_d or None)
        self.dispatcher = Dispatcher(machine)
        self.devices = DeviceRegistry(machine, self.agents)
        self.chardevs = ChardevTable(machine)
        services = Services(machine, self.agents, self.devices, self.chardevs)
        sharing = Sharing(machine)
        memory = Memory(machine)
        publisher = Publisher(machine)
        services.extend(sharing.services())
        services.extend(memory.services())
        self.models = Models(machine)
        self.devices.on_change.append(self.models.driver_sites.on_device)
        self.chardevs.on_use = self.models.device_used
        self.create_model = self.models.create
        """Makes an ML model proxy for a subsystem: see :meth:`uxk.kernel.models.Models.create`."""
        services.extend(self.models.services())
        self._actions = Actions(machine)
        services.extend(self._actions.services())
        self._bpf = Bpf(machine, self.models)
        self._policies = Injections(self._bpf)
        self._queues = Queues(self._bpf, self.devices)
        EventPoints(self._bpf, self.agents)
        services.extend({**self._bpf.services(), **self._policies.services()})
        services.extend({
            e.SetAttribute: publisher.set_attribute, e.FollowKmsg: publisher.follow_kmsg,
            e.AddChardev: self.chardevs.add, e.SetPoll: self.chardevs.set_poll,
        })  # fmt: skip
        reclaimer = Reclaimer(machine, services, sharing, memory, publisher, self.devices, self.chardevs, self.models)
        supervisor = Supervisor(machine, reclaimer)
        self.supervisors = Supervisors(machine, self.agents, supervisor)
        self._incarnations = Incarnations(machine, self.agents, self.devices, supervisor, memory.map_region)
        self._incarnations.processes.share = memory.share
        memory.tell = self._incarnations.processes.unmap
        self._incarnations.kick = self.dispatcher.kick
        self.dispatcher.on_kicked = self._incarnations.task_time.exclude
        self._loader = Loader(
            machine, self.dispatcher, self.catalog, self.agents, self.devices, services, reclaimer, self._incarnations
        )
        self._upgrades = Upgrades(
            machine, self._loader, self._incarnations, self.catalog, services.forwarders.under_way
        )
        self._builds = Builds(machine, self.agents, self._upgrades)
        services.extend(self._builds.services())
        self._stack = AsyncExitStack()
        self._booted = False
        machine.tree.add("/sys/kernel", machine, views.KERNEL)
        for path in ("/sys/module", "/sys/class", "/sys/devices/virtual"):
            machine.tree.add(path)
        self._register_sysctls()

    def _register_sysctls(self) -> None:
        """The kernel's own settings under /proc/sys/kernel."""
        machine, dispatcher, processes = self.machine, self.dispatcher, self._incarnations.processes
        machine.sysctl.register(Sysctl(
            "kernel/turns_per_instant_max", dispatcher.turns_per_instant_max, minimum=1,
            help="turns without virtual time moving on that count as a livelock",
            on_change=lambda value: setattr(dispatcher, "turns_per_instant_max", value),
        ))  # fmt: skip
        machine.sysctl.register(Sysctl(
            "kernel/host_answer_ns", limits.HOST_ANSWER_NS_DEFAULT, minimum=1_000_000,
            help="host time in which an extension's own process must answer a held clock",
            on_change=lambda value: setattr(processes, "answer_ns", value),
        ))  # fmt: skip
        machine.sysctl.register(Sysctl(
            "kernel/lock_lease_ns", limits.LEASE_NS_DEFAULT, minimum=1, maximum=LEASE_NS_MAX,
            help="lease of a lock whose holder names none",
        ))  # fmt: skip

    async def __aenter__(self) -> Kernel:
        if self._booted:
            raise UsageError("a kernel boots once: make another one")
        self._booted = True
        pinned = pin_trio(self.machine.streams.seed)
        nursery = await self._stack.enter_async_context(trio.open_nursery())
        self._stack.enter_context(HostWatch(self.machine))
        self._incarnations.nursery = nursery
        self.dispatcher.open()
        nursery.start_soon(self.dispatcher.serve, name="uxk dispatcher")
        self.machine.log("info", "kernel", f"booted, seed {self.seed}, {self.machine.clock} clock")
        if not pinned:
            self.machine.log("warning", "kernel", "this Trio's scheduling cannot be pinned")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            self._incarnations.processes.closing = True
            self.models.close_all()
            self._loader.unload_all()
            self.machine.log("info", "kernel", "shut down")
        finally:
            self.dispatcher.close()
            nursery, self._incarnations.nursery = self._incarnations.nursery, None
            if nursery is not None:
                nursery.cancel_scope.cancel()
            try:
                await self._leave()
            finally:
                self._incarnations.task_time.close()
                self.machine.shared.close()

    async def _leave(self) -> None:
        """Closes the nursery, which never sees the body's exception: that goes on as it is, in no group.

        What a scheduled callback raised, or Ctrl-C inside an extension, leaves as what it is, too.
        """
        try:
            await self._stack.aclose()
        except BaseExceptionGroup as group:
            inner: BaseException = group
            while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
                inner = inner.exceptions[0]
            raise inner from inner.__cause__

    # --- modules ---

    async def modprobe(
        self, name: str, /, *, instance: str | None = None, placement: str | None = None,
        cpu_ppm: int | str | None = None, **params: object,
    ) -> Module:  # fmt: skip
        """Loads a module by name or alias, after what it depends on; options of modprobe.d apply.

        ``instance`` names a further instance of it, ``placement`` says where it runs if not where its manifest says;
        ``cpu_ppm`` is the share of the kernel's processor that it gets at most, however much its manifest asks for.
        A module that is loaded already is returned as it is.
        Raises NoSuchModule, ParamError, ManifestError, DependencyError, BudgetError, ProbeError or
        ReadyTimeout; then nothing of it is left.
        """
        params = _with_options(params, placement, cpu_ppm)
        return self._handle(await self._loader.modprobe(name, params, instance=instance))

    async def insmod(
        self, source: str | Path | ExtensionClass, /, *, instance: str | None = None,
        placement: str | None = None, cpu_ppm: int | str | None = None, **params: object,
    ) -> Module:  # fmt: skip
        """Loads a single file (Python, or the TOML file of a program in another language), or a class, without looking
        at dependencies or options; else as modprobe."""
        params = _with_options(params, placement, cpu_ppm)
        if isinstance(source, (str, Path)):
            manifest = self.catalog.add_file(source)
        else:
            manifest = self.catalog.add(source)
        name = canonical(manifest.name)
        agent = await self._loader.load(self.catalog.get(name), params, instance=canonical(instance or name))
        return self._handle(agent)

    async def rmmod(self, name: str, /) -> None:
        """Unloads an instance.  InUse (EBUSY) names those who hold it."""
        await self._loader.rmmod(name)

    async def upgrade(
        self, name: str, /, to: ExtensionClass | str | Path | None, *, quiesce_ns: int = QUIESCE_NS,
        probation_ns: int = PROBATION_NS, kpi: Kpi | str | None = None, worse_ppm: int = WORSE_PPM,
        **params: object,
    ) -> Module:  # fmt: skip
        """Replaces the build of a running instance by a class, a file or a package's folder, or a version that can be
        found (see :mod:`uxk.kernel.versions`); by itself if ``to`` is None.  Requests are held while the new instance
        is started beside the old one and takes over its state; returns after ``probation_ns``.  A ``kpi``, "latency"
        or a function, may not get worse by more than ``worse_ppm``.

        Raises :class:`~uxk.errors.UpgradeError`, or what ``modprobe`` raises; then the old build runs on.  See
        :class:`uxk.kernel.builds.Trial` and docs/upgrade.md.
        """
        return await self._replace(
            name, to, params, quiesce_ns=quiesce_ns, probation_ns=probation_ns, kpi=kpi, worse_ppm=worse_ppm
        )

    async def restart(
        self, name: str, /, *, quiesce_ns: int = QUIESCE_NS, probation_ns: int = PROBATION_NS, **params: object
    ) -> Module:
        """Hot restart: :meth:`upgrade` to the same build, with other parameters if any are given."""
        return await self._replace(name, None, params, quiesce_ns=quiesce_ns, probation_ns=probation_ns)

    async def _replace(
        self, name: str, to: ExtensionClass | str | Path | None, params: Mapping[str, object], **trial: Any
    ) -> Module:
        agent, ended = self._agent(name), list[str]()
        goal = self.dispatcher.goal(f"the upgrade of {agent.name}")

        def on_end(problem: str) -> None:
            ended.append(problem)
            goal.reach()

        upgrade = self._upgrades.begin(agent, to, params, on_end, **trial)
        if not ended:
            await self.dispatcher.wait(goal)
        if ended[0]:
            raise UpgradeError(f"{agent.name}: {upgrade.what}: {ended[0]}")
        return self._handle(agent)

    def supervise(
        self, name: str | SupervisorSpec, /, *, strategy: Strategy = "one_for_one", children: Iterable[str] = (),
        max_restarts: int = 3, period_ns: int = 5_000_000_000, backoff_ns: int = 1_000_000,
        backoff_max_ns: int = 1_000_000_000, parent: str = "",
    ) -> None:  # fmt: skip
        """Puts loaded instances, in the order of their start, under a supervisor; see :class:`SupervisorSpec`.

        From then on it decides about their deaths in place of their own policies, whose ``mode`` alone counts. One that
        gives up tells the supervisor ``parent``. UsageError: EEXIST, ENOENT, EAGAIN for an instance that is not live,
        ENOSPC, ELOOP, EINVAL.
        """
        self.supervisors.supervise(name if isinstance(name, SupervisorSpec) else SupervisorSpec(
            name=name, strategy=strategy, children=tuple(children), max_restarts=max_restarts, period_ns=period_ns,
            backoff_ns=backoff_ns, backoff_max_ns=backoff_max_ns, parent=parent,
        ))  # fmt: skip

    def unsupervise(self, name: str, /) -> None:
        """Takes a supervisor away; its children go on under their own policies.  ENOENT; EBUSY while it is at work."""
        self.supervisors.remove(name)

    def module(self, name: str, /) -> Module:
        """The loaded instance ``name``."""
        return self._handle(self._agent(name))

    def _agent(self, name: str) -> KernelAgent:
        agent = self.agents.get(canonical(name))
        if agent is None:
            raise NoSuchModule(f"{name!r} is not loaded")
        return agent

    def lsmod(self) -> list[ModuleRow]:
        """Loaded instances, the newest first."""
        return loaded_rows(self.agents.values())

    def available(self) -> list[ModuleRow]:
        """Modules that could be loaded."""
        return available_rows(self.catalog)

    def modinfo(self, name: str, /) -> ModuleInfo:
        """What a module says of itself, loaded or not."""
        return module_info(self.catalog.get(name))

    def depmod(self) -> Dependencies:
        """Dependencies and aliases of every module that can be found."""
        return depmod(self.catalog)

    def _handle(self, agent: KernelAgent) -> Module:
        return Module(agent, self.dispatcher)

    # --- time ---

    @property
    def now_ns(self) -> int:
        """Virtual (or real) time since boot."""
        machine = self.machine
        if machine.clock == "real":
            machine.refresh()
        return machine.now_ns

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.machine.streams.seed

    async def run(self) -> None:
        """Runs until nothing is left to do: no event, no runnable instance, no open request."""
        await self.dispatcher.wait(self.dispatcher.goal("everything to be done", until_idle=True))

    async def run_until_ns(self, until_ns: int) -> None:
        """Runs until virtual time is ``until_ns``, everything due by then included."""
        until_ns = nanoseconds("until_ns", until_ns)
        await self.dispatcher.wait(self.dispatcher.goal(f"{until_ns} ns", until_ns=until_ns))

    async def sleep_ns(self, duration_ns: int) -> None:
        """Sleeps in the kernel's time."""
        if nanoseconds("duration_ns", duration_ns) < 0:
            raise UsageError(f"duration_ns={duration_ns}: expected at least 0")
        await self.run_until_ns(self.now_ns + duration_ns)

    def call_at_ns(self, due_ns: int, callback: Callable[[Any], object], argument: Any = None) -> None:
        """Schedules a plain callback, for workloads and faults; a time in the past means now."""
        if type(due_ns) is not int or due_ns > limits.I64_MAX:
            due_ns = nanoseconds("due_ns", due_ns)
        machine = self.machine
        if due_ns < machine.now_ns:
            due_ns = machine.now_ns
        machine.call_at(due_ns, callback, argument)

    def event_hash(self) -> str:
        """Digest of everything that happened so far; equal seeds give equal hashes."""
        return self.machine.hash.hexdigest()

    # --- devices, memory ---

    def open_port(self, device_name: str, on_completions: OnCompletions, client: str = "") -> DevicePort:
        """A port on a device, through its gate: requests of it get the device's number.  ENODEV if there is none.

        With a ``client`` name it counts as a user of the driver until it is closed.
        """
        return DevicePort(self.devices.get(device_name), on_completions, client)

    def dma_pool(self, name: str, size_bytes: int) -> DmaPool:
        """Zeroed arena memory for a client in the kernel: what drivers read from and write to in place.

        Raises BudgetError (ENOMEM) if less is left to grant.
        """
        return DmaPool(self.machine, name, size_bytes)

    # --- tree, log, char devices ---

    @property
    def sysfs(self) -> Tree:
        """The tree: /sys, /proc/sys."""
        return self.machine.tree

    @property
    def sysctl(self) -> SysctlTable:
        """Typed settings under /proc/sys."""
        return self.machine.sysctl

    @property
    def actions(self) -> Actions:
        """Sysctl writes that agents recommend: subsystems offer sysctls here, with the KPI that judges them."""
        return self._actions

    @property
    def builds(self) -> Builds:
        """Builds of running modules that agents may recommend: the administrator offers them here."""
        return self._builds

    @property
    def bpf(self) -> Bpf:
        """eBPF programs: loaded, attached, pinned."""
        return self._bpf

    @property
    def policies(self) -> Injections:
        """Decision sites that take programs: subsystems offer them here."""
        return self._policies

    @property
    def queues(self) -> Queues:
        """Devices' queues, as attach points of programs."""
        return self._queues

    @property
    def kmsg(self) -> KmsgRing:
        """The kernel log."""
        return self.machine.kmsg

    async def open(self, path: str, client: str = "user") -> File | KmsgFile | MlLibFile:
        """Opens ``/dev/NAME`` of an extension, ``/dev/kmsg`` or ``/dev/ml_lib``; an async context manager."""
        name = path.removeprefix("/dev/")
        if name == "kmsg":
            return KmsgFile(self.machine, self.dispatcher, client)
        if name == "ml_lib":
            return MlLibFile(self.machine, self.models, self.dispatcher, client)
        file = self.chardevs.open(path, lambda agent: CallPort(self.dispatcher, agent, client), self._poll)
        await file.opened()
        return file

    def mount(self, folder: str | Path, **options: Any) -> AbstractAsyncContextManager[Any]:
        """``async with kernel.mount(folder):`` shows the tree, and ``/dev``, as files there; other processes use them.

        The options, errors and what is yielded are those of :class:`uxk.bridges.fuse.mount.Mount`.  Needs pyfuse3.
        """
        # By name, as modules are found: the kernel itself knows no way out of it.
        served: AbstractAsyncContextManager[Any] = import_module("uxk.bridges.fuse").mount(self, folder, **options)
        return served

    async def _poll(self, device: Chardev, mask: int) -> int:
        while not device.mask & mask:
            if self.chardevs.devices.get(device.name) is not device:
                return 0
            goal = self.dispatcher.goal(f"/dev/{device.name} to become ready")
            cancel = device.watch(goal.reach)
            try:
                await self.dispatcher.wait(goal)
            finally:
                cancel()
        return device.mask & mask


def _with_options(params: dict[str, object], placement: str | None, cpu_ppm: int | str | None) -> dict[str, object]:
    """Parameters as the loader takes them, with what is no parameter of the module's among them."""
    given = {"placement": placement, "cpu_ppm": cpu_ppm}
    return {**params, **{name: value for name, value in given.items() if value is not None}}
