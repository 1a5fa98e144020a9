"""The text of programs: there and back, and what is said about text that is none."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.bpf import insn as i
from uxk.bpf.asm import assemble
from uxk.bpf.disasm import disassemble
from uxk.bpf.errors import AssemblyError
from uxk.bpf.insn import Insn, decode, encode
from uxk.bpf.structure import problem

_OFFSETS = (0, 0, 0, 1, 8, 16, 32, -1, -32768, 32767)
_IMMEDIATES = (0, 0, 0, 1, -1, 8, 16, 32, 64, 0x41, 0xE1, 0xF1, 0x100, 0x110, 1 << 16, (1 << 31) - 1, -(1 << 31))
_LITTLE = st.sampled_from(_IMMEDIATES) | st.integers(-(1 << 31), (1 << 31) - 1)


def slots(rng: Random, opcode: int) -> list[Insn]:
    """An instruction with likely fields; a wide load has its second half, mostly."""
    src = rng.choice((0, 0, 1, 2, 3, rng.randrange(11)))
    first = Insn(opcode, rng.randrange(11), src, rng.choice(_OFFSETS), rng.choice(_IMMEDIATES))
    return [first, Insn(0, imm=rng.choice(_IMMEDIATES))] if opcode == i.LDDW else [first]


def test_instructions_of_every_opcode_have_a_text_that_is_assembled_to_the_same_bytes() -> None:
    rng, told = Random(8), set[int]()
    for opcode in range(256):
        plain = [[Insn(opcode, 0, src, 0, imm), *[Insn(0)] * (opcode == i.LDDW)] for src in (0, 1) for imm in (0, 16)]
        for insns in [*plain, *(slots(rng, opcode) for _ in range(80))]:
            text = disassemble(insns)
            assert assemble(text) == encode(insns), text
            if not text.startswith(".insn"):
                told.add(opcode)
            elif opcode not in (i.LDDW, i.CALL_INSN):  # variables and functions, kfuncs of modules
                assert problem(insns[0]), text
    assert len(told) == 123


@given(
    st.lists(
        st.builds(Insn, st.integers(0, 255), *[st.integers(0, 15)] * 2, st.integers(-32768, 32767), _LITTLE), min_size=1
    )
)
def test_whatever_bytes_are_shown_are_assembled_again(insns: list[Insn]) -> None:
    assert decode(assemble(disassemble(insns))) == tuple(insns)


@pytest.mark.parametrize(
    ("text", "line", "column", "why"),
    [
        ("exit\nr0 = 1 +", 2, 8, "'+'; expected the end of the line"),
        ("exti", 1, 1, "did you mean 'exit'?"),
        ("  if r1 = 5 goto x", 1, 9, "expected one of == != >"),
        ("if r1 == goto x", 1, 10, "expected a register or a number"),
        ("if r1 == 5 goto", 1, 16, "the line ends; expected a label, or a distance"),
        ("if r1 == 5 goto +1 x", 1, 20, "'x'; expected the end of the line"),
        ("goto 5", 1, 6, "'5'; expected a label, or a distance"),
        ("goto +40000", 1, 6, "distance 40000; expected -32768 to 32767"),
        ("goto +" + "9" * 5000, 1, 6, "expected -2147483648 to 2147483647"),
        ("r0 = " + "9" * 5000, 1, 6, "expected -2147483648 to 4294967295"),
        ("r0 = 99999999999", 1, 6, "immediate 99999999999; expected"),
        ("r0 = 0x1_0", 1, 6, "'0x1_0'; expected a register, a number"),
        ("x: y: x: exit", 1, 7, "label 'x' is there already, at instruction 0"),
        ("x1: exit\ngoto x2", 2, 6, "no label 'x2' (did you mean 'x1'?)"),
        ("call lookup\nexit", 1, 6, "no function, label or helper 'lookup'"),
        ("call ktime_get_n\nexit", 1, 6, "helper 'ktime_get_n' (did you mean 'ktime_get_ns'?)"),
        ("r11 = 5", 1, 1, "expected r0 to r10"),
        ("r0 = w2", 1, 6, "no register 'w2' here; expected r0 to r10"),
        ("r\u0663 = 1", 1, 1, "expected an instruction, a label or a comment"),
        ("r0 = \u0661", 1, 6, "expected a register, a number"),
        ("r0 = *(u9 *)(r1 + 0)", 1, 6, "'*(u9 *)(r1 + 0)'; expected a register, a number"),
        ("r0 = *(u64 *)(r1 + 99999)", 1, 18, "offset +99999; expected -32768 to 32767"),
        ("*(u64 *)(r1 + 0) 1", 1, 18, "'1'; expected ="),
        ("lock *(u64 *)(r1 + 0) -= r2", 1, 23, "expected one of += |= &= ^="),
        ("lock *(u8 *)(r1 + 0) += r2", 1, 1, "an atomic operation on u8; expected u32 or u64"),
        (".insn 1, 2, 3", 1, 7, "expected five numbers"),
        (".insn 256, 0, 0, 0, 0", 1, 7, "opcode 256; expected 0 to 255"),
    ],
)
def test_errors_say_where_and_what_was_expected(text: str, line: int, column: int, why: str) -> None:
    with pytest.raises(AssemblyError) as caught:
        assemble(text)
    assert (caught.value.line, caught.value.column) == (line, column), str(caught.value)
    assert why in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_label_too_far_away() -> None:
    with pytest.raises(AssemblyError, match="line 1, column 16: label 'far' is 40000 instructions away"):
        assemble("if r0 > 1 goto far\n" + "r0 = 1\n" * 40_000 + "far: exit")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("r0 = 1 #1 is a comment", "r0 = 1"), ("call kfunc#7 # one", "call kfunc#7"), ("r0=1//x", "r0 = 1"),
        ("a:b: exit;goto a", "exit"), ("r0 = 1\r\nexit\r\n", "r0 = 1\nexit"), ("\t w0\t=\t1 ", "w0 = 1"),
        ("call map_lookup_elem", "call 1"), ("call ktime_get_ns", "call 5"),
        ("callx r3", ".insn 0x8d, 3, 0, 0, 0"), ("r0 = 0xffffffff", "r0 = -1"), ("w10 &= 1", ".insn 0x54, 10, 0, 0, 1"),
        ("*(u64*)(r1+8)=r2", "*(u64 *)(r1 + 8) = r2"), ("r1 = -1 ll", "r1 = 0xffffffffffffffff ll"),
    ],
)  # fmt: skip
def test_forms_that_say_the_same(text: str, same: str) -> None:
    assert assemble(text) == assemble(same)


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("r0w1 =+-*/()[]<>&|^,#:;.\n\t")))
def test_text_that_is_none_is_refused_with_a_line(text: str) -> None:
    try:
        assert len(assemble(text)) % 8 == 0
    except AssemblyError as exc:
        if exc.line > text.count("\n") + text.count("\r") + 1:
            raise


def test_long_text_takes_no_longer_than_its_length() -> None:
    assert len(assemble("".join(f"label{n}: " for n in range(20_000)) + "exit")) == 8
    for text in ("x" * 300_000, "r0" + " " * 300_000 + "x", "r0 = *(u8 *)(r1 +" + " " * 300_000 + "!", "(" * 300_000):
        with pytest.raises(AssemblyError):
            assemble(text)
