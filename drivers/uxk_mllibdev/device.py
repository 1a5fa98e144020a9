"""The emulated device: a stream of bytes around a level, and a kernel default that guesses the middle.

What is to be learned is the level.  An epoch draws one value for each unit; units that follow a hint guess what it
says, the others guess :data:`DEFAULT_GUESS`, and the indicator is a hundred times the mean distance, plus a hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

UNITS: Final = 16
DEFAULT_GUESS: Final = 128


class Arms(NamedTuple):
    """What an epoch gave: indicators (above 0, lower is better; 0: no unit in that arm), and hinted units."""

    default_kpi: int
    hinted_kpi: int
    hinted_units: int


class Stream:
    """Draws bytes within ``spread`` of ``level``; ``integers(low, end)`` is a random number from low to end - 1."""

    def __init__(self, integers: Callable[[int, int], int], level: int, spread: int) -> None:
        self._integers = integers
        self.level = level
        self.spread = spread

    def draw(self) -> int:
        """The next byte, 0 to 255."""
        return min(255, max(0, self.level + self._integers(-self.spread, self.spread + 1)))

    def epoch(self, guess: int | None, hinted_units: int) -> Arms:
        """One value for each unit; when all follow the hint, the default is scored on the same values."""
        values = [self.draw() for _ in range(UNITS)]
        hinted = 0 if guess is None else min(hinted_units, UNITS)
        rest = values[hinted:] or values
        return Arms(cost(DEFAULT_GUESS, rest), cost(guess or 0, values[:hinted]), hinted)


def cost(guess: int, values: Sequence[int]) -> int:
    """The indicator of some units; 0 for none."""
    return 100 + 100 * sum(abs(guess - value) for value in values) // len(values) if values else 0
