"""``uxk lsmod``, ``modprobe``, ``insmod``, ``rmmod``: kmod's verbs with kmod's columns."""

from __future__ import annotations

import argparse
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final, Protocol

from uxk.cli.common import (
    FAILED,
    GOOD,
    Subparsers,
    UsageExit,
    add_verb,
    clean,
    complain,
    error_text,
    note,
    param_texts,
    print_json,
    socket_of,
    with_kernel,
)
from uxk.errors import InUse, NoSuchModule, UxkError

if TYPE_CHECKING:
    from uxk.bridges.control_client import ControlClient
    from uxk.kernel.kernel import Kernel
    from uxk.kernel.module import Module


_PARAMS: Final = "parameters of the module; placement=task or placement=process; cpu_ppm=N at most"


def register(subparsers: Subparsers) -> None:
    """Adds the verbs."""
    add_verb(
        subparsers,
        "lsmod",
        lsmod,
        kernel=True,
        help="list loaded modules, or without -k those that can be loaded",
        json=True,
    )
    trial = "Without -k, the module is tried out in a throw-away kernel."
    parser = add_verb(
        subparsers, "modprobe", modprobe, kernel=True, help="load a module with what it needs, or -r", epilog=trial
    )
    parser.add_argument("-r", "--remove", action="store_true", help="unload NAME and what only it needed")
    parser.add_argument("-i", "--instance", default="", metavar="NAME", help="name of a further instance")
    parser.add_argument("name", metavar="NAME", help="a module or an alias")
    parser.add_argument("params", metavar="PARAM=VALUE", nargs="*", help=_PARAMS)
    parser = add_verb(subparsers, "insmod", insmod, kernel=True, help="load a module from a single file", epilog=trial)
    parser.add_argument("-i", "--instance", default="", metavar="NAME", help="name of a further instance")
    parser.add_argument(
        "file", metavar="FILE", help="a Python file with one extension in it, or a TOML file of a program"
    )
    parser.add_argument("params", metavar="PARAM=VALUE", nargs="*", help=_PARAMS)
    parser = add_verb(subparsers, "rmmod", rmmod, kernel=True, help="unload modules")
    parser.add_argument("names", metavar="NAME", nargs="+")


# --- lsmod ------------------------------------------------------------------------------------------


class Row(Protocol):
    """What a line of lsmod is made of."""

    @property
    def name(self) -> str:
        """The instance's name."""
        ...

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        ...

    @property
    def used_by(self) -> tuple[str, ...]:
        """Who holds it."""
        ...

    @property
    def pid(self) -> int:
        """Process of its own, or 0."""
        ...


def lsmod_text(rows: Iterable[Row]) -> str:
    """kmod's layout (tools/lsmod.c), with a mark behind what runs in a process of its own."""
    lines = ["Module                  Size  Used by"]
    for row in rows:
        line = "%-19s %8d  %d" % (clean(row.name), row.size_bytes, len(row.used_by))  # noqa: UP031
        line = f"{line} {clean(','.join(row.used_by))}" if row.used_by else line
        lines.append(f"{line} [process {row.pid}]" if row.pid else line)
    return "\n".join(lines)


def lsmod(args: argparse.Namespace) -> int:
    """Loaded modules of the running kernel; without one, those that can be loaded."""
    rows: Iterable[Row]
    problems: list[str] = []
    if args.kernel:
        rows = with_kernel(args, lambda kernel: kernel.lsmod())
    else:
        from uxk.kernel.kernel import Kernel

        note("no running kernel (-k): modules that can be loaded, with the memory they would be granted")
        kernel = Kernel()
        rows = kernel.available()
        problems = [text for _, text in sorted(kernel.catalog.broken.items())]
    if args.json:
        print_json(rows)
    else:
        print(lsmod_text(rows))
    for problem in problems:
        complain("lsmod", clean(problem))
    return GOOD


# --- loading ----------------------------------------------------------------------------------------


def modprobe(args: argparse.Namespace) -> int:
    """Loads or, with ``-r``, unloads."""
    params = param_texts(args.params)
    if args.remove:
        if params or args.instance:
            raise UsageExit("-r takes no parameters")
        with_kernel(args, lambda kernel: _remove(kernel, args.name))
        return GOOD
    if args.kernel:
        with_kernel(args, lambda kernel: _load(kernel, args.name, params, args.instance))
        return GOOD
    return trial("modprobe", lambda kernel: kernel.modprobe(args.name, instance=args.instance or None, **params))


def _for_another(params: dict[str, str]) -> dict[str, str]:
    """A file's name as a kernel with another current directory finds it."""
    warm = params.get("warm", "")
    return {**params, "warm": os.path.abspath(warm)} if os.path.exists(warm) else params


async def _load(kernel: ControlClient, name: str, params: dict[str, str], instance: str) -> None:
    """Loads; what is loaded already stays as it is, which whoever gave parameters should know."""
    before = {row.name for row in await kernel.lsmod()} if params else set()
    loaded = await kernel.modprobe(name, _for_another(params), instance=instance)
    if loaded in before:
        note(f"{clean(loaded)}: already loaded, parameters ignored")


def insmod(args: argparse.Namespace) -> int:
    """Loads a file."""
    params = param_texts(args.params)
    if args.kernel:
        with_kernel(args, lambda kernel: kernel.insmod(args.file, _for_another(params), instance=args.instance))
        return GOOD
    return trial("insmod", lambda kernel: kernel.insmod(args.file, instance=args.instance or None, **params))


def trial(verb: str, load: Callable[[Kernel], Awaitable[Module]]) -> int:
    """Loads into a kernel that exists for this only, prints its log, and unloads."""
    import trio

    from uxk.core.kmsg import format_dmesg
    from uxk.kernel.kernel import Kernel

    async def attempt() -> tuple[Kernel, UxkError | None]:
        failure: UxkError | None = None
        async with Kernel() as kernel:
            try:
                await load(kernel)
            except UxkError as exc:
                failure = exc
        return kernel, failure

    note("no running kernel (-k): trial load in a throw-away kernel, unloaded again")
    kernel, failure = trio.run(attempt)
    for record in kernel.kmsg.records():
        print(format_dmesg(record))
    if failure is not None:
        complain(verb, error_text(failure))
        return FAILED
    return GOOD


# --- unloading --------------------------------------------------------------------------------------


async def _remove(kernel: ControlClient, name: str) -> None:
    """What ``modprobe -r`` does: the module, then what it depended on if nobody else uses that (tools/modprobe.c)."""
    wanted = [name]
    while wanted:
        each = wanted.pop(0)
        try:
            depends = (await kernel.modinfo(each)).depends
        except NoSuchModule:  # an instance under a name of its own
            depends = ()
        try:
            await kernel.rmmod(each)
        except (InUse, NoSuchModule):
            if each == name:
                raise
        else:
            wanted += [depend for depend in depends if depend not in wanted]


def rmmod(args: argparse.Namespace) -> int:
    """Unloads each; goes on after one that cannot be unloaded."""
    socket_of(args)

    async def unload(kernel: ControlClient) -> int:
        code = GOOD
        for name in args.names:
            try:
                await kernel.rmmod(name)
            except UxkError as exc:
                complain("rmmod", error_text(exc))
                code = FAILED
        return code

    return with_kernel(args, unload)
