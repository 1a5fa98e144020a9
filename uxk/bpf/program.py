"""A loaded program: verified, laid out with its maps, ready to run; the interpreter and the translation do the same."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from uxk.bpf import insn as i
from uxk.bpf.errors import BpfError
from uxk.bpf.helpers import HELPERS, Function, protos
from uxk.bpf.insn import decode, imm64, s64
from uxk.bpf.interp import BUDGET_DEFAULT, Machine
from uxk.bpf.layout import value_bases
from uxk.bpf.maps import ArenaMap, ArrayMap, HashMap, InstanceArrayMap, Map
from uxk.bpf.memory import Memory, Region
from uxk.bpf.proto import Spec
from uxk.bpf.translate import Translation
from uxk.bpf.verifier import Proof, verify

HANDLE_BASE = 1 << 62
"""What the handle of map 0 is at run time: nothing that could be an address."""


class Program:
    """Bytecode that was verified.  Raises ``VerifierError`` if it cannot be, ``BpfError`` for unknown maps.

    ``maps`` and ``helpers`` are by the number that the bytecode knows them by.
    """

    def __init__(
        self,
        code: bytes,
        spec: Spec,
        *,
        maps: Mapping[int, Map] | None = None,
        helpers: Mapping[int, Function] = HELPERS,
        kfuncs: Mapping[int, Function] | None = None,
        name: str = "",
        budget: int = BUDGET_DEFAULT,
    ) -> None:
        self.code, self.name, self.maps = bytes(code), name, dict(maps or {})
        arenas = [m for m in self.maps.values() if isinstance(m, ArenaMap)]
        if len(arenas) > 1:
            raise BpfError(f"program {name!r}: {len(arenas)} arenas; at most one")
        self.arena = arenas[0] if arenas else None
        self.budget = budget
        self.spec = spec._replace(
            maps={number: each.shape for number, each in self.maps.items()},
            helpers=protos(helpers), kfuncs=protos(kfuncs or {}), arena=bool(arenas),
        )  # fmt: skip
        self.proof: Proof = verify(self.code, self.spec)
        self._memory = Memory()
        self._own: Region = self._memory.add(
            "memory", bytearray(self.spec.memory.size_bytes if self.spec.memory else 0)
        )
        self.machine = Machine(
            self.proof.insns, memory=self._memory, helpers={n: f.run for n, f in helpers.items()},
            kfuncs={n: f.run for n, f in (kfuncs or {}).items()}, immediates=self._immediates(), arena=self.arena,
            arena_pcs=self.proof.arena_pcs, budget=budget,
        )  # fmt: skip
        self.machine.maps = {HANDLE_BASE + number: each for number, each in self.maps.items()}
        self.machine.bases = self._lay_out()
        self._stack = self.machine.stack

    def _lay_out(self) -> dict[int, int]:
        """Gives the values of maps their addresses."""
        self._values: dict[int, Region] = {
            number: self._memory.add(f"map {number}", each.data, writable=not each.read_only)
            for number, each in sorted(self.maps.items())
            if isinstance(each, (ArrayMap, HashMap))
        }
        return {HANDLE_BASE + number: region.base for number, region in self._values.items()}

    def _immediates(self) -> dict[int, int]:
        bases = value_bases(n for n, each in self.maps.items() if isinstance(each, (ArrayMap, HashMap)))
        found: dict[int, int] = {}
        for pc, insn in enumerate(decode(self.code)):
            if insn.opcode != i.LDDW or not insn.src or pc in self.proof.second:
                continue
            value = imm64(self.proof.insns, pc)
            if insn.src == i.IMM64_MAP_FD:
                found[pc] = HANDLE_BASE + insn.imm
            else:
                found[pc] = bases.get(insn.imm, 0) + (value >> 32)
        return found

    @cached_property
    def translation(self) -> Translation:
        """The program as Python, made when it is first wanted."""
        return Translation(self.proof, self._immediates(), budget=self.budget)

    def run(self, memory: bytes | bytearray = b"") -> int:
        """Runs the translation on some bytes, which it may change if they are a bytearray; r0, signed.

        Raises ``BpfError`` for another length than the one that was verified, ``Fault`` when the budget is used up.
        """
        translation = self.translation
        if translation.by_fields:
            self._check(memory)
            return translation.function(tuple(memoryview(memory).cast("q")))
        self._place(memory)
        return translation.function(self.machine, self._own.data, self._stack, self._own.base, len(memory))

    def decide(self, *fields: int) -> int:
        """Runs a model's body on its fields, signed 64-bit numbers.

        Raises ``BpfError`` for another number of them than was verified, or one beyond 64 bits.
        """
        translation = self.translation
        size_bytes = self.spec.memory.size_bytes if self.spec.memory else 0
        if 8 * len(fields) != size_bytes:
            raise BpfError(f"program {self.name!r}: {len(fields)} fields; it was verified for {size_bytes // 8}")
        if translation.by_fields:
            return translation.function(fields)
        try:
            return self.run(b"".join(field.to_bytes(8, "little", signed=True) for field in fields))
        except OverflowError:
            raise BpfError(f"program {self.name!r}: fields {fields}; expected numbers of 64 bits, signed") from None

    def interpret(self, memory: bytes | bytearray = b"") -> int:
        """Like ``run``, by the reference interpreter."""
        self._place(memory)
        arguments = (self._own.base, len(memory)) if self.spec.memory else (0, 0)
        return s64(self.machine.run(*arguments))

    def select(self, instance: int) -> None:
        """Whose values of per-instance arrays are seen from now on.  Raises as ``InstanceArrayMap.select``."""
        for number, each in self.maps.items():
            if isinstance(each, InstanceArrayMap):
                each.select(instance)
                self._values[number].data = each.data

    def _check(self, memory: bytes | bytearray) -> None:
        expected = self.spec.memory.size_bytes if self.spec.memory else 0
        if len(memory) != expected:
            raise BpfError(f"program {self.name!r}: {len(memory)} bytes of memory; it was verified for {expected}")

    def _place(self, memory: bytes | bytearray) -> None:
        self._check(memory)
        self._own.data = memory if isinstance(memory, bytearray) else bytearray(memory)
        self._own.writable = self.spec.memory is not None and self.spec.memory.writable
