"""The instruction set: public tests, the corpus, and interpreter and translation against each other."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from bpf_cases import HOME, Case, conformance, corpus, random_program

from uxk.bpf import mnemonics
from uxk.bpf.asm import assemble
from uxk.bpf.disasm import disassemble
from uxk.bpf.errors import Fault, VerifierError
from uxk.bpf.helpers import with_kernel
from uxk.bpf.insn import M64, decode, encode
from uxk.bpf.interp import Machine
from uxk.bpf.memory import Memory
from uxk.bpf.program import Program
from uxk.bpf.proto import body

needs_data = pytest.mark.skipif(not HOME.is_dir(), reason=f"the public tests are not at {HOME} (UXK_BPF_TESTS)")
KERNEL = with_kernel(lambda: 0, lambda: 0)
SHIFTS = {f"{op}{bits}-imm-{how}" for op in ("arsh", "lsh", "rsh") for bits in (32, 64) for how in ("high", "neg")}


@needs_data
def test_public_tests_run_without_the_verifier() -> None:
    passed = [case.name for case in conformance() if case.name != "callx" and _unverified(case) == case.result]
    assert len(passed) == 312


def _unverified(case: Case) -> int:
    memory = Memory()
    base = memory.add("memory", bytearray(case.memory)).base if case.memory else 0
    code = decode(mnemonics.assemble(case.text))
    return Machine(code, memory=memory, helpers={5: lambda *_: 0}).run(base, len(case.memory))


@needs_data
def test_public_tests_run_verified_but_for_shifts_out_of_range() -> None:
    refused: dict[str, str] = {}
    passed = 0
    for case in conformance():
        try:
            program = Program(mnemonics.assemble(case.text), body(len(case.memory)), helpers=KERNEL)
        except VerifierError as exc:
            refused[case.name] = exc.reason
            continue
        assert program.run(bytearray(case.memory)) & M64 == case.result, case.name
        assert program.interpret(bytearray(case.memory)) & M64 == case.result, case.name
        passed += 1
    assert passed == 300
    assert refused.keys() == SHIFTS | {"callx"}
    assert all("invalid shift" in refused[name] for name in SHIFTS)


@needs_data
def test_text_of_all_public_tests_assembles_to_the_same_bytes() -> None:
    for case in conformance():
        if case.name != "callx":
            code = mnemonics.assemble(case.text)
            assert assemble(disassemble(decode(code))) == code, case.name


@needs_data
def test_corpus_judged_by_linux() -> None:
    """No program accepted that strict Linux refuses as unsafe, no wrong result, few needless refusals."""
    verdicts: Counter[tuple[str, bool]] = Counter()
    for entry in corpus():
        code = bytes.fromhex(entry["program"])
        try:
            program = Program(code, body(64), helpers=KERNEL)
        except VerifierError:
            verdicts[entry["label"], False] += 1
            continue
        verdicts[entry["label"], True] += 1
        if entry["label"] == "accept":
            for context, r0 in zip(entry["ctx"], entry["r0"], strict=True):
                expected = r0 if isinstance(r0, int) else int(r0, 16)
                assert program.run(bytearray.fromhex(context)) & M64 == expected & M64, entry["program"]
    assert verdicts["refuse", True] == verdicts["refuse-strict", True] == 0
    assert verdicts["accept", False] <= 0.03 * (verdicts["accept", False] + verdicts["accept", True])


@pytest.mark.parametrize("seed", range(4))
def test_translation_agrees_with_the_interpreter(seed: int) -> None:
    rng, accepted = Random(seed), 0
    for _ in range(400):
        code = random_program(rng)
        try:
            program = Program(code, body(64), helpers=KERNEL)
        except VerifierError:
            continue
        accepted += 1
        for _ in range(3):
            first = bytearray(rng.randbytes(64))
            second = bytearray(first)
            assert program.run(first) == program.interpret(second), disassemble(decode(code))
            assert first == second, disassemble(decode(code))
    assert accepted > 80


@pytest.mark.parametrize("seed", range(4))
def test_what_the_verifier_accepts_never_faults(seed: int) -> None:
    """The interpreter looks every access up, so a hole in the verifier shows as a fault."""
    rng = Random(f"faults {seed}")
    for _ in range(600):
        code = random_program(rng, size_bytes=16, length=24)
        try:
            program = Program(code, body(16), helpers=KERNEL)
        except VerifierError:
            continue
        try:
            program.interpret(bytearray(rng.randbytes(16)))
        except Fault as exc:
            pytest.fail(f"{exc}\n{disassemble(decode(code), numbers=True)}")


def test_random_programs_have_a_text() -> None:
    rng = Random(5)
    for _ in range(300):
        code = random_program(rng)
        assert assemble(disassemble(decode(code))) == code
        assert encode(decode(code)) == code


def test_bytes_that_are_no_program_never_raise_anything_else() -> None:
    rng = Random(6)
    for _ in range(2000):
        code = rng.randbytes(8 * rng.randrange(1, 6))
        with pytest.raises(VerifierError):
            Program(code + bytes(8), body(8))
        try:
            memory = Memory()
            Machine(decode(code), memory=memory, budget=200).run(memory.add("m", bytearray(8)).base, 8)
        except Fault:
            pass
