"""Arena memory of the instances: granted within the budget, reached by capability, taken back (R8, R20)."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from typing import Any, Final
from weakref import ref

from uxk import limits
from uxk.core.caps import Capability
from uxk.errors import BudgetError, CapabilityError, UsageError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.machine import Machine
from uxk.uapi import entries as e
from uxk.uapi.ids import CapId
from uxk.uapi.rights import Rights

_OWN: Final = Rights.READ | Rights.WRITE | Rights.GRANT
_VIEWS_TIDY: Final = 64


class Memory:
    """Services Allocate and Free, the mapping of regions, and their reclaim."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._views: dict[int, list[ref[memoryview]]] = {}
        """Mappings by the capability that allowed them: let go when it ends."""
        machine.caps.on_delete["arena"] = self._unmap

    def services(self) -> dict[type, Callable[[KernelAgent, Any], tuple[int, bytes] | None]]:
        """For the dispatch table."""
        return {e.Allocate: self._allocate, e.Free: self._free}

    def _allocate(self, agent: KernelAgent, entry: e.Allocate) -> tuple[int, bytes]:
        if entry.keep and entry.keep in agent.kept_regions:
            offset = agent.kept_regions[entry.keep]
            if agent.regions[offset] < entry.length:
                raise UsageError(
                    f"{agent.name}: kept memory {entry.keep!r} has {agent.regions[offset]} bytes, not {entry.length}"
                )
            return self._cap(agent, offset), b""
        page = limits.ARENA_PAGE_BYTES
        length = -(-entry.length // page) * page
        budget = agent.memory_bytes
        taken = agent.account.arena_bytes + agent.account.snapshot_bytes
        if length <= 0 or taken + length > budget:
            raise BudgetError(
                f"{agent.name}: {entry.length} bytes of memory: {taken} of {budget} are taken",
                errno=errno.EDQUOT if entry.length else errno.EINVAL,
            )
        region = self._machine.arena.allocate(agent.id, length)
        agent.regions[region.offset] = region.length
        agent.account.hold_arena(region.length)
        if entry.keep:
            agent.kept_regions[entry.keep] = region.offset
        return self._cap(agent, region.offset), b""

    def _cap(self, agent: KernelAgent, offset: int) -> int:
        return self._machine.caps.grant(
            agent.id, "arena", str(offset), _OWN, start=offset, length=agent.regions[offset]
        )  # fmt: skip

    def _free(self, agent: KernelAgent, entry: e.Free) -> tuple[int, bytes]:
        cap = self._machine.caps.check(agent.id, CapId(entry.cap), "arena", Rights.GRANT)
        offset = int(cap.target)
        if offset not in agent.regions:
            raise CapabilityError(f"{agent.name}: memory at {offset} is not its own", errno=errno.EPERM)
        self._release(agent, offset)
        return 0, b""

    def _release(self, agent: KernelAgent, offset: int) -> None:
        self._machine.caps.revoke_target("arena", str(offset))
        length = agent.regions.pop(offset)
        for name, kept in list(agent.kept_regions.items()):
            if kept == offset:
                del agent.kept_regions[name]
        self._machine.arena.free(agent.id, offset)
        agent.account.hold_arena(-length)

    def map_region(self, agent: KernelAgent, cap: int, writable: bool) -> memoryview:
        """The bytes that a capability names, as mmap would; raises as CapTable.check does."""
        right = Rights.READ | Rights.WRITE if writable else Rights.READ
        found = self._machine.caps.check(agent.id, CapId(cap), "arena", right)
        view = self._machine.arena.view(found.start, found.length, writable=writable)
        views = self._views.setdefault(cap, [])
        if len(views) >= _VIEWS_TIDY:  # an author may map anew for every request
            views[:] = [each for each in views if each() is not None]
        views.append(ref(view))
        return view

    @property
    def mappings(self) -> int:
        """Mappings that are remembered."""
        return sum(map(len, self._views.values()))

    def _unmap(self, cap: Capability) -> None:
        for each in self._views.pop(cap.id, ()):
            view = each()
            if view is not None:
                with contextlib.suppress(BufferError):  # a numpy array still looks at it; process placement unmaps
                    view.release()

    def drop(self, agent: KernelAgent, *, keep: bool) -> None:
        """Takes an instance's memory back; with ``keep``, all but what it asked to be kept."""
        kept = set(agent.kept_regions.values()) if keep else set()
        for offset in list(agent.regions):
            if offset in kept:
                self._machine.caps.revoke_target("arena", str(offset))
            else:
                self._release(agent, offset)
