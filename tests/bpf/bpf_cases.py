"""The public conformance tests and the judged corpus, where they are, and programs drawn at random."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from uxk.bpf import insn as i
from uxk.bpf.insn import Insn, encode, lddw

HOME = Path(os.environ.get("UXK_BPF_TESTS", Path(__file__).parents[3] / "shared" / "bpf-conformance"))
"""Third-party data, never part of the project: without it the tests that read it are skipped."""


def functions(helpers: Any, proto: Any) -> tuple[dict[int, Any], dict[int, Any]]:
    """Helpers (900 fills bytes with 9s) and kfuncs (1 looks an object up, 2 gives it back) for tests.

    ``helpers`` and ``proto`` are those modules of the package, or of a copy of it.
    """
    kernel = helpers.with_kernel(lambda: 7, lambda: 9)
    fill = helpers.Function(proto.Proto("fill", (proto.Arg.WRITE, proto.Arg.LENGTH)), _fill)
    look = helpers.Function(proto.Proto("look_up", (), proto.Ret.OBJECT_OR_NULL), lambda *_: 1 << 50)
    give = helpers.Function(proto.Proto("give_back", (proto.Arg.OBJECT,), releases=True), lambda *_: 0)
    return {**kernel, 900: fill}, {1: look, 2: give}


def _fill(machine: Any, place: int, size_bytes: int, *_: int) -> int:
    machine.memory.put(place, b"\x09" * size_bytes)
    return 0


class Case(NamedTuple):
    """One public test."""

    name: str
    text: str
    memory: bytes
    result: int


def conformance() -> list[Case]:
    """All public tests with a result."""
    return [_case(path) for path in sorted((HOME / "tests").glob("*.data"))]


def _case(path: Path) -> Case:
    sections: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("-- "):
            sections[line[3:].strip()] = current = list[str]()
        elif sections:
            current.append(line.split("#")[0])
    memory = bytes.fromhex("".join(sections.get("mem", [])))
    return Case(path.stem, "\n".join(sections["asm"]), memory, int(sections["result"][0], 16))


def corpus() -> Iterator[dict[str, Any]]:
    """Programs that Linux judged: program, ctx, label, r0."""
    with (HOME / "corpus.jsonl").open() as file:
        for line in file:
            yield json.loads(line)


_ALU = [i.ADD, i.SUB, i.MUL, i.DIV, i.OR, i.AND, i.LSH, i.RSH, i.MOD, i.XOR, i.MOV, i.ARSH, i.NEG, i.END]
_JUMPS = [i.JEQ, i.JGT, i.JGE, i.JSET, i.JNE, i.JSGT, i.JSGE, i.JLT, i.JLE, i.JSLT, i.JSLE]
_EDGES = [0, 1, -1, 2, 7, 8, 31, 32, 63, 64, 127, 128, 255, -128, 32767, -32768, 2147483647, -2147483648]


def random_program(rng: Random, *, size_bytes: int = 64, length: int = 16) -> bytes:
    """A program that is mostly well formed: registers set first, loads and stores near the bounds, jumps ahead."""
    moves = [Insn(i.ALU64 | i.MOV, register, imm=rng.choice(_EDGES)) for register in (0, 2, 3, 4, 5)]
    insns = [insn for insn in moves if rng.random() < 0.98]
    insns += [
        Insn(i.ST | i.DW | i.MEM, 10, 0, off, rng.choice(_EDGES)) for off in (-8, -16, -24) if rng.random() < 0.95
    ]
    count = rng.randrange(2, length)
    for _ in range(count):
        insns += _random_insn(rng, size_bytes, count)
    return encode([*insns, Insn(i.EXIT_INSN)])


def _random_insn(rng: Random, size_bytes: int, count: int) -> list[Insn]:
    kind, dst, src = rng.random(), rng.choice((0, 2, 3, 4)), rng.choice((0, 2, 3, 4, 0, 2, 3, 4, 0, 2, 3, 4, 1, 10))
    imm = rng.choice(_EDGES) if rng.random() < 0.7 else rng.randrange(-(1 << 31), 1 << 31)
    size = rng.choice((i.B, i.H, i.W, i.DW))
    if kind < 0.45:
        return [_random_alu(rng, dst, rng.choice((0, 2, 3, 4)), imm)]
    if kind < 0.55:
        return [
            Insn(
                i.LDX | size | i.MEM,
                dst,
                1,
                rng.randrange(size_bytes - 7) if rng.random() < 0.95 else rng.randrange(-2, size_bytes + 2),
            )
        ]
    if kind < 0.62:
        return [Insn(i.STX | size | i.MEM, 10, src, -8 * rng.randrange(1, 4))]
    if kind < 0.69:
        return [Insn(i.LDX | size | rng.choice((i.MEM, i.MEM, i.MEMSX)), dst, 10, -8 * rng.randrange(1, 4))]
    if kind < 0.74:
        return [
            Insn(i.ALU64 | i.AND, dst, imm=rng.choice((7, 15, 31, 63))), Insn(i.ALU64 | i.MOV | i.X, 5, 1),
            Insn(i.ALU64 | i.ADD | i.X, 5, dst), Insn(i.LDX | size | i.MEM, dst, 5, rng.choice((0, 0, 1, -1))),
        ]  # fmt: skip
    if kind < 0.78:
        return [
            Insn(
                i.STX | i.ATOMIC | rng.choice((i.W, i.DW)),
                1,
                rng.choice((2, 3)),
                8 * rng.randrange(8),
                rng.choice((0, 1, 0xE1, 0xF1, 0x41)),
            )
        ]
    if kind < 0.81:
        return list(lddw(dst, rng.randrange(1 << 64)))
    jump = rng.choice((i.JMP, i.JMP32)) | rng.choice(_JUMPS)
    ahead = rng.randrange(0, max(2, count // 3))
    if rng.random() < 0.5:
        return [Insn(jump | i.X, dst, rng.choice((0, 2, 3, 4)), ahead)]
    return [Insn(jump, dst, 0, ahead, imm)]


def _random_alu(rng: Random, dst: int, src: int, imm: int) -> Insn:
    cls, op = rng.choice((i.ALU, i.ALU64)), rng.choice(_ALU)
    if op == i.END:
        return Insn(cls | op | (rng.choice((0, i.X)) if cls == i.ALU else 0), dst, imm=rng.choice((16, 32, 64)))
    if op == i.NEG:
        return Insn(cls | op, dst)
    if rng.random() < 0.5:
        widths = (0, 0, 8, 16, 32) if cls == i.ALU64 else (0, 0, 8, 16)
        off = rng.choice(widths) if op == i.MOV else rng.choice((0, 1)) if op in (i.DIV, i.MOD) else 0
        return Insn(cls | op | i.X, dst, src, off)
    if op in (i.LSH, i.RSH, i.ARSH):
        imm &= 31 if cls == i.ALU else 63
    if op in (i.DIV, i.MOD):
        return Insn(cls | op, dst, 0, rng.choice((0, 1)), imm or 3)
    return Insn(cls | op, dst, 0, 0, imm)
