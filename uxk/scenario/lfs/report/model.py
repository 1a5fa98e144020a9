"""What the report tells, worked out of a study: standings, who is shown in plots, curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from uxk.limits import PPM
from uxk.scenario.lfs.outcome import Outcome
from uxk.scenario.lfs.scores import Spread, Summary, summarise

SHOWN_MAX: Final = 6
"""Policies with a colour of their own."""
WINDOW_EPOCHS: Final = 5
"""Width of the light smoothing of curves, odd."""

VICTIMS_MAX: Final = 400
"""Dots for one policy: every so many of them, if there are more."""


class Standing(NamedTuple):
    """One policy over all its seeds."""

    summary: Summary
    runs: list[Outcome]
    place: int
    """From 1, by the second half, among those that do not know the future; 0 for an oracle."""

    @property
    def policy(self) -> str:
        """Its name."""
        return self.summary.policy

    @property
    def kind(self) -> str:
        """human, oracle, agent, own."""
        return self.summary.kind

    @property
    def wa(self) -> Spread:
        """Write amplification that counts: of the second half, or of the whole if halves were not told apart."""
        return self.summary.wa_second_half or self.summary.wa

    @property
    def is_winner(self) -> bool:
        """First among those that do not know the future."""
        return self.place == 1


def standings(outcomes: Sequence[Outcome]) -> list[Standing]:
    """Policies by write amplification, the best first."""
    rows: list[Standing] = []
    place = 0
    for summary in summarise(outcomes):
        place += summary.kind != "oracle"
        mine = [each for each in outcomes if each.policy == summary.policy]
        rows.append(Standing(summary, mine, 0 if summary.kind == "oracle" else place))
    return rows


def best(rows: Sequence[Standing], *kinds: str) -> Standing | None:
    """The best of these kinds."""
    return next((row for row in rows if row.kind in kinds), None)


def default_of(rows: Sequence[Standing]) -> Standing | None:
    """The kernel's own policy, if it took part."""
    return next((row for row in rows if row.summary.is_default), None)


def shown(rows: Sequence[Standing]) -> list[Standing]:
    """Those with colours, the best first: agents, default, best human, oracle, the winner, then by standing."""
    first = [row for row in rows if row.kind in ("agent", "own")][: SHOWN_MAX - 3]
    wanted = [*first, default_of(rows), best(rows, "human"), best(rows, "oracle"), *rows]
    names: dict[str, None] = {}
    for row in wanted:
        if row is not None and len(names) < SHOWN_MAX:
            names.setdefault(row.policy)
    return [row for row in rows if row.policy in names]


class Curve(NamedTuple):
    """Write amplification over time, the mean of the seeds."""

    millions: list[float]
    """User blocks written at the end of each epoch."""
    wa: list[float]


def curve(row: Standing) -> Curve | None:
    """Smoothed: each point is the amplification over a few epochs around it.  None without epochs."""
    runs = [run.epochs for run in row.runs if run.epochs]
    if not runs:
        return None
    length = min(map(len, runs))
    reach = WINDOW_EPOCHS // 2
    ends: list[float] = []
    wa: list[float] = []
    user = 0
    for at in range(length):
        user += runs[0][at].user
        near = [epoch for epochs in runs for epoch in epochs[max(at - reach, 0) : min(at + reach + 1, length)]]
        written = sum(epoch.user for epoch in near)
        ends.append(user / 1e6)
        wa.append(1 + sum(epoch.moved for epoch in near) / max(written, 1))
    return Curve(ends, wa)


def half_begins(rows: Sequence[Standing]) -> float | None:
    """Millions of user blocks before the second half."""
    for row in rows:
        for run in row.runs:
            if 0 < run.half_user_blocks < run.user_blocks:
                return (run.user_blocks - run.half_user_blocks) / 1e6
    return None


def utilisation(row: Standing) -> list[float] | None:
    """Shares of sealed segments by tenths of valid blocks (full ones last), over all seeds; None if unknown."""
    heats = [run.heat for run in row.runs if run.heat]
    total = sum(map(sum, heats))
    if not total:
        return None
    return [sum(heat[tenth] for heat in heats) / total for tenth in range(min(map(len, heats)))]


class Victims(NamedTuple):
    """Segments that a policy would have cleaned next."""

    ages: list[int]
    """User writes since they were sealed, at least 1."""
    valid: list[float]
    """Share of valid blocks."""


def victims(row: Standing, segment_blocks: int) -> Victims | None:
    """One at each epoch's end, of all seeds; None if the runs recorded none."""
    found = [epoch.victim for run in row.runs for epoch in run.epochs if epoch.victim]
    if not found:
        return None
    found = found[:: -(-len(found) // VICTIMS_MAX)]
    return Victims([max(age, 1) for age, _ in found], [valid / segment_blocks for _, valid in found])


def fates(row: Standing) -> dict[str, int]:
    """What became of an agent's hints, over all seeds; refused ones by reason.

    A standing hint counts as applied for each epoch that followed it.
    """
    found = {
        "applied": sum(run.applied for run in row.runs),
        "superseded": sum(run.superseded for run in row.runs),
    }  # fmt: skip
    for run in row.runs:
        for reason, count in sorted(run.refused.items()):
            name = f"refused: {reason}"
            found[name] = found.get(name, 0) + count
    return {name: count for name, count in found.items() if count}


class Span(NamedTuple):
    """Epochs in one mode, in millions of user blocks."""

    mode: str
    begin: float
    length: float


def mode_spans(run: Outcome) -> list[Span]:
    """The run's modes in order; empty for a run without modes."""
    spans: list[Span] = []
    done = 0.0
    for epoch in run.epochs:
        length = epoch.user / 1e6
        if epoch.mode:
            if spans and spans[-1].mode == epoch.mode:
                spans[-1] = spans[-1]._replace(length=spans[-1].length + length)
            else:
                spans.append(Span(epoch.mode, done, length))
        done += length
    return spans


def policies_in_force(row: Standing) -> list[tuple[str, int]]:
    """What hints had put in force, with its share of user blocks in millionths, the longest first."""
    blocks: dict[str, int] = {}
    for run in row.runs:
        for epoch in run.epochs:
            name = " ".join((epoch.policy, *map(str, epoch.args))) or "the default alone"
            blocks[name] = blocks.get(name, 0) + epoch.user
    total = max(sum(blocks.values()), 1)
    return sorted(
        ((name, count * PPM // total) for name, count in blocks.items()), key=lambda each: (-each[1], each[0])
    )
