"""Programs drawn at random with every instruction there is, mostly fit to be verified, and three ways to run them.

Between its parts a function keeps to this: r0, r2 to r5, r7 and r8 are numbers, r6 is the address of memory, r9 counts
turns, r1 may be anything; the stack from -64 on is written, and its slot at -64 is for pointers.
"""

from __future__ import annotations

import ctypes
import struct
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import linux_answers
import linux_judge as linux

from uxk.bpf import insn as i
from uxk.bpf.errors import Fault
from uxk.bpf.insn import M64, Insn, decode, encode, lddw
from uxk.bpf.maps import ArrayMap, HashMap, InstanceArrayMap
from uxk.bpf.program import Program
from uxk.bpf.proto import body
from uxk.bpf.translate import Translation

SIZE_BYTES: Final = 64
ARRAY, HASHED, SINGLE, OWN = 1, 2, 3, 4
VALUE_BYTES: Final = {ARRAY: 32, HASHED: 16, SINGLE: 32, OWN: 24}
ENTRIES: Final = {ARRAY: 2, HASHED: 3, SINGLE: 1, OWN: 2}
_LINUX_KIND: Final = {ARRAY: 2, HASHED: 1, SINGLE: 2, OWN: 6}
_MOV, _ADD = i.ALU64 | i.MOV, i.ALU64 | i.ADD
_SIZES = (i.B, i.H, i.W, i.DW)
_NUMBERS = (0, 2, 3, 4, 5, 7, 8)
_EDGES = (
    0, 1, -1, 2, 3, 7, 8, 31, 32, 63, 127, 128, 255, -128, 256, 32767, -32768, 65535, (1 << 31) - 1, -(1 << 31),
)  # fmt: skip
_WIDE = (
    1 << 63,
    (1 << 63) - 1,
    (1 << 63) + 1,
    1 << 32,
    (1 << 32) - 1,
    M64,
    1 << 31,
    0xFFFF_FFFF_8000_0000,
    0x0102_0304_0506_0708,
)
_ATOMICS = (*(op | f for op in (i.ADD, i.OR, i.AND, i.XOR) for f in (0, i.FETCH)), i.XCHG, i.CMPXCHG)
_ALU = (i.ADD, i.SUB, i.MUL, i.DIV, i.OR, i.AND, i.LSH, i.RSH, i.MOD, i.XOR, i.MOV, i.ARSH, i.NEG, i.END)
_JUMPS = (i.JEQ, i.JGT, i.JGE, i.JSET, i.JNE, i.JSGT, i.JSGE, i.JLT, i.JLE, i.JSLT, i.JSLE)
_POINTERS: Final = -64


def wider_program(rng: Random) -> bytes:
    """A program, with a chain of functions that may be eight frames deep."""
    deep = rng.choice((0, 0, 0, 1, 2, 3, 6))
    parts = [_Function(rng, callee=number + 1 if number < deep else 0).insns for number in range(deep + 1)]
    starts = [sum(map(len, parts[:number])) for number in range(deep + 1)]
    insns = [insn for part in parts for insn in part]
    for pc, insn in enumerate(insns):
        if insn.is_local_call:
            insns[pc] = insn._replace(imm=starts[insn.imm] - pc - 1)
    return encode(insns)


class _Function:
    def __init__(self, rng: Random, callee: int) -> None:
        self._rng, self._callee, self._looping = rng, callee, False
        insns = [Insn(_MOV | i.X, 6, 1), Insn(_MOV, 9)]
        for register in _NUMBERS:
            insns += self._number(register)
        insns += [Insn(i.STX | i.DW | i.MEM, 10, rng.choice(_NUMBERS), off) for off in range(-64, 0, 8)]
        insns += self._parts(rng.randrange(1, 7), 0)
        if callee:
            insns += self._call()
            insns += self._parts(rng.randrange(2), 0)
        for register in _NUMBERS[1:]:
            insns += [Insn(i.ALU64 | i.XOR | i.X, 0, register), Insn(i.ALU64 | i.MUL, 0, imm=31)]
        self.insns = [*insns, Insn(i.EXIT_INSN)]

    def _number(self, register: int) -> list[Insn]:
        rng, kind = self._rng, self._rng.random()
        if kind < 0.5:
            return [Insn(rng.choice((_MOV, _MOV, i.ALU | i.MOV)), register, imm=rng.choice(_EDGES))]
        if kind < 0.7:
            return list(lddw(register, rng.choice(_WIDE) if rng.random() < 0.6 else rng.getrandbits(64)))
        return [Insn(i.LDX | i.DW | i.MEM, register, 6, rng.randrange(SIZE_BYTES - 7))]

    def _parts(self, count: int, depth: int) -> list[Insn]:
        return [insn for _ in range(count) for insn in self._part(depth)]

    def _part(self, depth: int) -> list[Insn]:
        rng = self._rng
        simple = (self._alu, self._alu, self._alu, self._load, self._store, self._stack, self._atomic, self._shifting)
        ways = [*simple, *simple, self._lookup, self._lookup, self._change, self._direct, self._spill, self._stale]
        if depth < 3:
            ways += [self._branch] * 4
            if not self._looping:
                ways += [self._loop] * 2
        way = rng.choice(ways)
        return way(depth) if way in (self._branch, self._loop) else way()  # type: ignore[operator,call-arg]

    # --- numbers ---

    def _alu(self) -> list[Insn]:
        rng = self._rng
        return [self._one_alu() for _ in range(rng.randrange(1, 5))]

    def _one_alu(self) -> Insn:
        rng = self._rng
        cls, op, dst, src = rng.choice((i.ALU, i.ALU64)), rng.choice(_ALU), rng.choice(_NUMBERS), rng.choice(_NUMBERS)
        if op == i.END:
            return Insn(cls | op | (rng.choice((0, i.X)) if cls == i.ALU else 0), dst, imm=rng.choice((16, 32, 64)))
        if op == i.NEG:
            return Insn(cls | op, dst)
        signed = rng.choice((0, 1)) if op in (i.DIV, i.MOD) else 0
        if rng.random() < 0.6:
            off = rng.choice((0, 8, 16, 32) if cls == i.ALU64 else (0, 8, 16)) if op == i.MOV else signed
            return Insn(cls | op | i.X, dst, src, off)
        imm = rng.choice(_EDGES) if rng.random() < 0.8 else rng.randrange(-(1 << 31), 1 << 31)
        if op in (i.LSH, i.RSH, i.ARSH):
            imm &= 31 if cls == i.ALU else 63
        return Insn(cls | op, dst, 0, signed, (imm or -1) if op in (i.DIV, i.MOD) else imm)

    # --- memory ---

    def _off(self, base: int, size: int, room: int) -> int:
        return base + self._rng.randrange(room - i.WIDTH_BYTES[size] + 1)

    def _load(self) -> list[Insn]:
        rng = self._rng
        mode = rng.choice((i.MEM, i.MEM, i.MEMSX))
        size = rng.choice(_SIZES if mode == i.MEM else _SIZES[:3])
        return [Insn(i.LDX | size | mode, rng.choice(_NUMBERS), 6, self._off(0, size, SIZE_BYTES))]

    def _store(self) -> list[Insn]:
        return [self._one_store(6, 0, SIZE_BYTES)]

    def _one_store(self, register: int, base: int, room: int) -> Insn:
        rng, size = self._rng, self._rng.choice(_SIZES)
        off = self._off(base, size, room)
        if rng.random() < 0.5:
            return Insn(i.ST | size | i.MEM, register, 0, off, rng.choice(_EDGES))
        return Insn(i.STX | size | i.MEM, register, rng.choice(_NUMBERS), off)

    def _stack(self) -> list[Insn]:
        rng, size = self._rng, self._rng.choice(_SIZES)
        width = i.WIDTH_BYTES[size]
        off = -width * rng.randrange(1, 56 // width + 1)
        kind = rng.random()
        if kind < 0.35:
            return [Insn(i.ST | size | i.MEM, 10, 0, off, rng.choice(_EDGES))]
        if kind < 0.6:
            return [Insn(i.STX | size | i.MEM, 10, rng.choice(_NUMBERS), off)]
        mode = rng.choice((i.MEM, i.MEMSX)) if size != i.DW else i.MEM
        return [Insn(i.LDX | size | mode, rng.choice(_NUMBERS), 10, off)]

    def _atomic(self) -> list[Insn]:
        if self._rng.random() < 0.4:
            return [self._one_atomic(10, -56, 56)]
        return [self._one_atomic(6, 0, SIZE_BYTES)]

    def _one_atomic(self, register: int, base: int, room: int) -> Insn:
        rng, kind = self._rng, self._rng.random()
        size = rng.choice(_SIZES if kind < 0.3 else (i.W, i.DW))
        width = i.WIDTH_BYTES[size]
        off = base + width * rng.randrange(room // width)
        if kind < 0.15:
            return Insn(i.STX | size | i.ATOMIC, rng.choice(_NUMBERS), register, off, i.LOAD_ACQ)
        operation = i.STORE_REL if kind < 0.3 else rng.choice(_ATOMICS)
        return Insn(i.STX | size | i.ATOMIC, register, rng.choice(_NUMBERS), off, operation)

    def _shifting(self) -> list[Insn]:
        """A place in memory that a number says."""
        rng, index = self._rng, self._rng.choice((7, 8))
        mask = rng.choice((7, 15, 31))
        insns = [Insn(i.ALU64 | i.AND, index, imm=mask), Insn(_MOV | i.X, 1, 6), Insn(_ADD | i.X, 1, index)]
        if rng.random() < 0.3:
            insns.append(Insn(_ADD, 1, imm=rng.choice((-1, 8))))
            insns.append(Insn(i.ALU64 | i.SUB, 1, imm=rng.choice((-8, 0))))
        off = 1 if rng.random() < 0.9 else 0
        return [*insns, self._use(1, off, 16)]

    def _use(self, register: int, base: int, room: int) -> Insn:
        """A load or a store."""
        rng = self._rng
        if rng.random() < 0.5:
            return self._one_store(register, base, room)
        size = rng.choice(_SIZES)
        mode = rng.choice((i.MEM, i.MEMSX)) if size != i.DW else i.MEM
        return Insn(i.LDX | size | mode, rng.choice(_NUMBERS[1:]), register, self._off(base, size, room))

    def _used(self, register: int, room: int) -> list[Insn]:
        return [
            self._one_atomic(register, 0, room) if self._rng.random() < 0.3 else self._use(register, 0, room)
            for _ in range(self._rng.randrange(1, 3))
        ]

    # --- maps ---

    def _key(self) -> list[Insn]:
        rng = self._rng
        if rng.random() < 0.8:
            return [Insn(i.ST | i.W | i.MEM, 10, 0, -8, rng.choice((0, 0, 1, 1, 2, 3)))]
        return [Insn(i.ALU64 | i.AND, 7, imm=3), Insn(i.STX | i.W | i.MEM, 10, 7, -8)]

    def _map_call(self, number: int, helper: int) -> list[Insn]:
        """r1 to r5 are numbers again, or 0, afterwards; r0 is the result."""
        call = [*lddw(1, number, i.IMM64_MAP_FD), Insn(_MOV | i.X, 2, 10), Insn(_ADD, 2, imm=-8)]
        if helper == 2:
            flags = self._rng.choice((0, 0, 0, 1, 2, 3, 4, 5, 6, -1))
            call += [Insn(_MOV | i.X, 3, 6), Insn(_ADD, 3, imm=self._rng.randrange(33)), Insn(_MOV, 4, imm=flags)]
        call.append(Insn(i.CALL_INSN, imm=helper))
        return [*call, *(insn for register in (2, 3, 4, 5) for insn in self._number(register))]

    def _lookup(self) -> list[Insn]:
        rng, number = self._rng, self._rng.choice((ARRAY, HASHED, HASHED, SINGLE, OWN))
        use = [Insn(_MOV | i.X, 1, 0), Insn(_MOV, 0, imm=rng.choice(_EDGES)), *self._used(1, VALUE_BYTES[number])]
        after = [Insn(_MOV, 0, imm=rng.choice(_EDGES))]
        return [*self._key(), *self._map_call(number, 1), Insn(i.JMP | i.JEQ, 0, 0, len(use)), *use, *after]

    def _change(self) -> list[Insn]:
        """An update or a deletion."""
        number = self._rng.choice((ARRAY, HASHED, HASHED, HASHED, SINGLE, OWN))
        return [*self._key(), *self._map_call(number, self._rng.choice((2, 2, 3)))]

    def _stale(self) -> list[Insn]:
        """A value that is kept, while others, or it, are changed or deleted."""
        use = [
            Insn(i.STX | i.DW | i.MEM, 10, 0, _POINTERS),
            *self._key(), *self._map_call(HASHED, self._rng.choice((2, 2, 3))),
            *([*self._key(), *self._map_call(HASHED, self._rng.choice((2, 3)))] if self._rng.random() < 0.5 else []),
            Insn(i.LDX | i.DW | i.MEM, 1, 10, _POINTERS), *self._used(1, VALUE_BYTES[HASHED]),
        ]  # fmt: skip
        after = [Insn(i.ST | i.DW | i.MEM, 10, 0, _POINTERS, 0), Insn(_MOV, 0, imm=1)]
        return [*self._key(), *self._map_call(HASHED, 1), Insn(i.JMP | i.JEQ, 0, 0, len(use)), *use, *after]

    def _direct(self) -> list[Insn]:
        at = 8 * self._rng.randrange(3)
        return [*lddw(1, at << 32 | SINGLE, i.IMM64_MAP_VALUE), *self._used(1, VALUE_BYTES[SINGLE] - at)]

    def _spill(self) -> list[Insn]:
        """A pointer by way of the stack."""
        rng = self._rng
        source, room = rng.choice(((6, SIZE_BYTES), (10, 0)))
        insns = [
            Insn(i.STX | i.DW | i.MEM, 10, source, _POINTERS),
            *self._alu(),
            Insn(i.LDX | i.DW | i.MEM, 1, 10, _POINTERS),
        ]
        insns += self._used(1, room) if room else [Insn(_ADD, 1, imm=-56), *self._on_stack(1)]
        return [*insns, Insn(i.ST | i.DW | i.MEM, 10, 0, _POINTERS, rng.choice(_EDGES))]

    def _on_stack(self, register: int) -> list[Insn]:
        """What is done with an address from which 56 bytes of a stack go on."""
        return [self._one_atomic(register, 0, 56)]

    # --- control ---

    def _branch(self, depth: int) -> list[Insn]:
        rng = self._rng
        inside = self._parts(rng.randrange(1, 4), depth + 1)
        otherwise = self._parts(rng.randrange(1, 3), depth + 1) if rng.random() < 0.4 else []
        if otherwise:
            far = Insn(i.GOTOL, imm=len(otherwise)) if rng.random() < 0.5 else Insn(i.JMP | i.JA, off=len(otherwise))
            inside.append(far)
        opcode, left = rng.choice((i.JMP, i.JMP32)) | rng.choice(_JUMPS), rng.choice(_NUMBERS)
        if rng.random() < 0.4:
            return [Insn(opcode | i.X, left, rng.choice(_NUMBERS), len(inside)), *inside, *otherwise]
        return [Insn(opcode, left, 0, len(inside), rng.choice(_EDGES)), *inside, *otherwise]

    def _loop(self, depth: int) -> list[Insn]:
        rng = self._rng
        self._looping = True
        inside = self._parts(rng.randrange(1, 3), depth + 1)
        self._looping = False
        turns = rng.choice((1, 2, 3, 4))
        count = Insn(_ADD, 9, imm=1)
        if rng.random() < 0.6:
            back = Insn(
                rng.choice((i.JMP, i.JMP32)) | rng.choice((i.JLT, i.JSLT, i.JNE)), 9, 0, -len(inside) - 2, turns
            )
            return [Insn(_MOV, 9), *inside, count, back]
        test = Insn(i.JMP | i.JGE, 9, 0, len(inside) + 2, turns)
        back = Insn(i.GOTOL, imm=-len(inside) - 4) if rng.random() < 0.5 else Insn(i.JMP | i.JA, off=-len(inside) - 4)
        return [Insn(_MOV, 9), Insn(i.MAY_GOTO, off=len(inside) + 3), test, *inside, count, back]

    def _call(self) -> list[Insn]:
        after = [insn for register in (2, 3, 4, 5) for insn in self._number(register)]
        return [Insn(_MOV | i.X, 1, 6), Insn(i.CALL_INSN, src=i.CALL_LOCAL, imm=self._callee), *after]


# --- running them ----------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """r0 unsigned, or what a fault says; memory and the values of maps afterwards."""

    result: int | str
    memory: bytes
    maps: dict[int, dict[bytes, bytes]]


def content(number: int, key: int) -> bytes:
    """What a value is before each run."""
    return bytes((number * 64 + key * 37 + at * 11) & 0xFF for at in range(VALUE_BYTES[number]))


def keys(number: int) -> range:
    """The keys that a map has before each run: the hash has room for one more."""
    return range(2 if number == HASHED else ENTRIES[number])


class Emulated:
    """A program in uxk: interpreted, translated, or translated with a small budget."""

    def __init__(self, code: bytes) -> None:
        self.maps: dict[int, ArrayMap | HashMap] = {
            ARRAY: ArrayMap(VALUE_BYTES[ARRAY], ENTRIES[ARRAY]),
            HASHED: HashMap(4, VALUE_BYTES[HASHED], ENTRIES[HASHED]),
            SINGLE: ArrayMap(VALUE_BYTES[SINGLE], 1), OWN: InstanceArrayMap(VALUE_BYTES[OWN], ENTRIES[OWN]),
        }  # fmt: skip
        self.program = Program(code, body(SIZE_BYTES), maps=self.maps)

    def interpreted(self, memory: bytes, budget: int = 0) -> Outcome:
        """By the reference interpreter."""
        kept = self.program.machine._budget
        self.program.machine._budget = budget or kept
        try:
            return self._outcome(self.program.interpret, memory)
        finally:
            self.program.machine._budget = kept

    def translated(self, memory: bytes, budget: int = 0) -> Outcome:
        """As Python; a budget is one that the program was translated for."""
        if not budget:
            return self._outcome(self.program.run, memory)
        whole = self.program.translation
        self.program.translation = Translation(self.program.proof, self.program._immediates(), budget=budget)
        try:
            return self._outcome(self.program.run, memory)
        finally:
            self.program.translation = whole

    def _outcome(self, run: object, memory: bytes) -> Outcome:
        for number, each in self.maps.items():
            if isinstance(each, HashMap):
                for key in list(each._places):
                    each.delete(key)
            for key in keys(number):
                each.update(key.to_bytes(4, "little"), content(number, key))
        changed = bytearray(memory)
        try:
            result: int | str = run(changed) & M64  # type: ignore[operator]
        except Fault as exc:
            result = str(exc)
        return Outcome(result, bytes(changed), {number: dict(each.items()) for number, each in self.maps.items()})


class Linux:
    """The running kernel, as root.  OSError if bpf(2) does not answer."""

    def __init__(self) -> None:
        if why := linux_answers.why_not():
            raise OSError(why)
        self._result, self._memory = linux.array_map(8), linux.array_map(SIZE_BYTES)
        self._maps = {
            number: linux.bpf(
                linux.MAP_CREATE, struct.pack("<IIIII", _LINUX_KIND[number], 4, VALUE_BYTES[number], ENTRIES[number], 0)
            )
            for number in ENTRIES
        }
        self._cpus = int(Path("/sys/devices/system/cpu/possible").read_text().strip().split("-")[-1]) + 1

    def load(self, code: bytes) -> int:
        """A descriptor.  Raises ``linux_judge.Refused``."""
        insns = list(decode(code))
        for pc, insn in enumerate(insns):
            if insn.opcode == i.LDDW and insn.src in (i.IMM64_MAP_FD, i.IMM64_MAP_VALUE):
                insns[pc] = insn._replace(imm=self._maps[insn.imm])
        with linux_answers.turn():
            return linux.load(linux.wrapped(encode(insns), self._memory, SIZE_BYTES, self._result))

    def run(self, program: int, memory: bytes) -> Outcome:
        """One run, all maps as they are before it."""
        for number, fd in self._maps.items():
            if number == HASHED:
                for key in range(8):
                    _drop(fd, key)
            for key in keys(number):
                size_bytes = -(-VALUE_BYTES[number] // 8) * 8
                value = content(number, key)
                linux.put(fd, value.ljust(size_bytes, b"\0") * self._cpus if number == OWN else value, key)
        linux.put(self._memory, memory)
        linux.test_run(program)
        result = int.from_bytes(linux.take(self._result, 8), "little")
        return Outcome(result, linux.take(self._memory, SIZE_BYTES), {n: self._values(n) for n in self._maps})

    def _values(self, number: int) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for key in range(4):
            room = VALUE_BYTES[number] * (self._cpus if number == OWN else 1)
            value = _look(self._maps[number], key, room)
            if value is not None:
                found[key.to_bytes(4, "little")] = value[: VALUE_BYTES[number]]
        return found


_MAP_DELETE: Final = 3


def _drop(map_fd: int, key: int) -> None:
    at = ctypes.create_string_buffer(key.to_bytes(4, "little"), 4)
    with suppress(FileNotFoundError):
        linux.bpf(_MAP_DELETE, struct.pack("<IIQ", map_fd, 0, ctypes.addressof(at)))


def _look(map_fd: int, key: int, value_bytes: int) -> bytes | None:
    at, data = ctypes.create_string_buffer(key.to_bytes(4, "little"), 4), ctypes.create_string_buffer(value_bytes)
    try:
        linux.bpf(linux.MAP_LOOKUP, struct.pack("<IIQQQ", map_fd, 0, ctypes.addressof(at), ctypes.addressof(data), 0))
    except FileNotFoundError:
        return None
    return data.raw
