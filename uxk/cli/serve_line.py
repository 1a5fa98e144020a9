"""``uxk serve``: what it prints when clients can connect."""

from __future__ import annotations

import argparse
import os
from typing import Final

from uxk.cli.common import clean, note, print_json

LOOK_S: Final = 1
"""How often it is seen to that the export is still there."""


def attributes_of(instance: str) -> str:
    """Where a module publishes."""
    return f"/sys/module/{instance.replace('-', '_')}/attributes"


def where_attribute(args: argparse.Namespace, instance: str) -> str:
    """The attribute that tells where clients find the export."""
    return f"{attributes_of(instance)}/{'uri' if args.protocol == 'nbd' else 'address'}"


def warn(args: argparse.Namespace) -> None:
    """Says so if the whole network may come in: that is rarely meant, and neither protocol asks who it is by itself."""
    host = args.tcp.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if args.tcp and host in ("", "0.0.0.0", "::") and not args.tls_ca:
        note("listening on all addresses: whoever reaches this machine may read and write the disk")


def tell(args: argparse.Namespace, where: str, nqn: str, device: str) -> None:
    """Where clients find the export: a line of text or JSON."""
    warn(args)
    if args.json:
        what = {"uri": where} if args.protocol == "nbd" else {"address": where, "nqn": nqn}
        print_json({**what, "device": device, "pid": os.getpid()})
    elif args.protocol == "nbd":
        print(f"uxk: serving {clean(where)}", flush=True)
    else:
        print(f"uxk: serving {clean(nqn)} at {clean(where)}", flush=True)
