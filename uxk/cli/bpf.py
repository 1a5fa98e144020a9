"""``uxk bpf``: assemble, disassemble, verify and run eBPF programs; ``plugin`` for the public conformance runner.

A FILE is assembler text (``.s``, ``.asm``), hexadecimal digits (``.hex``), an object that clang built (``.o``), or the
bytes themselves; ``-`` is standard input, taken as text.
"""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path
from string import hexdigits
from typing import TYPE_CHECKING, Any, Final

from uxk.cli import bpf_kernel, bpf_show
from uxk.cli.common import FAILED, GOOD, Subparsers, UsageExit, add_verb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uxk.bpf.maps import Map
    from uxk.bpf.program import Program

_EPILOG: Final = """\
  uxk bpf asm prog.s                   the bytes, as hexadecimal digits (-o FILE: the bytes themselves)
  uxk bpf dis prog.hex                 the text
  uxk bpf verify prog.s -m 64          with r1 = address of 64 bytes, r2 = 64: what was proven, or why it is refused
  uxk bpf run prog.s -m 0x2a00000000000000  on these bytes: r0 (-i: by the reference interpreter)
  uxk bpf run tree.bpf --fields 42,-7  on these numbers, a model that uxk compile wrote
  uxk bpf source prog.s -m 64          the Python that a verified program becomes
  uxk bpf run prog.o --section decide -m 24   a function of an object that `clang -target bpf -c` built
  uxk bpf plugin MEMORY < prog.hex     r0 in hexadecimal, unverified: the protocol of the public conformance runner
  uxk bpf plugin --serve               verified; a line `PROGRAM MEMORY` in, `ok R0`, `error WHY` or `fault WHY` out
"""
_TEXT: Final = (".s", ".asm", ".S")
_FILE_MAX_BYTES: Final = 64 << 20
SLOT_BYTES: Final = 8
"""Of an instruction."""
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
    parser.add_argument("-j", dest="json", action="store_true", default=argparse.SUPPRESS, help="as --json")
    parser.add_argument("-p", "--pretty", action="store_true", help="print JSON, indented")
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
            "-m", "--memory", default="", metavar="BYTES", help="a number of bytes, 0x and hexadecimal digits, or @FILE"
        )
        part.add_argument("--fields", default="", metavar="N,N", help="instead: 64-bit numbers, as models take them")
        part.add_argument("--read-only", action="store_true", help="the program may not write to its memory")
        if name == "run":
            part.add_argument("-i", "--interpret", action="store_true", help="by the reference interpreter")
    plugin = parts.add_parser("plugin", help="serve a conformance runner", allow_abbrev=False)
    plugin.add_argument("--serve", action="store_true", help="verify, and take one program a line")
    plugin.add_argument("memory", nargs="?", default="", help="hexadecimal digits")
    plugin.set_defaults(handler=_plugin)
    bpf_kernel.register(parts, load_program)


def _part(parts: Subparsers, name: str, handler: Any, text: str) -> argparse.ArgumentParser:
    part = parts.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".", allow_abbrev=False)
    part.add_argument("file", metavar="FILE", help="a program, - for standard input")
    part.add_argument("--section", default="", metavar="NAME", help="of an object: the section, or the function")
    part.add_argument("-j", "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    part.add_argument("-p", "--pretty", action="store_true", default=argparse.SUPPRESS, help="print JSON, indented")
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
        return _some(assemble(sys.stdin.read(_FILE_MAX_BYTES)), "standard input"), {}
    path, data = Path(name), _read(name)
    if elf.is_object(data):
        loaded = elf.load(data, section, name=name)
        return loaded.code, loaded.maps
    if section:
        raise BpfError(f"{name}: --section {section}, but this is no object, and has no sections")
    if path.suffix in _TEXT:
        try:
            code = assemble(data.decode())
        except UnicodeDecodeError as exc:
            raise BpfError(f"{name}: byte {exc.start} is not UTF-8; expected assembler text") from None
        except BpfError as exc:
            raise BpfError(f"{name}: {exc}") from None
        return _some(code, name), {}
    code = _hex(data.decode("ascii", "replace"), name) if path.suffix == ".hex" else data
    text = data.isascii() and data.translate(None, b"\r\n\t").decode("ascii").isprintable()
    return _some(code, name, "; assembler text is in files named *.s, digits in files named *.hex" if text else ""), {}


def _some(code: bytes, name: str, hint: str = "") -> bytes:
    """A program that has instructions at all, so that an error tells of which file it is."""
    from uxk.bpf.errors import BpfError

    if not code or len(code) % SLOT_BYTES:
        hint = hint if code else ""
        raise BpfError(f"{name}: a program of {len(code)} bytes; expected a positive multiple of {SLOT_BYTES}{hint}")
    return code


def _read(name: str) -> bytes:
    from uxk.bpf.errors import BpfError

    if not name:
        raise UsageExit("FILE is empty; expected a program, or - for standard input")
    try:
        with Path(name).open("rb") as file:
            data = file.read(_FILE_MAX_BYTES + 1)
    except OSError as exc:
        exc.filename = exc.filename or name  # reading does not say of what
        raise
    if len(data) > _FILE_MAX_BYTES:
        raise BpfError(f"{name}: more than {_FILE_MAX_BYTES} bytes", errno=errno.E2BIG)
    return data


def _hex(text: str, what: str) -> bytes:
    from uxk.bpf.errors import BpfError

    try:
        return bytes.fromhex(text)
    except ValueError:
        wrong = next((at for at, char in enumerate(text) if char not in f"{hexdigits} \t\r\n"), None)
        where = "an odd number of digits" if wrong is None else f"character {wrong}: {text[wrong]!r}"
        raise BpfError(f"{what}: {where}; expected hexadecimal digits in pairs") from None


def memory_of(text: str) -> bytearray:
    """``64`` is so many zero bytes; other digits are the bytes themselves, as is what begins with ``0x``.

    ``@FILE`` is what is in a file.
    """
    if text.startswith("@"):
        data = _read(text[1:])
        if len(data) > _MEMORY_MAX_BYTES:
            raise UsageExit(f"--memory {text}: {len(data)} bytes; at most {_MEMORY_MAX_BYTES}")
        return bytearray(data)
    if text.isascii() and text.isdigit() and len(text) < 8:
        size_bytes = int(text)
        if size_bytes > _MEMORY_MAX_BYTES:
            raise UsageExit(f"--memory {size_bytes}: at most {_MEMORY_MAX_BYTES} bytes")
        return bytearray(size_bytes)
    return bytearray(_hex(text.removeprefix("0x"), "--memory"))


def _asm(args: argparse.Namespace) -> int:
    code, _ = load_program(args.file, args.section)
    if args.output:
        Path(args.output).write_bytes(code)
    if bpf_show.wants_json(args):
        bpf_show.put(args, {"bytes": len(code), "code": code.hex()})
    elif not args.output:
        print(code.hex())
    return GOOD


def _dis(args: argparse.Namespace) -> int:
    bpf_show.show(args, bpf_show.Listing(load_program(args.file, args.section)[0], opcodes=False))
    return GOOD


def program_of(args: argparse.Namespace) -> tuple[Program, bytearray]:
    """The program that the command line names, verified, and the memory that it names."""
    from uxk.bpf.errors import BpfError, VerifierError
    from uxk.bpf.helpers import with_kernel
    from uxk.bpf.program import Program
    from uxk.bpf.proto import body

    fields = getattr(args, "fields", "")
    if fields and args.memory:
        raise UsageExit("--memory and --fields: expected one of them")
    memory = _fields(fields) if fields else memory_of(args.memory)
    code, maps = load_program(args.file, args.section)
    takes_bytes = 0 if args.memory else _model_bytes(args.file)
    if not memory or len(memory) + SLOT_BYTES == takes_bytes:  # the zero behind a model's features
        memory += bytes(max(0, takes_bytes - len(memory)))
    spec, helpers = body(len(memory), writable=not args.read_only), with_kernel(lambda: 0, lambda: 0)
    try:
        return Program(code, spec, maps=maps, helpers=helpers, name=args.file), memory
    except VerifierError as exc:
        if memory or "r1" not in exc.reason:
            raise
        raise BpfError(f"{exc.args[0]}; without -m there is no memory for r1 to point to") from None


def _model_bytes(name: str) -> int:
    """How many bytes a program of ``uxk compile`` takes: what lies beside it says so.  0 for others."""
    if Path(name).suffix != ".bpf" or not Path(name).with_suffix(".json").exists():
        return 0
    from uxk.bpf.compiler.compile import load

    return SLOT_BYTES * (len(load(name).schema) + 1)


def _fields(text: str) -> bytearray:
    """``3,-4``: numbers of 64 bits, as a model's body reads them."""
    memory = bytearray()
    for word in text.split(","):
        try:
            number = int(word, 0)
            memory += number.to_bytes(8, "little", signed=number < 0)
        except (ValueError, OverflowError):
            raise UsageExit(f"--fields: {word[:40]!r}: expected whole numbers of 64 bits, as in 3,-4,0") from None
    return memory


def _verify(args: argparse.Namespace) -> int:
    program, _ = program_of(args)
    proof = program.proof
    facts = {"instructions": len(proof.insns), "followed": proof.looked_at, "stack_bytes": proof.stack_bytes}
    if bpf_show.wants_json(args):
        bpf_show.put(args, facts)
    else:
        print(
            f"safe: {facts['instructions']} instructions, {facts['followed']} followed, "
            f"{facts['stack_bytes']} bytes of stack"
        )
    return GOOD


def _run(args: argparse.Namespace) -> int:
    program, memory = program_of(args)
    before = bytes(memory)
    r0 = program.interpret(memory) if args.interpret else program.run(memory)
    if bpf_show.wants_json(args):
        bpf_show.put(args, {"r0": r0, "memory": memory.hex()})
    else:
        print(r0)
        if memory != before:
            print(f"memory: {memory.hex()}")
    return GOOD


def _source(args: argparse.Namespace) -> int:
    program, _ = program_of(args)
    if bpf_show.wants_json(args):
        bpf_show.put(args, {"source": program.translation.source})
    else:
        print(program.translation.source, end="")
    return GOOD


# --- the public conformance runner --------------------------------------------------------------------


def _plugin(args: argparse.Namespace) -> int:
    if args.serve:
        return _serve(sys.stdin)
    from uxk.bpf.errors import BpfError, Fault

    try:
        memory = b"" if args.memory == "-" else _hex(args.memory, "memory")
        print(f"{_unverified(_hex(sys.stdin.read(_FILE_MAX_BYTES), 'program'), memory):x}")
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
