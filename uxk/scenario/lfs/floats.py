"""An agent's own float model in the place of the program that was made of it: for comparisons, as no kernel could.

Everything else stays as it is: the program is verified, judged in the shadow and swapped in, and whenever it would be
asked, its model is.  What the volume then writes less or more is the price of having no floating point.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from uxk.kernel.bpf.loaded import Loaded
from uxk.scenario.lfs.memory import instances_of
from uxk.subsystems.lfs.program import Twin
from uxk.subsystems.lfs.rows import SCHEMA
from uxk.subsystems.lfs.scorer import Scorer

METHOD: Final = "float_scores"
"""What an agent has that can be asked: from a program's code, the function of a row that it was made of, or None."""
_SIGN: Final = (1 << 63) - 1
KNOWN_MAX: Final = 1 << 20
"""Rows whose score is kept."""


def ordered(value: float) -> int:
    """A whole number of 64 bits for a float, in the same order; both zeros are one.  ValueError for NaN."""
    if math.isnan(value):
        raise ValueError("a score that is no number")
    bits: int = struct.unpack("<q", struct.pack("<d", value + 0.0))[0]
    return bits if bits >= 0 else -(bits & _SIGN)


def twin_of(classes: Callable[[], set[type[Any]]]) -> Twin:
    """For :attr:`uxk.subsystems.lfs.program.GcPolicy.twin`; ``classes`` are those of the agents of a run."""

    def twin(program: Loaded) -> Scorer | None:
        for cls in classes():
            for each in instances_of(cls) if hasattr(cls, METHOD) else ():
                score = getattr(each, METHOD)(program.program.code)
                if score is not None:
                    return Scorer(_remembered(score))
        return None

    return twin


def _remembered(score: Callable[[Sequence[int]], float]) -> Callable[[tuple[int, ...]], int]:
    """A model says the same of the same row."""
    known: dict[tuple[int, ...], int] = {}
    width = len(SCHEMA)

    def decide(row: tuple[int, ...]) -> int:
        found = known.get(row)
        if found is None:
            if len(known) >= KNOWN_MAX:
                known.clear()
            found = known[row] = ordered(score(row[:width]))
        return found

    return decide
