"""What an extension publishes and follows: its own sysfs attributes, and kmsg as a stream (R12, R13)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from uxk import limits
from uxk.core.kmsg import KmsgReader, to_json
from uxk.core.tree import Attribute
from uxk.errors import CapabilityError, UsageError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.machine import Machine
from uxk.uapi import entries as e
from uxk.uapi.rights import Rights

RETRY_NS: Final = 1_000_000
"""How long kmsg waits for room in a follower's queue before it tries again."""
ATTRIBUTES_MAX: Final = 64
"""Attributes that one instance may publish."""


class Publisher:
    """Services SetAttribute and FollowKmsg."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    # --- attributes ---

    def set_attribute(self, agent: KernelAgent, entry: e.SetAttribute) -> None:
        """Readers get the value last set; a write to a writable one arrives as the event ``store``."""
        tree, name = self._machine.tree, entry.name
        if len(entry.value.encode()) >= limits.SHOW_MAX_BYTES:  # a page, with the newline that reading adds
            raise UsageError(
                f"{agent.name}: {name}: value of {len(entry.value.encode())} bytes, at most {limits.SHOW_MAX_BYTES - 1}"
            )
        known = agent.attributes.get(name)
        if known is None:
            if len(agent.attributes) >= ATTRIBUTES_MAX:
                raise UsageError(f"{agent.name}: {ATTRIBUTES_MAX} attributes at most", errno=errno.ENOSPC)
            store = partial(_store, name) if entry.writable else None
            attribute = Attribute(name, show=partial(_show, name), store=store)
            base = _directory(agent)
            if not tree.exists(base):
                tree.add(base, agent)
            tree.add_attribute(base, attribute)
            agent.attributes[name] = entry.value
        elif known != entry.value:
            agent.attributes[name] = entry.value
            tree.notify(f"{_directory(agent)}/{name}")

    def withdraw(self, agent: KernelAgent) -> None:
        """Takes all attributes of an incarnation away, and its subscription to kmsg."""
        if agent.attributes:
            agent.attributes.clear()
            self._machine.tree.remove(_directory(agent))
        if agent.kmsg_cancel is not None:
            agent.kmsg_cancel()
            agent.kmsg_cancel = None

    # --- kmsg ---

    def follow_kmsg(self, agent: KernelAgent, entry: e.FollowKmsg) -> tuple[int, bytes]:
        """Sends every record of others, as JSON, as an event; what the queue cannot take is counted."""
        machine = self._machine
        if machine.caps.find(agent.id, "kmsg", "*", Rights.READ) is None:
            raise CapabilityError(f"{agent.name}: its manifest does not ask for kmsg:read")
        if agent.kmsg_cancel is not None:
            agent.kmsg_cancel()
        reader = machine.kmsg.reader("oldest" if entry.oldest else "now", max_level=entry.max_level)
        follower = _Follower(machine, agent, reader)
        unsubscribe = machine.kmsg.subscribe(follower.forward)
        agent.kmsg_cancel = partial(follower.close, unsubscribe)
        follower.forward()
        return 0, b""


def _directory(agent: KernelAgent) -> str:
    return f"/sys/module/{agent.name}/attributes"


def _show(name: str, agent: KernelAgent) -> str:
    return agent.attributes[name]


def _store(name: str, agent: KernelAgent, text: str) -> None:
    if not agent.event("store", name, text.encode()):
        raise UsageError(f"{agent.name}: {name}: its queue is full", errno=errno.EAGAIN)


class _Follower:
    """Passes new records on to one instance, as fast as its queue takes them."""

    __slots__ = ("_agent", "_closed", "_machine", "_reader", "_retry")

    def __init__(self, machine: Machine, agent: KernelAgent, reader: KmsgReader) -> None:
        self._machine = machine
        self._agent = agent
        self._reader = reader
        self._retry = False
        self._closed = False

    def forward(self, retry: object = None) -> None:
        """Sends what there is.  What does not fit is tried again; what the ring overwrites meanwhile is lost.

        An instance does not hear itself: it would answer its own lines for ever.
        """
        if self._closed:
            return
        if self._machine.caps.find(self._agent.id, "kmsg", "*", Rights.READ) is None:  # it was revoked
            self._closed = True
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
        self._closed = True
        unsubscribe()
