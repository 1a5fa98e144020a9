"""Rate limits in integers: a burst per interval, and a token bucket."""

from __future__ import annotations

from uxk.errors import UsageError
from uxk.limits import NS_PER_S


def _check(owner: str, **values: int) -> None:
    for name, value in values.items():
        if value < 0:
            raise UsageError(f"{owner}: {name} is {value}, expected 0 or more")


class RateLimit:
    """At most ``burst`` events per ``interval_ns`` (lib/ratelimit.c); an interval of 0 allows all.

    The first event begins an interval; the first event after its end begins the next.
    """

    __slots__ = ("_begin_ns", "_passed", "burst", "interval_ns", "suppressed", "suppressed_total")

    def __init__(self, burst: int, interval_ns: int) -> None:
        _check("rate limit", burst=burst, interval_ns=interval_ns)
        self.burst = burst
        self.interval_ns = interval_ns
        self.suppressed = 0
        """Refused since the last ``take_suppressed``."""
        self.suppressed_total = 0
        self._begin_ns: int | None = None
        self._passed = 0

    def allow(self, now_ns: int) -> bool:
        """Whether one event may pass now; a refused one is counted."""
        if not self.interval_ns:
            return True
        if self._begin_ns is None or now_ns - self._begin_ns >= self.interval_ns:
            self._begin_ns, self._passed = now_ns, 0
        if self._passed < self.burst:
            self._passed += 1
            return True
        self.suppressed += 1
        self.suppressed_total += 1
        return False

    def take_suppressed(self) -> int:
        """How many were refused since the last call: report it with the next one allowed."""
        count, self.suppressed = self.suppressed, 0
        return count


class TokenBucket:
    """``rate_per_s`` tokens a second, at most ``burst`` saved up; starts full, and is exact.

    Saved tokens are kept in units of 1/10^9 token, so that no fraction is ever lost to rounding.
    """

    __slots__ = ("_credit", "_last_ns", "burst", "rate_per_s", "refused")

    def __init__(self, rate_per_s: int, burst: int, *, now_ns: int = 0) -> None:
        _check("token bucket", rate_per_s=rate_per_s, burst=burst)
        self.rate_per_s = rate_per_s
        self.burst = burst
        self.refused = 0
        """Tokens asked for and not given."""
        self._credit = burst * NS_PER_S
        self._last_ns = now_ns

    def take(self, now_ns: int, n: int = 1) -> bool:
        """Takes ``n`` tokens, all or none.  Raises ``UsageError`` for a negative ``n``."""
        _check("token bucket", n=n)
        if now_ns > self._last_ns:
            earned = (now_ns - self._last_ns) * self.rate_per_s
            self._credit = min(self._credit + earned, self.burst * NS_PER_S)
            self._last_ns = now_ns
        if n * NS_PER_S > self._credit:
            self.refused += n
            return False
        self._credit -= n * NS_PER_S
        return True

    @property
    def tokens(self) -> int:
        """Whole tokens saved up at the last ``take``."""
        return self._credit // NS_PER_S
