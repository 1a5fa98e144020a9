"""What a program at the victim-selection site sees of a segment, and how an agent computes the same.

Shares and times are relative to the volume, so that a program means the same to a volume and to its miniatures.
Logarithms are to the base 2, in 1/256.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from uxk.bpf.compiler.schema import Feature, Schema
from uxk.bpf.values import S64_MAX, S64_MIN
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.learned import lg
from uxk.subsystems.lfs.fast.select import CLOCK_SHIFT, PARTS, TICKS_MAX, TIME_MAX, shown_rows

Rows: TypeAlias = npt.NDArray[np.int64]

_SHARE_MAX: Final = int(lg(PARTS))
_TIME_MAX: Final = int(lg(TICKS_MAX + 1))
SCHEMA: Final = Schema([
    Feature("garbage", 0, _SHARE_MAX, "log2 of 1/1024 of a segment"),
    Feature("valid", 0, _SHARE_MAX, "log2 of 1/1024 of a segment"),
    Feature("age", 0, _TIME_MAX, "log2 of 1/65536 of a volume written"),
    Feature("fill", 0, _TIME_MAX, "log2 of 1/65536 of a volume written"),
    Feature("log", 0, c.FOREIGN),
])  # fmt: skip
"""``age`` is since the segment was sealed, ``fill`` from its opening to that; ``log`` 15 is another policy's."""
VERDICT: Final = (S64_MIN, S64_MAX)
"""A score, signed: the highest is cleaned, and the lowest number of equals."""


def feature_rows(segments: npt.NDArray[Any], segment_blocks: int, pages: int) -> Rows:
    """``int64[n, 5]``: what the kernel would show of rows of the dataset ``segments``, of sealed ones."""
    table = np.empty((len(segments), 4), np.int64)
    for column, name in enumerate(("live", "age", "fill", "log")):
        table[:, column] = segments[name]
    rows = np.zeros((len(segments), len(SCHEMA)), np.int64)
    shown_rows(table, segment_blocks, pages, rows)
    return rows


def row_of(live: int, age: int, fill: int, log: int, segment_blocks: int, pages: int) -> tuple[int, ...]:
    """The same of one segment, with the zero behind it, in Python's integers."""
    shares = ((segment_blocks - live) * PARTS // segment_blocks, live * PARTS // segment_blocks)
    times = ((min(max(each, 0), TIME_MAX) << CLOCK_SHIFT) // max(pages, 1) for each in (age, fill))
    octaves = (int(lg(min(ticks, TICKS_MAX) + 1)) for ticks in times)
    return (*(int(lg(share)) for share in shares), *octaves, min(max(log, 0), c.FOREIGN), 0)
