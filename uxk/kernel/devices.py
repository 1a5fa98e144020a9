"""Driver classes and devices: registered at run time, bound by rule (R14, R16).

A class comes into being with its first device and goes with its last; the kernel knows none by name.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from uxk import limits
from uxk.core.bind import matches
from uxk.core.manifest import name_problem
from uxk.core.tree import Attribute, attribute_table
from uxk.errors import CapabilityError, UsageError
from uxk.kernel.machine import Machine
from uxk.uapi.ids import CapId
from uxk.uapi.rights import Rights

if TYPE_CHECKING:
    from uxk.kernel.agent import KernelAgent


class Device:
    """One device: where requests go."""

    __slots__ = ("agent", "bound", "name", "number", "properties")

    def __init__(self, name: str, agent: KernelAgent, number: int, properties: Mapping[str, str]) -> None:
        self.name = name
        self.number = number
        self.agent = agent
        self.properties = dict(properties)
        self.bound: dict[str, CapId] = {}
        """Instances that bind rules have attached, in order, and what they were given."""

    @property
    def driver_class(self) -> str:
        """Its class, as in ``/sys/class``."""
        return self.properties["class"]

    @property
    def path(self) -> str:
        """Its place in sysfs."""
        return f"/sys/devices/virtual/{self.driver_class}/{self.name}"


def _check_uevent(device: Device) -> None:
    """A property is one line of the uevent, and all of them fit into a page."""
    for key, value in device.properties.items():
        if not key or "=" in key or not (key + value).isprintable():
            raise UsageError(f"device {device.name}: property {key!r}={value[:80]!r}: expected printable text")
    size_bytes = len(_uevent(device).encode())
    if size_bytes >= limits.SHOW_MAX_BYTES:
        raise UsageError(
            f"device {device.name}: properties of {size_bytes} bytes, at most {limits.SHOW_MAX_BYTES - 1}",
            errno=errno.E2BIG,
        )


def _uevent(device: Device) -> str:
    lines = [f"{key.upper()}={value}" for key, value in sorted(device.properties.items())]
    return "\n".join(lines)


_DEVICE_ATTRIBUTES: Final = attribute_table(
    Attribute("uevent", show=_uevent),
    Attribute("state", show=lambda device: device.agent.requests.door.value),
    Attribute("inflight", show=lambda device: str(device.agent.account.inflight)),
    Attribute("bound", show=lambda device: " ".join(device.bound)),
    Attribute("driver", show=lambda device: device.agent.manifest.name),
)


class DeviceRegistry:
    """All devices of a kernel, by name."""

    def __init__(self, machine: Machine, agents: Mapping[str, KernelAgent]) -> None:
        self._machine = machine
        self._agents = agents
        self.devices: dict[str, Device] = {}

    def add(self, agent: KernelAgent, name: str, properties: Mapping[str, str]) -> Device:
        """Registers a device; the same instance may register its own again after a restart.

        Raises :class:`UsageError`: EINVAL for a bad name, EEXIST for another's, ENOSPC over the limit.
        """
        problem = name_problem(name)
        if problem:
            raise UsageError(f"device: {problem}")
        known = self.devices.get(name)
        if known is not None:
            if known.agent is agent:
                return known
            raise UsageError(f"device {name!r} belongs to {known.agent.name}", errno=errno.EEXIST)
        if len(agent.devices) >= limits.DEVICES_PER_INSTANCE_MAX:
            raise UsageError(f"{agent.name}: {limits.DEVICES_PER_INSTANCE_MAX} devices at most", errno=errno.ENOSPC)
        fixed = {"class": agent.manifest.driver_class, "module": agent.manifest.name, "name": name}
        number = 0 if name == agent.device_name else 1 + max((d.number for d in agent.devices.values()), default=0)
        device = Device(name, agent, number, {**properties, **fixed})
        _check_uevent(device)
        tree = self._machine.tree
        tree.add(device.path, device, _DEVICE_ATTRIBUTES)
        tree.link(f"/sys/class/{device.driver_class}/{name}", device.path)
        tree.link(f"{device.path}/module", f"/sys/module/{agent.name}")
        self.devices[name] = agent.devices[name] = device
        agent.account.devices += 1
        self._machine.log("info", agent.name, f"device {name} of class {device.driver_class}", device=name)
        for other in [other for other in self._agents.values() if other.manifest.binds]:
            self._bind(other, device)
        return device

    def remove(self, device: Device) -> None:
        """Takes a device away: capabilities on it are revoked, those bound to it are told."""
        machine = self._machine
        agent = device.agent
        del self.devices[device.name], agent.devices[device.name]
        agent.account.devices -= 1
        machine.caps.revoke_target("device", device.name, derived_only=True)
        for cap in device.bound.values():
            machine.caps.revoke(cap)
        for name in device.bound:
            bound = self._agents.get(name)
            if bound is not None:
                bound.event("device_remove", device.name)
        tree = machine.tree
        tree.remove(f"/sys/class/{device.driver_class}/{device.name}")
        tree.remove(device.path)

    def get(self, name: str) -> Device:
        """The device called ``name``, or ENODEV."""
        device = self.devices.get(name)
        if device is None:
            raise UsageError(f"no device {name!r}", errno=errno.ENODEV)
        return device

    def bind_all(self, agent: KernelAgent) -> None:
        """Attaches a new instance to every device that its rules match."""
        for device in list(self.devices.values()) if agent.manifest.binds else ():
            self._bind(agent, device)

    def unbind_all(self, agent: KernelAgent) -> None:
        """Forgets an instance that is gone."""
        for device in self.devices.values():
            device.bound.pop(agent.name, None)

    def _bind(self, agent: KernelAgent, device: Device) -> None:
        if device.agent is agent or not agent.ready or agent.host is None:
            return
        if any(matches(rule, device.properties) for rule in agent.manifest.binds):
            try:
                cap = self._machine.caps.grant(agent.id, "device", device.name, Rights.SUBMIT)
            except CapabilityError as exc:  # its own limit: no reason to keep the device from others
                self._machine.log("warning", agent.name, f"not bound to {device.name}: {exc}", device=device.name)
                return
            device.bound[agent.name] = cap
            agent.event("device_add", device.name, device.driver_class.encode(), cap)
            self._machine.log("info", agent.name, f"bound to {device.name}", device=device.name)
