"""``uxk bpf prog`` and ``uxk bpf map``: programs and maps of a running kernel, through its ``/sys/fs/bpf``.

The words are bpftool's where both can do the same.  Results go to stdout, as lines or, with ``-j``, as JSON; what
fails is told on stderr, with exit code 1 (2 for a command line that cannot be).
"""

from __future__ import annotations

import argparse
import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from uxk.cli import bpf_maps, bpf_show
from uxk.cli.bpf_words import ROOT, Words, entries, file_bytes, find, ids, one, pin_name, words_of
from uxk.cli.common import GOOD, Subparsers, UsageExit, instead, with_kernel
from uxk.errors import UsageError, UxkError

if TYPE_CHECKING:
    from uxk.bpf.maps import Map
    from uxk.bridges.control_client import ControlClient

Load = Callable[[str, str], tuple[bytes, "dict[int, Map]"]]
"""Reads a program and its maps from a file and a section."""
REPEAT_MAX: Final = 10_000
_PROGRAM: Final = (
    "name", "tag", "at", "owner", "takes_bytes", "held_bytes", "instructions", "longest", "cost_ns", "runs",
    "charged_ns", "faults", "last_fault", "attached", "maps", "pins",
)  # fmt: skip
_MAP: Final = (
    "name", "kind", "owner", "held_bytes", "key_bytes", "value_bytes", "max_entries", "count", "dropped", "programs",
    "pins",
)  # fmt: skip
EPILOG: Final = """\
  uxk bpf prog show                    programs of a running kernel (-k), bpf map show its maps
  uxk bpf prog run id 1 fields 42 0    a test run on two numbers: r0
  uxk bpf map update name limit key 0 0 0 0 value hex f401000000000000
  uxk bpf prog --help, uxk bpf map --help  all that can be done with them
"""
_PROG_HELP: Final = """\
  show [PROG]                      what there is (also: list)
  dump PROG [opcodes]              the text, with `opcodes` the bytes, too
  dump PROG file FILE              the bytes, into a file (bpftool's word xlated may stand before PROG)
  run PROG MEMORY                  a test run on bytes, as hexadecimal digits; also
  run PROG fields N... | data_in FILE [data_out FILE] [repeat N]
  verify FILE POINT                as the kernel would for site/NAME, queue/DEVICE or agent/INSTANCE
  detach PROG [POINT]              out of force
  pin PROG NAME, unpin NAME        keeps it after its owner
PROG is ID, id ID, name NAME, tag TAG or pinned NAME. -j prints JSON, -p pretty JSON.
"""
_MAP_HELP: Final = """\
  show [MAP]                       what there is (also: list)
  dump MAP                         all elements
  lookup MAP key DATA              one element
  getnext MAP [key DATA]           the key behind another, or the first
  update MAP key DATA value DATA [any | exist | noexist]
  delete MAP key DATA              of a hash
  pin MAP NAME, unpin NAME         keeps it after its loader
MAP is ID, id ID, name NAME or pinned NAME. DATA is bytes, as 1 0 0xff or as hex 01 00 ff.
-j prints JSON, -p pretty JSON.
"""
_LATE: Final = {"-j": "json", "-p": "pretty", "--pretty": "pretty"}


def register(parts: Subparsers, load: Load) -> None:
    """Adds both; ``load`` reads a program."""
    for folder, text, more in (
        ("prog", "programs of a running kernel", _PROG_HELP), ("map", "maps of a running kernel", _MAP_HELP),
    ):  # fmt: skip
        part = parts.add_parser(
            folder, help=text, description=f"Look at {text}.", epilog=more, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        part.add_argument("-j", "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
        part.add_argument("-p", "--pretty", action="store_true", default=argparse.SUPPRESS, help="print JSON, indented")
        part.add_argument("what", choices=[what for where, what in _ACTIONS if where == folder], metavar="WHAT")
        part.add_argument("words", metavar="WORD", nargs=argparse.REMAINDER, help="as listed below")
        if folder == "prog":
            part.add_argument(
                "--section", default="", metavar="NAME", help="of an object: the section, or the function"
            )
        part.set_defaults(handler=_handle, folder=folder, load=load, help_of=part.print_help)


def _handle(args: argparse.Namespace) -> int:
    for word in list(args.words):  # what stands behind the first word is not looked at by argparse
        if word in ("-h", "--help"):
            args.help_of()
            return GOOD
        if word in _LATE:
            args.words.remove(word)
            setattr(args, _LATE[word], True)
    _take_section(args)
    shown = _ACTIONS[args.folder, args.what](args)
    if shown is not None:
        bpf_show.show(args, shown)
    return GOOD


def _take_section(args: argparse.Namespace) -> None:
    for at, word in enumerate(args.words):
        if word == "--section" or word.startswith("--section="):
            if "=" not in word and at + 1 == len(args.words):
                raise UsageExit(f"{args.folder} {args.what}: --section: expected a name")
            args.section = word.partition("=")[2] if "=" in word else args.words.pop(at + 1)
            args.words.pop(at)
            return


# --- show ---------------------------------------------------------------------------------------------


def _show(args: argparse.Namespace) -> Any:
    """One object for a number, else a list, as of bpftool."""
    words = words_of(args)
    handle = words.handle(args.folder) if words.left() else None
    words.end()

    async def read(kernel: ControlClient) -> Any:
        numbers = await find(kernel, args.folder, handle) if handle else await ids(kernel, args.folder)
        found = [each for number in numbers if (each := await _facts(kernel, args.folder, number))]
        return found[0] if handle and len(found) == 1 else found

    return with_kernel(args, read)


async def _facts(kernel: ControlClient, folder: str, number: str) -> dict[str, Any]:
    """What the kernel says of one; nothing if it went away since it was listed."""
    texts: dict[str, str] = {}
    for name in _PROGRAM if folder == "prog" else _MAP:
        try:
            texts[name] = await kernel.read(f"{ROOT}/{folder}/{number}/{name}")
        except UxkError as exc:
            if exc.errno != errno.ENOENT:
                raise
            if number not in await ids(kernel, folder):
                return {}
    return {"id": int(number), **bpf_show.typed(texts)}


# --- programs -----------------------------------------------------------------------------------------


def _prog_dump(args: argparse.Namespace) -> Any:
    words = words_of(args)
    if words.next_is("jited"):
        raise UsageExit(f"{words.verb}: programs become Python, not machine code: `uxk bpf source FILE` shows it")
    words.accept("xlated")
    handle = words.handle("prog")
    opcodes, file = words.accept("opcodes"), words.take("a file") if words.accept("file") else ""
    words.end()

    async def read(kernel: ControlClient) -> tuple[bytes, dict[str, str]]:
        path = f"{ROOT}/prog/{await one(kernel, 'prog', handle)}"
        parts, maps = int(await kernel.read(f"{path}/parts")), await kernel.read(f"{path}/maps")
        code = "".join([await kernel.read(f"{path}/code/{part}") for part in range(parts)])
        return bytes.fromhex(code), dict(each.split() for each in maps.splitlines())

    code, maps = with_kernel(args, read)
    if file:
        Path(file).write_bytes(code)
        return None
    return bpf_show.Listing(code, opcodes, maps)


def _run(args: argparse.Namespace) -> Any:
    words = words_of(args)
    handle = words.handle("prog")
    memory, fields = _input(words)
    out, repeat = "", 1
    while words.left():
        if words.accept("data_out"):
            out = words.take("a file")
        elif words.accept("repeat"):
            repeat = words.number("repeat", REPEAT_MAX)
        else:
            words.end()

    async def run(kernel: ControlClient) -> tuple[str, int, str]:
        path = f"{ROOT}/prog/{await one(kernel, 'prog', handle)}"
        takes, cost_ns = int(await kernel.read(f"{path}/takes_bytes")), int(await kernel.read(f"{path}/cost_ns"))
        digits = memory
        if fields is not None:
            more = int(takes == 8 * (len(fields) + 1))  # the zero behind the last feature
            digits = b"".join(each.to_bytes(8, "little", signed=each < 0) for each in (*fields, *[0] * more)).hex()
        text = ""
        for _ in range(repeat):
            await kernel.write(f"{path}/run", digits)
            text = await kernel.read(f"{path}/run")
        return text, cost_ns, digits

    text, cost_ns, given = with_kernel(args, run)
    first, _, after = text.partition("\n")
    if first.startswith("fault"):
        raise UxkError(f"prog run: {first}")
    if out:
        Path(out).write_bytes(bytes.fromhex(after or given))
    return bpf_show.Ran(int(first), after or given, bool(after) and not out, cost_ns, repeat)


def _input(words: Words) -> tuple[str, tuple[int, ...] | None]:
    """What a test run is given: digits, or numbers."""
    if words.accept("data_in"):
        return file_bytes(words.take("a file")).hex(), None
    if words.accept("fields"):
        numbers: list[int] = []
        while words.left() and not words.next_is("data_out", "repeat"):
            word = words.take("a number")
            try:
                number = int(word, 0)
            except ValueError:
                raise UsageExit(f"{words.verb}: fields: {word[:40]!r}: expected a whole number") from None
            if not -(1 << 63) <= number < 1 << 64:
                raise UsageExit(f"{words.verb}: fields: {word[:40]}: expected a number of 64 bits")
            numbers.append(number)
        return "", tuple(numbers)
    if not words.left() or words.next_is("data_out", "repeat"):
        return "", None  # of a program that takes none
    return words.take("MEMORY").removeprefix("0x"), None


def _detach(args: argparse.Namespace) -> None:
    words = words_of(args)
    handle, point = words.handle("prog"), words.take("POINT") if words.left() else ""
    words.end()

    async def detach(kernel: ControlClient) -> None:
        number = await one(kernel, "prog", handle)
        path = f"{ROOT}/prog/{number}"
        there = [name for name in (await kernel.read(f"{path}/attached")).split("\n") if name]
        if not there or (point and point not in there):
            raise UsageError(
                f"program {number} is not attached{f' to {point!r}' if point else ''}{instead(point, there)}",
                errno=errno.ENOENT,
            )
        await kernel.write(f"{path}/detach", point)

    with_kernel(args, detach)


def _verify(args: argparse.Namespace) -> dict[str, Any]:
    """What the attach point asks for comes from the kernel; the proof is made here."""
    from uxk.cli.bpf_points import prove, spec_of

    words = words_of(args)
    file, at = words.take("FILE"), words.take("POINT")
    words.end()
    code, maps = args.load(file, args.section)
    spec = with_kernel(args, lambda kernel: spec_of(kernel, at))
    return {"safe": True, **prove(code, maps, spec, at), "at": at}


# --- pins ---------------------------------------------------------------------------------------------


def _pin(args: argparse.Namespace) -> None:
    words = words_of(args)
    handle, name = words.handle(args.folder), pin_name(words.take("NAME"))
    words.end()

    async def pin(kernel: ControlClient) -> None:
        await kernel.write(f"{ROOT}/{args.folder}/{await one(kernel, args.folder, handle)}/pin", name)

    with_kernel(args, pin)


def _unpin(args: argparse.Namespace) -> None:
    words = words_of(args)
    name = pin_name(words.take("NAME"))
    words.end()

    async def unpin(kernel: ControlClient) -> None:
        known = await entries(kernel, "pinned")
        if name not in known:
            raise UsageError(f"no pin {name!r}{instead(name, known)}", errno=errno.ENOENT)
        await kernel.write(f"{ROOT}/unpin", name)

    with_kernel(args, unpin)


_ACTIONS: Final[Mapping[tuple[str, str], Callable[[argparse.Namespace], Any]]] = {
    ("prog", "show"): _show, ("prog", "list"): _show, ("prog", "dump"): _prog_dump, ("prog", "run"): _run,
    ("prog", "verify"): _verify, ("prog", "detach"): _detach, ("prog", "pin"): _pin, ("prog", "unpin"): _unpin,
    ("map", "show"): _show, ("map", "list"): _show, ("map", "dump"): bpf_maps.dump,
    ("map", "lookup"): bpf_maps.lookup, ("map", "getnext"): bpf_maps.getnext, ("map", "update"): bpf_maps.update,
    ("map", "delete"): bpf_maps.delete, ("map", "pin"): _pin, ("map", "unpin"): _unpin,
}  # fmt: skip
