"""The order in which runnable instances run: as they became runnable, or drawn by lot.

Nothing may depend on that order.  A kernel keeps it fixed, so that runs repeat; to find out who depends on it all the
same, it is drawn from a stream of the run's seed, and such a run repeats as well.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

from uxk.kernel.machine import Machine, Runnable

STREAM: Final = "schedule"


class DrawnQueue(deque[Runnable]):
    """A run queue whose next instance is any of those in it."""

    def __init__(self, stream: np.random.Generator) -> None:
        super().__init__()
        self._stream = stream

    def popleft(self) -> Runnable:
        """Takes any one out; IndexError if there is none."""
        count = len(self)
        if count < 2:
            return super().popleft()
        place = int(self._stream.integers(count))
        self.rotate(-place)
        drawn = super().popleft()
        self.rotate(place)
        return drawn


def draw_order(machine: Machine) -> None:
    """From now on, the order of instances comes from the run's stream ``schedule``."""
    queue = DrawnQueue(machine.streams.stream(STREAM))
    queue.extend(machine.runnable)
    machine.runnable = queue
