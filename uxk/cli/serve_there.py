"""``uxk serve`` with ``-k``: a disk of a running kernel, which gets the export as one more module for the time."""

from __future__ import annotations

import argparse
import errno
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from uxk.cli.boot import stop_signals
from uxk.cli.common import GOOD, instead
from uxk.cli.serve_line import LOOK_S, tell, where_attribute
from uxk.cli.serve_params import NBD, NVME_TCP, place_of, way_out
from uxk.errors import TreeError, UsageError, UxkError

if TYPE_CHECKING:
    import trio

    from uxk.bridges.control_client import ControlClient

_DISKS: Final = "/sys/class/block"
_CAPACITY: Final = "CAPACITY_BYTES="


async def serve_there(args: argparse.Namespace, export: Mapping[str, str]) -> int:
    """Loads the export, tells where it is, and unloads it at Ctrl-C."""
    from uxk.bridges.control_client import ControlClient

    with stop_signals() as stop:
        async with ControlClient(args.kernel) as kernel:
            for name in args.module.split(","):
                await _seek(kernel, args, name.strip())
            module = NBD if args.protocol == "nbd" else NVME_TCP
            loaded = {row.name for row in await kernel.lsmod()}
            instance = next(name for name in _names(module) if name not in loaded)
            await kernel.modprobe(module, {"device": args.module, **export}, instance=instance)
            try:
                await _watch(args, kernel, instance, stop)
            finally:
                await _unload(kernel, instance)
    return GOOD


async def _seek(kernel: ControlClient, args: argparse.Namespace, name: str) -> None:
    """UsageError (ENODEV), with what there is instead, if the running kernel has no such disk or controller."""
    try:
        known = [entry.name for entry in await kernel.listdir(_DISKS)]
    except TreeError as exc:
        if exc.errno != errno.ENOENT:
            raise
        known = []
    sizes = {each: await _capacity(kernel, each) for each in known}
    disk = args.protocol == "nbd"
    controller = next((each for each in known if not sizes[each] and each != name and name.startswith(each)), "")
    if not disk and sizes.get(name) and controller:
        raise UsageError(f"{name!r} is a disk: NVMe/TCP exports its controller, {controller!r}", errno=errno.ENODEV)
    if name in known and (sizes[name] or not disk):
        return
    usable = [each for each, size_bytes in sizes.items() if size_bytes or not disk]
    what = f"{name!r} has no blocks" if name in known else f"no device {name!r}"
    raise UsageError(
        f"{what} in the kernel of {place_of(args)}{instead(name, usable)}{way_out(args)}", errno=errno.ENODEV
    )


async def _capacity(kernel: ControlClient, device: str) -> int:
    """In bytes; 0 of what is no disk, or has just gone."""
    with suppress(TreeError):
        for line in (await kernel.read(f"{_DISKS}/{device}/uevent")).splitlines():
            if line.startswith(_CAPACITY):
                return int(line.removeprefix(_CAPACITY))
    return 0


async def _watch(args: argparse.Namespace, kernel: ControlClient, instance: str, stop: trio.Event) -> None:
    """Tells where the export is, and waits for the end."""
    import trio

    path = where_attribute(args, instance)
    nqn = await kernel.read(f"/sys/module/{instance}/parameters/nqn") if args.protocol != "nbd" else ""
    tell(args, await kernel.read(path), nqn, args.module)
    while not stop.is_set():
        with trio.move_on_after(LOOK_S):
            await stop.wait()
        if not stop.is_set():
            try:
                await kernel.read(path)
            except UxkError as exc:
                if exc.errno != errno.ENOENT:
                    raise
                raise UxkError(f"{instance} has ended: see `uxk dmesg`") from None


async def _unload(kernel: ControlClient, instance: str) -> None:
    """Takes the export away, whatever has happened; somebody else may have done so, or the kernel may be gone."""
    import trio

    with trio.CancelScope(shield=True), trio.move_on_after(10), suppress(UxkError):
        await kernel.rmmod(instance)


def _names(module: str) -> Iterator[str]:
    """``nbd_server``, then ``nbd_server2`` and so on."""
    yield module
    for number in range(2, 10_000):
        yield f"{module}{number}"
