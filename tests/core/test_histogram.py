from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.core.histogram import BUCKETS_MAX, Histogram, bucket_of, bucket_top
from uxk.limits import I64_MAX, PPM

values = st.integers(0, 200) | st.integers(0, I64_MAX) | st.sampled_from([1 << n for n in range(63)])


@given(st.integers(-5, I64_MAX))
def test_a_value_lies_in_its_bucket_and_the_bucket_is_narrow(value: int) -> None:
    bucket = bucket_of(value)
    assert 0 <= bucket < BUCKETS_MAX
    assert max(value, 0) <= bucket_top(bucket) <= max(value, 0) + max(value, 0) // 32
    assert bucket == 0 or bucket_top(bucket - 1) < max(value, 0)


@given(st.integers(0, BUCKETS_MAX - 1))
def test_tops_are_the_last_values_of_their_buckets(bucket: int) -> None:
    assert bucket_of(bucket_top(bucket)) == bucket
    assert bucket == BUCKETS_MAX - 1 or bucket_of(bucket_top(bucket) + 1) == bucket + 1


def exact_quantile(recorded: list[int], ppm: int) -> int:
    rank = -(-len(recorded) * ppm // PPM)
    return sorted(recorded)[max(rank, 1) - 1]


@given(st.lists(st.tuples(values, st.integers(1, 5)), min_size=1, max_size=60), st.integers(0, PPM))
def test_quantiles_are_at_most_a_32nd_above_the_exact_ones(recorded: list[tuple[int, int]], ppm: int) -> None:
    histogram = Histogram()
    for value, times in recorded:
        histogram.record(value, times)
    flat = [value for value, times in recorded for _ in range(times)]
    assert (histogram.count, histogram.total, histogram.max) == (len(flat), sum(flat), max(flat))
    exact = exact_quantile(flat, ppm)
    assert exact <= histogram.quantile(ppm) <= exact + exact // 32
    assert histogram.quantile(PPM) == max(flat)
    assert histogram.summary().mean_ns == sum(flat) // len(flat)


@given(st.lists(values, max_size=30), st.lists(values, max_size=30))
def test_merging_is_the_same_as_recording_both(left: list[int], right: list[int]) -> None:
    one, two, both = Histogram(), Histogram(), Histogram()
    for histogram, recorded in ((one, left), (two, right), (both, left + right)):
        for value in recorded:
            histogram.record(value)
    one.merge(two)
    assert (one._buckets, one.summary()) == (both._buckets, both.summary())


def test_values_out_of_range_count_at_the_ends() -> None:
    histogram = Histogram()
    histogram.record(-7)
    histogram.record(1 << 80)
    assert histogram.quantile(1) == 0
    assert histogram.count == 2
    assert histogram.quantile(PPM) >= I64_MAX


def test_an_empty_histogram_is_all_zeros() -> None:
    assert Histogram().summary() == (0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("ppm", [1, 500_000, 990_000, 999_999])
def test_one_value_is_every_quantile(ppm: int) -> None:
    histogram = Histogram()
    histogram.record(123_456_789, 7)
    assert histogram.quantile(ppm) == 123_456_789
