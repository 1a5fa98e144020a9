"""A decision site: where a kernel's subsystem may follow a hint, and never waits for one (R110).

Holds the newest standing hint and a few one-shot hints.  A hint is followed if it is fresh (time to live), of the
site's present generation, and passes the site's own check against current state, at that very moment; otherwise it
is refused, with the reason counted and told to its sender, and the built-in default decides in the same step (R28,
R104).
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from typing import Final

from uxk.core.kpi import shown
from uxk.core.mode import ModeMachine
from uxk.errors import UsageError
from uxk.limits import I64_MAX, PPM
from uxk.uapi.entries import Hint
from uxk.uapi.ml import Feedback

REASONS_MAX: Final = 64
"""Distinct reasons counted; a check's further ones are counted as ``other``."""
REASON_MAX_CHARS: Final = 64
"""Longest reason: a check may build it from what an agent sent."""
GIVEN_MAX: Final = 1024
"""Hints given out whose outcome may still be told."""


class Held:
    """A hint that waits to be followed."""

    __slots__ = ("expires_ns", "hint", "sender")

    def __init__(self, hint: Hint, sender: int, expires_ns: int) -> None:
        self.hint = hint
        self.sender = sender
        self.expires_ns = expires_ns


def _no_feedback(sender: int, feedback: Feedback) -> None:
    """Nobody is told."""


def _any_origin(hint: Hint) -> str:
    """No datasets are known: nothing can be said against a hint's origin."""
    return ""


class DecisionSite:
    """One site.  ``check(payload)`` returns a reason to refuse, or ``""``; it must not keep the payload.

    ``modes`` says which share of units follows hints; without it, all do.  ``units`` is how many experimental
    units there are: parts of the work that share no state.  ``depth`` one-shot hints are kept, the oldest goes.
    ``origin(hint)`` judges the dataset that a hint names; ``feedback(sender, record)`` takes what is told.
    """

    __slots__ = (
        "_arms", "_given", "_once", "_rank", "_standing", "check", "depth", "expired", "feedback",
        "generation", "hints_applied", "hints_received", "hints_refused", "last_heard_ns", "modes", "name", "origin",
        "rejects", "superseded", "units",
    )  # fmt: skip

    def __init__(
        self, name: str, check: Callable[[bytes], str], *, modes: ModeMachine | None = None, units: int = 1,
        depth: int = 1, origin: Callable[[Hint], str] = _any_origin,
        feedback: Callable[[int, Feedback], object] = _no_feedback,
    ) -> None:  # fmt: skip
        if units < 1 or depth < 1:
            raise UsageError(f"site {name}: units={units}, depth={depth}: expected at least 1")
        self.name = name
        self.check = check
        self.modes = modes
        self.units = units
        self.depth = depth
        self.origin = origin
        self.feedback = feedback
        self.generation = 0
        """Hints must name it; grows when state has changed so much that earlier advice is void."""
        self.rejects: dict[str, int] = {}
        self.hints_received = self.hints_applied = self.hints_refused = self.expired = self.superseded = 0
        self.last_heard_ns: int | None = None
        """When the last good hint came in."""
        self._standing: Held | None = None
        self._once: deque[Held] = deque()
        self._given: dict[int, tuple[Hint, int]] = {}
        """Hints given out and their senders, by identity: command ids are unique for each sender only."""
        order = sorted(range(units), key=lambda unit: (zlib.crc32(f"{name}/{unit}".encode()), unit))
        self._rank = {unit: rank for rank, unit in enumerate(order)}
        self._arms = (-1, 0)

    # --- taking in ---

    def offer(self, sender: int, hint: Hint, now_ns: int) -> str:
        """Takes a hint in; returns the reason if it is refused at once."""
        self.hints_received += 1
        reason = self._fault(hint) or self.origin(hint)
        if reason:
            return self._count(reason)
        held = Held(hint, sender, now_ns + hint.ttl_ns)
        self.last_heard_ns = now_ns
        if hint.standing:
            self.superseded += self._standing is not None
            self._standing = held
        else:
            if len(self._once) >= self.depth:
                self._once.popleft()
                self.superseded += 1
            self._once.append(held)
        return ""

    def deny(self, reason: str) -> str:
        """Counts a hint that was not even looked at: it says nothing about those who may give some, when they may."""
        self.rejects[reason] = self.rejects.get(reason, 0) + 1
        return reason

    def _fault(self, hint: Hint) -> str:
        """What speaks against a hint now."""
        return "stale_generation" if hint.generation != self.generation else self.check(hint.payload)

    def _fault_now(self, held: Held, now_ns: int) -> str:
        return "expired" if now_ns > held.expires_ns else self._fault(held.hint)

    # --- deciding ---

    def standing(self, now_ns: int, unit: int = -1) -> Hint | None:
        """The standing hint in force now, for this unit if one is named; None: the default decides."""
        held = self._standing
        if held is None:
            return None
        fault = self._fault_now(held, now_ns)
        if fault:
            self._standing = None
            self._drop(held, fault)
            return None
        if not self.follows(unit):
            return None
        self._give(held)
        return held.hint

    def take(self, now_ns: int, unit: int = -1) -> Hint | None:
        """The oldest one-shot hint that is good now, used up by this; None: the default decides."""
        if not self._once or not self.follows(unit):
            return None
        while self._once:
            held = self._once.popleft()
            fault = self._fault_now(held, now_ns)
            if not fault:
                self._give(held)
                return held.hint
            self._drop(held, fault)
        return None

    def follows(self, unit: int = -1) -> bool:
        """Whether this unit follows hints in the present mode; -1 asks whether any does.

        The hinted arm only grows with the share, and keeps at least one unit, as does the other one below 100 %.
        A single unit follows hints in every mode but EMERGENCY, and has nothing to be compared with.
        Raises :class:`UsageError` for a unit that the site has not.
        """
        modes = self.modes
        if modes is None:
            return True
        share_ppm = modes.share_ppm
        if unit < 0:
            return share_ppm > 0
        if share_ppm != self._arms[0]:
            self._arms = (share_ppm, self._arm(share_ppm))
        rank = self._rank.get(unit)
        if rank is None:
            raise UsageError(f"site {self.name}: unit {unit}, expected 0 to {self.units - 1}")
        return rank < self._arms[1]

    @property
    def hinted_units(self) -> int:
        """How many units follow hints now."""
        return self._arm(self.share_ppm)

    def _arm(self, share_ppm: int) -> int:
        if share_ppm <= 0 or share_ppm >= PPM:
            return self.units if share_ppm > 0 else 0
        return min(max(1, self.units * share_ppm // PPM), max(1, self.units - 1))

    @property
    def share_ppm(self) -> int:
        """The share of units that follows hints now."""
        return PPM if self.modes is None else self.modes.share_ppm

    @property
    def held(self) -> int:
        """Hints that wait, the standing one included."""
        return len(self._once) + (self._standing is not None)

    def advance(self) -> int:
        """Starts the next generation: hints for earlier state are stale from now on."""
        self.generation += 1
        return self.generation

    def clear(self, reason: str) -> None:
        """Drops all hints that wait, through no fault of theirs; their senders are told why."""
        dropped = list(self._once) if self._standing is None else [*self._once, self._standing]
        self._once.clear()
        self._standing = None
        for held in dropped:
            self.superseded += 1
            self._tell(held.hint, held.sender, 0, 0, reason)

    # --- afterwards ---

    def applied(self, hint: Hint, *, outcome: int, baseline: int = 0) -> None:
        """A hint that was given out has been followed, and this came of it: its sender is told.

        ``baseline`` is what the default would have given, by estimate.  May be called more than once for a
        standing hint, with what came of it since.  Raises :class:`UsageError` for a hint not from here, one whose
        sender is gone (ask :meth:`gave`), and figures that are no signed 64-bit integers.
        """
        self._check_figures(outcome, baseline)
        sender = self._sender(hint)
        self.hints_applied += 1
        if not hint.standing:
            del self._given[id(hint)]
        self._tell(hint, sender, outcome, baseline, "")

    def refuse(self, hint: Hint, reason: str, *, outcome: int = 0) -> None:
        """A hint that was given out could not be followed after all, or not wholly: counted, and told.

        Raises as :meth:`applied`.
        """
        self._check_figures(outcome)
        sender = self._sender(hint)
        reason = self._count(reason)
        del self._given[id(hint)]
        if self._standing is not None and self._standing.hint is hint:
            self._standing = None
        self._tell(hint, sender, outcome, 0, reason)

    def forget(self, sender: int) -> bool:
        """Drops all hints of an instance that is gone; returns whether there were any, in force or given out."""
        before = self.held + len(self._given)
        if self._standing is not None and self._standing.sender == sender:
            self._standing = None
        self._once = deque(held for held in self._once if held.sender != sender)
        self._given = {key: given for key, given in self._given.items() if given[1] != sender}
        return self.held + len(self._given) < before

    def gave(self, hint: Hint) -> bool:
        """Whether this hint was given out here, and its sender still hears what came of it."""
        return id(hint) in self._given

    # --- inside ---

    def _sender(self, hint: Hint) -> int:
        given = self._given.get(id(hint))
        if given is None:
            raise UsageError(f"site {self.name}: hint {hint.cid} was not given out here, or its sender is gone")
        return given[1]

    def _check_figures(self, *figures: int) -> None:
        """What a record cannot hold is found where it is told, not when it is sent."""
        for each in figures:
            if type(each) is not int or not -I64_MAX <= each <= I64_MAX:
                raise UsageError(f"site {self.name}: {shown(each)} as an outcome: expected a signed 64-bit integer")

    def _give(self, held: Held) -> None:
        given = self._given
        if id(held.hint) not in given:
            if len(given) >= GIVEN_MAX:
                del given[next(iter(given))]
            given[id(held.hint)] = (held.hint, held.sender)

    def _drop(self, held: Held, fault: str) -> None:
        """One that has waited too long, or that current state forbids."""
        self.expired += fault == "expired"
        self._tell(held.hint, held.sender, 0, 0, self._count(fault))

    def _count(self, reason: str) -> str:
        self.hints_refused += 1
        if len(reason) > REASON_MAX_CHARS or not reason.isprintable():
            reason = ascii(reason)[1:-1][:REASON_MAX_CHARS]
        key = reason if reason in self.rejects or len(self.rejects) < REASONS_MAX else "other"
        self.rejects[key] = self.rejects.get(key, 0) + 1
        return reason

    def _tell(self, hint: Hint, sender: int, outcome: int, baseline: int, reject: str) -> None:
        self.feedback(sender, Feedback(
            hint.cid, self.name, hint.predicted, outcome, baseline, reject, hint.dataset, hint.dataset_generation
        ))  # fmt: skip
