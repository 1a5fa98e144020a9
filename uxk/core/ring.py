"""A bounded ring of frames with free-running head and tail counters.

Capacity counts *entries*, as in NVMe and io_uring; a frame of n entries takes n slots, is stored in the slot
of its first entry and leaves whole.  Counters are 32 bits wide and wrap; their difference is the fill
(NVMe base specification 3.3.1.4 uses indices and gives up one slot; io_uring's free-running counters do not).

The consumer sets ``need_wakeup`` before it sleeps; a producer that finds it set rings the doorbell
(io_uring's IORING_SQ_NEED_WAKEUP).
"""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

from uxk import limits
from uxk.errors import RingFull, UsageError

_WRAP: Final = limits.U32_MAX


class RingStatistics(NamedTuple):
    """Counters since creation, and the present fill."""

    depth: int
    used: int
    used_max: int
    frames: int
    entries: int
    bytes: int
    doorbells: int
    full: int


class Ring:
    """One direction of a queue pair.  ``depth`` is a power of two."""

    __slots__ = (
        "_frames", "_head", "_mask", "_tail", "bytes", "depth", "doorbells", "entries", "frames", "full",
        "need_wakeup", "used_max",
    )  # fmt: skip

    def __init__(self, depth: int, *, start: int = 0) -> None:
        if not limits.QUEUE_DEPTH_MIN <= depth <= limits.QUEUE_DEPTH_MAX or depth & (depth - 1):
            raise UsageError(
                f"ring depth {depth}: expected a power of two from {limits.QUEUE_DEPTH_MIN} to {limits.QUEUE_DEPTH_MAX}"
            )
        self.depth = depth
        self._mask = depth - 1
        self._head = self._tail = start & _WRAP
        self._frames: list[tuple[bytes, int] | None] | None = None
        self.need_wakeup = True
        self.used_max = self.frames = self.entries = self.bytes = self.doorbells = self.full = 0

    @property
    def used(self) -> int:
        """Entries in the ring."""
        return (self._tail - self._head) & _WRAP

    @property
    def free(self) -> int:
        """Entries that still fit."""
        return self.depth - self.used

    def push(self, frame: bytes, count: int) -> bool:
        """Adds a frame of ``count`` entries; True if the consumer sleeps and must be woken.

        Raises :class:`RingFull` (EAGAIN) and changes nothing but the ``full`` counter if there is no room.
        """
        tail = self._tail
        used = ((tail - self._head) & _WRAP) + count
        if used > self.depth or count <= 0:
            self.full += 1
            raise RingFull(f"ring of {self.depth} entries: {self.used} used, no room for the frame")
        frames = self._frames
        if frames is None:
            frames = self._frames = list(itertools.repeat(None, self.depth))
        frames[tail & self._mask] = (frame, count)
        self._tail = (tail + count) & _WRAP
        self.frames += 1
        self.entries += count
        self.bytes += len(frame)
        if used > self.used_max:
            self.used_max = used
        if self.need_wakeup:
            self.need_wakeup = False
            self.doorbells += 1
            return True
        return False

    def pop(self) -> tuple[bytes, int] | None:
        """The oldest frame and its number of entries, or None."""
        head = self._head
        if head == self._tail:
            return None
        frames = self._frames
        assert frames is not None
        slot = head & self._mask
        item = frames[slot]
        assert item is not None
        frames[slot] = None
        self._head = (head + item[1]) & _WRAP
        return item

    def hand_over(self, frame: bytes, count: int) -> None:
        """As :meth:`push` and :meth:`pop` together, for a consumer that stands ready at an empty ring.

        Wraps, counts and refuses alike; the slot is not touched, and no bell is rung: who stands ready is awake.
        """
        if self._head != self._tail or not 0 < count <= self.depth:
            self.full += 1
            raise RingFull(f"ring of {self.depth} entries: {self.used} used, the frame cannot be handed over")
        self._head = self._tail = (self._tail + count) & _WRAP
        self.frames += 1
        self.entries += count
        self.bytes += len(frame)
        if count > self.used_max:
            self.used_max = count

    def statistics(self) -> RingStatistics:
        """A consistent copy of the counters."""
        return RingStatistics(
            self.depth, self.used, self.used_max, self.frames, self.entries, self.bytes,
            self.doorbells, self.full,
        )  # fmt: skip
