"""Memory that requests of one extension to another carry: lent for a request, or handed over for good.

A registered buffer (io_uring's word) is memory that the client has derived to the driver beforehand: it is used as it
is.  Other memory is lent for as long as a request lasts, with the rights that its operation needs.
"""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from uxk import limits
from uxk.core.caps import Capability
from uxk.errors import CapabilityError, UsageError
from uxk.kernel.agent import KernelAgent
from uxk.uapi.entries import Op, Submit
from uxk.uapi.ids import CapId
from uxk.uapi.rights import Rights

_WRITE: Final = int(Op.WRITE)
_DATA: Final = Rights.READ | Rights.WRITE
_BOTH: Final = int(_DATA)
_LOANS: Final = {int(Op.READ): _DATA, _WRITE: Rights.READ}
"""What the driver does with the memory: for a READ of the device it writes there, and may look at it."""
_NEEDS: Final = {opcode: int(rights) for opcode, rights in _LOANS.items()}


class Registered:
    """Memory that the client has handed to the driver for good.  The arena keeps it while requests refer to it."""

    __slots__ = ("begin", "cap", "end", "inflight", "rights")

    def __init__(self, mine: Capability, handed: Capability) -> None:
        self.cap = handed
        self.begin = handed.start - mine.start
        """Where the driver's part begins in the client's, and where it ends."""
        self.end = self.begin + handed.length
        self.rights = int(handed.rights)
        self.inflight = 0


class Hold(NamedTuple):
    """What ends with one request."""

    known: Registered | None
    lent: Capability | None
    """Memory of the client's, lent to the driver."""
    waits_for: str
    """What the wait-for graph says the client waits for; empty if it goes on meanwhile."""
    tasks: tuple[int, ...] = ()
    """Which task of the client's waits."""

    @property
    def cap(self) -> Capability | None:
        """What the driver knows the memory by."""
        return self.known.cap if self.known is not None else self.lent


class Lending:
    """What one client lends to one driver."""

    __slots__ = ("_arena", "_caps", "_client", "_regions", "_target", "_waits")

    def __init__(self, client: KernelAgent, target: KernelAgent) -> None:
        machine = client.machine
        self._arena = machine.arena
        self._caps = machine.caps
        self._waits = machine.waits
        self._client = client
        self._target = target
        self._regions: dict[int, Registered] = {}
        """The registered buffer that was used last, by the client's capability."""

    def registered(self, entry: Submit) -> Registered | None:
        """The registered buffer that holds all of the entry's data and allows what it does; None if there is none.

        Raises as :meth:`CapTable.lookup` does for a region that the client does not have, and :class:`UsageError`
        (EINVAL) for a WRITE whose data are inline as well.
        """
        opcode, buffer = entry.opcode, entry.buffer
        if entry.payload and opcode == _WRITE:
            raise UsageError(f"write of {len(entry.payload)} bytes inline and of memory: expected one of them")
        known = self._regions.get(entry.region)
        if (
            known is not None and self._caps.alive(known.cap)
            and buffer >= known.begin and buffer + entry.length <= known.end
            and not _NEEDS.get(opcode, _BOTH) & ~known.rights
        ):  # fmt: skip
            return known
        return self._find(entry)

    def _find(self, entry: Submit) -> Registered | None:
        """Looks through what the client has handed over, the newest first."""
        mine = self._caps.lookup(self._client.id, CapId(entry.region))
        for handed in self._caps.handed(mine, self._target.id) if mine.kind == "arena" else ():
            known = Registered(mine, handed)
            fits = entry.buffer >= known.begin and entry.buffer + entry.length <= known.end
            if fits and not _NEEDS.get(entry.opcode, _BOTH) & ~known.rights:
                if len(self._regions) >= limits.CAPS_PER_HOLDER_MAX:  # of capabilities that are gone, most of them
                    self._regions = {c: each for c, each in self._regions.items() if self._caps.alive(each.cap)}
                self._regions[entry.region] = known
                return known
        return None

    def take(self, entry: Submit) -> Hold:
        """What the entry's memory needs: a reference to a registered buffer, or a capability for its own."""
        known = self.registered(entry)
        if known is not None:
            self.retain(known)
            return Hold(known, None, "")
        lent = self._lend(entry)
        self._arena.retain(lent.start)
        return Hold(None, lent, "")

    def _lend(self, entry: Submit) -> Capability:
        """A capability on memory of the client's, for the driver, for as long as the request lasts."""
        caps, target = self._caps, self._target
        mine = caps.lookup(self._client.id, CapId(entry.region))
        if caps.count(target.id) >= limits.CAPS_PER_HOLDER_MAX >> 1:  # its own grants must find room
            raise CapabilityError(f"{target.name}: too much memory is lent to it already", errno=errno.EMFILE)
        if mine.kind != "arena":
            raise CapabilityError(f"{mine!r}: expected a capability of kind 'arena'")
        if entry.buffer + entry.length > mine.length:
            raise CapabilityError(
                f"{mine!r}: bytes {entry.buffer}+{entry.length} are outside 0..{mine.length}", errno=errno.EFAULT
            )
        needs = _LOANS.get(entry.opcode)
        return caps.lend(self._client.id, mine.id, target.id, mine.rights & _DATA if needs is None else needs)

    def retain(self, known: Registered) -> None:
        """One more request refers to a registered buffer."""
        if known.inflight == 0:
            self._arena.retain(known.cap.start)
        known.inflight += 1

    def _release(self, known: Registered) -> None:
        known.inflight -= 1
        if known.inflight == 0:
            self._arena.release(known.cap.start)

    def let_go(self, hold: Hold | Registered) -> None:
        """Takes back what a request had."""
        if isinstance(hold, Registered):
            self._release(hold)
            return
        if hold.waits_for:
            self._waits.remove(self._client.node._replace(tasks=hold.tasks), self._target.node, hold.waits_for)
        if hold.known is not None:
            self._release(hold.known)
        if hold.lent is not None:
            self._caps.revoke(hold.lent.id)
            self._arena.release(hold.lent.start)

    def revoke(self, hold: Hold | Registered) -> Hold | Registered | None:
        """The client is not interested any more; returns what the driver still has, None for nothing."""
        if isinstance(hold, Registered):
            return hold
        if hold.waits_for:
            self._waits.remove(self._client.node._replace(tasks=hold.tasks), self._target.node, hold.waits_for)
        if hold.lent is not None:
            self._caps.revoke(hold.lent.id)
        return None if hold.cap is None else hold._replace(waits_for="")
