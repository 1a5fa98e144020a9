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


def trio_runnable() -> Sized:
    """Trio's own queue of runnable tasks, to look whether it is empty (its public figures cost microseconds)."""
    context: Any = getattr(getattr(getattr(trio, "_core", None), "_run", None), "GLOBAL_RUN_CONTEXT", None)
    queue: Sized = getattr(getattr(context, "runner", None), "runq", ())
    return queue
