"""A finished study in sentences: who won, who lost to whom, and what to bear in mind."""

from __future__ import annotations

from typing import Final

from uxk.limits import PPM
from uxk.scenario.lfs.attach import TraceFacts
from uxk.scenario.lfs.outcome import Outcome
from uxk.scenario.lfs.scores import Spread, Summary
from uxk.scenario.lfs.verdict import Verdict

FULL: Final = "!: more work than the device can do: the queue grows, and latencies tell how long the run was"
_WRITES_PER_PAGE: Final = 2
"""With fewer there is next to nothing to clean."""
_MALFORMED_SHOWN: Final = 5


def judgement(verdict: Verdict) -> list[str]:
    """Wins and losses, plainly."""
    winner = verdict.winner
    if winner is None:
        return ["no policy but oracles was run: no winner"]
    lines = [f"winner: {winner.policy}, WA {(winner.wa_second_half or winner.wa).mean:.3f}"]
    humans = [each for each in verdict.summaries if each.kind == "human"]
    for each in verdict.summaries:
        if each.kind in ("agent", "own"):
            if not (len(humans) == 1 and humans[0].is_default):
                lines.append(_against(each, each.vs_best_human, _names(each, len(humans))))
            lines.append(_against(each, each.vs_default, "the default"))
    kinds = {outcome.kind for outcome in verdict.outcomes}
    if not any(outcome.is_default for outcome in verdict.outcomes):
        lines.append(f"the default {verdict.study.lfs.default} was not run: nothing is compared with it")
    if not humans:
        lines.append("no published policy was run: nothing is compared with the best of them")
    elif all(each.is_default for each in humans) and len(verdict.summaries) > 1:
        lines.append("no published policy but the default was run: `--policy humans` has all of them")
    if "oracle" not in kinds:
        lines.append("the oracle fkg6 was not run: how much of the gap is closed is not known")
    return [line for line in lines if line]


def _names(summary: Summary, humans: int) -> str:
    best = ", ".join(summary.best_human)
    return (
        f"{best}, the only published policy run" if humans == 1 else f"the best of {humans} published policies ({best})"
    )


def _against(summary: Summary, ratio: Spread | None, whom: str) -> str:
    if ratio is None:
        return ""
    percent = 100 * (ratio.mean - 1)
    if abs(percent) < 0.05:
        return f"{summary.policy} is as good as {whom}"
    word = "worse" if percent > 0 else "better"
    low, high = f"{100 * (ratio.min - 1):+.1f}", f"{100 * (ratio.max - 1):+.1f}"
    seeds = f", seeds {low} to {high} %" if low != high else ""
    return f"{summary.policy} is {abs(percent):.1f} % {word} than {whom}{seeds}"


def notes(verdict: Verdict) -> list[str]:
    """What to bear in mind when reading the figures."""
    latencies = [outcome.latency for outcome in verdict.outcomes if outcome.latency is not None]
    found = [FULL] if any(latency.utilisation_ppm >= PPM for latency in latencies) else []
    if verdict.trace is not None:
        found += _trace(verdict.trace)
    if verdict.writes < _WRITES_PER_PAGE * verdict.pages:
        found.append(f"pages are written {verdict.writes / max(verdict.pages, 1):.2g} times on average: too little "
                     "overwriting to tell policies apart")  # fmt: skip
    if not any(outcome.moved_blocks for outcome in verdict.outcomes):
        found.append("nobody had to move a single block: nothing is known of any policy")
    elif verdict.study.seeds == 1 and _depends_on_seed(verdict.outcomes, verdict.fill):
        found.append("one seed: differences below 1 % say little; --seeds 3 shows the spread")
    return [*found, *verdict.notes]


def _depends_on_seed(outcomes: list[Outcome], fill: int) -> bool:
    return bool(fill) or any(outcome.kind == "agent" for outcome in outcomes)


def _trace(facts: TraceFacts) -> list[str]:
    left = [f"{count:,} {name}" for name in ("reads", "discards", "flushes") if (count := getattr(facts, name))]
    text = f"trace: format {facts.format}, {facts.lines:,} lines, {facts.writes:,} write requests"
    found = [text + (f"; left out: {', '.join(left)}" if left else "")]
    if facts.malformed:
        shown = [f"line {each.line}: {each.reason}" for each in facts.malformed_lines[:_MALFORMED_SHOWN]]
        more = f"; and {facts.malformed - len(shown)} more" if facts.malformed > len(shown) else ""
        found.append(f"{facts.malformed} malformed lines left out: {'; '.join(shown)}{more}")
    if facts.devices > 1:
        names = ", ".join(facts.first_devices) + (", ..." if facts.devices > len(facts.first_devices) else "")
        found.append(f"{facts.devices} devices side by side in one volume ({names}): -o lfs.device=NAME takes one")
    return found
