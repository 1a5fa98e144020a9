"""What a scenario says of its own exploration: the table ``[explore]``."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from uxk.faults.model import FaultKind, ModuleName, Ns

PLAN_MAX: Final = 32
"""Most faults of a random plan."""


class Exploration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which faults ``uxk explore`` may draw for the scenario; without the table, all that a module should survive."""

    modules: tuple[ModuleName, ...] = ()
    """Instances that faults may befall; default: all."""
    kinds: tuple[FaultKind, ...] = ()
    """Kinds that may be drawn; default: all but ``device``."""
    faults_max: Annotated[int, Meta(ge=1, le=PLAN_MAX)] = 4
    """Most faults of one plan."""
    settle_ns: Ns = 0
    """How long after the last fault everything must be well again; default: as long as the deadlines, back-offs and
    readiness limits of the modules allow."""
