"""Programs at the events of an instance: the kernel's side of an agent decides what its extension has to hear (R19).

A program sees the topic, a number and the beginning of the value, and says whether the event goes on to the extension
or ends here.  It may look models up, and start and stop those that its owner may command.
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING, Final

from uxk.bpf.proto import body
from uxk.core.kobject import brief
from uxk.core.suggest import did_you_mean
from uxk.errors import UsageError
from uxk.kernel.bpf.loaded import Loaded
from uxk.uapi.ml import decode_generation, decode_mode

if TYPE_CHECKING:
    from uxk.kernel.agent import KernelAgent
    from uxk.kernel.bpf.registry import Bpf

PREFIX: Final = "agent/"
TOPICS: Final = (
    "", "model", "model_gone", "generation", "dataset", "mode", "feedback", "action", "policy", "shadow", "store",
    "kmsg", "device_add", "device_change", "device_remove", "capability", "prepare",
)  # fmt: skip
"""Numbers of topics; 0 for any other."""
VALUE_BYTES: Final = 64
_HEAD: Final = Struct("<3q")
SPEC: Final = body(_HEAD.size + VALUE_BYTES, writable=False)._replace(verdict=(0, 1))
"""Topic, number (the new mode, the generation, else 0), length of the value; then its first 64 bytes, zeros after."""


class EventPoint:
    """The attach point ``agent/INSTANCE``."""

    spec, commands, exclusive = SPEC, True, False

    def __init__(self, bpf: Bpf, agent: KernelAgent, agents: dict[str, KernelAgent]) -> None:
        self._bpf, self._agent, self._agents = bpf, agent, agents
        self.name = f"{PREFIX}{agent.name}"
        self.programs: list[Loaded] = []

    @property
    def gone(self) -> bool:
        """Whether the instance was unloaded."""
        return self._agents.get(self._agent.name) is not self._agent

    def attach(self, program: Loaded, instead: Loaded | None = None) -> None:
        """Behind those that are there, or in the place of one of them."""
        place = len(self.programs) if instead is None else self.programs.index(instead)
        self.programs[place : place + (instead is not None)] = [program]
        program.on_fault = self._fault
        self._agent.machine.event_hooks[self._agent.id] = self._ends_here

    def detach(self, program: Loaded, why: str) -> None:
        """The others stay."""
        self.programs.remove(program)
        if not self.programs:
            self._agent.machine.event_hooks.pop(self._agent.id, None)

    def _fault(self, program: Loaded, why: str) -> None:
        if program in self.programs:
            self._bpf.detach(program, self.name, f"fault: {why}")

    def _ends_here(self, topic: str, value: bytes) -> bool:
        number = TOPICS.index(topic) if topic in TOPICS else 0
        context = _HEAD.pack(number, _number(topic, value), len(value)) + value[:VALUE_BYTES].ljust(VALUE_BYTES, b"\0")
        return any(program.run(context, self._agent.id) == 1 for program in tuple(self.programs))


def _number(topic: str, value: bytes) -> int:
    if topic == "mode":
        return int(decode_mode(value).new)
    return decode_generation(value) if topic == "generation" else 0


class EventPoints:
    """Makes the points of instances."""

    def __init__(self, bpf: Bpf, agents: dict[str, KernelAgent]) -> None:
        self._bpf, self._agents = bpf, agents
        bpf.find_point.append(self._find)
        bpf.machine.on_gone.append(self._gone)

    def _gone(self, instance: int) -> None:
        for name, agent in self._agents.items():
            if agent.id == instance:
                self._bpf.remove_point(f"{PREFIX}{name}", f"{name} is gone")
                return

    def _find(self, name: str) -> EventPoint | None:
        if not name.startswith(PREFIX):
            return None
        agent = self._agents.get(name.removeprefix(PREFIX))
        if agent is None:
            hint = did_you_mean(name.removeprefix(PREFIX), self._agents)
            raise UsageError(f"bpf: {brief(name)}: no such instance{hint}", errno=errno.ENODEV)
        return EventPoint(self._bpf, agent, self._agents)
