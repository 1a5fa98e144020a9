"""Which candidate to recommend, from what the miniatures cost.

All candidates' costs are seen in every epoch, so there is nothing to explore; what is not known is how much of the
past still counts.  Means that fade fast follow a workload that shifts, and chase noise in one that does not.  So
each memory length is an expert of its own, which recommends the candidate with the lowest fading mean, and the
expert whose recommendations have cost least is believed: tracking the best expert (Herbster and Warmuth, 1998)
with fading means of river's in both layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
from river import stats

from uxk_gc.miniatures import Costs

MEMORIES: Final = (8, 24, 96)
"""Half-lives of the fading means, in epochs."""
MARGIN: Final = 0.012
"""A candidate must be better than the recommended one by this share: changing costs moves, too."""
WARM_EPOCHS: Final = 6
"""Before this there is no recommendation."""


class Chooser(Protocol):
    """Takes every epoch's costs, one per candidate; ``choice`` is the candidate to recommend, -1 for none."""

    choice: int

    @property
    def means(self) -> Costs:
        """What each candidate is thought to cost."""
        ...

    def learn(self, costs: Costs) -> None:
        """One epoch's write amplification of each candidate."""
        ...

    def forget(self, number: int, like: int) -> None:
        """Candidate ``number`` is a new one, that is known no better than ``like``."""
        ...


class Expert:
    """The candidate with the lowest mean over one memory length."""

    def __init__(self, candidates: int, half_life: int) -> None:
        fading = 1 - 0.5 ** (1 / half_life)
        self._fading = fading
        self._means = [stats.EWMean(fading) for _ in range(candidates)]
        self.choice = -1

    @property
    def means(self) -> Costs:
        """The fading mean of each candidate's cost."""
        return np.array([mean.get() for mean in self._means])

    def learn(self, costs: Costs) -> None:
        """One epoch."""
        for mean, cost in zip(self._means, costs, strict=True):
            mean.update(float(cost))
        means = self.means
        best = int(np.argmin(means))
        if self.choice < 0 or means[best] < means[self.choice] * (1 - MARGIN):
            self.choice = best

    def forget(self, number: int, like: int) -> None:
        """Takes over another candidate's mean."""
        mean = stats.EWMean(self._fading)
        mean.update(self._means[like].get())
        self._means[number] = mean


class River:
    """Experts with memories of several lengths, and one above them that tells who is right."""

    def __init__(self, candidates: int, rng: np.random.Generator, memories: Sequence[int] = MEMORIES) -> None:
        self._experts = [Expert(candidates, half_life) for half_life in memories]
        self._judge = Expert(len(memories), memories[-1])
        self._epochs = 0
        self.choice = -1

    @property
    def means(self) -> Costs:
        """Each candidate's mean, in the eyes of the expert that is believed."""
        return self._experts[max(self._judge.choice, 0)].means

    def learn(self, costs: Costs) -> None:
        """Judges the experts by what they had recommended, then teaches them."""
        self._epochs += 1
        choices = [expert.choice for expert in self._experts]
        if min(choices) >= 0:
            self._judge.learn(costs[choices])
        for expert in self._experts:
            expert.learn(costs)
        if self._epochs >= WARM_EPOCHS:
            self.choice = self._experts[max(self._judge.choice, 0)].choice

    def forget(self, number: int, like: int) -> None:
        """A candidate was replaced."""
        for expert in self._experts:
            expert.forget(number, like)


class Minimum:
    """For comparison: whichever cost least in the last epoch."""

    def __init__(self, candidates: int, rng: np.random.Generator) -> None:
        self._epochs = 0
        self.choice = -1
        self._costs: Costs = np.ones(candidates)

    @property
    def means(self) -> Costs:
        """The last epoch's costs."""
        return self._costs

    def learn(self, costs: Costs) -> None:
        """One epoch."""
        self._epochs += 1
        self._costs = costs
        if self._epochs >= WARM_EPOCHS:
            self.choice = int(np.argmin(costs))

    def forget(self, number: int, like: int) -> None:
        """Nothing is remembered anyway."""


class Random(Minimum):
    """For comparison: any candidate, another one every 16 epochs."""

    def __init__(self, candidates: int, rng: np.random.Generator) -> None:
        super().__init__(candidates, rng)
        self._rng = rng

    def learn(self, costs: Costs) -> None:
        """Costs do not matter."""
        self._epochs += 1
        self._costs = costs
        if self._epochs >= WARM_EPOCHS and self._epochs % 16 == WARM_EPOCHS % 16:
            self.choice = int(self._rng.integers(len(costs)))


CHOOSERS: Final = {"river": River, "minimum": Minimum, "random": Random}
