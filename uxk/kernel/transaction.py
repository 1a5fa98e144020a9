"""Hot upgrade and hot restart: another build of a running module takes over its device, its clients, and its state.

A transaction.  Requests are held, what is in flight is answered, the old instance writes down its state
(:meth:`uxk.module.Extension.checkpoint`) and rests; the new one is set up beside it, and given that state.  If it
becomes ready, the old one goes, and the new one serves on probation; if not, the old one goes on, its memory as it was.
One that dies on probation, lets requests time out, or makes the KPI worse, is taken down again, and the old build is
started from the same state.  Requests wait all the while; none is lost, none is answered twice.

A module that cannot be there twice (``Manifest.exclusive``) ends before its new build begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from uxk.actor.actor import Saved, State
from uxk.core import lifecycle
from uxk.core.budget import memory_bytes
from uxk.core.events import EventId
from uxk.core.params import parse_params
from uxk.errors import UxkError
from uxk.kernel import views
from uxk.kernel.agent import KernelAgent
from uxk.kernel.beside import drop_new, let_go, put_back, set_aside
from uxk.kernel.builds import Build, Trial, carried, held_fate, is_exclusive, room_for_both
from uxk.kernel.machine import Level
from uxk.kernel.seconds import to_seconds
from uxk.limits import PPM

if TYPE_CHECKING:
    from uxk.kernel.upgrade import Upgrades

_POLL_NS: Final = 100_000
"""How often the end of what an instance has submitted itself is looked for."""
_WHY_CHARS: Final = 200
_ENDING_NS: Final = 2_000_000_000
"""Host time that a cancelled task, or a process, may take to end."""


class Phase(Enum):
    """Where an upgrade is."""

    OBSERVE = "observing"
    """The KPI of the old build is measured."""
    QUIESCE = "quiescing"
    """Requests are held; those in flight are waited for."""
    SAVE = "saving"
    """The state is being written down."""
    SWITCH = "switching"
    """The new instance is on its way to readiness: beside the old one, or in its place."""
    PROBATION = "on probation"
    ROLLBACK = "rolling back"
    """The old build is on its way to readiness."""
    OVER = "over"


class Upgrade:
    """One transaction.  Everything happens in callbacks of the kernel's, in its time."""

    def __init__(
        self, upgrades: Upgrades, agent: KernelAgent, build: Build, trial: Trial, on_end: Callable[[str], object],
        both_bytes: int,
    ) -> None:  # fmt: skip
        self._upgrades = upgrades
        self._machine = upgrades.machine
        self._agent = agent
        self._old = Build(agent.extension_class, agent.params, agent.deps)
        self._new = build
        self._trial = trial
        self._on_end = on_end
        self.phase = Phase.OBSERVE
        self._timers: list[EventId] = []
        self._state: State | None = None
        self._later_state: State | None = None
        self._returning = ""
        """Why the new build is being withdrawn, once that is decided."""
        self._kpi_before: int | None = None
        self._timeouts = 0
        self._held_ns = 0
        self._beside = not is_exclusive(agent, build.cls)
        """Whether the new instance is started beside the old one."""
        self._granted_bytes = agent.memory_bytes
        self._both_bytes = both_bytes
        """Memory that both builds may hold together."""
        self.given: Mapping[str, object] = {}
        """Parameters that were given for the new build."""

    @property
    def what(self) -> str:
        """``restart of 1.0``, ``upgrade 1.0 -> 2.0``."""
        old, new = self._old.version, self._new.version
        return f"restart of {new}" if self._new.cls is self._old.cls else f"upgrade {old} -> {new}"

    # --- the way there ---

    def begin(self) -> None:
        """Takes the instance in hand."""
        self._agent.upgrade = self
        self._book(self._both_bytes)
        self._say("info", "begins")
        if self._trial.kpi is None:
            self._quiesce()
        else:
            self._trial.kpi()
            self._later(self._trial.probation_ns, self._observed)

    def _observed(self) -> None:
        assert self._trial.kpi is not None
        self._kpi_before = self._trial.kpi()
        self._quiesce()

    def _quiesce(self) -> None:
        agent = self._agent
        self._enter(Phase.QUIESCE)
        self._held_ns = self._machine.now_ns
        agent.requests.hold(self._drained)
        agent.event("quiesce")
        self._later(self._trial.quiesce_ns, self._not_quiet)
        if not agent.requests.inflight:
            self._later(0, self._quiet)

    def _drained(self) -> None:
        self._later(0, self._quiet)  # what the instance says besides is heard first

    def _quiet(self) -> None:
        """Nothing is in flight any more; what it has under way itself may take a while."""
        if self._upgrades.busy(self._agent):
            self._later(_POLL_NS, self._quiet)
        else:
            self._save()

    def _not_quiet(self) -> None:
        agent, limit_ns = self._agent, self._trial.quiesce_ns
        count = len(agent.requests.inflight)
        if not count:
            cut = self._upgrades.busy(agent)
            self._say("notice", f"{cut} requests of its own, under way for {limit_ns} ns, are cut off")
            self._save()
        elif self._returning:
            self._withdraw(None)
        else:
            self._refuse(f"{count} requests are in flight after {limit_ns} ns")

    def _save(self) -> None:
        agent = self._agent
        self._enter(Phase.SAVE)
        host, incarnation = agent.host, agent.incarnation
        assert host is not None
        self._later(self._trial.quiesce_ns, self._not_saved)
        host.checkpoint(partial(self._saved, incarnation))
        if host is agent.host and host.crash is not None:  # it did not survive the question
            agent.on_crash(agent, host.crash)

    def _not_saved(self) -> None:
        if self._returning:
            self._withdraw(None)
        else:
            self._refuse(f"no checkpoint within {self._trial.quiesce_ns} ns")

    def _saved(self, incarnation: int, saved: Saved) -> None:
        if self.phase is not Phase.SAVE or incarnation != self._agent.incarnation:
            return
        if self._returning:
            if saved.problem:
                self._say("warning", f"{saved.problem}: the state from before is taken")
            self._take_leave(partial(self._withdraw, saved.state))
        elif saved.problem:
            self._refuse(saved.problem)
        else:
            self._state = saved.state
            if problem := self._follow_params():
                self._refuse(problem)
            elif self._beside:
                self._start_beside()
            else:
                self._take_leave(self._switch)

    def _follow_params(self) -> str:
        """Parameters that somebody has set since the beginning go over, too; what is wrong with that, or ""."""
        agent, new = self._agent, self._new
        if agent.params == self._old.params:
            return ""
        self._old = self._old._replace(params=agent.params)
        manifest = new.cls.manifest
        try:
            wanted = {**carried(agent.params, manifest.params), **self.given}
            values = parse_params(manifest.name, manifest.params, wanted)
            self._new = new._replace(params=values)
            self._book(room_for_both(agent, self._new, beside=self._beside, booked_bytes=self._granted_bytes))
        except UxkError as exc:
            return str(exc)
        return ""

    def _start_beside(self) -> None:
        """The old instance rests, the new one comes."""
        self._enter(Phase.SWITCH)
        self._tell_state()
        set_aside(self._upgrades.incarnations, self._agent)
        self._adopt(self._new)
        self._agent.handed = self._state
        self._later(0, self._start)

    def _take_leave(self, then: Callable[[], None]) -> None:
        """Where last words take time to come, waits for them first: as long as that the process may do as it likes."""
        nursery, agent = self._upgrades.incarnations.nursery, self._agent
        self._enter(Phase.SWITCH)
        if agent.placement == "process" and self._machine.clock == "real" and nursery is not None:
            nursery.start_soon(self._farewell, then, name=f"uxk {agent.name} upgrade")
        else:
            then()

    async def _farewell(self, then: Callable[[], None]) -> None:
        host = self._agent.host
        assert host is not None
        await host.farewell("upgrade")
        if self.phase is Phase.SWITCH and host is self._agent.host:
            self._later(0, then)

    def _switch(self) -> None:
        """The old instance goes, the new one comes."""
        self._tell_state()
        ended = self._end("upgrade")
        self._adopt(self._new)
        self._agent.handed = self._state
        self._start_after(ended)

    def _tell_state(self) -> None:
        size = "no state" if self._state is None else f"{len(self._state.data)} bytes of state"
        self._say("info", f"{size}, {len(self._agent.requests.backlog)} requests wait")

    def _live(self) -> None:
        agent = self._agent
        agent.on_live = _nothing
        if agent.aside is not None:
            died = let_go(self._upgrades.incarnations, agent)
            if died:
                self._say("warning", f"{self._old.version} had died meanwhile: {died}")
            self._book(max(memory_bytes(self._old.cls.manifest, self._old.params), agent.memory_bytes))
        if self.phase is Phase.ROLLBACK:
            self._say("warning", f"rolled back: {self._returning}; {self._old.version} is live again")
            self._over(f"rolled back: {self._returning}")
            return
        self._enter(Phase.PROBATION)
        self._say("notice", f"live, requests were held for {self._machine.now_ns - self._held_ns} ns")
        self._timeouts = agent.account.timeouts
        if self._trial.kpi is not None:
            self._trial.kpi()
        self._later(self._trial.probation_ns, self._judge)

    def _judge(self) -> None:
        """The end of probation."""
        self._returning = self._wrong()
        if self._returning:
            self._say("notice", f"to be rolled back: {self._returning}")
            self._quiesce()
            return
        self._say("info", f"confirmed after {self._trial.probation_ns} ns")
        if self._new.cls is not self._old.cls:
            self._upgrades.finder.confirm(self._new.cls)
        self._over("")

    def _wrong(self) -> str:
        late = self._agent.account.timeouts - self._timeouts
        if late:
            return f"{late} requests timed out on probation"
        before, kpi = self._kpi_before, self._trial.kpi
        after = None if kpi is None else kpi()
        if before is not None and after is not None and after * PPM > before * (PPM + self._trial.worse_ppm):
            return f"KPI {before} -> {after}, more than {self._trial.worse_ppm} ppm worse"
        return ""

    # --- the way back ---

    def died(self, why: str) -> bool:
        """The instance has died, and was reclaimed; whether that is taken care of here."""
        why = why if len(why) <= _WHY_CHARS else why[:_WHY_CHARS] + "..."
        if self._agent.aside is not None:
            self._resume(f"{self._agent.manifest.version}: {why}")
            return True
        if self.phase is Phase.ROLLBACK:
            if self._state is self._later_state:
                self._over(f"not rolled back: {self._old.version}: {why}, after {self._returning}")
                return False
            self._say("warning", f"{why}: the state from before is taken")
            self._back(self._state)
            return True
        if self.phase in (Phase.SWITCH, Phase.PROBATION) or self._returning:
            self._returning = self._returning or f"{self._agent.manifest.version}: {why}"
            self._back(self._state)
            return True
        self._over(f"{self._old.version}: {why}")
        return False

    def interrupt(self, why: str) -> None:
        """Somebody takes the instance down: what comes after is the old build."""
        agent = self._agent
        agent.requests.on_drained = None
        if agent.aside is not None:
            drop_new(self._upgrades.incarnations, agent)
            self._adopt(self._old)
            put_back(self._upgrades.incarnations, agent)
            agent.handed = self._state
        elif self._returning or self.phase in (Phase.SWITCH, Phase.PROBATION):
            self._adopt(self._old)
            agent.handed = self._later_state if self.phase is Phase.ROLLBACK else self._state
        self._over(f"interrupted: {why}")

    def _resume(self, why: str) -> None:
        """The new instance has died on its way to readiness: the old one goes on as if nothing had been."""
        agent = self._agent
        self._adopt(self._old)
        put_back(self._upgrades.incarnations, agent)
        agent.handed = None
        agent.requests.open()
        agent.event("resume")
        held_ns = self._machine.now_ns - self._held_ns
        self._say("warning", f"rolled back: {why}; {self._old.version} goes on, requests were held for {held_ns} ns")
        self._over(f"rolled back: {why}")

    def _refuse(self, why: str) -> None:
        """The old instance goes on as if nothing had been."""
        self._say("warning", f"given up: {why}")
        agent = self._agent
        agent.requests.open()
        agent.event("resume")
        self._over(why)

    def _withdraw(self, state: State | None) -> None:
        """Takes the new instance down, with its own state if it has given any."""
        agent = self._agent
        ended = self._end("upgrade withdrawn")
        agent.requests.on_death(held_fate(agent.manifest))
        self._adopt(self._old)
        self._enter(Phase.ROLLBACK)
        self._later_state = agent.handed = self._state if state is None else state
        self._start_after(ended)

    def _back(self, state: State | None) -> None:
        """The new instance is dead: the old build goes on from the state of before."""
        agent = self._agent
        agent.state = lifecycle.advance(agent.state, lifecycle.Event.DIE)
        agent.requests.on_death(held_fate(agent.manifest))
        self._adopt(self._old)
        self._enter(Phase.ROLLBACK)
        self._later_state = agent.handed = state
        # On the real clock the dead one's process or task may still have what it had outside the kernel.
        self._later(agent.manifest.restart.backoff_ns if self._machine.clock == "real" else 0, self._start)

    # --- its parts ---

    def _end(self, why: str) -> trio.Event | None:
        """Ends the present incarnation; returns what is set when nothing of it runs any more, if that is waited for."""
        agent, host = self._agent, self._agent.host
        assert host is not None
        self._upgrades.incarnations.supervisor.end(agent, why)
        agent.queues.staged.clear()
        agent.state = lifecycle.advance(agent.state, lifecycle.Event.DIE)
        # A clock that the kernel holds waits for no process to end: that would differ from run to run.
        return host.done if agent.placement == "task" or self._machine.clock == "real" else None

    def _start_after(self, ended: trio.Event | None) -> None:
        """Starts the next incarnation when the last one has let go of what it had outside the kernel."""
        nursery = self._upgrades.incarnations.nursery
        if ended is None or ended.is_set() or nursery is None:
            self._later(0, self._start)
        else:
            nursery.start_soon(self._await_end, ended, self.phase, name=f"uxk {self._agent.name} upgrade")
            self._machine.settle_needed = True

    async def _await_end(self, ended: trio.Event, phase: Phase) -> None:
        with trio.move_on_after(to_seconds(_ENDING_NS)) as scope:
            await ended.wait()
        if self.phase is phase:
            if scope.cancelled_caught:
                self._say("warning", f"what the instance before ran goes on, {_ENDING_NS} ns after it was cancelled")
            self._later(0, self._start)

    def _start(self) -> None:
        agent = self._agent
        agent.on_live = self._live
        agent.state = lifecycle.advance(agent.state, lifecycle.Event.RETRY)
        self._upgrades.incarnations.start(agent)

    def _adopt(self, build: Build) -> None:
        agent, before = self._agent, self._agent.manifest.params
        if build.cls is agent.extension_class and build.params == agent.params:
            return
        agent.become(build.cls, build.params)
        self._upgrades.loader.depend(agent, build.deps)
        if before is not build.cls.manifest.params:
            views.replace_parameters(self._machine, agent)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        timers, self._timers = self._timers, []
        for timer in timers:
            self._machine.heap.discard(timer)

    def _later(self, delay_ns: int, callback: Callable[[], None]) -> None:
        """Calls back unless the phase is over by then."""
        machine = self._machine
        self._timers.append(machine.call_at(machine.now_ns + delay_ns, lambda _: callback()))

    def _over(self, problem: str) -> None:
        agent = self._agent
        self._enter(Phase.OVER)
        agent.upgrade = None
        agent.on_live = _nothing
        self._book(agent.memory_bytes)
        if problem and self._new.cls is not self._old.cls:
            self._upgrades.catalog.add(self._old.cls)  # the newest class of that name is not the one to be found
            self._upgrades.finder.forget(self._new.cls)
        self._on_end(problem)

    def _book(self, granted_bytes: int) -> None:
        """Arena memory that is the instance's to use, all builds of it together."""
        self._machine.granted_bytes += granted_bytes - self._granted_bytes
        self._granted_bytes = granted_bytes

    def _say(self, level: Level, text: str) -> None:
        agent, line = self._agent, f"{self.what}: {text}"
        self._machine.log(level, agent.name, line, phase=self.phase.value)
        self._machine.note("upgrade", agent.id, line.encode())


def _nothing() -> None:
    """Nobody waits for it to be live."""
