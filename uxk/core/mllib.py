"""States of kernel-ml-lib's smaller objects, as tables: subsystems and request configurations.

The reference names the states and checks nothing.  Models have their table in :mod:`uxk.core.mlmodel`, datasets in
:mod:`uxk.core.dataset`.  All of them are proposals; what a table has not is refused with EINVAL.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from uxk.errors import UsageError
from uxk.uapi.ml import RequestConfigState, SubsystemState

S = TypeVar("S", SubsystemState, RequestConfigState)
_S, _R = SubsystemState, RequestConfigState

SUBSYSTEM: Final[Mapping[SubsystemState, Mapping[str, SubsystemState]]] = MappingProxyType({
    _S.UNKNOWN: {"create": _S.CREATED},
    _S.CREATED: {"init": _S.INITIALIZED, "shut_down": _S.SHUTTING_DOWN},
    _S.INITIALIZED: {"start": _S.STARTED, "shut_down": _S.SHUTTING_DOWN},
    _S.STARTED: {"run": _S.RUNNING, "shut_down": _S.SHUTTING_DOWN},
    _S.RUNNING: {"shut_down": _S.SHUTTING_DOWN},
    _S.SHUTTING_DOWN: {"stop": _S.STOPPED, "destroy": _S.UNKNOWN},
    _S.STOPPED: {"init": _S.INITIALIZED, "start": _S.STARTED, "shut_down": _S.SHUTTING_DOWN},
})  # fmt: skip
"""A subsystem follows its model: it shuts down on the way to STOPPED, and once more before it is gone."""

REQUEST_CONFIG: Final[Mapping[RequestConfigState, Mapping[str, RequestConfigState]]] = MappingProxyType({
    _R.UNKNOWN: {"allocate": _R.ALLOCATED},
    _R.ALLOCATED: {"init": _R.INITIALIZED, "free": _R.UNKNOWN},
    _R.INITIALIZED: {"destroy": _R.ALLOCATED},
})  # fmt: skip
"""The calls of ``struct ml_lib_request_config_operations``; an initialised one is destroyed before it is freed."""


class Lifecycle(Generic[S]):
    """The state of one object, and what moves it."""

    __slots__ = ("_table", "name", "state")

    def __init__(self, name: str, table: Mapping[S, Mapping[str, S]], state: S) -> None:
        self.name = name
        self.state: S = state
        self._table: Mapping[S, Mapping[str, S]] = table

    def step(self, call: str) -> S:
        """The state after ``call``.  :class:`UsageError` (EINVAL) for what the table has not; nothing moves then."""
        after: S | None = self._table[self.state].get(call)
        if after is None:
            legal = ", ".join(self._table[self.state]) or "nothing"
            raise UsageError(f"{self.name}: {call} in state {self.state.name}; legal here: {legal}")
        self.state = after
        return after


def way(before: SubsystemState, after: SubsystemState) -> tuple[str, ...]:
    """The shortest legal way of a subsystem from one state to another: every one can be reached from every other."""
    ways: dict[SubsystemState, tuple[str, ...]] = {before: ()}
    queue = [before]
    for state in queue:
        for call, reached in SUBSYSTEM[state].items():
            if reached not in ways:
                ways[reached] = (*ways[state], call)
                queue.append(reached)
    return ways[after]
