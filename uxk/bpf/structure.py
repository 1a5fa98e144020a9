"""Whether the slots of a program are well formed at all: known opcodes, zero unused fields, jumps that land.

What no path through the program can change; the verifier's first pass (kernel/bpf/verifier.c: check_subprogs,
resolve_pseudo_ldimm64, and the field checks of check_alu_op and check_mem_access).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.disasm import ADDR_SPACE_CAST, line
from uxk.bpf.errors import VerifierError
from uxk.bpf.insn import Insn

CAST_KERN: Final = 1
CAST_USER: Final = 1 << 16
"""``imm`` of that move: (to << 16 | from), with 0 for the program's own address space and 1 for the arena's."""

_ALU_OPS: Final = frozenset(range(i.ADD, i.END + 1, 0x10))
_JMP_OPS: Final = frozenset(range(i.JA, i.JCOND + 1, 0x10))
_ATOMIC: Final = frozenset({i.XCHG, i.CMPXCHG, *(op | f for op in (i.ADD, i.OR, i.AND, i.XOR) for f in (0, i.FETCH))})


def problem(insn: Insn) -> str:
    """Why one slot (not the second of an ``lddw``) is no instruction; empty if it is."""
    if insn.dst >= i.REGISTERS or insn.src >= i.REGISTERS:
        return f"no register r{max(insn.dst, insn.src)}; expected r0 to r10"
    match insn.cls:
        case i.ALU | i.ALU64:
            return _alu_problem(insn)
        case i.JMP | i.JMP32:
            return _jump_problem(insn)
        case i.LD:
            return _lddw_problem(insn)
        case _:
            return _memory_problem(insn)


def _unknown(insn: Insn) -> str:
    return f"unknown opcode {insn.opcode:#04x}"


def _alu_problem(insn: Insn) -> str:
    wide, bits = insn.cls == i.ALU64, 64 if insn.cls == i.ALU64 else 32
    if insn.op not in _ALU_OPS:
        return _unknown(insn)
    if insn.op == i.END:
        if wide and insn.by_register:
            return _unknown(insn)
        if insn.src or insn.off or insn.imm not in (16, 32, 64):
            return f"swaps {insn.imm} bits; expected 16, 32 or 64, and other fields of zero"
        return ""
    if insn.op == i.NEG:
        if insn.by_register:
            return _unknown(insn)
        return "unused fields must be zero" if insn.src or insn.off or insn.imm else ""
    if insn.op == i.MOV and insn.by_register and wide and insn.off == ADDR_SPACE_CAST:
        return "" if insn.imm in (CAST_KERN, CAST_USER) else f"no address spaces {insn.imm:#x}; expected 0x1 or 0x10000"
    if insn.imm if insn.by_register else insn.src:
        return "unused fields must be zero"
    if insn.op == i.MOV and insn.by_register:
        allowed: tuple[int, ...] = (0, 8, 16, 32) if wide else (0, 8, 16)
    else:
        allowed = (0, 1) if insn.op in (i.DIV, i.MOD) else (0,)
    if insn.off not in allowed:
        return f"offset {insn.off}; expected {' or '.join(map(str, allowed))}"
    if not insn.by_register and insn.op in (i.DIV, i.MOD) and not insn.imm:
        return "division by zero"
    if not insn.by_register and insn.op in (i.LSH, i.RSH, i.ARSH) and not 0 <= insn.imm < bits:
        return f"invalid shift by {insn.imm} of {bits} bits"
    return ""


def _jump_problem(insn: Insn) -> str:
    narrow = insn.cls == i.JMP32
    if insn.op not in _JMP_OPS or (narrow and insn.op in (i.CALL, i.EXIT, i.JCOND)):
        return _unknown(insn)
    if insn.op in (i.JA, i.EXIT, i.JCOND) and insn.by_register:
        return _unknown(insn)
    if insn.op == i.JA:
        rest = insn.off if narrow else insn.imm
        return "unused fields must be zero" if insn.dst or insn.src or rest else ""
    if insn.op == i.EXIT:
        return "unused fields must be zero" if insn.dst or insn.src or insn.off or insn.imm else ""
    if insn.op == i.JCOND:
        return "unused fields must be zero" if insn.dst or insn.src or insn.imm else ""
    if insn.op == i.CALL:
        if insn.by_register:
            return "a call through a register; expected a helper, a kfunc or a function of the program"
        if insn.dst or (insn.off and insn.src != i.CALL_KFUNC) or insn.src > i.CALL_KFUNC:
            return "unused fields must be zero"
        return ""
    return "unused fields must be zero" if (insn.imm if insn.by_register else insn.src) else ""


def _lddw_problem(insn: Insn) -> str:
    if insn.opcode != i.LDDW:
        return (
            f"a legacy load from a packet, opcode {insn.opcode:#04x}" if insn.mode in (i.ABS, i.IND) else _unknown(insn)
        )
    return "unused fields must be zero" if insn.off or insn.src > i.IMM64_MAP_IDX_VALUE else ""


def _memory_problem(insn: Insn) -> str:
    size = insn.opcode & 0x18
    if insn.mode == i.MEM:
        unused = {i.LDX: insn.imm, i.ST: insn.src, i.STX: insn.imm}[insn.cls]
        return "unused fields must be zero" if unused else ""
    if insn.mode == i.MEMSX and insn.cls == i.LDX and size != i.DW:
        return "unused fields must be zero" if insn.imm else ""
    if insn.mode == i.ATOMIC and insn.cls == i.STX:
        if insn.imm in (i.LOAD_ACQ, i.STORE_REL):
            return ""
        if size not in (i.W, i.DW):
            return "an atomic operation on 1 or 2 bytes; expected 4 or 8"
        return "" if insn.imm in _ATOMIC else f"unknown atomic operation {insn.imm:#x}"
    return _unknown(insn)


def second_slots(insns: Sequence[Insn]) -> frozenset[int]:
    """The slots that belong to the ``lddw`` before them."""
    found: set[int] = set()
    for pc, insn in enumerate(insns):
        if insn.opcode == i.LDDW and pc not in found:
            found.add(pc + 1)
    return frozenset(found)


def check(insns: Sequence[Insn]) -> frozenset[int]:
    """Raises ``VerifierError`` for the first malformed slot or stray jump; returns the second slots of ``lddw``."""
    second = second_slots(insns)
    for pc, insn in enumerate(insns):
        if pc in second:
            if insn._replace(imm=0) != Insn(0):
                raise VerifierError(pc, "the second half of a 64-bit load has other fields than an immediate")
            continue
        if insn.opcode == i.LDDW and pc + 1 >= len(insns):
            raise VerifierError(pc, "a 64-bit load without its second half")
        if why := problem(insn):
            raise VerifierError(pc, why, line(insns, pc))
        if insn.jumps or insn.is_local_call:
            target = pc + 1 + insn.distance
            if not 0 <= target < len(insns) or target in second:
                place = "into the middle of a 64-bit load" if target in second else "out of the program"
                raise VerifierError(pc, f"goes to {target}, {place}; expected 0 to {len(insns) - 1}", line(insns, pc))
    return second
