"""The schedulers that disks may have, by name; chosen by writing the name to ``queue/scheduler``."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, TypeAlias

from uxk.core.suggest import did_you_mean
from uxk.errors import UsageError
from uxk.subsystems.blk.deadline import MqDeadline
from uxk.subsystems.blk.elevator import Scheduler, Shape, SoftwareQueues

Factory: TypeAlias = Callable[[Shape], Scheduler]
SCHEDULERS: Final[dict[str, Factory]] = {}


def register_scheduler(name: str, factory: Factory) -> None:
    """Makes a scheduler known to all disks.  UsageError (EEXIST) for a name that is taken."""
    if name in SCHEDULERS:
        raise UsageError(f"scheduler {name!r} is registered already", errno=errno.EEXIST)
    SCHEDULERS[name] = factory


def make_scheduler(name: str, shape: Shape) -> Scheduler:
    """A scheduler by name.  UsageError (EINVAL), with what is known, for an unknown one."""
    factory = SCHEDULERS.get(name)
    if factory is None:
        raise UsageError(
            f"scheduler {name[:64]!r}: unknown{did_you_mean(name, SCHEDULERS)}; known: {', '.join(SCHEDULERS)}"
        )
    return factory(shape)


register_scheduler("none", SoftwareQueues)
register_scheduler("mq-deadline", MqDeadline)
