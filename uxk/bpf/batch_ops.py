"""LLVM's text for single instructions: arithmetic, byte swaps and conditions on 64-bit registers (RFC 9669, section 4).

A :class:`Text` collects lines; operands are names of 64-bit values (``%3``) or decimal literals.  What LLVM leaves
undefined (division by zero, the smallest number by -1, shifts beyond the width) is never reached.
"""

from __future__ import annotations

from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.insn import Insn, s32, s64

_PLAIN: Final = {i.ADD: "add", i.SUB: "sub", i.MUL: "mul", i.OR: "or", i.AND: "and", i.XOR: "xor"}
_SHIFTS: Final = {i.LSH: "shl", i.RSH: "lshr", i.ARSH: "ashr"}
_COMPARE: Final = {
    i.JEQ: "eq", i.JNE: "ne", i.JGT: "ugt", i.JGE: "uge", i.JLT: "ult", i.JLE: "ule", i.JSGT: "sgt", i.JSGE: "sge",
    i.JSLT: "slt", i.JSLE: "sle",
}  # fmt: skip


class Text:
    """Lines of one function; ``value`` names what a line computes."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._names = 0

    def line(self, text: str) -> None:
        """Adds a line."""
        self.lines.append(text)

    def name(self) -> str:
        """A name that is not taken."""
        self._names += 1
        return f"v{self._names}"

    def value(self, text: str) -> str:
        """Adds a line that computes something; its name."""
        self._names += 1
        name = f"%v{self._names}"
        self.lines.append(f"{name} = {text}")
        return name

    def narrow(self, operand: str, bits: int) -> str:
        """The low bits of a 64-bit operand."""
        if bits == 64:
            return operand
        if not operand.startswith("%"):
            return str(((int(operand) & ((1 << bits) - 1)) ^ (1 << (bits - 1))) - (1 << (bits - 1)))
        return self.value(f"trunc i64 {operand} to i{bits}")

    def wide(self, operand: str, bits: int, *, signed: bool = False) -> str:
        """64 bits of some."""
        return operand if bits == 64 else self.value(f"{'s' if signed else 'z'}ext i{bits} {operand} to i64")


def alu(text: Text, insn: Insn, left: str, right: str) -> str:
    """What an arithmetic instruction leaves in its destination; ``right``: the register or the extended immediate."""
    op, bits = insn.op, 64 if insn.cls == i.ALU64 else 32
    if op == i.END:
        return _swap(text, insn, left)
    if op == i.MOV:
        return _move(text, insn, right, bits)
    a = text.narrow(left, bits)
    if op == i.NEG:
        return text.wide(text.value(f"sub i{bits} 0, {a}"), bits)
    b = text.narrow(right, bits)
    if op in _PLAIN:
        return text.wide(text.value(f"{_PLAIN[op]} i{bits} {a}, {b}"), bits)
    if op in _SHIFTS:
        count = text.value(f"and i{bits} {b}, {bits - 1}")
        return text.wide(text.value(f"{_SHIFTS[op]} i{bits} {a}, {count}"), bits)
    divide = _signed if insn.off else _unsigned
    return text.wide(divide(text, op, a, b, bits), bits)


def _move(text: Text, insn: Insn, right: str, bits: int) -> str:
    if insn.off:  # only from a register
        extended = text.value(f"sext i{insn.off} {text.narrow(right, insn.off)} to i{bits}")
        return text.wide(extended, bits)
    if bits == 64:
        return right
    if not right.startswith("%"):
        return str(int(right) & i.M32)
    return text.value(f"and i64 {right}, {i.M32}")


def _swap(text: Text, insn: Insn, left: str) -> str:
    cut = text.narrow(left, insn.imm)
    if insn.cls == i.ALU and not insn.by_register:
        return text.wide(cut, insn.imm)
    return text.wide(text.value(f"call i{insn.imm} @llvm.bswap.i{insn.imm}(i{insn.imm} {cut})"), insn.imm)


def _unsigned(text: Text, op: int, a: str, b: str, bits: int) -> str:
    kind = f"i{bits}"
    zero = text.value(f"icmp eq {kind} {b}, 0")
    divisor = text.value(f"select i1 {zero}, {kind} 1, {kind} {b}")
    found = text.value(f"{'udiv' if op == i.DIV else 'urem'} {kind} {a}, {divisor}")
    return text.value(f"select i1 {zero}, {kind} {'0' if op == i.DIV else a}, {kind} {found}")


def _signed(text: Text, op: int, a: str, b: str, bits: int) -> str:
    """Towards zero; by -1 it is a negation, which wraps."""
    kind = f"i{bits}"
    zero, minus = text.value(f"icmp eq {kind} {b}, 0"), text.value(f"icmp eq {kind} {b}, -1")
    either = text.value(f"or i1 {zero}, {minus}")
    divisor = text.value(f"select i1 {either}, {kind} 1, {kind} {b}")
    found = text.value(f"{'sdiv' if op == i.DIV else 'srem'} {kind} {a}, {divisor}")
    by_minus = text.value(f"sub {kind} 0, {a}") if op == i.DIV else "0"
    other = text.value(f"select i1 {minus}, {kind} {by_minus}, {kind} {found}")
    return text.value(f"select i1 {zero}, {kind} {'0' if op == i.DIV else a}, {kind} {other}")


def condition(text: Text, insn: Insn, left: str, right: str) -> str:
    """Whether a conditional jump is taken, as one bit."""
    bits = 64 if insn.cls == i.JMP else 32
    a, b = text.narrow(left, bits), text.narrow(right, bits)
    if insn.op == i.JSET:
        return text.value(f"icmp ne i{bits} {text.value(f'and i{bits} {a}, {b}')}, 0")
    return text.value(f"icmp {_COMPARE[insn.op]} i{bits} {a}, {b}")


def atomic(text: Text, insn: Insn, place: str, operand: str, expected: str) -> str:
    """An atomic operation by load and store: a run has its memory to itself.  What was there before, 64 bits wide."""
    bits = 8 * insn.width_bytes
    kind = f"i{bits}"
    old = text.value(f"load {kind}, ptr {place}, align 1")
    new = text.narrow(operand, bits)
    if insn.imm == i.CMPXCHG:
        equal = text.value(f"icmp eq {kind} {old}, {text.narrow(expected, bits)}")
        new = text.value(f"select i1 {equal}, {kind} {new}, {kind} {old}")
    elif insn.imm != i.XCHG:
        new = text.value(f"{_PLAIN[insn.imm & 0xF0]} {kind} {old}, {new}")
    text.line(f"store {kind} {new}, ptr {place}, align 1")
    return text.wide(old, bits)


def literal(insn: Insn) -> str:
    """The extended immediate of an instruction."""
    return str(s64(s32(insn.imm)))


INTRINSICS: Final = "\n".join(f"declare i{bits} @llvm.bswap.i{bits}(i{bits})" for bits in (16, 32, 64))
