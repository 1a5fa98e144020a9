"""``uxk export bpf``: a program as an object that a stock Linux loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from uxk.cli.bpf import load_program, memory_of
from uxk.cli.common import GOOD, Subparsers, UsageExit, add_verb, print_json

if TYPE_CHECKING:
    from uxk.bpf.program import Program

_EPILOG: Final = """\
  uxk export bpf prog.s -m 64 -o prog.o            decides on the first 64 bytes of each packet of a device (XDP)
  bpftool prog load prog.o /sys/fs/bpf/prog        as root: Linux verifies it once more, and keeps it
  uxk export bpf prog.o --section decide -m 24 --hook socket -o filter.o      of each packet of a socket
  uxk export bpf tree.bpf --hook syscall -o tree.o  what uxk compile wrote, to be asked by a process

Hooks: xdp (packets of a device), tc (of a traffic class: TC_ACT_... as verdicts), socket (how many bytes to keep),
cgroup_skb/ingress and cgroup_skb/egress (0 drops, all else passes), syscall (bytes from whoever runs it).
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
    size = "how many bytes it decides on; known of what uxk compile wrote"
    bpf.add_argument("-m", "--memory", default="", metavar="BYTES", help=size)
    bpf.add_argument("--read-only", action="store_true", help="the program may not write to them")
    bpf.add_argument("--section", default="", metavar="NAME", help="of an object: the section, or the function")
    bpf.add_argument("--hook", default="xdp", metavar="HOOK", help="where Linux asks it (default: xdp)")
    bpf.add_argument("--name", default="decide", help="what Linux calls it (default: decide)")
    bpf.add_argument("--license", default="GPL", metavar="TEXT", help="Linux asks for it (default: GPL)")
    bpf.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    bpf.set_defaults(handler=_bpf)


def _help(args: argparse.Namespace) -> int:
    raise UsageExit("needs a part: bpf; `uxk export --help` shows it")


def _bpf(args: argparse.Namespace) -> int:
    from uxk.bpf.export import export

    program = _program(args)
    size_bytes = program.spec.memory.size_bytes if program.spec.memory else 0
    data = export(program, args.hook, name=args.name, license=args.license)
    Path(args.output).write_bytes(data)
    if args.json:
        print_json({"output": args.output, "bytes": len(data), "hook": args.hook, "memory_bytes": size_bytes})
    return GOOD


def _program(args: argparse.Namespace) -> Program:
    """Out of a file; what stands beside one of uxk compile says what its memory is."""
    from uxk.bpf.helpers import with_kernel
    from uxk.bpf.program import Program
    from uxk.bpf.proto import body

    if not args.memory and Path(args.file).suffix == ".bpf" and Path(args.file).with_suffix(".json").exists():
        from uxk.bpf.compiler.compile import load

        return load(args.file).program()
    code, maps = load_program(args.file, args.section)
    memory = memory_of(args.memory)
    spec = body(len(memory), writable=not args.read_only)
    helpers = with_kernel(lambda: 0, lambda: 0)  # Linux has its own
    return Program(code, spec, maps=maps, helpers=helpers, name=args.file)
