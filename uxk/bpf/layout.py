"""Where the regions of a program lie: the same addresses for the interpreter and for translated programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.memory import SPACING

MEMORY_BASE: Final = SPACING
"""Address of what r1 points to."""
STACK_BASE: Final = 2 * SPACING
"""Address of the lowest byte of the stacks of all frames."""
STACK_TOP: Final = STACK_BASE + i.STACK_BYTES * i.FRAMES_MAX
"""What r10 is at first."""


def value_bases(maps: Iterable[int]) -> dict[int, int]:
    """Address of the first value of each map that has one, by the map's number."""
    return {number: (3 + index) * SPACING for index, number in enumerate(sorted(maps))}
