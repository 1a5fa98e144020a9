"""The ring of kernel-ml-lib's events: bounded, any number of readers, each with its own count of what it missed.

The reference's ring buffer loses the newest event without a word when it is full.  Here the oldest makes room, no
reader holds another one up, and who was too slow is told how much is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from uxk.core.waitlist import WaitList
from uxk.limits import U32_MAX
from uxk.uapi.ml import ModelEvent

CAPACITY: Final = 8192
"""Events held: as many as fit into the 256 KiB of the reference's monitor program."""


class MlEvent(NamedTuple):
    """``struct ml_lib_bpf_event``; values that are states, modes or sizes, by type.  ``error`` is 0 or -errno."""

    type: ModelEvent
    model_id: int
    old_value: int
    new_value: int
    error: int
    timestamp_ns: int


class MlEventRing:
    """All events of a kernel's models."""

    __slots__ = ("_followers", "_on_bug", "_slots", "capacity", "next_seq")

    def __init__(
        self, capacity: int = CAPACITY, on_bug: Callable[[Exception], None] = lambda exc: None
    ) -> None:  # fmt: skip
        self.capacity = capacity
        self.next_seq = 0
        """Number of the next event, from 0."""
        self._slots: list[MlEvent] = []
        self._followers = WaitList()
        self._on_bug = on_bug

    @property
    def first_seq(self) -> int:
        """Number of the oldest event held; all before it are gone."""
        return self.next_seq - len(self._slots)

    def emit(
        self, now_ns: int, type: ModelEvent, model_id: int, old: int = 0, new: int = 0, error: int = 0
    ) -> None:  # fmt: skip
        """Adds an event and wakes who waits for one.  Values too large for the structure are its largest."""
        event = MlEvent(type, model_id, min(old, U32_MAX), min(new, U32_MAX), error, now_ns)
        if len(self._slots) < self.capacity:
            self._slots.append(event)
        else:
            self._slots[self.next_seq % self.capacity] = event
        self.next_seq += 1
        if self._followers:
            self._followers.wake(self._on_bug)

    def reader(self, *, oldest: bool = True) -> MlEventReader:
        """A reader from the oldest event held, or of what comes from now on."""
        return MlEventReader(self, self.first_seq if oldest else self.next_seq)

    def get(self, seq: int) -> MlEvent:
        """The event of that number, which is held."""
        return self._slots[seq % self.capacity]

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` at every event; returns what cancels it.  ``TreeError`` (ENOSPC) if too many wait."""
        return self._followers.add(callback)


class MlEventReader:
    """A position in the ring; holds nothing, so it needs no closing."""

    __slots__ = ("_ring", "dropped", "next_seq")

    def __init__(self, ring: MlEventRing, next_seq: int) -> None:
        self._ring = ring
        self.next_seq = next_seq
        self.dropped = 0
        """Events overwritten before they were read."""

    def __iter__(self) -> Iterator[tuple[int, MlEvent]]:
        """Everything that can be read now, with its number."""
        while (found := self.read()) is not None:
            yield found

    def read(self) -> tuple[int, MlEvent] | None:
        """The next event and its number, or None if there is none yet; after an overrun the oldest one held."""
        ring = self._ring
        if self.next_seq < ring.first_seq:
            self.dropped += ring.first_seq - self.next_seq
            self.next_seq = ring.first_seq
        if self.next_seq >= ring.next_seq:
            return None
        self.next_seq += 1
        return self.next_seq - 1, ring.get(self.next_seq - 1)
