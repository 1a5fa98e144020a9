"""Whether a fault strikes, and what it does to a message."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np

from uxk.core.codec import encode
from uxk.core.events import EventId
from uxk.core.ratelimit import RateLimit
from uxk.faults.model import Fault
from uxk.kernel.agent import KernelAgent
from uxk.limits import LOG_BURST_DEFAULT, LOG_INTERVAL_NS_DEFAULT, PPM
from uxk.uapi.entries import Completion, Request


class Striker:
    """One fault of a running plan: its stream, and how often it has struck."""

    __slots__ = ("_log_limit", "fault", "fired", "index", "name", "origin_ns", "stream", "timer")

    def __init__(self, index: int, fault: Fault, stream: np.random.Generator) -> None:
        self.index = index
        self.fault = fault
        self.name = fault.name or f"{fault.kind}-{index}"
        self.stream = stream
        self.fired = 0
        self.origin_ns: int | None = None
        """Start of the run, which ``at_ns`` counts from; None before it."""
        self.timer: EventId | None = None
        """Of a fault that strikes at a time, until it does."""
        self._log_limit = RateLimit(LOG_BURST_DEFAULT, LOG_INTERVAL_NS_DEFAULT)

    @property
    def exhausted(self) -> bool:
        """Whether it has struck as often as it may."""
        return bool(self.fault.limit) and self.fired >= self.fault.limit

    def strikes(self, agent: KernelAgent, now_ns: int, entry: Any) -> bool:
        """Decides for one message, and takes note if it strikes."""
        fault = self.fault
        if self.origin_ns is None or now_ns < self.origin_ns + fault.at_ns or self.exhausted:
            return False
        if fault.kind == "corrupt" and fault.part == "payload" and not entry.payload:
            return False
        ppm = fault.probability_ppm
        if ppm is not None and int(self.stream.integers(PPM)) >= ppm:
            return False
        self.note(agent, f"{type(entry).__name__.lower()} {entry.cid}")
        return True

    def note(self, agent: KernelAgent, what: str) -> None:
        """Enters a strike in the event hash and in kmsg (there, a bounded number of times)."""
        self.fired += 1
        machine = agent.machine
        machine.note("fault", agent.id, f"{self.index} {self.fault.kind} {what}".encode())
        if self._log_limit.allow(machine.now_ns):
            machine.log(
                "warning", agent.name, f"fault {self.name}: {self.fault.kind} {what}".rstrip(), fault=self.index
            )


def corrupted(entry: Request | Completion, part: Literal["payload", "frame"], stream: np.random.Generator) -> bytes:
    """The entry's frame with one bit flipped, in its data or anywhere."""
    if part == "payload":
        return encode([msgspec.structs.replace(entry, payload=_flipped(entry.payload, stream))])
    return _flipped(encode([entry]), stream)


def _flipped(data: bytes, stream: np.random.Generator) -> bytes:
    bit = int(stream.integers(8 * len(data)))
    damaged = bytearray(data)
    damaged[bit >> 3] ^= 1 << (bit & 7)
    return bytes(damaged)
