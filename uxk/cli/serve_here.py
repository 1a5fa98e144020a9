"""``uxk serve`` without ``-k``: a kernel that lives as long as the command."""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from uxk.cli.boot import stop_signals
from uxk.cli.common import GOOD, clean, note
from uxk.cli.serve_line import LOOK_S, tell, where_attribute
from uxk.cli.serve_params import NBD, NVME_TCP
from uxk.errors import NoSuchModule, UsageError, UxkError
from uxk.limits import ARENA_BYTES_DEFAULT, ARENA_PAGE_BYTES

if TYPE_CHECKING:
    from uxk.kernel.catalog import Catalog, ExtensionClass
    from uxk.kernel.devices import Device
    from uxk.kernel.kernel import Kernel
    from uxk.kernel.module import Module

_NOTE_S: Final = 1
_DISK_TIMEOUT_S: Final = 10
"""A driver may need a moment after it is loaded until its disks are there."""


async def serve_here(args: argparse.Namespace, params: Mapping[str, str], export: Mapping[str, str]) -> int:
    """Boots, loads the driver and the export, and serves until Ctrl-C or until the export has ended."""
    import trio

    import uxk
    from uxk.bridges.control_server import ControlServer
    from uxk.core.modprobe_conf import ModprobeConfig
    from uxk.faults.text import LiveFaults
    from uxk.kernel.catalog import Catalog
    from uxk.subsystems.blk.layer import BlockLayer

    name = NBD if args.protocol == "nbd" else NVME_TCP
    catalog = Catalog(ModprobeConfig())
    file = args.module.endswith(".py") or os.sep in args.module
    driver_class = _found(catalog, args.module, file=file)
    arena_bytes = args.arena or arena_for((driver_class, params), (catalog.get(name), export))
    with stop_signals() as stop:
        async with (
            uxk.Kernel(seed=args.seed or 0, clock="real", arena_bytes=arena_bytes) as kernel,
            trio.open_nursery() as nursery,
        ):
            LiveFaults(kernel)
            BlockLayer(kernel)
            if args.socket:
                await nursery.start(ControlServer(kernel, args.socket).serve)
            loaded = kernel.insmod(driver_class, **params) if file else kernel.modprobe(args.module, **params)
            device = await _device(kernel, await loaded, disk=args.protocol == "nbd")
            server = await kernel.modprobe(name, **{"device": device.name, **export})
            nqn = str(kernel.sysfs.read(f"/sys/module/{name}/parameters/nqn")) if name == NVME_TCP else ""
            tell(args, kernel.sysfs.read(where_attribute(args, server.name)), nqn, device.name)
            while not stop.is_set():
                with trio.move_on_after(LOOK_S):
                    await stop.wait()
                if server.name not in kernel.agents:
                    raise UxkError(f"{server.name} has ended: {_last_words(kernel, server.name)}")
            nursery.cancel_scope.cancel()
    return GOOD


def _found(catalog: Catalog, module: str, *, file: bool) -> ExtensionClass:
    """The driver by name, or from its file.  NoSuchModule says what else a name may be."""
    if file:
        return catalog.get(catalog.add_file(module).name)
    try:
        return catalog.get(module)
    except NoSuchModule as exc:
        if module[-1:].isdigit():
            raise NoSuchModule(f"{exc} (a device? those are of a running kernel: -k SOCKET)") from None
        raise


def arena_for(*wanted: tuple[ExtensionClass, Mapping[str, object]]) -> int:
    """Bytes of an arena in which these can be loaded with such parameters, and as much as usual is left for others.

    It is address space until it is used.  Raises ParamError.
    """
    from uxk.core.budget import memory_bytes
    from uxk.core.params import parse_params
    from uxk.kernel.catalog import checked

    total_bytes = ARENA_BYTES_DEFAULT
    for cls, given in wanted:
        manifest = checked(cls)
        total_bytes += memory_bytes(manifest, parse_params(manifest.name, manifest.params, given))
    return -(-total_bytes // ARENA_PAGE_BYTES) * ARENA_PAGE_BYTES


async def _device(kernel: Kernel, driver: Module, *, disk: bool) -> Device:
    """The module's first disk; or, if that is not wanted, its own device.  UsageError if there is none in time."""
    import trio

    what = "disk (a device of class block with capacity_bytes)" if disk else "device of class block"
    kind = kernel.agents[driver.name].manifest.driver_class
    if kind != "block":
        raise UsageError(f"{driver.name}: has no {what}: it is of class {kind or 'none'}", errno=errno.ENODEV)
    with trio.move_on_after(_DISK_TIMEOUT_S):
        late_s = trio.current_time() + _NOTE_S
        while True:
            found = [each for each in kernel.devices.devices.values() if each.agent.name == driver.name]
            if disk:
                found = [each for each in found if each.properties.get("capacity_bytes", "0") != "0"]
            if found:
                return min(found, key=lambda each: each.number)
            if trio.current_time() > late_s:
                note(f"{clean(driver.name)}: waiting for its {'disk' if disk else 'device'}")
                late_s = trio.current_time() + _DISK_TIMEOUT_S
            await trio.sleep(0.005)
    raise UsageError(f"{driver.name}: has no {what}, after {_DISK_TIMEOUT_S} seconds", errno=errno.ENODEV)


def _last_words(kernel: Kernel, name: str) -> str:
    found = kernel.kmsg.records(source=name)
    return found[-1].text if found else "it was unloaded"
