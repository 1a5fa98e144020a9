"""The decision site ``nvme0.gc``: agents advise the flash which lines to collect (docs/medium.md, section 7).

Nothing waits: an epoch ends when the host has programmed a sixteenth of the capacity, the kernel's answer says what to
follow until the next, and if none has come by then, the epoch goes on.
"""

from __future__ import annotations

from typing import Final

import uxk
from uxk_nvme.medium import Medium
from uxk_nvme.medium.ftl.arms import ROWS_MAX, SCHEMA, SHARES, Arms, Measured
from uxk_nvme.medium.ftl.device import FtlMedium

CORRELATION_MAX_PPM: Final = 200_000
"""As the log-structured volume has it: epochs of write amplification swing back rather than persist."""


class Advice:
    """Offers the site, ends its epochs, and publishes attribute ``advice``."""

    def __init__(self, ctx: uxk.Context, medium: FtlMedium) -> None:
        self._ctx = ctx
        self.site = f"{ctx.device}.gc"
        self.arms = Arms(medium, ctx.random_streams.sequence("advice"))
        self._waiting = True
        self._refused = ""
        self._mode = uxk.Mode.UNKNOWN
        self._hinted_units = 0
        self._last = Measured(0, 0, 0, 0)
        self._counters = dict.fromkeys(("epochs", "hinted_epochs", "refused_epochs", "unreported_epochs"), 0)
        ctx.offer_site(
            self.site, units=SHARES, schema=SCHEMA, rows_max=ROWS_MAX, correlation_ppm=0,
            correlation_max_ppm=CORRELATION_MAX_PPM,
        ).then(self._offered)  # fmt: skip

    def _offered(self, answer: uxk.Completion) -> None:
        if answer.status:
            self._ctx.log(f"{self.site}: no advice: {answer.payload.decode(errors='replace')}", level=4)
        else:
            self._waiting = False
            self._publish()

    def check(self) -> None:
        """Ends the epoch if it is time; called after every turn."""
        if self.arms.due and not self._waiting:
            self._end()

    def _end(self) -> None:
        counters = self._counters
        self._last = last = self.arms.measure()
        counters["epochs"] += 1
        counters["hinted_epochs"] += last.hinted_ppm > 0
        counters["refused_epochs"] += bool(self._refused)
        try:
            reply = self._ctx.end_epoch(
                self.site, default_kpi=last.default_ppm, hinted_kpi=last.hinted_ppm, weight=last.weight,
                hinted_weight=last.hinted_weight, rows=self.arms.rows(), refused=self._refused,
            )  # fmt: skip
        except uxk.RingFull:  # too much to say in this turn: the kernel hears of the next epoch
            counters["unreported_epochs"] += 1
            return
        self._waiting = True
        reply.then(self._answered)

    def _answered(self, answer: uxk.Completion) -> None:
        self._waiting = False
        if answer.status:
            self._ctx.log(f"{self.site}: {answer.payload.decode(errors='replace')}", level=4)
            self.arms.stop()
        else:
            state = uxk.decode_site(answer.payload)
            self._mode, self._hinted_units = state.mode, state.hinted_units
            self._refused = self.arms.follow(state.hint, state.hinted_units)
        self._publish()

    def _publish(self) -> None:
        arms, last = self.arms, self._last
        figures: dict[str, int | str] = {
            "mode": self._mode.name.lower(), "hinted_units": self._hinted_units, "policy": arms.policy or "default",
            **self._counters, "default_wa_ppm": last.default_ppm, "hinted_wa_ppm": last.hinted_ppm,
            "hinted_choices": arms.followed, "useless_choices": arms.useless,
            "hinted_victims": arms.offered,
        }  # fmt: skip
        self._ctx.set_attribute("advice", "\n".join(f"{name} {value}" for name, value in figures.items()))


def advice_of(ctx: uxk.Context, medium: Medium) -> Advice | None:
    """The site of a medium that has a choice; None for others."""
    return Advice(ctx, medium) if isinstance(medium, FtlMedium) else None
