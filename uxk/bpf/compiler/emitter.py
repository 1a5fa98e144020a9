"""Slots as they are made, jumps to places that are known later, numbers of any length: what code is generated with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.insn import FRAME, Insn, encode, lddw

NEAR_MAX: Final = (1 << 15) - 1
"""Farthest slot that a conditional jump reaches."""
IMM_MIN, IMM_MAX = -(1 << 31), (1 << 31) - 1
TOTAL, X, T = 0, 2, 3
"""Registers: what a sum is made in, a number on its way, and one that is too long to be immediate."""


class Emitter:
    """Slots as they are made, and jumps to places that are known later; r1 is the address of the features."""

    def __init__(self, spare: int) -> None:
        self._spare = spare
        self._insns: list[Insn] = []
        self._jumps: list[tuple[int, int]] = []
        self._places: list[int] = []

    def emit(self, opcode: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> None:
        """One instruction."""
        self._insns.append(Insn(opcode, dst, src, off, imm))

    def slots(self, insns: Sequence[Insn]) -> None:
        """What is made elsewhere."""
        self._insns += insns

    @property
    def at(self) -> int:
        """The number of the next slot."""
        return len(self._insns)

    def bytes(self) -> bytes:
        """All slots, the jumps filled in."""
        insns = self._insns
        if len(insns) > i.INSNS_MAX:
            raise CompileError(f"a program of {len(insns)} instructions; at most {i.INSNS_MAX}")
        for at, place in self._jumps:
            distance = self._places[place] - at - 1
            far = insns[at].opcode == i.GOTOL
            if not far and distance > NEAR_MAX:
                raise CompileError(f"a jump over {distance} instructions; at most {NEAR_MAX}")
            insns[at] = insns[at]._replace(**{"imm" if far else "off": distance})
        return encode(insns)

    # --- places ---

    def place(self) -> int:
        """A place to jump to, not yet known."""
        self._places.append(-1)
        return len(self._places) - 1

    def here(self, place: int) -> None:
        """The place is the next slot."""
        self._places[place] = len(self._insns)

    def goto(self, place: int, *, far: bool) -> None:
        """Jumps in any case."""
        self._jumps.append((len(self._insns), place))
        self.emit(i.GOTOL if far else i.JMP | i.JA)

    def jump_if(self, op: int, opposite: int, value: int, place: int, *, far: bool) -> None:
        """Jumps if the number in r2 compares so with ``value``; r0 is lost if that is long."""
        if IMM_MIN <= value <= IMM_MAX:
            source, imm = 0, value
        else:
            self.constant(TOTAL, value)
            source, imm = i.X, 0
        if far:
            self.emit(i.JMP | opposite | source, X, TOTAL, 1, imm)
            self.goto(place, far=True)
        else:
            self._jumps.append((len(self._insns), place))
            self.emit(i.JMP | op | source, X, TOTAL, 0, imm)

    # --- numbers ---

    def constant(self, register: int, value: int) -> None:
        """A register becomes a number, in one slot or two."""
        if IMM_MIN <= value <= IMM_MAX:
            self.emit(i.ALU64 | i.MOV, register, imm=value)
        else:
            self._insns += lddw(register, value)

    def load(self, register: int, slot: int) -> None:
        """A register becomes a feature, or the zero."""
        self.emit(i.LDX | i.DW | i.MEM, register, 1, 8 * slot)

    def add(self, register: int, value: int) -> None:
        """Adds a constant; r3 is lost if it is long."""
        if IMM_MIN <= value <= IMM_MAX:
            if value:
                self.emit(i.ALU64 | i.ADD, register, imm=value)
        else:
            self.constant(T, value)
            self.emit(i.ALU64 | i.ADD | i.X, register, T)

    def clamp(self, low: int, high: int) -> None:
        """Brings r2 into its range, and counts it from the low end."""
        for bound, good in ((high, i.JSLE), (low, i.JSGE)):
            if IMM_MIN <= bound <= IMM_MAX:
                self.emit(i.JMP | good, X, 0, 1, bound)
                self.emit(i.ALU64 | i.MOV, X, imm=bound)
            else:
                self.constant(T, bound)
                self.emit(i.JMP | good | i.X, X, T, 1)
                self.emit(i.ALU64 | i.MOV | i.X, X, T)
        if not IMM_MIN <= low <= IMM_MAX:
            self.constant(T, low)
            self.emit(i.ALU64 | i.SUB | i.X, X, T)
        elif low:
            self.emit(i.ALU64 | i.SUB, X, imm=low)

    # --- results ---

    def sign(self, values: Sequence[int]) -> None:
        """r0 = the second value if r0 is above 0, else the first."""
        self.emit(i.ALU64 | i.MOV | i.X, X, TOTAL)
        self.constant(TOTAL, values[1])
        self.emit(i.JMP | i.JSGT, X, 0, 1 if IMM_MIN <= values[0] <= IMM_MAX else 2)
        self.constant(TOTAL, values[0])

    def cut(self, shift: int) -> None:
        """r0 = the larger of r0 and 0, shifted right; without a branch: of n branches Linux might follow 2**n paths."""
        self.emit(i.ALU64 | i.MOV | i.X, X, TOTAL)
        self.emit(i.ALU64 | i.ARSH, X, imm=63)
        self.emit(i.ALU64 | i.XOR, X, imm=-1)
        self.emit(i.ALU64 | i.AND | i.X, TOTAL, X)
        self.emit(i.ALU64 | i.RSH, TOTAL, imm=shift)

    def decide(self, values: Sequence[int], places: Sequence[int]) -> None:
        """r0 = the verdict, of sums in slots of the stack; a single one is in r0 already."""
        if len(places) == 1:
            if values:
                self.sign(values)
            return
        self.emit(i.LDX | i.DW | i.MEM, X, FRAME, -8 * places[0])
        self.constant(TOTAL, values[0])
        for value, place in zip(values[1:], places[1:], strict=True):
            self.emit(i.LDX | i.DW | i.MEM, T, FRAME, -8 * place)
            self.emit(i.JMP | i.JSLE | i.X, T, X, 2 if IMM_MIN <= value <= IMM_MAX else 3)
            self.emit(i.ALU64 | i.MOV | i.X, X, T)
            self.constant(TOTAL, value)
