"""Interpreter, translation and the running kernel on programs with every instruction there is; budgets; chains."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest
from linux_answers import lacks_acquire, why_not
from linux_judge import Refused
from wider import Emulated, Linux, wider_program

from uxk.bpf.asm import assemble
from uxk.bpf.disasm import disassemble
from uxk.bpf.errors import BpfError, Fault, VerifierError
from uxk.bpf.helpers import Function
from uxk.bpf.insn import decode
from uxk.bpf.program import Program
from uxk.bpf.proto import Arg, Proto, body, features
from uxk.bpf.translate import Translation

SOAK = os.environ.get("UXK_SOAK") == "1"
PROGRAMS = 20_000 if SOAK else 120
"""Drawn for each of the two comparisons; 23,461 once, of which 20,163 were accepted: no difference."""


def accepted(seed: str, count: int) -> Iterator[tuple[Random, bytes, Emulated]]:
    """Programs that the verifier takes, of so many."""
    for number in range(count):
        rng = Random(f"{seed} {number}")
        code = wider_program(rng)
        try:
            yield rng, code, Emulated(code)
        except VerifierError:
            continue


def test_translation_and_interpreter_leave_the_same_behind_with_and_without_enough_budget() -> None:
    taken, stopped = 0, 0
    for rng, code, both in accepted("budget", PROGRAMS):
        taken += 1
        memory = rng.randbytes(64)
        whole = both.interpreted(memory)
        executed = both.program.machine.executed
        assert isinstance(whole.result, int), disassemble(decode(code), numbers=True)
        assert both.translated(memory) == whole, disassemble(decode(code), numbers=True)
        for budget in (rng.randrange(1, executed), executed):
            stop = both.interpreted(memory, budget)
            assert both.translated(memory, budget) == stop, (budget, disassemble(decode(code), numbers=True))
            stopped += isinstance(stop.result, str)
    assert taken > 0.7 * PROGRAMS
    assert stopped > 0.9 * taken


def test_linux_leaves_the_same_behind() -> None:
    if reason := why_not():
        pytest.skip(f"bpf(2) does not answer here: {reason}")
    try:
        linux = Linux()
    except OSError as exc:
        pytest.skip(f"bpf(2) does not answer here: {exc}")
    verdicts: Counter[str] = Counter()
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})  # values of per-CPU maps, and the order in which places are used again
    try:
        for rng, code, ours in accepted("linux", PROGRAMS):
            try:
                program = linux.load(code)
            except Refused as exc:
                verdicts[str(exc)[:40]] += 1
                continue
            verdicts["taken"] += 1
            try:
                for _ in range(2):
                    memory = rng.randbytes(64)
                    assert linux.run(program, memory) == ours.translated(memory), disassemble(
                        decode(code), numbers=True
                    )
            finally:
                os.close(program)
    finally:
        os.sched_setaffinity(0, cpus)
    new = sum(number for why, number in verdicts.items() if "opcode" in why) if lacks_acquire() else 0
    assert verdicts["taken"] > 0.7 * (PROGRAMS - new), verdicts


# --- budgets --------------------------------------------------------------------------------------------


FOREVER = "r0 = 0\nagain:\n may_goto out\nr0 += 1\n*(u64 *)(r1 + 0) = r0\ngoto again\nout:\n exit\n"


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 6, 7, 1000, 1001, 1002])
def test_a_loop_stops_where_the_budget_ends(budget: int) -> None:
    outcomes = []
    program = Program(assemble(FOREVER), body(8), budget=budget)
    for run in (program.run, program.interpret):
        memory = bytearray(8)
        with pytest.raises(Fault) as caught:
            run(memory)
        outcomes.append((caught.value.pc, caught.value.reason, bytes(memory)))
    assert outcomes[0] == outcomes[1]
    assert f"has run {budget} instructions" in outcomes[0][1]


def test_a_model_s_body_stops_where_the_budget_ends() -> None:
    text = "r0 = 0\n" + "r2 = *(u64 *)(r1 + 0)\nr0 += r2\n" * 5 + "exit\n"
    for budget in range(1, 12):
        program = Program(assemble(text), features(((0, 9),)), budget=budget)
        assert program.translation.by_fields
        with pytest.raises(Fault) as first:
            program.decide(3)
        with pytest.raises(Fault) as second:
            program.interpret((3).to_bytes(8, "little"))
        assert (
            str(first.value)
            == str(second.value)
            == f"insn {budget}: has run {budget} instructions, the budget of a run"
        )
    assert Program(assemble(text), features(((0, 9),)), budget=12).decide(3) == 15


def test_nothing_is_counted_where_the_proof_bounds_the_run() -> None:
    program = Program(assemble("r2 = 0\nnext:\nr2 += 1\nif r2 < 9 goto next\nr0 = r2\nexit\n"), body(8))
    assert program.run(bytes(8)) == 9
    assert "while" in program.translation.source
    assert "finish" not in program.translation.source
    assert "finish" in Translation(program.proof, budget=5).source


def test_a_helper_that_finds_nothing_is_a_fault_at_the_call() -> None:
    helpers = {77: Function(Proto("peek", (Arg.NUMBER,)), lambda machine, at, *_: machine.memory.load(at, 8))}
    program = Program(assemble("r1 = 5\ncall 77\nexit\n"), body(8), helpers=helpers)
    reasons = []
    for run in (program.run, program.interpret):
        with pytest.raises(Fault, match="helper 77: 8 bytes at address 0x5") as caught:
            run(bytes(8))
        reasons.append((caught.value.pc, caught.value.reason))
    assert reasons[0] == reasons[1]


@pytest.mark.parametrize("read", ["r2 = *(u64 *)(r1 + 8)", "r2 = *(u8 *)(r1 + 8)"])
def test_fields_are_counted(read: str) -> None:
    program = Program(assemble(f"{read}\nr0 = r2\nexit\n"), features(((0, 9), (0, 9))), name="two")
    assert program.decide(3, 4) == 4
    for fields in ((), (3,), (3, 4, 5)):
        with pytest.raises(BpfError, match=f"program 'two': {len(fields)} fields; it was verified for 2"):
            program.decide(*fields)


def test_fields_beyond_64_bits() -> None:
    program = Program(assemble("r0 = *(u8 *)(r1 + 0)\nexit\n"), features(((0, 9),)))
    with pytest.raises(BpfError, match="expected numbers of 64 bits"):
        program.decide(1 << 63)


@pytest.mark.parametrize("step", ["goto +0\n", "if r0 == 2 goto +0\n", "gotol +0\n", "if r0 != 1 goto +1\nr0 = 1\n"])
def test_long_chains_of_jumps_that_go_one_way(step: str) -> None:
    program = Program(assemble("r0 = 1\n" + step * 3000 + "exit\n"), body(8))
    assert program.run(bytes(8)) == program.interpret(bytes(8)) == 1
