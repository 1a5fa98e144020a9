"""``uxk upgrade`` and ``uxk restart``: another build of a running module, or the same one, without losing a request."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from uxk.cli.common import GOOD, Subparsers, UsageExit, add_verb, clean, param_texts, socket_of, with_kernel

if TYPE_CHECKING:
    from uxk.bridges.control_client import ControlClient

_EPILOG = """\
The new build is started beside the old one and takes over its state; requests wait until it is ready. If it does not
become ready, or fails its probation, the old one goes on; exit code 1 says so. A VERSION is looked for among what the
kernel has loaded, installed packages, files beside the modprobe.d files, and builds offered; a PATH has a '/' or ends
in .py or .toml, and may be a package's folder.
"""


def register(subparsers: Subparsers) -> None:
    """Adds the verbs."""
    parser = add_verb(
        subparsers, "upgrade", upgrade, kernel=True, help="replace the build of a running module", epilog=_EPILOG
    )
    parser.add_argument("name", metavar="NAME", help="a loaded instance")
    parser.add_argument("--to", required=True, metavar="PATH|VERSION", help="a file, a package's folder, or a version")
    _trial(parser)
    parser = add_verb(
        subparsers, "restart", restart, kernel=True, help="restart a running module, keeping its state", epilog=_EPILOG
    )
    parser.add_argument("name", metavar="NAME", help="a loaded instance")
    _trial(parser)


def _trial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--probation", metavar="TIME", help="how long the new instance is watched (default: 10ms)")
    parser.add_argument("--quiesce", metavar="TIME", help="limit for requests in flight (default: 1s)")
    parser.add_argument("--kpi", choices=("latency",), default="", help="roll back if this gets worse by over 10 %%")
    parser.add_argument("params", metavar="PARAM=VALUE", nargs="*", help="parameters that change; the others stay")


def upgrade(args: argparse.Namespace) -> int:
    """Prints the versions."""
    return _replace(args, args.to)


def restart(args: argparse.Namespace) -> int:
    """As an upgrade to the same build."""
    return _replace(args, "")


def _replace(args: argparse.Namespace, to: str) -> int:
    params = param_texts(args.params)
    probation_ns, quiesce_ns = time_ns("--probation", args.probation), time_ns("--quiesce", args.quiesce)
    socket_of(args)

    async def replace(kernel: ControlClient) -> str:
        return await kernel.upgrade(
            args.name, to, params, probation_ns=probation_ns, quiesce_ns=quiesce_ns, kpi=args.kpi
        )

    version = with_kernel(args, replace)
    print(f"{clean(args.name)}: version {clean(version)}")
    return GOOD


def time_ns(option: str, text: str | None) -> int | None:
    """``10ms`` as nanoseconds; None for None.  Raises UsageExit."""
    from uxk.core.params import parse_integer

    if text is None:
        return None
    try:
        value = parse_integer(text, "ns")
    except ValueError as exc:
        raise UsageExit(f"{option} {text!r}: {exc}; expected a time, such as 10ms") from None
    if value < 0:
        raise UsageExit(f"{option} {text!r}: expected at least 0")
    return value
