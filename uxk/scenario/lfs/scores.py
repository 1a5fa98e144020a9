"""How a policy did against the default, the best human-made one, and the oracle, on the same writes.

Ratios of write amplification in the second half; *excess* is what lies above 1, and the *gap* what lies between
the default's excess and the oracle's.  What was not run is not compared with: the score is None then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, log

from msgspec import Struct

from uxk.limits import PPM
from uxk.scenario.lfs.entrants import ORACLE
from uxk.scenario.lfs.outcome import Outcome


class Score(Struct, frozen=True, kw_only=True):
    """Of one policy with one seed; below 1 is better."""

    vs_default: float | None
    """WA over the default's."""
    vs_best_human: float | None
    """WA over that of the best published policy among those run with this seed."""
    best_human: str | None
    vs_oracle: float | None
    excess_vs_default: float | None
    gap_closed: float | None
    """(default - policy) / (default - oracle): 0 is the default, 1 the oracle."""


class Spread(Struct, frozen=True, kw_only=True):
    """Over the seeds."""

    mean: float
    """Geometric for ratios, arithmetic for ``gap_closed``."""
    min: float
    max: float


class Summary(Struct, frozen=True, kw_only=True):
    """Of one policy over all seeds."""

    policy: str
    kind: str
    is_default: bool
    seeds: int
    wa: Spread
    wa_second_half: Spread | None
    vs_default: Spread | None
    vs_best_human: Spread | None
    best_human: list[str]
    """With each seed, in their order; each once."""
    vs_oracle: Spread | None
    gap_closed: Spread | None


def wa_of(outcome: Outcome) -> int:
    """What is compared: WA of the second half in ppm, or of the whole run if halves were not counted."""
    return outcome.wa_ppm if "wa_second_half" in outcome.missing else outcome.half_wa_ppm


def best_human(outcomes: Iterable[Outcome], seed: int) -> Outcome | None:
    """The published policy with the least WA; the first of equals."""
    found = [each for each in outcomes if each.seed == seed and each.kind == "human"]
    return min(found, key=wa_of) if found else None


def oracle_of(outcomes: Iterable[Outcome]) -> Outcome | None:
    """What gaps are measured to: ``fkg6`` if it was run, else the best oracle."""
    found = [each for each in outcomes if each.kind == "oracle"]
    return min(found, key=lambda each: (each.policy != ORACLE, wa_of(each)), default=None)


def score(outcome: Outcome, outcomes: Sequence[Outcome]) -> Score:
    """One outcome against others with its seed."""
    same = [each for each in outcomes if each.seed == outcome.seed]
    default = next((wa_of(each) for each in same if each.is_default), None)
    bound = oracle_of(same)
    oracle = None if bound is None else wa_of(bound)
    human = best_human(same, outcome.seed)
    mine = wa_of(outcome)
    gap = None
    if default is not None and oracle is not None and default != oracle:
        gap = (default - mine) / (default - oracle)
    return Score(
        vs_default=_ratio(mine, default),
        vs_best_human=_ratio(mine, None if human is None else wa_of(human)),
        best_human=None if human is None else human.policy,
        vs_oracle=_ratio(mine, oracle),
        excess_vs_default=None if default is None or default <= PPM else round((mine - PPM) / (default - PPM), 6),
        gap_closed=None if gap is None else round(gap, 6),
    )


def _ratio(mine: int, other: int | None) -> float | None:
    return None if other is None else round(mine / other, 6)


def summarise(outcomes: Sequence[Outcome]) -> list[Summary]:
    """One summary for each policy, the best first."""
    names = list(dict.fromkeys(outcome.policy for outcome in outcomes))
    found = [_summary([each for each in outcomes if each.policy == name], outcomes) for name in names]
    return sorted(found, key=lambda each: (each.wa_second_half or each.wa).mean)


def _summary(mine: list[Outcome], outcomes: Sequence[Outcome]) -> Summary:
    scores = [score(each, outcomes) for each in mine]
    halves = [each.half_wa_ppm / PPM for each in mine if "wa_second_half" not in each.missing]
    return Summary(
        policy=mine[0].policy, kind=mine[0].kind, is_default=mine[0].is_default, seeds=len(mine),
        wa=_geometric([each.wa_ppm / PPM for each in mine]),
        wa_second_half=_geometric(halves) if len(halves) == len(mine) else None,
        vs_default=_all([each.vs_default for each in scores]),
        vs_best_human=_all([each.vs_best_human for each in scores]),
        best_human=list(dict.fromkeys(each.best_human for each in scores if each.best_human is not None)),
        vs_oracle=_all([each.vs_oracle for each in scores]),
        gap_closed=_arithmetic([each.gap_closed for each in scores]),
    )  # fmt: skip


def _geometric(values: Sequence[float]) -> Spread:
    mean = exp(sum(map(log, values)) / len(values))
    return Spread(mean=round(mean, 6), min=round(min(values), 6), max=round(max(values), 6))


def _all(values: Sequence[float | None]) -> Spread | None:
    present = [value for value in values if value is not None]
    return _geometric(present) if present and len(present) == len(values) else None


def _arithmetic(values: Sequence[float | None]) -> Spread | None:
    present = [value for value in values if value is not None]
    if not present or len(present) != len(values):
        return None
    mean = sum(present) / len(present)
    return Spread(mean=round(mean, 6), min=round(min(present), 6), max=round(max(present), 6))
