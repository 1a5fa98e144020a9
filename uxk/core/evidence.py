"""Sequential evidence that one arm is better than the other: an e-process over paired differences.

For a difference x that is symmetric about zero given the past, ``exp(l*x) / cosh(l*x)`` has mean one for every l,
so its product over epochs is a martingale, whatever the spread or the tails; a mixture over several l and several
starting epochs is one, too.  By Ville's inequality it exceeds ``1/alpha`` with probability at most alpha, however
often one looks (Ville 1939; de la Peña, Ann. Probab. 27, 1999; Shafer et al., Statist. Sci. 26, 2011; Ramdas et
al., Statist. Sci. 38, 2023).  Two arms without an effect are exchangeable, which makes their difference symmetric.

* Starting anew every few epochs lets a late effect show: start k has weight ``1/(k*(k+1))``, altogether 1.
* Autocorrelation breaks the premise.  With r, the lag-1 autocorrelation since the start (at most the last 32
  epochs), the variance of a sum grows by ``(1+r)/(1-r)``: exponents are divided by that.  A few epochs tell r badly,
  so a floor is assumed.  This is a correction, no proof: ``python -m bench.evidence`` prints how far it carries.
* :class:`Alarm` looks the other way with the same bets, floored at 1 so that good times cannot be saved up
  (e-CUSUM; Shin, Ramdas and Rinaldo, NEJSDS 2024): at least ``run_length`` epochs between false alarms on average.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Final

from uxk.core.fixed import ONE, exp, ln, log_cosh, milli, ratio
from uxk.limits import PPM

SCALES_PPM: Final = (10_000, 30_000, 100_000)
"""Differences at which a bet becomes bold: noise of 1 to 10 % is what epochs of storage have."""
START_EVERY: Final = 8
"""Epochs between starts."""
LIVE_MAX: Final = 8
"""Starts followed at a time; the poorest is given up, which can only lose evidence."""
WINDOW: Final = 32
"""Epochs of which the autocorrelation is taken."""
INFLATION_MAX: Final = 4 * ONE


def difference_ppm(default: int, hinted: int) -> int:
    """By how much ``hinted`` is below ``default``, relative to the larger: exchanging the arms changes the sign.

    Both above 0; lower is better.
    """
    size = abs(default - hinted) * PPM // max(default, hinted)
    return size if default >= hinted else -size


def _bets(difference: int) -> list[int]:
    """ln of every bet's factor for one difference in ppm."""
    return [y - log_cosh(y) for y in (ratio(difference, scale) for scale in SCALES_PPM)]


class Correlation:
    """Lag-1 autocorrelation of the last epochs, as the factor by which it inflates the variance of a sum."""

    __slots__ = ("_recent",)

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=WINDOW)

    def add(self, difference: int) -> None:
        """One more epoch."""
        self._recent.append(difference)

    def inflation(self, epochs: int = WINDOW) -> int:
        """Fixed point, 1 to 4; of the last ``epochs`` epochs."""
        recent = list(self._recent)[-epochs:]
        count = len(recent)
        if count < 3:
            return ONE
        total = sum(recent)
        centred = [count * x - total for x in recent]
        variance = sum(x * x for x in centred)
        if not variance:
            return ONE
        lagged = sum(a * b for a, b in pairwise(centred))
        # Of n values it comes out too small by about (1+3r)/n (Kendall, Biometrika 41, 1954).
        lagged, variance = (count + 3) * lagged + variance, count * variance
        if lagged <= 0:
            return ONE
        if 5 * lagged >= 3 * variance:
            return INFLATION_MAX
        return ratio(variance + lagged, variance - lagged)


class Evidence:
    """Evidence for "better": a test that may be looked at after every epoch.

    ``alpha_ppm``: the chance, in parts per million, that it ever claims an effect where there is none.
    ``correlation_ppm``: autocorrelation that is assumed even where less is seen; ``correlation_max_ppm``: what is seen
    beyond this is a trend, or a change of level.
    """

    __slots__ = ("_ceiling", "_correlation", "_floor", "_live", "_threshold", "epochs", "starts")

    def __init__(
        self, alpha_ppm: int, starts: int = 0, *, correlation_ppm: int = 0, correlation_max_ppm: int = 600_000
    ) -> None:  # fmt: skip
        self._floor = ratio(PPM + correlation_ppm, PPM - correlation_ppm)
        self._ceiling = max(ratio(PPM + correlation_max_ppm, PPM - correlation_max_ppm), self._floor)
        self.epochs = 0
        self._threshold = ln(ratio(PPM, alpha_ppm))
        self.starts = starts
        """Starts so far; a later test that goes on counting shares alpha with this one."""
        self._live: list[tuple[int, int, list[int]]] = []
        """Starts: number, epochs before it, and ln of what each bet has won since."""
        self._correlation = Correlation()

    def add(self, difference: int) -> None:
        """One epoch: by how much the hinted arm was better, in ppm (see :func:`difference_ppm`)."""
        if self.epochs % START_EVERY == 0:
            self._start()
        self.epochs += 1
        self._correlation.add(difference)
        factors = _bets(difference)
        for _, _, won in self._live:
            for index, factor in enumerate(factors):
                won[index] += factor

    def _start(self) -> None:
        self.starts += 1
        if len(self._live) == LIVE_MAX:
            self._live.remove(min(self._live, key=lambda each: max(each[2])))
        self._live.append((self.starts, self.epochs, [0] * len(SCALES_PPM)))

    @property
    def log_value(self) -> int:
        """ln of the e-value, fixed point."""
        total = 0
        for start, before, won in self._live:  # each by its own epochs: a change of level is no correlation
            seen = self._correlation.inflation(self.epochs - before)
            inflation = min(max(self._floor, seen), self._ceiling)
            sums = sum(exp(ratio(each, inflation)) for each in won)
            total += sums // (len(SCALES_PPM) * start * (start + 1))
        return ln(total) if total > 0 else -64 * ONE

    @property
    def reached(self) -> bool:
        """Whether it suffices."""
        if all(
            ratio(max(won), self._floor) < self._threshold for _, _, won in self._live
        ):  # weights add up to 1 at most
            return False
        return self.log_value >= self._threshold

    def __str__(self) -> str:
        have, need = milli(self.log_value), milli(self._threshold)
        return f"ln e {_thousandths(have)} of {_thousandths(need)} after {self.epochs} epochs"


class Alarm:
    """Evidence for "worse", for ever on watch: about ``run_length`` epochs or more between false alarms."""

    __slots__ = ("_correlation", "_most", "_threshold", "_won")

    def __init__(self, run_length: int) -> None:
        self._threshold = ln(run_length * ONE)
        self._most = self._threshold + ln(len(SCALES_PPM) * ONE) + ONE
        """What one bet needs for the alarm by itself, and a little more: a longer bad time tells nothing further,
        and would only have to be outweighed when good times come."""
        self._won = [0] * len(SCALES_PPM)
        self._correlation = Correlation()

    def add(self, difference: int) -> None:
        """One epoch, as for :class:`Evidence`."""
        self._correlation.add(difference)
        inflation = self._correlation.inflation()
        for index, factor in enumerate(_bets(-difference)):
            self._won[index] = min(max(0, self._won[index] + ratio(factor, inflation)), self._most)

    @property
    def log_value(self) -> int:
        """ln of the mean of all bets, fixed point."""
        return ln(sum(exp(each) for each in self._won) // len(self._won))

    @property
    def reached(self) -> bool:
        """Whether it suffices."""
        return self.log_value >= self._threshold

    def __str__(self) -> str:
        return f"ln e {_thousandths(milli(self.log_value))} of {_thousandths(milli(self._threshold))}"


def _thousandths(value: int) -> str:
    whole, rest = divmod(abs(value), 1000)
    return f"{'-' if value < 0 else ''}{whole}.{rest:03}"
