"""The transport that uxk did not take: byte rings in shared memory, with a doorbell that is rung if the peer sleeps.

For measurement only.  It trusts its peer, and relies on x86: stores become visible in their order, and what Python
does around a lock is fence enough between "I sleep" and "is there something?".
"""

from __future__ import annotations

import mmap
import os
import select
import threading
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType

SPIN_NS = 50_000
RING_BYTES = 1 << 20
_HEAD_BYTES = 64
_WRITTEN, _READ, _SLEEPS = 0, 1, 2
"""Words of a ring's head: bytes ever written, bytes ever read, whether the reader sleeps."""
_WORD_BYTES = 8
_BACKSTOP_MS = 1


class RingEnd:
    """One end of two rings that lie, with their doorbells, in ``folder``; the first end makes them."""

    def __init__(self, folder: str, *, first: bool) -> None:
        size_bytes = 2 * (_HEAD_BYTES + RING_BYTES)
        path = Path(folder) / "rings"
        bells = [str(Path(folder) / name) for name in ("there", "back")]
        if first:
            path.write_bytes(bytes(size_bytes))
            for bell in bells:
                os.mkfifo(bell)
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), size_bytes)
        self._bells = [os.open(bell, os.O_RDWR | os.O_NONBLOCK) for bell in bells]
        whole = memoryview(self._memory)
        rings = [whole[at : at + _HEAD_BYTES + RING_BYTES] for at in (0, _HEAD_BYTES + RING_BYTES)]
        heads, data = [ring[:_HEAD_BYTES].cast("Q") for ring in rings], [ring[_HEAD_BYTES:] for ring in rings]
        out = 0 if first else 1
        self._out_head, self._out, self._ring_bell = heads[out], data[out], self._bells[out]
        self._in_head, self._in, self._own_bell = heads[1 - out], data[1 - out], self._bells[1 - out]
        self._fence = threading.Lock()
        self._spins = len(os.sched_getaffinity(0)) > 1

    def __enter__(self) -> RingEnd:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for bell in self._bells:
            os.close(bell)

    def send(self, data: bytes) -> None:
        """A message; spins while there is no room."""
        head, ring, size = self._out_head, self._out, len(data) + _WORD_BYTES
        written = head[_WRITTEN]
        while written + size - head[_READ] > RING_BYTES:
            os.sched_yield()
        _put(ring, written, len(data).to_bytes(_WORD_BYTES, "little") + data)
        head[_WRITTEN] = written + size
        with self._fence:
            pass
        if head[_SLEEPS]:
            head[_SLEEPS] = 0
            os.write(self._ring_bell, b"!")

    def receive(self) -> bytes:
        """The next message."""
        head, ring = self._in_head, self._in
        read = head[_READ]
        if head[_WRITTEN] == read:
            self._wait(read)
        size = int.from_bytes(_get(ring, read, _WORD_BYTES), "little")
        data = _get(ring, read + _WORD_BYTES, size)
        head[_READ] = read + _WORD_BYTES + size
        return data

    def _wait(self, read: int) -> None:
        head = self._in_head
        until_ns = perf_counter_ns() + SPIN_NS
        while self._spins and perf_counter_ns() < until_ns:
            if head[_WRITTEN] != read:
                return
        poll = select.poll()
        poll.register(self._own_bell, select.POLLIN)
        while True:
            head[_SLEEPS] = 1
            with self._fence:
                pass
            if head[_WRITTEN] != read:
                head[_SLEEPS] = 0
                return
            if poll.poll(_BACKSTOP_MS):
                os.read(self._own_bell, 64)


def _put(ring: memoryview, at: int, data: bytes) -> None:
    at %= RING_BYTES
    first = min(len(data), RING_BYTES - at)
    ring[at : at + first] = data[:first]
    ring[: len(data) - first] = data[first:]


def _get(ring: memoryview, at: int, size: int) -> bytes:
    at %= RING_BYTES
    first = min(size, RING_BYTES - at)
    return bytes(ring[at : at + first]) + bytes(ring[: size - first])
