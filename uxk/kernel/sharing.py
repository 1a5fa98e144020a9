"""Locks with leases and snapshots, mediated by the kernel (R9).

Each is reached through a capability.  Who waits for a lock stands in the wait-for graph; a cycle is reported at
the moment it closes, and broken by the first lease to end.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Any, Final

from uxk.core.caps import Capability, covers
from uxk.core.lock import Grant
from uxk.core.waitfor import Node
from uxk.errors import BudgetError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.aside import Aside, own_bytes, shadow
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
        self._takers: dict[str, dict[InstanceId, Node]] = {}
        """Which task of an instance has a lock or waits for it."""
        self._edges: dict[str, dict[tuple[Node, Node], None]] = {}
        """What stands in the wait-for graph for each lock."""
        machine.caps.on_delete["lock"] = self._lock_revoked
        self._armed_ns: int | None = None
        self._published: dict[str, tuple[KernelAgent, int]] = {}
        """Who wrote the current version of a cell, and how many bytes."""
        self._orphans: dict[str, None] = {}
        """Cells whose writer is gone, while somebody still reads them."""

    def services(self) -> dict[type, Callable[[KernelAgent, Any], tuple[int, bytes] | None]]:
        """For the dispatch table."""
        return {
            e.Acquire: self._acquire, e.Release: self._release,
            e.Publish: self._publish, e.Pin: self._pin, e.Unpin: self._unpin,
        }  # fmt: skip

    def drop(self, agent: KernelAgent) -> None:
        """Takes back all locks, places in queues, and pins of an instance that died; not what is put aside."""
        machine, aside = self._machine, agent.aside
        names = [name for name in machine.locks.names_of(agent.id) if aside is None or not self._is_aside(agent, name)]
        granted: list[Grant] = []
        for name in names:
            self._commands.pop((name, agent.id), None)
            granted += machine.locks.drop(agent.id, machine.now_ns, name)
        agent.account.locks = len(machine.locks.names_of(agent.id))
        machine.snapshots.drop(agent.id)
        agent.account.pins = 0 if aside is None else aside.pins
        self._bury()
        self._granted(granted)
        for name in names:
            self._draw(name)
        if not agent.account.locks:
            self._users.pop(agent.id, None)

    # --- two builds of one instance ---

    def cut_waits(self, agent: KernelAgent) -> None:
        """Waits for no lock any more, and hears so."""
        machine = self._machine
        for name in machine.locks.names_of(agent.id):
            waiting = self._commands.pop((name, agent.id), None)
            if waiting is not None:
                self._granted(machine.locks.drop(agent.id, machine.now_ns, name))
                self._draw(name)
                agent.answer(waiting, errno.ECANCELED)

    def set_aside(self, agent: KernelAgent, aside: Aside) -> None:
        """Keeps its locks and pins."""
        machine = self._machine
        for name in machine.locks.names_of(agent.id):
            lock = machine.locks.get(name)
            grant = None if lock is None else lock.grant_of(agent.id)
            if grant is not None:
                aside.locks[name] = grant.token
        aside.pins = machine.snapshots.rename(agent.id, shadow(agent.id))

    def put_back(self, agent: KernelAgent) -> None:
        """The old build goes on; the new one's are dropped already."""
        self._machine.snapshots.rename(shadow(agent.id), agent.id)

    def let_go(self, agent: KernelAgent, aside: Aside) -> None:
        """The old build is gone; locks that the new one has asked for stay."""
        machine, granted = self._machine, list[Grant]()
        for name in aside.locks:
            if name not in aside.handed_locks and self._is_aside(agent, name):
                granted += machine.locks.drop(agent.id, machine.now_ns, name)
                agent.account.locks -= 1
        agent.account.pins -= machine.snapshots.drop(shadow(agent.id))
        self._bury()
        self._granted(granted)
        for name in aside.locks:
            self._draw(name)

    def _is_aside(self, agent: KernelAgent, name: str) -> bool:
        """Whether the old build has held a lock ever since."""
        lock, aside = self._machine.locks.get(name), agent.aside
        grant = None if lock is None else lock.grant_of(agent.id)
        return aside is not None and grant is not None and aside.locks.get(name) == grant.token

    # --- locks ---

    def _acquire(self, agent: KernelAgent, entry: e.Acquire) -> tuple[int, bytes] | None:
        machine = self._machine
        name = machine.caps.check(agent.id, CapId(entry.cap), "lock", Rights.LOCK).target
        self._users[agent.id] = agent
        if (aside := agent.aside) is not None and self._is_aside(agent, name) and name not in aside.handed_locks:
            aside.handed_locks[name] = None
            self._takers[name][agent.id] = agent.node  # both builds have it
            return aside.locks[name], b""
        lease_ns = entry.lease_ns or int(machine.sysctl.entry("kernel/lock_lease_ns").value)
        grant = machine.locks.acquire(name, agent.id, entry.exclusive, machine.now_ns, lease_ns)
        self._takers.setdefault(name, {})[agent.id] = agent.node._replace(tasks=entry.tasks)
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

    def _lock_revoked(self, cap: Capability) -> None:
        """Without a capability nobody holds a lock, or waits for it."""
        machine, agent = self._machine, self._users.get(cap.holder)
        others = (each for each in machine.caps.held(cap.holder) if each.id != cap.id and each.kind == "lock")
        if agent is None or any(covers(each.target, cap.target) and each.depth for each in others):
            return
        if self._is_aside(agent, cap.target) and not machine.caps.is_aside(cap):  # the build before has its own
            return
        if cap.target in machine.locks.names_of(agent.id):
            waiting = self._commands.pop((cap.target, agent.id), None)
            if waiting is None:
                agent.account.locks -= 1
            else:
                agent.answer(waiting, errno.ESTALE)
            self._granted(machine.locks.drop(agent.id, machine.now_ns, cap.target))
            self._draw(cap.target)

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
        takers = self._takers.pop(name, {})
        if lock is not None:
            users = [*(grant.holder for grant in lock.holders()), *(waiter.holder for waiter in lock.waiters())]
            takers = self._takers[name] = {user: takers[user] for user in users}
        edges = [] if lock is None else lock.wait_edges()
        after = dict.fromkeys((takers[waiter], takers[holder]) for waiter, holder in edges)
        for waiter, holder in before:
            if (waiter, holder) not in after:
                self._machine.waits.remove(waiter, holder, resource)
        for waiter, holder in after:
            if (waiter, holder) not in before:
                self._machine.wait(waiter, holder, resource)
        if after:
            self._edges[name] = after

    # --- snapshots ---

    def _publish(self, agent: KernelAgent, entry: e.Publish) -> tuple[int, bytes]:
        machine = self._machine
        name = machine.caps.check(agent.id, CapId(entry.cap), "snapshot", Rights.WRITE).target
        charged = self._published.get(name)
        mine_bytes = charged[1] if charged is not None and charged[0] is agent else 0
        after_bytes = agent.account.snapshot_bytes - mine_bytes + len(entry.data)
        budget = agent.memory_bytes
        if own_bytes(agent) + after_bytes > budget:
            raise BudgetError(
                f"snapshot {name!r} of {len(entry.data)} bytes: with it, {own_bytes(agent) + after_bytes} "
                f"of {budget} bytes of memory would be taken"
            )
        version = machine.snapshots.publish(name, agent.id, entry.data, entry.expected or None)
        self._charge(name, agent, len(entry.data))
        self._orphans.pop(name, None)
        return version, b""

    def _charge(self, name: str, agent: KernelAgent | None, size_bytes: int) -> None:
        """A cell's current version is charged to who wrote it."""
        before = self._published.pop(name, None)
        if before is not None:
            before[0].account.snapshot_bytes -= before[1]
        if agent is not None:
            self._published[name] = (agent, size_bytes)
            agent.account.snapshot_bytes += size_bytes

    def withdraw(self, agent: KernelAgent) -> None:
        """The instance is gone for good, and with it what it published, as soon as nobody reads it any more."""
        for name in [name for name, (writer, _) in self._published.items() if writer is agent]:
            self._charge(name, None, 0)
            self._orphans[name] = None
        self._bury()

    def _bury(self) -> None:
        for name in list(self._orphans):
            cell = self._machine.snapshots.get(name)
            if cell is None or not cell.readers():
                del self._orphans[name]
                if cell is not None:
                    self._machine.snapshots.remove(name)

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
        self._bury()
        return _DONE
