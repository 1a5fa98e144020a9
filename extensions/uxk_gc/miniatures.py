"""Miniature simulations of candidate policies on the kernel's sample of writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from uxk.subsystems.lfs.miniature import Miniature, Policy

Costs: TypeAlias = npt.NDArray[np.float64]


class Miniatures:
    """One miniature volume per candidate; all of them see the same writes."""

    def __init__(
        self, pages: int, segment_blocks: int, gp_max_ppm: int, logs: int, ratio: int, candidates: Sequence[Policy]
    ) -> None:  # fmt: skip
        self.candidates = list(candidates)
        self.ratio = ratio
        shape = pages, segment_blocks, gp_max_ppm, logs
        self._volumes = [Miniature(*shape, candidate.scaled(ratio)) for candidate in candidates]

    def threshold(self, gp_ppm: int) -> None:
        """Puts the volume's garbage share in force."""
        for volume in self._volumes:
            volume.threshold(gp_ppm)

    def __len__(self) -> int:
        return len(self.candidates)

    def write(self, ops: npt.NDArray[np.int32]) -> Costs | None:
        """Writes the pages, and returns each candidate's write amplification over them; None if there are none."""
        if not len(ops):
            return None
        costs = np.empty(len(self._volumes))
        for number, volume in enumerate(self._volumes):
            volume.run(ops)
            count = volume.epoch()
            costs[number] = (count.user + count.moved) / count.user
        return costs

    def replace(self, number: int, parent: int, candidate: Policy) -> None:
        """Puts a variation in the place of a candidate; it goes on from a copy of its parent's volume."""
        self.candidates[number] = candidate
        self._volumes[number] = self._volumes[parent].clone(candidate.scaled(self.ratio))
