"""Variations of the best candidate of the learned family: the portfolio is where the search begins.

A few slots hold variations.  When the weakest has had its time it makes room for a new one, made from the best
candidate at that moment; of many random steps the one is tried that a Bayesian linear regression of river's, taught
by how earlier steps turned out, expects most of (an optimistic draw from its predictive distribution).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from river import linear_model
from river.base.typing import FeatureName

from uxk.subsystems.lfs.miniature import parse_policy
from uxk_gc.candidates import NAMES, STEPS, VARIATIONS
from uxk_gc.chooser import Chooser
from uxk_gc.miniatures import Miniatures

TRIAL_EPOCHS: Final = 12
"""Before this nobody judges a variation."""
EVERY: Final = 6
"""Epochs from one new variation to the next."""
DRAWS: Final = 24


class Search:
    """Fills the last :data:`VARIATIONS` candidates again and again."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._epoch = 0
        self._born: dict[int, int] = {}
        self._step: dict[int, tuple[dict[FeatureName, float], float]] = {}
        """What was changed for each slot, and its parent's mean at that time."""
        self.surrogate = linear_model.BayesianLinearRegression(alpha=25, beta=400)
        self.tried = 0

    def reseed(self, rng: np.random.Generator) -> None:
        """Goes on with another stream of random numbers."""
        self._rng = rng

    def vary(self, miniatures: Miniatures, chooser: Chooser) -> None:
        """One epoch is over; now and then the weakest variation is replaced."""
        self._epoch += 1
        if self._epoch % EVERY:
            return
        means = np.asarray(chooser.means)
        slots = range(len(miniatures) - VARIATIONS, len(miniatures))
        due = [slot for slot in slots if self._epoch - self._born.get(slot, -TRIAL_EPOCHS) >= TRIAL_EPOCHS]
        due = [slot for slot in due if slot != chooser.choice]
        family = [n for n, each in enumerate(miniatures.candidates) if each.placement == "rate"]
        if not due or not family:
            return
        slot = max(due, key=lambda number: float(means[number]))
        parent = min(family, key=lambda number: float(means[number]))
        if slot == parent:
            return
        self._judge(slot, means)
        step = self._propose()
        old = miniatures.candidates[parent]
        pairs = zip(NAMES, old.args, strict=True)
        changed = tuple(int(value + step.get(name, 0) * STEPS.get(name, 0)) for name, value in pairs)
        miniatures.replace(slot, parent, parse_policy(old.name, clamp(changed)))
        chooser.forget(slot, parent)
        self._born[slot], self._step[slot] = self._epoch, (step, float(means[parent]))
        self.tried += 1

    def _judge(self, slot: int, means: np.ndarray) -> None:
        """The surrogate learns what a step was worth, in per cent of its parent's cost."""
        if slot in self._step:
            step, before = self._step.pop(slot)
            self.surrogate.learn_one(step, 100 * (float(means[slot]) - before))

    def _propose(self) -> dict[FeatureName, float]:
        """Of many small random steps, the one with the best prospect."""
        best: dict[FeatureName, float] = {}
        best_value = np.inf
        for _ in range(DRAWS):
            count = 1 + int(self._rng.integers(3))
            names = self._rng.choice(list(STEPS), count, replace=False)
            step: dict[FeatureName, float] = {str(name): float(self._rng.choice((-2, -1, 1, 2))) for name in names}
            prospect: Any = self.surrogate.predict_one(step, with_dist=True)  # a Gaussian
            value = float(self._rng.normal(prospect.mu, prospect.sigma))
            if value < best_value:
                best, best_value = step, value
        return best


def clamp(args: tuple[int, ...]) -> tuple[int, ...]:
    """Within what is worth a try; the kernel's own bounds are wider."""
    lows = (0, 0, 0, 8, 0, 8, 0, 1, -128, 0, 1, 0)
    highs = (32, 8, 512, 160, 512, 160, 16, 16, 128, 16, 64, 64)
    return tuple(min(max(value, low), high) for value, low, high in zip(args, lows, highs, strict=True))
