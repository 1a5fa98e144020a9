"""What is compared, and the tables of it: the same cells for a terminal and for docs/methods.md."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from bench.methods_flow import Setup
from bench.methods_run import Outcome
from bench.methods_ways import WAYS
from bench.runner import Spread

Cells: TypeAlias = Sequence[Sequence[str]]
"""A table: the head first."""
BLOCKED: Final = "decisions that waited for user space"
HANG_SHARE: Final = 2
"""In the second table the adviser stops answering after one in so many of the writes' time."""


class Entry(NamedTuple):
    """One line of the tables."""

    label: str
    way: str
    settings: Mapping[str, Any] = {}

    def setup(self, base: Setup) -> Setup:
        """``base`` with the entry's own settings."""
        return msgspec.structs.replace(base, **self.settings)


ENTRIES: Final = (
    Entry(WAYS["default"].title, "default"),
    Entry(WAYS["upcall"].title, "upcall"),
    Entry(f"{WAYS['sysfs'].title}, every 1 ms", "sysfs", {"poll_ns": 1_000_000}),
    Entry(f"{WAYS['sysfs'].title}, every 100 µs", "sysfs", {"poll_ns": 100_000}),
    Entry(WAYS["chardev"].title, "chardev"),
    Entry(WAYS["events"].title, "events"),
    Entry(WAYS["hints"].title, "hints"),
    Entry(WAYS["in-kernel"].title, "in-kernel"),
    Entry(WAYS["compiled"].title, "compiled"),
)
SWEEP: Final = {
    "sysfs": ("poll_ns", (30_000, 100_000, 300_000, 1_000_000, 3_000_000)),
    "chardev": ("push", (0, 1, 2, 4, 8, 16, 32)),
    "events": ("push", (0, 1, 2, 4, 8, 16, 32)),
    "hints": ("push", (0, 1, 2, 4, 8, 16, 32)),
}
"""What is varied for the plot: how often user space hears of the state."""
WORKLOADS: Final = ("mixed", "zipf1.2", "hot-cold-90-10", "shifting-zipf")
PUSHES: Final = (0, 1, 2, 4, 8, 16)
"""What is varied in the table of workloads."""


def _per(total: int, outcome: Outcome) -> float:
    return total / max(outcome.decisions, 1)


def _mid(outcomes: Sequence[Outcome], value: Any) -> float:
    return float(median(value(outcome) for outcome in outcomes))


def _us(value_ns: float) -> str:
    return f"{value_ns / 1e3:,.1f}" if 0 < value_ns < 1e5 else f"{value_ns / 1e3:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def traffic_table(found: Mapping[str, Sequence[Outcome]]) -> Cells:
    """What crosses, per decision; medians over seeds."""
    head = ("method", "crossings", "entries", "bytes in frames", "bytes in shared memory", "charged, µs")
    rows: list[tuple[str, ...]] = [head]
    for label, runs in found.items():
        figures = [
            _mid(runs, lambda run, name=name: _per(getattr(run, name), run))
            for name in ("crossings", "entries", "bytes", "shared_bytes")
        ]  # fmt: skip
        charged_us = _mid(runs, lambda run: _per(run.charged_ns, run)) / 1e3
        rows.append((label, *(f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in figures),
                     f"{charged_us:.1f}"))  # fmt: skip
    return rows


def main_table(found: Mapping[str, Sequence[Outcome]]) -> Cells:
    """What it leads to; medians over seeds, the greatest of all, and the range of the KPI."""
    head = ("method", "age of the state, µs (99 %)", "decision waits, µs", "longest wait of a write, µs", BLOCKED,
            "followed", "as if fresh", "write amplification (range)")  # fmt: skip
    rows: list[tuple[str, ...]] = [head]
    for label, runs in found.items():
        advised = any(run.followed for run in runs)
        ages = f"{_us(_mid(runs, lambda r: r.age_median_ns))} ({_us(max(r.age_p99_ns for r in runs))})"
        amplification = sorted(run.wa_ppm / 1e6 for run in runs)
        blocking, decisions = sum(run.blocking for run in runs), sum(run.decisions for run in runs)
        rows.append((
            label, ages if advised else "", _us(_mid(runs, lambda r: r.wait_median_ns)),
            _us(max(r.delay_max_ns for r in runs)), f"{blocking:,} of {decisions:,}",
            _percent(_mid(runs, lambda r: _per(r.followed, r))), _percent(_mid(runs, lambda r: _per(r.same, r))),
            f"{median(amplification):.2f} ({amplification[0]:.2f} .. {amplification[-1]:.2f})",
        ))  # fmt: skip
    return rows


def workload_table(found: Mapping[str, Mapping[str | int, Outcome]]) -> Cells:
    """What hints keep of the advantage that fresh state has over the default, by workload and how often they come."""
    pushes = [key for key in next(iter(found.values())) if isinstance(key, int)]
    heads = [f"every {push} victims" if push > 1 else "every victim" if push else "every write" for push in pushes]
    rows: list[tuple[str, ...]] = [("workload", "default", "fresh", *heads)]
    for name, runs in found.items():
        high, low = runs["default"].wa_ppm, runs["in-kernel"].wa_ppm
        kept = [
            f"{_percent((high - runs[push].wa_ppm) / max(high - low, 1))} at {_us(runs[push].age_median_ns)} µs"
            for push in pushes
        ]  # fmt: skip
        rows.append((name, f"{high / 1e6:.2f}", f"{low / 1e6:.2f}", *kept))
    return rows


def hang_table(found: Mapping[str, Outcome]) -> Cells:
    """When the adviser stops answering in the middle."""
    head = ("method", "writes that waited", "longest wait, µs", "all waiting, µs", BLOCKED, "followed",
            "write amplification")  # fmt: skip
    rows: list[tuple[str, ...]] = [head]
    for label, run in found.items():
        rows.append((
            label, f"{run.writes_delayed:,}", _us(run.delay_max_ns), _us(run.delay_ns), f"{run.blocking:,}",
            _percent(_per(run.followed, run)), f"{run.wa_ppm / 1e6:.2f}",
        ))  # fmt: skip
    return rows


class HostRow(NamedTuple):
    """Host time of one method, over rounds."""

    label: str
    per_decision_us: Spread
    ratio: Spread
    """Of the whole run's, to that of the in-kernel stand-in in the same round."""


def host_table(found: Iterable[HostRow]) -> Cells:
    """Host time: of this emulator in Python, and of nothing else."""
    rows: list[tuple[str, ...]] = [("method", "host µs for each decision (range)", "beside in-kernel (range)")]
    for label, us, ratio in found:
        rows.append((label, f"{us.median:.0f} ({us.min:.0f} .. {us.max:.0f})",
                     f"{ratio.median:.2f} ({ratio.min:.2f} .. {ratio.max:.2f})"))  # fmt: skip
    return rows


# --- text ---


def as_text(cells: Cells, *, narrow: int = 14) -> str:
    """For a terminal: columns side by side, heads broken into words."""
    head, *rows = cells
    heads = [_fold(cell, narrow) for cell in head]
    depth = max(map(len, heads))
    lines = [[*[""] * (depth - len(parts)), *parts] for parts in heads]
    table = [[column[at] for column in lines] for at in range(depth)] + [list(row) for row in rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) if at == 0 else cell.rjust(width)
                  for at, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in table
    )  # fmt: skip


def _fold(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False)


def as_markdown(cells: Cells) -> str:
    """For the document."""
    head, *rows = cells
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *rows))


def replaced(document: str, name: str, text: str) -> str:
    """The document with what stands between ``<!-- figures: NAME -->`` and ``<!-- /figures -->`` made anew."""
    pattern = rf"(<!-- figures: {re.escape(name)} -->\n).*?(<!-- /figures -->)"
    made, count = re.subn(pattern, lambda match: f"{match[1]}{text}\n{match[2]}", document, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{count} places for the figures {name!r} in the document, expected 1")
    return made
