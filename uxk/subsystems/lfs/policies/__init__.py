"""Human-made policies, exact and in integers, for both engines and for agents' miniatures.

A policy is a placement with a selection, named ``placement/selection``; :func:`lookup` makes one by name::

    from uxk.subsystems.lfs import policies
    from uxk.subsystems.lfs.reference import Geometry, Volume

    volume = Volume(Geometry(pages=65_536, segment_blocks=128), policies.lookup("sepbit/cb-age"))
    volume.run(pages)
    print(volume.wa_ppm)

An own one is a class of a few lines: see :mod:`uxk.subsystems.lfs.policies.base`.  Presets stand for what kernels do:

``f2fs``
    Hot, warm and cold data logs, cost-benefit in the background, greedy on demand.  The counting engine has no idle
    time, so there all cleaning is on demand: greedy.
``f2fs-atgc``
    The same logs and the kernel's age-threshold selection.
``nilfs2``
    One log, oldest segment first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError
from uxk.subsystems.lfs.policies.base import Placement, Policy, Selection
from uxk.subsystems.lfs.policies.classic import NoSep, SepGC
from uxk.subsystems.lfs.policies.clusters import SFS, Warcip
from uxk.subsystems.lfs.policies.lifetimes import FK, FKG6, SepBIT, Table, next_writes
from uxk.subsystems.lfs.policies.presets import F2fs
from uxk.subsystems.lfs.policies.selections import (
    Atgc,
    CbAge,
    CbSqrt,
    DChoices,
    F2fsCb,
    Greedy,
    Mdc,
    Timestamp,
)
from uxk.subsystems.lfs.policies.temperature import DAC, ETI, FADaC, MiDA, MultiLog

__all__ = [
    "DEFAULT", "HUMANS", "ORACLES", "PLACEMENTS", "PRESETS", "SELECTIONS", "DAC", "ETI", "FK", "FKG6", "SFS", "Atgc",
    "CbAge", "CbSqrt", "DChoices", "F2fs", "F2fsCb", "FADaC", "Greedy", "Mdc", "MiDA", "MultiLog", "NoSep",
    "Placement", "Policy", "Selection", "SepBIT", "SepGC", "Table", "Timestamp", "Warcip", "lookup", "names",
    "next_writes",
]  # fmt: skip

DEFAULT: Final = "sepbit/cb-age"
"""The kernel's own choice."""
PLACEMENTS: Final[dict[str, Callable[[], Placement]]] = {
    part.name: part for part in (NoSep, SepGC, DAC, SFS, MultiLog, ETI, Warcip, FADaC, SepBIT, MiDA)
}
"""Those that need to know nothing beside the writes."""
ORACLES: Final[dict[str, Callable[[Sequence[int]], Placement]]] = {part.name: part for part in (FK, FKG6)}
"""Those that must be told the future."""
SELECTIONS: Final[dict[str, Callable[[], Selection]]] = {
    part.name: part for part in (Greedy, CbAge, CbSqrt, Mdc, DChoices, Timestamp, Atgc)
}
PRESETS: Final[dict[str, Callable[[], Policy]]] = {
    "f2fs": lambda: Policy(F2fs(), Greedy(), F2fsCb(), "f2fs"),
    "f2fs-atgc": lambda: Policy(F2fs(), Atgc(), None, "f2fs-atgc"),
    "nilfs2": lambda: Policy(NoSep(), Timestamp(), None, "nilfs2"),
}
HUMANS: Final = (
    *(f"{p}/{s}" for p in PLACEMENTS for s in ("greedy", "cb-age", "cb-sqrt", "mdc", "d-choices")),
    *PRESETS,
)
"""The published set: what the name ``humans`` stands for."""


def names() -> list[str]:
    """Every name that :func:`lookup` takes, except tables."""
    pairs = [f"{placement}/{selection}" for placement in (*PLACEMENTS, *ORACLES) for selection in SELECTIONS]
    return [*pairs, *PRESETS]


def lookup(
    name: str,
    *,
    future: Sequence[int] | None = None,
    table: Sequence[int] | None = None,
    seed: int = 1,
) -> Policy:
    """A new policy by name, for one volume.

    ``future`` is :func:`next_writes` of all writes, which ``fk`` and ``fkg6`` need; ``table`` the classes by page for
    ``table``, whose default is SepBIT; ``seed`` starts the random numbers of MultiLog and d-choices.  Raises
    :class:`ConfigError` that names what is unknown or missing.
    """
    if name in PRESETS:
        return PRESETS[name]()
    first, slash, second = name.partition("/")
    if not slash:
        known = ", ".join(PRESETS)
        hint = did_you_mean(name, (*PRESETS, *HUMANS))
        raise ConfigError(f"policy {name!r}: expected placement/selection or one of {known}{hint}")
    if second not in SELECTIONS:
        known = ", ".join(SELECTIONS)
        raise ConfigError(f"policy {name!r}: no selection {second!r}{did_you_mean(second, SELECTIONS)}; known: {known}")
    selection = DChoices(seed) if second == DChoices.name else SELECTIONS[second]()
    return Policy(_placement(name, first, future, table, seed), selection)


def _placement(
    name: str, first: str, future: Sequence[int] | None, table: Sequence[int] | None, seed: int
) -> Placement:
    if first == MultiLog.name:
        return MultiLog(seed)
    if first in PLACEMENTS:
        return PLACEMENTS[first]()
    if first in ORACLES:
        if future is None:
            raise ConfigError(f"policy {name!r}: an oracle needs future=next_writes(pages)")
        return ORACLES[first](future)
    if first == Table.name:
        if table is None:
            raise ConfigError(f"policy {name!r}: needs table=, one class per page")
        return Table(table, SepBIT())
    everything = (*PLACEMENTS, *ORACLES, Table.name)
    known = ", ".join(everything)
    raise ConfigError(f"policy {name!r}: no placement {first!r}{did_you_mean(first, everything)}; known: {known}")
