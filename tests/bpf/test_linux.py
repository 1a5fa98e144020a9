"""The verifier and the machine beside the running kernel's, where bpf(2) answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random

import pytest
from bpf_cases import random_program
from linux_judge import Judge
from richer import maps, reset, richer_program

from uxk.bpf.disasm import disassemble
from uxk.bpf.errors import VerifierError
from uxk.bpf.insn import M64, decode
from uxk.bpf.program import Program
from uxk.bpf.proto import body

SOAK = os.environ.get("UXK_SOAK") == "1"
PROGRAMS = 100_000 if SOAK else 4_000
PER_TEST = 2_000
SPECTRE = ("prohibited for !root", "truncated", "infinite loop detected", "is too large", "jumps is too complex")
"""Reasons of strict Linux that are about what a processor may guess, or how far Linux follows, not about what a program
does."""


@pytest.fixture(scope="module")
def strict() -> Iterator[Judge]:
    """The running kernel, without the privilege to read unwritten stack."""
    try:
        judge = Judge()
    except OSError as exc:
        pytest.skip(f"bpf(2) does not answer here: {exc}")
    with judge:
        yield judge


@pytest.mark.parametrize("seed", range(PROGRAMS // PER_TEST))
def test_nothing_accepted_that_linux_refuses_and_no_wrong_result(strict: Judge, seed: int) -> None:
    rng, needless, accepted = Random(f"linux {seed}"), 0, 0
    for _ in range(PER_TEST):
        code = random_program(rng, length=rng.choice((8, 16, 30)))
        memories = [rng.randbytes(64) for _ in range(2)]
        try:
            program: Program | None = Program(code, body(64))
        except VerifierError:
            program = None
        verdict = strict.ask(code, memories)
        if program is None:
            needless += not isinstance(verdict, str)
        elif isinstance(verdict, str):
            assert any(reason in verdict for reason in SPECTRE), f"{verdict}\n{_text(code)}"
        else:
            accepted += 1
            results = [program.run(bytearray(memory)) & M64 for memory in memories]
            assert results == verdict, _text(code)
    assert accepted > PER_TEST // 4
    assert needless < accepted // 20, f"{needless} of {accepted} refused needlessly"


@pytest.mark.parametrize("seed", range(PROGRAMS // PER_TEST))
def test_calls_loops_maps_and_pointers_on_the_stack(strict: Judge, seed: int) -> None:
    rng, needless, accepted = Random(f"richer {seed}"), 0, 0
    for _ in range(PER_TEST // 2 if SOAK else PER_TEST // 10):
        code, made = richer_program(rng), maps()
        memories = [rng.randbytes(64) for _ in range(2)]
        try:
            program: Program | None = Program(code, body(64)._replace(insns_max=20_000), maps=made)
        except VerifierError:
            program = None
        verdict = strict.ask(code, memories)
        if program is None:
            needless += not isinstance(verdict, str)
            continue
        if isinstance(verdict, str):
            assert any(reason in verdict for reason in SPECTRE), f"{verdict}\n{_text(code)}"
            continue
        accepted += 1
        for memory, expected in zip(memories, verdict, strict=True):
            for run in (program.run, program.interpret):
                reset(made)
                assert run(bytearray(memory)) & M64 == expected, _text(code)
    assert accepted > PER_TEST // 40
    assert needless < accepted // 4, f"{needless} of {accepted} refused needlessly"


def _text(code: bytes) -> str:
    return disassemble(decode(code), numbers=True)
