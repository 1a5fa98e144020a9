"""The laboratory's table, for terminals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from uxk.scenario.mm.bench import Run, complaints
from uxk.scenario.mm.study import Case, LabStudy

_HEAD: Final = (
    "", "cycle closed", "asks", "written", "last write", "longest gap", "clean", "followed", "blocked", "emergencies",
    "reaction",
)  # fmt: skip
_LEFT: Final = 2
"""Columns that are texts."""
_LEGEND: Final = """\
sync-upcall   a demonstration of what uxk forbids: the kernel asks the agent and waits for the answer
cycle closed  when the wait-for graph found a cycle, and how many waits it has
asks          decisions of the kernel that waited for the agent: what the law of uxk forbids, cycle or not
written       pages that arrived on the volume; last write: when the last one did
longest gap   the longest time in which there was something to write and no page arrived
clean         fewest clean segments
followed      decisions that followed a hint, of all those that the agent may advise
blocked       turns for which the agent had to wait, for memory, writeback or the dirty limit, of all its turns
emergencies   times that a watermark of memory or of clean segments switched to the in-kernel default
reaction      the longest time from there to the default's first decision, as far as one was due"""


def report(study: LabStudy, runs: Sequence[Run]) -> str:
    """Tables, one for each case; triggers; the first report of the wait-for graph in each case; the verdict."""
    last = study.seed + study.seeds - 1
    seeds = f"seed {study.seed}" if study.seeds == 1 else f"seeds {study.seed} to {last}, the worst of each"
    memory, volume = study.mm.pages >> 8, study.mm.volume_pages >> 8
    lines = [
        f"{study.name}: {_ms(study.until)} of virtual time, {seeds}; {memory} MiB of memory, volume of {volume} MiB"
    ]
    rows = {case.name: _rows(study, case, runs) for case in study.cases}
    everything = [_HEAD, *(row for each in rows.values() for row in each)]
    widths = [max(len(row[column]) for row in everything) for column in range(len(_HEAD))]
    for case in study.cases:
        lines += ["", case.title or case.name, _line(_HEAD, widths), *(_line(row, widths) for row in rows[case.name])]
    lines += ["", *_LEGEND.splitlines(), *_triggers(study, runs), *_cycles(study, runs), ""]
    wrong = complaints(study, runs)
    return "\n".join([*lines, *(f"✘ {text}" for text in wrong)] if wrong else [*lines, _verdict(study, runs)])


def _rows(study: LabStudy, case: Case, runs: Sequence[Run]) -> list[tuple[str, ...]]:
    return [
        _row(
            way.name,
            [run for run in runs if (run.case, run.way) == (case.name, way.name)],
            hints=study.params(case, way).policy != "default" and study.params(case, way).trigger,
        )
        for way in study.ways_of(case)
    ]


def _row(name: str, runs: Sequence[Run], *, hints: bool) -> tuple[str, ...]:
    """One way: with several seeds, the worst of them, and sums of what is counted.  ``hints``: a trigger could end."""
    asks, emergencies = sum(run.blocking_decisions for run in runs), sum(run.emergencies for run in runs)
    reaction_ns = max(run.reaction_ns for run in runs)
    followed = f"{sum(run.followed for run in runs):,} of {sum(run.decisions for run in runs):,}"
    agents = [run.figures["agent"] for run in runs if run.figures["agent"]]
    blocked = f"{sum(each['blocked'] for each in agents):,} of {sum(each['turns'] for each in agents):,}"
    return (
        f"  {name}", _closed(runs), f"{asks:,}" if asks else "-", f"{min(run.written for run in runs):,}",
        _ms(min(run.last_ns for run in runs)), _ms(max(run.gap_ns for run in runs)),
        str(min(run.clean_min for run in runs)), followed, blocked, str(emergencies) if hints else "-",
        _ms(reaction_ns) if hints and reaction_ns >= 0 else "-",
    )  # fmt: skip


def _closed(runs: Sequence[Run]) -> str:
    cycles = [run.cycle for run in runs if run.cycle is not None]
    if not cycles:
        return "no"
    many = f", {len(cycles)} of {len(runs)}" if len(runs) > 1 else ""
    return f"{_ms(cycles[0].now_ns)}, {cycles[0].edges} waits{many}"


def _triggers(study: LabStudy, runs: Sequence[Run]) -> list[str]:
    """The first emergency of each case in which hints were followed until it came."""
    lines = []
    for case in study.cases:
        run = next((run for run in runs if run.case == case.name and run.way == "hints" and run.emergencies), None)
        if run is None:
            continue
        model = run.figures["gc" if study.params(case, study.ways_of(case)[0]).ask == "gc" else "writeback"]
        first = model["first"][0]
        why = next(each["why"] for each in model["model"]["timeline"] if each["now_ns"] == first["crossed_ns"])
        lines.append(
            f"{case.name}, hints: {why} at {_ms(first['crossed_ns'])}; in EMERGENCY after "
            f"{_ms(first['switched_ns'] - first['crossed_ns'])}, {_decided(first)}; {_over(first)}"
        )
    return ["", "the trigger, the first time in each case:", *lines] if lines else []


def _decided(record: dict[str, int]) -> str:
    if record["decided_ns"] < 0:
        return "nothing was to be decided any more"
    return f"first decision by the default after {_ms(record['decided_ns'] - record['crossed_ns'])}"


def _over(record: dict[str, int]) -> str:
    if record["over_ns"] < 0:
        return "the watermark was not left behind until the end"
    return f"above the watermark after {_ms(record['over_ns'] - record['crossed_ns'])}"


def _cycles(study: LabStudy, runs: Sequence[Run]) -> list[str]:
    lines: list[str] = []
    for case in study.cases:
        first = next((run for run in runs if run.case == case.name and run.cycle is not None), None)
        if first is not None and first.cycle is not None:
            lines += ["", f"{case.name}, {first.way}, seed {first.seed}:", *first.cycle.text.splitlines()]
    return lines


def _verdict(study: LabStudy, runs: Sequence[Run]) -> str:
    closed = sum(run.cycle is not None for run in runs)
    asked = sum(run.cycle is None and run.blocking_decisions > 0 for run in runs)
    lawful = [run for run in runs if not run.findings]
    gap_ns = max((run.gap_ns for run in lawful), default=0)
    clean = min((run.clean_min for run in lawful), default=0)
    return (
        f"{closed} of {len(runs)} runs ended in a cycle, and {asked} more waited for the agent: demonstrations of what "
        f"is forbidden. The other runs ({len(lawful)}): no decision waited, the longest gap was {_ms(gap_ns)}, the "
        f"fewest clean segments were {clean}"
    )


def _line(row: Iterable[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if column < _LEFT else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.1f} ms"
