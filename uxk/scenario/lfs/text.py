"""The end of a study in words and tables, for people."""

from __future__ import annotations

from typing import Final

from uxk.limits import NS_PER_S, PPM
from uxk.scenario.lfs.outcome import Outcome
from uxk.scenario.lfs.scores import Spread, Summary
from uxk.scenario.lfs.verdict import Verdict
from uxk.scenario.report import duration, table

COLUMNS: Final = {
    "policy": "`*` the best that needs no knowledge of the future; (default) what the kernel does by itself",
    "WA": "write amplification, (user + moved) / user blocks, in the second half; sorted by it",
    "whole": "the same of the whole run, the fill included",
    "default": "WA against the default's: less is better",
    "human": "WA against the best published policy among those run",
    "gap": "share of the way from the default to the oracle that the policy has gone",
    "p50 p99 p99.9": "latency of user writes in virtual time",
    "stalls": "user writes that had to wait while blocks were moved",
    "clean": "fewest clean segments",
    "spread": "least and most WA of the seeds",
}
_NONE: Final = "-"
_LATENCY: Final = ("p50", "p99", "p99.9", "stalls", "clean")


def report(verdict: Verdict) -> str:
    """See :meth:`Verdict.report`."""
    study = verdict.study
    lfs = study.lfs
    seeds = f"seed {study.seed}" if study.seeds == 1 else f"seeds {study.seed} to {study.seed + study.seeds - 1}"
    rule = f"segments of {lfs.segment_blocks} blocks, {100 * lfs.gp_ppm / PPM:g} % garbage, {lfs.logs} logs"
    lines = [
        f"{study.name}: {verdict.workload}, {verdict.writes:,} writes of {verdict.pages:,} pages, {seeds}",
        f"{rule}; a write every {duration(lfs.write_ns)}",
        "", *_table(verdict), "", *_agents(verdict), *judgement(verdict), "", *_legend(verdict),
    ]  # fmt: skip
    latencies = [outcome.latency for outcome in verdict.outcomes if outcome.latency is not None]
    if any(latency.utilisation_ppm >= PPM for latency in latencies):
        lines.append("!: more work than the device can do: the queue grows, and latencies tell how long the run was")
    lines += [f"note: {note}" for note in verdict.notes]
    lines += _missing(verdict.outcomes)
    writes = sum(outcome.user_blocks for outcome in verdict.outcomes)
    lines.append(f"host time {duration(verdict.host_ns)}, {writes * NS_PER_S // max(verdict.host_ns, 1):,} writes/s")
    return "\n".join(lines)


def _table(verdict: Verdict) -> list[str]:
    winner = verdict.winner
    several = verdict.study.seeds > 1
    head = ["  policy", "WA", "whole", "default", "human", "gap", *_LATENCY, *(["spread"] if several else [])]
    rows = []
    for each in verdict.summaries:
        mark = "*" if winner is not None and each.policy == winner.policy else " "
        name = (
            f"{mark} {each.policy}{' (default)' if each.is_default else ' (oracle)' if each.kind == 'oracle' else ''}"
        )
        half = each.wa_second_half
        row = [
            name, _NONE if half is None else f"{half.mean:.3f}", f"{each.wa.mean:.3f}", _percent(each.vs_default),
            _percent(each.vs_best_human), _NONE if each.gap_closed is None else f"{100 * each.gap_closed.mean:.0f} %",
            *_figures([outcome for outcome in verdict.outcomes if outcome.policy == each.policy]),
        ]  # fmt: skip
        rows.append([*row, *([_spread(half or each.wa)] if several else [])])
    return table(head, rows)


def _figures(outcomes: list[Outcome]) -> list[str]:
    """Latencies and clean segments: the worst of all seeds."""
    latencies = [outcome.latency for outcome in outcomes if outcome.latency is not None]
    clean = [outcome.clean_min for outcome in outcomes if outcome.clean_min is not None]
    cells = [_NONE] * 4
    if latencies and len(latencies) == len(outcomes):
        mark = "!" if any(latency.utilisation_ppm >= PPM for latency in latencies) else ""
        quantiles = (max(getattr(each, name) for each in latencies) for name in ("p50_ns", "p99_ns", "p999_ns"))
        cells = [*(duration(ns) + mark for ns in quantiles), f"{max(each.stalls for each in latencies):,}"]
    return [*cells, str(min(clean)) if clean else _NONE]


def _percent(spread: Spread | None) -> str:
    return _NONE if spread is None else f"{100 * (spread.mean - 1):+.1f} %"


def _spread(spread: Spread) -> str:
    return f"{spread.min:.3f}..{spread.max:.3f}"


def _agents(verdict: Verdict) -> list[str]:
    """Who decided for how long, what became of hints, and what thinking cost."""
    lines = []
    for outcome in verdict.outcomes:
        if outcome.kind != "agent":
            continue
        epochs = max(sum(outcome.mode_epochs.values()), 1)
        modes = ", ".join(f"{100 * count / epochs:.0f} % {mode}" for mode, count in outcome.mode_epochs.items())
        refused = ", ".join(f"{count} {why}" for why, count in outcome.refused.items()) or "none"
        account = outcome.account
        carried = f"{account.get('bytes_in', 0) + account.get('bytes_out', 0):,} bytes"
        crossings = f"{account.get('crossings', 0):,} crossings"
        cpu_ns = account.get("cpu_ns", 0)
        followed = f"{100 * outcome.following_ppm / PPM:.0f} % of writes followed hints"
        lines += [
            f"{outcome.policy}, seed {outcome.seed}: {modes or 'no epoch'}; {followed}",
            f"  hints: {outcome.received} received, {outcome.applied} times applied, refused: {refused}",
            f"  thinking: {duration(account.get('charged_ns', 0))} charged, {crossings}, {carried}",
            f"host time {duration(cpu_ns)} in the agent, {cpu_ns // max(outcome.user_blocks, 1)} ns per user write",
            *(f"  {note}" for note in outcome.notes),
        ]
    return [*lines, ""] if lines else []


def judgement(verdict: Verdict) -> list[str]:
    """Wins and losses, plainly."""
    winner = verdict.winner
    if winner is None:
        return ["no policy but oracles was run: no winner"]
    lines = [f"winner: {winner.policy}, WA {(winner.wa_second_half or winner.wa).mean:.3f}"]
    for each in verdict.summaries:
        if each.kind in ("agent", "own"):
            lines += [_against(each, each.vs_best_human, _names(each)), _against(each, each.vs_default, "the default")]
    kinds = {outcome.kind for outcome in verdict.outcomes}
    if not any(outcome.is_default for outcome in verdict.outcomes):
        lines.append(f"the default {verdict.study.lfs.default} was not run: nothing is compared with it")
    if "human" not in kinds:
        lines.append("no published policy was run: nothing is compared with the best of them")
    if "oracle" not in kinds:
        lines.append("the oracle fkg6 was not run: how much of the gap is closed is not known")
    return [line for line in lines if line]


def _names(summary: Summary) -> str:
    return f"the best published policy ({', '.join(summary.best_human)})"


def _against(summary: Summary, ratio: Spread | None, whom: str) -> str:
    if ratio is None:
        return ""
    percent = 100 * (ratio.mean - 1)
    if abs(percent) < 0.05:
        return f"{summary.policy} is as good as {whom}"
    word = "worse" if percent > 0 else "better"
    seeds = f", seeds {100 * (ratio.min - 1):+.1f} to {100 * (ratio.max - 1):+.1f} %" if summary.seeds > 1 else ""
    return f"{summary.policy} is {abs(percent):.1f} % {word} than {whom}{seeds}"


def _legend(verdict: Verdict) -> list[str]:
    shown = {name: text for name, text in COLUMNS.items() if name != "spread" or verdict.study.seeds > 1}
    width = max(map(len, shown))
    return [f"{name.ljust(width)}  {text}" for name, text in shown.items()]


def _missing(outcomes: list[Outcome]) -> list[str]:
    reasons = {(outcome.policy, what, why) for outcome in outcomes for what, why in outcome.missing.items()}
    return [f"not computed: {what} of {policy}: {why}" for policy, what, why in sorted(reasons)]
