"""Whether a fault strikes, and what the earlier messages were that it may bring back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from uxk.core.events import EventId
from uxk.core.ratelimit import RateLimit
from uxk.faults.forge import data_field
from uxk.faults.model import Fault
from uxk.kernel.agent import KernelAgent
from uxk.limits import LOG_BURST_DEFAULT, LOG_INTERVAL_NS_DEFAULT, PPM

HISTORY: Final = 4
"""Messages of each name that are kept for ``stale`` and ``lie``."""


class Striker:
    """One fault of a running plan: its stream, and how often it has struck."""

    __slots__ = (
        "_history", "_log_limit", "_passed", "cancel", "fault", "fired", "index", "name", "origin_ns", "stream",
        "timer",
    )  # fmt: skip

    def __init__(self, index: int, fault: Fault, stream: np.random.Generator) -> None:
        self.index = index
        self.fault = fault
        self.name = fault.name or f"{fault.kind}-{index}"
        self.stream = stream
        self.fired = 0
        self.origin_ns: int | None = None
        """What its times count from: the run's start, or its trigger; None before that."""
        self.timer: EventId | None = None
        """Of a fault that strikes at a time, until it does."""
        self.cancel: Callable[[], None] | None = None
        """Ends the wait for its trigger."""
        self._passed = 0
        self._history: dict[str, deque[Any]] = {}
        self._log_limit = RateLimit(LOG_BURST_DEFAULT, LOG_INTERVAL_NS_DEFAULT)

    @property
    def exhausted(self) -> bool:
        """Whether it has struck as often as it may."""
        return bool(self.fault.limit) and self.fired >= self.fault.limit

    def open_at(self, now_ns: int) -> bool:
        """Whether its time has come and is not over."""
        fault, origin_ns = self.fault, self.origin_ns
        if origin_ns is None or now_ns < origin_ns + fault.at_ns:
            return False
        return not fault.until_ns or now_ns < origin_ns + fault.until_ns

    def strikes(self, now_ns: int, entry: Any, name: str) -> bool:
        """Decides for one message, which is called ``name``."""
        fault = self.fault
        if not self.open_at(now_ns) or self.exhausted or (fault.message and fault.message != name):
            return False
        if fault.kind == "corrupt" and fault.part == "payload" and not data_field(entry):
            return False
        if fault.kind == "stale" and not self._history.get(name):
            return False
        self._passed += 1
        if self._passed <= fault.after:
            return False
        ppm = fault.probability_ppm
        return ppm is None or int(self.stream.integers(PPM)) < ppm

    def earlier(self, name: str) -> list[Any]:
        """Earlier messages of that name, the oldest first."""
        return list(self._history.get(name, ()))

    def remember(self, entry: Any, name: str) -> None:
        """A message passed that may be brought back, in this incarnation or a later one."""
        self._history.setdefault(name, deque(maxlen=HISTORY)).append(entry)

    def note(self, agent: KernelAgent, what: str) -> None:
        """Enters a strike in the event hash and in kmsg (there, a bounded number of times)."""
        self.fired += 1
        machine = agent.machine
        machine.note("fault", agent.id, f"{self.index} {self.fault.kind} {what}".encode())
        if self._log_limit.allow(machine.now_ns):
            machine.log(
                "warning", agent.name, f"fault {self.name}: {self.fault.kind} {what}".rstrip(), fault=self.index
            )
