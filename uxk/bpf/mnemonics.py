"""Assembler for the mnemonic dialect of uBPF and the public conformance tests: ``ldxdw %r0, [%r1+8]``.

Labels as in ``uxk.bpf.asm``; ``exit`` as a target means the next ``exit`` from the top of the program.
"""

from __future__ import annotations

import re
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.errors import AssemblyError
from uxk.bpf.insn import Insn

_ALU: Final = {
    "add": i.ADD, "sub": i.SUB, "mul": i.MUL, "div": i.DIV, "or": i.OR, "and": i.AND, "lsh": i.LSH, "rsh": i.RSH,
    "neg": i.NEG, "mod": i.MOD, "xor": i.XOR, "mov": i.MOV, "arsh": i.ARSH, "sdiv": i.DIV, "smod": i.MOD,
}  # fmt: skip
_JUMP: Final = {
    "jeq": i.JEQ, "jgt": i.JGT, "jge": i.JGE, "jset": i.JSET, "jne": i.JNE, "jsgt": i.JSGT, "jsge": i.JSGE,
    "jlt": i.JLT, "jle": i.JLE, "jslt": i.JSLT, "jsle": i.JSLE,
}  # fmt: skip
_SIZE: Final = {"b": i.B, "h": i.H, "w": i.W, "dw": i.DW}
_SWAP: Final = {"le": i.ALU | i.END, "be": i.ALU | i.END | i.X, "swap": i.ALU64 | i.END, "bswap": i.ALU64 | i.END}
_ATOMIC: Final = {"add": i.ADD, "or": i.OR, "and": i.AND, "xor": i.XOR, "xchg": i.XCHG, "cmpxchg": i.CMPXCHG}


def assemble(text: str) -> bytes:
    """The program that ``text`` describes.  Raises ``AssemblyError`` with the line's number."""
    insns: list[Insn] = []
    labels: dict[str, int] = {}
    fixes: list[tuple[int, str, int]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split("#", 1)[0].strip()
        while found := re.match(r"(\w+):\s*", line):
            labels[found[1]] = len(insns)
            line = line[found.end() :]
        if not line:
            continue
        try:
            slots, target = _line(line)
        except (KeyError, IndexError, ValueError):
            raise AssemblyError(number, f"{line!r} is no instruction") from None
        if target:
            fixes.append((len(insns), target, number))
        if slots[0].opcode == i.EXIT_INSN:
            labels.setdefault("exit", len(insns))
        insns += slots
    for pc, label, number in fixes:
        if label not in labels:
            raise AssemblyError(number, f"no label {label!r}")
        distance = labels[label] - pc - 1
        insn = insns[pc]
        wide = insn.opcode in (i.GOTOL, i.CALL_INSN)
        insns[pc] = insn._replace(imm=distance) if wide else insn._replace(off=distance)
    return i.encode(insns)


def _line(line: str) -> tuple[list[Insn], str]:
    words = line.split(None, 1)
    name, operands = words[0], [part.strip() for part in words[1].split(",")] if len(words) > 1 else []
    if name == "exit":
        return [Insn(i.EXIT_INSN)], ""
    if name == "lock":
        return [_lock(words[1])], ""
    if name == "call":
        return _call(operands[0])
    if name in ("ja", "ja32"):
        distance, label = _target(operands[0])
        return [Insn(i.GOTOL, imm=distance) if name == "ja32" else Insn(i.JMP | i.JA, off=distance)], label
    if name == "lddw":
        return list(i.lddw(_register(operands[0]), int(operands[1], 0))), ""
    if name[:3] in ("ldx", "stx") or name[:2] == "st":
        return [_memory(name, operands)], ""
    if name.startswith("movsx"):
        bits, wide = re.fullmatch(r"movsx(8|16|32)(32|64)", name).groups()  # type: ignore[union-attr]
        cls = i.ALU64 if wide == "64" else i.ALU
        return [Insn(cls | i.MOV | i.X, _register(operands[0]), _register(operands[1]), int(bits))], ""
    found = re.fullmatch(r"(le|be|swap|bswap)(16|32|64)", name)
    if found:
        return [Insn(_SWAP[found[1]], _register(operands[0]), imm=int(found[2]))], ""
    narrow = name.endswith("32")
    stem = name.removesuffix("32")
    if stem in _JUMP:
        opcode = (i.JMP32 if narrow else i.JMP) | _JUMP[stem]
        distance, label = _target(operands[2])
        return [_sourced(opcode, operands[:2], distance)], label
    opcode = (i.ALU if narrow else i.ALU64) | _ALU[stem]
    if stem == "neg":
        return [Insn(opcode, _register(operands[0]))], ""
    return [_sourced(opcode, operands, 1 if stem in ("sdiv", "smod") else 0)], ""


def _sourced(opcode: int, operands: list[str], off: int) -> Insn:
    if operands[1].startswith("%"):
        return Insn(opcode | i.X, _register(operands[0]), _register(operands[1]), off)
    return Insn(opcode, _register(operands[0]), 0, off, i.s32(int(operands[1], 0)))


def _register(text: str) -> int:
    return int(re.fullmatch(r"%r(10|\d)", text)[1])  # type: ignore[index]


def _target(text: str) -> tuple[int, str]:
    return (int(text, 0), "") if text[0] in "+-" else (0, text)


def _place(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\[(%r\d+)\s*([-+]\s*\w+)?\]", text)
    return _register(found[1]), int((found[2] or "0").replace(" ", ""), 0)  # type: ignore[index]


def _memory(name: str, operands: list[str]) -> Insn:
    if name.startswith("ldx"):
        signed = name[3] == "s"
        base, off = _place(operands[1])
        opcode = i.LDX | _SIZE[name[4:] if signed else name[3:]] | (i.MEMSX if signed else i.MEM)
        return Insn(opcode, _register(operands[0]), base, off)
    base, off = _place(operands[0])
    if name.startswith("stx"):
        return Insn(i.STX | _SIZE[name[3:]] | i.MEM, base, _register(operands[1]), off)
    return Insn(i.ST | _SIZE[name[2:]] | i.MEM, base, 0, off, i.s32(int(operands[1], 0)))


def _lock(rest: str) -> Insn:
    found = re.fullmatch(r"(fetch\s+)?(\w+?)(32)?\s+(\[[^]]*\])\s*,\s*(%r\d+)", rest)
    fetch, stem, narrow, place, source = found.groups()  # type: ignore[union-attr]
    base, off = _place(place)
    opcode = i.STX | i.ATOMIC | (i.W if narrow else i.DW)
    return Insn(opcode, base, _register(source), off, _ATOMIC[stem] | (i.FETCH if fetch else 0))


def _call(operand: str) -> tuple[list[Insn], str]:
    if operand.startswith("local "):
        return [Insn(i.CALL_INSN, src=i.CALL_LOCAL)], operand.removeprefix("local ").strip()
    if operand.startswith("%"):
        return [Insn(i.CALLX, _register(operand))], ""
    return [Insn(i.CALL_INSN, imm=int(operand, 0))], ""
