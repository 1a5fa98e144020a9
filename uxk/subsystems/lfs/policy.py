"""Names of policies: ``placement/selection``, the bounds of their parameters, and what they are to the engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError, ParamError
from uxk.subsystems.lfs import codes as c

PLACEMENTS: Final = {
    "nosep": c.NOSEP, "sepgc": c.SEPGC, "dac": c.DAC, "sepbit": c.SEPBIT, "fadac": c.FADAC, "mida": c.MIDA,
    "fk": c.FK, "fkg6": c.FKG, "sfs": c.SFS, "multilog": c.MULTILOG, "eti": c.ETI, "warcip": c.WARCIP,
    "table": c.TABLE, "rate": c.RATE, "f2fs": c.F2FS, "stream": c.STREAM,
}  # fmt: skip
SELECTIONS: Final = {
    "greedy": c.GREEDY, "cb-age": c.CB_AGE, "cb-sqrt": c.CB_SQRT, "mdc": c.MDC, "d-choices": c.D_CHOICES,
    "timestamp": c.TIMESTAMP, "atgc": c.ATGC, "learned": c.LEARNED,
    "program": c.PROGRAM,
}  # fmt: skip


class Bounds(NamedTuple):
    """A parameter and the values it may have; one that is left out is 0."""

    name: str
    low: int
    high: int
    is_distance: bool = False
    """Whether it counts pages, and is smaller for a miniature."""


LEARNED: Final = (
    Bounds("half", 0, 64), Bounds("loss", 0, 64), Bounds("user_top", -1024, 1024), Bounds("user_step", 0, 1024),
    Bounds("gc_top", -1024, 1024), Bounds("gc_step", 0, 1024), Bounds("blend", 0, 16), Bounds("pace", 0, 16),
    Bounds("wait", -256, 256), Bounds("regular", 0, 16), Bounds("gain", 0, 256), Bounds("age", 0, 256),
)  # fmt: skip
"""Of ``rate`` and ``learned``, see :mod:`uxk.subsystems.lfs.fast.learned`; within these no word overflows."""
PARAMETERS: Final = {
    "rate": LEARNED,
    "stream": (Bounds("user", 0, 16), Bounds("window", 0, 1 << 32, is_distance=True)),
    "fkg6": (Bounds("first_segments", 0, 1 << 20),),
    "table": (Bounds("basis", 0, c.MIDA),),
}  # fmt: skip
"""Of each placement that has some."""


class Policy(NamedTuple):
    """A placement, a selection, and the parameters of both (at most 12 integers)."""

    placement: str
    selection: str
    args: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """``placement/selection``."""
        return f"{self.placement}/{self.selection}"

    @property
    def needs_future(self) -> bool:
        """Whether it is an oracle, which only a comparison can run."""
        return self.placement in ("fk", "fkg6")

    @property
    def codes(self) -> tuple[int, int, tuple[int, ...]]:
        """What :func:`uxk.subsystems.lfs.fast.volume.set_policy` takes."""
        return PLACEMENTS[self.placement], SELECTIONS[self.selection], self.args

    def scaled(self, ratio: int) -> Policy:
        """The same for a miniature of one page in ``ratio``: distances of two pages at least."""
        bounds = PARAMETERS.get(self.placement, ())
        args = [
            max(value // ratio, min(value, 2)) if number < len(bounds) and bounds[number].is_distance else value
            for number, value in enumerate(self.args)
        ]
        return self._replace(args=tuple(args))


def parse_policy(name: str, args: Sequence[int] = ()) -> Policy:
    """The policy of that name.

    :class:`ConfigError` names what is unknown and what comes close, :class:`ParamError` a parameter out of bounds.
    """
    placement, slash, selection = name.partition("/")
    if not slash:
        raise ConfigError(f"policy {name!r}: expected placement/selection, e.g. sepbit/cb-age")
    if placement not in PLACEMENTS:
        known = ", ".join(PLACEMENTS)
        raise ConfigError(f"policy {name!r}: no placement {placement!r}{did_you_mean(placement, PLACEMENTS)}; {known}")
    if selection not in SELECTIONS:
        known = ", ".join(SELECTIONS)
        raise ConfigError(f"policy {name!r}: no selection {selection!r}{did_you_mean(selection, SELECTIONS)}; {known}")
    _check_args(name, args, PARAMETERS.get(placement, LEARNED if selection == "learned" else ()))
    return Policy(placement, selection, tuple(args))


def _check_args(name: str, args: Sequence[int], bounds: Sequence[Bounds]) -> None:
    """The engines index tables with what they make of these."""
    if len(args) > len(bounds):
        raise ParamError(f"policy {name!r}: {len(args)} parameters, expected at most {len(bounds)}")
    for value, each in zip(args, bounds, strict=False):
        if not each.low <= value <= each.high:
            raise ParamError(f"policy {name!r}: {each.name} = {value}: expected {each.low} to {each.high}")
