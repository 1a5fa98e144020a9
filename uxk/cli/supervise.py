"""``uxk supervise``: who looks after whom in a running kernel."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from uxk.cli.common import GOOD, Subparsers, UsageExit, add_verb, clean, print_json, socket_of, with_kernel
from uxk.cli.upgrade import time_ns
from uxk.uapi.supervisor import STRATEGIES, SupervisorSpec

if TYPE_CHECKING:
    from uxk.bridges.control_client import ControlClient

_PATH = "/sys/kernel/supervisors"
_COLUMNS = ("name", "strategy", "state", "restarts", "parent", "children")


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(
        subparsers, "supervise", supervise, kernel=True, json=True,
        help="list supervisors, or put loaded modules under one",
        epilog="Without NAME, lists the supervisors of a running kernel. Children start again in the order given.",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="of the supervisor")
    parser.add_argument("children", metavar="INSTANCE", nargs="*")
    parser.add_argument("-r", "--remove", action="store_true", help="take the supervisor away; its children stay")
    parser.add_argument("--strategy", choices=STRATEGIES, default=STRATEGIES[0], help="(default: one_for_one)")
    parser.add_argument("--max-restarts", type=int, metavar="N", default=3, help="in a period, before it gives up")
    parser.add_argument("--period", metavar="TIME", default="5s", help="(default: 5s)")
    parser.add_argument("--backoff", metavar="TIME", default="1ms", help="doubles in a row (default: 1ms)")
    parser.add_argument("--parent", metavar="NAME", default="", help="the supervisor above it")


def supervise(args: argparse.Namespace) -> int:
    """Lists, adds or removes."""
    socket_of(args)
    if not args.name:
        if args.remove:
            raise UsageExit("-r needs the NAME of a supervisor")
        rows = with_kernel(args, _rows)
        print_json(rows) if args.json else print(_table(rows))
        return GOOD
    if args.remove:
        if args.children:
            raise UsageExit("-r takes no instances")
        with_kernel(args, lambda kernel: kernel.unsupervise(args.name))
        return GOOD
    if not 0 <= args.max_restarts <= 1024:
        raise UsageExit(f"--max-restarts {args.max_restarts}: expected 0 to 1024")
    spec = SupervisorSpec(
        name=args.name, strategy=args.strategy, children=tuple(args.children), max_restarts=args.max_restarts,
        period_ns=time_ns("--period", args.period) or 0, backoff_ns=time_ns("--backoff", args.backoff) or 0,
        parent=args.parent,
    )  # fmt: skip
    with_kernel(args, lambda kernel: kernel.supervise(spec))
    return GOOD


async def _rows(kernel: ControlClient) -> list[dict[str, str]]:
    if "supervisors" not in {entry.name for entry in await kernel.listdir("/sys/kernel")}:
        return []
    rows = []
    for entry in await kernel.listdir(_PATH):
        row = {"name": entry.name}
        for column in _COLUMNS[1:]:
            row[column] = " ".join((await kernel.read(f"{_PATH}/{entry.name}/{column}")).split())
        rows.append(row)
    return rows


def _table(rows: list[dict[str, str]]) -> str:
    lines = ["Supervisor          Strategy      State       Restarts  Parent        Children"]
    lines += [
        f"{clean(row['name']):<19} {row['strategy']:<13} {row['state']:<11} {row['restarts']:>8}  "
        f"{clean(row['parent']) or '-':<13} {clean(row['children'])}".rstrip()
        for row in rows
    ]
    return "\n".join(lines)
