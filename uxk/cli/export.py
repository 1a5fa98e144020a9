"""``uxk export bpf``: a program as an object that a stock Linux loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from uxk.cli.bpf import load_program, memory_of
from uxk.cli.common import GOOD, Subparsers, UsageExit, add_verb, print_json

_EPILOG: Final = """\
  uxk export bpf prog.s -m 64 -o prog.o            decides on the first 64 bytes of each packet of a device (XDP)
  bpftool prog load prog.o /sys/fs/bpf/prog        as root: Linux verifies it once more, and keeps it
  uxk export bpf prog.o --section decide -m 24 --hook socket -o filter.o      of each packet of a socket
"""


def register(subparsers: Subparsers) -> None:
    """Adds the verb and its part."""
    parser = add_verb(
        subparsers, "export", _help, help="write what other systems take: programs for Linux", json=True, epilog=_EPILOG
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parts = parser.add_subparsers(dest="part", metavar="PART")
    text = "a program as an object that bpftool loads"
    bpf = parts.add_parser("bpf", help=text, description=text[:1].upper() + text[1:] + ".", allow_abbrev=False)
    bpf.add_argument("file", metavar="PROGRAM", help="as for `uxk bpf`: text, bytes, or an object")
    bpf.add_argument("-o", "--output", metavar="FILE", required=True, help="write the object there")
    bpf.add_argument("-m", "--memory", default="", metavar="BYTES", help="how many bytes the program decides on")
    bpf.add_argument("--read-only", action="store_true", help="the program may not write to them")
    bpf.add_argument("--section", default="", metavar="NAME", help="of an object: the section, or the function")
    bpf.add_argument("--hook", default="xdp", metavar="HOOK", help="xdp (default), or socket")
    bpf.add_argument("--name", default="decide", help="what Linux calls it (default: decide)")
    bpf.add_argument("--license", default="GPL", metavar="TEXT", help="Linux asks for it (default: GPL)")
    bpf.add_argument("--json", action="store_true", help="print JSON")
    bpf.set_defaults(handler=_bpf)


def _help(args: argparse.Namespace) -> int:
    raise UsageExit("needs a part: bpf; `uxk export --help` shows it")


def _bpf(args: argparse.Namespace) -> int:
    from uxk.bpf.export import export
    from uxk.bpf.program import Program
    from uxk.bpf.proto import body

    code, maps = load_program(args.file, args.section)
    memory = memory_of(args.memory)
    program = Program(code, body(len(memory), writable=not args.read_only), maps=maps, name=args.file)
    data = export(program, args.hook, name=args.name, license=args.license)
    Path(args.output).write_bytes(data)
    if args.json:
        print_json({"output": args.output, "bytes": len(data), "hook": args.hook, "memory_bytes": len(memory)})
    return GOOD
