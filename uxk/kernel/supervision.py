"""Supervisors over instances: what :mod:`uxk.core.supervision` decides is done here, in kernel time.

An instance without a supervisor follows its own restart policy, see :mod:`uxk.kernel.supervisor`.
"""

from __future__ import annotations

import errno
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from uxk.core.lifecycle import ModuleState
from uxk.core.manifest import canonical
from uxk.core.supervision import Group, Leave, Start, Step, Stop, Supervision, Tell, Wait
from uxk.core.tree import Attribute, attribute_table
from uxk.errors import UsageError
from uxk.uapi.manifest import Restart
from uxk.uapi.supervisor import SupervisorSpec

if TYPE_CHECKING:
    from uxk.kernel.agent import KernelAgent
    from uxk.kernel.machine import Machine
    from uxk.kernel.supervisor import Supervisor

PATH: Final = "/sys/kernel/supervisors"
_DEPTH_MAX: Final = 16


class Supervisors:
    """The supervisors of a kernel."""

    def __init__(self, machine: Machine, agents: dict[str, KernelAgent], supervisor: Supervisor) -> None:
        self._machine = machine
        self._agents = agents
        self._supervisor = supervisor
        self.tree = Supervision()
        self._known: dict[str, Group] = {}
        self._later: deque[Step] = deque()
        self._depth = 0
        supervisor.supervisors = self

    def figures(self) -> dict[str, dict[str, int | bool]]:
        """Of every supervisor that there was: restarts, and whether it is still there."""
        return {
            name: {"restarts": group.restarts, "alive": self.tree.groups.get(name) is group}
            for name, group in self._known.items()
        }

    def supervise(self, spec: SupervisorSpec) -> None:
        """Puts loaded instances under a supervisor.

        UsageError for what :meth:`Supervision.add` refuses, and for a value out of range.
        """
        try:
            spec = msgspec.convert(msgspec.to_builtins(spec), SupervisorSpec)
        except msgspec.ValidationError as exc:
            raise UsageError(f"supervisor {spec.name!r}: {exc}") from None
        spec = msgspec.structs.replace(spec, children=tuple(map(canonical, spec.children)))
        for name in spec.children:
            agent = self._agents.get(name)
            if agent is not None and agent.state is not ModuleState.LIVE:
                raise UsageError(f"supervisor {spec.name!r}: {name} is {agent.state.initstate}", errno=errno.EAGAIN)
        modes: dict[str, Restart] = {name: agent.manifest.restart.mode for name, agent in self._agents.items()}
        group = self._known[spec.name] = self.tree.add(spec, modes)
        machine, children = self._machine, ", ".join(spec.children) or "nobody yet"
        machine.tree.add(f"{PATH}/{spec.name}", (self, group), _ATTRIBUTES)
        above = f", below {spec.parent}" if spec.parent else ""
        machine.log("info", "supervisor", f"{spec.name}: {spec.strategy} over {children}{above}")

    def remove(self, name: str) -> None:
        """No supervisor any more; its children keep running under their own policies.  ENOENT, EBUSY."""
        self.tree.remove(name)
        self._tidy()

    def close(self) -> None:
        """Shutdown: nobody is started again."""
        self.tree = Supervision()
        self._tidy()

    # --- what happens to children ---

    def exited(self, agent: KernelAgent, *, crashed: bool, why: str) -> None:
        """A child has died; its incarnation is cut off and reclaimed already."""
        self._do(self.tree.exited(self._machine.now_ns, agent.name, crashed=crashed, why=why))

    def gone(self, agent: KernelAgent) -> None:
        """An instance is being taken down for good."""
        if agent.name in self.tree:
            self._do(self.tree.forget(agent.name))

    def loaded(self, agent: KernelAgent) -> None:
        """A new instance is live."""
        if self.tree.groups:
            group = self.tree.adopt(agent.name, agent.manifest.restart.mode)
            if group is not None:
                self._machine.log("info", "supervisor", f"{group.spec.name}: {agent.name} is back among its children")

    # --- steps ---

    def _do(self, steps: list[Step]) -> None:
        """What a step leads to is done in it; from a depth on, after it: a batch may be of a thousand."""
        if self._depth >= _DEPTH_MAX:
            self._later += steps
            return
        self._depth += 1
        try:
            for step in steps:
                self._do_one(step)
            while self._depth == 1 and self._later:
                self._do_one(self._later.popleft())
        finally:
            self._depth -= 1
        self._tidy()

    def _do_one(self, step: Step) -> None:
        machine = self._machine
        match step:
            case Tell():
                text = f"{step.supervisor}: {step.text}"
                machine.log("err" if step.grave else "notice", "supervisor", text)
                machine.note("supervisor", 0, text.encode())
            case Stop() if (agent := self._agents.get(step.name)) is not None:
                self._supervisor.take_down(agent, "its supervisor restarts it")
            case Start() if (agent := self._agents.get(step.name)) is not None:
                self._start(agent)
            case Leave():
                self._leave(step)
            case Wait():
                machine.heap.call_at(machine.now_ns + step.delay_ns, self._due, step.batch)
            case _:  # it was unloaded meanwhile
                pass

    def _due(self, batch: int) -> None:
        self._do(self.tree.due(batch))

    def _start(self, agent: KernelAgent) -> None:
        agent.on_live = partial(self._live, agent)
        self._supervisor.restart(agent)

    def _live(self, agent: KernelAgent) -> None:
        agent.on_live = _ignore
        self._do(self.tree.started(agent.name))

    def _leave(self, step: Leave) -> None:
        agent = self._agents.get(step.name)
        if agent is not None:
            agent.requests.close(errno.EIO)
            self._machine.log("err", agent.name, f"stays down: {step.why}")
            self._supervisor.give_up(agent, step.why)

    def _tidy(self) -> None:
        """Takes supervisors that are no more out of the tree."""
        tree = self._machine.tree
        for name in tree.listdir(PATH) if tree.exists(PATH) else ():
            if name not in self.tree.groups:
                tree.remove(f"{PATH}/{name}")


def _state(at: tuple[Supervisors, Group]) -> str:
    return "restarting" if at[0].tree.pending(at[1]) else "up"


_ATTRIBUTES: Final = attribute_table(
    Attribute("strategy", show=lambda at: at[1].spec.strategy),
    Attribute("children", show=lambda at: "\n".join(_member(each) for each in at[1].members)),
    Attribute("parent", show=lambda at: at[1].spec.parent),
    Attribute("max_restarts", show=lambda at: str(at[1].spec.max_restarts)),
    Attribute("period_ns", show=lambda at: str(at[1].spec.period_ns)),
    Attribute("restarts", show=lambda at: str(at[1].restarts)),
    Attribute("state", show=_state),
    Attribute("pending", show=lambda at: "\n".join(at[0].tree.pending(at[1]))),
)
"""``/sys/kernel/supervisors/NAME``."""


def _member(member: object) -> str:
    return member.spec.name if isinstance(member, Group) else str(getattr(member, "name", ""))


def _ignore() -> None:
    """Nobody waits for it to be live."""
