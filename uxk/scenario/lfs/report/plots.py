"""The report's plots, each a function from a study's standings to SVG; ``""`` if the runs do not have the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from uxk.scenario.lfs.report import model
from uxk.scenario.lfs.report.model import Standing
from uxk.scenario.lfs.report.svg import FAINT, INK, MODES, PAGE, SERIES, bare, canvas, spread, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH: Final = 9.2
"""Inches."""
NAME_CHARS: Final = 30
BANDS_MAX: Final = 24
"""Runs in the mode timeline."""
_TOP_OF_WA: Final = 1.06
_WIDE: Final = 50
"""Numbers this many times apart are shown on a logarithmic scale."""


def short(name: str) -> str:
    """A name for a plot."""
    shown = "".join(ch if ch.isprintable() else "?" for ch in name)
    return shown if len(shown) <= NAME_CHARS else f"{shown[: NAME_CHARS - 1]}…"


def colours(rows: Sequence[Standing]) -> dict[str, str]:
    """Colours of the policies that have one, agents first: the same in all plots."""
    ordered = sorted(rows, key=lambda row: (row.kind not in ("agent", "own"), row.kind == "oracle", row.policy))
    return {row.policy: SERIES[number % len(SERIES)] for number, row in enumerate(ordered)}


# --- over time ----------------------------------------------------------------------------------------------


def wa_over_time(rows: Sequence[Standing]) -> str:
    """A line for each policy, those without colour thin; names stand at the lines' ends."""
    picked = model.shown(rows)
    colour = colours(picked)
    curves = {row.policy: drawn for row in rows if (drawn := model.curve(row)) is not None}
    if not curves:
        return ""
    with canvas("wa", WIDTH, 4.0) as figure:
        axes = figure.add_subplot()
        ends: list[tuple[float, str]] = []
        for row in rows:
            drawn = curves.get(row.policy)
            if drawn is None:
                continue
            if row.policy in colour:
                style = "--" if row.kind == "oracle" else "-"
                axes.plot(drawn.millions, drawn.wa, style, color=colour[row.policy], zorder=3)
                ends.append((drawn.wa[-1], row.policy))
            else:
                axes.plot(drawn.millions, drawn.wa, color=FAINT, linewidth=0.6, alpha=0.55, zorder=2)
        right = max(drawn.millions[-1] for drawn in curves.values())
        highest = _highest([curves[row.policy].wa for row in picked if row.policy in curves])
        axes.set_ylim(1, highest)
        axes.set_xlim(0, right)
        _name_ends(axes, ends, colour, highest)
        half = model.half_begins(rows)
        if half is not None:
            axes.axvline(half, color=FAINT, linewidth=0.9, linestyle=":")
            axes.annotate(
                "second half", (half, 1), (4, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
                va="top", color=INK, fontsize=8.5, zorder=4,
                bbox={"facecolor": PAGE, "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
        axes.set_xlabel("user blocks written, millions")
        axes.set_ylabel("write amplification")
        return to_svg(figure, "Write amplification over time, by policy")


def _highest(shown: list[list[float]]) -> float:
    """Top of the axis: above all shown lines, but a short peak may leave the picture."""
    tops = [sorted(wa)[int(len(wa) * 0.98)] for wa in shown if wa]
    return max(1.05, 1 + (max(tops, default=1.0) - 1) * _TOP_OF_WA)


def _name_ends(axes: Axes, ends: list[tuple[float, str]], colour: dict[str, str], highest: float) -> None:
    places = spread([min(wa, highest) for wa, _ in ends], (highest - 1) * 0.052)
    for (wa, policy), place in zip(ends, places, strict=True):
        axes.annotate(
            f"{short(policy)}  {wa:.2f}", (1, place), (6, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", color=colour[policy], fontsize=8.5, annotation_clip=False,
        )  # fmt: skip


def mode_timeline(rows: Sequence[Standing]) -> str:
    """A band for each agent and seed, coloured by mode; the share of each mode at its end."""
    bands = [
        (f"{short(row.policy)}, seed {run.seed}", spans)
        for row in rows for run in row.runs if (spans := model.mode_spans(run))
    ][:BANDS_MAX]  # fmt: skip
    if not bands:
        return ""
    with canvas("modes", WIDTH, 1.1 + 0.55 * len(bands)) as figure:
        axes = figure.add_subplot()
        bare(axes)
        _mode_legend(figure, {span.mode for _, spans in bands for span in spans})
        for place, (_, spans) in enumerate(bands):
            for span in spans:
                axes.barh(
                    place, span.length, left=span.begin, height=0.52, color=MODES.get(span.mode, MODES["unknown"])
                )  # fmt: skip
            total = sum(span.length for span in spans)
            shares: dict[str, float] = {}
            for span in spans:
                shares[span.mode] = shares.get(span.mode, 0) + span.length
            text = ", ".join(f"{short(mode)} {_percent(length / max(total, 1e-9))}" for mode, length in shares.items())
            axes.annotate(
                text, (spans[0].begin, place - 0.28), (0, 1), textcoords="offset points", va="bottom", fontsize=8
            )  # fmt: skip
        axes.set_yticks(range(len(bands)), [name for name, _ in bands])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(bands) - 0.6, -0.8)
        axes.set_xlim(left=0, right=max(spans[-1].begin + spans[-1].length for _, spans in bands))
        axes.set_xlabel("user blocks written, millions")
        return to_svg(figure, "Mode timeline of the agents' runs")


def _mode_legend(figure: Figure, modes: set[str]) -> None:
    """Which colour is which mode, in the order of their power."""
    from matplotlib.patches import Patch

    known = [mode for mode in MODES if mode in modes or (mode == "unknown" and modes - set(MODES))]
    patches = [Patch(color=MODES[mode], label=mode) for mode in known]
    figure.legend(
        handles=patches, loc="outside upper left", ncols=len(patches), frameon=False, fontsize=8.5, handlelength=1,
        handleheight=1, columnspacing=1.4,
    )  # fmt: skip


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


# --- small multiples ----------------------------------------------------------------------------------------


def _grid(figure: Figure, number: int) -> list[Axes]:
    """Panels of one size with common axes, three in a row."""
    columns = min(number, 3)
    lines = -(-number // columns)
    found = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    for axes in found[number:]:
        axes.set_visible(False)
    for axes in found[max(number - columns, 0) : number]:
        axes.tick_params(labelbottom=True)
    panels: list[Axes] = found[:number]
    return panels


def _logarithmic(axes: Axes) -> None:
    """The x axis by powers of ten, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, numticks=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value >= 1e-4 else f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _height(number: int) -> float:
    return 0.5 + 1.75 * -(-number // 3)


def segment_utilisation(rows: Sequence[Standing]) -> str:
    """Sealed segments by valid blocks at the end, a panel for each policy shown."""
    picked = model.shown(rows)
    colour = colours(picked)
    found = [(row, shares) for row in picked if (shares := model.utilisation(row)) is not None]
    if not found:
        return ""
    with canvas("utilisation", WIDTH, _height(len(found))) as figure:
        for axes, (row, shares) in zip(_grid(figure, len(found)), found, strict=True):
            axes.bar(
                [10 * tenth + 5 for tenth in range(len(shares))], [100 * share for share in shares], width=9,
                color=colour[row.policy],
            )  # fmt: skip
            axes.set_title(short(row.policy), color=colour[row.policy])
            axes.grid(visible=False, axis="x")
            axes.set_xticks([0, 20, 40, 60, 80, 105], ["0", "20", "40", "60", "80", "full"])
        figure.supxlabel("valid blocks of a sealed segment, %", fontsize=9)
        figure.supylabel("segments, %", fontsize=9)
        return to_svg(figure, "Sealed segments by valid blocks")


def victim_ages(rows: Sequence[Standing], segment_blocks: int, pages: int) -> str:
    """Age against valid blocks of the next victim at epoch ends, a panel for each policy shown."""
    picked = model.shown(rows)
    colour = colours(picked)
    found = [(row, seen) for row in picked if (seen := model.victims(row, segment_blocks)) is not None]
    if not found:
        return ""
    with canvas("victims", WIDTH, _height(len(found))) as figure:
        for axes, (row, seen) in zip(_grid(figure, len(found)), found, strict=True):
            axes.scatter(
                [age / pages for age in seen.ages], [100 * valid for valid in seen.valid], s=7, alpha=0.5, linewidths=0,
                color=colour[row.policy],
            )  # fmt: skip
            _logarithmic(axes)
            axes.set_ylim(-3, 103)
            axes.set_title(short(row.policy), color=colour[row.policy])
        figure.supxlabel("age: user writes since the segment was sealed, in volumes", fontsize=9)
        figure.supylabel("valid blocks, %", fontsize=9)
        return to_svg(figure, "Age and valid blocks of victims")


# --- hints --------------------------------------------------------------------------------------------------


def hint_fates(rows: Sequence[Standing]) -> str:
    """Bars by what became of hints, a group for each agent."""
    found = [(row, fates) for row in rows if row.kind == "agent" and (fates := model.fates(row))]
    if not found:
        return ""
    lines = [(short(row.policy), fate, count) for row, fates in found for fate, count in fates.items()]
    with canvas("fates", WIDTH, 0.75 + 0.28 * len(lines)) as figure:
        axes = figure.add_subplot()
        axes.grid(visible=False, axis="y")
        for place, (_, fate, count) in enumerate(lines):
            tone = SERIES[0] if fate == "applied" else FAINT if fate == "superseded" else MODES["emergency"]
            axes.barh(place, count, color=tone, height=0.66)
            axes.annotate(
                f"{count:,}", (count, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5
            )  # fmt: skip
        several = len(found) > 1
        axes.set_yticks(
            range(len(lines)), [f"{policy}: {fate}" if several else short(fate) for policy, fate, _ in lines]
        )  # fmt: skip
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        counts = [count for _, _, count in lines]
        is_wide = max(counts) > _WIDE * min(counts)
        if is_wide:
            _logarithmic(axes)
        axes.set_xlim(0.8 if is_wide else 0, max(counts) * (2 if is_wide else 1.1))
        axes.set_xlabel(f"hints, all seeds together{' (logarithmic)' if is_wide else ''}")
        return to_svg(figure, "What became of hints")
