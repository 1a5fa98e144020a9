"""``uxk bpf`` without a kernel: files of all sorts, good and bad."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from uxk.bpf.asm import assemble
from uxk.cli import main

PICK = "r2 = *(u8 *)(r1 + 0)\nr2 &= 7\nr1 += r2\nr0 = *(u8 *)(r1 + 0)\nexit\n"
FIRST = "r0 = *(u64 *)(r1 + 0)\nexit\n"


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs the command in a directory with some files, and gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    Path("pick.s").write_text(PICK)
    Path("first.s").write_text(FIRST)
    Path("pick.hex").write_text(assemble(PICK).hex() + "\n")
    Path("pick.bin").write_bytes(assemble(PICK))

    def run(line: str, text: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        code = main(["bpf", *line.split()])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run


def test_text_bytes_digits(said) -> None:  # type: ignore[no-untyped-def]
    digits = assemble(PICK).hex()
    assert said("asm pick.s") == (0, digits + "\n", "")
    assert said("asm pick.s -o out") == (0, "", "") and Path("out").read_bytes() == assemble(PICK)
    for name in ("pick.s", "pick.hex", "pick.bin", "-"):
        assert said(f"run {name} -m 0x02000b0000000000", PICK)[:2] == (0, "11\n")
    assert said("run pick.s -m 0x02000b0000000000 -i")[1] == "11\n"
    assert said("verify pick.s -m 8")[1] == "safe: 5 instructions, 5 followed, 32 bytes of stack\n"


def test_json(said) -> None:  # type: ignore[no-untyped-def]
    digits = assemble(PICK).hex()
    for words in ("--json", "-j"):
        assert json.loads(said(f"asm pick.s {words}")[1]) == {"bytes": 40, "code": digits}
        assert json.loads(said(f"verify pick.s {words} -m 8")[1]) == {
            "instructions": 5, "followed": 5, "stack_bytes": 32,
        }  # fmt: skip
        assert json.loads(said(f"run pick.s -m 0000000000000000 {words}")[1]) == {"r0": 0, "memory": "00" * 8}
        assert json.loads(said(f"dis pick.s {words}")[1])[1] == {
            "slot": 1, "disasm": "r2 &= 7", "opcodes": "5702000007000000",
        }  # fmt: skip
        assert json.loads(said(f"source first.s -m 8 {words}")[1])["source"].startswith("def f0(")


def test_memory(said) -> None:  # type: ignore[no-untyped-def]
    Path("data").write_bytes(bytes([2, 0, 11, 0, 0, 0, 0, 0]))
    assert said("run pick.s -m @data")[1] == "11\n"
    assert said("run first.s --fields 42,-7")[1] == "42\n"
    assert said("run first.s --fields=-7,0xff")[1] == "-7\n"
    assert said("run - -m 8", "*(u8 *)(r1 + 1) = 3\nr0 = 0\nexit")[1] == "0\nmemory: 0003000000000000\n"


@pytest.mark.parametrize(
    ("line", "code", "why"),
    [
        ("run nope.s", 1, "nope.s: No such file or directory [ENOENT]"),
        ("run .", 1, ".: Is a directory [EISDIR]"),
        ("run empty.s", 1, "empty.s: a program of 0 bytes; expected a positive multiple of 8 [EINVAL]"),
        ("run empty.bin", 1, "empty.bin: a program of 0 bytes; expected a positive multiple of 8 [EINVAL]"),
        ("run -", 1, "standard input: a program of 0 bytes"),
        ("dis text", 1, "text: a program of 3 bytes; expected a positive multiple of 8; assembler text is in files"),
        ("dis junk.s", 1, "junk.s: byte 0 is not UTF-8"),
        ("dis wrong.hex", 1, "wrong.hex: character 2: 'g'; expected hexadecimal digits in pairs"),
        ("dis odd.hex", 1, "odd.hex: an odd number of digits; expected hexadecimal digits in pairs"),
        ("dis elf.o", 1, "elf.o: not an ELF file that can be read"),
        ("dis pick.s --section xdp", 1, "pick.s: --section xdp, but this is no object"),
        ("asm wrong.s", 1, "wrong.s: line 2"),
        ("asm pick.s -o none/out", 1, "none/out: No such file or directory"),
        ("verify pick.s -m 4", 1, "insn 3"),
        ("verify pick.s", 1, "without -m there is no memory for r1 to point to"),
        ("run pick.s -m zz", 1, "--memory: character 0: 'z'; expected hexadecimal digits"),
        ("run pick.s -m @nope", 1, "nope: No such file or directory"),
        ("run pick.s --fields 1,x", 2, "--fields: 'x': expected whole numbers of 64 bits"),
        ("run pick.s --fields 99999999999999999999", 2, "expected whole numbers of 64 bits"),
        ("run pick.s -m 8 --fields 1", 2, "expected one of them"),
        ("", 2, "needs a part: asm, dis, verify"),
    ],
)
def test_mistakes(said, line: str, code: int, why: str) -> None:  # type: ignore[no-untyped-def]
    for name, data in (
        ("empty.s", b""), ("empty.bin", b""), ("text", b"exi"), ("junk.s", b"\xff\xfe"), ("wrong.hex", b"00gg"),
        ("odd.hex", b"000"), ("elf.o", b"\x7fELF" + bytes(9)), ("wrong.s", b"r0 = 1\nexi\n"),
    ):  # fmt: skip
        Path(name).write_bytes(data)
    got, out, err = said(line)
    assert (got, out) == (code, "") and why in err and err.startswith("uxk: bpf: ")


def test_what_uxk_compile_wrote_says_how_large_its_memory_is(said, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from river import tree

    from uxk.bpf.compiler.compile import compile_model
    from uxk.bpf.compiler.schema import Feature, Schema

    model = tree.HoeffdingTreeClassifier(leaf_prediction="mc", grace_period=20, delta=0.1)
    for number in range(400):
        model.learn_one({"age": number % 100, "heat": 0}, number % 100 > 50)
    compile_model(model, Schema([Feature("age", 0, 100), Feature("heat", 0, 9)])).save(tmp_path / "tree.bpf")
    assert said("verify tree.bpf")[0] == 0
    assert [said(f"run tree.bpf --fields {age},0")[1] for age in (10, 90)] == ["0\n", "1\n"]
    assert said("run tree.bpf --fields 90,0,0")[1] == "1\n"
    Path("tree.json").write_text("{}")
    assert "tree.json: " in said("verify tree.bpf")[2]
