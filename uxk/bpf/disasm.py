"""Disassembler: programs in the text form that LLVM's assembler reads and Linux's verifier log prints.

What has no such text, for its opcode or for a field that should be zero, is shown as ``.insn`` and its fields, so the
assembler makes the same bytes again of whatever is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.insn import Insn

ADDR_SPACE_CAST: Final = 1
"""``off`` of the move that turns an arena pointer of user space into one of the program, or back."""
ALU_SIGN: Final = {
    i.ADD: "+=", i.SUB: "-=", i.MUL: "*=", i.DIV: "/=", i.OR: "|=", i.AND: "&=", i.LSH: "<<=", i.RSH: ">>=",
    i.MOD: "%=", i.XOR: "^=", i.MOV: "=", i.ARSH: "s>>=",
}  # fmt: skip
JUMP_SIGN: Final = {
    i.JEQ: "==", i.JGT: ">", i.JGE: ">=", i.JSET: "&", i.JNE: "!=", i.JSGT: "s>", i.JSGE: "s>=", i.JLT: "<",
    i.JLE: "<=", i.JSLT: "s<", i.JSLE: "s<=",
}  # fmt: skip
SIZE_NAME: Final = {i.W: "u32", i.H: "u16", i.B: "u8", i.DW: "u64"}
FETCH_NAME: Final = {i.ADD: "add", i.OR: "or", i.AND: "and", i.XOR: "xor"}
MAP_WORD: Final = {
    i.IMM64_MAP_FD: "fd", i.IMM64_MAP_VALUE: "fd", i.IMM64_MAP_IDX: "idx", i.IMM64_MAP_IDX_VALUE: "idx",
}  # fmt: skip


def disassemble(insns: Sequence[Insn], *, numbers: bool = False) -> str:
    """One line an instruction; ``numbers`` puts the slot in front."""
    lines, pc = [], 0
    while pc < len(insns):
        text = line(insns, pc)
        lines.append(f"{pc:4}: {text}" if numbers else text)
        pc += 2 if insns[pc].opcode == i.LDDW and not text.startswith(".insn") else 1
    return "\n".join(lines) + "\n"


def line(insns: Sequence[Insn], pc: int) -> str:
    """The text of the instruction at ``pc``; of one that is none, its fields."""
    insn = insns[pc]
    if insn.dst >= i.REGISTERS or insn.src >= i.REGISTERS or insn != _told(insn):
        return _fields(insn)
    try:
        return _text(insns, pc)
    except (KeyError, IndexError):
        return _fields(insn)


def _told(insn: Insn) -> Insn:
    """The instruction with those fields only that its text tells of."""
    opcode, dst, src, off, imm = insn
    match insn.cls:
        case i.ALU | i.ALU64:
            return _told_alu(insn)
        case i.LDX:
            return Insn(opcode, dst, src, off)
        case i.ST:
            return Insn(opcode, dst, 0, off, imm)
        case i.STX:
            return insn if insn.mode == i.ATOMIC else Insn(opcode, dst, src, off)
        case i.LD:
            return Insn(opcode, dst, src, 0, imm)
        case _ if opcode == i.CALL_INSN:
            return Insn(opcode, 0, min(src, i.CALL_KFUNC), 0, imm if src == i.CALL_LOCAL else max(imm, 0))
        case _ if opcode in (i.CALLX, i.EXIT_INSN):
            return Insn(opcode, dst if opcode == i.CALLX else 0)
        case _ if opcode in (i.GOTOL, i.JMP | i.JA, i.MAY_GOTO):
            return Insn(opcode, 0, 0, 0, imm) if opcode == i.GOTOL else Insn(opcode, 0, 0, off)
        case _:
            return Insn(opcode, dst, src, off) if insn.by_register else Insn(opcode, dst, 0, off, imm)


def _told_alu(insn: Insn) -> Insn:
    opcode, dst, src, off, imm = insn
    if insn.op == i.NEG:
        return Insn(opcode & ~i.X, dst)
    if insn.op == i.END:
        opcode = opcode & ~i.X if insn.cls == i.ALU64 else opcode
        return Insn(opcode, dst, imm=imm if imm in (16, 32, 64) else 16)
    if insn.op == i.MOV and insn.by_register:
        if off == ADDR_SPACE_CAST and insn.cls == i.ALU64:
            return Insn(opcode, dst, src, off, imm & 0x1_0001)
        return Insn(opcode, dst, src, off if off in ((8, 16, 32) if insn.cls == i.ALU64 else (8, 16)) else 0)
    off = off & 1 if insn.op in (i.DIV, i.MOD) else 0
    return Insn(opcode, dst, src, off) if insn.by_register else Insn(opcode, dst, 0, off, imm)


def _fields(insn: Insn) -> str:
    return f".insn {insn.opcode:#04x}, {insn.dst}, {insn.src}, {insn.off}, {insn.imm}"


def _text(insns: Sequence[Insn], pc: int) -> str:
    insn = insns[pc]
    match insn.cls:
        case i.ALU | i.ALU64:
            return _alu(insn)
        case i.JMP | i.JMP32:
            return _jump(insn)
        case i.LD:
            return _lddw(insns, pc)
        case i.LDX:
            sign = "s" if insn.mode == i.MEMSX else "u"
            if insn.mode not in (i.MEM, i.MEMSX) or insn.opcode == i.LDX | i.MEMSX | i.DW:
                raise KeyError(insn.mode)
            return f"r{insn.dst} = *({sign}{8 * insn.width_bytes} *)(r{insn.src} {offset(insn.off)})"
        case _:
            return _store(insn)


def offset(off: int) -> str:
    """``+ 8`` or ``- 8``."""
    return f"{'-' if off < 0 else '+'} {abs(off)}"


def _alu(insn: Insn) -> str:
    name = "r" if insn.cls == i.ALU64 else "w"
    dst = f"{name}{insn.dst}"
    if insn.op == i.NEG:
        return f"{dst} = -{dst}"
    if insn.op == i.END:
        order = "bswap" if insn.cls == i.ALU64 else "be" if insn.by_register else "le"
        return f"r{insn.dst} = {order}{insn.imm} r{insn.dst}"
    source = f"{name}{insn.src}" if insn.by_register else str(insn.imm)
    if insn.op == i.MOV and insn.off:
        if insn.off == ADDR_SPACE_CAST:
            return f"{dst} = addr_space_cast(r{insn.src}, {insn.imm >> 16}, {insn.imm & 0xFFFF})"
        return f"{dst} = (s{insn.off}){source}"
    sign = "s" if insn.off == 1 and insn.op in (i.DIV, i.MOD) else ""
    return f"{dst} {sign}{ALU_SIGN[insn.op]} {source}"


def _jump(insn: Insn) -> str:
    if insn.opcode == i.EXIT_INSN:
        return "exit"
    if insn.opcode in (i.CALL_INSN, i.CALLX):
        if insn.by_register:
            return f"callx r{insn.dst}"
        if insn.src == i.CALL_LOCAL:
            return f"call pc{insn.imm:+d}"
        return f"call kfunc#{insn.imm}" if insn.src == i.CALL_KFUNC else f"call {insn.imm}"
    if insn.always_jumps:
        return f"gotol {insn.imm:+d}" if insn.cls == i.JMP32 else f"goto {insn.off:+d}"
    if insn.opcode == i.MAY_GOTO:
        return f"may_goto {insn.off:+d}"
    name = "r" if insn.cls == i.JMP else "w"
    source = f"{name}{insn.src}" if insn.by_register else str(insn.imm)
    return f"if {name}{insn.dst} {JUMP_SIGN[insn.op]} {source} goto {insn.off:+d}"


def _lddw(insns: Sequence[Insn], pc: int) -> str:
    insn = insns[pc]
    high = insns[pc + 1].imm
    if insn.opcode != i.LDDW or insns[pc + 1]._replace(imm=0) != Insn(0):
        raise KeyError(insn.opcode)
    if insn.src == i.IMM64_VALUE:
        return f"r{insn.dst} = {i.imm64(insns, pc):#x} ll"
    valued = insn.src in (i.IMM64_MAP_VALUE, i.IMM64_MAP_IDX_VALUE)
    if insn.imm < 0 or (high and not valued):
        raise KeyError(insn.imm)
    return f"r{insn.dst} = map[{MAP_WORD[insn.src]}:{insn.imm}]{f'[0]+{high & i.M32}' if valued else ''} ll"


def _store(insn: Insn) -> str:
    place = f"*({SIZE_NAME[insn.opcode & 0x18]} *)(r{insn.dst} {offset(insn.off)})"
    if insn.mode == i.MEM:
        return f"{place} = {insn.imm if insn.cls == i.ST else f'r{insn.src}'}"
    if insn.mode != i.ATOMIC or insn.cls != i.STX:
        raise KeyError(insn.mode)
    pointer = f"({SIZE_NAME[insn.opcode & 0x18]} *)(r{insn.dst} {offset(insn.off)})"
    bits = 8 * insn.width_bytes
    name = "r" if bits == 64 else "w"
    if insn.imm == i.LOAD_ACQ:
        source = f"({SIZE_NAME[insn.opcode & 0x18]} *)(r{insn.src} {offset(insn.off)})"
        return f"{name}{insn.dst} = load_acquire({source})"
    if insn.imm == i.STORE_REL:
        return f"store_release({pointer}, {name}{insn.src})"
    if bits < 32:
        raise KeyError(bits)
    word = "_64" if bits == 64 else "32_32"
    if insn.imm == i.XCHG:
        return f"{name}{insn.src} = xchg{word}(r{insn.dst} {offset(insn.off)}, {name}{insn.src})"
    if insn.imm == i.CMPXCHG:
        return f"{name}0 = cmpxchg{word}(r{insn.dst} {offset(insn.off)}, {name}0, {name}{insn.src})"
    word = FETCH_NAME[insn.imm & ~i.FETCH]
    if insn.imm & i.FETCH:
        return f"{name}{insn.src} = atomic_fetch_{word}({pointer}, {name}{insn.src})"
    return f"lock {place} {ALU_SIGN[insn.imm]} {name}{insn.src}"
