"""Whole arrays by machine code and by the translation: what the interpreter gives for one row after the other."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from bpf_cases import HOME, conformance, corpus, random_program
from richer import SIZE_BYTES, maps, reset, richer_program
from wider import wider_program

from uxk.bpf import batch, mnemonics
from uxk.bpf import insn as i
from uxk.bpf.asm import assemble
from uxk.bpf.batch import Batch, Stopped, Unsupported
from uxk.bpf.disasm import disassemble
from uxk.bpf.errors import BpfError, Fault, VerifierError
from uxk.bpf.helpers import HELPERS, LOOKUP, Function, with_kernel
from uxk.bpf.insn import M64, Insn, decode, encode, lddw, s64
from uxk.bpf.maps import ArenaMap, ArrayMap, HashMap, InstanceArrayMap, Map, RingBuffer
from uxk.bpf.program import Program
from uxk.bpf.proto import Arg, Proto, Spec, body, features
from uxk.bpf.values import Space

pytest.importorskip("llvmlite")
KERNEL = with_kernel(lambda: 7, lambda: 8)
needs_data = pytest.mark.skipif(not HOME.is_dir(), reason=f"the public tests are not at {HOME} (UXK_BPF_TESTS)")
Rows = Any


def drawn(rng: Random, count: int = 3, size_bytes: int = 64) -> Rows:
    return np.frombuffer(bytearray(rng.randbytes(count * size_bytes)), np.uint8).reshape(count, size_bytes)


def interpreted(program: Program, rows: Rows) -> tuple[list[int], list[int]]:
    """r0 and where it was stopped, of each row, which is changed as the program changes its memory."""
    verdicts, stopped = [], []
    for row in rows:
        memory = bytearray(row.tobytes())
        try:
            verdicts.append(program.interpret(memory))
            stopped.append(-1)
        except Fault as exc:
            if "the budget of a run" not in exc.reason:
                raise
            verdicts.append(0)
            stopped.append(exc.pc)
        row[:] = np.frombuffer(memory, row.dtype)
    return verdicts, stopped


def contents(program: Program) -> list[dict[bytes, bytes]]:
    return [dict(each.items()) for each in program.maps.values() if isinstance(each, (ArrayMap, HashMap))]


def as_at_first(program: Program) -> None:
    for each in program.maps.values():
        for key, _ in list(each.items()) if isinstance(each, HashMap) else ():
            each.delete(key)
    if program.maps:
        reset(program.maps)  # type: ignore[arg-type]


def agrees(program: Program, rows: Rows, *, native: bool, quick: bool = True) -> Counter[str]:
    """Asserts that a batch does what the interpreter does; how many rows came to an end, and how many were stopped."""
    runs = Batch(program, native=native, quick=quick)
    mine, reference = rows.copy(), rows.copy()
    as_at_first(program)
    verdicts, stopped = runs.outcomes(mine)
    values = contents(program)
    as_at_first(program)
    text = disassemble(program.proof.insns, numbers=True)
    expected = interpreted(program, reference)
    assert (verdicts.tolist(), stopped.tolist()) == expected, text
    assert mine.tobytes() == reference.tobytes(), text
    assert values == contents(program), text
    return Counter("stopped" if pc >= 0 else "ended" for pc in expected[1])


# --- programs drawn at random ---


@pytest.mark.parametrize("seed", range(4))
def test_random_programs(seed: int) -> None:
    rng, seen = Random(f"batch {seed}"), Counter[str]()
    for _ in range(120):
        try:
            program = Program(random_program(rng, length=rng.choice((8, 16, 30))), body(64))
        except VerifierError:
            continue
        seen += agrees(program, drawn(rng), native=True, quick=rng.random() < 0.95)
        agrees(program, drawn(rng), native=False)
    assert seen["ended"] > 100


@pytest.mark.parametrize("seed", range(4))
def test_budgets_end_at_the_same_instruction_with_the_same_memory(seed: int) -> None:
    rng, seen = Random(f"budget {seed}"), Counter[str]()
    for number in range(80):
        draw = wider_program if number % 2 else richer_program
        try:
            code, made = draw(rng), maps()
            program = Program(code, body(64)._replace(insns_max=20_000), maps=made, budget=rng.randrange(1, 60))
            seen += agrees(program, drawn(rng), native=True, quick=rng.random() < 0.95)
            agrees(program, drawn(rng), native=False)
        except (VerifierError, Unsupported) as exc:
            seen[type(exc).__name__] += 1
    assert seen["ended"] > 10
    assert seen["stopped"] > 10


@pytest.mark.parametrize("seed", range(4))
def test_calls_loops_arrays_and_pointers_on_the_stack(seed: int) -> None:
    """Programs with what a batch has not are refused by name, and run as Python."""
    rng, seen = Random(f"richer batch {seed}"), Counter[str]()
    for _ in range(120):
        made = maps()
        try:
            program = Program(richer_program(rng), body(64)._replace(insns_max=20_000), maps=made)
        except VerifierError:
            continue
        rows = drawn(rng)
        try:
            seen += agrees(program, rows, native=True, quick=rng.random() < 0.95)
        except Unsupported as exc:
            seen["refused"] += decode(program.code)[exc.pc].imm == LOOKUP and "one of kind hash" in str(exc)
            seen["refused otherwise"] += "one of kind hash" not in str(exc)
        agrees(program, rows, native=False)
    assert seen["ended"] > 30
    assert 0 < seen["refused"] < seen["ended"]
    assert not seen["refused otherwise"]


# --- public programs ---


@needs_data
@pytest.mark.parametrize("quick", [True, False])
def test_public_tests(quick: bool) -> None:
    """All that the verifier takes, but the one that calls the kernel; every tenth where making them takes longer."""
    passed, refused = 0, []
    for number, case in enumerate(conformance()):
        if not quick and number % 10:
            continue
        try:
            program = Program(mnemonics.assemble(case.text), body(len(case.memory)), helpers=KERNEL)
        except VerifierError:
            continue
        rows = np.frombuffer(bytearray(case.memory) * 2, np.uint8).reshape(2, len(case.memory))
        try:
            runs = Batch(program, native=True, quick=quick)
        except Unsupported:
            refused.append(case.name)
            continue
        assert [each & M64 for each in runs.many(rows).tolist()] == [case.result] * 2, case.name
        passed += 1
    assert not quick or (passed + len(refused) == 300)
    assert set(refused) <= {"call_unwind_fail"}, refused


@needs_data
def test_programs_that_linux_ran() -> None:
    passed, refused = 0, 0
    for entry in list(corpus())[:400]:
        if entry["label"] == "accept":
            try:
                program = Program(bytes.fromhex(entry["program"]), body(64), helpers=KERNEL)
            except VerifierError:
                continue
            rows = np.array([list(bytes.fromhex(context)) for context in entry["ctx"]], np.uint8)
            results = [each if isinstance(each, int) else int(each, 16) for each in entry["r0"]]
            try:
                found = Batch(program, native=True, quick=True).many(rows)
            except Unsupported as exc:
                refused += "a call of helper" in str(exc)
                continue
            assert [each & M64 for each in found.tolist()] == [each & M64 for each in results], entry["program"]
            passed += 1
    assert passed > 100
    assert refused < 10


# --- rows ---

SUM = """
    r2 = *(u64 *)(r1 + 0)
    r0 = *(u64 *)(r1 + 8)
    r0 += r2
    exit
"""
WRITES = """
    r0 = *(u64 *)(r1 + 0)
    r0 += 1
    *(u64 *)(r1 + 8) = r0
    exit
"""
NARROW = features(((0, 7), (-3, 3)))


def summing(native: bool = True) -> Batch:
    return Batch(Program(assemble(SUM), NARROW, name="sum"), native=native, quick=True)


@pytest.mark.parametrize("native", [True, False])
def test_arrays_of_other_kinds(native: bool) -> None:
    runs = summing(native)
    rows = np.array([[1, 2], [7, -3], [0, 0]])
    expected = [3, 4, 0]
    frozen = rows.copy()
    frozen.flags.writeable = False
    wide = np.zeros((3, 5), np.int64)
    wide[:, 1:3] = rows
    for each in (
        rows, frozen, np.asfortranarray(rows), wide[:, 1:3], rows.view(np.uint8), np.repeat(rows, 2, axis=0)[::2],
        np.repeat(rows, 2, axis=1)[:, ::2],
    ):  # fmt: skip
        assert runs.many(each).tolist() == expected
    assert runs.many(rows[::-1]).tolist() == expected[::-1]
    assert runs.many(np.broadcast_to(rows[0], (5, 2))).tolist() == [3] * 5
    unaligned = np.frombuffer(b"\0" + rows.tobytes(), np.uint8)[1:].view(np.int64).reshape(3, 2)
    assert runs.many(unaligned).tolist() == expected
    assert runs.many(rows[:0]).tolist() == []
    assert runs.many(rows).dtype == np.int64


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[1, 2]], "list; expected an array of int64 with 2 columns, or of uint8 with 16"),
        (np.zeros((2, 3), np.int64), r"an array of int64 of the shape \(2, 3\)"),
        (np.zeros((2, 2)), "an array of float64"),
        (np.zeros((2, 2), np.int32), "an array of int32"),
        (np.zeros((2, 4), np.int32), "an array of int32"),
        (np.zeros((2, 2), np.uint64), "an array of uint64"),
        (np.zeros((2, 2), ">i8"), "an array of >i8"),
        (np.zeros(2, np.int64), r"an array of int64 of the shape \(2,\)"),
        (np.zeros((1, 1, 2), np.int64), r"an array of int64 of the shape \(1, 1, 2\)"),
        (np.array(5), r"an array of int64 of the shape \(\)"),
        (np.zeros((2, 2), object), "an array of object"),
        (np.zeros((0, 3), np.int64), r"an array of int64 of the shape \(0, 3\)"),
    ],
)
def test_other_arrays_are_refused(native: bool, rows: Any, said: str) -> None:
    with pytest.raises(BpfError, match=f"program 'sum': {said}"):
        summing(native).many(rows)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("count", [10**15, 10**18])
def test_more_rows_than_there_is_memory_for(native: bool, count: int) -> None:
    with pytest.raises((MemoryError, ValueError)):
        summing(native).many(np.broadcast_to(np.zeros(2, np.int64), (count, 2)))


@pytest.mark.parametrize("native", [True, False])
def test_fields_outside_of_what_the_proof_took_for_granted(native: bool) -> None:
    runs = summing(native)
    for row, said in (([8, 0], "row 1: 8 in field 0; it was verified for 0..7"), ([0, -4], "row 1: -4 in field 1")):
        with pytest.raises(BpfError, match=f"program 'sum': {said}"):
            runs.many(np.array([[1, 1], row, [0, 0]]))


def test_verdicts_are_quick_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots that rows lack are 0; machine code is made only for what takes Python longer."""
    program = Program(assemble(SUM), features(((0, 7), (0, 0))), name="sum")
    made: list[bool | None] = []
    create = Batch.__init__
    monkeypatch.setattr(Batch, "__init__", lambda self, *a, **k: (made.append(k["native"]), create(self, *a, **k))[1])
    assert batch.verdicts(program, np.array([[5], [6]])).tolist() == [5, 6]
    monkeypatch.setattr(batch, "WORTH_INSTRUCTIONS", 8)
    assert batch.verdicts(program, np.array([[5], [6]])).tolist() == [5, 6]
    assert made == [False, None]
    for rows in (np.array([5]), np.zeros((1, 3), np.int64), np.zeros((1, 1))):
        with pytest.raises(BpfError, match="expected an array of int64 with 2 columns"):
            batch.verdicts(program, rows)


def test_fields_outside_never_reach_memory_elsewhere() -> None:
    text = "r2 = *(u64 *)(r1 + 0)\nr1 += r2\nr0 = *(u8 *)(r1 + 0)\nexit\n"
    runs = Batch(Program(assemble(text), features(((0, 15), (0, 255)))), native=True)
    address = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(runs.address)
    row = np.array([8, 77])
    assert address(row.ctypes.data) == 77
    row[0] = 1 << 40
    assert address(row.ctypes.data) == 0
    with pytest.raises(BpfError, match=r"verified for 0\.\.15"):
        runs.many(row.reshape(1, 2))


def test_fields_that_the_program_may_write_stay_with_python() -> None:
    spec = NARROW._replace(memory=Space("memory", 16))
    assert "may write" in Batch(Program(assemble(SUM), spec)).why
    with pytest.raises(BpfError, match="may write"):
        Batch(Program(assemble(SUM), spec), native=True)


@pytest.mark.parametrize("native", [True, False])
def test_what_is_written_is_in_the_rows(native: bool) -> None:
    runs = Batch(Program(assemble(WRITES), body(16), name="w"), native=native, quick=True)
    rows = np.array([[4, 0], [5, 0]])
    assert runs.many(rows).tolist() == [5, 6]
    assert rows.tolist() == [[4, 5], [5, 6]]
    frozen = np.array([[4, 0]])
    frozen.flags.writeable = False
    assert runs.many(frozen).tolist() == [5]
    assert frozen.tolist() == [[4, 0]]
    wide = np.zeros((2, 4), np.int64)
    with pytest.raises(BpfError, match="columns 16 bytes apart"):
        runs.many(wide[:, ::2])
    assert runs.many(wide[:, 1:3]).tolist() == [1, 1]
    assert wide.tolist() == [[0, 0, 1, 0]] * 2


@pytest.mark.parametrize("native", [True, False])
def test_programs_without_memory_or_with_odd_bytes(native: bool) -> None:
    nothing = Batch(Program(assemble("r0 = r2\nr0 += r1\nr0 -= 3\nexit\n"), body(0)), native=native)
    assert nothing.many(np.zeros((4, 0), np.int64)).tolist() == [-3] * 4
    odd = Batch(Program(assemble("r0 = *(u8 *)(r1 + 4)\nr0 += r2\nexit\n"), body(5)), native=native)
    assert odd.many(np.array([[0, 0, 0, 0, 9]], np.uint8)).tolist() == [14]
    with pytest.raises(BpfError, match=r"expected an array of bytes \(uint8\) with 5 columns"):
        odd.many(np.zeros((1, 1), np.int64))


# --- what stops ---

ENDLESS = """
    r0 = 0
again:
    may_goto out
    r0 += 1
    goto again
out:
    exit
"""


@pytest.mark.parametrize("native", [True, False])
def test_a_row_that_uses_the_budget_up(native: bool) -> None:
    text = f"r6 = *(u64 *)(r1 + 0)\nif r6 != 0 goto fine\n{ENDLESS}fine:\nr0 = 1\nexit\n"
    runs = Batch(Program(assemble(text), body(8), budget=1_000), native=native)
    assert not runs.bounded
    rows = np.array([[1], [0], [2], [0]])
    verdicts, stopped = runs.outcomes(rows)
    assert verdicts.tolist() == [1, 0, 1, 0]
    with pytest.raises(Fault) as expected:
        runs.program.interpret(bytes(8))
    assert stopped.tolist() == [-1, expected.value.pc, -1, expected.value.pc]
    with pytest.raises(Stopped, match="has run 1000 instructions, the budget of a run") as found:
        runs.many(rows)
    assert (found.value.row, found.value.pc) == (1, expected.value.pc)


def test_may_goto_gives_up_by_itself() -> None:
    runs = Batch(Program(assemble(ENDLESS), body(0), budget=1 << 40), native=True)
    assert runs.many(np.zeros((1, 0), np.int64)).tolist() == [8 << 20]


# --- what there is not ---

LOOKS_UP = encode([
    Insn(i.ST | i.W | i.MEM, 10, 0, -4, 0), *lddw(1, 1, i.IMM64_MAP_FD), Insn(i.ALU64 | i.MOV | i.X, 2, 10),
    Insn(i.ALU64 | i.ADD, 2, imm=-4), Insn(i.CALL_INSN, imm=LOOKUP), Insn(i.JMP | i.JEQ, 0, 0, 1),
    Insn(i.LDX | i.B | i.MEM, 0, 0, 0), Insn(i.EXIT_INSN),
])  # fmt: skip


def lookup(table: Map, **others: Any) -> Program:
    return Program(LOOKS_UP, body(8), maps={1: table}, **others)


def test_values_of_arrays_are_those_of_the_map() -> None:
    table = ArrayMap(8, 2)
    runs = Batch(lookup(table), native=True)
    rows = np.zeros((2, 1), np.int64)
    for value in (5, 200):
        table[0] = bytes([value]) * 8
        assert runs.many(rows).tolist() == [value] * 2
    with pytest.raises(BufferError):  # its values stay where machine code finds them
        table.data.extend(b"more")


@pytest.mark.parametrize("table", [HashMap(4, 8, 2), InstanceArrayMap(8, 2)], ids=lambda table: table.kind)
def test_lookups_in_other_maps_are_left_to_python(table: Map) -> None:
    program = lookup(table)
    with pytest.raises(Unsupported, match=rf"insn 5: call 1.*one of kind {table.kind}, which") as found:
        Batch(program, native=True)
    assert found.value.pc == 5
    runs = Batch(program)
    assert not runs.native and "insn 5" in runs.why
    assert runs.many(np.zeros((2, 1), np.int64)).tolist() == [0, 0]
    with pytest.raises(BpfError, match="no machine code: insn 5"):
        print(runs.address)


def test_a_lookup_of_someone_elses_is_left_to_python() -> None:
    helpers = {LOOKUP: Function(HELPERS[LOOKUP].proto, lambda *_: 0)}
    assert "a call of helper 1" in Batch(lookup(ArrayMap(8, 2), helpers=helpers)).why


def test_calls_of_the_kernel_and_the_arena_are_left_to_python() -> None:
    rows = np.zeros((2, 1), np.int64)
    clock = Batch(Program(assemble("call 5\nexit\n"), body(8), helpers=KERNEL))
    assert "insn 0: call 5: a call of helper 5, which the batch backend has not" in clock.why
    assert clock.many(rows).tolist() == [7, 7]
    kfuncs = {9: Function(Proto("nine", (Arg.NUMBER,)), lambda machine, r1, *_: r1 + 1)}
    kfunc = Batch(Program(assemble("r1 = 41\ncall kfunc#9\nexit\n"), body(8), kfuncs=kfuncs))
    assert "a call of kfunc 9" in kfunc.why
    assert kfunc.many(rows).tolist() == [42, 42]
    arena = ArenaMap(1)
    arena.populate(0, 8)
    text = "r1 = 0\nr1 = addr_space_cast(r1, 0, 1)\nr0 = *(u64 *)(r1 + 0)\nexit\n"
    far = Batch(Program(assemble(text), body(8), maps={1: arena}))
    assert "an address of the arena" in far.why
    assert far.many(rows).tolist() == [0, 0]
    ring = Batch(Program(assemble("r0 = 3\nexit\n"), body(8), maps={1: RingBuffer(4096)}))
    assert ring.native


def test_without_llvmlite_python_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "missing", lambda: "llvmlite is not installed (the extra `fast`)")
    runs = Batch(Program(assemble(SUM), NARROW, name="sum"))
    assert not runs.native
    assert runs.many(np.array([[1, 2]])).tolist() == [3]
    with pytest.raises(BpfError, match="program 'sum': no machine code: llvmlite is not installed"):
        Batch(Program(assemble(SUM), NARROW, name="sum"), native=True)


# --- how long it lives ---


def test_dropped_programs_leave_nothing_behind() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc")
    rng = Random("leak")
    row = np.zeros((1, 1), np.int64)

    def made(number: int) -> None:
        lines = [f"r0 ^= {rng.randrange(1 << 30)}" for _ in range(40)]
        text = "\n".join([f"r0 = {number}", *lines, "r0 = *(u64 *)(r1 + 0)", f"r0 += {number}", "exit"])
        assert Batch(Program(assemble(text), body(8)), native=True, quick=True).many(row).tolist() == [number]

    for number in range(30):
        made(number)
    gc.collect()
    before_bytes = resident_bytes()
    for number in range(200):
        made(number)
    gc.collect()
    assert resident_bytes() - before_bytes < 8 << 20


def test_programs_live_and_go_side_by_side() -> None:
    made = [Batch(Program(assemble(f"r0 = {n}\nexit\n"), body(8)), native=True, quick=True) for n in range(6)]
    rows = np.zeros((1, 1), np.int64)
    del made[1], made[2]
    assert [runs.many(rows).tolist() for runs in made] == [[0], [2], [4], [5]]


def test_threads_share_one() -> None:
    runs = summing()
    rng = np.random.default_rng(1)
    given = [np.stack([rng.integers(0, 8, 5_000), rng.integers(-3, 4, 5_000)], axis=1) for _ in range(4)]
    found: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: runs.many(given[n])})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((found[n] == given[n].sum(axis=1)).all() for n in range(4))


# --- single instructions at their edges ---

EDGES = (
    0, 1, -1, 2, -2, 31, 32, 63, 64, 127, 128, 255, 256, 1 << 15, 1 << 31, (1 << 31) - 1, -(1 << 31), 1 << 32,
    (1 << 32) - 1, -(1 << 32), (1 << 63) - 1, -1 << 63, 0x0102_0304_0506_0708, s64(0x8081_8283_8485_8687),
)  # fmt: skip
BINARY = ("+=", "-=", "*=", "/=", "%=", "s/=", "s%=", "|=", "&=", "^=", "<<=", ">>=", "s>>=")
OPERATIONS = [
    *(f"{r}0 {op} {r}2" for r in "rw" for op in BINARY), "r0 = (s32)r2", "r0 = -r0", "w0 = -w0", "w0 = w2",
    *(f"{r}0 = ({kind}){r}2" for r in "rw" for kind in ("s8", "s16")),
    *(f"r0 = {op}{bits} r0" for op in ("le", "be", "bswap") for bits in (16, 32, 64)),
    *(f"{r}0 {op} -1" for r in "rw" for op in ("/=", "s/=", "s%=", "*=")),
]  # fmt: skip
TESTS = [f"if {r}0 {op} {r}2 goto yes" for r in "rw"
         for op in ("==", "!=", ">", ">=", "<", "<=", "s>", "s>=", "s<", "s<=", "&")]  # fmt: skip


@pytest.mark.parametrize("quick", [True, False])
def test_arithmetic_at_its_edges(quick: bool) -> None:
    """One program for them all: each leaves its result in a field of its own."""
    lines, both = [], "r0 = *(u64 *)(r1 + 0)\nr2 = *(u64 *)(r1 + 8)\n"
    for number, operation in enumerate(OPERATIONS, 2):
        lines.append(f"{both}{operation}\n*(u64 *)(r1 + {8 * number}) = r0")
    for number, test in enumerate(TESTS, 2 + len(OPERATIONS)):
        label = f"yes{number}"
        lines.append(f"{both}r3 = 1\n{test.replace('yes', label)}\nr3 = 0\n{label}:\n*(u64 *)(r1 + {8 * number}) = r3")
    width = 2 + len(OPERATIONS) + len(TESTS)
    program = Program(assemble("\n".join([*lines, "r0 = 0", "exit"])), body(8 * width))
    rows = np.zeros((len(EDGES) ** 2, width), np.int64)
    rows[:, 0], rows[:, 1] = np.repeat(EDGES, len(EDGES)), np.tile(EDGES, len(EDGES))
    reference = rows.copy()
    Batch(program, native=True, quick=quick).many(rows)
    interpreted(program, reference)
    for number, operation in enumerate([*OPERATIONS, *TESTS], 2):
        wrong = np.flatnonzero(rows[:, number] != reference[:, number])
        assert not wrong.size, (operation, rows[wrong[0], [0, 1, number]], reference[wrong[0], number])


def test_a_spec_of_nothing_but_memory() -> None:
    """r2 is not set where the length is not known."""
    spec = Spec(memory=Space("memory", 8), length_known=False)
    assert Batch(Program(assemble("r0 = *(u32 *)(r1 + 4)\nexit\n"), spec)).many(np.array([[3 << 32]])).tolist() == [3]
    assert SIZE_BYTES == 64
