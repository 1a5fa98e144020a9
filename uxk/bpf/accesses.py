"""Python source for loads and stores of verified programs: two ways to hold memory and stack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.insn import M32, M64, Insn
from uxk.bpf.layout import MEMORY_BASE, STACK_BASE, STACK_TOP
from uxk.bpf.values import Pointer, Scalar, Value
from uxk.bpf.verifier import Proof

Lines = list[str]
_ATOMIC_SIGN: Final = {i.ADD: "+", i.OR: "|", i.AND: "&", i.XOR: "^"}


def suits_fields(proof: Proof) -> bool:
    """Whether a program reads only whole fields of read-only memory, has its stack in slots, and calls nobody."""
    memory = proof.spec.memory
    if memory is None or memory.writable or memory.size_bytes % 8:
        return False
    return all(_suits(proof.insns[pc], before) for pc, before in proof.before.items())


def _suits(insn: Insn, before: list[Value]) -> bool:
    if insn.cls in (i.JMP, i.JMP32):
        return insn.op != i.CALL
    if insn.cls == i.LD:
        return insn.src == i.IMM64_VALUE
    if insn.cls not in (i.LDX, i.ST, i.STX):
        return True
    base = before[insn.src if insn.cls == i.LDX else insn.dst]
    fixed = isinstance(base, Pointer) and base.low == base.high and insn.mode == i.MEM and insn.width_bytes == 8
    return (
        fixed
        and isinstance(base, Pointer)
        and base.space.kind in ("memory", "stack")
        and (base.low + insn.off) % 8 == 0
    )


class Access(ABC):
    """How a translated function reaches memory."""

    def __init__(self, proof: Proof) -> None:
        self._proof = proof

    @abstractmethod
    def parameters(self, *, main: bool) -> str:
        """The parameters of a function."""

    @abstractmethod
    def prologue(self, *, main: bool) -> Lines:
        """What a function begins with."""

    @abstractmethod
    def statements(self, pc: int, insn: Insn, before: list[Value]) -> Lines:
        """A load, a store or an atomic operation."""


class Fields(Access):
    """Memory is a tuple of signed numbers; each slot of the stack is a variable."""

    def parameters(self, *, main: bool) -> str:
        """The fields."""
        return "fields"

    def prologue(self, *, main: bool) -> Lines:
        """Addresses are never looked at, but may be copied."""
        memory = self._proof.spec.memory
        size_bytes = memory.size_bytes if memory else 0
        return (
            [f"r1, r2, r10 = {MEMORY_BASE}, {size_bytes}, {STACK_TOP}"]
            if self._uses_address()
            else [f"r2 = {size_bytes}"]
        )

    def _uses_address(self) -> bool:
        """Whether an instruction other than a load or a store looks at an address that was there at first."""
        for pc in self._proof.before:
            insn = self._proof.insns[pc]
            sources = [insn.src] if insn.cls == i.STX or insn.by_register else []
            if insn.cls in (i.ALU, i.ALU64) and insn.op != i.MOV:
                sources.append(insn.dst)
            if insn.cls not in (i.LDX, i.LD) and {1, i.FRAME} & set(sources):
                return True
        return False

    def statements(self, pc: int, insn: Insn, before: list[Value]) -> Lines:
        """A field, or a variable for a slot."""
        base = before[insn.src if insn.cls == i.LDX else insn.dst]
        assert isinstance(base, Pointer)
        off = base.low + insn.off
        place = f"fields[{off // 8}]" if base.space.kind == "memory" else f"s{-off // 8}"
        if insn.cls == i.LDX:
            return [f"r{insn.dst} = {place}"]
        return [f"{place} = {f'r{insn.src}' if insn.cls == i.STX else insn.imm}"]


class Bytes(Access):
    """Memory and stack are buffers; other regions are found by their address, the arena by its offset."""

    def parameters(self, *, main: bool) -> str:
        """r1 to r5 and the frame pointer of a function that is called; r1 and r2 of the program."""
        return "machine, memory, stack, r1, r2" if main else "machine, memory, stack, r1, r2, r3, r4, r5, r10"

    def prologue(self, *, main: bool) -> Lines:
        """The frame pointer; and what may be passed on, or returned, although nobody looks at it."""
        if not main:
            return ["r0 = 0"]
        calls = any(insn.cls == i.JMP and insn.op == i.CALL for insn in self._proof.insns)
        return [f"r10 = {STACK_TOP}", *(["r3 = r4 = r5 = 0"] if calls else [])]

    def statements(self, pc: int, insn: Insn, before: list[Value]) -> Lines:
        """By the kind of access."""
        if insn.mode == i.ATOMIC and insn.imm not in (i.LOAD_ACQ, i.STORE_REL):
            return self._atomic(insn, before)
        if insn.cls == i.LDX or (insn.mode == i.ATOMIC and insn.imm == i.LOAD_ACQ):
            signed = insn.mode == i.MEMSX or insn.width_bytes == 8
            text = self._load(before[insn.src], insn.src, insn.off, insn.width_bytes, signed=signed)
            return [f"r{insn.dst} = {text}"]
        mask = (1 << 8 * insn.width_bytes) - 1
        if insn.cls == i.ST:
            return [self._store(before[insn.dst], insn.dst, insn.off, insn.width_bytes, str(insn.imm & mask))]
        value = before[insn.src]
        small = isinstance(value, Scalar) and value.umax <= mask and value.smin >= 0
        text = f"r{insn.src}" if small else f"r{insn.src} & {mask}"
        return [self._store(before[insn.dst], insn.dst, insn.off, insn.width_bytes, text)]

    def _place(self, base: Value, register: int, off: int) -> tuple[str, str]:
        """The buffer and the offset in it; no buffer where it must be looked for."""
        if not isinstance(base, Pointer):  # a function that is called with pointers into different regions
            return "", f"r{register} {off:+d}"
        if base.space.kind == "memory":
            origin = off - MEMORY_BASE
        elif base.space.kind == "stack":
            origin = off - STACK_BASE
        else:
            return "", f"r{register} {off:+d}"
        if base.space.kind == "memory" and base.low == base.high:
            return "memory", str(base.low + off)
        return base.space.kind, f"r{register} {origin:+d}"

    def _load(self, base: Value, register: int, off: int, size_bytes: int, *, signed: bool) -> str:
        buffer, offset = self._place(base, register, off)
        bits = 8 * size_bytes
        if buffer:
            return f"ld_{'s' if signed else 'u'}{bits}({buffer}, {offset})[0]"
        text = self._far(base, offset, size_bytes)
        return f"({text} ^ {1 << (bits - 1)}) - {1 << (bits - 1)}" if signed else text

    def _far(self, base: Value, offset: str, size_bytes: int) -> str:
        if isinstance(base, Pointer) and base.space.kind == "arena":
            register, off = offset.split(" ")
            return f"machine.arena.load(({register} & {M32}) {off}, {size_bytes})"
        return f"machine.memory.load({offset}, {size_bytes})"

    def _store(self, base: Value, register: int, off: int, size_bytes: int, text: str) -> str:
        buffer, offset = self._place(base, register, off)
        if buffer:
            return f"st_{8 * size_bytes}({buffer}, {offset}, {text})"
        if isinstance(base, Pointer) and base.space.kind == "arena":
            register_name, distance = offset.split(" ")
            return f"machine.arena.store(({register_name} & {M32}) {distance}, {size_bytes}, {text})"
        return f"machine.memory.store({offset}, {size_bytes}, {text})"

    def _atomic(self, insn: Insn, before: list[Value]) -> Lines:
        base, bits = before[insn.dst], 8 * insn.width_bytes
        mask = M64 if bits == 64 else M32
        lines = [f"old = {self._load(base, insn.dst, insn.off, insn.width_bytes, signed=False)}"]
        source = f"(r{insn.src} & {mask})"
        if insn.imm == i.XCHG:
            new = source
        elif insn.imm == i.CMPXCHG:
            new = f"({source} if old == r0 & {mask} else old)"
        else:
            new = f"(old {_ATOMIC_SIGN[insn.imm & 0xF0]} {source}) & {mask}"
        lines.append(self._store(base, insn.dst, insn.off, insn.width_bytes, new))
        if insn.imm in (i.XCHG, i.CMPXCHG) or insn.imm & i.FETCH:
            target = 0 if insn.imm == i.CMPXCHG else insn.src
            signed = f"(old ^ {1 << 63}) - {1 << 63}" if bits == 64 else "old"
            lines.append(f"r{target} = {signed}")
        return lines
