"""Which line is collected next: the published rules, rules of one's own, and hints from outside.

A rule is a function of :class:`Candidates`; a hint is a list of lines that is looked at when a victim is needed, and
never waited for.  Each hinted line is checked against the state of that moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

HINTED_MAX: Final = 256
"""Lines that may wait in hints; more are refused."""


class Candidates(NamedTuple):
    """State of the lines that may be collected, as columns; a line is known by its id and its generation."""

    line: Sequence[int]
    generation: Sequence[int]
    """How often the line has been opened: a hint about an earlier life is stale."""
    valid: Sequence[int]
    """Units that would have to move."""
    erases: Sequence[int]
    age: Sequence[int]
    """Units that the host has written since the line was closed."""
    reads: Sequence[int]
    """Since it was opened."""
    line_units: int
    free_lines: int


Selector: TypeAlias = "Callable[[Candidates, Callable[[], int]], int]"
"""Gives an index into the columns; the second argument draws 32 random bits."""


def greedy(seen: Candidates, draw: Callable[[], int]) -> int:
    """Fewest valid units (FEMU; Linux f2fs in the foreground)."""
    return min(range(len(seen.valid)), key=seen.valid.__getitem__)


def cost_benefit(seen: Candidates, draw: Callable[[], int]) -> int:
    """Most of (1 - u) * age / 2u, u being the share of valid units (Kawaguchi et al., USENIX 1995, for flash)."""
    full = seen.line_units
    return max(
        range(len(seen.valid)),
        key=lambda i: (full - seen.valid[i]) * (seen.age[i] + 1) * 1024 // (2 * seen.valid[i] or 1),
    )


def fifo(seen: Candidates, draw: Callable[[], int]) -> int:
    """The line that was closed first; lines that are all valid are passed over."""
    return next((i for i, valid in enumerate(seen.valid) if valid < seen.line_units), 0)


def d_choices(seen: Candidates, draw: Callable[[], int]) -> int:
    """The best of eight at random (Li, Lee and Lui, SIGMETRICS 2013; MQSim's RGA)."""
    picks = [draw() % len(seen.valid) for _ in range(8)]
    return min(picks, key=seen.valid.__getitem__)


def at_random(seen: Candidates, draw: Callable[[], int]) -> int:
    """Any line (MQSim's RANDOM): the floor of every comparison."""
    return draw() % len(seen.valid)


def wear_aware(seen: Candidates, draw: Callable[[], int]) -> int:
    """Greedy, but an erase count above the lowest costs as much as a valid unit for each cycle (ours)."""
    least = min(seen.erases)
    return min(range(len(seen.valid)), key=lambda i: seen.valid[i] + seen.erases[i] - least)


SELECTORS: Final[Mapping[str, Selector]] = MappingProxyType({
    "greedy": greedy, "cost-benefit": cost_benefit, "fifo": fifo, "d-choices": d_choices, "random": at_random,
    "wear-aware": wear_aware,
})  # fmt: skip


class _Hint(NamedTuple):
    line: int
    generation: int
    """-1: whichever it is."""
    max_valid: int
    expires_ns: int


class Hints:
    """Lines that somebody outside wants collected next, in that order."""

    def __init__(self) -> None:
        self._waiting: deque[_Hint] = deque()
        self.applied = 0
        self.refused: dict[str, int] = dict.fromkeys(("unknown", "stale", "expired", "full", "not_worth", "state"), 0)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def offer(
        self, lines: Sequence[int], generations: Sequence[int] | None, max_valid: int, expires_ns: int, known: int
    ) -> int:
        """Takes what it has room for; how many those are.  ``known``: ids below this exist."""
        taken = 0
        for index, line in enumerate(lines):
            if not 0 <= line < known:
                self.refused["unknown"] += 1
            elif len(self._waiting) >= HINTED_MAX:
                self.refused["full"] += 1
            else:
                generation = -1 if generations is None or index >= len(generations) else generations[index]
                self._waiting.append(_Hint(line, generation, max_valid, expires_ns))
                taken += 1
        return taken

    def drop(self) -> None:
        """Those that still wait have come too late."""
        self.refused["expired"] += len(self._waiting)
        self._waiting.clear()

    def take(
        self, closed: Mapping[int, None], valid: Sequence[int], generation: Sequence[int], line_units: int, now_ns: int
    ) -> int:
        """The first hinted line that is good now; -1: none.  Those before it are refused for good."""
        while self._waiting:
            hint = self._waiting.popleft()
            if hint.expires_ns < now_ns:
                reason = "expired"
            elif hint.generation not in (-1, generation[hint.line]):
                reason = "stale"
            elif hint.line not in closed:
                reason = "state"
            elif valid[hint.line] >= line_units or (hint.max_valid and valid[hint.line] > hint.max_valid):
                reason = "not_worth"
            else:
                self.applied += 1
                return hint.line
            self.refused[reason] += 1
        return -1
