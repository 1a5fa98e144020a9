"""What an extension publishes and follows: its own sysfs attributes, and kmsg as a stream (R12, R13)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec

from uxk import limits
from uxk.core.kmsg import KmsgReader, to_json
from uxk.core.tree import Attribute
from uxk.errors import CapabilityError, TreeError, UsageError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.aside import Aside
from uxk.kernel.machine import Machine
from uxk.uapi import entries as e
from uxk.uapi.ids import InstanceId
from uxk.uapi.rights import Rights

RETRY_NS: Final = 1_000_000
"""How long kmsg waits for room in a follower's queue before it tries again."""
ATTRIBUTES_MAX: Final = 64
"""Attributes that one instance may publish."""


class Publisher:
    """Services SetAttribute and FollowKmsg."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._writable: dict[InstanceId, set[str]] = {}
        self._followers: dict[InstanceId, _Follower] = {}

    # --- attributes ---

    def set_attribute(self, agent: KernelAgent, entry: e.SetAttribute) -> None:
        """Readers get the value last set; a write to a writable one arrives as the event ``store``."""
        tree, name = self._machine.tree, entry.name
        base, own = _place(agent, name)
        if len(entry.value.encode()) >= limits.SHOW_MAX_BYTES:  # a page, with the newline that reading adds
            raise UsageError(
                f"{agent.name}: {name}: value of {len(entry.value.encode())} bytes, at most {limits.SHOW_MAX_BYTES - 1}"
            )
        known = agent.attributes.get(name)
        if known is None or not tree.exists(f"{base}/{own}"):  # its device may have gone, and come again
            if len(agent.attributes) >= ATTRIBUTES_MAX:
                raise UsageError(f"{agent.name}: {ATTRIBUTES_MAX} attributes at most", errno=errno.ENOSPC)
            store = partial(_store, name, agent) if entry.writable else None
            attribute = Attribute(own, show=partial(_show, name, agent), store=store)
            if not tree.exists(base):
                tree.add(base, agent)
            tree.add_attribute(base, attribute)
            agent.attributes[name] = entry.value
            if entry.writable:
                self._writable.setdefault(agent.id, set()).add(name)
        elif known != entry.value:
            agent.attributes[name] = entry.value
            tree.notify(f"{base}/{own}")

    def withdraw(self, agent: KernelAgent) -> None:
        """Takes all attributes of an incarnation away, and its subscription to kmsg."""
        if agent.attributes:
            tree = self._machine.tree
            for name in [name for name in agent.attributes if "/" in name]:
                device, _, own = name.rpartition("/")
                if device in agent.devices:
                    with suppress(TreeError):  # the device has gone, and come again without it
                        tree.remove_attribute(agent.devices[device].path, own)
            agent.attributes.clear()
            self._writable.pop(agent.id, None)
            if tree.exists(_directory(agent)):
                tree.remove(_directory(agent))
        self._followers.pop(agent.id, None)
        if agent.kmsg_cancel is not None:
            agent.kmsg_cancel()
            agent.kmsg_cancel = None

    def set_aside(self, agent: KernelAgent, aside: Aside) -> None:
        """Remembers what it shows and follows, and withdraws it: the new build begins with nothing."""
        writable = self._writable.get(agent.id, ())
        aside.attributes = {name: (value, name in writable) for name, value in agent.attributes.items()}
        aside.follower = self._followers.get(agent.id)
        self.withdraw(agent)

    def put_back(self, agent: KernelAgent, aside: Aside) -> None:
        """Shows and follows it again: records of the time between are sent now, as far as the ring has them."""
        for name, (value, writable) in aside.attributes.items():
            self.set_attribute(agent, e.SetAttribute(name, value, writable))
        if aside.follower is not None:
            self._follow(agent, aside.follower)

    # --- kmsg ---

    def follow_kmsg(self, agent: KernelAgent, entry: e.FollowKmsg) -> tuple[int, bytes]:
        """Sends every record of others, as JSON, as an event; what the queue cannot take is counted."""
        machine = self._machine
        if machine.caps.find(agent.id, "kmsg", "*", Rights.READ) is None:
            raise CapabilityError(f"{agent.name}: its manifest does not ask for kmsg:read")
        if agent.kmsg_cancel is not None:
            agent.kmsg_cancel()
        reader = machine.kmsg.reader("oldest" if entry.oldest else "now", max_level=entry.max_level)
        self._follow(agent, _Follower(machine, agent, reader))
        return 0, b""

    def _follow(self, agent: KernelAgent, follower: _Follower) -> None:
        self._followers[agent.id] = follower
        follower.closed = False
        unsubscribe = self._machine.kmsg.subscribe(follower.forward)
        agent.kmsg_cancel = partial(follower.close, unsubscribe)
        follower.forward()


def _directory(agent: KernelAgent) -> str:
    return f"/sys/module/{agent.name}/attributes"


def _place(agent: KernelAgent, name: str) -> tuple[str, str]:
    """Where an attribute stands, and what it is called there: ``DEVICE/NAME`` is in a device's directory."""
    device, slash, own = name.rpartition("/")
    if not slash:
        return _directory(agent), name
    if device not in agent.devices:
        raise UsageError(f"{agent.name}: {name}: it has no device {device!r}", errno=errno.ENODEV)
    return agent.devices[device].path, own


def _show(name: str, agent: KernelAgent, owner: object) -> str:
    return agent.attributes[name]


def _store(name: str, agent: KernelAgent, owner: object, text: str) -> None:
    if not agent.event("store", name, text.encode()):
        raise UsageError(f"{agent.name}: {name}: its queue is full", errno=errno.EAGAIN)


class _Follower:
    """Passes new records on to one instance, as fast as its queue takes them."""

    __slots__ = ("_agent", "_machine", "_reader", "_retry", "closed")

    def __init__(self, machine: Machine, agent: KernelAgent, reader: KmsgReader) -> None:
        self._machine = machine
        self._agent = agent
        self._reader = reader
        self._retry = False
        self.closed = False

    def forward(self, retry: object = None) -> None:
        """Sends what there is.  What does not fit is tried again; what the ring overwrites meanwhile is lost.

        An instance does not hear itself: it would answer its own lines for ever.
        """
        if self.closed:
            return
        if self._machine.caps.find(self._agent.id, "kmsg", "*", Rights.READ) is None:  # it was revoked
            self.closed = True
            return
        if retry is self:
            self._retry = False
        agent, reader = self._agent, self._reader
        while agent.has_room:
            record = reader.read()
            if record is None:
                break
            if record.source != agent.name:
                agent.event("kmsg", record.source, msgspec.json.encode(to_json(record)))
        if reader.lost:
            agent.account.reject("kmsg_lost", reader.lost)
            reader.lost = 0
        if not agent.has_room and not self._retry:
            self._retry = True
            self._machine.heap.call_at_daemon(self._machine.now_ns + RETRY_NS, self.forward, self)

    def close(self, unsubscribe: Callable[[], None]) -> None:
        """Nothing more is sent."""
        self.closed = True
        unsubscribe()
