"""The plot of docs/methods.md (extra ``report``: matplotlib): an SVG that follows light and dark by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from bench.methods_run import Outcome
from uxk.scenario.lfs.report.svg import FAINT, INK, SERIES, canvas, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH: Final = 10.4
HEIGHT: Final = 3.7
LINES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "sysfs": ("polled sysfs", {"color": SERIES[1], "marker": "s"}),
    "chardev": ("char device", {"color": SERIES[3], "marker": "D"}),
    "events": ("event ring", {"color": SERIES[6], "marker": "^", "linewidth": 4.5, "alpha": 0.45, "markersize": 8}),
    "hints": ("SQ/CQ with hints", {"color": SERIES[2], "marker": "o"}),
}
"""Methods whose adviser may hear of the state more or less often; the third lies under the fourth in two plots."""
DOT: Final[dict[str, Any]] = {"markersize": 4.5, "markeredgewidth": 0}
UPCALL: Final = SERIES[4]
IN_KERNEL: Final = SERIES[0]
STYLE: Final = """<style>
  svg { --ink: #1d1f22; --faint: #80868c; --grid: #e4e6e8; --page: #fdfdfc; --s0: #0b66c3; --s1: #c8541a;
        --s2: #0f8a5f; --s3: #8a4fc4; --s4: #b0357c; --s6: #35808a; background: var(--page); }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #e4e6e8; --faint: #8a9097; --grid: #2d3136; --page: #16181b; --s0: #62aefc; --s1: #ff9a5e;
          --s2: #4fd3a3; --s3: #c39bf5; --s4: #f58ac4; --s6: #6ecbd6; }
  }
</style>
"""


def picture(swept: Mapping[str, Sequence[Outcome]], alone: Mapping[str, Outcome]) -> str:
    """Age of the state by crossings and by bytes, and what age does to the KPI; a file of its own."""
    with canvas("methods", WIDTH, HEIGHT) as figure:
        left, middle, right = figure.subplots(1, 3)
        _ages(left, swept, alone["upcall"], alone["in-kernel"], lambda run: run.crossings / run.decisions)
        _ages(middle, swept, alone["upcall"], alone["in-kernel"], lambda run: run.bytes / run.decisions)
        _kpi(right, swept, alone)
        left.set_xlabel("crossings for each decision")
        middle.set_xlabel("bytes in frames for each decision")
        left.set_ylabel("median age of the state, µs")
        left.set_title("what fresh state costs in crossings")
        middle.set_title("... and in bytes")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8.5)
        svg = to_svg(figure, "Six methods: age of the state by crossings and bytes, and write amplification by age")
    end = svg.index(">") + 1
    return f"{svg[:end]}\n{STYLE}{svg[end:]}"


def _ages(
    axes: Axes, swept: Mapping[str, Sequence[Outcome]], upcall: Outcome, inside: Outcome,
    cost: Callable[[Outcome], float],
) -> None:  # fmt: skip
    for way, runs in swept.items():
        name, style = LINES[way]
        axes.plot([cost(run) for run in runs], [run.age_median_ns / 1e3 for run in runs], label=name,
                  **{**DOT, **style})  # fmt: skip
    axes.plot([cost(upcall)], [upcall.age_median_ns / 1e3], marker="X", color=UPCALL, linestyle="", markersize=9,
              label="upcall: the kernel waits")  # fmt: skip
    axes.axhline(inside.age_median_ns / 1e3, color=IN_KERNEL, linestyle="--", linewidth=1.2,
                 label="in-kernel: nothing crosses")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes)


def _kpi(axes: Axes, swept: Mapping[str, Sequence[Outcome]], alone: Mapping[str, Outcome]) -> None:
    for way, runs in swept.items():
        axes.plot([run.age_median_ns / 1e3 for run in runs], [run.wa_ppm / 1e6 for run in runs],
                  **{**DOT, **LINES[way][1]})  # fmt: skip
    upcall = alone["upcall"]
    axes.plot([upcall.age_median_ns / 1e3], [upcall.wa_ppm / 1e6], marker="X", color=UPCALL, linestyle="",
              markersize=9)  # fmt: skip
    axes.axhline(alone["in-kernel"].wa_ppm / 1e6, color=IN_KERNEL, linestyle="--", linewidth=1.2)
    axes.axhline(alone["default"].wa_ppm / 1e6, color=FAINT, linestyle=":", linewidth=1.2)
    axes.annotate("the default, without advice", (0.02, alone["default"].wa_ppm / 1e6), (0, 4), va="bottom", color=INK,
                  xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=8.5)  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(top=alone["default"].wa_ppm / 1e6 * 1.05)
    axes.set_xlabel("median age of the state, µs")
    axes.set_ylabel("write amplification")
    axes.set_title("what it is worth")
    _plain(axes)


def _plain(axes: Axes) -> None:
    """Powers of ten as numbers, and no marks between."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in [axes.xaxis, *([axes.yaxis] if axes.get_yscale() == "log" else [])]:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())
        axis.set_tick_params(which="minor", length=0)
