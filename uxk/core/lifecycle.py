"""The life of a module's instance, as a table.

Linux knows four states (``enum module_state``, include/linux/module.h): UNFORMED while it is being
set up and nobody may see it, COMING while its own init runs, LIVE, and GOING while its exit runs.  A
supervised instance needs two more, for which Linux has no word: RESTARTING, which is dead and waits
for its back-off, and GONE, of which nothing is left.  The numbers of the first four are Linux's.

Two rules make the table easy to trust:

* *Code runs only in COMING, LIVE and GOING.*  The way into COMING is FORM or RETRY, so grants and
  budgets come first, always.
* *GONE is reached only from GOING, by RECLAIMED.*  However a life ends (refused grant, failed
  probe, rmmod, restarts given up, exit), it passes through the one place where everything is taken
  back.

What happened is an event; why is decided elsewhere: :mod:`uxk.core.restart` says whether a death is
a DIE (will be started again) or a STOP.  A death in GOING changes nothing: it is on its way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Final

from uxk.errors import KernelBug


class ModuleState(IntEnum):
    """State of an instance; the first four have Linux's names and numbers."""

    LIVE = 0
    """Ready: requests flow."""
    COMING = 1
    """Its setup runs; readiness is awaited."""
    GOING = 2
    """Being stopped and reclaimed."""
    UNFORMED = 3
    """Being put together: dependencies, grants, budget.  None of its code has run."""
    RESTARTING = 4
    """Dead, reclaimed, waiting for its back-off; its device stays."""
    GONE = 5
    """Nothing is left of it."""

    @property
    def initstate(self) -> str:
        """Text of ``/sys/module/NAME/initstate``: ``"live"``, ``"coming"``, ..."""
        return self.name.lower()


class Event(Enum):
    """What moves an instance from state to state."""

    FORM = "form"
    """Everything it asked for is granted; its code may run."""
    READY = "ready"
    """It signalled readiness."""
    DIE = "die"
    """It died, was reclaimed, and its policy starts it again."""
    RETRY = "retry"
    """The back-off is over; grants are made anew."""
    STOP = "stop"
    """Its end was decided: rmmod, a failed probe, exit, or restarts given up."""
    RECLAIMED = "reclaimed"
    """All it held was taken back."""


_S = ModuleState

TRANSITIONS: Final[Mapping[ModuleState, Mapping[Event, ModuleState]]] = MappingProxyType(
    {
        _S.UNFORMED: {Event.FORM: _S.COMING, Event.STOP: _S.GOING},
        _S.COMING: {Event.READY: _S.LIVE, Event.DIE: _S.RESTARTING, Event.STOP: _S.GOING},
        _S.LIVE: {Event.DIE: _S.RESTARTING, Event.STOP: _S.GOING},
        _S.RESTARTING: {Event.RETRY: _S.COMING, Event.STOP: _S.GOING},
        _S.GOING: {Event.DIE: _S.GOING, Event.RECLAIMED: _S.GONE},
        _S.GONE: {},
    }
)
"""Every legal move; what is not here is a bug of the kernel."""


def allowed(state: ModuleState, event: Event) -> bool:
    """Whether ``event`` may happen in ``state``: ask before passing on what an outsider said."""
    return event in TRANSITIONS[state]


def advance(state: ModuleState, event: Event) -> ModuleState:
    """The state after ``event``.  Raises :class:`KernelBug` if the table has no such move."""
    after = TRANSITIONS[state].get(event)
    if after is None:
        legal = ", ".join(e.name for e in TRANSITIONS[state]) or "none"
        raise KernelBug(f"lifecycle: event {event.name} in state {state.name}; legal events here: {legal}")
    return after
