"""Renders ``report.html`` (extra ``report``: matplotlib and jinja2, imported when they are needed)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple

from uxk.errors import UsageError
from uxk.limits import PPM
from uxk.scenario.lfs.judge import judgement, notes
from uxk.scenario.lfs.report import model, plots
from uxk.scenario.lfs.report.model import Standing
from uxk.scenario.lfs.scores import Spread
from uxk.scenario.lfs.text import folded, missing, percent, range_of, size, varied
from uxk.scenario.lfs.verdict import Verdict
from uxk.scenario.report import duration

REPORT: Final = "report.html"
ADVICE: Final = "no report.html: `pip install uxk[report]` gives it"
NONE: Final = "\N{EN DASH}"
MINUS: Final = "\N{MINUS SIGN}"
KMSG_LINES: Final = 200
"""Of one agent's kernel log, the last ones."""


class Cell(NamedTuple):
    """One cell of a table; ``tone`` is ``good``, ``bad`` or empty."""

    text: str
    tone: str = ""


class Plot(NamedTuple):
    """A picture, what it shows in words, and why there is none if it is empty."""

    title: str
    svg: str
    text: str
    why_not: str = ""


def available() -> bool:
    """Whether what the extra ``report`` brings is installed."""
    from importlib.util import find_spec

    return find_spec("jinja2") is not None and find_spec("matplotlib") is not None


def write_page(path: Path, text: str) -> None:
    """Puts a page in place.  UsageError, with the path, if that fails."""
    try:
        path.write_text(text, "utf-8")
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", errno=exc.errno) from None


def render(template: str, **values: Any) -> str:
    """A page from a template of this package; every value is escaped unless it is a plot of ours."""
    import jinja2

    def load(name: str) -> str | None:
        file = resources.files("uxk.scenario.lfs.report").joinpath(name)
        return file.read_text("utf-8") if file.is_file() else None

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**values) + "\n"


def study_page(verdict: Verdict, versions: dict[str, str], trace_sha256: str = "") -> str:
    """The whole page; the same study gives the same bytes."""
    rows = model.standings(verdict.outcomes)
    agents = [row for row in rows if row.kind == "agent"]
    study = verdict.study
    several = varied(verdict.summaries)
    is_out = folded(verdict.summaries, verdict.winner)
    told = [(row, _cells(row, several)) for row in rows]
    fill = f", {verdict.fill:,} of them to fill the volume" if verdict.fill else ""
    facts = {
        "workload": f"{verdict.workload}: {verdict.writes:,} writes of {verdict.pages:,} pages{fill}",
        "volume": f"segments of {study.lfs.segment_blocks} blocks, {study.lfs.logs} logs, cleaned above "
        f"{100 * study.lfs.gp_ppm / PPM:g} % garbage",
        "seeds": ", ".join(map(str, study.all_seeds)),
        "default": f"{study.lfs.default}, modes {study.lfs.modes}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    } | ({"trace": f"sha256 {trace_sha256}"} if trace_sha256 else {})  # fmt: skip
    return render(
        "study.html.j2", name=study.name, description=study.description, facts=facts,
        judgement=[(line, _tone_of(line)) for line in judgement(verdict)], head=_head(several),
        rows=[each for each, out in zip(told, is_out, strict=True) if not out],
        others=[each for each, out in zip(told, is_out, strict=True) if out], plots=_plots(verdict, rows),
        agents=[_agent(row) for row in agents], notes=_notes(verdict),
        missing=[f"{what} of {whose}: {why}" for what, whose, why in missing(verdict.outcomes)],
        kmsg=[
            (f"{run.policy}, seed {run.seed}", len(run.kmsg), run.kmsg[-KMSG_LINES:])
            for row in agents for run in row.runs if run.kmsg
        ],
    )  # fmt: skip


# --- the table ----------------------------------------------------------------------------------------------


def _head(several: bool) -> list[str]:
    latency = ["p50", "p99", "p99.9", "stalls", "clean"]
    return ["", "policy", "WA", *(["seeds"] if several else []), "whole run", "default", "best human", "gap", *latency]


def _cells(row: Standing, several: bool) -> list[Cell]:
    summary = row.summary
    latencies = [run.latency for run in row.runs if run.latency is not None]
    clean = [run.clean_min for run in row.runs if run.clean_min is not None]
    cells = [Cell(f"{row.wa.mean:.3f}")]
    if several:
        cells.append(Cell(_typeset(range_of(row.wa))))
    is_best = row.kind == "human" and summary.vs_best_human is not None and summary.vs_best_human.max == 1
    cells += [
        Cell(f"{summary.wa.mean:.3f}"), _against(summary.vs_default, summary.is_default),
        _against(summary.vs_best_human, is_best),
        Cell(NONE if summary.gap_closed is None else _typeset(f"{round(100 * summary.gap_closed.mean)} %")),
    ]  # fmt: skip
    if not latencies or len(latencies) < len(row.runs):
        cells += [Cell(NONE)] * 4
    else:
        full = "!" if any(each.utilisation_ppm >= PPM for each in latencies) else ""
        quantiles = (max(getattr(each, name) for each in latencies) for name in ("p50_ns", "p99_ns", "p999_ns"))
        cells += [Cell(duration(ns) + full) for ns in quantiles]
        cells.append(Cell(f"{max(each.stalls for each in latencies):,}"))
    return [*cells, Cell(str(min(clean)) if clean else NONE)]


def _against(spread: Spread | None, is_itself: bool) -> Cell:
    """How much more it writes; a loss is red."""
    if spread is None or is_itself:
        return Cell(NONE)
    text = percent(spread)
    tone = "" if text.strip("+-") == "0.0 %" else "good" if text.startswith("-") else "bad"
    return Cell(_typeset(text), tone)


def _typeset(text: str) -> str:
    """With a true minus sign and dash."""
    return text.replace("..", f" {NONE} ").replace("-", MINUS) if text != "-" else NONE


def _tone_of(line: str) -> str:
    return "bad" if "% worse" in line else "good" if "% better" in line or line.startswith("winner") else ""


# --- agents -------------------------------------------------------------------------------------------------


def _agent(row: Standing) -> dict[str, Any]:
    """What thinking cost, run by run, and what hints had put in force."""
    costs = []
    for run in row.runs:
        account, millions = run.account, max(run.user_blocks, 1) / 1e6
        moved = account.get("bytes_in", 0) + account.get("bytes_out", 0)
        costs.append([
            str(run.seed), duration(account.get("cpu_ns", 0)),
            f"{account.get('cpu_ns', 0) // max(run.user_blocks, 1):,} ns", duration(account.get("charged_ns", 0)),
            f"{account.get('crossings', 0):,}", f"{account.get('crossings', 0) / millions:,.0f}", f"{moved:,}",
            size(account.get("held_bytes", 0)), str(account.get("restarts", 0)),
            f"{100 * run.following_ppm / PPM:.0f} %",
        ])  # fmt: skip
    in_force = [(name, f"{100 * share / PPM:.1f} %") for name, share in model.policies_in_force(row)]
    return {"policy": row.policy, "costs": costs, "in_force": in_force[:12], "more": max(len(in_force) - 12, 0)}


# --- plots --------------------------------------------------------------------------------------------------


def _plots(verdict: Verdict, rows: Sequence[Standing]) -> list[Plot]:
    runs = sum(len(row.runs) for row in rows if row.kind == "agent")
    unmoded = "" if runs else "no agent took part"
    size = verdict.study.lfs.segment_blocks
    return [
        Plot(
            "Write amplification over time",
            plots.wa_over_time(rows),
            f"(user + moved) / user blocks, over {model.WINDOW_EPOCHS} epochs around each point; mean of the seeds. "
            "Numbers at the ends are the curves' last points, not the results. Dashed: the oracle. Thin grey: "
            "the other policies; peaks of theirs may lie outside of the picture.",
            "no run was recorded by epochs",
        ),
        Plot(
            "Mode timeline",
            plots.mode_timeline(rows),
            "Who decides: the default alone (emergency), hints for a small share (learning), for half "
            "(collaboration), wherever they are valid (recommendation). Percentages are shares of user blocks."
            + (f" The first {plots.BANDS_MAX} runs." if runs > plots.BANDS_MAX else ""),
            unmoded or "no run was recorded by epochs",
        ),
        Plot(
            "Segment utilisation",
            plots.segment_utilisation(rows),
            "Sealed segments by their share of valid blocks at the end of the runs, all seeds together.",
            "no run recorded its segments",
        ),
        Plot(
            "Victim age against valid blocks",
            plots.victim_ages(rows, size, max(verdict.pages, 1)),
            "One dot for the end of each epoch: the segment that the policy would have cleaned next, all seeds. "
            "A sample of the choices, not all victims. An age of 1: as many user writes ago as the volume has pages.",
            "only runs of the batch kernel and of agents record their next victims",
        ),
        Plot(
            "Hint fates",
            plots.hint_fates(rows),
            "A standing hint counts as applied once for every epoch that was measured under it; superseded: a newer "
            "one took its place, or the mode dropped it; refused by reason, checked against current state.",
            unmoded or "no hints came",
        ),
    ]


def _notes(verdict: Verdict) -> list[str]:
    own = [f"{run.policy}, seed {run.seed}: {note}" for run in verdict.outcomes for note in run.notes]
    return [*notes(verdict), *own]
