"""A decision site of a model proxy: the core's site, on the kernel's clock, with a way to report and to warn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from uxk.core.kpi import Epoch
from uxk.core.site import DecisionSite
from uxk.uapi.entries import Hint
from uxk.uapi.ml import Feedback, Mode

if TYPE_CHECKING:
    from uxk.kernel.proxy import MLModelProxy


class ProxySite(DecisionSite):
    """What :meth:`~uxk.kernel.proxy.MLModelProxy.site` returns: the subsystem asks it at every decision."""

    __slots__ = ("_hinted_units_then", "_proxy")

    def __init__(
        self, proxy: MLModelProxy, name: str, check: Callable[[bytes], str], *, units: int, depth: int,
        origin: Callable[[Hint], str], feedback: Callable[[int, Feedback], object],
    ) -> None:  # fmt: skip
        super().__init__(
            name, check, modes=proxy.modes, units=units, depth=depth, origin=origin, feedback=feedback
        )  # fmt: skip
        self._proxy = proxy
        self._hinted_units_then = self.hinted_units
        """How many followed hints when the epoch began: an emergency in its midst does not undo what they cost."""

    @property
    def mode(self) -> Mode:
        """The model's mode."""
        return self._proxy.mode

    def advance(self) -> int:
        """Starts the next generation, and tells attached agents its number."""
        number = super().advance()
        self._proxy.announce(self)
        return number

    def epoch(
        self, *, default_kpi: int | None, hinted_kpi: int | None, weight: int = 1, hinted_weight: int | None = None
    ) -> Mode:
        """Reports what the two arms did in one epoch; returns the mode from now on.

        KPIs are integers above 0, lower is better; None for an arm without units.  ``weight`` is the number of
        units of the whole epoch (say, user blocks), ``hinted_weight`` of those that followed hints; without it,
        all units are taken to be alike.
        """
        if hinted_weight is None:
            units = max(self._hinted_units_then, self.hinted_units)
            hinted_weight = 0 if hinted_kpi is None else weight * units // self.units
        self._proxy.estimate_efficiency(Epoch(default_kpi, hinted_kpi, weight, hinted_weight))
        self._hinted_units_then = self.hinted_units
        return self._proxy.mode

    def watermark(self, name: str, *, critical: bool, why: str = "") -> None:
        """Says that a watermark is passed, which is an emergency, or not any more."""
        self._proxy.watermark(name, critical=critical, why=why)
