"""``uxk bpf plugin``: whatever a line is, one line answers it, and the next is served."""

from __future__ import annotations

import io

import pytest

from uxk.bpf.asm import assemble
from uxk.cli import main

ADDS = assemble("r0 = *(u64 *)(r1 + 0)\nr0 += 1\nexit\n").hex()
FIVE = assemble("r0 = 5\nexit\n").hex()
FOREVER = assemble("r0 = 0\nagain: may_goto out\ngoto again\nout: exit\n").hex()
MEMORY = "2900000000000000"
GOOD = f"{ADDS} {MEMORY}"


def served(text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The answers to some lines."""
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["bpf", "plugin", "--serve"]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (GOOD, "ok 2a"), (GOOD.upper(), "ok 2a"), (f"\t{ADDS}  \t{MEMORY} ", "ok 2a"), (f"{GOOD}\r", "ok 2a"),
        (f"{FIVE} -", "ok 5"), (f"{FIVE} " + "00" * 100_000, "ok 5"), (FIVE, "error 1 words"),
        ("a b c", "error 3 words"),
        (f"{FIVE}0 -", "error program: an odd number"), (f"{FIVE} 0", "error memory: an odd number"),
        (f"0x{FIVE} -", "error program: character 1: 'x'"), ("\x00\x01 \x7f", "error "),
        ("\udcff\ufffd\u0663 -", "error "),
        ("-- -", "error program: character 0"), ("95 -", "error a program of 1 bytes"),
        ("ff" * 8 + " -", "error insn 0: "), ("18" + "00" * 7 + " -", "error insn 0: "),
        ("b700000001000000" * 4000 + "9500000000000000 -", "ok 1"), (ADDS + " " + MEMORY[2:], "error insn 0: "),
        (f"{FOREVER} -", "fault insn "),
    ],
)  # fmt: skip
def test_each_line_has_one_answer(
    line: str, answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = served(f"{line}\n\n{GOOD}", monkeypatch, capsys)
    assert first.startswith(answer)
    assert second == "ok 2a"


@pytest.mark.parametrize(("words", "answer"), [([MEMORY], "2a"), (["-"], ""), (["zz"], ""), ([MEMORY[1:]], "")])
def test_one_program_by_the_public_protocol(
    words: list[str], answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(ADDS))
    status = main(["bpf", "plugin", *words])
    said = capsys.readouterr()
    assert (status, said.out.strip()) == (0 if answer else 1, answer)
    assert bool(said.err) != bool(answer)


def test_no_memory_at_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["-"]):
        monkeypatch.setattr("sys.stdin", io.StringIO(FIVE))
        assert main(["bpf", "plugin", *words]) == 0
        assert capsys.readouterr().out == "5\n"
