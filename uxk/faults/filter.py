"""One fault as a filter that messages of one side pass; filters stack, as those of nbdkit do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from uxk.actor.actor import Crash
from uxk.faults.forge import corrupted, lied, staled
from uxk.faults.sides import passes
from uxk.faults.strike import Striker
from uxk.uapi.entries import Entry

if TYPE_CHECKING:
    from uxk.faults.host import FaultyHost

Item: TypeAlias = Entry | bytes
"""A message, or a frame that cannot be read any more."""
REORDER_NS: Final = 1_000_000
"""How long a message waits for one to overtake it, if the fault does not say."""


class Filter:
    """What one fault does to the messages of one incarnation.  ``at`` is its place in its stack."""

    __slots__ = ("_free_at_ns", "_host", "_overtaken", "at", "striker")

    def __init__(self, host: FaultyHost, striker: Striker) -> None:
        self._host = host
        self.striker = striker
        self.at = 0
        self._free_at_ns = 0
        """When a slowed instance has said what it has to say so far."""
        self._overtaken: list[Item] = []
        """Waits for another message to overtake it."""

    def pass_on(self, now_ns: int, items: Sequence[Item]) -> Sequence[Item]:
        """What is left of these messages: the same object if nothing befell them."""
        striker, host, out = self.striker, self._host, list[Item]()
        fault = striker.fault
        keeps, changed = fault.kind in ("stale", "lie"), bool(self._overtaken)
        for item in items:
            if isinstance(item, bytes) or not passes(fault.side, item):
                out.append(item)
                continue
            name = host.name_of(fault.side, item)
            if host.broken or not striker.strikes(now_ns, item, name):
                out.append(item)
                if self._overtaken:
                    out += self._overtaken
                    self._overtaken = []
            else:
                before = len(out)
                self._strike(now_ns, item, name, out)
                changed |= out[before:] != [item] or fault.kind == "crash"
            if keeps:
                striker.remember(item, name)
        if self._overtaken:
            wait_ns = fault.delay_ns or REORDER_NS
            host.machine.call_later(wait_ns, self._give_up, list(self._overtaken))
        return out if changed else items

    def _strike(self, now_ns: int, item: Any, name: str, out: list[Item]) -> None:
        """At most one fault of a kind befalls a message; what is left of it goes to ``out``."""
        striker, host, fault = self.striker, self._host, self.striker.fault
        if fault.kind == "lie":
            lie = lied(item, striker.earlier(name), striker.stream)
            if lie is None:
                out.append(item)
                return
            out.append(lie)
        elif fault.kind == "corrupt":
            out.append(corrupted(item, fault.part, striker.stream))
        elif fault.kind == "stale":
            old = striker.earlier(name)[0]
            out += [staled(item, old)] if fault.part == "payload" else [old, item]
        elif fault.kind == "duplicate":
            out += [item, item]
        elif fault.kind == "delay":
            host.machine.call_later(fault.delay_ns, self._let_go, [item])
        elif fault.kind == "slow":
            self._slow(now_ns, item, out)
        elif fault.kind == "reorder":
            self._overtaken.append(item)
        elif fault.kind == "crash":
            host.break_down(Crash("fault", "Injected", f"fault {striker.name}", ""))
        elif fault.kind != "drop":
            out.append(item)
            host.befall(fault)
        striker.note(host.agent, f"{type(item).__name__.lower()} {getattr(item, 'cid', name)}")

    def _slow(self, now_ns: int, item: Any, out: list[Item]) -> None:
        """Holds a message so that it comes ``factor`` times as late; none overtakes another."""
        fault = self.striker.fault
        needed_ns = max(fault.delay_ns, now_ns - self._host.since_ns(fault.side, item, now_ns))
        due_ns = max(self._free_at_ns, now_ns + (fault.factor - 1) * needed_ns)
        self._free_at_ns = due_ns
        if due_ns <= now_ns:
            out.append(item)
        else:
            self._host.machine.call_later(due_ns - now_ns, self._let_go, [item])

    def _give_up(self, items: list[Item]) -> None:
        """Nobody has overtaken these."""
        left = [item for item in items if any(item is each for each in self._overtaken)]
        self._overtaken = [each for each in self._overtaken if not any(each is item for item in left)]
        if left:
            self._let_go(left)

    def _let_go(self, items: list[Item]) -> None:
        self._host.let_go(self, items)
