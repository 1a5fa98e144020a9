"""One trial: a scenario with a seed, a fault plan and a schedule; then the faults stop, and everything must be well."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import msgspec
import trio

from uxk.core.lifecycle import ModuleState
from uxk.core.manifest import canonical
from uxk.errors import ModuleError, UsageError
from uxk.faults.model import Fault
from uxk.kernel.agent import KernelAgent
from uxk.kernel.devices import Device
from uxk.limits import I64_MAX
from uxk.scenario.model import ClosedLoop, Scenario
from uxk.scenario.read import with_options
from uxk.scenario.results import Result
from uxk.scenario.run import Runner
from uxk.scenario.workload import Generator
from uxk.testing.exploring.plans import Target
from uxk.testing.invariants import EXPLORED, HEARTBEATS_MAX

PROBE_DEPTH: Final = 4
PROBES: Final = 16
"""Requests to each device when all should be well again, and as many to read back what they wrote."""
PATIENCE: Final = 50
"""A run is given so many times the virtual time of one without faults, and what its deadlines need."""


class Trial(NamedTuple):
    """What decides a run: with the scenario and the code, all of it."""

    seed: int
    faults: tuple[Fault, ...] = ()
    schedule: Literal["fifo", "random"] = "random"
    options: Mapping[str, str] = MappingProxyType({})
    """Values of the scenario that are replaced, as with ``uxk run -o``."""


class Outcome(NamedTuple):
    """What came of a trial."""

    broken: dict[str, str]
    """Invariants that do not hold, and what was seen; ``no-exception`` if the kernel raised one."""
    event_hash: str
    virtual_ns: int
    struck: int
    """How often faults struck, altogether."""
    targets: tuple[Target, ...]
    trace: str = ""
    """Of an exception, its traceback."""

    @property
    def good(self) -> bool:
        """Whether all invariants held."""
        return not self.broken


def run_trial(scenario: Scenario, trial: Trial, *, normal_ns: int = 0) -> Outcome:
    """Runs a trial in a Trio loop of its own.

    ``normal_ns`` is the virtual time of a run without faults; 0 sets no limit to the run.  Raises UsageError and
    ModuleError for what is wrong with the scenario itself.
    """
    prepared = prepare(scenario, trial)
    runner = _TrialRunner(prepared, normal_ns)
    try:
        result: Result | None = trio.run(runner.execute)
        broken, trace = {v.what: v.seen for v in result.invariants if not v.good} if result else {}, ""
    except (UsageError, ModuleError):
        raise
    except BaseException as exc:
        if isinstance(exc, KeyboardInterrupt):
            raise
        error = _only(exc)
        if isinstance(error, UsageError | ModuleError):
            raise error from None
        result, broken = None, {"no-exception": f"{type(error).__name__}: {error}"}
        trace = "".join(traceback.format_exception(error))
    machine = runner.kernel.machine
    return Outcome(
        broken, machine.hash.hexdigest() if result is None else result.event_hash, runner.main_ns, runner.struck(),
        runner.targets(), trace,
    )  # fmt: skip


def prepare(scenario: Scenario, trial: Trial) -> Scenario:
    """The scenario as the trial runs it: with its faults instead of the scenario's own, and without checks."""
    changed = with_options(scenario, trial.options)
    own = tuple(name for name in scenario.invariants if name not in EXPLORED)
    return msgspec.structs.replace(
        changed, seed=trial.seed, faults=trial.faults, schedule=trial.schedule, checks=(), invariants=(*EXPLORED, *own)
    ).validate()


def _only(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


class _TrialRunner(Runner):
    """A run that goes on when the faults have stopped, and asks every device whether it is well."""

    def __init__(self, scenario: Scenario, normal_ns: int) -> None:
        super().__init__(scenario)
        self._normal_ns = normal_ns
        self.main_ns = 0
        """Virtual time of the scenario itself."""

    # --- the run ---

    def _schedule_tick(self) -> None:
        """The longer a run takes beyond what is normal, the more rarely it is looked at."""
        machine = self.kernel.machine
        late_ns = machine.now_ns - self._origin_ns - 4 * self._normal_ns if self._normal_ns else 0
        due_ns = machine.now_ns + max(self.scenario.invariant_interval_ns, late_ns // 64)
        machine.heap.call_at_daemon(due_ns, self._tick)

    async def _wait(self) -> None:
        if self._broken:
            return
        if isinstance(self.scenario.until, int):
            await super()._wait()
            for generator in self._watched.generators:
                generator.stop()
        await self._calm("the end of the run")
        self.main_ns = self.kernel.now_ns - self._origin_ns

    async def _calm(self, what: str) -> None:
        """Until nothing is left to do, or, in a scenario with a time limit, until requests are answered.

        That it takes far too long is a broken invariant.
        """
        if self._broken:
            return
        dispatcher, machine = self.kernel.dispatcher, self.kernel.machine
        endless = isinstance(self.scenario.until, int)
        limit_ns = self._deadlines_ns() if endless else self._limit_ns()
        until_ns = machine.now_ns + limit_ns if limit_ns else I64_MAX
        self._goal = goal = dispatcher.goal(what, until_idle=True, until_ns=until_ns)
        await dispatcher.wait(goal)
        open_requests = any(generator.outstanding for generator in self._watched.generators)
        unfinished = open_requests if endless else bool(machine.heap.lasting or machine.outstanding)
        if unfinished and not self._broken:
            self._broken["liveness"] = (
                f"{what}: {machine.outstanding} requests and {machine.heap.lasting} timers are left after "
                f"{limit_ns} ns; {self._stuck()}"
            )

    def _limit_ns(self) -> int:
        return PATIENCE * self._normal_ns + 10 * self._deadlines_ns() if self._normal_ns else 0

    def _stuck(self) -> str:
        """Who has not done what it was to do."""
        waiting = [f"{g.spec.name} has {len(g.outstanding)} open" for g in self._watched.generators if g.outstanding]
        states = [f"{a.name} is {a.state.name.lower()}" for a in self.agents.values()]
        return ", ".join((*waiting, *states))

    def _deadlines_ns(self) -> int:
        """In this time every deadline, back-off and start is over."""
        explore = self.scenario.explore
        if explore is not None and explore.settle_ns:
            return explore.settle_ns
        waits = []
        for manifest in (agent.manifest for agent in self.agents.values()):
            start_ns = manifest.ready_timeout_ns if manifest.ready == "explicit" else 0
            waits.append(manifest.watchdog.request_timeout_ns + manifest.restart.backoff_max_ns + start_ns)
        return 2 * max(waits, default=0)

    def _heartbeats_ns(self) -> int:
        """In this time the deaf and mute are found out: all that nobody waits for, since pings keep no run alive."""
        beats = [agent.manifest.watchdog.heartbeat_ns or 0 for agent in self.agents.values()]
        return HEARTBEATS_MAX * max(beats, default=0)

    async def _until_the_end(self) -> None:
        await super()._until_the_end()
        for verdict in self._drive_failed:
            self._broken.setdefault(verdict.what, verdict.seen)
        self._plan.stop()
        if self._plan.results() and not self._broken:
            dispatcher, due_ns = self.kernel.dispatcher, self.kernel.now_ns + self._heartbeats_ns()
            self._goal = dispatcher.goal("heartbeats", until_ns=due_ns)
            await dispatcher.wait(self._goal)
            await self._calm("the faults' aftermath")
        if not self._broken:
            await self._probe()

    # --- afterwards ---

    async def _probe(self) -> None:
        """The faults are over: every instance is live, and every device answers, in time and rightly."""
        self._watched.refresh()
        for agent in self.agents.values():
            if agent.state not in (ModuleState.LIVE, ModuleState.GONE):
                self._broken.setdefault("liveness", f"{agent.name}: {agent.state.name.lower()} long after the faults")
            elif agent.state is ModuleState.GONE and not self._may_be_gone(agent):
                deaths, struck = agent.account.faults, self.struck(agent.name)
                self._broken.setdefault("liveness", f"{agent.name}: gone after {deaths} deaths, struck {struck} times")
        timeouts = {agent.name: agent.account.timeouts for agent in self.agents.values()}
        probes = [self._prober(device) for device in self._devices()]
        self._watched.generators += probes
        for probe in probes:
            probe.start()
        await self._calm("the answers to probes")
        late = [agent for agent in self.agents.values() if agent.account.timeouts != timeouts[agent.name]]
        wrong = [text for probe in probes if (text := _unwell(probe))]
        wrong += [f"{agent.name}: requests timed out long after the faults" for agent in late]
        if wrong:
            self._broken.setdefault("liveness", wrong[0])

    def _devices(self) -> list[Device]:
        names = dict.fromkeys(workload.device for workload in self.scenario.workloads)
        found = [self.kernel.devices.devices.get(name) for name in names]
        return [device for device in found if device is not None and device.agent.state is ModuleState.LIVE]

    def _prober(self, device: Device) -> Generator:
        like = next(w for w in self.scenario.workloads if w.device == device.name)
        spec = ClosedLoop(
            device=device.name, name=f"probe-{device.name}", count=PROBES, depth=min(PROBE_DEPTH, like.blocks),
            size_bytes=like.size_bytes, span_bytes=like.span_bytes, verify=like.verify and like.blocks >= PROBE_DEPTH,
        )  # fmt: skip
        return Generator(self.kernel, spec, device)

    # --- looking back ---

    def struck(self, module: str = "") -> int:
        """How often faults struck, all of them or those of one module."""
        of = (striker for striker in self._plan.strikers if module in ("", canonical(striker.fault.module)))
        return sum(striker.fired for striker in of)

    def _may_be_gone(self, agent: KernelAgent) -> bool:
        """Whether somebody has removed it, or its policy lets it stay down and faults explain that it died so often."""
        if agent.name not in self._watched.given_up:
            return True
        policy, deaths = agent.manifest.restart, agent.account.faults
        return policy.mode == "temporary" or policy.max_restarts < deaths <= self.struck(agent.name)

    def targets(self) -> tuple[Target, ...]:
        """What faults may befall, as this run shows it."""
        agents = self.agents.values()
        open_devices = {a.name for a in agents if any(each.startswith("device:") for each in a.manifest.capabilities)}
        return tuple(Target.of(agent, lent=bool(open_devices - {agent.name})) for agent in agents)


def _unwell(probe: Generator) -> str:
    if probe.gave_up:
        return f"{probe.spec.device}: gone while it was asked"
    if probe.failed or probe.refused:
        return f"{probe.spec.device}: {probe.failed} of {probe.issued} requests failed long after the faults"
    if probe.outstanding:
        return f"{probe.spec.device}: {len(probe.outstanding)} of {probe.issued} requests are not answered"
    return ""


Run = Callable[[Trial], Outcome]
"""Runs one trial of a scenario."""
