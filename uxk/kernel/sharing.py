"""Locks with leases and snapshots, mediated by the kernel (R9).

Each is reached through a capability.  Who waits for a lock stands in the wait-for graph; a cycle is reported at
the moment it closes, and broken by the first lease to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from uxk.core.lock import Grant
from uxk.kernel.agent import KernelAgent
from uxk.kernel.machine import Machine
from uxk.uapi import entries as e
from uxk.uapi.ids import CapId, InstanceId, LockToken, VersionNumber
from uxk.uapi.rights import Rights

_DONE: Final = (0, b"")


class Sharing:
    """Services for locks and snapshots, and their reclaim."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._users: dict[InstanceId, KernelAgent] = {}
        self._commands: dict[tuple[str, InstanceId], int] = {}
        """Command ids of those who wait, by lock and waiter."""
        self._edges: dict[str, dict[tuple[KernelAgent, KernelAgent], None]] = {}
        """What stands in the wait-for graph for each lock."""
        self._armed_ns: int | None = None

    def services(self) -> dict[type, Callable[[KernelAgent, Any], tuple[int, bytes] | None]]:
        """For the dispatch table."""
        return {
            e.Acquire: self._acquire, e.Release: self._release,
            e.Publish: self._publish, e.Pin: self._pin, e.Unpin: self._unpin,
        }  # fmt: skip

    def drop(self, agent: KernelAgent) -> None:
        """Takes back all locks, places in queues, and pins of an instance that died."""
        machine = self._machine
        names = machine.locks.names_of(agent.id)
        for name in names:
            self._commands.pop((name, agent.id), None)
        granted = machine.locks.drop(agent.id, machine.now_ns)
        agent.account.locks = 0
        machine.snapshots.drop(agent.id)
        agent.account.pins = 0
        self._granted(granted)
        for name in names:
            self._draw(name)
        self._users.pop(agent.id, None)

    # --- locks ---

    def _acquire(self, agent: KernelAgent, entry: e.Acquire) -> tuple[int, bytes] | None:
        machine = self._machine
        name = machine.caps.check(agent.id, CapId(entry.cap), "lock", Rights.LOCK).target
        self._users[agent.id] = agent
        grant = machine.locks.acquire(name, agent.id, entry.exclusive, machine.now_ns, entry.lease_ns)
        if grant is not None:
            agent.account.locks += 1
            self._arm()
            return grant.token, b""
        agent.defer(entry.cid)
        self._commands[name, agent.id] = entry.cid
        self._draw(name)
        return None

    def _release(self, agent: KernelAgent, entry: e.Release) -> tuple[int, bytes]:
        machine = self._machine
        name = machine.caps.check(agent.id, CapId(entry.cap), "lock", Rights.LOCK).target
        granted = machine.locks.release(name, agent.id, LockToken(entry.token), machine.now_ns)
        agent.account.locks -= 1
        self._granted(granted)
        self._draw(name)
        return _DONE

    def _granted(self, grants: Iterable[Grant]) -> None:
        for grant in grants:
            agent = self._users[grant.holder]
            agent.account.locks += 1
            agent.answer(self._commands.pop((grant.lock, grant.holder)), result=grant.token)
            self._draw(grant.lock)
        self._arm()

    def _arm(self) -> None:
        """Sees to it that the first lease to end is noticed.  A daemon: nobody waits for a lease alone."""
        due_ns = self._machine.locks.next_expiry_ns()
        if due_ns is not None and (self._armed_ns is None or due_ns < self._armed_ns):
            self._armed_ns = due_ns
            self._machine.heap.call_at_daemon(due_ns, self._expire, due_ns)

    def _expire(self, due_ns: int) -> None:
        if self._armed_ns == due_ns:
            self._armed_ns = None
        evicted, granted = self._machine.locks.expire(self._machine.now_ns)
        for grant in evicted:
            agent = self._users[grant.holder]
            agent.account.locks -= 1
            agent.account.reject("lease_expired")
            self._machine.log(
                "warning", agent.name, f"lost lock {grant.lock}: its lease ran out", lock=grant.lock, token=grant.token
            )
        self._granted(granted)
        for grant in evicted:
            self._draw(grant.lock)
        self._arm()

    def _draw(self, name: str) -> None:
        """Brings the wait-for graph in line with a lock's holders and queue."""
        resource = f"lock {name}"
        before = self._edges.pop(name, {})
        lock = self._machine.locks.get(name)
        edges = [] if lock is None else lock.wait_edges()
        after = dict.fromkeys((self._users[waiter], self._users[holder]) for waiter, holder in edges)
        for waiter, holder in before:
            if (waiter, holder) not in after:
                self._machine.waits.remove(waiter.node, holder.node, resource)
        for waiter, holder in after:
            if (waiter, holder) not in before:
                self._machine.wait(waiter.node, holder.node, resource)
        if after:
            self._edges[name] = after

    # --- snapshots ---

    def _publish(self, agent: KernelAgent, entry: e.Publish) -> tuple[int, bytes]:
        machine = self._machine
        name = machine.caps.check(agent.id, CapId(entry.cap), "snapshot", Rights.WRITE).target
        expected = entry.expected or None
        return machine.snapshots.publish(name, agent.id, entry.data, expected), b""

    def _pin(self, agent: KernelAgent, entry: e.Pin) -> tuple[int, bytes]:
        machine = self._machine
        name = machine.caps.check(agent.id, CapId(entry.cap), "snapshot", Rights.READ).target
        version = machine.snapshots.pin(name, agent.id)
        agent.account.pins += 1
        return version.number, version.data

    def _unpin(self, agent: KernelAgent, entry: e.Unpin) -> tuple[int, bytes]:
        machine = self._machine
        name = machine.caps.check(agent.id, CapId(entry.cap), "snapshot", Rights.READ).target
        machine.snapshots.unpin(name, agent.id, VersionNumber(entry.version))
        agent.account.pins -= 1
        return _DONE
