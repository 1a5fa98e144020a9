"""The block layer of a kernel: a disk for every device of class ``block`` that says how large it is."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, Final

from uxk.errors import UsageError
from uxk.kernel.devices import Change, Device
from uxk.kernel.kernel import Kernel
from uxk.subsystems.blk.attributes import add_disk, remove_disk
from uxk.subsystems.blk.disk import Disk
from uxk.uapi.blk import BlockLimits, limits_of

DRIVER_CLASS: Final = "block"
CPUS_DEFAULT: Final = 4
CPUS_MAX: Final = 1024


class BlockLayer:
    """Attached to a kernel, it puts itself between its block devices and their clients.

    Ports that were open before go on leading straight to the driver.  ``cpus`` is the number of emulated CPUs over
    which clients are spread.
    """

    def __init__(self, kernel: Kernel, *, cpus: int = CPUS_DEFAULT) -> None:
        if not 1 <= cpus <= CPUS_MAX:
            raise UsageError(f"cpus={cpus}: expected 1..{CPUS_MAX}")
        self._machine = kernel.machine
        self._devices = kernel.devices
        self._cpus = cpus
        self._minor = 0
        self.disks: dict[str, Disk] = {}
        """By the device's name."""
        self._devices.on_change.append(self._on_change)
        for device in list(self._devices.devices.values()):
            self._on_change(device, "add")

    def disk(self, name: str) -> Disk:
        """The disk of that name.  UsageError (ENODEV)."""
        found = self.disks.get(name)
        if found is None:
            known = ", ".join(self.disks) or "none"
            raise UsageError(f"no disk {name!r}; there are: {known}", errno=errno.ENODEV)
        return found

    def close(self) -> None:
        """Takes itself out: new ports lead to the drivers again; what the queues hold is answered with ENODEV."""
        self._devices.on_change.remove(self._on_change)
        for disk in list(self.disks.values()):
            self._remove(disk)

    def _on_change(self, device: Device, change: Change) -> None:
        if device.driver_class != DRIVER_CLASS:
            return
        disk = self.disks.get(device.name)
        try:
            limits = None if change == "remove" else _sensible(limits_of(device.properties))
        except UsageError as exc:  # a disk that is there is not taken from its clients for that
            what = "no disk" if disk is None else f"{device.name} keeps what it had"
            self._machine.log("warning", device.agent.name, f"{what}: {exc}", device=device.name)
            return
        if disk is None:
            if limits is not None:
                self._add(device, limits)
        elif limits is None:
            self._remove(disk)
        elif limits != disk.limits.hardware:
            before = disk.limits.capacity_bytes
            disk.set_hardware(limits)
            if disk.limits.capacity_bytes != before:
                text = f"detected capacity change from {before} to {disk.limits.capacity_bytes} bytes"
                self._machine.log("info", disk.name, text)
                self._machine.tree.notify(f"{device.path}/size")

    def _add(self, device: Device, limits: BlockLimits) -> None:
        self._minor += 1
        disk = Disk(self._machine, device, limits, cpus=self._cpus, minor=self._minor)
        add_disk(disk)
        device.gate = self.disks[device.name] = disk
        self._machine.log(
            "info", disk.name, f"{limits.capacity_bytes} bytes in blocks of {limits.logical_block_bytes}, "
            f"{disk.shape.hctxs} queues, depth {disk.depth}", device=device.name,
        )  # fmt: skip

    def _remove(self, disk: Disk) -> None:
        del self.disks[disk.name]
        disk.device.gate = disk.below
        remove_disk(disk)
        disk.close()

    def results(self) -> Mapping[str, Any]:
        """Figures of every disk."""
        return {name: figures(disk) for name, disk in self.disks.items()}


def _sensible(limits: BlockLimits | None) -> BlockLimits | None:
    """Linux: blk_validate_limits.  Block sizes are powers of two, the physical one not the smaller."""
    if limits is None:
        return None
    for name in ("logical_block_bytes", "physical_block_bytes"):
        value = getattr(limits, name)
        if value & (value - 1):
            raise UsageError(f"{name}={value}: expected a power of two")
    if limits.physical_block_bytes < limits.logical_block_bytes:
        raise UsageError(
            f"physical_block_bytes={limits.physical_block_bytes}: less than "
            f"logical_block_bytes={limits.logical_block_bytes}"
        )
    return limits


def figures(disk: Disk) -> dict[str, Any]:
    """What a disk has counted: the fields of ``stat`` by name in bytes and ns, and what the queue did."""
    stats = disk.stats
    stats.tick(disk.machine.now_ns)
    names = ("reads", "writes", "discards", "flushes")
    counted: dict[str, Any] = {
        "scheduler": disk.scheduler.name,
        "busy_ns": stats.busy_ns,
        "aborted": disk.timeouts.aborted,
    }
    for group, name in enumerate(names):
        counted[name] = stats.ios[group]
        counted[f"{name}_waited_ns"] = stats.waited_ns[group]
        if name != "flushes":
            counted[f"{name}_merged"] = stats.merges[group]
            counted[f"{name}_bytes"] = stats.moved_bytes[group]
    counted["inflight"] = stats.inflight_reads + stats.inflight_writes
    return counted
