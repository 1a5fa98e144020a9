"""The instruction set of RFC 9669 as data: opcodes, fields, and the eight bytes of an instruction.

Names are those of include/uapi/linux/bpf.h without ``BPF_``.  A program is a sequence of *slots* of eight bytes; only
``lddw`` fills two of them, and jumps count slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from uxk.bpf.errors import BpfError

LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)
"""Instruction classes: the low three bits of an opcode (RFC 9669, section 3.1)."""
K: Final = 0x00
X: Final = 0x08
"""Source of an arithmetic or jump instruction: the immediate, or a register."""

ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR, MOV, ARSH, END = range(0x00, 0xE0, 0x10)
"""Arithmetic operations (section 4.1); ``END`` swaps bytes."""
JA, JEQ, JGT, JGE, JSET, JNE, JSGT, JSGE, CALL, EXIT, JLT, JLE, JSLT, JSLE, JCOND = range(0x00, 0xF0, 0x10)
"""Jumps (section 4.3); ``JCOND`` is Linux's ``may_goto``."""
IMM, ABS, IND, MEM, MEMSX, ATOMIC = 0x00, 0x20, 0x40, 0x60, 0x80, 0xC0
"""Modes of loads and stores (section 5)."""
W, H, B, DW = 0x00, 0x08, 0x10, 0x18
"""Sizes of loads and stores."""
WIDTH_BYTES: Final = {W: 4, H: 2, B: 1, DW: 8}

FETCH: Final = 0x01
XCHG: Final = 0xE1
CMPXCHG: Final = 0xF1
LOAD_ACQ: Final = 0x100
STORE_REL: Final = 0x110
"""Atomic operations in ``imm`` (section 5.3; the last two are Linux 6.15's); ADD, OR, AND, XOR may have FETCH."""

LDDW: Final = LD | IMM | DW
MAY_GOTO: Final = JMP | JCOND
GOTOL: Final = JMP32 | JA
EXIT_INSN: Final = JMP | EXIT
CALL_INSN: Final = JMP | CALL
CALLX: Final = JMP | CALL | X

CALL_HELPER, CALL_LOCAL, CALL_KFUNC = range(3)
"""What the source field of a call means (section 4.3.2)."""
IMM64_VALUE, IMM64_MAP_FD, IMM64_MAP_VALUE, IMM64_VAR, IMM64_FUNC, IMM64_MAP_IDX, IMM64_MAP_IDX_VALUE = range(7)
"""What the source field of ``lddw`` means (section 5.4)."""

REGISTERS: Final = 11
FRAME: Final = 10
"""r10, the frame pointer, which cannot be written."""
STACK_BYTES: Final = 512
"""Stack of one frame."""
FRAMES_MAX: Final = 8
"""Deepest chain of local calls, as in Linux (MAX_CALL_FRAMES)."""
INSNS_MAX: Final = 1_000_000
"""Longest program, as in Linux (BPF_COMPLEXITY_LIMIT_INSNS)."""
INSN_BYTES: Final = 8

M32: Final = (1 << 32) - 1
M64: Final = (1 << 64) - 1

_LAYOUT: Final = Struct("<BBhi")


class Insn(NamedTuple):
    """One slot.  ``off`` and ``imm`` are signed, 16 and 32 bits."""

    opcode: int
    dst: int = 0
    src: int = 0
    off: int = 0
    imm: int = 0

    @property
    def cls(self) -> int:
        """The instruction class."""
        return self.opcode & 7

    @property
    def op(self) -> int:
        """The operation of arithmetic and jumps."""
        return self.opcode & 0xF0

    @property
    def mode(self) -> int:
        """The mode of a load or store."""
        return self.opcode & 0xE0

    @property
    def width_bytes(self) -> int:
        """Bytes that a load or store moves."""
        return WIDTH_BYTES[self.opcode & 0x18]

    @property
    def by_register(self) -> bool:
        """Whether the source of arithmetic or a jump is a register."""
        return bool(self.opcode & X)

    @property
    def is_local_call(self) -> bool:
        """Whether it calls a function of the program."""
        return self.opcode == CALL_INSN and self.src == CALL_LOCAL

    @property
    def jumps(self) -> bool:
        """Whether it may go elsewhere than to the next slot; calls and ``exit`` are not jumps."""
        return self.cls in (JMP, JMP32) and self.op not in (CALL, EXIT)

    @property
    def always_jumps(self) -> bool:
        """Whether it is ``goto`` or ``gotol``."""
        return self.opcode in (JMP | JA, GOTOL)

    @property
    def distance(self) -> int:
        """Slots from the next one to the target of a jump or of a local call."""
        return self.imm if self.opcode == GOTOL or self.is_local_call else self.off


def decode(program: bytes | bytearray | memoryview) -> tuple[Insn, ...]:
    """The slots of a program.  Raises ``BpfError`` for a length that is not a positive multiple of 8."""
    size_bytes = len(program)
    if not size_bytes or size_bytes % INSN_BYTES:
        raise BpfError(f"a program of {size_bytes} bytes; expected a positive multiple of {INSN_BYTES}")
    if size_bytes > INSNS_MAX * INSN_BYTES:
        raise BpfError(f"a program of {size_bytes // INSN_BYTES} instructions; at most {INSNS_MAX}")
    return tuple(
        Insn(opcode, registers & 15, registers >> 4, off, imm)
        for opcode, registers, off, imm in _LAYOUT.iter_unpack(program)
    )


def encode(insns: Sequence[Insn]) -> bytes:
    """The bytes of a program."""
    return b"".join(_LAYOUT.pack(i.opcode, i.dst | i.src << 4, i.off, i.imm) for i in insns)


def lddw(dst: int, value: int, src: int = IMM64_VALUE) -> tuple[Insn, Insn]:
    """The two slots that load 64 bits; ``value`` may be given signed or unsigned."""
    return Insn(LDDW, dst, src, 0, s32(value)), Insn(0, 0, 0, 0, s32(value >> 32))


def imm64(insns: Sequence[Insn], pc: int) -> int:
    """The unsigned 64-bit immediate of the ``lddw`` at ``pc``."""
    return insns[pc].imm & M32 | (insns[pc + 1].imm & M32) << 32


def s32(value: int) -> int:
    """The low 32 bits as a signed number."""
    return ((value & M32) ^ 0x8000_0000) - 0x8000_0000


def s64(value: int) -> int:
    """The low 64 bits as a signed number."""
    return ((value & M64) ^ (1 << 63)) - (1 << 63)


def signed(value: int, bits: int) -> int:
    """The low ``bits`` bits as a signed number."""
    sign = 1 << (bits - 1)
    return ((value & ((sign << 1) - 1)) ^ sign) - sign
