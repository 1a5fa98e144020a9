"""Many trials of one scenario, each with a plan and a schedule of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from uxk.core.streams import RandomStreams
from uxk.scenario.exploring import Exploration
from uxk.scenario.model import Scenario
from uxk.testing.exploring.plans import STREAM, Target, random_plan
from uxk.testing.exploring.shrink import RUNS_MAX, shrink
from uxk.testing.exploring.trial import Outcome, Trial, run_trial


class Finding(NamedTuple):
    """A trial that broke an invariant, and the least that does."""

    trial: Trial
    outcome: Outcome
    shrunk: Trial
    shrunk_outcome: Outcome
    shrink_runs: int

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.trial.seed


class Report(NamedTuple):
    """What an exploration has come to."""

    trials: int
    findings: tuple[Finding, ...]
    struck: int
    """How often faults struck."""
    drawn: dict[str, int]
    """Faults by kind, as they were drawn."""
    hashes: dict[int, str]
    """Event hashes by seed."""
    normal_ns: int = 0
    """Virtual time of a run without faults."""


class Explorer:
    """Draws and runs trials of one scenario.

    The first run has no faults: it tells how long one takes, and what instances do in it.
    """

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.plain = Trial(seed, schedule="fifo")
        self.plain_outcome: Outcome = run_trial(scenario, self.plain)
        self.normal_ns = max(1, self.plain_outcome.virtual_ns)
        self._explore = scenario.explore or Exploration()
        self._targets: tuple[Target, ...] = self.plain_outcome.targets

    def trial(self, seed: int) -> Trial:
        """The trial that a seed stands for."""
        stream = RandomStreams(seed).stream(STREAM)
        plan = random_plan(stream, self._targets, self.normal_ns, self._explore)
        named = (msgspec.structs.replace(fault, name=f"{fault.kind}-{n}") for n, fault in enumerate(plan))
        return Trial(seed, tuple(named))

    def run(self, trial: Trial) -> Outcome:
        """Runs a trial, for as long as is reasonable."""
        return run_trial(self.scenario, trial, normal_ns=self.normal_ns)

    def shrunk(self, trial: Trial, outcome: Outcome, runs_max: int = RUNS_MAX) -> Finding:
        """What it takes at least to break the same."""
        return Finding(trial, outcome, *shrink(self.run, self.scenario, trial, outcome, runs_max=runs_max))


def explore(
    scenario: Scenario, seeds: Iterable[int], *, findings_max: int = 1, shrink_runs_max: int = RUNS_MAX,
    on_trial: Callable[[Trial, Outcome], object] | None = None,
) -> Report:  # fmt: skip
    """Runs a trial for every seed until ``findings_max`` of them have broken an invariant; call it outside of Trio.

    ``on_trial`` hears of each.  Raises UsageError and ModuleError for what is wrong with the scenario.
    """
    seeds = list(seeds)
    explorer = Explorer(scenario, seeds[0] if seeds else scenario.seed)
    findings: list[Finding] = []
    drawn: Counter[str] = Counter()
    hashes: dict[int, str] = {}
    struck = trials = 0
    if not explorer.plain_outcome.good:
        plain, outcome = explorer.plain, explorer.plain_outcome
        return Report(1, (Finding(plain, outcome, plain, outcome, 0),), 0, {}, {plain.seed: outcome.event_hash})
    for seed in seeds:
        trial = explorer.trial(seed)
        outcome = explorer.run(trial)
        trials += 1
        struck += outcome.struck
        drawn.update(fault.kind for fault in trial.faults)
        hashes[seed] = outcome.event_hash
        if on_trial is not None:
            on_trial(trial, outcome)
        if not outcome.good:
            findings.append(explorer.shrunk(trial, outcome, shrink_runs_max))
            if len(findings) >= findings_max:
                break
    return Report(trials, tuple(findings), struck, dict(sorted(drawn.items())), hashes, explorer.normal_ns)
