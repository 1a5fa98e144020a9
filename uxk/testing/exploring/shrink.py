"""Delta debugging of a trial that fails: fewer faults, fewer requests, plainer faults, the usual schedule.

Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input" (IEEE TSE 28(2), 2002), for the faults;
then their fields one by one.  A step is kept if the same invariants break.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from uxk.faults.model import Fault, problem
from uxk.scenario.model import Scenario
from uxk.testing.exploring.trial import Outcome, Run, Trial

RUNS_MAX: Final = 200
"""Runs that shrinking may take."""
_PLAIN: Final = ("when", "probability_ppm", "count", "every_ns", "after", "message", "part", "until_ns", "where")
"""Fields to leave out if that fails as well, in this order."""
_SMALLER: Final = (
    "count", "after", "at_ns", "delay_ns", "duration_ns", "every_ns", "until_ns", "factor", "size_bytes", "entries",
)  # fmt: skip


class _Shrinker:
    """The smallest trial so far that breaks ``wanted``."""

    def __init__(self, run: Run, trial: Trial, outcome: Outcome, runs_max: int) -> None:
        self._run = run
        self._wanted = set(outcome.broken)
        self.trial = trial
        self.outcome = outcome
        self.runs = 0
        self._runs_max = runs_max

    def keeps(self, trial: Trial) -> bool:
        """Whether a smaller trial fails as well; then it is the one to go on with."""
        if self.runs >= self._runs_max or trial == self.trial or any(problem(fault) for fault in trial.faults):
            return False
        self.runs += 1
        outcome = self._run(trial)
        if not self._wanted & set(outcome.broken):
            return False
        self.trial, self.outcome = trial, outcome
        return True


def shrink(
    run: Run, scenario: Scenario, trial: Trial, outcome: Outcome, *, runs_max: int = RUNS_MAX
) -> tuple[Trial, Outcome, int]:
    """A trial that breaks the same with less, what came of it, and how many runs that took."""
    shrinker = _Shrinker(run, trial, outcome, runs_max)
    before: Trial | None = None
    while before != shrinker.trial and shrinker.runs < runs_max:
        before = shrinker.trial
        _fewer_faults(shrinker)
        shrinker.keeps(shrinker.trial._replace(schedule="fifo"))
        _fewer_requests(shrinker, scenario)
        _plainer_faults(shrinker)
    return shrinker.trial, shrinker.outcome, shrinker.runs


def _fewer_faults(shrinker: _Shrinker) -> None:
    """Leaves out one part of the faults after the other, in parts that get smaller (ddmin, complements only)."""
    if shrinker.trial.faults and shrinker.keeps(shrinker.trial._replace(faults=())):
        return
    parts = 2
    while len(shrinker.trial.faults) >= 2:
        faults = shrinker.trial.faults
        size = -(-len(faults) // parts)
        rest = (faults[:at] + faults[at + size :] for at in range(0, len(faults), size))
        if any(shrinker.keeps(shrinker.trial._replace(faults=each)) for each in rest):
            parts = max(2, parts - 1)
        elif size == 1:
            return
        else:
            parts = min(2 * parts, len(faults))


def _fewer_requests(shrinker: _Shrinker, scenario: Scenario) -> None:
    for workload in scenario.workloads:
        key = f"workloads.{workload.name}.count"
        count = int(shrinker.trial.options.get(key, workload.count))
        while count > 1:
            count >>= 1
            if not shrinker.keeps(shrinker.trial._replace(options={**shrinker.trial.options, key: str(count)})):
                break


def _plainer_faults(shrinker: _Shrinker) -> None:
    defaults = {field.name: field.default for field in msgspec.structs.fields(Fault)}
    for place in range(len(shrinker.trial.faults)):

        def keeps(change: Callable[[Fault], Fault], place: int = place) -> bool:
            faults = list(shrinker.trial.faults)
            faults[place] = change(faults[place])
            return shrinker.keeps(shrinker.trial._replace(faults=tuple(faults)))

        for name in _PLAIN:
            keeps(lambda fault, name=name: _with(fault, name, defaults[name]))  # type: ignore[misc]
        for name in _SMALLER:
            for number in _smaller(getattr(shrinker.trial.faults[place], name)):
                if not keeps(lambda fault, name=name, number=number: _with(fault, name, number)):  # type: ignore[misc]
                    break


def _with(fault: Fault, name: str, value: Any) -> Fault:
    return msgspec.structs.replace(fault, **{name: value})


def _smaller(number: int | None) -> Iterator[int]:
    """Half, a quarter, ...; then nothing."""
    while number is not None and number > 1:
        number >>= 1
        yield number
