"""The block layer of a scenario: attached before modules are loaded, set when they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError, TreeError
from uxk.kernel.kernel import Kernel
from uxk.scenario.model import BlockQueues
from uxk.subsystems.blk.attributes import QUEUE, set_option
from uxk.subsystems.blk.disk import Disk
from uxk.subsystems.blk.layer import BlockLayer


def attach(kernel: Kernel, queues: BlockQueues | None) -> BlockLayer | None:
    """The layer, if the scenario asks for one."""
    return None if queues is None else BlockLayer(kernel, cpus=queues.cpus)


def set_options(layer: BlockLayer, queues: BlockQueues) -> None:
    """Writes what the scenario says of each disk.  ConfigError names the place: no such disk, attribute or value."""
    for name, options in queues.devices.items():
        disk = layer.disks.get(name)
        if disk is None:
            known = ", ".join(layer.disks) or "none"
            raise ConfigError(f"blk.devices: no disk {name!r}{did_you_mean(name, layer.disks)}; there are: {known}")
        for key, value in _in_order(options):
            _set(disk, f"blk.devices.{name}", key, value)


def _in_order(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The scheduler comes first, since others' values depend on it; then as written."""
    for key, value in sorted(options.items(), key=lambda item: item[0] != "scheduler"):
        if key == "iosched" and isinstance(value, Mapping):
            yield from ((f"iosched/{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _set(disk: Disk, place: str, key: str, value: object) -> None:
    if not isinstance(value, int | str):
        raise ConfigError(f"{place}.{key} = {value!r}: expected a number or a text")
    if "/" not in key and key not in QUEUE:
        raise ConfigError(f"{place}: unknown key {key!r}{did_you_mean(key, QUEUE)}; known: {', '.join(sorted(QUEUE))}")
    try:
        set_option(disk, key, value)
    except TreeError as exc:
        raise ConfigError(f"{place}.{key.replace('/', '.')} = {value!r}: {exc.args[0]}", errno=exc.errno) from None
