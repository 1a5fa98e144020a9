"""``uxk train``: an agent learns from a dataset log, and what it has learned becomes a file for a warm start.

Exit codes: 0 good, 1 it failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from uxk.cli.common import GOOD, Subparsers, UsageExit, add_verb, clean, note, param_texts, print_json

if TYPE_CHECKING:
    from uxk.bridges.datalog.train import Training

_EPILOG: Final = """\
OUT is what `warm=OUT` takes, wherever parameters of a module are given: uxk modprobe gc warm=OUT, params of a scenario,
uxk run lfs-gc --policy uxk_gc:warm=OUT. It is for the same module, state version, and versions of Python and libraries;
another one is refused. It may be a pickle: it is code, to be trusted like the module itself.
"""


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(subparsers, "train", train, help="train an agent from a dataset log", json=True, epilog=_EPILOG)
    parser.add_argument("agent", metavar="AGENT", help="a module, or a file with one")
    parser.add_argument(
        "-p", "--param", action="append", default=[], metavar="NAME=VALUE", help="a parameter; also placement, warm"
    )
    parser.add_argument("--from", dest="log", required=True, metavar="DIR", help="the dataset log")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="file to write")
    parser.add_argument("--run", type=int, default=0, metavar="N", help="one of the runs in the log (default: all)")
    parser.add_argument("--share", type=float, default=1.0, metavar="F", help="of each run's time, from its beginning")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the training (default: 0)")
    parser.add_argument("--damaged", action="store_true", help="leave out what is damaged in the log, and go on")


def train(args: argparse.Namespace) -> int:
    """Trains, writes OUT, and tells what from."""
    import trio

    from uxk.bridges.datalog.reader import DataLog
    from uxk.bridges.datalog.train import Part, save
    from uxk.bridges.datalog.train import train as train_agent

    if not 0 < args.share <= 1:
        raise UsageExit(f"--share {args.share}: expected more than 0, at most 1")
    part = Part(run=args.run, train_ppm=max(1, round(args.share * 1_000_000)))

    async def work() -> Training:
        return await train_agent(
            args.agent, DataLog(args.log), params=param_texts(args.param), part=part, seed=args.seed,
            damaged=args.damaged,
        )  # fmt: skip

    found = trio.run(work)
    size = save(found, args.out)
    if args.json:
        told = {name: value for name, value in found._asdict().items() if name != "checkpoint"}
        print_json({**told, "out": args.out, "out_bytes": size})
        return GOOD
    print(clean(f"{found.module}: {found.publications} publications, {found.rows} rows of {found.runs} run"
                f"{'' if found.runs == 1 else 's'}, {found.from_ns} to {found.to_ns} ns"))  # fmt: skip
    for name, value in sorted(found.attributes.items()):
        print(clean(f"  {name} {value}"))
    print(clean(f"{args.out}: {size} bytes; start warm with warm={args.out}"))
    if found.skipped:
        note(f"{found.skipped} publications found no room in the agent's queue")
    return GOOD
