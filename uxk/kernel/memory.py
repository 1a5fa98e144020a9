"""Arena memory of the instances: granted within the budget, reached by capability, taken back (R8, R20)."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from typing import Any, Final, Protocol
from weakref import ref

from uxk import limits
from uxk.core.caps import Capability
from uxk.errors import BudgetError, CapabilityError, UsageError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.aside import Aside, own_bytes
from uxk.kernel.machine import Machine
from uxk.kernel.process_start import Shared
from uxk.uapi import entries as e
from uxk.uapi.ids import CapId
from uxk.uapi.rights import Rights

_OWN: Final = Rights.READ | Rights.WRITE | Rights.GRANT
_VIEWS_TIDY: Final = 64
_IDLE_FILES: Final = 64
"""Regions that keep a file of their own though no process may see them."""


class Tell(Protocol):
    """How processes hear what has become of memory that they have mapped."""

    def __call__(self, agent: KernelAgent, cap: int, *, moved: bool) -> None:
        """The memory of a capability has moved to a new file, or is not the process's any more."""


class Memory:
    """Services Allocate and Free, the mapping of regions, and their reclaim."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._views: dict[int, list[ref[memoryview]]] = {}
        """Mappings by the capability that allowed them: let go when it ends."""
        self._shown: dict[int, dict[int, tuple[KernelAgent, bool]]] = {}
        """What processes have mapped: by region and capability, who, and whether for writing."""
        self._idle: dict[int, None] = {}
        """Regions that processes had mapped and have no right to now, the oldest first: loans, mostly."""
        self._freeing = -1
        """The region that is being taken back: nobody needs it any more."""
        self.tell: Tell = _nobody
        """Set by who has processes."""
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
        taken = own_bytes(agent) + agent.account.snapshot_bytes
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
        if agent.aside is not None and offset in agent.aside.kept_regions.values():
            raise UsageError(f"{agent.name}: the build before it may come back to this memory", errno=errno.EBUSY)
        self._release(agent, offset)
        return 0, b""

    def _release(self, agent: KernelAgent, offset: int) -> None:
        self._freeing = offset
        self._machine.caps.revoke_target("arena", str(offset))
        self._freeing = -1
        self._shown.pop(offset, None)
        self._idle.pop(offset, None)
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
        return sum(map(len, self._views.values())) + sum(map(len, self._shown.values()))

    def share(self, agent: KernelAgent, cap: int, writable: bool) -> Shared:
        """As :meth:`map_region` for a process: a descriptor, which the caller closes; EMFILE or ENOMEM if none is left.

        It leads to the whole region, for reading or for both: this the processor enforces; which bytes of it are
        meant, the process's runtime does.
        """
        right = Rights.READ | Rights.WRITE if writable else Rights.READ
        found = self._machine.caps.check(agent.id, CapId(cap), "arena", right)
        shared = self._machine.shared
        offset = self._machine.arena.region(found.start).offset
        shown = self._shown.get(offset, {})
        if not any(other is agent for other, _ in shown.values()):
            self._check_count(agent)
        before = shared.generation(offset)
        window = shared.window(offset, writable=writable)
        self._shown[offset] = shown
        self._idle.pop(offset, None)
        if before not in (0, window.generation):
            self._moved(offset)
        shown[cap] = agent, writable or shown.get(cap, (agent, False))[1]
        return Shared(
            window.descriptor, found.start - offset, found.length, window.number, window.generation
        )  # fmt: skip

    def _check_count(self, agent: KernelAgent) -> None:
        """Each region that processes see costs the kernel a descriptor: nobody may use them up."""
        count = sum(any(other is agent for other, _ in shown.values()) for shown in self._shown.values())
        if count >= limits.HOST_REGIONS_MAX:
            raise BudgetError(f"{agent.name}: {count} regions are mapped in its process already", errno=errno.EMFILE)

    def _rests(self, offset: int) -> None:
        """No process may see a region for now; the file stays a while, as what was lent is soon lent again."""
        self._idle[offset] = None
        if len(self._idle) > _IDLE_FILES:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            self._move(oldest, writers=None)

    def _move(self, offset: int, *, writers: bool | None) -> None:
        """A region leaves its file: for another, or with None for the kernel's own.

        Never fails, as revoking must not: then the log says who may have kept what.
        """
        shared = self._machine.shared
        try:
            if writers is None:
                shared.retire(offset)
            elif shared.renew(offset, writable=writers):
                self._moved(offset)
        except BudgetError as exc:
            self._machine.log("warning", "kernel", f"{exc}: it stays where processes may have kept it")

    def _moved(self, offset: int) -> None:
        for cap, (agent, _) in self._shown.get(offset, {}).items():
            if agent.host is not None:
                self.tell(agent, cap, moved=True)

    def _withdraw(self, cap: Capability, offset: int) -> None:
        """A process may not see a region any more, or not by this capability.

        It has the descriptor, so the region leaves its file, and everybody else is told.  Not after a loan, which ends
        with every request, nor if another process writes there on its own clock: what it writes on its way would be
        lost.  Then the process that is not to see it might still, until the region is freed.
        """
        shown = self._shown[offset]
        agent, wrote = shown.pop(cap.id)
        killed = agent.host is None
        if not killed:
            self.tell(agent, cap.id, moved=False)
        if not shown:
            del self._shown[offset]
            if offset != self._freeing:
                if cap.lent or killed:
                    self._rests(offset)
                else:
                    self._move(offset, writers=None)
        elif not killed and not cap.lent and offset != self._freeing:
            if any(other is agent and (writable or not wrote) for other, writable in shown.values()):
                return  # it may see as much by another
            writers = any(writable for _, writable in shown.values())
            if not writers or self._machine.clock != "real":
                self._move(offset, writers=writers)

    def _unmap(self, cap: Capability) -> None:
        if self._shown and cap.id in self._shown.get(int(cap.target), ()):
            self._withdraw(cap, int(cap.target))
        for each in self._views.pop(cap.id, ()):
            view = each()
            if view is not None:
                with contextlib.suppress(BufferError):  # a numpy array still looks at it; process placement unmaps
                    view.release()

    def drop(self, agent: KernelAgent, *, keep: bool) -> None:
        """Takes an instance's memory back; with ``keep``, all but what it asked to be kept.

        Of two builds, the new one's: what it asked to be kept was not there before, and goes, too.
        """
        caps, aside = self._machine.caps, agent.aside
        kept = set((agent if aside is None else aside).kept_regions.values()) if keep else set()
        for offset in list(agent.regions):
            if offset in kept:
                caps.revoke_target("arena", str(offset), holder=None if aside is None else agent.id)
            else:
                self._release(agent, offset)

    def set_aside(self, agent: KernelAgent, aside: Aside) -> None:
        """Keeps its memory; what has a name is there for both builds."""
        aside.kept_regions = dict(agent.kept_regions)
        named = set(aside.kept_regions.values())
        aside.regions = {offset: length for offset, length in agent.regions.items() if offset not in named}
        agent.regions = {offset: length for offset, length in agent.regions.items() if offset in named}

    def put_back(self, agent: KernelAgent, aside: Aside) -> None:
        """The old build goes on; the new one's memory is dropped already."""
        agent.regions = {**aside.regions, **agent.regions}

    def let_go(self, agent: KernelAgent, aside: Aside) -> None:
        """The old build is gone, and what it had without a name."""
        agent.regions.update(aside.regions)
        for offset in aside.regions:
            self._release(agent, offset)


def _nobody(agent: KernelAgent, cap: int, *, moved: bool) -> None:
    """There are no processes."""
