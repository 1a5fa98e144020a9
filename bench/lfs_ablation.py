"""What each part of the learning collector contributes: ``python -m bench.lfs_ablation [--cache FILE] [SEED ...]``.

The agent as it is, beside itself with parts replaced: who chooses among the candidates (river's fading means and
experts, the plain minimum of the last epoch, or chance), whether there are candidates beside the human-made ones, and
whether the best are varied by river's regression.  Rows, seeds, cache and figures are
those of :mod:`bench.lfs_goals`: second-half write amplification, over the agent's own (above 1: the part is worth
having), over the default's, and over the best human's where the cache has them all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from bench.lfs_goals import DEFAULT, geometric, parser
from bench.lfs_runs import CONTROL, GROUPS, SCALES, Cache, Row, Run, all_runs, chosen, entrants, rows, work
from uxk.subsystems.lfs import policies

AGENT = "uxk_gc"
VARIANTS = {
    "agent": AGENT,
    "minimum chooses": f"{AGENT}:chooser=minimum",
    "chance chooses": f"{AGENT}:chooser=random",
    "no search": f"{AGENT}:search=false",
    "humans only": f"{AGENT}:learned=false",
}


class Cell(NamedTuple):
    """One row with one seed: write amplification of the second half by variant."""

    wa: dict[str, float]
    default: float | None
    best: float | None
    """Of the published set, if all of it was run."""


def cell(row: Row, seed: int, cache: Cache, variants: Sequence[str]) -> Cell | None:
    """None unless all variants were run."""

    def wa(word: str) -> float | None:
        entry = cache.get(Run(row, seed, entrants([word])[0]))
        return None if entry is None else entry["half_wa_ppm"] / 1e6

    found = {name: value for name in variants if (value := wa(VARIANTS[name])) is not None}
    if len(found) < len(variants):
        return None
    humans = [value for name in policies.HUMANS if (value := wa(name)) is not None]
    return Cell(found, wa(DEFAULT), min(humans) if len(humans) == len(policies.HUMANS) else None)


def ratio(cells: Sequence[Cell], name: str, over: str) -> float | None:
    """Geometric mean of a variant's WA over the agent's, the default's or the best human's; None if one is missing."""
    found = []
    for one in cells:
        other = one.wa["agent"] if over == "agent" else one.default if over == "default" else one.best
        if other is None:
            return None
        found.append(one.wa[name] / other)
    return geometric(found)


def table(cells: dict[Row, list[Cell]], variants: Sequence[str], over: str) -> list[str]:
    """Rows by variants, with means of groups; nothing if what to compare with is missing throughout."""
    out = [f"{'WA over that of: ' + over:<28}" + "".join(f"{name:>17}" for name in variants)]
    groups: list[tuple[str, list[Row]]] = [
        (group, [row for row in cells if row.group == group]) for group in GROUPS
    ]  # fmt: skip
    for group, part in groups:
        out += [_line(row.name, cells[row], variants, over) for row in part]
        if part:
            out.append(_mean(f"= {group}", [cells[row] for row in part], variants, over))
    out.append(_mean("= all but control", [cells[r] for r in cells if r.group != CONTROL], variants, over))
    return out


def _show(value: float | None) -> str:
    return f"{'-':>17}" if value is None else f"{value:17.4f}"


def _line(name: str, cells: Sequence[Cell], variants: Sequence[str], over: str) -> str:
    return f"{name:<28}" + "".join(_show(ratio(cells, variant, over)) for variant in variants)


def _mean(name: str, parts: Sequence[Sequence[Cell]], variants: Sequence[str], over: str) -> str:
    means = []
    for variant in variants:
        found = [ratio(cells, variant, over) for cells in parts]
        known = [value for value in found if value is not None]
        means.append(geometric(known) if known and len(known) == len(found) else None)
    return f"{name:<28}" + "".join(map(_show, means))


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 if runs are missing."""
    options_of = parser(__doc__)
    options_of.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME",
                            help=f"some of {', '.join(VARIANTS)}; the agent always takes part")  # fmt: skip
    options = options_of.parse_args(argv)
    try:
        found = chosen(rows(SCALES[options.scale]), options.rows)
    except ValueError as exc:
        options_of.error(str(exc))
    variants = [name for name in VARIANTS if name == "agent" or name in options.variants]
    cache = Cache(options.cache)
    if not options.only_cached:
        words = [DEFAULT, *(VARIANTS[name] for name in variants)]
        work(list(all_runs(found, options.seeds, words)), cache, options.again)
    cells = {row: [cell(row, seed, cache, variants) for seed in options.seeds] for row in found}
    whole = {row: [one for one in seeds if one is not None] for row, seeds in cells.items() if any(seeds)}
    if missing := [row.name for row, seeds in cells.items() if None in seeds]:
        print(f"not compared, as runs are missing: {', '.join(missing)}\n")
    if not whole:
        return 1
    for over in ("agent", "default", "best human"):
        print("\n".join(table(whole, variants, over)) + "\n")
    if options.json is not None:
        report = {"scale": options.scale, "seeds": options.seeds, "rows": [plain(*item) for item in whole.items()]}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if missing else 0


def plain(row: Row, cells: Sequence[Cell]) -> dict[str, Any]:
    """A row for JSON."""
    return {"row": row.name, "group": row.group, "seeds": [one._asdict() for one in cells]}


if __name__ == "__main__":
    sys.exit(main())
