"""The tables of docs/benchmarks.md about programs, from the results of ``bench.bpf``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.runner import Result

DOCUMENT: Final = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
MODELS: Final = {
    "tree": "tree of majority leaves", "forest": "forest of 10 trees", "logistic": "scaler and logistic, 8 features",
    "net": "net 8-16-2",
}  # fmt: skip
DECIDE: Final = {
    "river predict_one": "river", "uxk interpreter": "interpreter", "uxk translated": "translated",
    "uxk machine code, calls": "machine code, a call each", "uxk batch": "batch", "uxk batch, quick": "batch, quick",
    "numba, batch": "numba, batch", "linux, calls": "Linux, a call each", "linux, repeated": "Linux JIT, repeated",
}  # fmt: skip
MAKE: Final = {
    "uxk generate": "code", "uxk verify": "proof", "uxk translate": "Python",
    "uxk machine code, quick": "machine code, quick", "uxk machine code": "machine code", "linux load": "Linux loads",
}  # fmt: skip
INSTEAD: Final = {"river predict_one": "numpy net", "numba, batch": "numpy, batch"}
"""What stands in a column where its own contender is not there; marked, as it is something else."""


def tables(results: Sequence[Result]) -> dict[str, list[tuple[str, ...]]]:
    """Thousand decisions, and thousand instructions, a second: medians."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for name, kind, heads in (("bpf-decide", "decide", DECIDE), ("bpf-make", "make", MAKE)):
        lines = [line(result, heads) for result in results if result.name.startswith(f"{kind}/")]
        first = "model" if kind == "decide" else "program"
        rows = [(first, "instructions", *heads.values()), *lines]
        kept = [at for at in range(len(rows[0])) if any(row[at] for row in lines)]  # Linux is not everywhere
        found[name] = [tuple(row[at] for at in kept) for row in rows]
    return found


def line(result: Result, heads: Mapping[str, str]) -> tuple[str, ...]:
    """One case: its name, its size, and a cell for each column."""
    parts = re.fullmatch(r"\w+/(.+) \((\d+) instructions\)", result.name)
    assert parts is not None, result.name
    rates = {row.name: row.spread.median for row in result.rows}
    cells = [_cell(rates, name) for name in heads]
    return MODELS.get(parts[1], parts[1]), f"{int(parts[2]):,}", *cells


def _cell(rates: Mapping[str, float], name: str) -> str:
    mark = "" if name in rates else "*"
    rate = rates.get(name, rates.get(INSTEAD.get(name, "")))
    if rate is None:
        return ""
    thousands = rate / 1e3
    return f"{thousands:,.1f}{mark}" if thousands < 10 else f"{thousands:,.0f}{mark}"
