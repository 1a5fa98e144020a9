"""Mistakes planted into a copy of the verifier, and which tests notice them.

``python mutants.py`` prints the table that docs/bpf.md shows.  A mutant is a change of a few words in one file; the
package is imported anew with it, beside the right one, and put to the batteries; if the words are not there any more,
or not once, planting it fails.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from bpf_cases import HOME, corpus, functions, random_program
from test_verifier import ACCEPTED, REFUSED

from uxk.bpf import insn as i
from uxk.bpf.asm import assemble
from uxk.bpf.insn import M32, M64, s64

PACKAGE = "uxk.bpf"
FOLDER = Path(importlib.import_module(PACKAGE).__path__[0])


class Mutant(NamedTuple):
    """The mistake, the file, what is right in it, what is wrong, and the first battery that notices."""

    says: str
    file: str
    right: str
    wrong: str
    caught: str


REFUSE, ACCEPT, BOUNDS, RANDOM = "refused table", "accepted table", "bounds of numbers", "random programs"
MUTANTS = (
    Mutant(
        "a load may end a byte beyond memory",
        "loads",
        "high + size_bytes > space.size_bytes",
        "high + size_bytes > space.size_bytes + 1",
        REFUSE,
    ),
    Mutant("a load may begin before memory", "loads", "if low < 0 or high", "if high", REFUSE),
    Mutant(
        "the stack may be read unwritten",
        "state",
        "if bits(off, size_bytes) & ~self.written:",
        "if not self.written:",
        REFUSE,
    ),
    Mutant(
        "bytes written on one path count",
        "state",
        "Frame(a.depth, a.written & b.written)",
        "Frame(a.depth, a.written | b.written)",
        REFUSE,
    ),
    Mutant(
        "a pointer of one path may be written over in part",
        "state",
        "elif a.holds_pointer(off) or b.holds_pointer(off):",
        "elif a.holds_pointer(off) and b.holds_pointer(off):",
        REFUSE,
    ),
    Mutant("the stack need not be aligned", "loads", "if low % size_bytes:", "if low % 1:", REFUSE),
    Mutant(
        "the stack has 8 bytes more",
        "loads",
        "if not -i.STACK_BYTES <= low <= -size_bytes:",
        "if not -i.STACK_BYTES - 8 <= low <= -size_bytes:",
        REFUSE,
    ),
    Mutant("what may be null may be used", "loads", "    if base.null:\n", "    if base.null and write:\n", REFUSE),
    Mutant(
        "the comparison with null is turned round",
        "verifier",
        "there.resolve_null(number, null=insn.op == i.JEQ)",
        "there.resolve_null(number, null=insn.op == i.JNE)",
        REFUSE,
    ),
    Mutant(
        "read-only memory may be written",
        "loads",
        "if write and not space.writable:",
        "if write and not size_bytes:",
        "fields",
    ),
    Mutant(
        "pointers may be written to memory",
        "loads",
        'if not isinstance(value, Scalar):\n            return f"writes a pointer',
        'if value is None:\n            return f"writes a pointer',
        REFUSE,
    ),
    Mutant(
        "registers survive a call",
        "verifier",
        "None, None, None, None, None, *state.regs[6:]]",
        "*state.regs[1:6], *state.regs[6:]]",
        REFUSE,
    ),
    Mutant(
        "r6 is the caller's",
        "verifier",
        "[None, *state.regs[1:6], None, None, None, None, frame]",
        "[None, *state.regs[1:6], *state.regs[6:10], frame]",
        REFUSE,
    ),
    Mutant(
        "helpers leave r1 to r5 alone", "calls", "state.regs[1:6] = [None] * 5", "state.regs[2:6] = [None] * 4", REFUSE
    ),
    Mutant(
        "the stacks of a chain of calls are not added",
        "verifier",
        "if deepest > CALL_STACK_BYTES:",
        "if own > CALL_STACK_BYTES:",
        REFUSE,
    ),
    Mutant(
        "a verdict may be above its bound",
        "verifier",
        "if r0.smin < low or r0.smax > high:",
        "if r0.smin < low:",
        "verdict",
    ),
    Mutant(
        "jumps may leave their function", "graph", "if not start <= target < end:", "if not 0 <= target < end:", REFUSE
    ),
    Mutant(
        "what cannot be reached is let be",
        "graph",
        "            if pc not in self.order:\n",
        "            if pc < 0:\n",
        REFUSE,
    ),
    Mutant(
        "jumps into a wide load",
        "structure",
        "target < len(insns) or target in second:",
        "target < len(insns):",
        REFUSE,
    ),
    Mutant(
        "immediate shifts may be too wide", "structure", "not 0 <= insn.imm < bits:", "not 0 <= insn.imm < 64:", REFUSE
    ),
    Mutant(
        "unused fields may be anything",
        "structure",
        "if insn.imm if insn.by_register else insn.src:",
        "if insn.imm and insn.by_register:",
        REFUSE,
    ),
    Mutant(
        "the upper bound of a sum is too low",
        "values",
        "_either(bounded(a.smin + b.smin, a.smax + b.smax)",
        "_either(bounded(a.smin + b.smin, a.smax + b.smin)",
        BOUNDS,
    ),
    Mutant(
        "a difference is bounded the wrong way",
        "values",
        "bounded(a.smin - b.smax, a.smax - b.smin)",
        "bounded(a.smin - b.smin, a.smax - b.smax)",
        BOUNDS,
    ),
    Mutant(
        "unsigned sums do not overflow",
        "values",
        "    if umin < 0 or umax > M64:\n",
        "    if umin < 0:\n        umin = 0\n    umax = min(umax, M64)\n    if umin > umax:\n",
        BOUNDS,
    ),
    Mutant(
        "an `or` is no more than its parts",
        "values",
        "max(a.umax.bit_length(), b.umax.bit_length())",
        "min(a.umax.bit_length(), b.umax.bit_length())",
        BOUNDS,
    ),
    Mutant(
        "a product is small although it is not",
        "values",
        "a.umax <= M32 and b.umax <= M32",
        "a.umax <= M32 or b.umax <= M32",
        BOUNDS,
    ),
    Mutant(
        "the sign is lost by an extension",
        "values",
        "return a if low <= a.smin and a.smax <= high",
        "return a if a.smax <= high",
        BOUNDS,
    ),
    Mutant(
        "32-bit results keep their upper half",
        "values",
        "return _cut(result) if bits == 32 else result",
        "return result",
        BOUNDS,
    ),
    Mutant(
        "a join forgets the larger bound",
        "values",
        "max(a.smax, b.smax), min(a.umin, b.umin)",
        "a.smax, min(a.umin, b.umin)",
        ACCEPT,
    ),
    Mutant(
        "joined pointers keep the lesser offset",
        "values",
        "return Pointer(a.space, min(a.low, b.low), max(a.high, b.high))",
        "return Pointer(a.space, min(a.low, b.low), min(a.high, b.high))",
        "joined pointers",
    ),
    Mutant("below is taken as at most", "branches", "i.JLT: (0, b.umax - 1)", "i.JLT: (0, b.umin - 1)", BOUNDS),
    Mutant(
        "signed greater includes equal bounds wrongly",
        "branches",
        "i.JSGT: (b.smin + 1, S64_MAX)",
        "i.JSGT: (b.smax + 1, S64_MAX)",
        BOUNDS,
    ),
    Mutant("not equal excludes what may be", "branches", "    if not b.known:\n        return a\n", "", BOUNDS),
    Mutant(
        "32-bit jumps tell of all 64 bits",
        "branches",
        "if a.smin >= -1 << 31 and a.smax <= M32:",
        "if a.smin >= -1 << 31 or a.smax <= M32:",
        BOUNDS,
    ),
    Mutant(
        "a side that can be is dropped",
        "branches",
        "return ((a, b), None) if a.umin & b.umin & mask",
        "return (None, (a, b)) if a.umin & b.umin & mask",
        BOUNDS,
    ),
    Mutant(
        "a pointer moves by the lesser bound only",
        "alu_rules",
        "(number.smin, number.smax)",
        "(number.smin, number.smin)",
        REFUSE,
    ),
    Mutant(
        "stack pointers move by unknown distances",
        "alu_rules",
        'if pointer.space.kind == "stack" and low != high:',
        'if pointer.space.kind == "stack" and low > high:',
        REFUSE,
    ),
    Mutant(
        "pointers may be multiplied",
        "alu_rules",
        "if insn.op not in (i.ADD, i.SUB):",
        "if insn.op not in (i.ADD, i.SUB, i.MUL):",
        REFUSE,
    ),
    Mutant(
        "a loop that changes nothing is let be",
        "verifier",
        "if back and (state.spent or not has_may_goto) and rounds.repeats(target, following):",
        "if back and has_may_goto and rounds.repeats(target, following):",
        REFUSE,
    ),
    Mutant("widening stands still", "values", "return grown if grown[:4] == a[:4] else UNKNOWN", "return a", ACCEPT),
    Mutant(
        "one wrong branch of a comparison is followed",
        "verifier",
        "((taken, target), (passed, pc + 1))",
        "((taken, pc + 1), (passed, target))",
        ACCEPT,
    ),
    Mutant(
        "the second number of a comparison learns of the first",
        "verifier",
        "way.learn(insn.src, side[1])",
        "way.learn(insn.src, side[0])",
        RANDOM,
    ),
    Mutant(
        "a function may leave addresses on the stack of its caller",
        "loads",
        "base.space.number < len(state.frames) - 1:",
        "base.space.number > len(state.frames) - 1:",
        REFUSE,
    ),
    Mutant(
        "what a function uses of its caller's stack does not count",
        "loads",
        "state.frames[space.number].depth.reach(low)",
        "state.frames[space.number].depth.reach(low if space.number == len(state.frames) - 1 else 0)",
        REFUSE,
    ),
    Mutant(
        "a function may return an address on its stack",
        "verifier",
        'isinstance(r0, Pointer) and r0.space.kind == "stack":',
        'isinstance(r0, Pointer) and r0.space.kind == "arena":',
        REFUSE,
    ),
    Mutant(
        "addresses that differ are met at once",
        "verifier",
        "if len(waiting) == APART_MAX or other.agrees(state):",
        "if len(waiting) == APART_MAX or not other.agrees(state):",
        ACCEPT,
    ),
    Mutant(
        "one of the states at a place is not followed",
        "verifier",
        "        if not waiting:\n            del self._waiting",
        "        if waiting:\n            del self._waiting",
        REFUSE,
    ),
    Mutant("the turns of may_goto are never used up", "verifier", "after.spent = True", "after.spent = False", REFUSE),
    Mutant(
        "a loop may gather objects",
        "verifier",
        "if known.references != state.references:",
        "if known.references > state.references:",
        REFUSE,
    ),
    Mutant(
        "an object that a function released may be used",
        "calls",
        "if value.space.number not in self._state.references:",
        "if not value.space.number:",
        REFUSE,
    ),
    Mutant(
        "numbers survive where a helper may have written",
        "state",
        "range(off & ~7, off + most, 8)",
        "range(off & ~7, off + least, 8)",
        REFUSE,
    ),
    Mutant(
        "a helper writes as much as it may",
        "state",
        "self.written |= bits(off, least)",
        "self.written |= bits(off, most)",
        REFUSE,
    ),
    Mutant(
        "pointers move down by what varies",
        "alu_rules",
        "if low < 0 and low != high:",
        "if low < 0 and low > high:",
        REFUSE,
    ),
    Mutant(
        "what is learnt of a number holds of other copies",
        "state",
        "[value if isinstance(v, Scalar) and v.tied == tied else v for v in self.regs]",
        "[value if isinstance(v, Scalar) and v.tied else v for v in self.regs]",
        REFUSE,
    ),
    Mutant(
        "copies on one path are copies",
        "values",
        "tied = a.tied if a.tied == b.tied else 0",
        "tied = a.tied or b.tied",
        REFUSE,
    ),
    Mutant(
        "a changed copy is a copy",
        "alu_rules",
        "regs[insn.dst] = compute(insn.op, off, 64 if insn.cls == i.ALU64 else 32, left, source)",
        "regs[insn.dst] = compute(insn.op, off, 64 if insn.cls == i.ALU64 else 32, left, source)"
        "._replace(tied=left.tied)",
        REFUSE,
    ),
    Mutant("a mask tells of the other bits", "branches", "above(0, mask & ~b.umin)", "above(0, mask & b.umin)", BOUNDS),
    Mutant(
        "32-bit jumps forget what is negative",
        "branches",
        "(0, -1 << 32 if unsigned else 1 << 32)",
        "(0,)",
        BOUNDS,
    ),
    Mutant(
        "what differs from visit to visit was never written",
        "verifier",
        "join(a, b) or MIXED for",
        "join(a, b) for",
        ACCEPT,
    ),
)


# --- a copy of the package ---------------------------------------------------------------------------------


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a text other than the file's."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self._text = text

    def get_code(self, fullname: str) -> Any:
        return compile(self._text, f"<mutant {fullname}>", "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._name, path = f"{PACKAGE}.{mutant.file}", FOLDER / f"{mutant.file}.py"
        text = path.read_text()
        assert text.count(mutant.right) == 1, f"{mutant.says}: {path.name} has changed: plant it anew"
        self._loader = _Loader(self._name, str(path), text.replace(mutant.right, mutant.wrong))

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self._loader) if name == self._name else None


class Copy:
    """What the batteries need of a copy."""

    def __init__(self) -> None:
        names = ("program", "errors", "proto", "maps", "helpers", "interp", "values", "branches", "alu")
        modules = {name: importlib.import_module(f"{PACKAGE}.{name}") for name in names}
        self.Program: Any = modules["program"].Program
        self.Machine: Any = modules["interp"].Machine
        self.VerifierError: Any = modules["errors"].VerifierError
        self.Fault: Any = modules["errors"].Fault
        self.proto: Any = modules["proto"]
        self.maps: Any = modules["maps"]
        self.helpers, self.kfuncs = functions(modules["helpers"], self.proto)
        self.values: Any = modules["values"]
        self.outcomes: Any = modules["branches"].outcomes
        self.alu: Any = modules["alu"].alu
        self.holds: Any = modules["alu"].holds

    def load(self, code: bytes, spec: Any = None) -> Any:
        """A program with the maps of the tables."""
        m = self.maps
        array, arena = m.ArrayMap(8, 1, "a"), m.ArenaMap(4, "n")
        array[0] = (5).to_bytes(8, "little")
        arena.populate(0, 4096)
        maps = {
            1: array,
            2: m.HashMap(4, 8, 2, "h"),
            3: m.RingBuffer(4096, "r"),
            4: m.InstanceArrayMap(8, 1, "i"),
            5: arena,
            6: m.ArrayMap(8, 2, "two"),
        }
        spec = (spec or self.proto.body(16))._replace(insns_max=20_000)
        return self.Program(code, spec, maps=maps, helpers=self.helpers, kfuncs=self.kfuncs, budget=20_000)


@contextmanager
def planted(mutant: Mutant | None) -> Iterator[Copy]:
    """A copy of the package with a mistake, or without one."""
    root = sys.modules[PACKAGE.split(".")[0]]
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[:2] == PACKAGE.split(".")}
    finder = _Finder(mutant) if mutant else None
    if finder:
        sys.meta_path.insert(0, finder)
    try:
        yield Copy()
    finally:
        if finder:
            sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[:2] == PACKAGE.split(".")]:
            del sys.modules[name]
        sys.modules.update(kept)
        root.bpf = kept[PACKAGE]  # type: ignore[attr-defined]


# --- the batteries: each returns what is wrong, or nothing ---------------------------------------------------


def refused(copy: Copy) -> str:
    """The programs that must be refused, with their reasons."""
    for name, (text, reason) in REFUSED.items():
        try:
            copy.load(assemble(text))
        except copy.VerifierError as exc:
            if not re.search(reason, str(exc)):
                return f"{name}: refused because {exc}"
        else:
            return f"{name}: accepted"
    return ""


def accepted(copy: Copy) -> str:
    """The programs that must be accepted, and what they return."""
    for name, (text, memory, expected) in ACCEPTED.items():
        try:
            program = copy.load(assemble(text))
        except copy.VerifierError as exc:
            return f"{name}: refused: {exc}"
        results = program.run(bytearray(memory)), copy.load(assemble(text)).interpret(bytearray(memory))
        if results != (expected, expected):
            return f"{name}: {results}; expected {expected}"
    return ""


def read_only(copy: Copy) -> str:
    """A model's body may not write its fields."""
    return _must_refuse(copy, "*(u64 *)(r1 + 0) = 1\nr0 = 0\nexit", copy.proto.features(((0, 1), (0, 1))))


def verdict(copy: Copy) -> str:
    """The verdict's bounds."""
    return _must_refuse(copy, "r0 = *(u8 *)(r1 + 0)\nexit", copy.proto.body(16)._replace(verdict=(0, 3)))


def joined_pointers(copy: Copy) -> str:
    """A pointer that is further on by one path."""
    text = "r2 = *(u8 *)(r1 + 0)\nif r2 == 0 goto a\nr1 += 9\na: r0 = *(u64 *)(r1 + 0)\nexit"
    return _must_refuse(copy, text, copy.proto.body(16))


def bounds(copy: Copy, count: int = 2500) -> str:
    """Numbers within bounds, put through the machine's arithmetic and comparisons, are within the resulting bounds."""
    rng = Random("bounds")
    for _ in range(count):
        a, b = _drawn(copy, rng), _drawn(copy, rng)
        bits, op = rng.choice((32, 64)), rng.choice(_OPERATIONS)
        off = rng.choice((0, 8, 16, 32 if bits == 64 else 0)) if op == i.MOV else 0
        if why := _arithmetic(copy, op, off, bits, a, b):
            return why
        if why := _comparison(copy, rng.choice(_COMPARISONS), bits, a, b):
            return why
    return ""


_OPERATIONS = (i.ADD, i.SUB, i.MUL, i.OR, i.AND, i.LSH, i.RSH, i.XOR, i.MOV, i.ARSH)
_COMPARISONS = (i.JEQ, i.JGT, i.JGE, i.JSET, i.JNE, i.JSGT, i.JSGE, i.JLT, i.JLE, i.JSLT, i.JSLE)
_ENDS = (0, 1, -1, 5, -7, 127, -128, 1 << 31, (1 << 31) - 1, -(1 << 31), M32, 1 << 32, -(1 << 40), M64 >> 1, -(1 << 63))


def _drawn(copy: Copy, rng: Random) -> tuple[Any, list[int]]:
    """Bounds, and numbers within them."""
    values, ends = copy.values, sorted(rng.choice(_ENDS) + rng.choice((0, 0, 1, -1, 3)) for _ in range(2))
    if rng.random() < 0.3:
        ends[1] = ends[0]
    if rng.random() < 0.5:
        scalar = values.bounded(*ends)
        low, high = scalar.smin, scalar.smax
    else:
        scalar = values.above(*sorted(end & M64 for end in ends))
        low, high = scalar.umin, scalar.umax
    return scalar, [low & M64, high & M64, *(rng.randint(low, high) & M64 for _ in range(2))]


def _inside(number: int, scalar: Any) -> bool:
    return scalar.umin <= number <= scalar.umax and scalar.smin <= s64(number) <= scalar.smax


def _arithmetic(copy: Copy, op: int, off: int, bits: int, a: Any, b: Any) -> str:
    result = copy.values.compute(op, off, bits, a[0], b[0])
    opcode = op | i.X | (i.ALU64 if bits == 64 else i.ALU)
    for left, right in itertools.product(a[1], b[1]):
        number = copy.alu(opcode, off, left, right)
        if not _inside(number, result):
            return f"{op:#x}, {bits} bits: {left:#x}, {right:#x} is {number:#x}, proven {result}"
    return ""


def _comparison(copy: Copy, op: int, bits: int, a: Any, b: Any) -> str:
    sides = copy.outcomes(op, bits, a[0], b[0])
    for left, right in itertools.product(a[1], b[1]):
        side = sides[0 if copy.holds(op | (i.JMP if bits == 64 else i.JMP32), left, right) else 1]
        if side is None or not _inside(left, side[0]) or not _inside(right, side[1]):
            return f"jump {op:#x}, {bits} bits: {left:#x}, {right:#x}: {side}"
    return ""


def _must_refuse(copy: Copy, text: str, spec: Any) -> str:
    try:
        copy.load(assemble(text), spec)
    except copy.VerifierError:
        return ""
    return f"accepted: {text!r}"


def randoms(copy: Copy, count: int = 700) -> str:
    """Whatever is accepted neither faults nor leaves the bounds that were proven, instruction by instruction."""
    rng = Random("mutants")
    for number in range(count):
        code = random_program(rng, size_bytes=16, length=24)
        memories = [rng.randbytes(16) for _ in range(2)]
        try:
            program = copy.Program(code, copy.proto.body(16))
        except copy.VerifierError:
            continue
        for memory in memories:
            if why := followed(copy, program, memory):
                return f"random program {number}: {why}"
    return ""


def followed(copy: Any, program: Any, memory: bytes, again: Callable[[], object] = lambda: None) -> str:
    """Interprets with an eye on the proof, then runs the translation; ``again`` makes the maps what they were."""
    before, scalar = program.proof.before, copy.values.Scalar
    wrong: list[str] = []
    step = program.machine._step

    def watched(pc: int, insn: Any, regs: list[int]) -> Any:
        for register, value in enumerate(before.get(pc) or ()):
            if isinstance(value, scalar):
                number = regs[register]
                signed = number - (1 << 64) if number >> 63 else number
                if not (value.smin <= signed <= value.smax and value.umin <= number <= value.umax):
                    wrong.append(f"at {pc} r{register} is {number:#x}, proven {value}")
        if pc not in before:
            wrong.append(f"comes to {pc}, which was proven to be impossible")
        return step(pc, insn, regs)

    program.machine._step = watched
    try:
        interpreted = program.interpret(bytearray(memory))
    except copy.Fault as exc:
        return f"faults: {exc}"
    finally:
        del program.machine._step
    if wrong:
        return wrong[0]
    again()
    return "" if program.run(bytearray(memory)) == interpreted else "the translation differs from the interpreter"


def judged(copy: Copy, count: int = 700) -> str:
    """Programs that Linux judged (the first of the corpus, where it is)."""
    if not HOME.is_dir():
        return ""
    for number, entry in enumerate(itertools.islice(corpus(), count)):
        try:
            program = copy.Program(bytes.fromhex(entry["program"]), copy.proto.body(64), helpers=copy.helpers)
        except copy.VerifierError:
            continue
        if entry["label"] in ("refuse", "refuse-strict"):
            return f"corpus {number}: accepted"
        if entry["label"] != "accept":  # refused for what a processor may guess
            continue
        for context, r0 in zip(entry["ctx"], entry["r0"], strict=True):
            expected = r0 if isinstance(r0, int) else int(r0, 16)
            if (program.run(bytearray.fromhex(context)) ^ expected) & (1 << 64) - 1:
                return f"corpus {number}: a wrong result"
    return ""


BATTERIES: dict[str, Callable[[Copy], str]] = {
    REFUSE: refused, ACCEPT: accepted, "fields": read_only, "verdict": verdict, "joined pointers": joined_pointers,
    BOUNDS: bounds, RANDOM: randoms, "corpus": judged,
}  # fmt: skip


def noticed(copy: Copy, battery: str) -> str:
    """What a battery says; a copy that breaks down is noticed, too."""
    try:
        return BATTERIES[battery](copy)
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"


def main() -> None:
    """Prints the table."""
    print(f"| mistake | file | {' | '.join(BATTERIES)} |\n|{'---|' * (2 + len(BATTERIES))}")
    for mutant in MUTANTS:
        with planted(mutant) as copy:
            marks = ["x" if noticed(copy, battery) else "" for battery in BATTERIES]
        print(f"| {mutant.says} | {mutant.file} | {' | '.join(marks)} |", flush=True)


if __name__ == "__main__":
    main()
