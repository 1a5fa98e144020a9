"""The only place where nanoseconds meet Trio's float seconds and the host's clocks."""

from __future__ import annotations

import time
from typing import Final

_NS_PER_S: Final = 1_000_000_000

cpu_ns = time.perf_counter_ns
"""Host time around a turn, for accounts: measured, never visible to actors, never hashed.

A turn neither sleeps nor waits, so this is its CPU time but for preemption; the thread's own CPU clock takes a
system call, which costs more than many a turn.
"""

monotonic_ns = time.monotonic_ns
"""Host time for the real clock."""


def to_seconds(duration_ns: int) -> float:
    """Nanoseconds as the float seconds that Trio takes."""
    return duration_ns / _NS_PER_S
