"""Random fault plans: faults that every module must survive, at times and in numbers drawn from a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, get_args

import numpy as np

from uxk.core.manifest import canonical
from uxk.faults.model import Fault, FaultKind
from uxk.kernel.agent import KernelAgent
from uxk.limits import PPM
from uxk.scenario.exploring import Exploration

STREAM: Final = "explore/plan"
DRAWN: Final[tuple[FaultKind, ...]] = tuple(kind for kind in get_args(FaultKind) if kind != "device")
"""Kinds that are drawn where the scenario names none."""
_WEIGHTS: Final = {"crash": 4, "hang": 2}
_DEATHS_MAX: Final = 3
"""Most crashes of one fault: what restart policies allow by default."""
_FOR_HINTS: Final = ("drop", "delay", "slow", "reorder", "duplicate", "corrupt", "stale", "lie")
_FOR_REQUESTS: Final = ("drop", "delay", "slow", "reorder", "duplicate")
_FOR_COMPLETIONS: Final = ("drop", "delay", "slow", "reorder", "duplicate", "stale")
_TRIGGERS: Final = ("event:crash", "event:start", "event:fault", "log:restarts", "log:timed")


class Target(NamedTuple):
    """An instance that faults may befall, and what it was seen to do."""

    name: str
    requests: int
    hints: int
    timeout_ns: int
    heartbeat_ns: int | None
    restarts: bool
    """Whether its policy brings it back."""
    lent: bool = False
    """Whether requests may refer to memory of other instances."""

    @classmethod
    def of(cls, agent: KernelAgent, *, lent: bool = False) -> Target:
        """From the kernel's side of it."""
        manifest, account = agent.manifest, agent.account
        return cls(
            agent.name, account.requests, account.hints, manifest.watchdog.request_timeout_ns,
            manifest.watchdog.heartbeat_ns, manifest.restart.mode != "temporary",
            lent,
        )  # fmt: skip


def random_plan(
    stream: np.random.Generator, targets: Sequence[Target], horizon_ns: int, explore: Exploration
) -> tuple[Fault, ...]:
    """One plan, with all faults over at ``horizon_ns`` or soon after; empty if nothing can befall anybody."""
    wanted = {canonical(name) for name in explore.modules}
    kinds = explore.kinds or DRAWN
    able = [(t, choices) for t in targets if not wanted or t.name in wanted if (choices := _choices(t, kinds))]
    if not able:
        return ()
    draw = _Draw(stream, max(horizon_ns, 1000))
    faults: list[Fault] = []
    for _ in range(1 + draw.below(explore.faults_max)):
        target, choices = able[draw.below(len(able))]
        kind, where, message = draw.weighted(choices)
        faults.append(_fault(draw, target, kind, where, message))
    return tuple(faults)


def _choices(target: Target, kinds: Sequence[str]) -> list[tuple[str, str, str]]:
    """What may befall an instance: kind, side and message.

    Data on their way between kernel and driver are nobody's to check, so none are damaged there; a request is not done
    twice unless it is a read, since nothing promises the order of two.  A read into memory that its client has handed
    over for good is none either: the second one would overwrite what the client has put there since.  Of a hint nothing
    is believed.
    """
    found = [("crash", "", "")] if target.restarts else []
    found += [("hang", "", ""), ("leak", "", ""), ("flood", "commands", ""), ("flood", "completions", "")]
    if target.requests:
        found += [("hang", "requests", "")] + ([("crash", "requests", "")] if target.restarts else [])
        found += [
            (kind, "requests", "read" if kind == "duplicate" else "")
            for kind in _FOR_REQUESTS
            if kind != "duplicate" or not target.lent
        ]
        found += [(kind, "completions", "") for kind in _FOR_COMPLETIONS]
    if target.hints:
        found += [(kind, "commands", "hint") for kind in _FOR_HINTS]
    return [choice for choice in found if choice[0] in kinds]


class _Draw:
    """Draws with the shapes that faults need."""

    def __init__(self, stream: np.random.Generator, horizon_ns: int) -> None:
        self._stream = stream
        self.horizon_ns = horizon_ns

    def below(self, count: int) -> int:
        return int(self._stream.integers(count))

    def weighted(self, choices: Sequence[tuple[str, str, str]]) -> tuple[str, str, str]:
        """One of these, deaths more often than others: most of what can be forgotten is forgotten then."""
        weights = [_WEIGHTS.get(kind, 1) for kind, _, _ in choices]
        drawn = self.below(sum(weights))
        for choice, weight in zip(choices, weights, strict=True):
            drawn -= weight
            if drawn < 0:
                return choice
        return choices[-1]

    def likely(self, ppm: int) -> bool:
        return self.below(PPM) < ppm

    def magnitude(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, every order of magnitude as likely."""
        bits = max(1, (max(high, low + 1) // max(low, 1)).bit_length())
        top = low << self.below(bits)
        return min(max(high, low), top + self.below(top + 1))


def _fault(draw: _Draw, target: Target, kind: str, where: str, message: str) -> Fault:
    horizon_ns = draw.horizon_ns
    fields: dict[str, Any] = {"kind": kind, "module": target.name}
    at_ns = draw.below(1 + 3 * horizon_ns // 4)
    fields["at_ns"] = at_ns
    if draw.likely(80_000):
        fields["when"] = _TRIGGERS[draw.below(len(_TRIGGERS))]
        fields["at_ns"] = draw.below(1 + horizon_ns // 8)
    if kind == "flood":
        fields |= {"where": where, "entries": draw.magnitude(1, 512)}
    elif where:
        fields["where"] = where
    if message:
        fields["message"] = message
    if kind == "leak":
        fields["size_bytes"] = draw.magnitude(4096, 1 << 20)
    if kind == "hang":
        # Now and then until somebody finds out.
        endless = draw.likely(300_000) and target.heartbeat_ns is not None
        most_ns = max(horizon_ns // 4, 2 * target.timeout_ns if draw.likely(500_000) else 2000)
        fields["duration_ns"] = 0 if endless else draw.magnitude(1000, most_ns)
    if kind in ("delay", "slow", "reorder"):
        # A request that comes after its deadline would be done after what was asked for later.
        late_ns = max(horizon_ns, 2 * target.timeout_ns)
        most_ns = min(horizon_ns, target.timeout_ns) // 8 if where == "requests" else late_ns
        fields["delay_ns"] = draw.magnitude(100, max(most_ns, 200))
    if kind == "slow":
        fields["factor"] = 2 + draw.below(8 if where == "requests" else 30)
        fields["delay_ns"] //= fields["factor"]
    if kind == "stale" and where == "completions":
        fields["part"] = "frame"
    whole = kind in ("crash", "hang", "leak", "flood")
    if whole and (not where or kind == "flood"):
        _repeat(draw, fields, kind)
    else:
        _strike_messages(draw, fields, kind)
    return Fault(**fields)


def _repeat(draw: _Draw, fields: dict[str, Any], kind: str) -> None:
    count = 1 + draw.below(_DEATHS_MAX if kind in ("crash", "hang") else 20)
    if count > 1:
        every_ns = draw.magnitude(1000, max(draw.horizon_ns // count, 2000))
        fields |= {"count": count, "every_ns": every_ns}


def _strike_messages(draw: _Draw, fields: dict[str, Any], kind: str) -> None:
    fields["until_ns"] = fields["at_ns"] + draw.magnitude(max(1, draw.horizon_ns // 8), 2 * draw.horizon_ns)
    deadly = kind in ("crash", "hang")
    if draw.likely(500_000):
        fields["after"] = draw.magnitude(1, 128)
        fields["count"] = 1 + draw.below(_DEATHS_MAX if deadly else 16)
    else:
        fields["probability_ppm"] = draw.magnitude(10_000, 400_000)
        fields["count"] = 1 + draw.below(_DEATHS_MAX if deadly else 64)
