"""Runs contenders side by side and compares them.

A *case* is one question ("round trips at depth 32") put to several contenders.  In every round each contender
gives one sample, in turn (A B C A B C ...), so that whatever else the machine does hits all of them alike; a ratio
is taken within a round, and the median over rounds is reported with its spread.  The count of a contender is set
once, by a trial, so that a sample lasts at least as long as wanted.  Garbage collection is left as Python sets it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple, TypeAlias

Measure: TypeAlias = Callable[[int], tuple[int, int]]
"""Does about ``count`` operations; returns how many it did, and the nanoseconds they took (setting up left out)."""

TRIAL_COUNT = 512
_TRIALS_MAX = 12


class Contender(NamedTuple):
    """One way to do it.  ``note`` marks a row that is shown but is not how one would write it."""

    name: str
    measure: Measure
    note: str = ""


class Target(NamedTuple):
    """``of`` must be at least ``at_least`` times as fast as ``over``."""

    of: str
    over: str
    at_least: float


class Case(NamedTuple):
    """One question."""

    name: str
    unit: str
    contenders: Sequence[Contender]
    targets: Sequence[Target] = ()
    ours: str = "uxk"
    """Contenders whose name begins so are set against the others."""


class Spread(NamedTuple):
    """Median and extremes of a few values."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(median(values), min(values), max(values))


class Ratio(NamedTuple):
    """How many times as fast, per round."""

    of: str
    over: str
    per_round: list[float]
    spread: Spread
    target: float | None

    @property
    def met(self) -> bool | None:
        """Whether the target is met by the median; None without a target."""
        return None if self.target is None else self.spread.median >= self.target


class Row(NamedTuple):
    """One contender's rates, per second."""

    name: str
    note: str
    operations: int
    rates: list[float]
    spread: Spread


class Result(NamedTuple):
    """A case's rows and ratios."""

    name: str
    unit: str
    rows: list[Row]
    ratios: list[Ratio]


def calibrate(measure: Measure, sample_ns: int) -> int:
    """A count that takes at least ``sample_ns``; the trials warm up, too."""
    count = TRIAL_COUNT
    for _ in range(_TRIALS_MAX):
        done, took_ns = measure(count)
        if took_ns >= sample_ns:
            return count
        rate = done / max(took_ns, 1)
        count = max(count + 1, min(8 * count, int(1.25 * rate * sample_ns)))
    return count


def run_case(case: Case, *, rounds: int, sample_ns: int) -> Result:
    """Calibrates every contender, then takes ``rounds`` interleaved samples of each."""
    counts = {c.name: calibrate(c.measure, sample_ns) for c in case.contenders}
    rates: dict[str, list[float]] = {c.name: [] for c in case.contenders}
    for _ in range(rounds):
        for contender in case.contenders:
            done, took_ns = contender.measure(counts[contender.name])
            rates[contender.name].append(done * 1e9 / took_ns)
    rows = [Row(c.name, c.note, counts[c.name], rates[c.name], Spread.of(rates[c.name])) for c in case.contenders]
    return Result(case.name, case.unit, rows, ratios_of(case, rates))


def ratios_of(case: Case, rates: dict[str, list[float]]) -> list[Ratio]:
    """Each of ours over each of the others."""
    wanted = {(target.of, target.over): target.at_least for target in case.targets}
    ratios = []
    for ours in (name for name in rates if name.startswith(case.ours)):
        for other in (name for name in rates if not name.startswith(case.ours)):
            per_round = [a / b for a, b in zip(rates[ours], rates[other], strict=True)]
            ratios.append(Ratio(ours, other, per_round, Spread.of(per_round), wanted.get((ours, other))))
    return ratios
