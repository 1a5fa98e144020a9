"""What the verifier refuses, with its reasons, and what it takes."""

from __future__ import annotations

import pytest
from bpf_cases import functions

from uxk.bpf import helpers, proto
from uxk.bpf.asm import assemble
from uxk.bpf.errors import VerifierError
from uxk.bpf.maps import ArenaMap, ArrayMap, HashMap, InstanceArrayMap, RingBuffer
from uxk.bpf.program import Program
from uxk.bpf.proto import Spec, body, features

KERNEL, KFUNCS = functions(helpers, proto)
LOOK_UP, GIVE_BACK = ".insn 0x85, 0, 2, 0, 1\n", ".insn 0x85, 0, 2, 0, 2\n"
LOOKUP = "*(u32 *)(r10 - 4) = 0\n r1 = map[fd:1] ll\n r2 = r10\n r2 += -4\n call 1\n"

REFUSED = {
    "nothing in r0": ("exit", "nothing was written to r0"),
    "unwritten register": ("r0 = r5\nexit", "reads r5"),
    "r10 written": ("r10 = 1\nr0 = 0\nexit", "frame pointer"),
    "beyond memory": ("r0 = *(u64 *)(r1 + 9)\nexit", "8 bytes of memory at 9; it has 16"),
    "before memory": ("r0 = *(u8 *)(r1 - 1)\nexit", "1 byte of memory at -1"),
    "unbounded index": ("r2 = *(u64 *)(r1 + 0)\nr1 += r2\nr0 = *(u8 *)(r1 + 0)\nexit", "too far"),
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
    "variable stack": (("r2 = *(u8 *)(r1 + 0)\nr2 &= 7\nr3 = r10\nr3 += -8\nr3 += r2\nr0 = 0\n"
        "exit"), "to the stack only moves by what is known"),
    "pointer returned": ("r0 = r1\nexit", "expected a number"),
    "pointer written": ("*(u64 *)(r1 + 0) = r10\nr0 = 0\nexit", "writes a pointer"),
    "pointer cut": ("w0 = w1\nexit", "copies a part of r1"),
    "pointer halved on the stack": ("*(u64 *)(r10 - 8) = r1\nr0 = *(u32 *)(r10 - 8)\nexit", "4 bytes of a pointer"),
    "pointer damaged on the stack": ("*(u64 *)(r10 - 8) = r1\n*(u8 *)(r10 - 8) = 1\nr0 = 0\nexit", "overwrites"),
    "pointer on one path damaged": (
        ("r2 = *(u64 *)(r1 + 0)\nr0 = 0\n*(u64 *)(r10 - 8) = 0\nif r2 == 0 goto a\n*(u64 *)(r10 - 8) = r10\n"
        "a: *(u8 *)(r10 - 8) = 1\nexit"), "overwrites",
    ),
    "pointer on one path and words on another damaged": (
        ("r2 = *(u64 *)(r1 + 0)\nr0 = 0\n*(u32 *)(r10 - 8) = 0\n*(u32 *)(r10 - 4) = 0\nif r2 == 0 goto a\n"
        "*(u64 *)(r10 - 8) = r10\na: *(u8 *)(r10 - 8) = 1\nexit"), "overwrites",
    ),
    "one of six addresses": (
        "r2 = *(u8 *)(r1 + 0)\nr3 = r1\n" + "".join(
            f"*(u64 *)(r10 - {n}) = 1\nif r2 != {n} goto a{n}\nr3 = r10\nr3 += -{n}\na{n}:\n" for n in range(8, 48, 8)
        ) + "r0 = *(u64 *)(r3 + 0)\nexit", "holds nothing here",
    ),
    "null on one path": (
        "r2 = *(u8 *)(r1 + 0)\nr3 = r1\nif r2 == 0 goto a\nr3 = 0\na: r0 = *(u8 *)(r3 + 0)\nexit", "an address",
    ),
    "pointers added": ("r1 += r10\nr0 = 0\nexit", "two pointers"),
    "pointer multiplied": ("r1 *= 2\nr0 = 0\nexit", r"other than \+ and -"),
    "pointer compared": ("r0 = 0\nif r1 == r10 goto +0\nexit", "compares a pointer"),
    "pointer negated": ("r1 = -r1\nr0 = 0\nexit", "arithmetic on r1, a pointer"),
    "pointer from a number": ("r2 = 1\nr2 -= r1\nr0 = 0\nexit", "from a number"),
    "endless": ("a: goto a", "never ends"),
    "endless without reading": ("r0 = 0\na: r2 = 1\ngoto a\nexit", "cannot be reached"),
    "loop not bounded": ("r0 = *(u64 *)(r1 + 0)\na: r0 += 1\nif r0 != 0 goto a\nexit", "never ends|too long"),
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
    "callee returns its stack": ("call f\nr0 = 0\nexit\nf: r0 = r10\nexit", "an address on the stack"),
    "arguments gone after a local call": ("r1 = 1\ncall f\nr0 = r1\nexit\nf: r0 = 0\nexit", "reads r1"),
    "callee reads r6": ("r6 = 1\ncall f\nexit\nf: r0 = r6\nexit", "reads r6"),
    "jump between functions": ("call f\nexit\nf: r0 = 0\nif r0 == 0 goto -3\nexit", "out of its function"),
    "uncalled function": ("r0 = 0\nexit\nf: r0 = 1\ncall f\nexit", "nothing calls|cannot be reached"),
    "no map": ("r1 = map[fd:99] ll\nr0 = 0\nexit", "no map 99"),
    "null not checked": (LOOKUP + "r0 = *(u64 *)(r0 + 0)\nexit", "may be null"),
    "null checked wrongly": (LOOKUP + "if r0 != 0 goto a\nr0 = *(u64 *)(r0 + 0)\na: r0 = 0\nexit", "an address"),
    "null where it is null": (LOOKUP + "if r0 == 0 goto a\nr0 = 0\nexit\na: r0 = *(u64 *)(r0 + 0)\nexit", "an address"),
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
    "address on the caller's stack left with the caller": (
        ("*(u64 *)(r10 - 8) = 0\nr1 = r10\nr1 += -8\ncall f\nr0 = 0\nexit\nf: *(u64 *)(r1 + 0) = r1\nr0 = 0\n"
        "exit"), "on the stack of a caller",
    ),
    "own address left with the caller": (
        ("*(u64 *)(r10 - 8) = 0\nr1 = r10\nr1 += -8\ncall f\nr0 = 0\nexit\nf: *(u64 *)(r1 + 0) = r10\nr0 = 0\n"
        "exit"), "on the stack of a caller",
    ),
    "stack of the caller used by the callee": (
        ("r1 = r10\nr1 += -512\ncall f\nr0 = 0\nexit\nf: *(u64 *)(r1 + 0) = 1\n*(u64 *)(r10 - 8) = 1\nr0 = 0\n"
        "exit"), "544 bytes of stack",
    ),
    "what may_goto jumps to leads back": (
        ("r0 = 0\na: may_goto b\nr0 += 1\ngoto a\nb: r2 = *(u64 *)(r1 + 0)\nif r2 == 0 goto a\n"
        "exit"), "never ends",
    ),
    "a loop around one through may_goto": (
        ("r6 = *(u64 *)(r1 + 0)\nr0 = 0\na: may_goto b\nr0 += 1\ngoto a\nb: if r6 == 1 goto a\n"
        "exit"), "never ends",
    ),
    "moved down by what varies": (
        "r2 = *(u8 *)(r1 + 0)\nr2 &= 7\nr1 += 8\nr1 -= r2\nr0 = *(u8 *)(r1 + 0)\nexit", "by how much varies",
    ),
    "arena and memory added": (
        "w3 = 8\nr3 = addr_space_cast(r3, 0, 1)\nr1 += r3\nr0 = *(u64 *)(r1 + 0)\nexit", "two pointers",
    ),
    "stack compared with null": ("r2 = r10\nr0 = 0\nif r2 == 0 goto a\na: exit", "compares a pointer"),
    "callee's number used as an address": ("call f\nr0 = *(u64 *)(r0 + 0)\nexit\nf: r0 = 8\nexit", "an address"),
    "callee returns nothing": ("r6 = r1\ncall f\nexit\nf: *(u64 *)(r1 + 0) = 1\nexit", "nothing was written to r0"),
    "object kept": (LOOK_UP + "r0 = 0\nexit", "not released"),
    "object given back twice": (
        LOOK_UP + "if r0 == 0 goto a\nr6 = r0\nr1 = r0\n" + GIVE_BACK + "r1 = r6\n" + GIVE_BACK + "a: r0 = 0\nexit",
        "reads r6",
    ),
    "object given back by a callee, too": (
        LOOK_UP + "if r0 == 0 goto a\nr6 = r0\nr1 = r0\ncall f\nr1 = r6\n" + GIVE_BACK + "a: r0 = 0\nexit\nf: "
        + GIVE_BACK + "r0 = 0\nexit", "which was released",
    ),
    "object lost in a loop": (
        "a: may_goto b\n" + LOOK_UP + "if r0 == 0 goto b\ngoto a\nb: r0 = 0\nexit", "is held on one of the paths",
    ),
    "number under a buffer that is filled": (
        ("r3 = *(u64 *)(r1 + 0)\nr3 &= 15\nr3 += 1\n*(u64 *)(r10 - 8) = 1\n*(u64 *)(r10 - 16) = 1\nr6 = r1\nr1 = r10\n"
        "r1 += -16\nr2 = r3\ncall 900\nr2 = *(u64 *)(r10 - 8)\nr6 += r2\nr0 = *(u8 *)(r6 + 0)\nexit"), "too far",
    ),
    "buffer filled in part": (
        ("r2 = *(u64 *)(r1 + 0)\nr2 &= 7\nr2 += 1\nr1 = r10\nr1 += -8\ncall 900\nr0 = *(u64 *)(r10 - 8)\n"
        "exit"), "not all of which",
    ),
    "another copy compared": (
        ("r2 = *(u64 *)(r1 + 0)\nr3 = r2\nr4 = *(u64 *)(r1 + 8)\nr5 = r4\nr0 = 0\nif r3 > 7 goto a\nr1 += r5\n"
        "r0 = *(u8 *)(r1 + 0)\na: exit"), "too far",
    ),
    "a copy on one path compared": (
        ("r2 = *(u64 *)(r1 + 0)\nr3 = *(u64 *)(r1 + 8)\nr0 = 0\nif r3 == 0 goto b\nr3 = r2\n"
        "b: if r3 > 7 goto a\nr1 += r2\nr0 = *(u8 *)(r1 + 0)\na: exit"), "too far",
    ),
    "a changed copy compared": (
        ("r2 = *(u64 *)(r1 + 0)\nr3 = r2\nr3 += 1\nr0 = 0\nif r3 > 7 goto a\nr1 += r2\nr0 = *(u8 *)(r1 + 0)\n"
        "a: exit"), "too far",
    ),
    "half a copy compared": (
        ("r2 = *(u64 *)(r1 + 0)\nw3 = w2\nr0 = 0\nif r3 > 7 goto a\nr1 += r2\nr0 = *(u8 *)(r1 + 0)\n"
        "a: exit"), "too far",
    ),
    "too many functions": (
        "".join(f"call f{n}\n" for n in range(256)) + "r0 = 0\nexit\n" + "".join(f"f{n}: exit\n" for n in range(256)),
        "257 functions",
    ),
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
    "callee without a result": (
        "r6 = r1\ncall f\nr0 = *(u8 *)(r6 + 0)\nexit\nf: *(u64 *)(r1 + 0) = 1\nexit", bytes(16), 1,
    ),
    "callee returns an address": (
        "call f\nr0 = *(u8 *)(r0 + 0)\nexit\nf: r0 = r1\nr0 += 8\nexit", b"\0" * 8 + b"\5" * 8, 5,
    ),
    "callee looks up": (
        "call f\nif r0 == 0 goto a\nr0 = *(u64 *)(r0 + 0)\nexit\na: r0 = 0\nexit\nf: " + LOOKUP + "exit", bytes(16), 5,
    ),
    "callee passes on what differs": (
        ("*(u64 *)(r10 - 8) = 3\nr6 = r1\ncall g\nr7 = r0\nr1 = r10\nr1 += -8\ncall g\nr0 += r7\nexit\n"
        "g: call h\nexit\nh: r0 = *(u64 *)(r1 + 0)\nexit"), b"\4" + bytes(15), 7,
    ),
    "a key that differs": (
        ("*(u64 *)(r10 - 8) = 1\nr6 = r1\nr1 = r10\nr1 += -8\ncall f\nr7 = r0\nr1 = r6\ncall f\nr0 += r7\nexit\n"
        "f: r2 = r1\nr1 = map[fd:1] ll\ncall 1\nif r0 == 0 goto a\nr0 = 1\nexit\na: r0 = 2\nexit"), bytes(16), 3,
    ),
    "a sum that differs": (
        ("r6 = r1\nr1 = *(u64 *)(r6 + 0)\nr2 = r1\ncall f\nr7 = r0\nr1 = r6\nr2 = 8\ncall f\nr0 = r7\nexit\n"
        "f: r1 += r2\nr0 = r1\nexit"), b"\xff" * 7 + b"\x7f" + bytes(8), -2,
    ),
    "memory compared with null": ("r0 = 1\nif r1 == 0 goto a\nr0 = *(u8 *)(r1 + 0)\na: exit", bytes(16), 0),
    "counted loop around may_goto": (
        ("r6 = 0\nr0 = 0\na: r7 = 0\nb: may_goto c\nr0 += 1\nr7 += 1\nif r7 < 3 goto b\nc: r6 += 1\nif r6 < 4 goto a\n"
        "exit"), bytes(16), 12,
    ),
    "copy compared": (
        ("r2 = *(u64 *)(r1 + 0)\nr3 = r2\nr0 = 0\nif r3 > 7 goto a\nr1 += r2\nr0 = *(u8 *)(r1 + 8)\n"
        "a: exit"), b"\7" + bytes(14) + b"\6", 6,
    ),
    "compared after it was put by": (
        ("r2 = *(u64 *)(r1 + 0)\n*(u64 *)(r10 - 8) = r2\nr0 = 0\nif r2 > 7 goto a\nr2 = *(u64 *)(r10 - 8)\nr1 += r2\n"
        "r0 = *(u8 *)(r1 + 8)\na: exit"), b"\7" + bytes(14) + b"\6", 6,
    ),
    "signed byte compared as a word": (
        ("r2 = *(s8 *)(r1 + 0)\nr0 = 0\nif w2 > 7 goto a\nr1 += r2\nr0 = *(u8 *)(r1 + 8)\n"
        "a: exit"), b"\xf9" + bytes(15), 0,
    ),
    "word compared as signed": (
        ("r2 = *(u32 *)(r1 + 0)\nr0 = 0\nif w2 s< 0 goto a\nif w2 s> 7 goto a\nr1 += r2\nr0 = *(u8 *)(r1 + 8)\n"
        "a: exit"), b"\7" + bytes(14) + b"\6", 6,
    ),
    "one of two keys": (
        ("*(u32 *)(r10 - 4) = 0\n*(u32 *)(r10 - 8) = 9\nr3 = *(u8 *)(r1 + 0)\nr2 = r10\nif r3 == 0 goto a\n"
        "r2 += -4\ngoto b\na: r2 += -8\nb: r1 = map[fd:1] ll\ncall 1\nif r0 == 0 goto c\n"
        "r0 = *(u64 *)(r0 + 0)\nexit\nc: r0 = 7\nexit"), bytes(16), 7,
    ),
    "one of two values": (
        (LOOKUP + "if r0 != 0 goto a\n" + LOOKUP.replace("fd:1", "fd:2") + "a: if r0 == 0 goto b\n"
        "r0 = *(u64 *)(r0 + 0)\nb: exit"), bytes(16), 5,
    ),
    "null, or an address": (
        ("r2 = *(u8 *)(r1 + 0)\nr3 = 0\nif r2 == 0 goto a\nr3 = r1\na: r0 = 4\nif r3 == 0 goto b\n"
        "r0 = *(u8 *)(r3 + 1)\nb: exit"), bytes(16), 4,
    ),
    "bits of a mask": (
        ("r2 = *(u64 *)(r1 + 0)\nr0 = 0\nif r2 & -8 goto a\nr1 += r2\nr0 = *(u8 *)(r1 + 8)\n"
        "a: exit"), b"\7" + bytes(14) + b"\6", 6,
    ),
    "loop of one turn": ("r0 = 0\nr2 = 0\na: r0 += 3\nr2 += 1\nif r2 < 1 goto a\nexit", bytes(16), 3),
    "object given back": (
        LOOK_UP + "if r0 == 0 goto a\nr1 = r0\n" + GIVE_BACK + "a: r0 = 3\nexit", bytes(16), 3,
    ),
    "buffer filled": ("r1 = r10\nr1 += -8\nr2 = 8\ncall 900\nr0 = *(u8 *)(r10 - 1)\nexit", bytes(16), 9),
    "pointer moved out and back": ("r1 += 100\nr1 -= 92\nr0 = *(u8 *)(r1 + 0)\nexit", bytes(16), 0),
}  # fmt: skip


def _load(text: str, spec: Spec | None = None) -> Program:
    array, hashed, ring, arena = ArrayMap(8, 1, "a"), HashMap(4, 8, 2, "h"), RingBuffer(4096, "r"), ArenaMap(4, "n")
    array[0] = (5).to_bytes(8, "little")
    arena.populate(0, 4096)
    maps = {1: array, 2: hashed, 3: ring, 4: InstanceArrayMap(8, 1, "i"), 5: arena, 6: ArrayMap(8, 2, "two")}
    return Program(assemble(text), spec or body(16), maps=maps, helpers=KERNEL, kfuncs=KFUNCS)


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
