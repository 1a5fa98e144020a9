"""Trials of recommended values: a change is in force for a while, under watch, and goes unless it proves itself (R29).

A :class:`Trial` has one KPI, lower is better, and the names of what may be changed under it: one change at a time,
or no effect could be told from another.  The KPI's mean over the epochs since the change is compared with that over
the epochs before it; what is too much worse is reverted at once.

Sans-IO: the caller writes values, keeps time, and says what happened.  Every method that may end the pending action
returns an :class:`End`, or None.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import Final

from msgspec import Struct

from uxk.core.kpi import shown
from uxk.core.ratelimit import RateLimit
from uxk.errors import BudgetError, CapabilityError, UsageError
from uxk.limits import I64_MAX, NS_PER_S, PPM
from uxk.uapi.action import Step

PATIENCE_MAX: Final = 10
"""Doublings of the pause after changes that made it worse, at most: an agent that never learns costs ever less."""
NAMES_MAX: Final = 64
"""What may be changed under one KPI: with one change at a time, more would never have their turn."""


class ActionConfig(Struct, frozen=True, kw_only=True):
    """Settings of a trial."""

    worse_ppm: int = 20_000
    """The KPI may be worse by this much than before; more reverts."""
    epochs: int = 8
    """Epochs that a mean is taken over, before and after, at most."""
    epochs_min: int = 2
    """Epochs without a change before one is allowed, and after it before it is judged.

    The former double with every change that made it worse, until one is confirmed.
    """
    lifetime_max_ns: int = 3600 * NS_PER_S
    """Longest lifetime; also that of an action that names none."""
    lifetime_epochs: int = 0
    """An action that is not confirmed after this many epochs is reverted; 0: time alone counts."""
    burst: int = 4
    """Actions on one sysctl within ``interval_ns``."""
    interval_ns: int = NS_PER_S

    def __post_init__(self) -> None:
        ranges = {
            "worse_ppm": (0, PPM * PPM), "epochs": (1, 1 << 16), "epochs_min": (1, self.epochs),
            "lifetime_max_ns": (1, I64_MAX), "lifetime_epochs": (0, 1 << 32), "burst": (1, 1 << 32),
            "interval_ns": (0, I64_MAX),
        }  # fmt: skip
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise UsageError(f"actions: {name}={value!r}, expected {least} to {most}")


class Action:
    """A change on trial."""

    __slots__ = ("before", "epochs", "name", "number", "since", "until_ns")

    def __init__(self, number: int, name: str, until_ns: int, before: tuple[int, ...], epochs: int) -> None:
        self.number = number
        self.name = name
        self.until_ns = until_ns
        self.before = before
        """The KPI in the epochs before."""
        self.since: deque[int] = deque(maxlen=epochs)
        """The KPI in the latest epochs since."""
        self.epochs = 0
        """Epochs since, in all."""

    @property
    def evidence(self) -> str:
        """The comparison in words."""
        before = sum(self.before) // len(self.before)
        if not self.since:
            return f"KPI {before} before, no epoch since"
        return f"KPI {before} -> {sum(self.since) // len(self.since)} in {self.epochs} epochs"

    def worse_than(self, ppm: int) -> bool:
        """Whether the mean since is above that before by more than ``ppm``; exact, False without an epoch."""
        since = sum(self.since) * len(self.before) * PPM
        return since > sum(self.before) * len(self.since) * (PPM + ppm)


class End(Struct, frozen=True):
    """How an action ended; a caller that reads REVERTED puts the value from before back."""

    action: Action
    step: Step
    why: str


class Trial:
    """One KPI and what may be changed under it; ``pending`` is the change under watch."""

    __slots__ = ("_config", "_limits", "_patience", "_quiet", "_settled", "pending")

    def __init__(self, config: ActionConfig) -> None:
        self._config = config
        self._limits: dict[str, RateLimit] = {}
        self._settled: deque[int] = deque(maxlen=config.epochs)
        """The KPI in the latest epochs with nothing on trial and nothing just changed."""
        self._quiet = self._patience = 0
        self.pending: Action | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What may be changed."""
        return tuple(self._limits)

    def add(self, name: str) -> None:
        """Lets ``name`` be changed, too."""
        if name in self._limits:
            raise UsageError(f"action on {name}: it is watched already", errno=errno.EEXIST)
        if len(self._limits) >= NAMES_MAX:
            raise UsageError(f"action on {name}: {NAMES_MAX} sysctls under one KPI at most", errno=errno.ENOSPC)
        self._limits[name] = RateLimit(self._config.burst, self._config.interval_ns)

    # --- beginning ---

    def check(self, name: str, now_ns: int, lifetime_ns: int) -> None:
        """Raises if no change of ``name`` may begin now; uses up a part of its rate limit if one may.

        EINVAL for a lifetime too long, EBUSY while there is another on trial, EAGAIN with too few epochs to
        compare with, :class:`BudgetError` (EDQUOT) beyond the rate limit.
        """
        config, pending, limit = self._config, self.pending, self._limits[name]
        if not 0 <= lifetime_ns <= config.lifetime_max_ns:
            raise UsageError(f"action on {name}: lifetime of {lifetime_ns} ns, at most {config.lifetime_max_ns}")
        if pending is not None:
            raise UsageError(
                f"action on {name}: action {pending.number} on {pending.name} is on trial under the same KPI",
                errno=errno.EBUSY,
            )
        if self._quiet < config.epochs_min << self._patience:
            raise UsageError(
                f"action on {name}: {self._quiet} epochs since the last change, "
                f"expected {config.epochs_min << self._patience}",
                errno=errno.EAGAIN,
            )
        if not limit.allow(now_ns):
            raise BudgetError(f"action on {name}: more than {limit.burst} in {limit.interval_ns} ns")

    def begin(self, number: int, name: str, now_ns: int, lifetime_ns: int) -> Action:
        """The change has been made; :meth:`check` has allowed it.  A lifetime of 0 is the longest."""
        until_ns = now_ns + (lifetime_ns or self._config.lifetime_max_ns)
        self.pending = Action(number, name, until_ns, tuple(self._settled), self._config.epochs)
        return self.pending

    # --- what happens ---

    def epoch(self, kpi: int) -> End | None:
        """One epoch was measured.  EINVAL for what is no KPI."""
        if type(kpi) is not int or not 0 <= kpi <= I64_MAX:
            names = ", ".join(self._limits)
            raise UsageError(f"actions: kpi={shown(kpi)} under {names}: expected an integer, 0 to {I64_MAX}")
        action, config = self.pending, self._config
        if action is None:
            self._settled.append(kpi)
            self._quiet += 1
            return None
        action.since.append(kpi)
        action.epochs += 1
        if action.epochs >= config.epochs_min and action.worse_than(config.worse_ppm):
            self._patience = min(self._patience + 1, PATIENCE_MAX)
            return self._end(Step.REVERTED, f"worse by more than {config.worse_ppm} ppm: {action.evidence}")
        if 0 < config.lifetime_epochs <= action.epochs:
            return self._end(Step.REVERTED, f"its {config.lifetime_epochs} epochs are over: {action.evidence}")
        return None

    def expire(self, now_ns: int) -> End | None:
        """Time has passed."""
        action = self.pending
        if action is None or now_ns < action.until_ns:
            return None
        return self._end(Step.REVERTED, f"its lifetime is over: {action.evidence}")

    def written(self, name: str, who: str, *, changed: bool) -> End | None:
        """Somebody wrote ``name``, not by an action: their value stays, whatever it is."""
        action = self.pending
        end = None
        if action is not None and action.name == name:
            end = self._end(Step.SUPERSEDED, f"written by {who}")
        if changed:
            self._settled.clear()
            self._quiet = 0
            if self.pending is not None:  # what is compared with is not what was before any more
                end = self._end(Step.REVERTED, f"{name} under the same KPI was written by {who}")
        return end

    def confirm(self) -> End:
        """The pending value is to stay: granted if the KPI is not worse than before, after enough epochs.

        EAGAIN if it is too early to say; :class:`CapabilityError` (EACCES) if it is worse.
        """
        action = self._need()
        if action.epochs < self._config.epochs_min:
            raise UsageError(
                f"action {action.number} on {action.name}: {action.epochs} epochs on trial, "
                f"expected {self._config.epochs_min}",
                errno=errno.EAGAIN,
            )
        if action.worse_than(0):
            raise CapabilityError(f"action {action.number} on {action.name}: not better: {action.evidence}")
        return self._end(Step.CONFIRMED, action.evidence)

    def withdraw(self, why: str) -> End:
        """The pending value has to go."""
        self._need()
        return self._end(Step.REVERTED, why)

    # --- inside ---

    def _need(self) -> Action:
        if self.pending is None:
            raise UsageError("actions: nothing is on trial", errno=errno.ENOENT)
        return self.pending

    def _end(self, step: Step, why: str) -> End:
        action, self.pending = self._need(), None
        self._settled.clear()
        self._quiet = 0
        if step is Step.CONFIRMED:  # what was measured on trial is what later changes are compared with
            self._settled.extend(action.since)
            self._quiet, self._patience = len(action.since), 0
        return End(action, step, why)
