"""What a control request does to the kernel: each goes through the kernel's public API, as any user's would."""

from __future__ import annotations

import errno
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec

from uxk.bridges.metrics.snapshot import take_snapshot
from uxk.core.kmsg import KmsgReader
from uxk.core.tree import Stat, Tree
from uxk.errors import ParamError, UsageError
from uxk.kernel.kernel import Kernel
from uxk.uapi import control as c
from uxk.uapi.info import Record

BATCH_MAX: Final = 128
"""Records in one value of a stream: bounds what a slow client makes the kernel keep."""
_CHANGES: Final = (
    c.Modprobe, c.Insmod, c.Rmmod, c.WriteAttribute, c.Upgrade, c.Supervise, c.Unsupervise,
)  # fmt: skip


async def perform(kernel: Kernel, request: c.Request) -> object:
    """Carries one request out and returns the value of its answer.  Raises UxkError."""
    if isinstance(request, _CHANGES):
        note_input(kernel, request)
    match request:
        case c.Modprobe(params=params) | c.Insmod(params=params) if "instance" in params:
            raise ParamError("instance: the name of a further instance, not a parameter")
        case c.Modprobe(name=name, params=params, instance=instance):
            return (await kernel.modprobe(name, instance=instance or None, **params)).name
        case c.Insmod(path=path, params=params, instance=instance):
            if not PurePosixPath(path).is_absolute():
                raise UsageError(f"{path!r}: expected an absolute path")
            return (await kernel.insmod(path, instance=instance or None, **params)).name
        case c.Rmmod(name=name):
            await kernel.rmmod(name)
            return None
        case c.Upgrade():
            return await _upgrade(kernel, request)
        case _:
            return _look(kernel, request)


async def _upgrade(kernel: Kernel, request: c.Upgrade) -> str:
    to = request.to or None
    if to is not None and (to.endswith((".py", ".toml")) or "/" in to) and not PurePosixPath(to).is_absolute():
        raise UsageError(f"{to!r}: expected an absolute path")
    limits = {name: getattr(request, name) for name in ("quiesce_ns", "probation_ns")}
    if wrong := sorted({*request.params} & {"to", "kpi", "worse_ppm", *limits}):
        raise ParamError(f"{', '.join(wrong)}: no parameter of a module's over this connection")
    given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
    if request.kpi:
        given["kpi"] = request.kpi
    given.update(request.params)
    return (await kernel.upgrade(request.name, to, **given)).manifest.version


def _look(kernel: Kernel, request: c.Request) -> object:
    """Requests that take no kernel time."""
    tree = kernel.sysfs
    match request:
        case c.ListModules(available=available):
            return kernel.available() if available else kernel.lsmod()
        case c.Supervise(spec=spec):
            kernel.supervise(spec)
            return None
        case c.Unsupervise(name=name):
            kernel.unsupervise(name)
            return None
        case c.Modinfo(name=name):
            return kernel.modinfo(name)
        case c.Depmod():
            return kernel.depmod()
        case c.Dmesg(levels=levels):
            return batch_of(kernel.kmsg.reader("oldest"), levels, kernel.kmsg.capacity)
        case c.ReadAttribute(path=path):
            return tree.read(path)
        case c.WriteAttribute(path=path, value=value):
            tree.write(path, value, writer="control")
            return None
        case c.ListDirectory(path=path):
            base = tree.canonical(path).rstrip("/")
            return [entry_of(tree, f"{base}/{name}") for name in tree.listdir(path)]
        case c.StatPath(path=path):
            return entry_of(tree, path)
        case c.Render(path=path, values=values):
            return tree.render(path, values=values)
        case c.Metrics():
            return take_snapshot(kernel)
        case c.Statistics(name=name):
            return kernel.module(name).statistics() if name else kernel_figures(kernel)
        case _:
            raise UsageError(f"{type(request).__name__}: not a request for one answer", errno=errno.EOPNOTSUPP)


def note_input(kernel: Kernel, request: c.Request) -> None:
    """What enters from outside is part of the run, at the instant when it entered."""
    kernel.machine.refresh()
    kernel.machine.note("control", 0, msgspec.msgpack.encode(msgspec.structs.replace(request, cid=0)))


def batch_of(reader: KmsgReader, levels: int, at_most: int = BATCH_MAX) -> c.LogBatch:
    """The next records of the levels in the mask, and what was lost since the last batch."""
    lost_before, records = reader.lost, list[Record]()
    while len(records) < at_most and (record := reader.read()) is not None:
        if levels >> record.level & 1:
            records.append(record)
    return c.LogBatch(tuple(records), reader.lost - lost_before)


def entry_of(tree: Tree, path: str) -> c.TreeEntry:
    """One entry of the tree."""
    stat: Stat = tree.stat(path)
    target = tree.readlink(path) if stat.kind == "link" else ""
    return c.TreeEntry(PurePosixPath(path).name or "/", stat.kind, stat.mode, stat.size_bytes, target)


def kernel_figures(kernel: Kernel) -> dict[str, Any]:
    """Figures of the kernel itself; every 64-bit number fits MessagePack."""
    machine = kernel.machine
    return {
        "now_ns": kernel.now_ns, "clock": machine.clock, "seed": str(kernel.seed), "event_hash": kernel.event_hash(),
        "events": machine.heap.fired, "modules": len(kernel.agents), "outstanding": machine.outstanding,
        "kmsg": msgspec.structs.asdict(kernel.kmsg.statistics()),
    }  # fmt: skip
