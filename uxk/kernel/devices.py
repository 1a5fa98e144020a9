"""Driver classes and devices: registered at run time, bound by rule (R14, R16).

A class comes into being with its first device and goes with its last; the kernel knows none by name.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from uxk import limits
from uxk.core.bind import matches
from uxk.core.manifest import name_problem
from uxk.core.suggest import did_you_mean
from uxk.core.tree import Attribute, attribute_table
from uxk.errors import CapabilityError, UsageError
from uxk.kernel.machine import Machine
from uxk.kernel.ports import DevicePort, Gate
from uxk.uapi.ids import CapId
from uxk.uapi.rights import Rights

if TYPE_CHECKING:
    from uxk.kernel.agent import KernelAgent
    from uxk.kernel.aside import Aside


Change: TypeAlias = Literal["add", "change", "remove"]
Observer: TypeAlias = "Callable[[Device, Change], None]"


class Device:
    """One device: where requests go."""

    __slots__ = ("agent", "bound", "gate", "name", "number", "openers", "properties", "removed")

    def __init__(self, name: str, agent: KernelAgent, number: int, properties: Mapping[str, str]) -> None:
        self.name = name
        self.number = number
        self.agent = agent
        self.properties = dict(properties)
        self.gate: Gate = agent
        """Where ports to it are opened: its driver's agent, unless a layer stands in between."""
        self.removed = False
        self.openers: list[DevicePort] = []
        """Ports of named clients in the kernel."""
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


def _inflight(device: Device) -> str:
    """As the layer before it counts, if there is one: a disk tells reads from writes."""
    return str(getattr(device.gate, "inflight", device.agent.account.inflight))


_DEVICE_ATTRIBUTES: Final = attribute_table(
    Attribute("uevent", show=_uevent),
    Attribute("state", show=lambda device: device.agent.requests.door.value),
    Attribute("inflight", show=_inflight),
    Attribute("bound", show=lambda device: " ".join(device.bound)),
    Attribute("driver", show=lambda device: device.agent.manifest.name),
)


def _with_fixed(agent: KernelAgent, name: str, properties: Mapping[str, str]) -> dict[str, str]:
    manifest = agent.manifest
    return {**properties, "class": manifest.driver_class, "module": manifest.name, "name": name}


class DeviceRegistry:
    """All devices of a kernel, by name."""

    def __init__(self, machine: Machine, agents: Mapping[str, KernelAgent]) -> None:
        self._machine = machine
        self._agents = agents
        self.devices: dict[str, Device] = {}
        self.on_change: list[Observer] = []
        """Called with a device and what has become of it, before its clients are told."""

    def add(self, agent: KernelAgent, name: str, properties: Mapping[str, str]) -> Device:
        """Registers a device.  One of the instance's own that is there already gets these properties instead.

        Raises :class:`UsageError`: EINVAL for a bad name, EEXIST for another's, ENOSPC over the limit.
        """
        problem = name_problem(name)
        if problem:
            raise UsageError(f"device: {problem}")
        known = self.devices.get(name)
        if known is not None:
            if known.agent is not agent:
                raise UsageError(f"device {name!r} belongs to {known.agent.name}", errno=errno.EEXIST)
            if properties:  # without any it keeps what it has, over a restart for instance
                self._change(known, properties)
            return known
        if len(agent.devices) >= limits.DEVICES_PER_INSTANCE_MAX:
            raise UsageError(f"{agent.name}: {limits.DEVICES_PER_INSTANCE_MAX} devices at most", errno=errno.ENOSPC)
        number = 0 if name == agent.device_name else 1 + max((d.number for d in agent.devices.values()), default=0)
        device = Device(name, agent, number, _with_fixed(agent, name, properties))
        _check_uevent(device)
        tree = self._machine.tree
        tree.add(device.path, device, _DEVICE_ATTRIBUTES)
        tree.link(f"/sys/class/{device.driver_class}/{name}", device.path)
        tree.link(f"{device.path}/module", f"/sys/module/{agent.name}")
        self.devices[name] = agent.devices[name] = device
        agent.account.devices += 1
        self._machine.log("info", agent.name, f"device {name} of class {device.driver_class}", device=name)
        self._tell(device, "add")
        for other in [other for other in self._agents.values() if other.manifest.binds]:
            self._bind(other, device)
        return device

    def _change(self, device: Device, properties: Mapping[str, str]) -> None:
        """New properties, all of them: tells observers, those bound to the device, and those who have opened it."""
        before = device.properties
        after = _with_fixed(device.agent, device.name, properties)
        if after == before:
            return
        device.properties = after
        try:
            _check_uevent(device)
        except UsageError:
            device.properties = before
            raise
        self._machine.tree.notify(f"{device.path}/uevent")
        self._tell(device, "change")
        value, caps = _uevent(device).encode(), self._machine.caps
        openers = set(caps.holders("device", device.name))
        for other in list(self._agents.values()):
            if other.name in device.bound:
                other.event("device_change", device.name, value, device.bound[other.name])
            elif other.id in openers:
                cap = caps.find_exactly(other.id, "device", device.name)
                other.event("device_change", device.name, value, cap or 0)
            elif other.manifest.binds:
                self._bind(other, device)

    def _tell(self, device: Device, change: Change) -> None:
        for observer in list(self.on_change):
            observer(device, change)

    def remove(self, device: Device) -> None:
        """Takes a device away: capabilities on it are revoked, those bound to it and who has opened it are told."""
        machine = self._machine
        agent = device.agent
        del self.devices[device.name], agent.devices[device.name]
        agent.account.devices -= 1
        device.removed = True
        self._tell(device, "remove")
        openers = set(machine.caps.holders("device", device.name))
        machine.caps.revoke_target("device", device.name, derived_only=True)
        for cap in device.bound.values():
            machine.caps.revoke(cap)
        for other in list(self._agents.values()):
            if other.name in device.bound or other.id in openers:
                other.event("device_remove", device.name)
        tree = machine.tree
        tree.remove(f"/sys/class/{device.driver_class}/{device.name}")
        tree.remove(device.path)

    def get(self, name: str) -> Device:
        """The device called ``name``, or ENODEV."""
        device = self.devices.get(name)
        if device is None:
            raise UsageError(f"no device {name!r}{did_you_mean(name, self.devices)}", errno=errno.ENODEV)
        return device

    def bind_all(self, agent: KernelAgent) -> None:
        """Attaches a new instance to every device that its rules match."""
        for device in list(self.devices.values()) if agent.manifest.binds else ():
            self._bind(agent, device)

    def unbind_all(self, agent: KernelAgent) -> None:
        """Forgets an instance that is gone."""
        for device in self.devices.values():
            device.bound.pop(agent.name, None)

    def set_aside(self, agent: KernelAgent, aside: Aside) -> None:
        """Its devices are handed over; the new build is attached to others when it is ready."""
        aside.properties = {name: device.properties for name, device in agent.devices.items()}
        aside.bound = {
            device.name: device.bound[agent.name] for device in self.devices.values() if agent.name in device.bound
        }
        self.unbind_all(agent)

    def put_back(self, agent: KernelAgent, aside: Aside) -> None:
        """The old build goes on with its devices as they were, attached to what it was and what has come since."""
        for device in [device for name, device in agent.devices.items() if name not in aside.properties]:
            self.remove(device)
        for name, properties in aside.properties.items():
            self._change(agent.devices[name], properties)
        for name in aside.bound:
            if name not in self.devices:
                agent.event("device_remove", name)
        for device in list(self.devices.values()):
            if device.name in aside.bound and self._machine.caps.peek(
                agent.id, aside.bound[device.name], "device", Rights.SUBMIT
            ):
                device.bound[agent.name] = aside.bound[device.name]
            else:
                self._bind(agent, device)

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
