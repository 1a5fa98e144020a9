"""What is loaded: a program with its number, tag and account; a map with its number."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Final

from uxk.bpf.errors import BpfError
from uxk.bpf.maps import ARENA_PAGE_BYTES, ArenaMap, InstanceArrayMap, Map, RingBuffer
from uxk.bpf.program import Program
from uxk.bpf.proto import Spec
from uxk.core.kobject import brief
from uxk.errors import UsageError
from uxk.kernel.bpf.charge import cost_ns
from uxk.kernel.bpf.functions import References

if TYPE_CHECKING:
    from uxk.kernel.agent import KernelAgent

CHECK_EVERY: Final = 4096
"""Every so many decisions of a model's body, the reference interpreter has to come to the same verdict."""
TAG_BYTES: Final = 8


class LoadedMap:
    """A map that programs share with their loader; ``users`` are programs, by number."""

    def __init__(self, number: int, made: Map, owner: KernelAgent | None) -> None:
        self.id, self.map, self.owner = number, made, owner
        self.held_bytes = map_bytes(made)
        """Of the kernel's memory."""
        self.users: set[int] = set()
        self.pins: set[str] = set()


def map_bytes(made: Map) -> int:
    """What a map may take at most, keys and values, from the beginning on: that is what it is charged."""
    if isinstance(made, RingBuffer):
        return made.max_entries
    if isinstance(made, ArenaMap):
        return made.max_entries * ARENA_PAGE_BYTES
    copies = made.instances_max if isinstance(made, InstanceArrayMap) else 1
    stride_bytes = -(-made.value_bytes // 8) * 8
    return (made.key_bytes + stride_bytes) * made.max_entries * copies


class Loaded:
    """A verified program.  Running it never raises: a fault is counted, told to ``on_fault``, and gives None."""

    def __init__(
        self, number: int, program: Program, at: str, spec: Spec, maps: Mapping[int, LoadedMap],
        owner: KernelAgent | None, references: References, longest: int, now_ns: int,
    ) -> None:  # fmt: skip
        self.id, self.program, self.at, self.spec, self.maps, self.owner = number, program, at, spec, dict(maps), owner
        self.longest = longest
        """Instructions that a run executes at most."""
        self.cost_ns = cost_ns(longest)
        """Virtual time that a run is charged."""
        self.loaded_ns = now_ns
        self.incarnation = 0 if owner is None else owner.incarnation
        """The life of its owner that it belongs to."""
        self.waits = False
        """Whether it is in the shadow: who has injected it attaches it, or ends it."""
        self.left = False
        """Whether the build that has loaded it is gone, and another is to replace it."""
        self.held_bytes = len(program.code)
        """Of the kernel's memory, without maps."""
        self.tag = hashlib.sha256(program.code).hexdigest()[: 2 * TAG_BYTES]
        """What tells programs apart (Linux: ``prog_tag``)."""
        self.attached: set[str] = set()
        self.pins: set[str] = set()
        self.runs = self.faults = 0
        self.last_fault = ""
        self.on_fault: Callable[[Loaded, str], object] = _nothing
        self._references = references
        self._pack = Struct(f"<{len(spec.fields)}q").pack
        self._own = [m.map for m in maps.values() if isinstance(m.map, InstanceArrayMap)]

    @property
    def name(self) -> str:
        """For people."""
        return self.program.name

    @property
    def charged_ns(self) -> int:
        """Virtual time of all runs."""
        return self.runs * self.cost_ns

    def decide(self, fields: tuple[int, ...]) -> int | None:
        """A verdict on a site's features, the spare zero included; None after a fault."""
        self.runs += 1
        translation = self.program.translation
        try:
            if not translation.by_fields:
                return self.program.run(self._pack(*fields))
            verdict = translation.function(fields)
            if self.runs % CHECK_EVERY == 0 and self.program.interpret(self._pack(*fields)) != verdict:
                raise BpfError(f"the interpreter disagrees with {verdict} on {fields}")
            return verdict
        except Exception as exc:  # whatever it is, the kernel goes on with the built-in rule
            self._fault(f"{type(exc).__name__}: {exc}")
            return None
        finally:
            self._references.end()

    def best(self, rows: Sequence[tuple[int, ...]]) -> int | None:
        """The place of the row with the highest verdict, the first of equals; None after a fault."""
        scores = []
        for row in rows:
            score = self.decide(row)
            if score is None:
                return None
            scores.append(score)
        return scores.index(max(scores))

    def run(self, memory: bytes | bytearray, instance: int = 0) -> int | None:
        """Runs on some bytes, for an instance, whose values it finds in per-instance maps; None after a fault.

        Instances for which a map has no room share the values of 0: their number must not take a filter off.
        """
        self.runs += 1
        try:
            if self._own:
                self.program.select(instance if all(each.has_room(instance) for each in self._own) else 0)
            return self.program.run(memory)
        except Exception as exc:  # as above
            self._fault(f"{type(exc).__name__}: {exc}")
            return None
        finally:
            self._references.end()

    def test(self, memory: bytearray) -> int | None:
        """As :meth:`run`, for somebody who tries it out: nobody is told of a fault.  UsageError for bytes that are out
        of the ranges that its proof rests on.
        """
        for offset, bounds in self.spec.fields.items():
            value = int.from_bytes(memory[offset : offset + 8], "little", signed=True)
            if not bounds.smin <= value <= bounds.smax:
                raise UsageError(
                    f"run: bytes {offset} to {offset + 7} are {value}; program {self.id} was verified for "
                    f"{bounds.smin} to {bounds.smax}"
                )
        tell, self.on_fault = self.on_fault, _nothing
        try:
            return self.run(memory)
        finally:
            self.on_fault = tell

    def fail(self, why: str) -> None:
        """Somebody else has found it at fault."""
        self._fault(why)

    def _fault(self, why: str) -> None:
        why = brief(why)
        self.faults += 1
        self.last_fault = why
        self.on_fault(self, why)


def _nothing(*_: object) -> None:
    """Nobody is told."""
