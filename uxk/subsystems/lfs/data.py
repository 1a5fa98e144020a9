"""The datasets that a volume publishes at the end of every epoch."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.volume import Volume

STATE: Final = np.dtype([
    ("epoch", "<i8"), ("now", "<i8"), ("moved", "<i8"), ("garbage", "<i8"), ("total", "<i8"), ("clean", "<i8"),
    ("pages", "<i8"), ("sampled", "<i8"), ("ratio", "<i8"), ("segment_blocks", "<i8"), ("gp_ppm", "<i8"),
    ("gp_max_ppm", "<i8"), ("logs", "<i8"), ("default_wa_ppm", "<i8"), ("hinted_wa_ppm", "<i8"),
])  # fmt: skip
"""``state``, one row: the volume's registers, the sample (``sampled`` pages, one in ``ratio``; ``segment_blocks`` is
that of a miniature), the garbage share in force and the highest one that it may be set to, and what both shadows did
in the epoch."""
WRITES: Final = np.dtype([("page", "<u4")])
"""``writes``: sampled writes of the epoch in their order, by their numbers in the sample."""
SEGMENTS: Final = np.dtype([
    ("segment", "<u4"), ("live", "<u4"), ("used", "<u4"), ("pool", "<u2"), ("log", "<u2"), ("age", "<i8"),
    ("fill", "<i8"),
])  # fmt: skip
"""``segments``: those that are not clean; ``pool`` 1 follows hints; ``age``: user writes since sealing, -1 if open;
``fill``: user writes from opening to sealing, -1 if open."""


def segment_rows(volume: Volume) -> npt.NDArray[Any]:
    """The rows of ``segments``."""
    seg = volume.seg
    numbers = np.flatnonzero(seg[:, c.USED] > 0)
    rows = np.empty(len(numbers), SEGMENTS)
    part = seg[numbers]
    rows["segment"], rows["live"], rows["used"] = numbers, part[:, c.LIVE], part[:, c.USED]
    rows["pool"], rows["log"] = part[:, c.POOL], part[:, c.CLASS]
    rows["age"] = np.where(part[:, c.SEALED] < 0, -1, volume.reg[c.NOW] - part[:, c.SEALED])
    rows["fill"] = np.where(part[:, c.SEALED] < 0, -1, part[:, c.SEALED] - part[:, c.BORN])
    return rows
