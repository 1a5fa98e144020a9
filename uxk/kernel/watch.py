"""Watches host time: an extension that never returns from a callback cannot be stopped in task placement.

It can be named, though: a thread notices a turn that takes too long and writes where it is stuck to standard
error; when the turn ends after all, kmsg says so and the run counts as irreproducible.
"""

from __future__ import annotations

import sys
import threading
import traceback
from typing import Final

from uxk.kernel.machine import Machine
from uxk.kernel.seconds import monotonic_ns, to_seconds

LIMIT_NS: Final = 5_000_000_000
"""Host time that one turn may take before it is reported."""
_POLL_NS: Final = 1_000_000_000


class HostWatch:
    """One per kernel; use as a context manager.

    Looks at the machine's count of turns: one that stands still while an instance is being run has not returned.
    """

    def __init__(self, machine: Machine, limit_ns: int = LIMIT_NS) -> None:
        self._machine = machine
        self._limit_ns = limit_ns
        self._thread_id = 0
        self._stop = threading.Event()

    def __enter__(self) -> HostWatch:
        self._thread_id = threading.get_ident()
        threading.Thread(target=self._watch, name="uxk host watch", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        machine = self._machine
        seen, since_ns = -1, 0
        while not self._stop.wait(to_seconds(min(_POLL_NS, self._limit_ns))):
            running, turns = machine.running, machine.turns
            if running is None or turns != seen:
                seen, since_ns = turns, monotonic_ns()
            elif monotonic_ns() - since_ns >= self._limit_ns and machine.stuck is None:
                machine.stuck = name = getattr(running, "name", "?")
                self._report(name)

    def _report(self, name: str) -> None:
        frame = sys._current_frames().get(self._thread_id)
        stack = "" if frame is None else "".join(traceback.format_stack(frame)[-6:])
        print(
            f"uxk: {name} has not returned from a callback for {self._limit_ns} ns:\n{stack}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
