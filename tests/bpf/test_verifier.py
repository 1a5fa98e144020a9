"""What the verifier refuses, with its reasons, and what it takes."""

from __future__ import annotations

import pytest

from uxk.bpf.asm import assemble
from uxk.bpf.errors import VerifierError
from uxk.bpf.helpers import with_kernel
from uxk.bpf.maps import ArenaMap, ArrayMap, HashMap, InstanceArrayMap, RingBuffer
from uxk.bpf.program import Program
from uxk.bpf.proto import Spec, body, features

KERNEL = with_kernel(lambda: 7, lambda: 9)
LOOKUP = "*(u32 *)(r10 - 4) = 0\n r1 = map[fd:1] ll\n r2 = r10\n r2 += -4\n call 1\n"

REFUSED = {
    "nothing in r0": ("exit", "nothing was written to r0"),
    "unwritten register": ("r0 = r5\nexit", "reads r5"),
    "r10 written": ("r10 = 1\nr0 = 0\nexit", "frame pointer"),
    "beyond memory": ("r0 = *(u64 *)(r1 + 9)\nexit", "8 bytes of memory at 9; it has 16"),
    "before memory": ("r0 = *(u8 *)(r1 - 1)\nexit", "1 bytes of memory at -1"),
    "unbounded index": ("r2 = *(u64 *)(r1 + 0)\nr1 += r2\nr0 = *(u8 *)(r1 + 0)\nexit", "no bounds"),
    "bounded too late": ("r2 = *(u8 *)(r1 + 0)\nr1 += r2\nr0 = *(u8 *)(r1 + 0)\nexit", "at 0..255; it has 16"),
    "unwritten stack": ("r0 = *(u64 *)(r10 - 8)\nexit", "not all of which were written"),
    "half written stack": ("*(u32 *)(r10 - 8) = 1\nr0 = *(u64 *)(r10 - 8)\nexit", "not all of which were written"),
    "written on one path": (
        ("r2 = *(u64 *)(r1 + 0)\nif r2 == 0 goto a\n*(u64 *)(r10 - 8) = 1\na: r0 = *(u64 *)(r10 - 8)\n"
        "exit"), "every path",
    ),
    "unaligned stack": ("*(u32 *)(r10 - 6) = 1\nr0 = 0\nexit", "expected a multiple of 4"),
    "beyond the stack": ("*(u64 *)(r10 - 520) = 1\nr0 = 0\nexit", "expected -512 to -8"),
    "above the frame": ("*(u64 *)(r10 + 0) = 1\nr0 = 0\nexit", "of the stack at 0"),
    "variable stack": (("r2 = *(u8 *)(r1 + 0)\nr2 &= 7\nr3 = r10\nr3 -= r2\nr0 = 0\n"
        "exit"), "only moves by what is known"),
    "pointer returned": ("r0 = r1\nexit", "expected a number"),
    "pointer written": ("*(u64 *)(r1 + 0) = r10\nr0 = 0\nexit", "writes a pointer"),
    "pointer cut": ("w0 = w1\nexit", "copies a part of r1"),
    "pointer halved on the stack": ("*(u64 *)(r10 - 8) = r1\nr0 = *(u32 *)(r10 - 8)\nexit", "4 bytes of a pointer"),
    "pointer damaged on the stack": ("*(u64 *)(r10 - 8) = r1\n*(u8 *)(r10 - 8) = 1\nr0 = 0\nexit", "overwrites"),
    "pointer on one path damaged": (
        ("r2 = *(u64 *)(r1 + 0)\nr0 = 0\n*(u64 *)(r10 - 8) = 0\nif r2 == 0 goto a\n*(u64 *)(r10 - 8) = r10\n"
        "a: *(u8 *)(r10 - 8) = 1\nexit"), "overwrites",
    ),
    "pointers added": ("r1 += r10\nr0 = 0\nexit", "two pointers"),
    "pointer multiplied": ("r1 *= 2\nr0 = 0\nexit", r"other than \+ and -"),
    "pointer compared": ("r0 = 0\nif r1 == r10 goto +0\nexit", "compares a pointer"),
    "pointer negated": ("r1 = -r1\nr0 = 0\nexit", "arithmetic on r1, a pointer"),
    "pointer from a number": ("r2 = 1\nr2 -= r1\nr0 = 0\nexit", "from a number"),
    "endless": ("a: goto a", "never ends"),
    "endless without reading": ("r0 = 0\na: r2 = 1\ngoto a\nexit", "cannot be reached"),
    "loop not bounded": ("r0 = *(u64 *)(r1 + 0)\na: r0 += 1\nif r0 != 0 goto a\nexit", "never ends|too long"),
    "loop never entered": ("r0 = 0\na: r2 = 1\nif r2 == 0 goto a\nexit", "never entered"),
    "unreachable": ("r0 = 0\nexit\nr0 = 1\nexit", "cannot be reached"),
    "runs off the end": ("r0 = 0", "neither exit nor a jump"),
    "jumps out": ("r0 = 0\ngoto +5\nexit", "out of the program"),
    "into a wide load": ("goto +1\nr0 = 5 ll\nexit", "middle of a 64-bit load"),
    "half a wide load": (".insn 0x18, 0, 0, 0, 1", "without its second half"),
    "unknown opcode": (".insn 0xff, 0, 0, 0, 0\nexit", "unknown opcode"),
    "field not zero": (".insn 0xb7, 0, 3, 0, 1\nexit", "must be zero"),
    "no such register": (".insn 0xbf, 11, 0, 0, 0\nexit", "no register r11"),
    "division by zero": ("r0 = 1\nr0 /= 0\nexit", "division by zero"),
    "shift out of range": ("w0 = 1\nw0 <<= 32\nexit", "invalid shift by 32"),
    "packet load": (".insn 0x20, 0, 0, 0, 0\nr0 = 0\nexit", "legacy load"),
    "helper not there": ("call 9999\nexit", "helper 9999 may not be called"),
    "arguments gone after a call": ("call 5\nr0 = r1\nexit", "reads r1"),
    "arena on one path": (
        ("w3 = 8\nr3 = addr_space_cast(r3, 0, 1)\nr6 = r1\nr1 = r3\ncall f\nr1 = r6\ncall f\nexit\n"
        "f: r0 = *(u64 *)(r1 + 0)\nexit"), "reaches the arena on one path",
    ),
    "atomic unaligned": ("r2 = 1\nlock *(u64 *)(r1 + 4) += r2\nr0 = 0\nexit", "expected a multiple of 8"),
    "atomic of a pointer": ("lock *(u64 *)(r1 + 0) += r10\nr0 = 0\nexit", "an atomic operation with r10"),
    "atomic on unwritten stack": ("r2 = 1\nlock *(u64 *)(r10 - 8) += r2\nr0 = 0\nexit", "not all of which"),
    "recursion": ("call f\nr0 = 0\nexit\nf: call f\nr0 = 0\nexit", "frames deep|calls itself"),
    "too much stack": ("call f\nr0 = 0\nexit\nf: *(u64 *)(r10 - 512) = 1\nr0 = 0\nexit", "bytes of stack"),
    "callee returns a pointer": ("call f\nr0 = 0\nexit\nf: r0 = r10\nexit", "expected a number"),
    "arguments gone after a local call": ("r1 = 1\ncall f\nr0 = r1\nexit\nf: r0 = 0\nexit", "reads r1"),
    "callee reads r6": ("r6 = 1\ncall f\nexit\nf: r0 = r6\nexit", "reads r6"),
    "jump between functions": ("call f\nexit\nf: r0 = 0\nif r0 == 0 goto -3\nexit", "out of its function"),
    "uncalled function": ("r0 = 0\nexit\nf: r0 = 1\ncall f\nexit", "nothing calls|cannot be reached"),
    "no map": ("r1 = map[fd:99] ll\nr0 = 0\nexit", "no map 99"),
    "null not checked": (LOOKUP + "r0 = *(u64 *)(r0 + 0)\nexit", "may be null"),
    "null checked wrongly": (LOOKUP + "if r0 != 0 goto a\nr0 = *(u64 *)(r0 + 0)\na: r0 = 0\nexit", "is no pointer"),
    "null where it is null": (LOOKUP + "if r0 == 0 goto a\nr0 = 0\nexit\na: r0 = *(u64 *)(r0 + 0)\nexit", "no pointer"),
    "beyond a value": (LOOKUP + "if r0 == 0 goto a\nr0 = *(u64 *)(r0 + 8)\nexit\na: r0 = 0\nexit", "it has 8"),
    "key not written": ("r1 = map[fd:1] ll\nr2 = r10\nr2 += -4\ncall 1\nr0 = 0\nexit", "was not written"),
    "key is a number": ("r1 = map[fd:1] ll\nr2 = 5\ncall 1\nr0 = 0\nexit", "expected 4 bytes"),
    "map is a number": ("r1 = 5\nr2 = r10\ncall 1\nr0 = 0\nexit", "expected a map"),
    "wrong kind of map": (("*(u32 *)(r10 - 4) = 0\nr1 = map[fd:3] ll\nr2 = r10\nr2 += -4\ncall 1\nr0 = 0\n"
        "exit"), "of kind ringbuf"),
    "offset in a value": ("r1 = map[fd:1][0]+8 ll\nr0 = 0\nexit", "offset 8 in a value of 8"),
    "value of an array of two": ("r1 = map[fd:6][0]+0 ll\nr0 = 0\nexit", "an array of one value has"),
    "value of a hash": ("r1 = map[fd:2][0]+0 ll\nr0 = 0\nexit", "no value with an address"),
    "map written to memory": ("r2 = map[fd:1] ll\n*(u64 *)(r1 + 0) = r2\nr0 = 0\nexit", "writes a pointer"),
    "arithmetic on a map": ("r2 = map[fd:1] ll\nr2 += 1\nr0 = 0\nexit", "arithmetic on a map"),
    "length unknown": (
        ("r6 = r1\nr1 = map[fd:3] ll\nr2 = r6\nr3 = *(u64 *)(r6 + 0)\nr4 = 0\ncall 130\nr0 = 0\n"
        "exit"), "length of at least 1",
    ),
    "too long a record": ("r2 = r1\nr1 = map[fd:3] ll\nr3 = 17\nr4 = 0\ncall 130\nr0 = 0\nexit", "17 bytes at memory"),
    "call through a register": (".insn 0x8d, 1, 0, 0, 0\nexit", "through a register"),
}  # fmt: skip

ACCEPTED = {
    "masked index": ("r2 = *(u8 *)(r1 + 0)\nr2 &= 7\nr1 += r2\nr0 = *(u8 *)(r1 + 8)\nexit", bytes([3] + [9] * 15), 9),
    "compared index": (
        ("r2 = *(u64 *)(r1 + 0)\nr0 = 0\nif r2 > 15 goto a\nr1 += r2\nr0 = *(u8 *)(r1 + 0)\n"
        "a: exit"), bytes([15] + [0] * 14 + [8]), 8,
    ),
    "signed bounds": (
        "r2 = *(u64 *)(r1 + 0)\nr0 = 0\nif r2 s> 15 goto a\nif r2 s< 0 goto a\nr1 += r2\nr0 = *(u8 *)(r1 + 0)\na: exit",
        b"\xff" * 16, 0,
    ),
    "spilled and filled": (("*(u64 *)(r10 - 8) = r1\nr2 = *(u64 *)(r10 - 8)\nr0 = *(u64 *)(r2 + 8)\n"
        "exit"), bytes(8) + b"\x05" + bytes(7), 5),
    "counted loop": ("r0 = 0\nr6 = 0\na: r0 += r6\nr6 += 1\nif r6 < 10 goto a\nexit", bytes(16), 45),
    "nested loops": (
        ("r0 = 0\nr6 = 0\na: r7 = 0\nb: r0 += 1\nr7 += 1\nif r7 < 5 goto b\nr6 += 1\nif r6 < 7 goto a\n"
        "exit"), bytes(16), 35,
    ),
    "may_goto": ("r0 = 0\na: may_goto b\nr0 += 1\nif r0 < 50 goto a\nb: exit", bytes(16), 50),
    "local call": ("r1 = 3\nr2 = 4\ncall f\nr0 += 1\nexit\nf: r0 = r1\nr0 *= r2\nexit", bytes(16), 13),
    "caller's stack": (("*(u64 *)(r10 - 8) = 1\nr1 = r10\nr1 += -8\ncall f\nr0 = *(u64 *)(r10 - 8)\nexit\n"
        "f: *(u64 *)(r1 + 0) = 42\nr0 = 0\nexit"), bytes(16), 42),
    "a function for any memory": (("*(u64 *)(r10 - 8) = 3\n*(u64 *)(r10 - 16) = 4\nr6 = r1\ncall f\nr7 = r0\n"
        "r1 = r10\nr1 += -8\ncall f\nr7 += r0\nr1 = r10\nr1 += -16\ncall f\nr7 += r0\n"
        "r1 = map[fd:1][0]+0 ll\ncall f\nr0 += r7\nexit\n"
        "f: r0 = *(u64 *)(r1 + 0)\n*(u64 *)(r1 + 0) = 1\nr2 = 2\nlock *(u64 *)(r1 + 0) += r2\nr2 = *(u32 *)(r1 + 0)\n"
        "r0 *= r2\nexit"), b"\x09" + bytes(15), 63),
    "own stack": (("*(u64 *)(r10 - 8) = 1\ncall f\nr0 = *(u64 *)(r10 - 8)\nexit\nf: *(u64 *)(r10 - 8) = 42\n"
        "r0 = 0\nexit"), bytes(16), 1),
    "map value": (LOOKUP + "if r0 == 0 goto a\nr0 = *(u64 *)(r0 + 0)\nexit\na: r0 = 0\nexit", bytes(16), 5),
    "direct value": ("r1 = map[fd:1][0]+0 ll\nr0 = *(u64 *)(r1 + 0)\nexit", bytes(16), 5),
    "absent page of the arena": (("w1 = 77777\nr1 = addr_space_cast(r1, 0, 1)\n*(u64 *)(r1 + 0) = 4\n"
        "r0 = *(u64 *)(r1 + 0)\nexit"), bytes(16), 0),
    "page of the arena": (("w1 = 16\nr1 = addr_space_cast(r1, 0, 1)\n*(u64 *)(r1 + 0) = 4\n"
        "r0 = *(u64 *)(r1 + 0)\nexit"), bytes(16), 4),
    "helper": ("call 5\nexit", bytes(16), 7),
    "division by a register that is zero": ("r0 = 7\nr2 = *(u64 *)(r1 + 0)\nr0 /= r2\nexit", bytes(16), 0),
    "pointer moved out and back": ("r1 += 100\nr1 -= 92\nr0 = *(u8 *)(r1 + 0)\nexit", bytes(16), 0),
}  # fmt: skip


def _load(text: str, spec: Spec | None = None) -> Program:
    array, hashed, ring, arena = ArrayMap(8, 1, "a"), HashMap(4, 8, 2, "h"), RingBuffer(4096, "r"), ArenaMap(4, "n")
    array[0] = (5).to_bytes(8, "little")
    arena.populate(0, 4096)
    maps = {1: array, 2: hashed, 3: ring, 4: InstanceArrayMap(8, 1, "i"), 5: arena, 6: ArrayMap(8, 2, "two")}
    return Program(assemble(text), spec or body(16), maps=maps, helpers=KERNEL)


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    text, reason = REFUSED[name]
    with pytest.raises(VerifierError, match=reason):
        _load(text, body(16)._replace(insns_max=20_000))


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepts_and_runs(name: str) -> None:
    text, memory, expected = ACCEPTED[name]
    assert _load(text).run(bytearray(memory)) == expected
    assert _load(text).interpret(bytearray(memory)) == expected


def test_refusal_names_instruction_place_and_knowledge() -> None:
    with pytest.raises(VerifierError) as caught:
        _load("r2 = *(u8 *)(r1 + 0)\nr1 += r2\nr0 = *(u64 *)(r1 + 0)\nexit")
    assert caught.value.pc == 2
    text = str(caught.value)
    assert text.startswith("insn 2: r0 = *(u64 *)(r1 + 0): 8 bytes of memory at 0..255; it has 16; known there: ")
    assert "r2=0..255" in text


def test_verdict_has_bounds() -> None:
    spec = body(16)._replace(verdict=(0, 3))
    assert _load("r0 = *(u8 *)(r1 + 0)\nr0 &= 3\nexit", spec).run(b"\xff" * 16) == 3
    with pytest.raises(VerifierError, match=r"the verdict is 0\.\.255; expected 0 to 3"):
        _load("r0 = *(u8 *)(r1 + 0)\nexit", spec)


def test_features_are_read_only_and_bounded() -> None:
    spec = features(((0, 15), (-5, 5)))
    program = _load("r2 = *(u64 *)(r1 + 0)\nr3 = *(u64 *)(r1 + 8)\nr0 = r2\nr0 *= r3\nexit", spec)
    assert program.decide(3, -4) == -12
    assert "fields[1]" in program.translation.source
    assert str(1 << 63) not in program.translation.source, "nothing to wrap: the product is within -75..75"
    with pytest.raises(VerifierError, match="read-only"):
        _load("*(u64 *)(r1 + 0) = 1\nr0 = 0\nexit", spec)


def test_forest_is_followed_once() -> None:
    """Paths are joined where they meet: 20 trees of two leaves are not a million paths."""
    trees = "".join(
        f"r2 = *(u64 *)(r1 + {8 * (n % 2)})\nif r2 s> {n} goto t{n}\nr0 += 1\ngoto e{n}\nt{n}: r0 += -1\ne{n}:\n"
        for n in range(20)
    )
    program = _load("r0 = 0\n" + trees + "exit", features(((-9, 9), (-9, 9))))
    assert program.proof.looked_at <= 1 + 20 * 5 + 1
    assert program.decide(5, 5) == program.interpret((5).to_bytes(8, "little") * 2)
