"""``uxk boot``: a kernel in the foreground, reached from other terminals."""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final

from uxk.cli.common import GOOD, Subparsers, add_verb, print_json
from uxk.cli.log_options import add_log_options, log_file
from uxk.core.params import parse_integer
from uxk.limits import ARENA_BYTES_DEFAULT, ARENA_PAGE_BYTES, I64_MAX

if TYPE_CHECKING:
    import trio

    from uxk.kernel.kernel import Kernel

_STOP: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(subparsers, "boot", boot, help="boot a kernel and serve it until Ctrl-C", json=True)
    parser.add_argument("--socket", metavar="PATH", help="where it listens (default: $UXK_SOCKET, or a file of yours)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the run (default: 0)")
    parser.add_argument(
        "--clock", choices=("real", "virtual", "charged"), default="real",
        help="time passes by itself (real, the default), or only while the kernel has work",
    )  # fmt: skip
    parser.add_argument(
        "--arena", type=arena_bytes, default=ARENA_BYTES_DEFAULT, metavar="SIZE",
        help="memory that modules can be granted altogether, for example 4GiB (default: 1GiB)",
    )  # fmt: skip
    add_log_options(parser)
    parser.add_argument("--datasets", metavar="DIR", help="keep what models publish in a dataset log")
    parser.add_argument(
        "--metrics", metavar="[HOST:]PORT", help="serve metrics for Prometheus over HTTP, on 127.0.0.1 unless told"
    )
    parser.add_argument("--modprobe-d", metavar="DIR", help="directory of modprobe.d files")
    parser.add_argument("--load", nargs="+", action="extend", default=[], metavar="NAME", help="modules to load")


def arena_bytes(text: str) -> int:
    """A size in bytes, or with a unit, as an arena can have it: whole pages."""
    try:
        size_bytes = parse_integer(text, "bytes")
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r}: {exc}; expected bytes, for example '4GiB'") from None
    if size_bytes <= 0 or size_bytes % ARENA_PAGE_BYTES or size_bytes > I64_MAX:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a positive multiple of {ARENA_PAGE_BYTES} bytes")
    return size_bytes


def boot(args: argparse.Namespace) -> int:
    """Prints one line with the socket's path when the kernel can be reached."""
    import trio

    return trio.run(_serve, args, args.socket or args.kernel or default_socket())


def default_socket() -> str:
    """In the user's runtime directory, or where temporary files go."""
    folder = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return os.path.join(folder, f"uxk-{os.getuid()}.socket")


async def _serve(args: argparse.Namespace, path: str) -> int:
    import trio

    import uxk
    from uxk.bridges.control_server import ControlServer
    from uxk.bridges.datalog.recorder import DataLogRecorder
    from uxk.bridges.datalog.settings import DataLogSettings
    from uxk.faults.text import LiveFaults
    from uxk.subsystems.blk.layer import BlockLayer

    with stop_signals() as stop, log_file(args) as log, ExitStack() as stack:
        async with uxk.Kernel(
            seed=args.seed, clock=args.clock, arena_bytes=args.arena, modprobe_d=args.modprobe_d
        ) as kernel:
            if log is not None:
                log.follow(kernel)
            if args.datasets is not None:
                stack.enter_context(DataLogRecorder(kernel, DataLogSettings(dir=args.datasets), scenario="boot"))
            BlockLayer(kernel)
            LiveFaults(kernel)
            server = ControlServer(kernel, path)
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve)
                if args.metrics is not None:
                    await _serve_metrics(nursery, kernel, args)
                for name in args.load:
                    await kernel.modprobe(name)
                if args.json:
                    print_json({"socket": str(server.path), "pid": os.getpid()})
                else:
                    print(f"uxk: kernel booted, reach it with -k {server.path}", flush=True)
                await stop.wait()
                nursery.cancel_scope.cancel()
    return GOOD


async def _serve_metrics(nursery: trio.Nursery, kernel: Kernel, args: argparse.Namespace) -> None:
    """Prints a line with the address, if it may be any port."""
    from uxk.bridges.metrics.server import MetricsServer, parse_address

    host, port = parse_address(args.metrics)
    server = MetricsServer(kernel, port, host)
    await nursery.start(server.serve)
    if not args.json:
        shown = f"[{host}]" if ":" in host else host
        print(f"uxk: metrics at http://{shown}:{server.port}/metrics", flush=True)


@contextmanager
def stop_signals() -> Iterator[trio.Event]:
    """An event that is set by the first signal to stop.  The next interrupts whatever runs, a hung module too."""
    import trio

    asked, token = trio.Event(), trio.lowlevel.current_trio_token()
    seen: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt
        token.run_sync_soon(asked.set)

    # nohup has SIGHUP ignored on purpose.
    wanted = [n for n in _STOP if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, on_signal) for number in wanted}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
