"""The ledger of a model's KPI: what following hints has cost or saved against the default, epoch by epoch.

A KPI is an integer above 0, and lower is better: for instance write amplification in ppm.  Sums are weighted by
units, for instance user blocks.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from msgspec import Struct

from uxk.errors import UsageError
from uxk.limits import I64_MAX, PPM

WINDOW: Final = 16
"""Epochs of which the present efficiency is taken."""
MEMORY: Final = 8
"""The baseline moves by one part in so many with every epoch in which there was a default arm."""
_POINT: Final = 16
"""Bits after the point of the baseline: a KPI of a few units must not be stuck for rounding."""


class Epoch(Struct, frozen=True):
    """What was measured in one epoch; an arm that had no units is None."""

    default_kpi: int | None
    hinted_kpi: int | None
    weight: int
    """Units of the whole epoch."""
    hinted_weight: int
    """Units that followed hints."""

    def __post_init__(self) -> None:
        for name in ("default_kpi", "hinted_kpi"):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and 0 < value <= I64_MAX):
                raise UsageError(f"epoch: {name}={shown(value)}, expected an integer, 1 to {I64_MAX}, or None")
        for name, most in (("weight", I64_MAX), ("hinted_weight", self.weight)):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= most:
                raise UsageError(f"epoch: {name}={shown(value)}, expected an integer, 0 to {most}")


class Ledger:
    """Sums over a run.  ``floor_epochs``: the loss budget is never that of a run shorter than this."""

    __slots__ = ("_baseline", "_window", "baseline_sum", "epochs", "floor_epochs", "loss", "saved")

    def __init__(self, floor_epochs: int) -> None:
        self.floor_epochs = floor_epochs
        self._window: deque[tuple[int, int]] = deque(maxlen=WINDOW)
        self.epochs = 0
        self._baseline = 0
        """Fixed point."""
        self.baseline_sum = 0
        """The default's KPI by weight, over all epochs."""
        self.loss = 0
        """Loss against the default by weight.  Gains pay it back, and never more: they cannot be saved up."""
        self.saved = 0
        """Gains less losses by weight, over all epochs."""

    def add(self, epoch: Epoch) -> None:
        """Books one epoch.  Without a default arm, the baseline is that of earlier epochs."""
        if epoch.default_kpi is not None:
            now = epoch.default_kpi << _POINT
            before = self._baseline or now
            self._baseline = before + (now - before) // MEMORY
        default = epoch.default_kpi or self.baseline
        if not default:
            return
        self.epochs += 1
        self.baseline_sum += default * epoch.weight
        if epoch.hinted_kpi is not None and epoch.hinted_weight:
            gain = (default - epoch.hinted_kpi) * epoch.hinted_weight
            self.saved += gain
            self.loss = max(0, self.loss - gain)
            self._window.append((gain, default * epoch.hinted_weight))

    @property
    def baseline(self) -> int:
        """What the default gives, as last known; 0 before it was measured."""
        return (self._baseline + (1 << _POINT - 1)) >> _POINT

    @property
    def loss_ppm(self) -> int:
        """The loss, relative to the default's cumulated KPI."""
        if not self.baseline_sum:
            return 0
        whole = self.baseline_sum * max(self.epochs, self.floor_epochs) // self.epochs
        return self.loss * PPM // max(whole, 1)

    @property
    def efficiency_ppm(self) -> int:
        """By how much units with hints did better than the default lately; negative if worse."""
        return _share(sum(gain for gain, _ in self._window), sum(base for _, base in self._window))

    @property
    def saved_ppm(self) -> int:
        """What hints have saved of the run's whole KPI; negative if they have cost."""
        return _share(self.saved, self.baseline_sum)

    def forget_window(self) -> None:
        """Efficiency begins anew, for another mode."""
        self._window.clear()


def shown(value: object) -> str:
    """For a message: a number of thousands of digits does not even convert."""
    if isinstance(value, int) and abs(value) > I64_MAX:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)


def _share(part: int, whole: int) -> int:
    """In ppm, rounded towards zero."""
    size = abs(part) * PPM // whole if whole else 0
    return size if part >= 0 else -size
