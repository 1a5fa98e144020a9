"""Schedulers: who waits in a disk's queue, and who goes next (Linux: block/elevator.c, block/blk-mq-sched.c).

A scheduler is a plain object without time or I/O of its own.  Which ones there are is in ``schedulers.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import ClassVar, Final, NamedTuple, Protocol

from uxk.core.kobject import AttributeTable
from uxk.subsystems.blk.limits import QueueLimits
from uxk.subsystems.blk.merge import BACK, side_of
from uxk.subsystems.blk.request import Bio, Rq

LOOK_BACK: Final = 8
"""How many of the newest requests of a software queue a new one is held against (Linux: blk_bio_list_merge)."""


class Shape(NamedTuple):
    """What a scheduler may need to know of the disk."""

    limits: QueueLimits
    cpus: int
    hctxs: int
    """Hardware queues; CPU n uses number ``n * hctxs // cpus`` (Linux: blk_mq_map_queues)."""

    def hctx_of(self, cpu: int) -> int:
        """The hardware queue that a CPU's requests go to."""
        return cpu * self.hctxs // self.cpus


class Scheduler(Protocol):
    """Keeps requests until the driver can take them."""

    name: ClassVar[str]
    attributes: ClassVar[AttributeTable | None]
    """What ``queue/iosched`` shows; the owner is the scheduler."""

    def merge(self, bio: Bio, at: int, count: int) -> tuple[Rq, bool] | None:
        """A waiting request that these bytes can join, and on which side."""
        ...

    def joined(self, rq: Rq, before: tuple[int, int], side: bool) -> Rq | None:
        """``rq`` has grown from ``before``, (offset, length).  Returns a request that it has absorbed by that."""
        ...

    def insert(self, rq: Rq, now_ns: int) -> None:
        """Takes a request."""

    def dispatch(self, now_ns: int) -> Rq | None:
        """Gives the next one out; None if there is none."""
        ...

    def completed(self, rq: Rq) -> None:
        """One that it gave out is done."""

    def __len__(self) -> int:
        """How many wait."""
        ...

    def __iter__(self) -> Iterator[Rq]:
        """Those who wait, in any order."""
        ...


class SoftwareQueues:
    """No scheduler: one queue for each CPU, served in turn (Linux: block/blk-mq.c, blk_mq_do_dispatch_ctx)."""

    name: ClassVar[str] = "none"
    attributes: ClassVar[AttributeTable | None] = None

    def __init__(self, shape: Shape) -> None:
        self._limits = shape.limits
        self._queues: list[deque[Rq]] = [deque() for _ in range(shape.cpus)]
        self._turn = 0
        self._count = 0

    def merge(self, bio: Bio, at: int, count: int) -> tuple[Rq, bool] | None:
        """Looks at the newest requests of the client's own CPU."""
        queue = self._queues[bio.port.cpu]
        for index in range(len(queue) - 1, max(-1, len(queue) - 1 - LOOK_BACK), -1):
            rq = queue[index]
            side = side_of(rq, bio, at, count, self._limits)
            if side is not None:
                return rq, side
        return None

    def joined(self, rq: Rq, before: tuple[int, int], side: bool = BACK) -> Rq | None:
        """Nothing to keep in order."""
        return None

    def insert(self, rq: Rq, now_ns: int) -> None:
        """At the end of its CPU's queue."""
        self._queues[rq.cpu].append(rq)
        self._count += 1

    def dispatch(self, now_ns: int) -> Rq | None:
        """The oldest of the next CPU that has any."""
        if not self._count:
            return None
        queues, turn = self._queues, self._turn
        while not queues[turn]:
            turn = (turn + 1) % len(queues)
        self._turn = (turn + 1) % len(queues)
        self._count -= 1
        return queues[turn].popleft()

    def completed(self, rq: Rq) -> None:
        """Of no interest."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Rq]:
        return chain.from_iterable(self._queues)
