"""The learning collector against the goals: ``python -m bench.lfs_goals [--cache FILE] [--scale small] [SEED ...]``.

Every row is run with every seed under all published policies, the oracle and the agent, which starts in LEARNING with
the modes on.  Compared is write amplification of the second half; "best human" is the best of the published set in
hindsight, for each row and seed anew.  Rows are averaged geometrically over seeds, and so are ratios over rows.

One process runs one thing after another; several may share a cache, for example one for each seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from math import exp, log
from pathlib import Path
from typing import Any, NamedTuple

from bench.lfs_runs import (
    CONTROL,
    GROUPS,
    GUIDE,
    RECORDED,
    SCALES,
    WA_LIMITS,
    Cache,
    Row,
    Run,
    all_runs,
    chosen,
    entrants,
    rows,
    work,
)
from uxk.subsystems.lfs import policies

SEEDS = (101, 102, 103)
AGENT = "uxk_gc"
DEFAULT = policies.DEFAULT
OWN_CB = "sepbit/cb-sqrt"
"""SepBIT with the cost-benefit of its own simulator."""
ORACLE = "fkg6"
MODES = ("learning", "collaboration", "recommendation", "emergency")


class Cell(NamedTuple):
    """One row with one seed; all WA of the second half."""

    agent: float
    default: float
    own_cb: float
    best: float
    best_name: str
    oracle: float
    entry: dict[str, Any]
    """The agent's whole entry."""


class Line(NamedTuple):
    """One row over its seeds: geometric means."""

    row: Row
    cells: list[Cell]

    def mean(self, value: Callable[[Cell], float]) -> float:
        """Geometric, over the seeds."""
        return geometric([value(cell) for cell in self.cells])

    def field(self, name: str) -> float:
        """The geometric mean of a cell's figure."""
        return geometric([getattr(cell, name) for cell in self.cells])

    @property
    def vs_default(self) -> float:
        """WA over that of SepBIT with cost-benefit, the kernel's default."""
        return self.mean(lambda cell: cell.agent / cell.default)

    @property
    def vs_best(self) -> float:
        """WA over that of the best human in hindsight."""
        return self.mean(lambda cell: cell.agent / cell.best)

    @property
    def gap_closed(self) -> float:
        """(default - agent) / (default - oracle)."""
        default, agent, oracle = map(self.field, ("default", "agent", "oracle"))
        return (default - agent) / (default - oracle) if default > oracle else 0.0

    @property
    def modes(self) -> dict[str, float]:
        """Share of epochs in each mode."""
        counts = {mode: sum(cell.entry["modes"].get(mode, 0) for cell in self.cells) for mode in MODES}
        return {mode: count / max(sum(counts.values()), 1) for mode, count in counts.items()}


class Goal(NamedTuple):
    """One demand, and what came of it."""

    what: str
    wanted: str
    found: float
    met: bool


def geometric(values: Sequence[float]) -> float:
    """Mean of ratios; at least one."""
    return exp(sum(map(log, values)) / len(values))


def cell(row: Row, seed: int, cache: Cache, agent: str = AGENT) -> Cell | None:
    """None if the cache has not all that it takes."""

    def wa(word: str) -> float | None:
        entry = cache.get(Run(row, seed, entrants([word])[0]))
        return None if entry is None else entry["half_wa_ppm"] / 1e6

    humans = {name: wa(name) for name in policies.HUMANS}
    mine = cache.get(Run(row, seed, entrants([agent])[0]))
    oracle = wa(ORACLE)
    if mine is None or oracle is None:
        return None
    known = {name: value for name, value in humans.items() if value is not None}
    if len(known) < len(humans):
        return None
    best = min(known, key=lambda name: known[name])
    return Cell(mine["half_wa_ppm"] / 1e6, known[DEFAULT], known[OWN_CB], known[best], best, oracle, mine)


# --- judging ------------------------------------------------------------------------------------------------


def judge(lines: Sequence[Line], scale: str) -> list[Goal]:
    """The goals that these rows can tell something about."""
    goals = []
    judged = [line for line in lines if line.row.group != CONTROL]
    for name, part in (("all rows", judged), ("rows of the guide", [x for x in judged if x.row.group == GUIDE])):
        if part:
            worst = max(line.vs_best for line in part)
            goals += [
                _goal(f"{name}: against SepBIT with cost-benefit", geometric([x.vs_default for x in part]), 0.88),
                _goal(f"{name}: against the best human", geometric([x.vs_best for x in part]), 0.95),
                _goal(f"{name}: worst row against the best human", worst, 1.01),
            ]  # fmt: skip
    for line in lines:
        if scale == "full" and line.row.name in WA_LIMITS:
            goals.append(_goal(line.row.name, line.field("agent"), WA_LIMITS[line.row.name], "WA"))
    recorded = [line for line in lines if line.row.group == RECORDED]
    goals += [_goal(f"{line.row.name}: against the best human", line.vs_best, 1.01) for line in recorded]
    if recorded:
        mean = geometric([line.vs_best for line in recorded])
        goals.append(Goal("recordings: mean against the best human", "< 1", mean, mean < 1))
    return goals


def _goal(what: str, found: float, limit: float, prefix: str = "") -> Goal:
    return Goal(what, f"{prefix} ≤ {limit:g}".strip(), found, found <= limit)


# --- showing ------------------------------------------------------------------------------------------------


def show_lines(lines: Sequence[Line]) -> str:
    """The table of rows, and the means of their groups."""
    head = (
        f"{'row':<20}{'agent':>8}{'default':>9}{'sep/sqrt':>9}{'best human':>11} {'':<18}{'fkg6':>7}"
        f"{'/def':>7}{'/sqrt':>7}{'/best':>7}{'lo':>7}{'hi':>7}{'gap':>6}  L/C/R/E %      CPU s"
    )
    out = [head]
    for group in GROUPS:
        part = [line for line in lines if line.row.group == group]
        out += [_show_line(line) for line in part]
        if part:
            out.append(_show_mean(f"= {group}", part))
    judged = [line for line in lines if line.row.group != CONTROL]
    if judged:
        out.append(_show_mean("= all but control", judged))
    return "\n".join(out)


def _show_line(line: Line) -> str:
    names = [cell.best_name for cell in line.cells]
    name = max(sorted(set(names)), key=names.count) + ("*" if len(set(names)) > 1 else "")
    per_seed = [cell.agent / cell.best for cell in line.cells]
    share = "/".join(f"{100 * line.modes[mode]:.0f}" for mode in MODES)
    seconds = sum(cell.entry["cpu_ns"] for cell in line.cells) / len(line.cells) / 1e9
    agent, default, own_cb, best, oracle = map(line.field, ("agent", "default", "own_cb", "best", "oracle"))
    return (
        f"{line.row.name:<20}{agent:8.4f}{default:9.4f}{own_cb:9.4f}{best:11.4f} {name:<18}{oracle:7.4f}"
        f"{line.vs_default:7.3f}{agent / own_cb:7.3f}{line.vs_best:7.3f}{min(per_seed):7.3f}{max(per_seed):7.3f}"
        f"{100 * line.gap_closed:5.0f}%  {share:<14}{seconds:6.1f}"
    )


def _show_mean(name: str, part: Sequence[Line]) -> str:
    vs_own = geometric([line.mean(lambda cell: cell.agent / cell.own_cb) for line in part])
    vs_default, vs_best = (geometric([getattr(line, k) for line in part]) for k in ("vs_default", "vs_best"))
    gap = sum(line.gap_closed for line in part) / len(part)
    worst = max(line.vs_best for line in part)
    return f"{name:<82}{vs_default:7.3f}{vs_own:7.3f}{vs_best:7.3f}{'worst':>7}{worst:7.3f}{100 * gap:5.0f}%"


def plain(line: Line) -> dict[str, Any]:
    """A row for JSON."""
    return {
        "row": line.row.name, "group": line.row.group, "vs_default": line.vs_default, "vs_best_human": line.vs_best,
        "gap_closed": line.gap_closed, "modes": line.modes, "seeds": [cell._asdict() for cell in line.cells],
    }  # fmt: skip


def parser(description: str | None) -> argparse.ArgumentParser:
    """What this bench and that of the ablation have in common."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    found.add_argument("seeds", nargs="*", type=int, default=list(SEEDS), metavar="SEED", help=f"{SEEDS} by default")
    found.add_argument("--scale", choices=SCALES, default="full", help="full: the guide's volume; small: a quarter")
    found.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="names, parts of names or groups of rows")
    found.add_argument("--cache", type=Path, metavar="FILE", help="keeps what was run; an agent's runs are done again "
                       "when its sources have changed")  # fmt: skip
    found.add_argument("--again", nargs="+", default=[], metavar="POLICY", help="run these whatever the cache has")
    found.add_argument("--only-cached", action="store_true", help="run nothing, show what the cache has, stale or not")
    found.add_argument("--json", type=Path, metavar="FILE", help="where JSON goes")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """0 if all goals are met, 1 if not."""
    options_of = parser(__doc__)
    options_of.add_argument("--policies", nargs="+", default=["humans", ORACLE, AGENT], metavar="POLICY",
                            help="what to run of what is compared; the rest comes from the cache")  # fmt: skip
    options_of.add_argument("--agent", default=AGENT, help="which one is judged")
    options = options_of.parse_args(argv)
    try:
        found = chosen(rows(SCALES[options.scale]), options.rows)
    except ValueError as exc:
        options_of.error(str(exc))
    cache = Cache(options.cache)
    if not options.only_cached:
        words = [options.agent if word == AGENT else word for word in options.policies]
        work(list(all_runs(found, options.seeds, words)), cache, options.again)
    cells = {row.name: [cell(row, seed, cache, options.agent) for seed in options.seeds] for row in found}
    lines = [Line(row, [one for one in cells[row.name] if one is not None]) for row in found if any(cells[row.name])]
    if missing := [f"{row.name} ({cells[row.name].count(None)})" for row in found if None in cells[row.name]]:
        print(f"not compared, as runs are missing (seeds): {', '.join(missing)}\n")
    judged = entrants([options.agent])[0]
    stale = [row.name for row in found if any(cache.is_stale(Run(row, seed, judged)) for seed in options.seeds)]
    if stale:
        print(f"the agent's figures are of older sources: {', '.join(stale)}\n")
    if not lines:
        return 1
    goals = judge(lines, options.scale)
    print(f"{options.agent}, scale {options.scale}, seeds {' '.join(map(str, options.seeds))}; WA of the second half\n")
    print(show_lines(lines) + "\n")
    for goal in goals:
        print(f"{'✔' if goal.met else '✘'} {goal.what:<50} {goal.found:8.4f}  {goal.wanted}")
    if options.json is not None:
        report = {
            "agent": options.agent, "scale": SCALES[options.scale]._asdict(), "seeds": options.seeds,
            "rows": [plain(line) for line in lines], "goals": [goal._asdict() for goal in goals],
        }  # fmt: skip
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if all(goal.met for goal in goals) and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
