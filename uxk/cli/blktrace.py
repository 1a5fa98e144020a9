"""``uxk blktrace``: records what goes through a disk's queue, for ``blkparse`` and ``btt``."""

from __future__ import annotations

import argparse
import base64
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from uxk.cli.common import FAILED, GOOD, Subparsers, UsageExit, add_verb, disk_folder, note, print_json, with_kernel
from uxk.errors import ProtocolError

if TYPE_CHECKING:
    from uxk.bridges.control_client import ControlClient

_IDLE_S: Final = 0.05
"""Between two looks at a trace that has nothing new."""
_RECORD_BYTES: Final = 48
_CPUS_MAX: Final = 1024


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(
        subparsers, "blktrace", blktrace, kernel=True, json=True,
        help="record the events of a disk's queue for blkparse and btt",
        epilog="Writes BASE.blktrace.N for each CPU; `blkparse -i BASE` reads them. Stops after SECONDS, or at Ctrl-C.",
    )  # fmt: skip
    parser.add_argument("-d", "--dev", metavar="DEVICE", required=True, help="the disk, as /sys/block names it")
    parser.add_argument("-o", "--output", metavar="BASE", help="where to write (default: the disk's name)")
    parser.add_argument("-w", "--stopwatch", metavar="SECONDS", type=float, default=None, help="stop after this time")


def blktrace(args: argparse.Namespace) -> int:
    """Needs a running kernel.  Exit code 1 if events were dropped."""
    if args.stopwatch is not None and not 0 < args.stopwatch < 1e9:
        raise UsageExit(f"-w {args.stopwatch}: expected a positive number of seconds")
    if "/" in args.dev:
        raise UsageExit(f"-d {args.dev}: expected a name as in /sys/block")
    base = args.output or args.dev

    async def record(kernel: ControlClient) -> int:
        folder = f"{await disk_folder(kernel, args.dev)}/trace"
        cpus = int(await kernel.read(f"{folder}/cpus"))
        if not 1 <= cpus <= _CPUS_MAX:
            raise ProtocolError(f"{folder}/cpus: {cpus}, expected 1..{_CPUS_MAX}")
        with ExitStack() as stack:
            files = _files(stack, base, cpus)
            await kernel.write(f"{folder}/enable", "1")
            try:
                await _follow(kernel, folder, files, args.stopwatch)
            finally:
                await kernel.write(f"{folder}/enable", "0")
            while await _fetch(kernel, folder, files):
                pass
            sizes = [file.tell() for file in files]
        return _summary(args.dev, sizes, int(await kernel.read(f"{folder}/dropped")), args.json)

    return with_kernel(args, record)


def _files(stack: ExitStack, base: str, cpus: int) -> list[IO[bytes]]:
    """One for each CPU, made anew; what stood there is lost."""
    return [stack.enter_context(Path(f"{base}.blktrace.{cpu}").open("wb")) for cpu in range(cpus)]


async def _follow(kernel: ControlClient, folder: str, files: list[IO[bytes]], seconds: float | None) -> None:
    """Fetches events until the time is over or a signal comes."""
    import trio

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            stop = trio.Event()

            async def until_signal() -> None:
                async for _ in signals:
                    stop.set()

            nursery.start_soon(until_signal)
            note("recording; Ctrl-C ends it")
            deadline = trio.current_time() + seconds if seconds is not None else None
            # A request to the kernel is never cancelled: that would cost the connection.
            while not stop.is_set() and (deadline is None or trio.current_time() < deadline):
                if not await _fetch(kernel, folder, files):
                    with trio.move_on_after(_IDLE_S):
                        await stop.wait()
            nursery.cancel_scope.cancel()


async def _fetch(kernel: ControlClient, folder: str, files: list[IO[bytes]]) -> bool:
    """Takes the next events; False if there are none."""
    text = await kernel.read(f"{folder}/pipe")
    if not text:
        return False
    try:
        number, cpu, events = text.split(" ", 2)
        files[int(cpu)].write(base64.b85decode(events))
    except (ValueError, IndexError):
        raise ProtocolError(f"{folder}/pipe: {text[:40]!r}, expected a number, a CPU and events") from None
    await kernel.write(f"{folder}/pipe", number)
    return True


def _summary(device: str, sizes: list[int], dropped: int, json: bool) -> int:
    """As blktrace ends: how much came from each CPU."""
    if json:
        print_json({"device": device, "bytes": sizes, "dropped": dropped})
    else:
        print(f"=== {device} ===")
        for cpu, size in enumerate(sizes):
            print(f"  CPU {cpu:>2}: {size // _RECORD_BYTES:>20} events, {-(-size >> 10):>8} KiB data")
        print(f"  Total:  {sum(sizes) // _RECORD_BYTES:>20} events (dropped {dropped}), {sum(sizes) >> 10:>8} KiB data")
    return FAILED if dropped else GOOD
