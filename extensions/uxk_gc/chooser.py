"""Which candidate to recommend, from what the miniatures cost.

All candidates' costs are seen in every epoch, so there is nothing to explore; what is not known is how much of the
past still counts.  Means that fade fast follow a workload that shifts, and chase noise in one that does not.  So
each memory length is an expert of its own, which recommends the candidate with the lowest fading mean, and the
expert whose recommendations have cost least is believed: tracking the best expert (Herbster and Warmuth, 1998)
with fading means of river's in both layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Final, Protocol

import numpy as np
from river import stats

from uxk_gc.miniatures import Costs

MEMORIES: Final = (8, 24, 96)
"""Half-lives of the fading means, in epochs."""
MARGIN: Final = 0.012
"""A candidate must be better than the recommended one by this share (a logarithm): changing costs moves, too."""
MARGIN_PLACEMENT: Final = 0.1
"""The same for another placement once a volume is laid out for the recommended one: it finds no statistics, either."""
WARM_EPOCHS: Final = 3
"""Before this there is no recommendation."""


class Chooser(Protocol):
    """Takes every epoch's costs, one per candidate; ``choice`` is the candidate to recommend, -1 for none."""

    choice: int

    @property
    def means(self) -> Costs:
        """What each candidate is thought to cost: the natural logarithm of its share of the first one's cost."""
        ...

    def learn(self, costs: Costs, followed: bool = False) -> None:
        """One epoch's write amplification of each candidate; ``followed``: much of the volume is laid out for it."""
        ...

    def forget(self, number: int, like: int) -> None:
        """Candidate ``number`` is a new one, that is known no better than ``like``."""
        ...


def relative(costs: Costs) -> Costs:
    """Against the first candidate, the kernel's default: a hard epoch for all of them tells nothing about any."""
    return np.asarray(np.log(costs / costs[0]))


class FadingMean:
    """A mean over a memory of ``half_life`` epochs; the plain one until it has seen that many.

    A fading mean that starts with its first value would remember that one best, and the first epochs of a volume
    are the least like the rest.
    """

    def __init__(self, half_life: int) -> None:
        self._fading = 1 - 0.5 ** (1 / half_life)
        self._mean: stats.Mean | stats.EWMean = stats.Mean()
        self._young = int(1 / self._fading)

    def update(self, value: float) -> None:
        """One epoch."""
        self._mean.update(value)
        self._young -= 1
        if self._young == 0:
            grown = stats.EWMean(self._fading)
            grown.update(self._mean.get())
            self._mean = grown

    def get(self) -> float:
        """The mean so far."""
        return float(self._mean.get())


class Expert:
    """The candidate with the lowest mean over one memory length."""

    def __init__(self, candidates: int, half_life: int) -> None:
        self._means = [FadingMean(half_life) for _ in range(candidates)]
        self.choice = -1

    @property
    def means(self) -> Costs:
        """The fading mean of each candidate's cost."""
        return np.array([mean.get() for mean in self._means])

    def learn(self, costs: Costs) -> None:
        """One epoch; costs are relative ones."""
        for mean, cost in zip(self._means, costs, strict=True):
            mean.update(float(cost))
        means = self.means
        best = int(np.argmin(means))
        if self.choice < 0 or means[best] < means[self.choice] - MARGIN:
            self.choice = best

    def forget(self, number: int, like: int) -> None:
        """Takes over another candidate's mean."""
        self._means[number] = deepcopy(self._means[like])


class River:
    """Experts with memories of several lengths, and one above them that tells who is right."""

    def __init__(self, placements: Sequence[str], rng: np.random.Generator) -> None:
        self._placements = list(placements)
        self._experts = [Expert(len(placements), half_life) for half_life in MEMORIES]
        self._judge = Expert(len(MEMORIES), MEMORIES[-1])
        self._epochs = 0
        self.choice = -1

    @property
    def means(self) -> Costs:
        """Each candidate's mean, in the eyes of the expert that is believed."""
        return self._believed.means

    @property
    def _believed(self) -> Expert:
        return self._experts[max(self._judge.choice, 0)]

    def learn(self, costs: Costs, followed: bool = False) -> None:
        """Judges the experts by what they had recommended, then teaches them."""
        self._epochs += 1
        shares = relative(costs)
        choices = [expert.choice for expert in self._experts]
        if min(choices) >= 0:
            self._judge.learn(shares[choices])
        for expert in self._experts:
            expert.learn(shares)
        if self._epochs >= WARM_EPOCHS:
            wanted, means = self._believed.choice, self.means
            stays = followed and self._placements[wanted] != self._placements[self.choice]
            if not stays or means[wanted] < means[self.choice] - MARGIN_PLACEMENT:
                self.choice = wanted

    def forget(self, number: int, like: int) -> None:
        """A candidate was replaced by a variation of another one."""
        self._placements[number] = self._placements[like]
        for expert in self._experts:
            expert.forget(number, like)


class Minimum:
    """For comparison: whichever cost least in the last epoch."""

    def __init__(self, placements: Sequence[str], rng: np.random.Generator) -> None:
        self._epochs = 0
        self.choice = -1
        self._means: Costs = np.zeros(len(placements))

    @property
    def means(self) -> Costs:
        """The last epoch's costs."""
        return self._means

    def learn(self, costs: Costs, followed: bool = False) -> None:
        """One epoch."""
        self._epochs += 1
        self._means = relative(costs)
        if self._epochs >= WARM_EPOCHS:
            self.choice = int(np.argmin(costs))

    def forget(self, number: int, like: int) -> None:
        """Nothing is remembered anyway."""


class Random(Minimum):
    """For comparison: any candidate, another one every 16 epochs."""

    def __init__(self, placements: Sequence[str], rng: np.random.Generator) -> None:
        super().__init__(placements, rng)
        self._rng = rng

    def learn(self, costs: Costs, followed: bool = False) -> None:
        """Costs do not matter."""
        self._epochs += 1
        self._means = relative(costs)
        if self._epochs >= WARM_EPOCHS and self._epochs % 16 == WARM_EPOCHS % 16:
            self.choice = int(self._rng.integers(len(costs)))


CHOOSERS: Final[Mapping[str, Callable[[Sequence[str], np.random.Generator], Chooser]]] = {
    "river": River, "minimum": Minimum, "random": Random,
}  # fmt: skip
"""By the parameter ``chooser``; each takes its candidates' placements and a stream of random numbers."""
