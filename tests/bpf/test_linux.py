"""The verifier and the machine beside the running kernel's, where bpf(2) answers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pytest
from bpf_cases import random_program
from linux_judge import Judge
from richer import maps, reset, richer_program

from uxk.bpf.disasm import disassemble
from uxk.bpf.errors import VerifierError
from uxk.bpf.insn import M64, Insn, decode
from uxk.bpf.program import Program
from uxk.bpf.proto import body

SOAK = os.environ.get("UXK_SOAK") == "1"
PROGRAMS = 100_000 if SOAK else 4_000
PER_TEST = 2_000
GUESSED = ("prohibited for !root", "infinite loop detected")
"""Reasons of strict Linux that may be about what a processor guesses: as root, Linux must accept the program."""
LIMITS = ("is too large", "jumps is too complex")
"""How far Linux follows a program, guesses included: as root it must accept, or give the same reason."""


class Bench:
    """A program put to three judges: strict Linux, Linux as root where that refuses, and the verifier."""

    def __init__(self, strict: Judge, root: Judge) -> None:
        self._strict, self._root = strict, root
        self.counts: Counter[str] = Counter()

    def put(self, code: bytes, memories: Sequence[bytes], made: dict[int, Any], insns_max: int) -> None:
        """Fails for what is accepted here and unsafe there, and for wrong results; counts the rest."""
        try:
            program = Program(code, body(64)._replace(insns_max=insns_max), maps=made)
        except VerifierError:
            refused = isinstance(self._strict.ask(code, memories), str)
            self.counts["refused by both" if refused else "refused needlessly"] += 1
            return
        verdict = self._strict.ask(code, memories)
        if isinstance(verdict, str):
            verdict = self._excused(code, memories, verdict)
        else:
            self.counts["accepted"] += 1
        for number, memory in enumerate(memories):
            results = []
            for run in (program.run, program.interpret, lambda given: with_rubbish(program, given)):
                reset(made)
                results.append(run(bytearray(memory)) & M64)
            expected = results[0] if verdict is None else verdict[number]
            assert results == [expected] * 3, _text(code)
            self.counts["runs"] += 1

    def _excused(self, code: bytes, memories: Sequence[bytes], why: str) -> list[int] | None:
        """The results as root, which follows what programs do and nothing else; None if that is too much for it."""
        reason = next((each for each in GUESSED + LIMITS if each in why), "")
        assert reason, f"unsafe for strict Linux: {why}\n{_text(code)}"
        loose = self._root.ask(code, memories)
        if isinstance(loose, str):
            assert reason in LIMITS, f"unsafe for Linux as root: {loose}\n{_text(code)}"
            assert any(each in loose for each in LIMITS), f"unsafe for Linux as root: {loose}\n{_text(code)}"
            self.counts[f"excused, as root too: {reason}"] += 1
            return None
        self.counts[f"excused, accepted as root: {reason}"] += 1
        return loose


def with_rubbish(program: Program, memory: bytearray) -> int:
    """Interprets with rubbish in the registers and on the stack: what reads them without having written gets it."""
    machine = program.machine
    step = machine._step

    def first(pc: int, insn: Insn, regs: list[int]) -> int:
        del machine._step  # type: ignore[misc]
        machine.stack[:] = Random(len(memory)).randbytes(len(machine.stack))
        for register in (0, 3, 4, 5, 6, 7, 8, 9):
            regs[register] = 0xBAD0_0000_0000_0BAD + register
        return step(pc, insn, regs)

    machine._step = first  # type: ignore[method-assign]
    return program.interpret(memory)


@pytest.fixture(scope="module")
def judges() -> Iterator[tuple[Judge, Judge]]:
    """The running kernel, without the privilege to read unwritten stack, and with all."""
    try:
        strict = Judge()
        with strict, Judge(strict=False) as root:
            yield strict, root
    except OSError as exc:
        pytest.skip(f"bpf(2) does not answer here: {exc}")


@pytest.mark.parametrize("seed", range(PROGRAMS // PER_TEST))
def test_nothing_accepted_that_linux_refuses_and_no_wrong_result(judges: tuple[Judge, Judge], seed: int) -> None:
    rng, bench = Random(f"linux {seed}"), Bench(*judges)
    for _ in range(PER_TEST):
        code = random_program(rng, length=rng.choice((8, 16, 30)))
        bench.put(code, [rng.randbytes(64) for _ in range(2)], {}, 1_000_000)
    _told(bench.counts, least=PER_TEST // 4, needless_ppm=30_000)


@pytest.mark.parametrize("seed", range(PROGRAMS // PER_TEST))
def test_calls_loops_maps_and_pointers_on_the_stack(judges: tuple[Judge, Judge], seed: int) -> None:
    rng, bench = Random(f"richer {seed}"), Bench(*judges)
    count = PER_TEST // 2 if SOAK else PER_TEST // 10
    for _ in range(count):
        code = richer_program(rng)
        bench.put(code, [rng.randbytes(64) for _ in range(2)], maps(), 20_000)
    _told(bench.counts, least=count // 5, needless_ppm=200_000)


def _told(counts: Counter[str], least: int, needless_ppm: int) -> None:
    print(dict(counts))  # shown by pytest -rP
    assert counts["accepted"] > least
    assert counts["refused needlessly"] * 1_000_000 < counts["accepted"] * needless_ppm, counts


def _text(code: bytes) -> str:
    return disassemble(decode(code), numbers=True)
