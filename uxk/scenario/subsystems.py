"""Subsystems of the emulated kernel that a scenario may name.

Each brings its own parameters and puts its figures among the results.  This table is the only place that knows
them by name; importing a subsystem is left to its ``attach``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

from uxk.bridges.logs.replay import LogReplayParams
from uxk.core.params import parse_params
from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError, UsageError
from uxk.kernel.kernel import Kernel
from uxk.scenario.lfs.params import LfsScenario
from uxk.scenario.mm.params import MmScenario
from uxk.uapi.manifest import Params


class Running(Protocol):
    """A subsystem at work on one kernel."""

    def results(self) -> Mapping[str, Any]:
        """Its figures, for ``subsystems.NAME`` among the results."""
        ...


@runtime_checkable
class Halts(Protocol):
    """A subsystem with threads that would go on for ever."""

    def halt(self) -> None:
        """Stops them, and whatever they wait for."""
        ...


Attach: TypeAlias = Callable[[Kernel, Any], Running]


class Subsystem(NamedTuple):
    """What can be attached, and the parameters that it takes."""

    params: type[Params]
    attach: Attach


SUBSYSTEMS: Final[dict[str, Subsystem]] = {}


def register_subsystem(name: str, params: type[Params], attach: Attach) -> None:
    """Makes ``[subsystems.NAME]`` known to scenarios.  UsageError (EEXIST) if it is known already."""
    if name in SUBSYSTEMS:
        raise UsageError(f"subsystem {name!r} is registered already", errno=errno.EEXIST)
    SUBSYSTEMS[name] = Subsystem(params, attach)


def attach_all(kernel: Kernel, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, Running]:
    """Attaches what a scenario asks for.  Raises :class:`ConfigError` for a name that nobody registered."""
    check_names(wanted)
    return {
        name: SUBSYSTEMS[name].attach(kernel, parse_params(name, SUBSYSTEMS[name].params, values))
        for name, values in wanted.items()
    }


def halt_all(running: Mapping[str, Running]) -> None:
    """The end of a run, when all figures are taken: subsystems with threads of their own stop them."""
    for each in running.values():
        if isinstance(each, Halts):
            each.halt()


def check_names(wanted: Mapping[str, object]) -> None:
    """Raises :class:`ConfigError`, with what is known, for an unknown subsystem."""
    for name in wanted:
        if name not in SUBSYSTEMS:
            known = ", ".join(sorted(SUBSYSTEMS)) or "none in this version"
            raise ConfigError(f"subsystems: unknown {name!r}{did_you_mean(name, SUBSYSTEMS)}; known: {known}")


def _lfs(kernel: Kernel, params: LfsScenario) -> Running:
    from uxk.scenario.lfs.attach import attach

    return attach(kernel, params)


def _mm(kernel: Kernel, params: MmScenario) -> Running:
    from uxk.scenario.mm.lab import attach

    return attach(kernel, params)


def _log(kernel: Kernel, params: LogReplayParams) -> Running:
    from uxk.bridges.logs.replay import attach

    return attach(kernel, params)


register_subsystem("lfs", LfsScenario, _lfs)
register_subsystem("log", LogReplayParams, _log)
register_subsystem("mm", MmScenario, _mm)
