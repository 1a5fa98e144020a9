"""The end of a study in words and tables, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uxk.limits import NS_PER_S, PPM
from uxk.scenario.lfs.judge import judgement, notes
from uxk.scenario.lfs.outcome import Outcome
from uxk.scenario.lfs.scores import Spread, Summary
from uxk.scenario.lfs.verdict import Verdict
from uxk.scenario.report import duration, table

COLUMNS: Final = {
    "policy": "`*` the best that needs no knowledge of the future; (default) what the kernel does by itself",
    "WA": "write amplification, (user + moved) / user blocks, in the second half; sorted by it",
    "seeds": "its range, where seeds make a difference",
    "whole": "the same of the whole run, the fill included",
    "default": "WA against the default's: less is better",
    "human": "WA against the best published policy among those run",
    "gap": "share of the way from the default to the oracle that the policy has gone",
    "p99 p99.9": "latency of user writes in virtual time, the worst of the seeds",
    "stalls": "user writes that had to wait while blocks were moved",
    "clean": "fewest clean segments",
}
NONE: Final = "-"
ROWS_MAX: Final = 20
"""Rows of the table, unless everything is wanted."""
_TOP: Final = 12
"""Published policies that are shown in any case, the best ones."""
_KILO: Final = 1_000


def report(verdict: Verdict, everything: bool = False) -> str:
    """See :meth:`Verdict.report`."""
    lines = [
        *_head(verdict), "", *_table(verdict, everything), "", *_agents(verdict), *judgement(verdict), "",
        *_legend(verdict), *(f"note: {note}" for note in notes(verdict)), *_missing(verdict.outcomes),
    ]  # fmt: skip
    done = [outcome for outcome in verdict.outcomes if outcome.host_ns]
    writes = sum(outcome.user_blocks for outcome in done)
    speed = f"{writes * NS_PER_S // max(verdict.host_ns, 1):,} writes/s"
    lines.append(f"host time {duration(verdict.host_ns)} for {len(done)} runs, {speed}")
    return "\n".join(lines)


def _head(verdict: Verdict) -> list[str]:
    study, lfs = verdict.study, verdict.study.lfs
    rule = (
        "by watermarks, in the background" if lfs.engine == "timed" else f"above {100 * lfs.gp_ppm / PPM:g} % garbage"
    )
    what = f"{verdict.workload}, {verdict.writes:,} writes of {verdict.pages:,} pages"
    volume = f"segments of {lfs.segment_blocks} blocks, {lfs.logs} logs"
    return [
        f"{study.name}: {what}, {seeds_of(study.all_seeds)}",
        f"{volume}, cleaned {rule}; a write every {duration(lfs.write_ns)}",
    ]


# --- the table ----------------------------------------------------------------------------------------------


def folded(summaries: Sequence[Summary], winner: Summary | None, rows_max: int = ROWS_MAX) -> list[bool]:
    """Which rows of a long table may be left out: published policies that are neither among the best, nor the
    default, nor the winner, nor the last."""
    humans = [each.policy for each in summaries if each.kind == "human"]
    kept = {*humans[:_TOP], *humans[-1:], *([winner.policy] if winner else [])}
    foldable = [each.kind == "human" and not each.is_default and each.policy not in kept for each in summaries]
    return foldable if len(summaries) > rows_max and sum(foldable) > 1 else [False] * len(summaries)


def _table(verdict: Verdict, everything: bool) -> list[str]:
    winner, summaries = verdict.winner, verdict.summaries
    several = varied(summaries)
    head = ["  policy", "WA", *(["seeds"] if several else []), "whole", "default", "human", "gap", "p99", "p99.9",
            "stalls", "clean"]  # fmt: skip
    is_out = [False] * len(summaries) if everything else folded(summaries, winner)
    shown = [each for each, out in zip(summaries, is_out, strict=True) if not out]
    lines = table(head, (_row(verdict, each, winner, several) for each in shown))
    left = [each for each, out in zip(summaries, is_out, strict=True) if out]
    if left:
        was = [(each.wa_second_half or each.wa).mean for each in left]
        text = f"{len(left)} more published policies, WA {was[0]:.3f} to {was[-1]:.3f}"
        lines.insert(1 + is_out.index(True), f"  ... {text} (--json or --out has all of them)")
    return lines


def varied(summaries: Sequence[Summary]) -> bool:
    """Whether seeds made a difference to anybody."""
    return any(range_of(each.wa_second_half or each.wa) != NONE for each in summaries)


def _row(verdict: Verdict, each: Summary, winner: Summary | None, several: bool) -> list[str]:
    mark = "*" if winner is not None and each.policy == winner.policy else " "
    name = f"{mark} {each.policy}{' (default)' if each.is_default else ' (oracle)' if each.kind == 'oracle' else ''}"
    half = each.wa_second_half
    best = each.kind == "human" and each.vs_best_human is not None and each.vs_best_human.max == 1
    mine = [outcome for outcome in verdict.outcomes if outcome.policy == each.policy]
    return [
        name, NONE if half is None else f"{half.mean:.3f}",
        *([range_of(half or each.wa)] if several else []), f"{each.wa.mean:.3f}",
        NONE if each.is_default else percent(each.vs_default), NONE if best else percent(each.vs_best_human),
        NONE if each.gap_closed is None else f"{round(100 * each.gap_closed.mean)} %", *_figures(mine),
    ]  # fmt: skip


def _figures(outcomes: list[Outcome]) -> list[str]:
    """Latencies and clean segments: the worst of all seeds."""
    latencies = [outcome.latency for outcome in outcomes if outcome.latency is not None]
    clean = [outcome.clean_min for outcome in outcomes if outcome.clean_min is not None]
    cells = [NONE] * 3
    if latencies and len(latencies) == len(outcomes):
        mark = "!" if any(latency.utilisation_ppm >= PPM for latency in latencies) else ""
        quantiles = (max(getattr(each, name) for each in latencies) for name in ("p99_ns", "p999_ns"))
        cells = [*(duration(ns) + mark for ns in quantiles), f"{max(each.stalls for each in latencies):,}"]
    return [*cells, str(min(clean)) if clean else NONE]


def percent(spread: Spread | None) -> str:
    """How much more that is than what it is compared with; never a negative zero."""
    return NONE if spread is None else f"{round(100 * (spread.mean - 1), 1) + 0.0:+.1f} %"


def range_of(spread: Spread) -> str:
    """Least and most, if they differ."""
    low, high = f"{spread.min:.3f}", f"{spread.max:.3f}"
    return NONE if low == high else f"{low}..{high}"


# --- agents -------------------------------------------------------------------------------------------------


def _agents(verdict: Verdict) -> list[str]:
    """Who decided for how long, what became of hints, and what thinking cost."""
    lines = []
    for name in dict.fromkeys(outcome.policy for outcome in verdict.outcomes if outcome.kind == "agent"):
        runs = [outcome for outcome in verdict.outcomes if outcome.policy == name]
        told: dict[tuple[str, ...], list[int]] = {}
        for run in runs:
            told.setdefault((_modes(run), *(f"  {note}" for note in run.notes)), []).append(run.seed)
        for (modes, *more), seeds in told.items():
            lines += [f"{name}, {seeds_of(seeds)}: {modes}", *more]
        refused: dict[str, int] = {}
        for run in runs:
            for why, count in run.refused.items():
                refused[why] = refused.get(why, 0) + count
        why_not = ", ".join(f"{count} {why}" for why, count in refused.items()) or "none"
        received, applied = sum(run.received for run in runs), sum(run.applied for run in runs)
        crossings, carried = _mean(runs, "crossings"), _mean(runs, "bytes_in") + _mean(runs, "bytes_out")
        cpu_ns, each = _mean(runs, "cpu_ns"), " in each run" if len(runs) > 1 else ""
        speed = f"{cpu_ns // max(runs[0].user_blocks, 1):,} ns per user write"
        memory = f"{size(_mean(runs, 'held_bytes'))} of memory"
        virtual = f"{duration(_mean(runs, 'charged_ns'))} of virtual time"
        lines += [
            f"  hints: {received} received, {applied} times applied, refused: {why_not}",
            f"  cost{each}: {crossings:,} crossings, {carried:,} bytes, {virtual}",
            *_programs(runs, each),
            f"host time {duration(cpu_ns)} of CPU for {name}{each}, {speed}; {memory}",
        ]
    return [*lines, ""] if lines else []


def _programs(runs: Sequence[Outcome], each: str) -> list[str]:
    """What injected programs did, and what crossed since they do it: datasets, and judgements of whole heats."""
    if not any(run.account.get("program_victims") for run in runs):
        return []
    named, victims, rows = (_mean(runs, name) for name in ("program_victims", "victims", "program_runs"))
    crossed, charged = _mean(runs, "program_crossings"), duration(_mean(runs, "program_charged_ns"))
    return [
        (f"  program{each}: named {named:,} of {victims:,} victims, 0 crossings for each; {rows:,} segments scored, "
        f"{charged} of virtual time; {crossed:,} crossings since, all between epochs")
    ]  # fmt: skip


def _modes(run: Outcome) -> str:
    epochs = max(sum(run.mode_epochs.values()), 1)
    modes = ", ".join(f"{100 * count / epochs:.0f} % {mode}" for mode, count in run.mode_epochs.items())
    return f"{modes or 'no epoch'}; {100 * run.following_ppm / PPM:.0f} % of writes followed hints"


def seeds_of(seeds: Sequence[int]) -> str:
    """``seed 3``, ``seeds 0 to 2``, or ``seeds 0, 2, 5``."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    in_a_row = seeds[-1] - seeds[0] == len(seeds) - 1
    return f"seeds {seeds[0]} to {seeds[-1]}" if in_a_row else f"seeds {', '.join(map(str, seeds))}"


def _mean(runs: Sequence[Outcome], name: str) -> int:
    return sum(run.account.get(name, 0) for run in runs) // len(runs)


def size(count: int) -> str:
    """Bytes for people: ``3.2 MB``."""
    value, units = float(count), ("B", "kB", "MB", "GB")
    for unit in units[:-1]:
        if value < _KILO:
            return f"{value:.3g} {unit}"
        value /= _KILO
    return f"{value:.3g} {units[-1]}"


# --- below --------------------------------------------------------------------------------------------------


def _legend(verdict: Verdict) -> list[str]:
    shown = {name: text for name, text in COLUMNS.items() if name != "seeds" or varied(verdict.summaries)}
    width = max(map(len, shown))
    return [f"{name.ljust(width)}  {text}" for name, text in shown.items()]


def _missing(outcomes: Sequence[Outcome]) -> list[str]:
    return [f"not computed: {what} of {whose}: {why}" for what, whose, why in missing(outcomes)]


def missing(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    """(what, whose, why) of figures that were not computed; policies together that lack the same for one reason."""
    whose: dict[tuple[str, str], dict[str, None]] = {}
    for outcome in outcomes:
        for what, why in outcome.missing.items():
            whose.setdefault((what, why), {})[outcome.policy] = None
    everybody = len({outcome.policy for outcome in outcomes})
    return [
        (what, "all policies" if 1 < len(names) == everybody else ", ".join(names), why)
        for (what, why), names in whose.items()
    ]
