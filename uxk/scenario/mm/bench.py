"""Runs the laboratory: every case in every way on every seed, and what the wait-for graph found in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from uxk.scenario.mm.study import Case, LabStudy, Way
from uxk.scenario.results import EXIT_CHECK_FAILED, EXIT_GOOD, EXIT_INVARIANT_BROKEN, Result
from uxk.scenario.run import run_one
from uxk.uapi.info import Record

GAP_MAX_NS: Final = 100_000_000
"""Without progress for longer than this, while there is something to write, a run has failed."""


class Finding(Struct, frozen=True, kw_only=True):
    """What the wait-for graph reported."""

    kind: str
    """``cycle`` or ``blocking-decision``."""
    now_ns: int
    edges: int
    text: str
    """The report, line by line as it stands in kmsg."""


class Run(Struct, kw_only=True):
    """One case in one way with one seed; times in ns of virtual time, from the run's start."""

    case: str
    way: str
    seed: int
    exit_code: int
    event_hash: str
    findings: list[Finding]
    """Cycles, and the first decision that waited; the number of others is in ``blocking_decisions``."""
    blocking_decisions: int
    written: int
    """Pages that arrived on the volume."""
    last_ns: int
    """When the last of them did."""
    gap_ns: int
    """The longest time in which the flusher had something to write and no page arrived."""
    clean_min: int
    decisions: int
    """Of the kind that the agent advises: victims, or files."""
    followed: int
    emergencies: int
    reaction_ns: int
    """The longest time from a watermark to the first decision by the default; -1 if none was made."""
    relief_ns: int
    """The longest time from a watermark until it was left behind again."""
    notes: list[str]
    figures: dict[str, Any]
    """Everything else, as the subsystem tells it."""

    @property
    def cycle(self) -> Finding | None:
        """The first cycle."""
        return next((found for found in self.findings if found.kind == "cycle"), None)

    @property
    def progressed(self) -> bool:
        """Whether pages kept arriving and a clean segment was always left."""
        return self.gap_ns <= GAP_MAX_NS and self.clean_min > 0 and self.written > 0


class Reports:
    """Collects what the graph says, from kmsg."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._lines: list[str] = []

    def __call__(self, record: Record) -> None:
        """A line of kmsg; a report has a rule before its title, one after it, and one at its end."""
        kind = record.fields.get("finding")
        if kind is None:
            return
        self._lines.append(record.text)
        if len(self._lines) > 3 and record.text == self._lines[0]:
            lines, self._lines = self._lines, []
            edges = sum(line.startswith("#") for line in lines)
            known = any(found.kind == kind for found in self.findings)
            if kind == "cycle" or not known:
                self.findings.append(Finding(
                    kind=str(kind), now_ns=record.time_ns, edges=edges, text="\n".join(lines)
                ))  # fmt: skip


def run_lab(
    study: LabStudy, *, out: str | Path | None = None, on_run: Callable[[Run], object] = lambda run: None
) -> list[Run]:
    """All runs, case by case; with ``out``, each leaves a run folder ``CASE/WAY/seed-N`` there.

    Raises :class:`ConfigError`, or what loading the agent raises.
    """
    runs = []
    for case, way, seed in _all(study):
        folder = None if out is None else Path(out) / case.name / way.name.replace(", ", "-").replace(" ", "-")
        run = run_case(study, case, way, seed, None if folder is None else folder / f"seed-{seed}")
        on_run(run)
        runs.append(run)
    return runs


def _all(study: LabStudy) -> Iterator[tuple[Case, Way, int]]:
    for case in study.cases:
        for way in study.ways_of(case):
            for seed in range(study.seed, study.seed + study.seeds):
                yield case, way, seed


def run_case(study: LabStudy, case: Case, way: Way, seed: int, out: Path | None = None) -> Run:
    """One run."""
    reports = Reports()
    result = run_one(study.scenario(case, way), seed=seed, out=out, on_record=reports)
    return _outcome(study, case, way, result, reports.findings)


def _outcome(study: LabStudy, case: Case, way: Way, result: Result, findings: list[Finding]) -> Run:
    figures = result.values["subsystems"]["mm"]
    ask = study.params(case, way).ask
    model = figures["gc" if ask == "gc" else "writeback"]
    volume, flusher = figures["volume"], figures["flusher"]
    decisions = (volume["decisions"], volume["hinted"]) if ask == "gc" else (flusher["decisions"], flusher["followed"])
    return Run(
        case=case.name, way=way.name, seed=result.seed, exit_code=result.exit_code, event_hash=result.event_hash,
        findings=findings, blocking_decisions=result.values["kernel"]["blocking_decisions"],
        written=flusher["written"], last_ns=flusher["last_ns"], gap_ns=flusher["longest_gap_ns"],
        clean_min=volume["clean_min"], decisions=decisions[0], followed=decisions[1],
        emergencies=model["emergencies"], reaction_ns=model["decision_max_ns"], relief_ns=model["relief_max_ns"],
        notes=[*result.notes, *(f"{v.what}: {v.seen}" for v in result.invariants if not v.good)], figures=figures,
    )  # fmt: skip


# --- the verdict ---


def complaints(study: LabStudy, runs: Sequence[Run]) -> list[str]:
    """What is not as it should be: a demonstration without its cycle, or a way of uxk's that stood still."""
    wrong = []
    for case in study.cases:
        for way in study.ways_of(case):
            params = study.params(case, way)
            for run in (run for run in runs if (run.case, run.way) == (case.name, way.name)):
                place = f"{run.case}, {run.way}, seed {run.seed}"
                if params.policy == "sync-upcall" or not params.pool_pages:
                    sure = not params.pool_pages or (case.cycle and not params.trigger and not way.faults)
                    if sure and run.cycle is None:
                        wrong.append(f"{place}: no cycle was found")
                elif run.findings:
                    wrong.append(f"{place}: {run.findings[0].kind} at {run.findings[0].now_ns} ns")
                elif not run.progressed:
                    wrong.append(f"{place}: no progress for {run.gap_ns} ns, {run.clean_min} clean segments")
                elif run.exit_code:
                    wrong.append(f"{place}: {'; '.join(run.notes) or f'exit code {run.exit_code}'}")
    return wrong


def exit_code(study: LabStudy, runs: Sequence[Run]) -> int:
    """0 good; 3 an invariant was broken where it must hold; 1 anything else that is not as it should be."""
    if not complaints(study, runs):
        return EXIT_GOOD
    lawful = [run for run in runs if not run.way.startswith("sync-upcall")]
    return EXIT_INVARIANT_BROKEN if any(run.exit_code == EXIT_INVARIANT_BROKEN for run in lawful) else EXIT_CHECK_FAILED
