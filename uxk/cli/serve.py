"""``uxk serve``: a disk of a kernel for clients of the world outside, over NBD or NVMe/TCP, until Ctrl-C."""

from __future__ import annotations

import argparse
import os
from typing import Final

from uxk.cli.boot import arena_bytes
from uxk.cli.common import Subparsers, UsageExit, add_verb, param_texts
from uxk.cli.serve_params import export_params, place_of, way_out

_EPILOG: Final = """\
examples:
  uxk serve nbd nvme -p size=256MiB --unix /tmp/disk.sock
  uxk serve nbd mydriver.py --tcp 127.0.0.1:10809 --export scratch
  uxk serve nvme-tcp nvme -p size=256MiB --tcp 127.0.0.1:4420 --nqn nqn.2026-11.example.uxk:one
  uxk serve nbd nvme -p size=8GiB -p backing=sparse:disk.img --unix /tmp/disk.sock
  uxk -k kernel.socket serve nbd nvme0n1 --unix /tmp/disk.sock

$UXK_SOCKET counts as -k: MODULE is a device of that kernel then. `env -u UXK_SOCKET uxk serve ...` boots another.
Whoever reaches a TCP port may read and write; only TLS with --tls-ca asks who it is.
"""


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(
        subparsers, "serve", serve, kernel=True, json=True, epilog=_EPILOG,
        help="export a disk over NBD or NVMe/TCP, until Ctrl-C",
    )  # fmt: skip
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("protocol", choices=("nbd", "nvme-tcp"))
    parser.add_argument(
        "module", metavar="MODULE", help="a driver to load, by name or as a .py file; with -k a device that is there"
    )
    parser.add_argument(
        "-p", "--param", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the driver"
    )
    parser.add_argument(
        "-e", "--export-param", action="append", default=[], metavar="NAME=VALUE",
        help="a parameter of the export: see `uxk modinfo nbd_server` or nvmet_tcp",
    )  # fmt: skip
    parser.add_argument("--tcp", metavar="HOST:PORT", default="", help="where to listen; port 0 is any free one")
    nbd = parser.add_argument_group("nbd")
    nbd.add_argument("--unix", metavar="PATH", default="", help="a Unix socket instead, for this user only")
    nbd.add_argument("--export", metavar="NAME", default="", help="the export's name (default: the disk's)")
    nbd.add_argument("--read-only", action="store_true", help="refuse every change")
    nbd.add_argument("--tls", choices=("off", "allow", "require"), help="default: require with a certificate, else off")
    nbd.add_argument("--tls-cert", metavar="FILE", default="", help="PEM file of the server's certificate chain")
    nbd.add_argument("--tls-key", metavar="FILE", default="", help="PEM file of its key, if that is another file")
    nbd.add_argument("--tls-ca", metavar="FILE", default="", help="clients must show a certificate of this authority")
    nvme = parser.add_argument_group("nvme-tcp")
    nvme.add_argument("--nqn", default="", help="NVMe qualified name of the subsystem")
    nvme.add_argument(
        "--host", action="append", default=[], metavar="NQN", help="a host that may connect (default: all)"
    )
    own = parser.add_argument_group("without -k")
    own.add_argument("--socket", metavar="PATH", help="listen for `uxk -k PATH`, too")
    own.add_argument("--seed", type=int, metavar="N", help="seed of the run (default: 0)")
    own.add_argument(
        "--arena", type=arena_bytes, metavar="SIZE",
        help="memory that modules can be granted altogether (default: what these ask for, and 1GiB)",
    )  # fmt: skip


def serve(args: argparse.Namespace) -> int:
    """Prints one line when clients can connect."""
    import trio

    export = export_params(args)
    if args.kernel:
        if way_out(args) and not os.path.exists(args.kernel):
            raise UsageExit(f"{place_of(args)}: no kernel there{way_out(args)}")
        from uxk.cli.serve_there import serve_there

        own = {"-p": args.param, "--socket": args.socket, "--seed": args.seed is not None, "--arena": args.arena}
        if useless := [option for option, given in own.items() if given]:
            raise UsageExit(
                f"{', '.join(useless)}: for a kernel of its own; with {place_of(args)} the device is there already"
                f"{way_out(args)}"
            )
        return trio.run(serve_there, args, export)
    from uxk.cli.serve_here import serve_here

    return trio.run(serve_here, args, param_texts(args.param), export)
