"""The account of one instance: everything it did, holds and was refused (R7, R10).

What went through the queues is counted by the rings themselves; the account adds the rest.  Nothing here decides:
budgets are enforced where the resource is handed out, and noted here.
"""

from __future__ import annotations

from typing import Final

from uxk.core.cost import CostModel
from uxk.core.histogram import Histogram
from uxk.core.ring import Ring

REASONS_MAX: Final = 64
"""Distinct reject reasons kept; they come from the kernel's own fixed set, this only bounds a mistake."""

_COUNTED: Final = (
    "requests", "completed", "failed", "timeouts", "submitted", "crossings", "turns", "cpu_ns", "declared_ns",
    "throttled", "hints", "log_lines", "log_suppressed", "faults", "restarts", "deferred", "read_bytes",
    "written_bytes", "io_read_bytes", "io_written_bytes",
)  # fmt: skip
_FROM_RINGS: Final = ("messages_in", "messages_out", "bytes_in", "bytes_out", "batches_in", "batches_out", "charged_ns")
_HELD: Final = ("arena_bytes", "snapshot_bytes", "queue_slots", "locks", "pins", "devices", "files")

COUNTERS: Final = (*_COUNTED, *_FROM_RINGS)
"""Totals that only grow.  *in* is what the extension received, *out* what it sent."""
GAUGES: Final = (*_HELD, "inflight")
"""What the instance holds now: all zero when it is gone."""


class Account:
    """Counters and holdings of one instance.  ``inbound`` and ``outbound`` are its rings, seen from it."""

    __slots__ = (*_COUNTED, *_HELD, "_cost", "_inbound", "_outbound", "arena_bytes_max", "latency", "rejects")

    def __init__(self, cost: CostModel, inbound: tuple[Ring, ...] = (), outbound: tuple[Ring, ...] = ()) -> None:
        self._cost = cost
        self._inbound = inbound
        self._outbound = outbound
        self.requests = self.completed = self.failed = self.timeouts = self.submitted = 0
        self.crossings = self.turns = self.cpu_ns = self.declared_ns = self.throttled = self.hints = 0
        self.log_lines = self.log_suppressed = self.faults = self.restarts = self.deferred = 0
        self.read_bytes = self.written_bytes = self.io_read_bytes = self.io_written_bytes = 0
        self.arena_bytes = self.snapshot_bytes = self.queue_slots = self.locks = self.pins = self.devices = (
            self.files
        ) = 0
        self.arena_bytes_max = 0
        self.latency = Histogram()
        self.rejects: dict[str, int] = {}

    # --- what the rings know ---

    @property
    def messages_in(self) -> int:
        """Entries received."""
        return sum(ring.entries for ring in self._inbound)

    @property
    def messages_out(self) -> int:
        """Entries sent, as it claimed them."""
        return sum(ring.entries for ring in self._outbound)

    @property
    def bytes_in(self) -> int:
        """Bytes of frames received."""
        return sum(ring.bytes for ring in self._inbound)

    @property
    def bytes_out(self) -> int:
        """Bytes of frames sent."""
        return sum(ring.bytes for ring in self._outbound)

    @property
    def batches_in(self) -> int:
        """Frames received."""
        return sum(ring.frames for ring in self._inbound)

    @property
    def batches_out(self) -> int:
        """Frames sent."""
        return sum(ring.frames for ring in self._outbound)

    @property
    def charged_ns(self) -> int:
        """Virtual time charged so far: for crossings, entries and bytes both ways, and what was declared."""
        entries, size_bytes = self.messages_in + self.messages_out, self.bytes_in + self.bytes_out
        return self._cost.of(self.crossings, entries, size_bytes) + self.declared_ns

    @property
    def inflight(self) -> int:
        """Requests accepted and not yet answered."""
        return self.requests - self.completed

    # --- refusals and holdings ---

    def reject(self, reason: str, count: int = 1) -> None:
        """Counts ``count`` refusals for ``reason``."""
        if reason not in self.rejects and len(self.rejects) >= REASONS_MAX:
            reason = "other"
        self.rejects[reason] = self.rejects.get(reason, 0) + count

    @property
    def rejected(self) -> int:
        """All refusals."""
        return sum(self.rejects.values())

    def holdings(self) -> dict[str, int]:
        """What is held now and is not zero: empty after an exact reclaim."""
        return {name: value for name in GAUGES if (value := getattr(self, name))}

    def hold_arena(self, delta_bytes: int) -> None:
        """Books arena memory taken (positive) or given back (negative)."""
        self.arena_bytes += delta_bytes
        if self.arena_bytes > self.arena_bytes_max:
            self.arena_bytes_max = self.arena_bytes

    def to_dict(self) -> dict[str, int | dict[str, int]]:
        """Everything, for reports; latency as its summary."""
        flat: dict[str, int | dict[str, int]] = {
            name: getattr(self, name) for name in (*COUNTERS, *GAUGES, "arena_bytes_max")
        }
        flat["rejects"] = dict(sorted(self.rejects.items()))
        flat["latency"] = self.latency.summary()._asdict()
        return flat
