"""Watermarks and dirty limits by their published rules, and what must hold of them whatever the numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.errors import KernelBug, ParamError
from uxk.limits import NS_PER_S
from uxk.subsystems.mm.dirty import CALC_SHIFT, MAX_PAUSE_NS, DirtyLimits, Rates, dirty_limits, position_ratio
from uxk.subsystems.mm.zone import Use, Zone, int_sqrt, watermarks

ONE = 1 << CALC_SHIFT


@given(st.integers(0, 1 << 60))
def test_the_integer_root(value):
    assert int_sqrt(value) == math.isqrt(value)


@pytest.mark.parametrize(
    ("mib", "kbytes"),
    [(16, 512), (32, 724), (64, 1024), (128, 1448), (1024, 4096), (4096, 8192), (8192, 11584), (16384, 16384)],
)
def test_min_free_kbytes_is_what_the_kernel_computes(mib, kbytes):
    """The table in the comment of init_per_zone_wmark_min, mm/page_alloc.c."""
    assert watermarks(mib << 8).min == kbytes // 4


@given(st.integers(256, 1 << 30))
def test_watermarks_are_in_order_and_evenly_apart(pages):
    least, low, high = watermarks(pages)
    assert 0 < least < low < high
    assert low - least == high - low == max(least >> 2, pages * 10 // 10_000)


def test_a_zone_too_small_for_its_marks_is_refused():
    with pytest.raises(ParamError, match="fewer than the high watermark"):
        Zone(64, min_free_kbytes=256)


def test_pages_never_come_from_nowhere():
    zone = Zone(256)
    with pytest.raises(KernelBug, match="257 pages from FREE"):
        zone.move(Use.FREE, Use.ANON, 257)
    with pytest.raises(KernelBug):
        zone.move(Use.DIRTY, Use.CLEAN)
    assert zone.free == 256


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 100), st.integers(0, 100))
def test_limits_follow_dirtyable_memory(anon, dirty, ratio, background):
    zone = Zone(4096)
    zone.move(Use.FREE, Use.ANON, 30 * anon)
    zone.move(Use.FREE, Use.DIRTY, 5 * dirty)
    limits = dirty_limits(zone, ratio, background)
    dirtyable = max(zone.free - zone.marks.high, 0) + 5 * dirty
    assert limits.limit == max(dirtyable * ratio // 100, 1)
    assert 0 <= limits.background < limits.limit
    assert limits.background <= limits.freerun < limits.limit or limits.limit == 1


limits_ = st.tuples(st.integers(0, 1 << 24), st.integers(2, 1 << 24)).map(
    lambda pair: DirtyLimits(pair[0], pair[0] + pair[1])
)


@given(limits_, st.integers(0, 1 << 25), st.integers(0, 1 << 25))
def test_the_more_is_dirty_the_slower(limits, one, other):
    few, many = sorted((one, other))
    assert 0 <= position_ratio(many, limits) <= position_ratio(few, limits) <= 2 * ONE


@given(limits_)
def test_the_position_ratio_at_its_three_points(limits):
    assert position_ratio(limits.limit, limits) == 0
    assert position_ratio((limits.freerun + limits.limit) // 2, limits) == ONE
    if limits.limit - limits.freerun > 1 << 12:
        assert 2 * ONE - position_ratio(limits.freerun, limits) <= ONE >> 4


@given(st.lists(st.tuples(st.integers(1, NS_PER_S), st.integers(0, 1 << 20), st.integers(0, 1 << 20),
                          st.integers(0, 2 * ONE)), max_size=30))  # fmt: skip
def test_rates_stay_above_zero_and_pauses_within_bounds(steps):
    rates, now_ns, dirtied, written = Rates(), 0, 0, 0
    for wait_ns, more_dirtied, more_written, ratio in steps:
        now_ns, dirtied, written = now_ns + wait_ns, dirtied + more_dirtied, written + more_written
        rates.update(now_ns, dirtied, written, ratio)
        assert rates.written > 0
        assert rates.base > 0
        assert 0 <= rates.pause_ns(32, ratio, more_dirtied) <= MAX_PAUSE_NS
        assert rates.pause_ns(32, 0, more_dirtied) > 0  # at the limit nobody spins


def test_the_base_rate_settles_at_the_share_of_the_device():
    rates, now_ns, dirtied, written = Rates(), 0, 0, 0
    for _ in range(200):  # a device of 5,000 pages a second, and four tasks that dirty as fast as they may
        now_ns += NS_PER_S // 5
        dirtied += 4 * rates.base // 5
        written += 1_000
        rates.update(now_ns, dirtied, written, ONE)
    assert abs(rates.written - 5_000) < 50
    assert abs(rates.base - 1_250) < 50
