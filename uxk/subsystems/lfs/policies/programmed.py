"""A selection whose score is a program's, for the reference engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from uxk.subsystems.lfs.policies.base import Selection
from uxk.subsystems.lfs.rows import row_of

if TYPE_CHECKING:
    from uxk.subsystems.lfs.reference import Volume


class Programmed(Selection):
    """The segment that a function of :data:`uxk.subsystems.lfs.rows.SCHEMA`'s numbers, and a zero, scores highest."""

    name = "program"
    source = "the user's"

    def __init__(self, decide: Callable[[tuple[int, ...]], int | None]) -> None:
        self._decide = decide

    def victim(self, volume: Volume) -> int:
        """As :meth:`Selection.victim`; scores may be negative."""
        best, best_score = -1, 0
        for segment, live in enumerate(volume.live):
            if live > volume.most:
                continue
            if live == 0:
                return segment
            sealed = volume.sealed_at[segment]
            times = volume.now - sealed, sealed - volume.born[segment]
            score = self._decide(row_of(live, *times, volume.log_of[segment], volume.size, volume.pages))
            if score is not None and (best < 0 or score > best_score):
                best, best_score = segment, score
        return best
