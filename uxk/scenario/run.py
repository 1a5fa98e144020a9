"""Runs a scenario: boot, load, start, wait for the end, judge, unload, judge again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from uxk.bridges.datalog.recorder import DataLogRecorder, open_datalog
from uxk.bridges.datalog.settings import DataLogSettings
from uxk.bridges.logs.settings import LogTo
from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError, KernelBug, ModuleError, Stalled, UsageError
from uxk.faults.plan import FaultPlan
from uxk.kernel.agent import KernelAgent
from uxk.kernel.devices import Device
from uxk.kernel.dispatcher import Goal
from uxk.kernel.kernel import Kernel
from uxk.scenario import blk, invariants, subsystems
from uxk.scenario.find import open_scenario
from uxk.scenario.folder import RunFolder, read_costs
from uxk.scenario.invariants import INVARIANTS, Watched
from uxk.scenario.model import Load, Scenario
from uxk.scenario.read import with_options
from uxk.scenario.results import Result, Verdict, check_path, expects_failure, judge, kernel_figures, module_figures
from uxk.scenario.schedule import draw_order
from uxk.scenario.workload import Generator
from uxk.subsystems.blk.layer import BlockLayer
from uxk.uapi.info import Record

if TYPE_CHECKING:
    from uxk.bridges.logs.writer import LogFile


def run(
    scenario: Scenario | str | Path,
    *,
    seed: int | None = None,
    options: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    costs: str | Path | None = None,
    log: LogTo | None = None,
    trace: str | Path | None = None,
    datasets: str | Path | None = None,
    on_record: Callable[[Record], object] | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> Result:
    """Runs a scenario, given as such, as a file, or by the name of a bundled one, in a Trio loop of its own.

    ``seed`` and ``options`` (``{"workloads.load.depth": "64"}``) take the place of what the scenario says;
    ``costs`` is the manifest of an earlier run on the charged clock.  ``out`` is a folder that must not exist or
    be empty: it gets manifest.json, events.jsonl, kmsg.log and summary.json.  ``log`` is a file for kmsg, in place
    of the scenario's; ``trace`` one for Perfetto, which needs the extra ``trace``; ``datasets`` a directory for the
    datasets that models publish.  ``on_record`` gets every kmsg record, ``on_progress`` the virtual time now and then.
    Raises UsageError or ModuleError for what is wrong with the scenario or for a module that cannot be loaded; a failed
    check or a broken invariant is in the result; so is a workload that stopped before its ``count``, which makes the
    exit code 1 (:attr:`Result.exit_code`).
    """
    text = where = ""
    if not isinstance(scenario, Scenario):
        where = str(scenario)
        scenario, text = open_scenario(scenario)
    return run_one(
        scenario, seed=seed, options=options, out=out, costs=costs, text=text, where=where, log=log,
        trace=trace, datasets=datasets, on_record=on_record, on_progress=on_progress,
    )  # fmt: skip


def run_one(
    scenario: Scenario,
    *,
    seed: int | None = None,
    options: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    costs: str | Path | None = None,
    text: str = "",
    where: str = "",
    log: LogTo | None = None,
    trace: str | Path | None = None,
    datasets: str | Path | None = None,
    on_record: Callable[[Record], object] | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> Result:
    """As :func:`run`, for a scenario that was read already; ``text`` goes into the manifest, ``where`` into
    complaints about its modules."""
    scenario = with_options(scenario.validate(), options or {})
    if seed is not None:
        scenario = msgspec.structs.replace(scenario, seed=seed)
    if costs is not None:
        scenario = msgspec.structs.replace(scenario, costs_ns={**scenario.costs_ns, **read_costs(costs)})
    runner = Runner(scenario.validate(), on_record, on_progress, where=where)
    with ExitStack() as stack:
        folder = None if out is None else stack.enter_context(RunFolder.create(Path(out), scenario, text))
        if folder is not None:
            folder.attach(runner)
        log_file = _observe(stack, runner.kernel, log or scenario.log, trace)
        datalog = kept_at(scenario.datalog, datasets)
        kept = stack.enter_context(open_datalog(datalog, runner.kernel, scenario=scenario.name))
        result = _with_note(_with_note(trio.run(runner.execute), kept), log_file)
        if folder is not None:
            folder.finish(result)
    return result


def _observe(stack: ExitStack, kernel: Kernel, log: LogTo | None, trace: str | Path | None) -> LogFile | None:
    """Log file and trace, which are closed with the stack."""
    file: LogFile | None = None
    if log is not None:
        from uxk.bridges.logs.writer import open_run_log

        file = stack.enter_context(open_run_log(log, kernel))
    if trace is not None:
        from uxk.bridges.trace.recorder import open_trace

        stack.enter_context(open_trace(str(trace).replace("{seed}", str(kernel.seed)), kernel))
    return file


def kept_at(settings: DataLogSettings | None, folder: str | Path | None) -> DataLogSettings | None:
    """What a scenario says of its dataset log, with the directory that an option names."""
    if folder is None:
        return settings
    return msgspec.structs.replace(settings or DataLogSettings(), dir=str(folder))


def _with_note(result: Result, log: DataLogRecorder | LogFile | None) -> Result:
    """The result, with a line on what did not get into the dataset log, or the log file."""
    if log is None:
        return result
    log.close()
    return result._replace(notes=(*result.notes, log.complaint)) if log.complaint else result


def run_seeds(scenario: Scenario, seeds: range, **settings: Any) -> list[Result]:
    """The same scenario with several seeds; ``out`` becomes a folder of folders ``seed-N``.  See :func:`run_one`."""
    out = settings.pop("out", None)
    return [
        run_one(scenario, seed=seed, out=None if out is None else Path(out) / f"seed-{seed}", **settings)
        for seed in seeds
    ]


class Runner:
    """One run."""

    def __init__(
        self,
        scenario: Scenario,
        on_record: Callable[[Record], object] | None = None,
        on_progress: Callable[[int], object] | None = None,
        *,
        where: str = "",
    ) -> None:
        invariants.check_names(scenario.invariants)
        subsystems.check_names(scenario.subsystems)
        self.scenario = scenario
        self._where = where
        self.kernel = Kernel(
            seed=scenario.seed, clock=scenario.clock, cost=scenario.cost, costs_ns=scenario.costs_ns
        )  # fmt: skip
        self.on_record: list[Callable[[Record], object]] = [on_record] if on_record else []
        self.on_progress = on_progress
        self._watched = Watched(self.kernel)
        self._plan = self._watched.plan = FaultPlan(self.kernel, scenario.faults)
        if scenario.schedule == "random":
            draw_order(self.kernel.machine)
        self._subsystems: dict[str, subsystems.Running] = {}
        self._blk: BlockLayer | None = None
        self._drive: dict[str, Any] = {}
        self._drive_failed: list[Verdict] = []
        self._faults_failed: list[Verdict] = []
        self._broken: dict[str, str] = {}
        self._goal: Goal | None = None
        self._origin_ns = 0

    @property
    def agents(self) -> Mapping[str, KernelAgent]:
        """Every instance of the run by name, those that are gone included."""
        return self._watched.agents

    @property
    def subsystems(self) -> Mapping[str, subsystems.Running]:
        """What was attached, once the run has begun."""
        return self._subsystems

    async def execute(self) -> Result:
        """From boot to shutdown."""
        kernel = self.kernel
        self._follow_kmsg()
        began_ns = perf_counter_ns()
        values: dict[str, Any] = {}
        notes: list[str] = []
        try:
            async with kernel:
                await self._set_up()
                try:
                    await self._until_the_end()
                except Stalled as stalled:
                    self._broken.setdefault("progress", str(stalled))
                self._judge_during()
                values, notes = self._values(), self._watched.notes()
                self._faults_failed = [Verdict(f"fault {k}", False, v) for k, v in self._plan.failures().items()]
                for generator in self._watched.generators:
                    generator.stop()
                subsystems.halt_all(self._subsystems)
                virtual_ns, events, event_hash = kernel.now_ns, kernel.machine.hash.count, kernel.event_hash()
        except KernelBug as bug:
            self._broken.setdefault("accounts-balance", str(bug))
            virtual_ns, events, event_hash = kernel.now_ns, kernel.machine.hash.count, kernel.event_hash()
        host_ns = perf_counter_ns() - began_ns
        values = values or self._values()
        self._judge_after()
        scenario = self.scenario
        names = [*scenario.invariants, *(name for name in self._broken if name not in scenario.invariants)]
        return Result(
            scenario, kernel.seed, values,
            checks=[*(judge(values, check) for check in scenario.checks), *self._drive_failed, *self._faults_failed],
            invariants=[self._verdict(name) for name in names],
            event_hash=event_hash, events=events, virtual_ns=virtual_ns, host_ns=host_ns,
            costs_ns=dict(sorted(kernel.machine.costs_ns.items())),
            notes=tuple(notes), unfinished=self._unfinished(),
        )  # fmt: skip

    # --- beginning ---

    async def _set_up(self) -> None:
        kernel, scenario = self.kernel, self.scenario
        self._blk = blk.attach(kernel, scenario.blk)
        for number, load in enumerate(scenario.modules):
            with self._placed(f"modules[{number}]"):
                await self._load(load)
        for number, spec in enumerate(scenario.supervisors):
            with self._placed(f"supervisors[{number}]"):
                kernel.supervise(spec)
        if self._blk is not None and scenario.blk is not None:
            blk.set_options(self._blk, scenario.blk)
        self._subsystems = subsystems.attach_all(kernel, scenario.subsystems)
        self._watched.refresh()
        self._watched.generators = [Generator(kernel, spec, self._device(spec.device)) for spec in scenario.workloads]
        self._plan.start()
        values = self._values()
        for number, check in enumerate(scenario.checks):
            check_path(values, check, number)
        self._origin_ns = kernel.now_ns
        for generator in self._watched.generators:
            generator.start()
        self._schedule_tick()

    @contextmanager
    def _placed(self, place: str) -> Iterator[None]:
        """The same error, with its place."""
        try:
            yield
        except (UsageError, ModuleError) as exc:
            file = f"{self._where}: " if self._where else ""
            exc.args = (f"{file}{place}: {exc.args[0]}", *exc.args[1:])
            raise

    async def _load(self, load: Load) -> None:
        instance = load.instance or None
        options = load.params if load.placement is None else {**load.params, "placement": load.placement}
        if load.file:
            await self.kernel.insmod(load.file, instance=instance, **options)
        else:
            await self.kernel.modprobe(load.name, instance=instance, **options)

    def _device(self, name: str) -> Device:
        devices = self.kernel.devices.devices
        if name not in devices:
            known = ", ".join(devices) or "none"
            raise ConfigError(f"workloads: no device {name!r}{did_you_mean(name, devices)}; there are: {known}")
        return devices[name]

    def _follow_kmsg(self) -> None:
        reader = self.kernel.kmsg.reader()
        self.on_record.append(self._watched.on_record)

        def read() -> None:
            for record in reader:
                for callback in self.on_record:
                    callback(record)

        self.kernel.kmsg.subscribe(read)

    # --- the end ---

    async def _until_the_end(self) -> None:
        drive, until = self.scenario.drive, self.scenario.until
        if drive is None:
            await self._wait()
        elif until == "idle":
            await self._drive_along()
            await self._wait()
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drive_along)
                await self._wait()
                nursery.cancel_scope.cancel()

    async def _wait(self) -> None:
        if self._broken:
            return
        until, dispatcher = self.scenario.until, self.kernel.dispatcher
        if isinstance(until, int):
            goal = dispatcher.goal(f"{until} ns", until_ns=self._origin_ns + until)
        else:
            goal = dispatcher.goal("everything to be done", until_idle=True)
        self._goal = goal
        await dispatcher.wait(goal)

    async def _drive_along(self) -> None:
        """The scenario's own coroutine; an exception of its is a failed check."""
        assert self.scenario.drive is not None
        try:
            result = await self.scenario.drive(self.kernel)
        except Stalled as stalled:
            self._broken.setdefault("progress", str(stalled))
        except Exception as exc:
            self._drive_failed.append(Verdict("drive", False, f"{type(exc).__name__}: {exc}"))
        else:
            self._drive = dict(result) if isinstance(result, Mapping) else {}

    # --- judging ---

    def _schedule_tick(self) -> None:
        due_ns = self.kernel.machine.now_ns + self.scenario.invariant_interval_ns
        self.kernel.machine.heap.call_at_daemon(due_ns, self._tick)

    def _tick(self, _: object) -> None:
        """Looks at the run every now and then in virtual time; changes nothing in it."""
        self._watched.notice_stall()
        self._judge_during()
        if self.on_progress is not None:
            self.on_progress(self.kernel.machine.now_ns - self._origin_ns)
        if not self._broken:
            self._schedule_tick()
        elif self._goal is not None:
            self._goal.reach()

    def _judge_during(self) -> None:
        self._watched.refresh()
        for name in self.scenario.invariants:
            wrong = INVARIANTS[name].during(self._watched)
            if wrong:
                self._broken.setdefault(name, f"{wrong} (seen at {self.kernel.machine.now_ns} ns)")

    def _judge_after(self) -> None:
        for name in self.scenario.invariants:
            wrong = INVARIANTS[name].after(self._watched)
            if wrong:
                self._broken.setdefault(name, f"{wrong} (seen after shutdown)")

    def _verdict(self, name: str) -> Verdict:
        if name in self._broken:
            return Verdict(name, False, self._broken[name])
        unchecked = invariants.not_checked(name, self._watched)
        return Verdict(name, True, unchecked, checked=not unchecked)

    def _unfinished(self) -> tuple[str, ...]:
        gave_up = (g.spec for g in self._watched.generators if g.gave_up and g.spec.count)
        return tuple(spec.name for spec in gave_up if not expects_failure(self.scenario.checks, spec.name))

    def _values(self) -> dict[str, Any]:
        self._watched.refresh()
        return {
            "modules": {name: module_figures(agent) for name, agent in self._watched.agents.items()},
            "workloads": {g.spec.name: g.results() for g in self._watched.generators},
            "faults": self._plan.results(),
            **({} if self._blk is None else {"blk": dict(self._blk.results())}),
            **({"supervisors": self.kernel.supervisors.figures()} if self.scenario.supervisors else {}),
            "subsystems": {name: dict(running.results()) for name, running in self._subsystems.items()},
            "drive": self._drive,
            "kernel": kernel_figures(self.kernel),
        }
