"""One Trio task that runs the kernel: run queue, event heap, time.

Virtual time moves only while somebody waits for it through a :class:`Goal`; it advances when no instance is
runnable and no Trio task that the kernel woke is still at work.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sized
from typing import Final

import trio
import trio.testing

from uxk import limits
from uxk.errors import Stalled, UsageError
from uxk.kernel.machine import Machine
from uxk.kernel.pin import trio_runnable
from uxk.kernel.seconds import cpu_ns, to_seconds

_FOREVER: Final = limits.I64_MAX
_SETTLE_NS: Final = 2_000_000_000
_SETTLE_TRIES: Final = 3
"""Host time for tasks to come to rest: several times, since one long computation may eat up one."""
_COAST_STEPS: Final = 2 * limits.DISPATCH_TURNS_PER_CHECKPOINT
"""Callbacks and turns run in one go."""


class Goal:
    """What somebody waits for: a point in time, an event, or that nothing is left to do."""

    __slots__ = ("_dispatcher", "error", "event", "reached", "until_idle", "until_ns", "what")

    def __init__(self, dispatcher: Dispatcher, what: str, until_ns: int, until_idle: bool) -> None:
        self._dispatcher = dispatcher
        self.what = what
        self.until_ns = until_ns
        self.until_idle = until_idle
        self.reached = False
        self.error: Exception | None = None
        self.event = trio.Event()

    def reach(self) -> None:
        """The goal is met: whoever waits goes on before time does."""
        self.reached = True
        self._dispatcher.interrupt()


class Dispatcher:
    """Runs instances and events.  :meth:`serve` is the task; :meth:`wait` is how others make time move."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._goals: list[Goal] = []
        self._parked: trio.Event | None = None
        self._instant_ns = -1
        self._instant_steps = 0
        self.turns_per_instant_max = limits.TURNS_PER_INSTANT_MAX
        self._interrupted = False
        self._work = 0
        self._coasted = False
        self._closed = True
        self._park_due_ns = _FOREVER
        """Kernel time at which the parked dispatcher wakes by itself."""
        self._failure: BaseException | None = None
        """What a callback raised while a task had kicked the dispatcher: raised where it would have been."""
        self.on_kicked: Callable[[int], None] = _ignore
        """Told how much host time a kick took from the task that gave it."""
        self._trio_runnable: Sized = ()
        """Trio tasks that a callback woke: they act before time moves on."""
        machine.wake = self._wake

    def goal(self, what: str, *, until_ns: int = _FOREVER, until_idle: bool = False) -> Goal:
        """Something to :meth:`wait` for: a time, idleness, or whoever calls its :meth:`Goal.reach`."""
        return Goal(self, what, until_ns, until_idle)

    def interrupt(self) -> None:
        """Ends the present instant's work early: somebody's goal is met."""
        self._interrupted = True
        self._wake()

    def _wake(self) -> None:
        parked = self._parked
        if parked is not None:
            parked.set()

    async def wait(self, goal: Goal) -> None:
        """Drives the kernel until ``goal`` is reached.

        Raises :class:`Stalled` if it cannot be, and :class:`UsageError` (ESHUTDOWN) before boot and after shutdown.
        """
        if self._closed:
            raise self._down(goal)
        self._goals.append(goal)
        self._wake()
        try:
            await goal.event.wait()
        finally:
            if goal in self._goals:
                self._goals.remove(goal)
        if goal.error is not None:
            raise goal.error

    def open(self) -> None:
        """The kernel has booted: from now on one may wait."""
        self._closed = False

    def close(self) -> None:
        """The kernel shuts down: nobody's wait can end any more but with an error."""
        self._closed = True
        goals, self._goals = self._goals, []
        for goal in goals:
            if not goal.reached:
                goal.error = self._down(goal)
            goal.event.set()

    @staticmethod
    def _down(goal: Goal) -> UsageError:
        return UsageError(f"the kernel is not running; somebody waits for {goal.what}", errno=errno.ESHUTDOWN)

    async def serve(self) -> None:
        """The dispatcher's task; runs until cancelled."""
        machine = self._machine
        self._trio_runnable = trio_runnable()
        machine.settle_needed = True  # tasks that began together with this one have not had their say
        while True:
            if self._failure is not None:
                raise self._failure
            if machine.clock != "real" and not self._goals:
                await self._park(None)
                continue
            try:
                await self._run_instant()
            except Stalled as stalled:
                self._fail_goals(stalled)
                continue
            if await self._release_goals():
                continue
            await self._advance()

    def kick(self) -> bool:
        """On the real clock, does what the parked dispatcher would do when woken, at once and without a task switch.

        For a task of an extension that has staged something.  A bounded number of turns; what is left, and what is
        not for this place (timers, goals, an error of a callback of the kernel's), is left to the dispatcher.  False
        if it is not parked: then it is about to act anyway, or acting, so that nothing ever re-enters it.
        """
        machine = self._machine
        if not machine.parked or machine.clock != "real" or self._interrupted or self._failure is not None:
            return False
        machine.parked = False
        began_ns, settle_needed = cpu_ns(), machine.settle_needed
        try:
            machine.refresh()
            turns_until = machine.turns + limits.DISPATCH_TURNS_PER_CHECKPOINT
            while (machine.dirty or machine.runnable) and machine.turns < turns_until and not self._interrupted:
                self._collect()
                self._run_turns()
        except KeyboardInterrupt:
            raise
        except BaseException as exc:
            self._failure = exc
        finally:
            machine.parked = True
            machine.settle_needed = settle_needed
            if self._something_left():
                self._wake()
            self.on_kicked(cpu_ns() - began_ns)
        return True

    def _something_left(self) -> bool:
        """Whether the parked dispatcher must act, or park anew until an earlier time."""
        machine = self._machine
        if machine.runnable or machine.dirty or self._interrupted or self._failure is not None:
            return True
        next_ns = machine.heap.next_due_ns()
        if next_ns is not None and next_ns < self._park_due_ns:
            return True
        return any(goal.until_idle for goal in self._goals) if self._goals else False

    def _collect(self) -> None:
        """Takes what tasks of extensions have staged, in the order of their numbers if it is not drawn."""
        dirty = self._machine.dirty
        for instance in self._machine.order(sorted(dirty)):
            staged = dirty.pop(instance, None)
            if staged is not None:  # else it was ended by one before it
                staged.collect()

    # --- one instant ---

    async def _run_instant(self) -> None:
        """Runs everything that can run now, Trio tasks of extensions included."""
        machine = self._machine
        machine.refresh()
        if self._coasted:  # what else is due comes before the instances that it has woken
            self._coasted = False
            await self._fire_due()
        while True:
            await self._run_queue()
            if machine.settle_needed or machine.dirty or (self._trio_runnable and machine.clock != "real"):
                machine.settle_needed = False
                if machine.clock == "real":  # there, somebody may always be busy
                    await trio.lowlevel.checkpoint()
                else:
                    await self._settle()
                self._collect()
                if machine.runnable or machine.dirty:
                    continue
            if self._interrupted or not await self._fire_due():
                return

    async def _settle(self) -> None:
        """Waits until every Trio task waits for something: only then may time move.

        A task that spins on checkpoints would hold time for ever: after some seconds of host time it is told.
        """
        for _ in range(_SETTLE_TRIES):
            with trio.move_on_after(to_seconds(_SETTLE_NS)) as scope:
                await trio.testing.wait_all_tasks_blocked()
            if not scope.cancelled_caught:
                self._machine.settle_hosts(True)
                return
        raise Stalled("livelock: some Trio task is always runnable, so virtual time cannot move", errno=errno.ELOOP)

    async def _run_queue(self) -> None:
        """Runs turns until no instance is runnable or a goal is reached."""
        machine = self._machine
        while machine.runnable and not self._interrupted:
            self._run_turns()
            if machine.runnable:
                await self._breathe()
                machine.refresh()

    def _run_turns(self) -> None:
        """Runs turns, a bounded number of them."""
        machine = self._machine
        runnable = machine.runnable
        for _ in range(limits.DISPATCH_TURNS_PER_CHECKPOINT):
            if not runnable or self._interrupted:
                break
            machine.running = instance = runnable.popleft()
            instance.turn()
            machine.turns += 1
        machine.running = None
        if machine.stuck is not None:
            self._tell_stuck()

    def _tell_stuck(self) -> None:
        name, self._machine.stuck = self._machine.stuck, None
        self._machine.log(
            "warning", name or "?", "a turn held the processor too long: this run is not reproducible", stuck=1
        )

    async def _fire_due(self) -> bool:
        """Runs events due now, a bounded number of them; False if there was none."""
        machine = self._machine
        pop_due, now_ns = machine.heap.pop_due, machine.now_ns
        for fired in range(limits.DISPATCH_TURNS_PER_CHECKPOINT):
            due = pop_due(now_ns)
            if due is None:
                self._work += 1
                if self._work > limits.DISPATCH_TURNS_PER_CHECKPOINT:  # many instants of little work
                    await self._breathe()
                return fired > 0
            due[0](due[1])
        await self._breathe()
        return True

    async def _breathe(self) -> None:
        """Lets Trio's other tasks in, however busy the run is: cancellation and real I/O must get through.

        Also the place to notice that much is done and time does not move.
        """
        machine = self._machine
        self._work = 0
        if self._trio_runnable:
            machine.settle_needed = True
        await trio.lowlevel.checkpoint()
        steps = machine.turns + machine.heap.fired
        if machine.now_ns != self._instant_ns:
            self._instant_ns, self._instant_steps = machine.now_ns, steps
        elif steps - self._instant_steps > self.turns_per_instant_max:
            self._instant_steps = steps
            raise Stalled(
                f"livelock: more than {self.turns_per_instant_max} turns at {machine.now_ns} ns without time moving on",
                errno=errno.ELOOP,
            )

    # --- goals ---

    async def _release_goals(self) -> bool:
        """Wakes those whose goal is met, and lets them act; True if time must not move on yet."""
        machine = self._machine
        interrupted, self._interrupted = self._interrupted, False
        now_ns = machine.now_ns
        # Interrupted means that this instant's work is not done: then neither time nor idleness decides.
        quiet = not (interrupted or machine.runnable or machine.dirty)
        idle = quiet and machine.heap.lasting == 0 and not machine.outstanding
        next_ns = machine.heap.next_due_ns()
        met: list[Goal] = []
        for goal in self._goals:
            timed_out = quiet and goal.until_ns <= now_ns and (next_ns is None or next_ns > now_ns)
            if goal.reached or (goal.until_idle and idle) or timed_out:
                met.append(goal)
        if not met:
            return interrupted
        for goal in met:
            self._goals.remove(goal)
            goal.event.set()
        machine.settle_needed = machine.clock != "real"
        await trio.lowlevel.checkpoint()
        return True

    def _fail_goals(self, error: Exception) -> None:
        goals, self._goals = self._goals, []
        for goal in goals:
            goal.error = error
            goal.event.set()

    # --- time ---

    async def _advance(self) -> None:
        """Moves to the next instant: by assignment in virtual time, by waiting on the real clock."""
        machine = self._machine
        next_ns = machine.heap.next_due_ns()
        if machine.clock == "real":
            goal_ns = min((goal.until_ns for goal in self._goals), default=_FOREVER)
            due_ns = min(goal_ns, _FOREVER if next_ns is None else next_ns)
            await self._park(None if due_ns == _FOREVER else max(0, due_ns - machine.now_ns))
            return
        if not self._goals:
            return  # whoever waited was cancelled
        goal_ns = min(goal.until_ns for goal in self._goals)
        if next_ns is None or next_ns > goal_ns:
            if goal_ns == _FOREVER:
                waits = ", ".join(goal.what for goal in self._goals)
                self._fail_goals(Stalled(f"nothing is runnable or scheduled, but somebody waits for: {waits}"))
                return
            machine.now_ns = max(machine.now_ns, goal_ns)
            return
        self._coast(goal_ns)

    def _coast(self, until_ns: int) -> None:
        """Passes through instants at which only callbacks and instances have work, and no goal is met.

        Does what the loop of :meth:`serve` would, in the same order, without its awaits; stops, in the middle of an
        instant if need be, as soon as there is anything else to do.
        """
        machine, heap = self._machine, self._machine.heap
        pop_until, runnable, dirty, trio_tasks = heap.pop_until, machine.runnable, machine.dirty, self._trio_runnable
        for_idle = any(goal.until_idle for goal in self._goals)
        steps_before = heap.fired + machine.turns
        steps_until = steps_before + _COAST_STEPS
        while heap.fired + machine.turns < steps_until:
            event = pop_until(until_ns)
            if event is None:
                break
            self._coasted = True
            machine.now_ns = event[0]
            event[2](event[3])
            if runnable and heap.is_due(event[0]) and not self._fire_rest():
                break
            if self._interrupted or dirty or machine.settle_needed or trio_tasks:
                break
            if runnable:
                self._coasted = False
                self._run_turns()
                if runnable or self._interrupted or dirty or machine.settle_needed or trio_tasks:
                    break
            if for_idle and heap.lasting == 0 and not machine.outstanding:
                break
        self._work += heap.fired + machine.turns - steps_before

    def _fire_rest(self) -> bool:
        """Runs what else is due at this instant; False if that is more than should be done in one go."""
        pop_due, now_ns = self._machine.heap.pop_due, self._machine.now_ns
        for _ in range(limits.DISPATCH_TURNS_PER_CHECKPOINT):
            due = pop_due(now_ns)
            if due is None:
                return True
            due[0](due[1])
        return False

    async def _park(self, duration_ns: int | None) -> None:
        machine = self._machine
        if machine.runnable or machine.dirty:
            if machine.clock == "real" or self._goals:
                await trio.lowlevel.checkpoint()
                return
        if machine.clock != "real":  # nobody waits: tasks elsewhere come to rest all the same
            machine.settle_hosts(False)
        self._parked = trio.Event()
        self._park_due_ns = _FOREVER if duration_ns is None else machine.now_ns + duration_ns
        machine.parked = True
        try:
            if duration_ns is None:
                await self._parked.wait()
            else:
                with trio.move_on_after(to_seconds(duration_ns)):
                    await self._parked.wait()
        finally:
            machine.parked = False
            self._parked = None


def _ignore(_: int) -> None:
    """Nobody keeps count."""
