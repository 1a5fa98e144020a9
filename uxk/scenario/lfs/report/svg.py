"""Plots as SVG inside of a page: same data, same bytes; colours come from the page, light or dark.

matplotlib (extra ``report``) draws with stand-ins for colours, which become CSS variables afterwards, and writes
text as text.  Nothing in a text is markup or mathematics: names come from files.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, PAGE = "#010203", "#010204", "#010205", "#010206"
"""Text and axes, what is less important, grid lines, what lies behind it all."""
SERIES: Final = tuple(f"#0103{number:02x}" for number in range(8))
"""Colours of policies, in this order."""
MODES: Final = {
    "emergency": "#010410", "learning": "#010411", "collaboration": "#010412", "recommendation": "#010413",
    "unknown": "#010414",
}  # fmt: skip
_VARIABLES: Final = {
    INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)", PAGE: "var(--page)",
    **{colour: f"var(--s{number})" for number, colour in enumerate(SERIES)},
    **{colour: f"var(--{mode})" for mode, colour in MODES.items()},
}  # fmt: skip
_SETTINGS: Final[dict[str, Any]] = {
    "axes.axisbelow": True, "axes.edgecolor": FAINT, "axes.facecolor": "none", "axes.grid": True,
    "axes.labelcolor": INK, "axes.labelsize": 9, "axes.spines.right": False, "axes.spines.top": False,
    "axes.titlecolor": INK, "axes.titlelocation": "left", "axes.titlesize": 9.5, "figure.facecolor": "none",
    "font.family": "sans-serif", "font.size": 9, "grid.color": GRID, "grid.linewidth": 0.7,
    "lines.linewidth": 1.7, "svg.fonttype": "none", "text.color": INK, "text.parse_math": False,
    "xtick.color": FAINT, "xtick.labelcolor": INK, "ytick.color": FAINT, "ytick.labelcolor": INK,
}  # fmt: skip
_ID = re.compile(r' id="([^"]+)"')
_REFERENCE = re.compile(r'(?:url\(#|href="#)([^")]+)')
_COORDINATES = re.compile(r' (?:d|x|y)="[^"]*"')
_DIGITS = re.compile(r"(\.\d\d)\d+")


@contextmanager
def canvas(name: str, width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` by ``height`` inches to draw in; whatever the user's settings, it looks the same."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = {**_SETTINGS, "svg.hashsalt": f"uxk {name}"}  # matplotlib types every key of its own
        matplotlib.rcParams.update(settings)
        yield Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure, title: str) -> str:
    """The figure as an element for a page; call it inside of :func:`canvas`.  ``title`` is for who cannot see it."""
    from html import escape

    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None,
                                                                  "Format": None})  # fmt: skip
    text = file.getvalue()
    text = text[text.index("<svg") :]
    used = set(_REFERENCE.findall(text))
    text = _ID.sub(lambda match: match.group() if match[1] in used else "", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"| height="[\d.]+pt"| width="[\d.]+pt"', "", text, count=2)
    text = _COORDINATES.sub(lambda match: _DIGITS.sub(r"\1", match.group()), text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def spread(positions: list[float], least: float) -> list[float]:
    """Positions as near as may be to the given ones with ``least`` between them, in their order."""
    order = sorted(range(len(positions)), key=lambda at: (positions[at], at))
    groups: list[tuple[float, list[int]]] = []  # where the middle of a run of neighbours is wanted, and its members
    for at in order:
        centre, members = positions[at], [at]
        while groups and centre - groups[-1][0] < least * (len(members) + len(groups[-1][1])) / 2:
            before, others = groups.pop()
            members = [*others, *members]
            centre = (before * len(others) + centre * (len(members) - len(others))) / len(members)
        groups.append((centre, members))
    out = list(positions)
    for centre, members in groups:
        for rank, at in enumerate(members):
            out[at] = centre + (rank - (len(members) - 1) / 2) * least
    return out


def bare(axes: Axes) -> None:
    """Takes away what is not needed: the grid across, the axis line on the left."""
    axes.grid(visible=False, axis="x")
    axes.spines["left"].set_visible(False)
