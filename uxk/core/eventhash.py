"""The event hash: one digest over everything that crossed the boundary and everything the kernel decided.

Equal seeds give equal hashes.  Only virtual state goes in: no CPU time, no addresses.  The
events on their way into the digest double as a flight recorder: the last few hundred can be looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec

HashedEvent: TypeAlias = tuple[int, str, int, bytes]
"""(now_ns, kind, instance, data)."""
Sink: TypeAlias = Callable[[int, str, int, bytes], None]
"""Receives every event, for recording."""

_BLOCK_EVENTS: Final = 256
LONG_BYTES: Final = 4096
"""Longer data stand in the record as their digest and their beginning, which bounds its memory to 2 MiB."""
_DIGEST_BYTES: Final = 16
_encode: Final = msgspec.msgpack.Encoder().encode


class EventHash:
    """Running SHA-256 over events, and an optional sink that sees each.

    Events are hashed a block at a time, as MessagePack, which keeps two histories from colliding by concatenation.
    """

    __slots__ = ("_before", "_events", "_hash", "_hashed", "sink")

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._events: list[HashedEvent] = []
        self._before: list[HashedEvent] = []
        self._hashed = 0
        self.sink: Sink | None = None

    def note(self, now_ns: int, kind: str, instance: int, data: bytes) -> None:
        """Adds one event."""
        if self.sink is not None:
            self.sink(now_ns, kind, instance, data)
        events = self._events
        events.append((now_ns, kind, instance, data if len(data) <= LONG_BYTES else _shortened(data)))
        if len(events) >= _BLOCK_EVENTS:
            self._hash.update(_encode(events))
            self._before, self._events = events, []
            self._hashed += len(events)

    @property
    def count(self) -> int:
        """Events noted so far."""
        return self._hashed + len(self._events)

    def last(self, instance: int, most: int) -> list[HashedEvent]:
        """The last events of an instance, oldest first, as far as they are still at hand.

        Of long data this is the beginning, :data:`LONG_BYTES` of it.
        """
        found = [event for event in (*self._before, *self._events) if event[2] == instance]
        return [(*event[:3], event[3][32:]) if len(event[3]) > LONG_BYTES else event for event in found[-most:]]

    def hexdigest(self) -> str:
        """Digest of everything noted so far; looking changes nothing."""
        ahead = self._hash.copy()
        ahead.update(_encode(self._events))
        return ahead.digest()[:_DIGEST_BYTES].hex()


def _shortened(data: bytes) -> bytes:
    return hashlib.sha256(data).digest() + data[:LONG_BYTES]
