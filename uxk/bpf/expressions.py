"""Python source for single instructions, given what the verifier knows of their operands.

Registers are Python integers in signed 64-bit form, so additions, comparisons and bit operations need no masks where
the verifier's bounds show that nothing overflows.
"""

from __future__ import annotations

from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.insn import M32, M64, Insn
from uxk.bpf.values import S64_MAX, S64_MIN, Pointer, Scalar, Value

WRAP: Final = f"({{0}} + {1 << 63} & {M64}) - {1 << 63}"
"""Brings any integer into signed 64-bit form."""
_PYTHON: Final = {i.ADD: "+", i.SUB: "-", i.MUL: "*", i.OR: "|", i.AND: "&", i.XOR: "^"}
_COMPARE: Final = {
    i.JEQ: "==", i.JNE: "!=", i.JGT: ">", i.JGE: ">=", i.JLT: "<", i.JLE: "<=", i.JSGT: ">", i.JSGE: ">=", i.JSLT: "<",
    i.JSLE: "<=", i.JSET: "&",
}  # fmt: skip
_SIGNED: Final = (i.JSGT, i.JSGE, i.JSLT, i.JSLE)


def number(value: Value) -> int | None:
    """The one value that a register can have, signed."""
    return value.smin if isinstance(value, Scalar) and value.known else None


def wrapped(register: str, expression: str, exact: bool) -> list[str]:
    """Assigns a sum, difference or product; ``exact`` if it is known to fit."""
    if exact:
        return [f"{register} = {expression}"]
    test = f"if not {S64_MIN} <= {register} <= {S64_MAX}: {register} = {WRAP.format(register)}"
    return [f"{register} = {expression}", test]


def low(text: str, value: Value) -> str:
    """The low 32 bits, unsigned."""
    if isinstance(value, Scalar):
        if value.known:
            return str(value.umin & M32)
        if value.umax <= M32:
            return text
    return f"({text} & {M32})"


def low_signed(text: str, value: Value) -> str:
    """The low 32 bits, signed."""
    if isinstance(value, Scalar):
        if value.known:
            return str(i.s32(value.umin))
        if value.umax < 1 << 31:
            return text
    return f"(({text} & {M32} ^ {1 << 31}) - {1 << 31})"


def unsigned(text: str, value: Value) -> str:
    """All 64 bits, unsigned."""
    if isinstance(value, Scalar):
        if value.known:
            return str(value.umin)
        if value.smin >= 0:
            return text
    return f"({text} & {M64})"


def condition(insn: Insn, left: str, right: str, a: Value, b: Value) -> str:
    """A Python condition for a conditional jump."""
    op = insn.op
    if insn.cls == i.JMP32:
        form = low_signed if op in _SIGNED else low
    elif op in _SIGNED or op in (i.JEQ, i.JNE, i.JSET):
        form = _plain
    else:
        form = unsigned
    return f"{form(left, a)} {_COMPARE[op]} {form(right, b)}"


def _plain(text: str, value: Value) -> str:
    known = number(value)
    return text if known is None else str(known)


def arithmetic(insn: Insn, dst: str, src: str, a: Value, b: Value) -> list[str]:
    """Python statements for an arithmetic instruction on numbers, or on an address and a number."""
    if insn.op == i.END:
        return [f"{dst} = {_swap(insn, dst, a)}"]
    if insn.cls == i.ALU:
        return [f"{dst} = {_narrow(insn, dst, src, a, b)}"]
    return _wide(insn, dst, src, a, b)


def _swap(insn: Insn, dst: str, a: Value) -> str:
    cuts = insn.cls == i.ALU and not insn.by_register
    mask = (1 << insn.imm) - 1
    if cuts:
        return dst if insn.imm == 64 else f"{dst} & {mask}"
    sign = ", signed=True" if insn.imm == 64 else ""
    return f"from_bytes(({dst} & {mask}).to_bytes({insn.imm // 8}, 'little'), 'big'{sign})"


def _narrow(insn: Insn, dst: str, src: str, a: Value, b: Value) -> str:
    op = insn.op
    if op == i.MOV:
        return (
            f"((({src} & {(1 << insn.off) - 1}) ^ {1 << (insn.off - 1)}) - {1 << (insn.off - 1)}) & {M32}"
            if insn.off
            else low(src, b)
        )
    if op == i.NEG:
        return f"-{dst} & {M32}"
    if op in _PYTHON:
        return f"({dst} {_PYTHON[op]} {_plain(src, b)}) & {M32}"
    if op in (i.DIV, i.MOD):
        if insn.off:
            name = "sdiv" if op == i.DIV else "smod"
            return f"{name}({low_signed(dst, a)}, {low_signed(src, b)}) & {M32}"
        return _divide(op, low(dst, a), low(src, b), b, M32)
    known = number(b)
    count = str(known & 31) if known is not None else f"({src} & 31)"
    if op == i.LSH:
        return f"({low(dst, a)} << {count}) & {M32}"
    if op == i.RSH:
        return f"{low(dst, a)} >> {count}"
    return f"({low_signed(dst, a)} >> {count}) & {M32}"


def _divide(op: int, left: str, right: str, b: Value, mask: int) -> str:
    sign, otherwise = ("//", "0") if op == i.DIV else ("%", left)
    if isinstance(b, Scalar) and b.known and b.umin & mask:
        return f"{left} {sign} {right}"
    return f"({left} {sign} {right} if {right} else {otherwise})"


def _wide(insn: Insn, dst: str, src: str, a: Value, b: Value) -> list[str]:
    op = insn.op
    plain = _plain(src, b)
    if op == i.MOV:
        if not insn.off:
            return [f"{dst} = {plain}"]
        half = 1 << (insn.off - 1)
        return [f"{dst} = ({src} & {2 * half - 1} ^ {half}) - {half}"]
    if op == i.NEG:
        return wrapped(dst, f"-{dst}", isinstance(a, Scalar) and a.smin > S64_MIN)
    if op in (i.ADD, i.SUB, i.MUL):
        return wrapped(dst, f"{dst} {_PYTHON[op]} {plain}", _fits(op, a, b))
    if op in _PYTHON:
        return [f"{dst} = {dst} {_PYTHON[op]} {plain}"]
    if op in (i.DIV, i.MOD):
        if insn.off:
            call = f"{'sdiv' if op == i.DIV else 'smod'}({dst}, {plain})"
            return [f"{dst} = {WRAP.format(call)}"]
        expression = _divide(op, unsigned(dst, a), unsigned(src, b), b, M64)
        small = isinstance(a, Scalar) and a.smin >= 0
        return [f"{dst} = {expression}"] if small else [f"{dst} = {WRAP.format(_in(expression))}"]
    known = number(b)
    count = str(known & 63) if known is not None else f"({src} & 63)"
    if op == i.ARSH:
        return [f"{dst} = {dst} >> {count}"]
    if op == i.RSH:
        positive = (isinstance(a, Scalar) and a.smin >= 0) or (known is not None and known & 63 > 0)
        expression = f"{unsigned(dst, a)} >> {count}"
        return [f"{dst} = {expression}"] if positive else [f"{dst} = {WRAP.format(_in(expression))}"]
    fits = (
        isinstance(a, Scalar)
        and known is not None
        and a.smin << (known & 63) >= S64_MIN
        and a.smax << (known & 63) <= S64_MAX
    )
    return wrapped(dst, f"{dst} << {count}", fits)


def _in(expression: str) -> str:
    return f"({expression})"


def _fits(op: int, a: Value, b: Value) -> bool:
    if isinstance(a, Pointer) or isinstance(b, Pointer):
        return True  # an address and a distance: both far from 2**63
    if not isinstance(a, Scalar) or not isinstance(b, Scalar):
        return False  # a number on one visit, an address on another
    if op == i.MUL:
        ends = [x * y for x in (a.smin, a.smax) for y in (b.smin, b.smax)]
    elif op == i.ADD:
        ends = [a.smin + b.smin, a.smax + b.smax]
    else:
        ends = [a.smin - b.smax, a.smax - b.smin]
    return min(ends) >= S64_MIN and max(ends) <= S64_MAX


def sdiv(a: int, b: int) -> int:
    """Division towards zero; by 0 it is 0."""
    if not b:
        return 0
    quotient = abs(a) // abs(b)
    return -quotient if (a < 0) != (b < 0) else quotient


def smod(a: int, b: int) -> int:
    """The remainder with the sign of the dividend; by 0 it is the dividend."""
    if not b:
        return a
    remainder = abs(a) % abs(b)
    return -remainder if a < 0 else remainder
