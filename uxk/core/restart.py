"""When a dead instance is started again, and when no more: OTP's supervisor, without I/O.

Modelled on OTP's ``supervisor`` behaviour (permanent/transient/temporary; intensity and period:
*more than* ``max_restarts`` restarts within ``period_ns``, both ends included, gives up), with an
exponential back-off, which OTP has not.
"""

from __future__ import annotations

from collections import deque

import msgspec

from uxk.errors import KernelBug
from uxk.uapi.manifest import RestartPolicy


class Restart(msgspec.Struct, frozen=True):
    """Start it again after ``delay_ns``."""

    delay_ns: int


class GiveUp(msgspec.Struct, frozen=True):
    """It died too often; ``reason`` says how often and in what time."""

    reason: str


class Stay(msgspec.Struct, frozen=True):
    """The policy's mode does not start it again: it stays down."""


class Restarter:
    """Decides about one instance's exits.  Holds at most ``policy.max_restarts`` times.

    The n-th restart in a row waits ``backoff_ns * 2**(n-1)``, at most ``backoff_max_ns``; a row
    ends after ``period_ns`` of quiet, counted from the moment the last restart was due.  Giving up
    is final.
    """

    __slots__ = ("_consecutive", "_due_ns", "_exits_ns", "_gave_up", "_policy", "_restarts")

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._exits_ns: deque[int] = deque(maxlen=policy.max_restarts)
        self._due_ns: int | None = None
        self._consecutive = 0
        self._restarts = 0
        self._gave_up: GiveUp | None = None

    @property
    def restarts(self) -> int:
        """Restarts granted altogether."""
        return self._restarts

    def on_exit(self, now_ns: int, crashed: bool) -> Restart | GiveUp | Stay:
        """What to do about an exit at ``now_ns``.  ``crashed`` is false for a normal end.

        Raises :class:`KernelBug` if time runs backwards.
        """
        if self._exits_ns and now_ns < self._exits_ns[-1]:
            last_ns = self._exits_ns[-1]
            raise KernelBug(f"restart: exit at {now_ns} ns, before the last at {last_ns} ns")
        if self._gave_up is not None:
            return self._gave_up
        policy = self._policy
        if policy.mode == "temporary" or (policy.mode == "transient" and not crashed):
            return Stay()
        if self._too_many(now_ns):
            self._gave_up = GiveUp(
                f"{policy.max_restarts + 1} exits within {policy.period_ns} ns; max_restarts is {policy.max_restarts}"
            )
            return self._gave_up
        return self._restart(now_ns)

    def _too_many(self, now_ns: int) -> bool:
        if len(self._exits_ns) < self._policy.max_restarts:
            return False
        return not self._exits_ns or now_ns - self._exits_ns[0] <= self._policy.period_ns

    def _restart(self, now_ns: int) -> Restart:
        policy = self._policy
        if self._due_ns is not None and now_ns - self._due_ns >= policy.period_ns:
            self._consecutive = 0
        # Past 63 doublings any back-off of at least 1 ns exceeds every 64-bit maximum.
        delay_ns = min(policy.backoff_ns << min(self._consecutive, 63), policy.backoff_max_ns)
        self._consecutive += 1
        self._restarts += 1
        self._exits_ns.append(now_ns)
        self._due_ns = now_ns + delay_ns
        return Restart(delay_ns)
