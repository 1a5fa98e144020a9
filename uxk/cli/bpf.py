"""``uxk bpf``: assemble, disassemble, verify and run eBPF programs; ``plugin`` for the public conformance runner.

A FILE is assembler text (``.s``, ``.asm``), hexadecimal digits (``.hex``), an object that clang built (``.o``), or the
bytes themselves; ``-`` is standard input, taken as text.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from uxk.cli import bpf_kernel
from uxk.cli.common import FAILED, GOOD, Subparsers, UsageExit, add_verb, print_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uxk.bpf.maps import Map
    from uxk.bpf.program import Program

_EPILOG: Final = """\
  uxk bpf asm prog.s                   the bytes, as hexadecimal digits (-o FILE: the bytes themselves)
  uxk bpf dis prog.hex                 the text
  uxk bpf verify prog.s -m 64          with r1 = address of 64 bytes, r2 = 64: what was proven, or why it is refused
  uxk bpf run prog.s -m 2a00000000000000   on these bytes: r0 (-i: by the reference interpreter)
  uxk bpf source prog.s -m 64          the Python that a verified program becomes
  uxk bpf run prog.o --section decide -m 24   a function of an object that `clang -target bpf -c` built
  uxk bpf plugin MEMORY < prog.hex     r0 in hexadecimal, unverified: the protocol of the public conformance runner
  uxk bpf plugin --serve               verified; a line `PROGRAM MEMORY` in, `ok R0`, `error WHY` or `fault WHY` out
"""
_TEXT: Final = (".s", ".asm", ".S")
_FILE_MAX_BYTES: Final = 64 << 20
_MEMORY_MAX_BYTES: Final = 16 << 20


def register(subparsers: Subparsers) -> None:
    """Adds the verb and its parts."""
    parser = add_verb(
        subparsers,
        "bpf",
        _help,
        help="assemble, verify and run eBPF programs",
        json=True,
        kernel=True,
        epilog=_EPILOG + bpf_kernel.EPILOG,
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(parser=parser)
    parts = parser.add_subparsers(dest="part", metavar="PART")
    asm = _part(parts, "asm", _asm, "assemble text")
    asm.add_argument("-o", "--output", metavar="FILE", help="write the bytes there")
    _part(parts, "dis", _dis, "disassemble")
    for name, handler, text in (
        ("verify", _verify, "show that a program is safe, or say why not"), ("run", _run, "verify and run"),
        ("source", _source, "print a program as Python"),
    ):  # fmt: skip
        part = _part(parts, name, handler, text)
        part.add_argument(
            "-m", "--memory", default="", metavar="BYTES", help="a number of bytes, or hexadecimal digits"
        )
        part.add_argument("--read-only", action="store_true", help="the program may not write to its memory")
        if name == "run":
            part.add_argument("-i", "--interpret", action="store_true", help="by the reference interpreter")
    plugin = parts.add_parser("plugin", help="serve a conformance runner", allow_abbrev=False)
    plugin.add_argument("--serve", action="store_true", help="verify, and take one program a line")
    plugin.add_argument("memory", nargs="?", default="", help="hexadecimal digits")
    plugin.set_defaults(handler=_plugin)
    bpf_kernel.register(parts, lambda name: load_program(name)[0])


def _part(parts: Subparsers, name: str, handler: Any, text: str) -> argparse.ArgumentParser:
    part = parts.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".", allow_abbrev=False)
    part.add_argument("file", metavar="FILE", help="a program, - for standard input")
    part.add_argument("--section", default="", metavar="NAME", help="of an object: the section, or the function")
    part.add_argument("--json", action="store_true", help="print JSON")
    part.set_defaults(handler=handler)
    return part


def _help(args: argparse.Namespace) -> int:
    raise UsageExit("needs a part: asm, dis, verify, run, source, plugin, prog or map; `uxk bpf --help` shows them")


def load_program(name: str, section: str = "") -> tuple[bytes, dict[int, Map]]:
    """The bytes of the program in a file, and its maps.  Raises ``BpfError``, OSError."""
    from uxk.bpf import elf
    from uxk.bpf.asm import assemble
    from uxk.bpf.errors import BpfError

    if name == "-":
        return assemble(sys.stdin.read(_FILE_MAX_BYTES)), {}
    path = Path(name)
    with path.open("rb") as file:
        data = file.read(_FILE_MAX_BYTES + 1)
    if len(data) > _FILE_MAX_BYTES:
        raise BpfError(f"{name}: more than {_FILE_MAX_BYTES} bytes")
    if elf.is_object(data):
        loaded = elf.load(data, section, name=name)
        return loaded.code, loaded.maps
    if section:
        raise BpfError(f"{name}: --section {section}, but this is no object, and has no sections")
    if path.suffix in _TEXT:
        try:
            return assemble(data.decode()), {}
        except UnicodeDecodeError as exc:
            raise BpfError(f"{name}: byte {exc.start} is not UTF-8; expected assembler text") from None
        except BpfError as exc:
            raise BpfError(f"{name}: {exc}") from None
    return _hex(data.decode("ascii", "replace"), name) if path.suffix == ".hex" else data, {}


def _hex(text: str, what: str) -> bytes:
    from uxk.bpf.errors import BpfError

    try:
        return bytes.fromhex(text)
    except ValueError as exc:
        raise BpfError(f"{what}: {exc}; expected hexadecimal digits in pairs") from None


def memory_of(text: str) -> bytearray:
    """``64`` is so many zero bytes; other digits are the bytes themselves, as is what begins with ``0x``."""
    if text.isdigit() and len(text) < 8:
        size_bytes = int(text)
        if size_bytes > _MEMORY_MAX_BYTES:
            raise UsageExit(f"--memory {size_bytes}: at most {_MEMORY_MAX_BYTES} bytes")
        return bytearray(size_bytes)
    return bytearray(_hex(text.removeprefix("0x"), "--memory"))


def _asm(args: argparse.Namespace) -> int:
    code, _ = load_program(args.file, args.section)
    if args.output:
        Path(args.output).write_bytes(code)
    else:
        print(code.hex())
    return GOOD


def _dis(args: argparse.Namespace) -> int:
    from uxk.bpf.disasm import disassemble
    from uxk.bpf.insn import decode

    print(disassemble(decode(load_program(args.file, args.section)[0]), numbers=True), end="")
    return GOOD


def _program(args: argparse.Namespace) -> tuple[Program, bytearray]:
    from uxk.bpf.program import Program
    from uxk.bpf.proto import body

    memory = memory_of(args.memory)
    code, maps = load_program(args.file, args.section)
    return Program(code, body(len(memory), writable=not args.read_only), maps=maps, name=args.file), memory


def _verify(args: argparse.Namespace) -> int:
    program, _ = _program(args)
    proof = program.proof
    facts = {"instructions": len(proof.insns), "followed": proof.looked_at, "stack_bytes": proof.stack_bytes}
    if args.json:
        print_json(facts)
    else:
        print(
            f"safe: {facts['instructions']} instructions, {facts['followed']} followed, "
            f"{facts['stack_bytes']} bytes of stack"
        )
    return GOOD


def _run(args: argparse.Namespace) -> int:
    program, memory = _program(args)
    before = bytes(memory)
    r0 = program.interpret(memory) if args.interpret else program.run(memory)
    if args.json:
        print_json({"r0": r0, "memory": memory.hex()})
    else:
        print(r0)
        if memory != before:
            print(f"memory: {memory.hex()}")
    return GOOD


def _source(args: argparse.Namespace) -> int:
    program, _ = _program(args)
    print(program.translation.source, end="")
    return GOOD


# --- the public conformance runner --------------------------------------------------------------------


def _plugin(args: argparse.Namespace) -> int:
    if args.serve:
        return _serve(sys.stdin)
    from uxk.bpf.errors import BpfError, Fault

    try:
        print(f"{_unverified(_hex(sys.stdin.read(_FILE_MAX_BYTES), 'program'), _hex(args.memory, 'memory')):x}")
    except (BpfError, Fault) as exc:
        print(f"uxk bpf plugin: {exc}", file=sys.stderr)
        return FAILED
    return GOOD


def _unverified(code: bytes, memory: bytes) -> int:
    from uxk.bpf.insn import decode
    from uxk.bpf.interp import Machine
    from uxk.bpf.memory import Memory

    space = Memory()
    base = space.add("memory", bytearray(memory)).base if memory else 0
    # The public tests expect that a helper with this number is there.
    return Machine(decode(code), memory=space, helpers={5: lambda *_: 0}).run(base, len(memory))


def _serve(lines: Iterable[str]) -> int:
    for line in lines:
        if line.strip():
            print(_answer(line), flush=True)
    return GOOD


def _answer(line: str) -> str:
    from uxk.bpf.errors import BpfError, Fault
    from uxk.bpf.helpers import with_kernel
    from uxk.bpf.program import Program
    from uxk.bpf.proto import body

    words = line.split()
    try:
        if len(words) != 2:
            raise BpfError(f"{len(words)} words; expected PROGRAM and MEMORY, or - for no memory")
        memory = bytearray() if words[1] == "-" else bytearray(_hex(words[1], "memory"))
        program = Program(_hex(words[0], "program"), body(len(memory)), helpers=with_kernel(lambda: 0, lambda: 0))
        return f"ok {program.run(memory) & (1 << 64) - 1:x}"
    except Fault as exc:
        return f"fault {exc}"
    except BpfError as exc:
        return f"error {exc}"
