"""Pins Trio's own scheduling order: three private names, in this one place.

uxk's results must not depend on the order in which Trio runs tasks; this makes sure that tasks of user programs
do not bring in chance either.  They are private, so a Trio that has them no more is reported, not fatal.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import trio


def pin_trio(seed: int) -> bool:
    """Makes Trio's scheduling a function of ``seed``; False if this Trio cannot be pinned."""
    run: Any = getattr(getattr(trio, "_core", None), "_run", None)
    if not hasattr(run, "_ALLOW_DETERMINISTIC_SCHEDULING") or not hasattr(run, "_r"):
        return False
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r.seed(seed)
    return True


def set_aside(prefix: str) -> None:
    """Keeps tasks whose names begin so out of the order of all others: the world wakes them, at times of its own.

    Trio shuffles the tasks of a step; one more among them would have the others shuffled differently.
    """
    run: Any = getattr(getattr(trio, "_core", None), "_run", None)
    chance: Any = getattr(run, "_r", None)
    if chance is None or "shuffle" in vars(chance):
        return

    def shuffle(batch: list[Any]) -> None:
        aside = [task for task in batch if task.name.startswith(prefix)]
        rest = [task for task in batch if not task.name.startswith(prefix)] if aside else batch
        type(chance).shuffle(chance, rest)
        if aside:
            batch[:] = aside + rest

    chance.shuffle = shuffle


def trio_runnable() -> Sized:
    """Trio's own queue of runnable tasks, to look whether it is empty (its public figures cost microseconds)."""
    context: Any = getattr(getattr(getattr(trio, "_core", None), "_run", None), "GLOBAL_RUN_CONTEXT", None)
    queue: Sized = getattr(getattr(context, "runner", None), "runq", ())
    return queue
