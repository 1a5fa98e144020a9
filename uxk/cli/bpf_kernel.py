"""``uxk bpf prog`` and ``uxk bpf map``: programs and maps of a running kernel, through its ``/sys/fs/bpf``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from uxk.cli.common import GOOD, Subparsers, UsageExit, clean, print_json, with_kernel
from uxk.errors import UsageError

if TYPE_CHECKING:
    from uxk.bridges.control_client import ControlClient

ROOT: Final = "/sys/fs/bpf"
_PROGRAM: Final = (
    "name", "tag", "at", "owner", "instructions", "longest", "cost_ns", "runs", "charged_ns", "faults", "last_fault",
    "attached", "maps", "pins",
)  # fmt: skip
_MAP: Final = (
    "name", "kind", "owner", "key_bytes", "value_bytes", "max_entries", "count", "dropped", "programs", "pins",
)  # fmt: skip
_WORDS: Final = {
    ("prog", "show"): "[ID]", ("prog", "dump"): "ID", ("prog", "run"): "ID MEMORY", ("prog", "pin"): "ID NAME",
    ("prog", "unpin"): "NAME", ("prog", "verify"): "FILE site/NAME", ("map", "show"): "[ID]", ("map", "dump"): "ID",
    ("map", "pin"): "ID NAME", ("map", "unpin"): "NAME",
}  # fmt: skip
EPILOG: Final = """\
  uxk bpf prog show                    programs of a running kernel (-k), bpf map show its maps
  uxk bpf prog dump 1                  the text of a program, bpf map dump 1 the entries of a map
  uxk bpf prog run 1 2a00000000000000  a test run on these bytes: r0
  uxk bpf prog pin 1 keep              keeps it after its owner; unpin keep
  uxk bpf prog verify prog.s site/disk.pick    against what a decision site asks for
"""


def register(parts: Subparsers, load: Callable[[str], bytes]) -> None:
    """Adds both; ``load`` reads a program."""
    for folder, text in (("prog", "programs of a running kernel"), ("map", "maps of a running kernel")):
        part = parts.add_parser(folder, help=text, description=f"Look at {text}.", allow_abbrev=False)
        part.add_argument("what", choices=[what for where, what in _WORDS if where == folder])
        part.add_argument(
            "words", metavar="WORD", nargs="*", help="ID, MEMORY, NAME or FILE, as `uxk bpf --help` shows"
        )
        part.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
        part.set_defaults(handler=_handle, folder=folder, load=load)


def _handle(args: argparse.Namespace) -> int:
    words, wanted = args.words, _WORDS[args.folder, args.what]
    least, most = 0 if wanted == "[ID]" else len(wanted.split()), len(wanted.split())
    if not least <= len(words) <= most:
        raise UsageExit(f"{args.folder} {args.what}: {len(words)} words; expected {wanted}")
    if wanted.lstrip("[").startswith("ID") and words and not words[0].isdecimal():
        raise UsageExit(f"{args.folder} {args.what}: {words[0]!r}: expected a number, as `show` prints them")
    action: Callable[[argparse.Namespace], Any] = _ACTIONS[args.what]
    shown = action(args)
    if shown is not None:
        text = _text(shown)
        if args.json:
            print_json(shown)
        elif text:
            print(text)
    return GOOD


def _text(shown: Any) -> str:
    if isinstance(shown, str):
        return shown.rstrip("\n")
    return "\n".join(
        f"{number}: {' '.join(f'{name} {clean(value)}' for name, value in facts.items() if value)}"
        for number, facts in shown.items()
    )


async def _ids(kernel: ControlClient, folder: str) -> list[str]:
    for path, name in (("/sys", "fs"), ("/sys/fs", "bpf"), (ROOT, folder)):
        if name not in [entry.name for entry in await kernel.listdir(path)]:
            return []
    return sorted((entry.name for entry in await kernel.listdir(f"{ROOT}/{folder}")), key=int)


def _show(args: argparse.Namespace) -> dict[str, dict[str, str]]:
    async def read(kernel: ControlClient) -> dict[str, dict[str, str]]:
        numbers, names = args.words or await _ids(kernel, args.folder), _PROGRAM if args.folder == "prog" else _MAP
        await _check(kernel, args)
        return {
            number: {name: (await kernel.read(f"{ROOT}/{args.folder}/{number}/{name}")).replace("\n", ",")
                     for name in names}
            for number in numbers
        }  # fmt: skip

    return with_kernel(args, read)


async def _check(kernel: ControlClient, args: argparse.Namespace) -> None:
    if args.words and args.words[0] not in (known := await _ids(kernel, args.folder)):
        what = "program" if args.folder == "prog" else "map"
        raise UsageError(f"no {what} {args.words[0]}; there are: {', '.join(known) or 'none'}")


def _dump(args: argparse.Namespace) -> str:
    async def read(kernel: ControlClient) -> str:
        await _check(kernel, args)
        path = f"{ROOT}/{args.folder}/{args.words[0]}"
        if args.folder == "map":
            return await kernel.read(f"{path}/entries")
        parts = int(await kernel.read(f"{path}/parts"))
        return "".join([await kernel.read(f"{path}/code/{part}") for part in range(parts)])

    found = with_kernel(args, read)
    if args.folder == "map" or args.json:
        return found
    from uxk.bpf.disasm import disassemble
    from uxk.bpf.insn import decode

    return disassemble(decode(bytes.fromhex(found)), numbers=True)


def _run(args: argparse.Namespace) -> str:
    async def run(kernel: ControlClient) -> str:
        await _check(kernel, args)
        path = f"{ROOT}/prog/{args.words[0]}/run"
        await kernel.write(path, args.words[1])
        return await kernel.read(path)

    return with_kernel(args, run)


def _pin(args: argparse.Namespace) -> None:
    async def pin(kernel: ControlClient) -> None:
        await _check(kernel, args)
        await kernel.write(f"{ROOT}/{args.folder}/{args.words[0]}/pin", args.words[1])

    with_kernel(args, pin)


def _unpin(args: argparse.Namespace) -> None:
    with_kernel(args, lambda kernel: kernel.write(f"{ROOT}/unpin", args.words[0]))


def _verify(args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """The site's schema comes from the kernel; the proof is made here."""
    from uxk.bpf.compiler.schema import Feature, Schema
    from uxk.bpf.verifier import verify

    file, at = args.words
    code = args.load(file)

    async def read(kernel: ControlClient) -> tuple[str, str]:
        return await kernel.read(f"{ROOT}/{at}/schema"), await kernel.read(f"{ROOT}/{at}/verdict")

    if not at.startswith("site/"):
        raise UsageExit(f"prog verify: {at!r}: expected site/NAME")
    schema, verdict = with_kernel(args, read)
    features = [
        Feature(name, int(low), int(high)) for name, low, high, *_ in (line.split(" ") for line in schema.splitlines())
    ]
    low, high = map(int, verdict.split())
    proof = verify(code, Schema(features).spec((low, high), trusted=True))
    facts = {"instructions": str(len(proof.insns)), "followed": str(proof.looked_at), "at": at}
    return {"safe": facts}


_ACTIONS: Final[dict[str, Callable[[argparse.Namespace], Any]]] = {
    "show": _show, "dump": _dump, "run": _run, "pin": _pin, "unpin": _unpin, "verify": _verify,
}  # fmt: skip
