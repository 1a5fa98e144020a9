"""Arena memory of the kernel's own clients: the benchmark, the block layer, a page cache.

It is outside every instance's budget, so it is taken from what could still be granted.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from uxk.errors import BudgetError, UsageError
from uxk.limits import ARENA_PAGE_BYTES
from uxk.uapi.ids import CapId, InstanceId
from uxk.uapi.rights import Rights

if TYPE_CHECKING:
    from uxk.kernel.agent import KernelAgent
    from uxk.kernel.machine import Machine

KERNEL: Final = InstanceId(0)
"""Owner of what no instance owns."""
_RIGHTS: Final = Rights.READ | Rights.WRITE


class DmaPool:
    """A region that drivers may be given: close it, or use it as a context manager."""

    __slots__ = ("_caps", "_machine", "_offset", "name", "size_bytes", "view")

    def __init__(self, machine: Machine, name: str, size_bytes: int) -> None:
        if size_bytes <= 0:
            raise UsageError(f"dma pool {name!r} of {size_bytes} bytes: expected at least 1")
        self.name = name
        self.size_bytes = -(-size_bytes // ARENA_PAGE_BYTES) * ARENA_PAGE_BYTES
        """What it has, in whole pages."""
        self._machine = machine
        total = machine.arena.size_bytes
        if machine.granted_bytes + self.size_bytes > total:
            raise BudgetError(
                f"dma pool {name!r} of {self.size_bytes} bytes: {total - machine.granted_bytes} of {total} are left to "
                "grant", errno=errno.ENOMEM,
            )  # fmt: skip
        self._offset = machine.arena.allocate(KERNEL, self.size_bytes).offset
        machine.granted_bytes += self.size_bytes
        self._caps: dict[KernelAgent, CapId] = {}
        self.view: memoryview = machine.arena.view(self._offset, self.size_bytes, writable=True)
        """All of its bytes, zero at first."""
        machine.pools[self._offset] = self

    def __repr__(self) -> str:
        return f"<DmaPool {self.name}: {self.size_bytes} bytes>"

    def __enter__(self) -> DmaPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def cap_for(self, agent: KernelAgent) -> CapId:
        """The capability under which ``agent`` knows the pool, for :attr:`Request.region`; outlives its restarts."""
        caps = self._machine.caps
        known = self._caps.get(agent)
        if known is not None and caps.peek(agent.id, known, "arena", _RIGHTS) is not None:
            return known
        self._caps = {each: cap for each, cap in self._caps.items() if caps.count(each.id)}  # others may be gone
        cap = self._caps[agent] = caps.grant(
            agent.id, "arena", str(self._offset), _RIGHTS, start=self._offset, length=self.size_bytes
        )
        return cap

    def close(self) -> None:
        """Takes it back from everybody.  Requests in flight that name it will find their region stale.

        What a driver has mapped for one already is nobody else's until it has answered.
        """
        if self._machine.pools.pop(self._offset, None) is None:
            return
        for agent, cap in self._caps.items():
            agent.requests.keep(cap, self._offset)
        self._caps.clear()
        self._machine.caps.revoke_target("arena", str(self._offset))
        self.view.release()
        self._machine.arena.free(KERNEL, self._offset)
        self._machine.granted_bytes -= self.size_bytes


def pool_caps(machine: Machine, agent: KernelAgent) -> set[CapId]:
    """Capabilities on pools that an instance keeps when an incarnation of it dies."""
    return {cap for pool in machine.pools.values() if (cap := pool._caps.get(agent)) is not None}
