"""``uxk serve``: its options as parameters of the module that exports, and the kernel that they name."""

from __future__ import annotations

import argparse
import os
from typing import Final

from uxk.cli.common import UsageExit, param_texts

NBD: Final = "nbd_server"
NVME_TCP: Final = "nvmet_tcp"


def export_params(args: argparse.Namespace) -> dict[str, str]:
    """The command line as parameters of module nbd_server or nvmet_tcp.  Raises UsageExit."""
    own = _nbd_params(args) if args.protocol == "nbd" else _nvme_tcp_params(args)
    return own | param_texts(args.export_param)


def _nbd_params(args: argparse.Namespace) -> dict[str, str]:
    if bool(args.unix) == bool(args.tcp):
        raise UsageExit("nbd: expected --unix PATH or --tcp HOST:PORT")
    _only_for("nvme-tcp", args, "nqn", "host")
    files = {"unix": args.unix, "tls_cert": args.tls_cert, "tls_key": args.tls_key, "tls_ca": args.tls_ca}
    params = {name: os.path.abspath(path) for name, path in files.items() if path}
    if args.tls == "off":
        if useless := _given(args, "tls_cert", "tls_key", "tls_ca"):
            raise UsageExit(f"--tls off: expected no {useless[0]}")
    elif not args.tls_cert and (useless := _given(args, "tls", "tls_key", "tls_ca")):
        raise UsageExit(f"{useless[0]}: needs --tls-cert, without which nothing is encrypted")
    if args.tls or args.tls_cert:
        params["tls"] = args.tls or "require"
    if args.tcp:
        params["tcp"] = args.tcp
    if args.export:
        params["export"] = args.export
    if args.read_only:
        params["read_only"] = "1"
    return params


def _nvme_tcp_params(args: argparse.Namespace) -> dict[str, str]:
    _only_for("nbd", args, "unix", "export", "read_only", "tls", "tls_cert", "tls_key", "tls_ca")
    host, colon, port = args.tcp.rpartition(":")
    if not colon:
        raise UsageExit(f"nvme-tcp: expected --tcp HOST:PORT{f', got {args.tcp!r}' if args.tcp else ''}")
    for nqn in args.host:
        if not nqn.startswith("nqn."):
            raise UsageExit(f"--host {nqn}: expected the NQN of a host that may connect; --tcp says where to listen")
    params = {"host": host.removeprefix("[").removesuffix("]"), "port": port}
    if args.nqn:
        params["nqn"] = args.nqn
    if args.host:
        params["allow"] = ",".join(args.host)
    return params


def _given(args: argparse.Namespace, *names: str) -> list[str]:
    """Those of the options that the command line has."""
    return [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]


def _only_for(protocol: str, args: argparse.Namespace, *names: str) -> None:
    if given := _given(args, *names):
        raise UsageExit(f"{', '.join(given)}: for {protocol}, not for {args.protocol}")


# --- the running kernel ---


def from_environment(args: argparse.Namespace) -> bool:
    """Whether it is $UXK_SOCKET that names the running kernel."""
    return bool(args.kernel) and args.kernel == os.environ.get("UXK_SOCKET")


def place_of(args: argparse.Namespace) -> str:
    """The running kernel as its user has named it."""
    return f"UXK_SOCKET={args.kernel}" if from_environment(args) else f"-k {args.kernel}"


def way_out(args: argparse.Namespace) -> str:
    """How to get a kernel of one's own, for who has not said ``-k``."""
    return " (a kernel of its own: `env -u UXK_SOCKET uxk serve ...`)" if from_environment(args) else ""
