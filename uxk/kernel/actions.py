"""Actions beyond a hint: an agent recommends a sysctl write, the kernel makes it on trial (R29).

A subsystem offers a sysctl by naming the KPI that judges it.  An agent with the capability ``sysctl:NAME:submit``
may then have a value put in force: within the sysctl's own range, not too often, one at a time under one KPI, and
only for a while.  It goes back when the KPI gets worse, when its time is over without a confirmation, and when the
agent or its capability is gone; a write by anybody else wins, and ends it.  Every step is one kmsg line.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final

from uxk import limits
from uxk.core.action import Action, ActionConfig, End, Trial
from uxk.core.caps import Capability, covers
from uxk.core.events import EventId
from uxk.core.kobject import brief
from uxk.core.suggest import did_you_mean
from uxk.core.sysctl import ROOT, SysctlEntry, Value, canonical_name
from uxk.core.tree import Attribute, attribute_table
from uxk.errors import CapabilityError, UsageError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.machine import Level, Machine
from uxk.uapi import entries as e
from uxk.uapi.action import ActionChange, Step, encode
from uxk.uapi.ids import CapId
from uxk.uapi.rights import Rights

PATH: Final = "/sys/kernel/actions"
_LEVELS: Final[dict[Step, Level]] = {
    Step.APPLIED: "notice", Step.CONFIRMED: "notice", Step.REVERTED: "warning", Step.SUPERSEDED: "notice",
}  # fmt: skip


class KpiWatch:
    """The KPI of one or several sysctls, as their subsystem holds it; call :meth:`epoch` when it has a new value."""

    __slots__ = ("_actions", "_read", "trial")

    def __init__(self, actions: Actions, read: Callable[[], int | None], config: ActionConfig) -> None:
        self._actions = actions
        self._read = read
        self.trial = Trial(config)

    def epoch(self) -> None:
        """Reads the KPI, an integer where lower is better; None says that nothing was measured."""
        kpi = self._read()
        if kpi is not None:
            self._actions.finish(self.trial, self.trial.epoch(kpi))

    def close(self) -> None:
        """The subsystem goes: what is on trial is reverted, nothing more is taken."""
        self._actions.close(self)


class Open:
    """An action on trial, and whose it is."""

    __slots__ = ("agent", "before", "entry", "timer", "trial", "value")

    def __init__(
        self, agent: KernelAgent, trial: Trial, entry: SysctlEntry[Any], before: Value, timer: EventId
    ) -> None:
        self.agent = agent
        self.trial = trial
        self.entry = entry
        self.before = before
        self.value: Value = entry.value
        """What is on trial."""
        self.timer = timer


class Actions:
    """Serves RecommendSysctl and SettleAction; ``kernel.actions`` is the one of a kernel."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._watches: dict[str, KpiWatch] = {}
        self._open: dict[int, Open] = {}
        self._writing: Trial | None = None
        """Whose value is being written: what the subsystem then adjusts under the same KPI belongs to it."""
        self._last = 0
        self.counts = dict.fromkeys(Step, 0)
        """How often each step was taken."""
        self.refused = 0
        machine.sysctl.on_write = self._written
        machine.caps.on_delete["sysctl"] = self._revoked
        machine.tree.add(PATH, self, _ATTRIBUTES)

    # --- for subsystems ---

    def watch(
        self, sysctl: str, kpi: Callable[[], int | None] | KpiWatch, *, config: ActionConfig | None = None
    ) -> KpiWatch:
        """Offers a registered sysctl to agents, judged by ``kpi``; or puts it beside others under the same watch.

        ENOENT for an unknown sysctl, EACCES for one that is read-only, EEXIST, ENOSPC, EINVAL.
        """
        spec = self._machine.sysctl.entry(sysctl).spec
        if spec.read_only:
            raise UsageError(f"action on {spec.name}: it is read-only", errno=errno.EACCES)
        if spec.name in self._watches:
            raise UsageError(f"action on {spec.name}: it is watched already", errno=errno.EEXIST)
        if not isinstance(kpi, KpiWatch):
            kpi = KpiWatch(self, kpi, config or ActionConfig())
        elif config is not None:
            raise UsageError(f"action on {spec.name}: config={config!r}: it was settled with the first sysctl")
        kpi.trial.add(spec.name)
        self._watches[spec.name] = kpi
        return kpi

    def close(self, watch: KpiWatch) -> None:
        """See :meth:`KpiWatch.close`."""
        if watch.trial.pending is not None:
            self.finish(watch.trial, watch.trial.withdraw("its subsystem is going"))
        for name in watch.trial.names:
            self._watches.pop(name, None)

    @property
    def pending(self) -> list[str]:
        """What is on trial, a line each: number, sysctl, value now and before, agent."""
        return [
            f"{number} {each.entry.spec.name} {brief(each.entry.text)} was {brief(_text(each.before))} "
            f"by {each.agent.name}"
            for number, each in self._open.items()
        ]  # fmt: skip

    # --- for agents ---

    def services(self) -> dict[type, Callable[[KernelAgent, Any], tuple[int, bytes] | None]]:
        """For the dispatch table."""
        return {e.RecommendSysctl: self._recommend, e.SettleAction: self._settle}

    def _recommend(self, agent: KernelAgent, request: e.RecommendSysctl) -> tuple[int, bytes]:
        try:
            return self._apply(agent, request), b""
        except Exception:  # whoever serves the entry answers, and says why in the log
            self.refused += 1
            agent.account.reject("action_refused")
            raise

    def _apply(self, agent: KernelAgent, request: e.RecommendSysctl) -> int:
        machine = self._machine
        name = canonical_name(request.sysctl.removeprefix(f"{ROOT}/"))
        if not any(machine.caps.find(agent.id, "sysctl", name, right) for right in (Rights.SUBMIT, Rights.WRITE)):
            raise CapabilityError(f"action on {name}: {agent.name}'s manifest does not ask for sysctl:{name}:submit")
        watch = self._watches.get(name)
        if watch is None:
            hint = did_you_mean(name, self._watches)
            raise UsageError(f"action on {name}: no subsystem offers it{hint}", errno=errno.ENODEV)
        entry = machine.sysctl.entry(name)
        value, before = entry.spec.parse(request.value), entry.value
        if value == before:
            raise UsageError(f"action on {name}: it is {brief(entry.text)} already", errno=errno.EALREADY)
        watch.trial.check(name, machine.now_ns, request.lifetime_ns)
        self._write(watch.trial, entry, value, agent.name)
        self._last = number = self._last + 1
        action = watch.trial.begin(number, name, machine.now_ns, request.lifetime_ns)
        timer = machine.heap.call_at_daemon(action.until_ns, self._expire, number)
        opened = self._open[number] = Open(agent, watch.trial, entry, before, timer)
        why = brief(request.why) or "no reason given"
        until = f"until {action.until_ns} ns"
        self._tell(opened, action, Step.APPLIED, f"{_text(before)} -> {entry.text} {until}: {why}")
        return number

    def _settle(self, agent: KernelAgent, request: e.SettleAction) -> tuple[int, bytes]:
        opened = self._open.get(request.action)
        if opened is None or opened.agent is not agent:
            raise UsageError(f"action {request.action}: {agent.name} has none of it on trial", errno=errno.ENOENT)
        trial = opened.trial
        self.finish(trial, trial.confirm() if request.keep else trial.withdraw("withdrawn"))
        return 0, b""

    # --- what ends one ---

    def finish(self, trial: Trial, end: End | None) -> None:
        """Does what the end of an action asks for: the value from before, the log, the news."""
        if end is None:
            return
        action = end.action
        opened = self._open.pop(action.number)
        self._machine.heap.discard(opened.timer)
        why, step = end.why, end.step
        if step is Step.REVERTED and opened.entry.value != opened.value:
            step, why = Step.SUPERSEDED, "written meanwhile"  # in the midst of a write: theirs is not undone
        if step is Step.REVERTED:
            now = opened.entry.text
            why = f"{now} -> {_text(opened.before)}: {why}"
            try:
                self._write(trial, opened.entry, opened.before, "kernel")
            except Exception as exc:  # the subsystem's own code; nobody above could do better
                self._machine.log(
                    "err", "actions", f"{action.name}: the value from before was refused: {exc}", bug="action"
                )
                why = f"still {opened.entry.text}, the value from before was refused: {end.why}"
        elif step is Step.CONFIRMED:
            why = f"{opened.entry.text} stays: {why}"
        else:
            why = f"{opened.entry.text} stays, {why}"
        self._tell(opened, action, step, why)

    def _expire(self, number: int) -> None:
        opened = self._open.get(number)
        if opened is not None:
            self.finish(opened.trial, opened.trial.expire(self._machine.now_ns))

    def _written(self, entry: SysctlEntry[Any], before: Value) -> None:
        """Somebody has written a sysctl; if not an action, theirs counts."""
        watch = self._watches.get(entry.spec.name)
        if watch is not None and watch.trial is not self._writing:
            changed = entry.value != before
            self.finish(watch.trial, watch.trial.written(entry.spec.name, entry.writer, changed=changed))

    def _revoked(self, cap: Capability) -> None:
        """Without a capability, which goes with the instance at the latest, nobody has anything on trial."""
        for opened in [each for each in self._open.values() if each.agent.id == cap.holder]:
            name, agent = opened.entry.spec.name, opened.agent
            if covers(cap.target, name) and not self._allowed(agent, name, cap.id):
                why = f"{agent.name} is gone" if agent.host is None else f"{agent.name} may not any more"
                self.finish(opened.trial, opened.trial.withdraw(why))

    def _allowed(self, agent: KernelAgent, name: str, but: CapId) -> bool:
        return any(
            each.id != but and each.kind == "sysctl" and covers(each.target, name)
            and each.rights & (Rights.SUBMIT | Rights.WRITE)
            for each in self._machine.caps.held(agent.id)
        )  # fmt: skip

    # --- inside ---

    def _write(self, trial: Trial, entry: SysctlEntry[Any], value: Value, writer: str) -> None:
        before, self._writing = self._writing, trial
        try:
            self._machine.sysctl.set(entry.spec.name, value, writer=writer)
        finally:
            self._writing = before

    def _tell(self, opened: Open, action: Action, step: Step, why: str) -> None:
        machine, name, agent = self._machine, action.name, opened.agent
        self.counts[step] += 1
        text = f"{name}: action {action.number} of {agent.name} {step.value}: {why}"
        machine.log(
            _LEVELS[step], "actions", text[: limits.KMSG_TEXT_MAX_BYTES], action=action.number, sysctl=name,
            step=step.value,
        )  # fmt: skip
        machine.note("action", agent.id, text.encode())
        change = ActionChange(action.number, name, step, opened.entry.text, why)
        agent.event("action", name, encode(change))


def _text(value: Value) -> str:
    """As a sysctl shows it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(int(value)) if isinstance(value, bool) else str(value)


def _count(step: Step) -> Attribute:
    return Attribute(step.value, show=lambda actions: str(actions.counts[step]))


_ATTRIBUTES: Final = attribute_table(
    *map(_count, Step),
    Attribute("refused", show=lambda actions: str(actions.refused)),
    Attribute("pending", show=lambda actions: "\n".join(actions.pending)),
)
"""``/sys/kernel/actions``."""
