"""Loads, stores and 64-bit immediates in the verifier.

Models check_mem_access, check_stack_read, check_stack_write and check_atomic of kernel/bpf/verifier.c in strict mode.
"""

from __future__ import annotations

from collections.abc import Callable

from uxk.bpf import insn as i
from uxk.bpf.alu_rules import ARENA
from uxk.bpf.insn import FRAME, Insn
from uxk.bpf.proto import Spec
from uxk.bpf.state import Frame, State, unset
from uxk.bpf.values import SIGN_EXTENDED, SIZED, UNKNOWN, Handle, Pointer, Scalar, Space, Value, bounded, const


def immediate(insn: Insn, value: int, state: State, spec: Spec) -> str:
    """Applies an ``lddw``; why it is refused, or empty."""
    if insn.dst == FRAME:
        return "writes r10, the frame pointer"
    if insn.src == i.IMM64_VALUE:
        state.regs[insn.dst] = const(value)
        return ""
    if insn.src not in (i.IMM64_MAP_FD, i.IMM64_MAP_VALUE):
        return "refers to a variable, a function or a map by index; expected a number or a map by descriptor"
    shape = spec.maps.get(insn.imm)
    if shape is None:
        return f"no map {insn.imm}"
    inside = value >> 32
    if insn.src == i.IMM64_MAP_FD:
        if inside:
            return "unused fields must be zero"
        state.regs[insn.dst] = Handle(insn.imm)
    elif shape.kind == "arena":
        state.regs[insn.dst] = UNKNOWN
    elif not shape.direct:
        return f"map {insn.imm}, of kind {shape.kind}, has no value with an address; an array of one value has"
    elif inside >= shape.value_bytes:
        return f"offset {inside} in a value of {shape.value_bytes} bytes"
    else:
        space = Space("map value", shape.value_bytes, shape.writable, insn.imm)
        state.regs[insn.dst] = Pointer(space, inside, inside)
    return ""


def access(insn: Insn, state: State, spec: Spec, fresh: Callable[[], int]) -> str:
    """Applies a load, a store or an atomic operation; why it is refused, or empty."""
    if insn.mode == i.ATOMIC:
        return _atomic(insn, state, spec)
    if insn.cls == i.LDX:
        return _load(insn, state, spec, insn.dst)
    value: Value = state.tie(insn.src, fresh) if insn.cls == i.STX else const(insn.imm)
    if value is None:
        return unset(insn.src)
    return _store(insn, state, value)


def _load(insn: Insn, state: State, spec: Spec, dst: int) -> str:
    if dst == FRAME:
        return "writes r10, the frame pointer"
    size_bytes = insn.width_bytes
    why = reach(state, insn.src, insn.off, size_bytes, write=False)
    if why:
        return why
    base = state.regs[insn.src]
    assert isinstance(base, Pointer)
    value: Value = SIZED[size_bytes]
    if base.space.kind == "stack":
        frame = state.frames[base.space.number]
        off = base.low + insn.off
        if frame.holds_pointer(off) and size_bytes != 8:
            return f"reads {sized(size_bytes)} of a pointer on the stack at {off}"
        value = frame.read(off, size_bytes)
        if value is None:
            return f"reads {sized(size_bytes)} of the stack at {off}, not all of which were written on every path"
    elif base.space.kind == "memory" and base.low == base.high and size_bytes == 8:
        value = spec.fields.get(base.low + insn.off, UNKNOWN)
    if insn.mode == i.MEMSX:
        value = bounded(*SIGN_EXTENDED[size_bytes])
    state.regs[dst] = value
    return ""


def _store(insn: Insn, state: State, value: Value) -> str:
    size_bytes = insn.width_bytes
    why = reach(state, insn.dst, insn.off, size_bytes, write=True)
    if why:
        return why
    base = state.regs[insn.dst]
    assert isinstance(base, Pointer)
    if base.space.kind != "stack":
        if not isinstance(value, Scalar):
            return f"writes a pointer to {base.space}: {value}"
        return ""
    frame, off = state.frames[base.space.number], base.low + insn.off
    if not isinstance(value, Scalar) and size_bytes != 8:
        return f"writes {sized(size_bytes)} of a pointer: {value}"
    if frame.holds_pointer(off) and size_bytes != 8:
        return f"overwrites {sized(size_bytes)} of a pointer on the stack at {off}"
    if isinstance(value, Pointer) and value.space.kind == "stack" and base.space.number < len(state.frames) - 1:
        return f"leaves {value}, an address on the stack, on the stack of a caller"
    frame.write(off, size_bytes, value)
    return ""


def _atomic(insn: Insn, state: State, spec: Spec) -> str:
    load, size_bytes = insn.imm == i.LOAD_ACQ, insn.width_bytes
    base_register = insn.src if load else insn.dst
    base = state.regs[base_register]
    if (
        isinstance(base, Pointer)
        and base.space.kind != "arena"
        and (base.low != base.high or (base.low + insn.off) % size_bytes)
    ):
        return f"an atomic operation at {base}{insn.off:+d}; expected a multiple of {size_bytes}"
    if load:
        return _load(insn, state, spec, insn.dst)
    for register in (insn.src, *((0,) if insn.imm == i.CMPXCHG else ())):
        value = state.regs[register]
        if value is None:
            return unset(register)
        if not isinstance(value, Scalar):
            return f"an atomic operation with r{register}, a pointer: {value}"
    if insn.imm == i.STORE_REL:
        return _store(insn, state, state.regs[insn.src])
    fetched = 0 if insn.imm == i.CMPXCHG else insn.src if insn.imm & i.FETCH else None
    if fetched == FRAME:
        return "writes r10, the frame pointer"
    why = reach(state, insn.dst, insn.off, size_bytes, write=True)
    if why:
        return why
    assert isinstance(base, Pointer)
    if base.space == ARENA and fetched is not None and insn.imm & 0xF0 in (i.OR, i.AND, i.XOR):
        return "an atomic or, and, xor that fetches, in the arena: Linux on x86-64 has none"
    if base.space.kind == "stack":
        frame: Frame = state.frames[base.space.number]
        off = base.low + insn.off
        if frame.holds_pointer(off):
            return f"an atomic operation on a pointer on the stack at {off}"
        if frame.read(off, size_bytes) is None:
            return f"reads {sized(size_bytes)} of the stack at {off}, not all of which were written on every path"
        frame.write(off, size_bytes, SIZED[size_bytes])
    if fetched is not None:
        state.regs[fetched] = SIZED[size_bytes]
    return ""


def sized(size_bytes: int) -> str:
    """Bytes, in words."""
    return "1 byte" if size_bytes == 1 else f"{size_bytes} bytes"


def reach(state: State, register: int, off: int, size_bytes: int, *, write: bool) -> str:
    """Whether ``size_bytes`` at the pointer in a register, and ``off`` on, are all its own."""
    base = state.regs[register]
    if base is None:
        return unset(register)
    if not isinstance(base, Pointer):
        what = "a number" if isinstance(base, Scalar) else "not an address; look a value up in it first"
        return f"r{register} is {base}, {what}{'; expected an address' if isinstance(base, Scalar) else ''}"
    if base.null:
        return f"r{register} may be null; compare it with 0 first"
    space, low, high = base.space, base.low + off, base.high + off
    if space == ARENA:
        return ""
    if space.kind == "object":
        return f"r{register} is an object, whose inside is not to be touched"
    if write and not space.writable:
        return f"writes to {space}, which is read-only"
    if space.kind == "stack":
        if low % size_bytes:
            return f"{sized(size_bytes)} of the stack at {low}; expected a multiple of {size_bytes}"
        if not -i.STACK_BYTES <= low <= -size_bytes:
            return f"{sized(size_bytes)} of the stack at {low}; expected -{i.STACK_BYTES} to -{size_bytes}"
        state.frames[space.number].depth.reach(low)
        return ""
    if low < 0 or high + size_bytes > space.size_bytes:
        where = f"{low}" if low == high else f"{low}..{high}"
        return f"{sized(size_bytes)} of {space} at {where}; it has {space.size_bytes}"
    return ""
