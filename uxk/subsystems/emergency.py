"""How fast a watermark takes the decision away from hints: one record for each emergency."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import asdict

RECORDS_MAX: Final = 4_096
SHOWN: Final = 4
"""Records among the results."""


class Emergency(Struct):
    """Times in ns; -1: not yet."""

    crossed_ns: int
    """The watermark was passed."""
    switched_ns: int
    """The mode was EMERGENCY: from here on, no hint is followed."""
    due_ns: int = -1
    """Since when that was due: later than the watermark, if there was nothing to decide."""
    decided_ns: int = -1
    """The first decision by the default afterwards."""
    over_ns: int = -1
    """The watermark was left behind again."""


class Trigger:
    """A watermark and what follows from it.

    :meth:`look` is called in the very step in which the measure changes: nothing is polled.  ``raise_`` tells
    the mode machine, ``emergency`` asks it whether defaults decide.
    """

    __slots__ = ("_emergency", "_passed", "_raise", "crossings", "enabled", "records")

    def __init__(
        self, raise_: Callable[[bool, str], object], emergency: Callable[[], bool], *, enabled: bool = True
    ) -> None:
        self._raise = raise_
        self._emergency = emergency
        self._passed = False
        self.enabled = enabled
        self.crossings = 0
        """Times that the watermark was passed, also in an emergency that was there already."""
        self.records: list[Emergency] = []

    def look(self, now_ns: int, critical: bool, why: Callable[[], str]) -> None:
        """The measure may have changed."""
        if critical == self._passed:
            return
        self._passed = critical
        if critical:
            self._cross(now_ns, why())
        else:
            if self.enabled:
                self._raise(False, "")
            if self.records and self.records[-1].over_ns < 0:
                self.records[-1].over_ns = now_ns

    def _cross(self, now_ns: int, why: str) -> None:
        self.crossings += 1
        if not self.enabled:
            return
        before = self._emergency()
        self._raise(True, why)
        if not before and self._emergency() and len(self.records) < RECORDS_MAX:
            self.records.append(Emergency(now_ns, now_ns))

    def decided(self, now_ns: int, busy_since_ns: int) -> None:
        """The default has decided something; who decides has been at work since ``busy_since_ns``."""
        if self.records and self.records[-1].decided_ns < 0:
            record = self.records[-1]
            record.due_ns, record.decided_ns = max(record.crossed_ns, busy_since_ns), now_ns

    def results(self) -> dict[str, Any]:
        """Counts, the longest reaction and duration (-1: of none), and the first few of them."""
        decided = [each.decided_ns - each.due_ns for each in self.records if each.decided_ns >= 0]
        over = [each.over_ns - each.crossed_ns for each in self.records if each.over_ns >= 0]
        switched = [each.switched_ns - each.crossed_ns for each in self.records]
        return {
            "crossings": self.crossings, "emergencies": len(self.records), "switch_max_ns": max(switched, default=0),
            "decision_max_ns": max(decided, default=-1), "relief_max_ns": max(over, default=-1),
            "first": [asdict(each) for each in self.records[:SHOWN]],
        }  # fmt: skip
