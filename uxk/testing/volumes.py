"""A log-structured volume at work, for agents that advise its collector."""

from __future__ import annotations

from typing import Any

import numpy as np

from uxk.kernel.kernel import Kernel
from uxk.scenario.pages import load_pages
from uxk.subsystems.lfs.params import LfsParams
from uxk.subsystems.lfs.subsystem import Lfs


def volume(
    kernel: Kernel, workload: str = "zipf1.0", *, pages: int = 16_384, segment_blocks: int = 64, **settings: Any
) -> Lfs:
    """A volume ``lfs0`` that is filled, then written ten times over as the kernel runs.

    ``workload``: as ``uxk run lfs-gc --workload`` takes it, drawn from the kernel's seed; ``settings``: those of
    ``[subsystems.lfs]``.  :class:`ConfigError` for what is unknown.
    """
    run = load_pages(workload, pages=pages, seed=kernel.seed)
    params = LfsParams(segment_blocks=segment_blocks, **settings)
    return Lfs(kernel, params, run.pages.astype(np.int32), fill=run.fill, pages=run.volume_pages)
