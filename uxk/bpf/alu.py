"""Arithmetic, byte swaps and conditions on 64-bit registers (RFC 9669, sections 4.1 to 4.3).

Registers are held as unsigned Python integers below 2**64.  This is the reference: clear rather than quick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.insn import M32, M64, signed

Binary = Callable[[int, int, int], int]
"""(left, right, bits) -> any integer with the right low ``bits`` bits; both are given unsigned, below 2**bits."""


def _div(left: int, right: int, bits: int) -> int:
    return left // right if right else 0


def _mod(left: int, right: int, bits: int) -> int:
    return left % right if right else left


def _sdiv(left: int, right: int, bits: int) -> int:
    a, b = signed(left, bits), signed(right, bits)
    quotient = abs(a) // abs(b) if b else 0
    return -quotient if (a < 0) != (b < 0) else quotient


def _smod(left: int, right: int, bits: int) -> int:
    """The remainder has the sign of the dividend, as in C."""
    a, b = signed(left, bits), signed(right, bits)
    remainder = abs(a) % abs(b) if b else abs(a)
    return -remainder if a < 0 else remainder


OPERATIONS: Final[dict[int, Binary]] = {
    i.ADD: lambda a, b, bits: a + b,
    i.SUB: lambda a, b, bits: a - b,
    i.MUL: lambda a, b, bits: a * b,
    i.DIV: _div,
    i.MOD: _mod,
    i.OR: lambda a, b, bits: a | b,
    i.AND: lambda a, b, bits: a & b,
    i.XOR: lambda a, b, bits: a ^ b,
    i.LSH: lambda a, b, bits: a << (b & (bits - 1)),
    i.RSH: lambda a, b, bits: a >> (b & (bits - 1)),
    i.ARSH: lambda a, b, bits: signed(a, bits) >> (b & (bits - 1)),
    i.NEG: lambda a, b, bits: -a,
}
SIGNED: Final[dict[int, Binary]] = {i.DIV: _sdiv, i.MOD: _smod}
"""Used instead when ``off`` is 1 (ISA v4)."""


def alu(opcode: int, off: int, left: int, right: int) -> int:
    """What an arithmetic instruction leaves in its destination; ``right`` is the register or the extended immediate."""
    bits = 64 if opcode & 7 == i.ALU64 else 32
    mask = M64 if bits == 64 else M32
    op = opcode & 0xF0
    if op == i.END:
        return swap(opcode, left, right)
    if op == i.MOV:
        return (signed(right, off) if off else right) & mask
    operation = SIGNED[op] if off == 1 and op in SIGNED else OPERATIONS[op]
    return operation(left & mask, right & mask, bits) & mask


def swap(opcode: int, value: int, bits: int) -> int:
    """Byte order (section 4.2) of a little-endian machine: ``le`` cuts, ``be`` and ``bswap`` turn round."""
    size_bytes = bits // 8
    cut = value & ((1 << bits) - 1)
    if opcode & 7 == i.ALU and not opcode & i.X:
        return cut
    return int.from_bytes(cut.to_bytes(size_bytes, "little"), "big")


CONDITIONS: Final[dict[int, Callable[[int, int, int], bool]]] = {
    i.JEQ: lambda a, b, bits: a == b,
    i.JNE: lambda a, b, bits: a != b,
    i.JGT: lambda a, b, bits: a > b,
    i.JGE: lambda a, b, bits: a >= b,
    i.JLT: lambda a, b, bits: a < b,
    i.JLE: lambda a, b, bits: a <= b,
    i.JSET: lambda a, b, bits: bool(a & b),
    i.JSGT: lambda a, b, bits: signed(a, bits) > signed(b, bits),
    i.JSGE: lambda a, b, bits: signed(a, bits) >= signed(b, bits),
    i.JSLT: lambda a, b, bits: signed(a, bits) < signed(b, bits),
    i.JSLE: lambda a, b, bits: signed(a, bits) <= signed(b, bits),
}


def holds(opcode: int, left: int, right: int) -> bool:
    """Whether a conditional jump is taken."""
    bits, mask = (64, M64) if opcode & 7 == i.JMP else (32, M32)
    return CONDITIONS[opcode & 0xF0](left & mask, right & mask, bits)


def atomic(operation: int, old: int, operand: int, expected: int, bits: int) -> tuple[int, int | None]:
    """The new value of memory and, where there is one, the value fetched (section 5.3); all unsigned, ``bits`` wide."""
    mask = (1 << bits) - 1
    if operation == i.XCHG:
        return operand & mask, old
    if operation == i.CMPXCHG:
        return (operand if old == expected & mask else old) & mask, old
    new = OPERATIONS[operation & 0xF0](old, operand & mask, bits) & mask
    return new, old if operation & i.FETCH else None
