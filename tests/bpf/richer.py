"""Programs drawn at random with what needs more than a line: calls, loops, maps, pointers on the stack."""

from __future__ import annotations

from random import Random
from typing import Final

from bpf_cases import _EDGES, _random_alu, _random_insn

from uxk.bpf import insn as i
from uxk.bpf.insn import Insn, encode, lddw
from uxk.bpf.maps import ArrayMap, HashMap

ARRAY, HASHED, SINGLE = 1, 2, 3
ARRAY_VALUE_BYTES, HASH_VALUE_BYTES, ENTRIES = 32, 16, 2
"""Of three maps: an array, a hash with room for twice what it holds, and an array of one value; keys are 0 and 1."""
SIZE_BYTES: Final = 64
_MOV, _ADD = i.ALU64 | i.MOV, i.ALU64 | i.ADD
_SIZES = (i.B, i.H, i.W, i.DW)
_KEPT: Final = 6
"""The register that keeps the address of memory."""


def keys(number: int) -> range:
    """The keys that a map has before each run."""
    return range(1 if number == SINGLE else ENTRIES)


def content(number: int, key: int) -> bytes:
    """What a value is before each run."""
    size_bytes = HASH_VALUE_BYTES if number == HASHED else ARRAY_VALUE_BYTES
    return bytes((number * 64 + key * 37 + at * 11) & 0xFF for at in range(size_bytes))


def maps() -> dict[int, ArrayMap | HashMap]:
    """The maps, as ``reset`` leaves them."""
    made: dict[int, ArrayMap | HashMap] = {
        ARRAY: ArrayMap(ARRAY_VALUE_BYTES, ENTRIES), HASHED: HashMap(4, HASH_VALUE_BYTES, 2 * ENTRIES),
        SINGLE: ArrayMap(ARRAY_VALUE_BYTES, 1),
    }  # fmt: skip
    reset(made)
    return made


def reset(made: dict[int, ArrayMap | HashMap]) -> None:
    """Before each run."""
    for number, each in made.items():
        for key in keys(number):
            each.update(key.to_bytes(4, "little"), content(number, key))


def richer_program(rng: Random) -> bytes:
    """A program, and up to two functions that it calls."""
    functions = rng.randrange(3)
    parts = [_function(rng, functions if number == 0 else 0, main=not number) for number in range(functions + 1)]
    starts = [sum(map(len, parts[:number])) for number in range(functions + 1)]
    insns = [insn for part in parts for insn in part]
    for pc, insn in enumerate(insns):
        if insn.is_local_call:
            insns[pc] = insn._replace(imm=starts[insn.imm] - pc - 1)
    return encode(insns)


def _function(rng: Random, callees: int, *, main: bool) -> list[Insn]:
    insns = [Insn(_MOV | i.X, _KEPT, 1), *_numbers(rng)]
    insns += [
        Insn(i.ST | i.DW | i.MEM, 10, 0, off, rng.choice(_EDGES)) for off in (-8, -16, -24) if rng.random() < 0.97
    ]
    for _ in range(rng.randrange(1, 6 if main else 4)):
        insns += _part(rng, callees)
    if main and rng.random() < 0.15:  # one loop at most: strict Linux follows it with what a processor may guess, too
        insns += _counted(rng) if rng.random() < 0.7 else _while_may(rng)
    if rng.random() < 0.1:  # deep: what a chain of calls uses together counts
        insns.append(Insn(i.ST | i.DW | i.MEM, 10, 0, -8 * rng.choice((20, 30, 31, 32, 40, 63, 64, 65)), 1))
    for callee in range(1, callees + 1):  # a function that nothing calls is refused
        insns += _call(rng, callee)
    if rng.random() < 0.3:
        insns += [*_value(rng, 3), Insn(i.LDX | i.DW | i.MEM, 3, 3, 0), Insn(i.ALU64 | i.XOR | i.X, 0, 3)]
    if not main and rng.random() < 0.15:  # an address, for the caller
        insns.append(Insn(_MOV | i.X, 0, rng.choice((_KEPT, _KEPT, _KEPT, 10))))
    return [*insns, Insn(i.EXIT_INSN)]


def picked_program(rng: Random) -> bytes:
    """A program with addresses that are one thing on one path and another on another."""
    insns = [Insn(_MOV | i.X, _KEPT, 1), *_numbers(rng)]
    insns += [Insn(i.ST | i.DW | i.MEM, 10, 0, off, rng.choice((0, 1, 2))) for off in (-8, -16, -24)]
    for _ in range(rng.randrange(1, 4)):
        insns += [*_picked(rng), Insn(_MOV, 0, imm=1), Insn(_MOV | i.X, 1, _KEPT), *_numbers(rng)[1:]]
        insns += _part(rng, 0) if rng.random() < 0.3 else []
    return encode([*insns, Insn(i.EXIT_INSN)])


def _picked(rng: Random) -> list[Insn]:
    """r5 is one of a few addresses, or null, and then something is done with it."""
    known = rng.random() < 0.5  # never null, but perhaps on the stack, which may not be compared
    ways = [_way(rng, known=known != (rng.random() < 0.03)) for _ in range(rng.choice((2, 2, 2, 3, 5)))]
    found = [Insn(i.LDX | i.B | i.MEM, 4, _KEPT, rng.randrange(SIZE_BYTES)), Insn(i.ALU64 | i.AND, 4, imm=3), *ways[0]]
    if rng.random() < 0.8:  # what lookups change
        found.insert(1, Insn(_MOV | i.X, 7, 4))
    for number, way in enumerate(ways[1:]):
        found += [Insn(i.JMP | rng.choice((i.JEQ, i.JGT, i.JSET)), 7, 0, len(way), number + 1), *way]
    use = rng.choice((_used, _used, _as_key, _put_by))(rng, 5, 8)
    if rng.random() < (0.03 if known else 0.95):
        found.append(Insn(i.JMP | i.JEQ, 5, 0, len(use)))
    return [Insn(_MOV, 7), Insn(_MOV, 3, imm=2), *found, Insn(_MOV, 4, imm=5), Insn(_MOV, 3, imm=2), *use]


def _way(rng: Random, *, known: bool) -> list[Insn]:
    """Sets r5."""
    kind = rng.random()
    if kind < 0.3:
        return [Insn(_MOV | i.X, 5, _KEPT), Insn(_ADD, 5, imm=rng.choice((0, 8, 56, 56 if known else 60)))]
    if kind < 0.6 and known:
        return [Insn(_MOV | i.X, 5, 10), Insn(_ADD, 5, imm=rng.choice((-8, -16, -16, -24, -24, -32)))]
    if kind < 0.6:
        return [Insn(_MOV, 5, imm=rng.choice((0, 0, 0, 0, 0, 1)))]
    if kind < 0.8 or known:
        return list(_value(rng, 5))
    key = [Insn(i.ST | i.W | i.MEM, 10, 0, -8, rng.choice((0, 1, 2))), Insn(_MOV | i.X, 2, 10), Insn(_ADD, 2, imm=-8)]
    return [
        *key,
        *lddw(1, rng.choice((HASHED, ARRAY)), i.IMM64_MAP_FD),
        Insn(i.CALL_INSN, imm=1),
        Insn(_MOV | i.X, 5, 0),
    ]


def _as_key(rng: Random, register: int, size_bytes: int) -> list[Insn]:
    number = rng.choice((ARRAY, HASHED))
    call = [Insn(_MOV | i.X, 2, register), *lddw(1, number, i.IMM64_MAP_FD), Insn(i.CALL_INSN, imm=1)]
    return [*call, Insn(i.JMP | i.JEQ, 0, 0, 1), Insn(i.LDX | i.DW | i.MEM, 3, 0, size_bytes)]


def _put_by(rng: Random, register: int, size_bytes: int) -> list[Insn]:
    """On the stack, perhaps over something else, and back."""
    off = -8 * rng.randrange(3, 6)
    store, fill = Insn(i.STX | i.DW | i.MEM, 10, register, off), Insn(i.LDX | i.DW | i.MEM, 5, 10, off)
    between = [Insn(i.ST | rng.choice(_SIZES) | i.MEM, 10, 0, off, 1)] if rng.random() < 0.15 else []
    return [store, *between, Insn(_MOV, 5), fill, *_used(rng, 5, size_bytes)]


def _numbers(rng: Random) -> list[Insn]:
    """r0 and r2 to r5, mostly all of them."""
    return [Insn(_MOV, register, imm=rng.choice(_EDGES)) for register in (0, 2, 3, 4, 5) if rng.random() < 0.99]


def _part(rng: Random, callees: int) -> list[Insn]:
    kind = rng.random()
    if kind < 0.25:
        return [insn for _ in range(rng.randrange(1, 5)) for insn in _random_insn(rng, SIZE_BYTES, 4)]
    if kind < 0.4 and callees:
        return _call(rng, rng.randrange(1, callees + 1))
    if kind < 0.47:
        return _plain(rng)
    if kind < 0.55:
        return _indexed(rng)
    if kind < 0.85:
        return _lookup(rng)
    if kind < 0.87:
        return _aside(rng)
    return _spilled(rng) if kind < 0.96 else _direct(rng)


def _call(rng: Random, callee: int) -> list[Insn]:
    """With the address of memory, or (a mistake, mostly) one on the stack; r2 is a number."""
    argument = [Insn(_MOV | i.X, 1, _KEPT)]
    if rng.random() < 0.1:
        argument = [Insn(_MOV | i.X, 1, 10), Insn(_ADD, 1, imm=rng.choice((-64, -24, -8)))]
    after = [Insn(_MOV | i.X, 1, _KEPT), Insn(_MOV | i.X, 2, 0), *(_numbers(rng)[2:])]
    if rng.random() < 0.15:  # whatever came back, nobody looks at it
        after = [Insn(_MOV, 0, imm=1), Insn(_MOV | i.X, 1, _KEPT), Insn(_MOV, 2, imm=1), *(_numbers(rng)[2:])]
    elif rng.random() < 0.05:
        after = [Insn(_MOV, 3), Insn(_MOV, 4), *_used(rng, 0, 8), Insn(_MOV, 0), *after]
    if rng.random() < 0.05:
        after = []
    return [*argument, Insn(i.CALL_INSN, src=i.CALL_LOCAL, imm=callee), *after]


def _plain(rng: Random) -> list[Insn]:
    """Without jumps: arithmetic, a load, a store on the stack."""
    found: list[Insn] = []
    for _ in range(rng.randrange(1, 4)):
        dst, src, kind = rng.choice((0, 2, 3, 4)), rng.choice((0, 2, 3, 4)), rng.random()
        if kind < 0.6:
            found.append(_random_alu(rng, dst, src, rng.choice(_EDGES)))
        elif kind < 0.75:
            found.append(Insn(i.LDX | rng.choice(_SIZES) | i.MEM, dst, 1, rng.randrange(SIZE_BYTES - 7)))
        elif kind < 0.9:
            found.append(Insn(i.STX | i.DW | i.MEM, 10, src, -8 * rng.randrange(1, 4)))
        else:
            found.append(Insn(i.LDX | i.DW | i.MEM, dst, 10, -8 * rng.randrange(1, 5)))
    return found


def _indexed(rng: Random) -> list[Insn]:
    """A number of any width, compared, perhaps by way of a copy, and an index then."""
    load = Insn(i.LDX | rng.choice(_SIZES[:3]) | rng.choice((i.MEM, i.MEMSX)), 4, 1, rng.randrange(SIZE_BYTES - 7))
    between, tested = list[Insn](), 4
    if rng.random() < 0.4:
        tested = rng.choice((2, 3))
        between = [Insn(rng.choice((_MOV, _MOV, i.ALU | i.MOV)) | i.X, tested, 4)]
    elif rng.random() < 0.3:
        between = [Insn(i.STX | i.DW | i.MEM, 10, 4, -24)]
    size = rng.choice(_SIZES)
    use = [
        *([Insn(i.LDX | i.DW | i.MEM, 4, 10, -24)] if between and tested == 4 else []), Insn(_MOV | i.X, 5, 1),
        Insn(rng.choice((_ADD,) * 9 + (i.ALU64 | i.SUB,)) | i.X, 5, 4),
        Insn(i.LDX | size | i.MEM, 3, 5, rng.choice((0, 0, 0, 8, -1))),
    ]  # fmt: skip
    cls, limit = rng.choice((i.JMP, i.JMP32)), rng.choice((7, 15, 31, 32, 55, 56, 60, 62))
    if rng.random() < 0.2:
        return [load, *between, Insn(cls | i.JSET, tested, 0, len(use), ~rng.choice((7, 15, 31, 36))), *use]
    if rng.random() < 0.3:
        both = [Insn(cls | i.JSGT, tested, 0, len(use) + 1, limit), Insn(cls | i.JSLT, tested, 0, len(use), 0)]
        return [load, *between, *both, *use]
    return [load, *between, Insn(cls | rng.choice((i.JGT, i.JGT, i.JGE, i.JSGT)), tested, 0, len(use), limit), *use]


def _aside(rng: Random) -> list[Insn]:
    """Through r1, which of a function may be an address on the caller's stack; or r1 compared with null."""
    if rng.random() < 0.3:
        return [Insn(i.JMP | rng.choice((i.JEQ, i.JNE)), rng.choice((1, _KEPT)), 0, 1), Insn(_MOV, 3, imm=7)]
    size, source = rng.choice(_SIZES), rng.choice((2, 3, 4, 4, 4, 4, 4, 4, 1, 10))
    return [Insn(i.STX | (i.DW if source in (1, 10) else size) | i.MEM, 1, source, rng.choice((0, 0, 8, -8)))]


def _counted(rng: Random) -> list[Insn]:
    """A loop over r8; sometimes its number is an index."""
    inside = _plain(rng)
    if rng.random() < 0.5:
        shift = rng.choice((0, 1, 2, 3))
        inside += [
            Insn(_MOV | i.X, 5, 8), Insn(i.ALU64 | i.LSH, 5, imm=shift), Insn(_ADD | i.X, 5, 1),
            Insn(i.LDX | rng.choice(_SIZES) | i.MEM, 3, 5, rng.choice((0, 0, 8, -1))),
        ]  # fmt: skip
    turns = rng.choice((1, 2, 3, 5))
    back = Insn(i.JMP | rng.choice((i.JLT, i.JLT, i.JSLT, i.JNE)), 8, 0, -(len(inside) + 2), turns)
    return [Insn(_MOV, 8), *inside, Insn(_ADD, 8, imm=1), back]


def _while_may(rng: Random) -> list[Insn]:
    """``may_goto`` around a loop that ends by itself, which the verifier need not see."""
    inside = _plain(rng)
    length = len(inside) + 3
    count = [Insn(i.LDX | i.B | i.MEM, 8, 1, rng.randrange(SIZE_BYTES)), Insn(i.ALU64 | i.AND, 8, imm=7)]
    test = Insn(i.JMP | i.JGT, 8, 0, len(inside) + 1, 7)  # it comes below 0, and so is large
    back = Insn(i.JMP | i.JA, off=-length - 1)
    found = [*count, Insn(i.MAY_GOTO, off=length), Insn(_ADD, 8, imm=-1), test, *inside, back]
    if rng.random() < 0.2:  # in a loop of its own
        again = Insn(i.JMP | rng.choice((i.JLT, i.JNE)), 9, 0, -(len(found) + 2), rng.choice((1, 2, 3)))
        found = [Insn(_MOV, 9), *found, Insn(_ADD, 9, imm=1), again]
    return found


def _value(rng: Random, register: int) -> tuple[Insn, Insn]:
    offset = rng.choice((0, 0, 8, 16, 24 if rng.random() < 0.9 else 31))
    return lddw(register, offset << 32 | SINGLE, i.IMM64_MAP_VALUE)


def _direct(rng: Random) -> list[Insn]:
    return [*_value(rng, 5), *_used(rng, 5, ARRAY_VALUE_BYTES - 16)]


def _used(rng: Random, register: int, size_bytes: int) -> list[Insn]:
    """What is done with an address: a load, a store, an atomic addition, or a load at a varying place."""
    kind, size = rng.random(), rng.choice(_SIZES)
    off = rng.randrange(size_bytes - 7) if rng.random() < 0.92 else rng.randrange(-2, size_bytes + 3)
    if kind < 0.4:
        return [Insn(i.LDX | size | i.MEM, 3, register, off)]
    if kind < 0.6:
        return [Insn(i.STX | size | i.MEM, register, rng.choice((2, 3, 3, 10)), off)]
    if kind < 0.75:
        return [Insn(i.STX | i.ATOMIC | rng.choice((i.W, i.DW)), register, 3, off & ~7, rng.choice((0, 1, 0xE1)))]
    mask = Insn(i.ALU64 | i.AND, 4, imm=rng.choice((3, 7, 15)))
    return [
        mask,
        Insn(_ADD | i.X, register, 4),
        Insn(i.LDX | rng.choice((i.B, i.H)) | i.MEM, 3, register, rng.choice((0, 0, 4))),
    ]


def _lookup(rng: Random) -> list[Insn]:
    number = rng.choice((ARRAY, HASHED, HASHED, SINGLE))
    size_bytes = HASH_VALUE_BYTES if number == HASHED else ARRAY_VALUE_BYTES
    key = [Insn(i.ST | i.W | i.MEM, 10, 0, -8, rng.choice((0, 0, 1, 2)))]
    if rng.random() < 0.3:
        key = [Insn(i.STX | i.W | i.MEM, 10, 2, -8)]
    call = [*lddw(1, number, i.IMM64_MAP_FD), Insn(_MOV | i.X, 2, 10), Insn(_ADD, 2, imm=-8), Insn(i.CALL_INSN, imm=1)]
    again = [Insn(_MOV, register, imm=rng.choice(_EDGES)) for register in (2, 3, 4, 5)]
    use = _used(rng, 0, size_bytes)
    if rng.random() < 0.2:  # by way of the stack
        use = [
            Insn(i.STX | i.DW | i.MEM, 10, 0, -16),
            Insn(i.LDX | i.DW | i.MEM, 5, 10, -16),
            *_used(rng, 5, size_bytes),
        ]
    op = rng.choice((i.JEQ,) * 12 + (i.JNE,))
    check = [Insn(i.JMP | op, 0, 0, len(use))] if rng.random() < 0.96 else []
    return [*key, *call, *again, *check, *use, Insn(_MOV, 0, imm=rng.choice(_EDGES)), Insn(_MOV | i.X, 1, _KEPT)]


def _spilled(rng: Random) -> list[Insn]:
    """A pointer on the stack, something in between, and the pointer again."""
    off = -8 * rng.randrange(1, 5)
    store = Insn(i.STX | i.DW | i.MEM, 10, rng.choice((1, 1, 6, 10)), off)
    between = _random_insn(rng, SIZE_BYTES, 4) if rng.random() < 0.6 else []
    if rng.random() < 0.3:
        between = [Insn(i.JMP | i.JEQ, rng.choice((2, 3)), 0, 1, rng.choice(_EDGES)), *between[:1]]
    fill = Insn(i.LDX | rng.choice((i.DW,) * 8 + (i.W,)) | i.MEM, 5, 10, off)
    return [store, *between, fill, *_used(rng, 5, rng.choice((8, 16, SIZE_BYTES)))]
