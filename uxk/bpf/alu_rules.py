"""Arithmetic in the verifier: numbers by their bounds, pointers by additions and subtractions of what has bounds.

Pointer rules are those of adjust_ptr_min_max_vals of kernel/bpf/verifier.c in strict mode.  A pointer may leave its
region: what counts is where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.disasm import ADDR_SPACE_CAST
from uxk.bpf.insn import FRAME, Insn
from uxk.bpf.state import State, unset
from uxk.bpf.structure import CAST_KERN
from uxk.bpf.values import UNKNOWN, Handle, Pointer, Scalar, Space, Value, compute, const

ARENA: Final = Space("arena", 1 << 32)
VARIABLE_MAX: Final = 1 << 29
"""Largest distance that a pointer may move at once (BPF_MAX_VAR_OFF)."""


def arithmetic(insn: Insn, state: State, fresh: Callable[[], int], *, arena: bool) -> str:
    """Applies an arithmetic instruction to the registers; why it is refused, or empty."""
    regs = state.regs
    if insn.dst == FRAME:
        return "writes r10, the frame pointer"
    if insn.op in (i.NEG, i.END):
        return _unary(insn, regs)
    source: Value = regs[insn.src] if insn.by_register else const(insn.imm)
    if source is None:
        return unset(insn.src)
    if insn.op == i.MOV:
        if insn.by_register:
            source = state.tie(insn.src, fresh)
        return _move(insn, regs, source, arena=arena)
    left = regs[insn.dst]
    if left is None:
        return unset(insn.dst)
    if isinstance(left, Scalar) and isinstance(source, Scalar):
        off = insn.off if insn.op in (i.DIV, i.MOD) else 0
        regs[insn.dst] = compute(insn.op, off, 64 if insn.cls == i.ALU64 else 32, left, source)
        return ""
    if (_in_arena(left) or _in_arena(source)) and not _elsewhere(left) and not _elsewhere(source):
        regs[insn.dst] = Pointer(ARENA, 0, 0)
        return "" if insn.cls == i.ALU64 else "32-bit arithmetic on a pointer"
    return _pointer(insn, regs, left, source)


def _in_arena(value: Value) -> bool:
    return isinstance(value, Pointer) and value.space.kind == "arena"


def _elsewhere(value: Value) -> bool:
    return not isinstance(value, Scalar) and not _in_arena(value)


def _unary(insn: Insn, regs: list[Value]) -> str:
    value = regs[insn.dst]
    if value is None:
        return unset(insn.dst)
    if not isinstance(value, Scalar):
        return f"arithmetic on r{insn.dst}, a pointer: {value}"
    regs[insn.dst] = UNKNOWN  # as in Linux, for byte swaps and negations alike
    return ""


def _move(insn: Insn, regs: list[Value], source: Value, *, arena: bool) -> str:
    wide = insn.cls == i.ALU64
    if wide and insn.by_register and insn.off == ADDR_SPACE_CAST:
        if not arena:
            return "an address of the arena, but the program has none"
        if not (isinstance(source, Scalar) or _in_arena(source)):
            return f"makes an address of the arena from {source}"
        regs[insn.dst] = Pointer(ARENA, 0, 0) if insn.imm == CAST_KERN else UNKNOWN
        return ""
    if isinstance(source, Scalar):
        regs[insn.dst] = compute(i.MOV, insn.off, 64 if wide else 32, source, source)
        return ""
    if not wide or insn.off:
        return f"copies a part of r{insn.src}, a pointer: {source}"
    regs[insn.dst] = source
    return ""


def _pointer(insn: Insn, regs: list[Value], left: Value, right: Value) -> str:
    if insn.cls == i.ALU:
        return f"32-bit arithmetic on a pointer: {left if not isinstance(left, Scalar) else right}"
    if insn.op not in (i.ADD, i.SUB):
        return "arithmetic on a pointer other than + and -"
    if isinstance(left, Handle) or isinstance(right, Handle):
        return "arithmetic on a map"
    if isinstance(left, Pointer) and isinstance(right, Pointer):
        return f"arithmetic on two pointers: {left} and {right}"
    if isinstance(left, Scalar) and insn.op == i.SUB:
        return f"subtracts a pointer from a number: {right}"
    pointer, number = (right, left) if isinstance(left, Scalar) else (left, right)
    assert isinstance(pointer, Pointer)  # what is left of the cases above
    assert isinstance(number, Scalar)
    if pointer.null:
        return f"arithmetic on {pointer}; compare it with 0 first"
    moved = _moved(pointer, number, subtract=insn.op == i.SUB)
    if isinstance(moved, str):
        return moved
    regs[insn.dst] = moved
    return ""


def _moved(pointer: Pointer, number: Scalar, *, subtract: bool) -> Pointer | str:
    low, high = (-number.smax, -number.smin) if subtract else (number.smin, number.smax)
    if low <= -VARIABLE_MAX or high >= VARIABLE_MAX:
        advice = "" if number.known else "; mask it, or compare it with a bound first"
        return f"moves {pointer} by {number}, too far{advice}"
    moved = Pointer(pointer.space, pointer.low + low, pointer.high + high)
    if pointer.space.kind == "object":
        return "arithmetic on an object"
    if pointer.space.kind == "stack" and low != high:
        return f"moves {pointer} by {number}; a pointer to the stack only moves by what is known"
    if low < 0 and low != high:
        return f"may move {pointer} by {low}, and by how much varies; expected 0 or more"
    if moved.low <= -VARIABLE_MAX or moved.high >= VARIABLE_MAX:
        return f"moves {pointer} by {number}, too far"
    return moved
