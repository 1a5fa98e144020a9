"""``uxk mount``, ``uxk umount``: a running kernel's tree as files."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from uxk.cli.common import FAILED, GOOD, Subparsers, add_verb, complain, print_json, socket_of

if TYPE_CHECKING:
    import trio

_TIMEOUT_S: Final = 10


def register(subparsers: Subparsers) -> None:
    """Adds the verbs."""
    parser = add_verb(
        subparsers, "mount", mount, kernel=True, help="show the kernel's tree as files in DIR, until Ctrl-C", json=True,
        epilog="Needs /dev/fuse and pyfuse3: `pip install 'uxk[fuse]'`, after fuse3, libfuse3-dev and pkg-config. "
        "It ends, and DIR is as before, by a signal, by `uxk umount DIR`, and when the kernel goes (exit code 1).",
    )  # fmt: skip
    parser.add_argument("folder", metavar="DIR", help="an existing folder, best an empty one")
    parser.add_argument(
        "--allow-other", action="store_true",
        help="let other users in, as modes allow (root may; others if /etc/fuse.conf says user_allow_other)",
    )  # fmt: skip
    parser.add_argument(
        "--page-sizes", action="store_true",
        help="give each attribute the size of a page, as sysfs does, not that of its text",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=_seconds, default=_TIMEOUT_S, metavar="SECONDS",
        help=f"what takes the kernel or a driver longer is ETIMEDOUT (default: {_TIMEOUT_S})",
    )  # fmt: skip
    parser = add_verb(subparsers, "umount", umount, help="end a mount")
    parser.add_argument("-l", "--lazy", action="store_true", help="detach it even if it is in use")
    parser.add_argument("-f", "--force", action="store_true", help="end it even if the process that serves it hangs")
    parser.add_argument("folder", metavar="DIR")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, more than 0 and at most 3600")
    return value


def mount(args: argparse.Namespace) -> int:
    """Prints one line when DIR can be used."""
    import trio

    return trio.run(_serve, args, socket_of(args))


async def _serve(args: argparse.Namespace, path: str) -> int:
    import trio

    from uxk.bridges.datalog.face import with_datasets
    from uxk.bridges.face.socket import SocketFace
    from uxk.bridges.fuse import Mount
    from uxk.bridges.fuse.life import wait_gone
    from uxk.cli.boot import stop_signals

    async def first(cause: str, wait: Callable[[], Awaitable[None]], nursery: trio.Nursery) -> None:
        await wait()
        causes.append(cause)
        nursery.cancel_scope.cancel()

    causes = list[str]()
    with stop_signals() as stop:
        async with SocketFace(path) as face:
            shown = await with_datasets(face)
            async with Mount(
                shown, args.folder, allow_other=args.allow_other, page_sizes=args.page_sizes, timeout_s=args.timeout
            ) as mounted:
                if args.json:
                    print_json({"folder": mounted.folder, "kernel_pid": face.welcome.pid})
                else:
                    print(f"uxk: mounted at {mounted.folder}", flush=True)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(first, "signal", stop.wait, nursery)
                    nursery.start_soon(first, "unmounted", mounted.wait_unmounted, nursery)
                    nursery.start_soon(first, "kernel", partial(wait_gone, path), nursery)
    if causes[0] == "kernel":
        complain("mount", f"{path}: the kernel is gone; {mounted.folder} is unmounted")
        return FAILED
    return GOOD


def umount(args: argparse.Namespace) -> int:
    """Whichever process serves it."""
    from uxk.bridges.fuse.mountpoint import unmount

    unmount(args.folder, lazy=args.lazy, force=args.force)
    return GOOD
