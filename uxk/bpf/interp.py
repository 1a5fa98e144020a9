"""The reference interpreter: one instruction after the other, every access looked up, every doubt a fault.

It runs programs that nobody verified.  ``uxk.bpf.translate`` is the quick way for those that were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from uxk.bpf import insn as i
from uxk.bpf.alu import alu, atomic, holds
from uxk.bpf.disasm import ADDR_SPACE_CAST
from uxk.bpf.errors import Fault
from uxk.bpf.insn import M32, M64, Insn, imm64, signed
from uxk.bpf.maps import Map
from uxk.bpf.memory import Absent, Memory
from uxk.bpf.structure import problem

BUDGET_DEFAULT: Final = 10_000_000
"""Instructions that a run may execute."""
MAY_GOTO_MAX: Final = 8 << 20
"""Times that the ``may_goto`` of one frame goes on (Linux: BPF_MAX_LOOPS)."""

Helper = Callable[["Machine", int, int, int, int, int], int]
"""Gets the machine and r1 to r5, unsigned; returns r0, of which the low 64 bits count."""


class Arena(Protocol):
    """Memory behind 32-bit offsets: what is absent reads as 0 and drops what is written."""

    def load(self, offset: int, size_bytes: int) -> int:
        """An unsigned number."""
        ...

    def store(self, offset: int, size_bytes: int, value: int) -> None:
        """Writes the low bytes of ``value``."""
        ...


class Machine:
    """Runs one program.  ``helpers`` and ``kfuncs`` are by number; ``immediates`` are the values of ``lddw`` by slot.

    ``arena``: where the loads and stores of ``arena_pcs`` go; of an unverified program (None), those below 4 GiB.
    """

    def __init__(
        self,
        insns: Sequence[Insn],
        *,
        memory: Memory | None = None,
        helpers: Mapping[int, Helper] | None = None,
        kfuncs: Mapping[int, Helper] | None = None,
        immediates: Mapping[int, int] | None = None,
        arena: Arena | None = None,
        arena_pcs: frozenset[int] | None = None,
        budget: int = BUDGET_DEFAULT,
    ) -> None:
        self.insns, self.memory, self.arena = insns, memory or Memory(), arena
        self.helpers, self.kfuncs = helpers or {}, kfuncs or {}
        self._immediates = immediates or {}
        self._budget, self._arena_pcs = budget, arena_pcs
        self.maps: dict[int, Map] = {}
        """Maps by the handle that programs pass to helpers."""
        self.bases: dict[int, int] = {}
        """Address of the first value of a map, by its handle."""
        self._problems = [problem(insn) for insn in insns]
        self.stack = bytearray(i.STACK_BYTES * i.FRAMES_MAX)
        self._stack_top = self.memory.add("stack", self.stack).base + len(self.stack)
        self.executed = 0

    def run(self, *arguments: int) -> int:
        """Runs from slot 0 with r1 to r5 = ``arguments``; returns r0, unsigned.  Raises ``Fault``."""
        regs = [0] * i.REGISTERS
        regs[1 : 1 + len(arguments)] = [argument & M64 for argument in arguments]
        regs[i.FRAME] = self._stack_top
        self.stack[:] = bytes(len(self.stack))
        frames: list[tuple[int, list[int], int]] = []
        pc = loops = self.executed = 0
        insns, size = self.insns, len(self.insns)
        while True:
            if not 0 <= pc < size:
                raise Fault(pc, f"ran out of the program, which has {size} instructions")
            if self.executed >= self._budget:
                raise spent(pc, self._budget)
            self.executed += 1
            insn = insns[pc]
            if insn.opcode == i.EXIT_INSN:
                if not frames:
                    return regs[0]
                pc, regs[6:], loops = frames.pop()
            elif insn.is_local_call:
                if len(frames) + 1 >= i.FRAMES_MAX:
                    raise Fault(pc, f"calls {i.FRAMES_MAX} deep; at most {i.FRAMES_MAX - 1} calls may be open")
                frames.append((pc + 1, regs[6:], loops))
                regs[i.FRAME] -= i.STACK_BYTES
                pc, loops = pc + 1 + insn.imm, 0
            elif insn.opcode == i.MAY_GOTO:
                loops += 1
                pc += 1 + (insn.off if loops > MAY_GOTO_MAX else 0)
            else:
                pc = self._step(pc, insn, regs)

    def finish(self, pcs: Sequence[int], regs: list[int]) -> None:
        """Executes instructions that follow one another: what is left of a budget, for a translated program."""
        for pc in pcs:
            if self.insns[pc].opcode != i.MAY_GOTO:
                self._step(pc, self.insns[pc], regs)

    def _step(self, pc: int, insn: Insn, regs: list[int]) -> int:
        """Executes what neither calls a function of the program nor returns; the next slot."""
        cls = insn.cls
        if cls in (i.ALU, i.ALU64):
            self._check(pc, insn)
            if insn.op == i.MOV and insn.by_register and insn.off == ADDR_SPACE_CAST and cls == i.ALU64:
                regs[insn.dst] = regs[insn.src] & M32  # either way: user space has the arena at address 0
            else:
                right = regs[insn.src] if insn.by_register and insn.op != i.END else insn.imm
                regs[insn.dst] = alu(insn.opcode, insn.off, regs[insn.dst], right)
            return pc + 1
        if cls in (i.JMP, i.JMP32):
            return self._jump(pc, insn, regs)
        if cls == i.LD:
            if insn.opcode != i.LDDW or pc + 1 >= len(self.insns):
                raise Fault(pc, f"unknown opcode {insn.opcode:#04x}")
            self._set(pc, insn.dst, regs, self._immediate(pc, insn))
            return pc + 2
        try:
            self._access(pc, insn, regs)
        except Absent as exc:
            raise Fault(pc, str(exc)) from None
        return pc + 1

    def _immediate(self, pc: int, insn: Insn) -> int:
        if insn.src == i.IMM64_VALUE:
            return imm64(self.insns, pc)
        if pc not in self._immediates:
            raise Fault(pc, f"refers to a map, variable or function (source {insn.src}) that nobody resolved")
        return self._immediates[pc]

    def _check(self, pc: int, insn: Insn) -> None:
        """Nothing that is no instruction is run, but shifts that the verifier refuses are: their count is masked."""
        why = self._problems[pc]
        if why and "shift" not in why and why != "division by zero":
            raise Fault(pc, why)
        if insn.dst == i.FRAME:
            raise Fault(pc, "writes r10, the frame pointer")

    def _set(self, pc: int, register: int, regs: list[int], value: int) -> None:
        if register >= i.FRAME:
            raise Fault(pc, f"writes r{register}; expected r0 to r9")
        regs[register] = value

    def _jump(self, pc: int, insn: Insn, regs: list[int]) -> int:
        if why := self._problems[pc]:
            raise Fault(pc, why)
        if insn.op == i.CALL:
            function = (self.kfuncs if insn.src == i.CALL_KFUNC else self.helpers).get(insn.imm)
            if function is None:
                raise Fault(pc, f"calls {callee(insn)}, which is not there")
            try:
                regs[0] = function(self, *regs[1:6]) & M64
            except Absent as exc:
                raise Fault(pc, f"{callee(insn)}: {exc}") from None
            return pc + 1
        if insn.op == i.JA:
            return pc + 1 + insn.distance
        right = regs[insn.src] if insn.by_register else insn.imm
        return pc + 1 + (insn.off if holds(insn.opcode, regs[insn.dst], right) else 0)

    def _access(self, pc: int, insn: Insn, regs: list[int]) -> None:
        if why := self._problems[pc]:
            raise Fault(pc, why)
        size_bytes = insn.width_bytes
        if insn.cls == i.LDX:
            value = self._load(pc, regs[insn.src], insn.off, size_bytes)
            extended = signed(value, 8 * size_bytes) & M64 if insn.mode == i.MEMSX else value
            self._set(pc, insn.dst, regs, extended)
        elif insn.mode == i.MEM:
            value = regs[insn.src] if insn.cls == i.STX else insn.imm
            self._store(pc, regs[insn.dst], insn.off, size_bytes, value)
        elif insn.imm == i.LOAD_ACQ:
            self._set(pc, insn.dst, regs, self._load(pc, regs[insn.src], insn.off, size_bytes))
        elif insn.imm == i.STORE_REL:
            self._store(pc, regs[insn.dst], insn.off, size_bytes, regs[insn.src])
        else:
            old = self._load(pc, regs[insn.dst], insn.off, size_bytes)
            new, fetched = atomic(insn.imm, old, regs[insn.src], regs[0], 8 * size_bytes)
            self._store(pc, regs[insn.dst], insn.off, size_bytes, new)
            if fetched is not None:
                self._set(pc, 0 if insn.imm == i.CMPXCHG else insn.src, regs, fetched)

    def _in_arena(self, pc: int, base: int) -> bool:
        return pc in self._arena_pcs if self._arena_pcs is not None else base <= M32

    def _load(self, pc: int, base: int, off: int, size_bytes: int) -> int:
        if self.arena is not None and self._in_arena(pc, base):
            return self.arena.load((base & M32) + off, size_bytes)
        return self.memory.load(base + off, size_bytes)

    def _store(self, pc: int, base: int, off: int, size_bytes: int, value: int) -> None:
        if self.arena is not None and self._in_arena(pc, base):
            self.arena.store((base & M32) + off, size_bytes, value)
        else:
            self.memory.store(base + off, size_bytes, value)


def spent(pc: int, budget: int) -> Fault:
    """A run has used its budget up."""
    return Fault(pc, f"has run {budget} instructions, the budget of a run")


def callee(insn: Insn) -> str:
    """What a call calls, outside of the program."""
    return f"{'kfunc' if insn.src == i.CALL_KFUNC else 'helper'} {insn.imm}"
