"""``uxk serve``: a disk of a kernel for clients of the world outside, over NBD or NVMe/TCP, until Ctrl-C."""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from uxk.cli.boot import arena_bytes, stop_signals
from uxk.cli.common import GOOD, Subparsers, UsageExit, add_verb, clean, param_texts, print_json
from uxk.errors import UsageError, UxkError
from uxk.limits import ARENA_BYTES_DEFAULT

if TYPE_CHECKING:
    import trio

    from uxk.bridges.control_client import ControlClient
    from uxk.kernel.devices import Device
    from uxk.kernel.kernel import Kernel
    from uxk.kernel.module import Module

NBD: Final = "nbd_server"
NVME_TCP: Final = "nvmet_tcp"
_DISK_TIMEOUT_S: Final = 10
"""A driver may need a moment after it is loaded until its disks are there."""
_LOOK_S: Final = 1
"""How often it is seen to that the export is still there."""

_EPILOG: Final = """\
examples:
  uxk serve nbd nvme -p size=256MiB --unix /tmp/disk.sock
  uxk serve nbd mydriver.py --tcp 127.0.0.1:10809 --export scratch
  uxk serve nvme-tcp nvme -p size=256MiB --tcp 127.0.0.1:4420 --nqn nqn.2026-11.example.uxk:one
  uxk serve nbd nvme -p size=8GiB -p backing=sparse:disk.img --arena 9GiB --unix /tmp/disk.sock
  uxk -k kernel.socket serve nbd nvme0n1 --unix /tmp/disk.sock
"""


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(
        subparsers, "serve", serve, kernel=True, json=True, epilog=_EPILOG,
        help="export a disk over NBD or NVMe/TCP, until Ctrl-C",
    )  # fmt: skip
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("protocol", choices=("nbd", "nvme-tcp"))
    parser.add_argument(
        "module", metavar="MODULE", help="a driver to load, by name or as a .py file; with -k a device that is there"
    )
    parser.add_argument(
        "-p", "--param", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the driver"
    )
    parser.add_argument(
        "-e", "--export-param", action="append", default=[], metavar="NAME=VALUE",
        help="a parameter of the export: see `uxk modinfo nbd_server` or nvmet_tcp",
    )  # fmt: skip
    parser.add_argument("--tcp", metavar="HOST:PORT", default="", help="where to listen; port 0 is any free one")
    nbd = parser.add_argument_group("nbd")
    nbd.add_argument("--unix", metavar="PATH", default="", help="a Unix socket instead, for this user only")
    nbd.add_argument("--export", metavar="NAME", default="", help="the export's name (default: the disk's)")
    nbd.add_argument("--read-only", action="store_true", help="refuse every change")
    nbd.add_argument("--tls", choices=("off", "allow", "require"), help="default: require with a certificate, else off")
    nbd.add_argument("--tls-cert", metavar="FILE", default="", help="PEM file of the server's certificate chain")
    nbd.add_argument("--tls-key", metavar="FILE", default="", help="PEM file of its key, if that is another file")
    nbd.add_argument("--tls-ca", metavar="FILE", default="", help="clients must show a certificate of this authority")
    nvme = parser.add_argument_group("nvme-tcp")
    nvme.add_argument("--nqn", default="", help="NVMe qualified name of the subsystem")
    nvme.add_argument(
        "--host", action="append", default=[], metavar="NQN", help="a host that may connect (default: all)"
    )
    own = parser.add_argument_group("without -k")
    own.add_argument("--socket", metavar="PATH", help="listen for `uxk -k PATH`, too")
    own.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the run (default: 0)")
    own.add_argument(
        "--arena", type=arena_bytes, default=ARENA_BYTES_DEFAULT, metavar="SIZE",
        help="memory that modules can be granted altogether (default: 1GiB)",
    )  # fmt: skip


def serve(args: argparse.Namespace) -> int:
    """Prints one line when clients can connect."""
    import trio

    params = nbd_params(args) if args.protocol == "nbd" else nvme_tcp_params(args)
    if args.kernel:
        if args.param or args.socket:
            raise UsageExit("-p and --socket are for a kernel of its own; with -k the device is there already")
        return trio.run(_serve_there, args, params)
    return trio.run(_serve_here, args, param_texts(args.param), params)


# --- parameters of the export -----------------------------------------------------------------------


def nbd_params(args: argparse.Namespace) -> dict[str, str]:
    """The command line as parameters of module nbd_server.  Raises UsageExit."""
    if bool(args.unix) == bool(args.tcp):
        raise UsageExit("nbd: expected --unix PATH or --tcp HOST:PORT")
    if args.nqn or args.host:
        raise UsageExit("--nqn and --host are for nvme-tcp")
    files = {"unix": args.unix, "tls_cert": args.tls_cert, "tls_key": args.tls_key, "tls_ca": args.tls_ca}
    params = {name: os.path.abspath(path) for name, path in files.items() if path}
    if args.tls and args.tls != "off" and not args.tls_cert:
        raise UsageExit(f"--tls {args.tls}: needs --tls-cert")
    if args.tls or args.tls_cert:
        params["tls"] = args.tls or "require"
    if args.tcp:
        params["tcp"] = args.tcp
    if args.export:
        params["export"] = args.export
    if args.read_only:
        params["read_only"] = "1"
    return params | param_texts(args.export_param)


def nvme_tcp_params(args: argparse.Namespace) -> dict[str, str]:
    """The command line as parameters of module nvmet_tcp.  Raises UsageExit."""
    host, colon, port = args.tcp.rpartition(":")
    if not colon:
        raise UsageExit("nvme-tcp: expected --tcp HOST:PORT")
    if args.unix or args.export or args.read_only or args.tls or args.tls_cert:
        raise UsageExit("--unix, --export, --read-only and --tls are for nbd")
    params = {"host": host.removeprefix("[").removesuffix("]"), "port": port}
    if args.nqn:
        params["nqn"] = args.nqn
    if args.host:
        params["allow"] = ",".join(args.host)
    return params | param_texts(args.export_param)


def line_of(protocol: str, uri: str, nqn: str = "") -> str:
    """What is printed: where clients find the export."""
    return f"uxk: serving {clean(uri)}" if protocol == "nbd" else f"uxk: serving {clean(nqn)} at {clean(uri)}"


def _tell(args: argparse.Namespace, where: str, nqn: str, device: str) -> None:
    if args.json:
        what = {"uri": where} if args.protocol == "nbd" else {"address": where, "nqn": nqn}
        print_json({**what, "device": device, "pid": os.getpid()})
    else:
        print(line_of(args.protocol, where, nqn), flush=True)


def _attribute(args: argparse.Namespace, instance: str) -> str:
    folder = f"/sys/module/{instance.replace('-', '_')}/attributes"
    return f"{folder}/{'uri' if args.protocol == 'nbd' else 'address'}"


# --- a kernel of its own ------------------------------------------------------------------------------


async def _serve_here(args: argparse.Namespace, params: Mapping[str, str], export: Mapping[str, str]) -> int:
    import trio

    import uxk
    from uxk.bridges.control_server import ControlServer
    from uxk.faults.text import LiveFaults
    from uxk.subsystems.blk.layer import BlockLayer

    with stop_signals() as stop:
        async with (
            uxk.Kernel(seed=args.seed, clock="real", arena_bytes=args.arena) as kernel,
            trio.open_nursery() as nursery,
        ):
            LiveFaults(kernel)
            BlockLayer(kernel)
            if args.socket:
                await nursery.start(ControlServer(kernel, args.socket).serve)
            driver = await _load(kernel, args.module, params)
            device = await _device(kernel, driver, disk=args.protocol == "nbd")
            name = NBD if args.protocol == "nbd" else NVME_TCP
            server = await kernel.modprobe(name, **{"device": device.name, **export})
            nqn = str(kernel.sysfs.read(f"/sys/module/{name}/parameters/nqn")) if name == NVME_TCP else ""
            _tell(args, kernel.sysfs.read(_attribute(args, server.name)), nqn, device.name)
            while not stop.is_set():
                with trio.move_on_after(_LOOK_S):
                    await stop.wait()
                if server.name not in kernel.agents:
                    raise UxkError(f"{server.name} has ended: {_last_words(kernel, server.name)}")
            nursery.cancel_scope.cancel()
    return GOOD


async def _load(kernel: Kernel, module: str, params: Mapping[str, str]) -> Module:
    """A module by name, or by the path of its file."""
    if module.endswith(".py") or os.sep in module:
        return await kernel.insmod(module, **params)
    return await kernel.modprobe(module, **params)


async def _device(kernel: Kernel, driver: Module, *, disk: bool) -> Device:
    """The module's first disk; or, if that is not wanted, its own device.  UsageError if there is none in time."""
    import trio

    with trio.move_on_after(_DISK_TIMEOUT_S):
        while True:
            found = [each for each in kernel.devices.devices.values() if each.agent.name == driver.name]
            if disk:
                found = [each for each in found if each.properties.get("capacity_bytes", "0") != "0"]
            if found:
                return min(found, key=lambda each: each.number)
            await trio.sleep(0.005)
    what = "disk (a device with capacity_bytes)" if disk else "device"
    raise UsageError(f"{driver.name}: has no {what}", errno=errno.ENODEV)


def _last_words(kernel: Kernel, name: str) -> str:
    found = kernel.kmsg.records(source=name)
    return found[-1].text if found else "it was unloaded"


# --- a running kernel ---------------------------------------------------------------------------------


async def _serve_there(args: argparse.Namespace, export: Mapping[str, str]) -> int:
    from uxk.bridges.control_client import ControlClient

    with stop_signals() as stop:
        async with ControlClient(args.kernel) as kernel:
            module = NBD if args.protocol == "nbd" else NVME_TCP
            loaded = {row.name for row in await kernel.lsmod()}
            instance = _free_name(module, loaded)
            await kernel.modprobe(module, {"device": args.module, **export}, instance=instance)
            try:
                await _watch(args, kernel, instance, stop)
            finally:
                await _unload(kernel, instance)
    return GOOD


async def _watch(args: argparse.Namespace, kernel: ControlClient, instance: str, stop: trio.Event) -> None:
    """Tells where the export is, and waits for the end."""
    import trio

    path = f"/sys/module/{instance.replace('-', '_')}"
    nqn = await kernel.read(f"{path}/parameters/nqn") if args.protocol != "nbd" else ""
    _tell(args, await kernel.read(_attribute(args, instance)), nqn, args.module)
    while not stop.is_set():
        with trio.move_on_after(_LOOK_S):
            await stop.wait()
        if not stop.is_set():
            try:
                await kernel.read(_attribute(args, instance))
            except UxkError as exc:
                if exc.errno != errno.ENOENT:
                    raise
                raise UxkError(f"{instance} has ended: see `uxk dmesg`") from None


async def _unload(kernel: ControlClient, instance: str) -> None:
    """Takes the export away, whatever has happened; somebody else may have done so, or the kernel may be gone."""
    import trio

    with trio.CancelScope(shield=True), trio.move_on_after(10), suppress(UxkError):
        await kernel.rmmod(instance)


def _free_name(module: str, taken: Sequence[str] | set[str]) -> str:
    """``nbd_server``, or ``nbd_server2`` and so on if others are exported already."""
    names: Any = (f"{module}{number}" for number in range(2, 10_000))
    return module if module not in taken else next(name for name in names if name not in taken)
