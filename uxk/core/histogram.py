"""Latency histogram of bounded memory and bounded relative error, in integers (after HdrHistogram).

Values below ``2**SUB_BITS`` are counted exactly; above, each power of two is cut into ``2**(SUB_BITS-1)``
equal buckets, so a reported value is at most 1/32 (3.2 %) above the true one.  Buckets live in a dict: an
idle histogram costs nothing, a full one has at most :data:`BUCKETS_MAX` entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from uxk import limits

SUB_BITS: Final = 6
_HALF: Final = 1 << (SUB_BITS - 1)
_FRESH_MAX: Final = 32
"""Different values that are sorted together: that is cheaper than one by one."""
BUCKETS_MAX: Final = (1 << SUB_BITS) + (63 - SUB_BITS) * _HALF
"""Buckets needed for values up to 2**63 - 1."""


def bucket_of(value: int) -> int:
    """Index of the bucket that counts ``value``; values above 2**63 - 1 are counted there."""
    if value < 1 << SUB_BITS:
        return max(value, 0)
    shift = min(value, limits.I64_MAX).bit_length() - SUB_BITS
    return shift * _HALF + (min(value, limits.I64_MAX) >> shift)


def bucket_top(bucket: int) -> int:
    """Largest value that falls into ``bucket``."""
    if bucket < 1 << SUB_BITS:
        return bucket
    shift = bucket // _HALF - 1
    return ((bucket - shift * _HALF + 1) << shift) - 1


class LatencySummary(NamedTuple):
    """Number of values, and the usual quantiles in nanoseconds (0 if there are no values)."""

    values: int
    mean_ns: int
    p50_ns: int
    p99_ns: int
    p999_ns: int
    max_ns: int


class Histogram:
    """Counts of non-negative integers, usually nanoseconds.

    Values come as they are, equal ones together, as is usual in virtual time; they are sorted into their buckets when
    there are many different ones, or a reader comes.
    """

    __slots__ = ("_buckets", "_count", "_fresh", "_max", "_total")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._count = self._total = self._max = 0
        self._fresh: dict[int, int] = {}
        """How often each value came that is not sorted yet."""

    def record(self, value: int, times: int = 1) -> None:
        """Counts ``value`` (negative counts as 0) ``times`` times."""
        fresh = self._fresh
        fresh[value] = fresh.get(value, 0) + times
        if len(fresh) >= _FRESH_MAX:
            self._settle()

    def _settle(self) -> None:
        buckets = self._buckets
        for value, times in self._fresh.items():
            value = max(value, 0)
            bucket = bucket_of(value)
            buckets[bucket] = buckets.get(bucket, 0) + times
            self._count += times
            self._total += value * times
            if value > self._max:
                self._max = value
        self._fresh.clear()

    @property
    def count(self) -> int:
        """How many values."""
        self._settle()
        return self._count

    @property
    def total(self) -> int:
        """Their exact sum."""
        self._settle()
        return self._total

    @property
    def max(self) -> int:
        """The largest, exactly."""
        self._settle()
        return self._max

    def merge(self, other: Histogram) -> None:
        """Adds all counts of ``other``."""
        self._settle()
        other._settle()
        for bucket, times in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + times
        self._count += other._count
        self._total += other._total
        self._max = max(self._max, other._max)

    def quantile(self, ppm: int) -> int:
        """Smallest bucket top with at least ``ppm`` millionths of the values at or below it; 0 if empty."""
        rank = -(-self.count * ppm // limits.PPM)
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return min(bucket_top(bucket), self.max)
        return 0

    def cumulated(self, bounds: Sequence[int]) -> tuple[int, ...]:
        """For each of the ascending ``bounds``, how many values lie in buckets wholly at or below it."""
        self._settle()
        counts: list[int] = []
        buckets, at, seen = sorted(self._buckets.items()), 0, 0
        for bound in bounds:
            while at < len(buckets) and bucket_top(buckets[at][0]) <= bound:
                seen += buckets[at][1]
                at += 1
            counts.append(seen)
        return tuple(counts)

    def summary(self) -> LatencySummary:
        """Count, mean, p50, p99, p99.9 and maximum."""
        mean = self.total // self.count if self.count else 0
        return LatencySummary(
            self.count, mean, self.quantile(500_000), self.quantile(990_000), self.quantile(999_000), self.max
        )  # fmt: skip
