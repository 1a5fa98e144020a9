from __future__ import annotations

import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from uxk.core.evidence import SCALES_PPM, Alarm, Correlation, Evidence, difference_ppm
from uxk.core.fixed import ONE, exp, ln, log_cosh, ratio
from uxk.core.mode import ModeConfig
from uxk.errors import KernelBug

ALPHA_PPM = 50_000
EPOCHS = 60


def promoted_after(differences: NDArray[np.float64]) -> int | None:
    evidence = Evidence(ALPHA_PPM, correlation_ppm=ModeConfig().correlation_ppm)
    for value in differences:
        evidence.add(int(value * 1e6))
        if evidence.epochs >= ModeConfig().epochs_min and evidence.reached:
            return evidence.epochs
    return None


# --- arithmetic ---


@given(st.floats(-30, 30))
def test_exponential_and_logarithm_are_those_of_the_reals(x: float) -> None:
    value = int(x * ONE)
    assert exp(value) / ONE == pytest.approx(math.exp(x), rel=1e-10, abs=1e-11)
    assert log_cosh(value) / ONE == pytest.approx(math.log(math.cosh(x)), rel=1e-9, abs=1e-11)
    assert ln(int(math.exp(x) * ONE) or 1) / ONE == pytest.approx(x, abs=1e-11 * math.exp(-x) + 1e-9)


def test_there_is_no_logarithm_of_nothing() -> None:
    with pytest.raises(KernelBug, match="ln of 0"):
        ln(0)


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9))
def test_opposite_numbers_have_opposite_ratios(numerator: int, denominator: int) -> None:
    assert ratio(numerator, denominator) == -ratio(-numerator, denominator)


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_exchanging_the_arms_changes_the_sign_of_their_difference(a: int, b: int) -> None:
    assert difference_ppm(a, b) == -difference_ppm(b, a)
    assert abs(difference_ppm(a, b)) < 1_000_000
    assert (difference_ppm(a, b) > 0) <= (a > b)


@given(st.integers(-999_999, 999_999), st.sampled_from(SCALES_PPM))
def test_every_bet_is_fair_if_either_sign_is_as_likely(difference: int, scale: int) -> None:
    gain = ratio(difference, scale)
    means = [exp(sign * gain - log_cosh(gain)) for sign in (1, -1)]
    assert sum(means) / 2 == pytest.approx(ONE, rel=1e-9)


@given(st.lists(st.integers(-999_999, 999_999), max_size=20), st.integers(0, 999_999))
def test_an_epoch_with_a_sign_of_chance_adds_nothing_on_average(history: list[int], size: int) -> None:
    """The martingale itself: without the correction, the wealth after either sign has the mean of the wealth before.

    Checked on the bets, where no start begins; a start adds its own weight, and all weights are 1 together.
    """
    values = []
    with patch.object(Correlation, "inflation", lambda self, epochs: ONE):
        for last in ([size], [-size], []):
            evidence = Evidence(ALPHA_PPM)
            for difference in [*history, *last]:
                evidence.add(difference)
            values.append(math.exp(evidence.log_value / ONE))
    up, down, before = values
    k = (len(history) // 8) + 1
    started = 1 / (k * (k + 1)) if len(history) % 8 == 0 else 0.0
    assert (up + down) / 2 == pytest.approx(before + started, rel=1e-6)


# --- error rates ---


@pytest.mark.parametrize("noise", ["normal 1 %", "normal 3 %", "AR(0.3) 3 %", "t2", "cauchy"])
def test_hints_without_an_effect_are_promoted_at_most_as_often_as_stated(noise: str) -> None:
    """1,000 null runs altogether, looked at after every epoch; ``bench/evidence.py`` makes 1,000 of each."""
    count = 0
    for run in range(200):
        random = np.random.default_rng([run, len(noise)])
        if noise.startswith("AR"):
            drawn = random.normal(0, 0.0286, EPOCHS)
            for i in range(1, EPOCHS):
                drawn[i] += 0.3 * drawn[i - 1]
        elif noise.startswith("normal"):
            drawn = random.normal(0, int(noise.split()[1]) / 100, EPOCHS)
        else:
            drawn = np.clip(0.03 * random.standard_t(2 if noise == "t2" else 1, EPOCHS), -0.99, 0.99)
        count += promoted_after(drawn) is not None
    assert count <= 200 * ALPHA_PPM // 1_000_000


@pytest.mark.parametrize(("effect", "noise", "epochs"), [(0.05, 0.03, 16), (0.10, 0.03, 16), (0.02, 0.03, 60)])
def test_a_real_effect_is_found_soon(effect: float, noise: float, epochs: int) -> None:
    found = [promoted_after(effect + np.random.default_rng(run).normal(0, noise, 200)) or 200 for run in range(40)]
    assert np.median(found) <= epochs


def test_an_effect_that_comes_late_is_found_all_the_same() -> None:
    random = np.random.default_rng(1)
    drawn = np.where(np.arange(120) < 60, -0.05, 0.05) + random.normal(0, 0.02, 120)
    found = promoted_after(drawn)
    assert found is not None and 60 < found <= 90


def test_a_later_test_shares_alpha_with_the_one_before() -> None:
    first, later = Evidence(ALPHA_PPM), Evidence(ALPHA_PPM, starts=9)
    for _ in range(6):
        first.add(50_000)
        later.add(50_000)
    assert first.log_value > later.log_value
    assert (first.starts, later.starts) == (1, 10)


@given(st.lists(st.integers(-1_000_000, 1_000_000), max_size=80))
def test_any_history_is_judged_without_a_fuss(history: list[int]) -> None:
    evidence, alarm = Evidence(ALPHA_PPM), Alarm(1000)
    for difference in history:
        evidence.add(difference)
        alarm.add(difference)
        assert evidence.reached == (evidence.log_value >= ln(20 * ONE))
    assert alarm.log_value >= 0
    assert f"after {len(history)} epochs" in str(evidence) and "ln e" in str(alarm)


# --- correlation ---


def test_correlated_epochs_count_for_less() -> None:
    def inflation(values: list[int]) -> int:
        correlation = Correlation()
        for value in values:
            correlation.add(value)
        return correlation.inflation()

    assert inflation([]) == inflation([5, 5, 5, 5]) == inflation([1, -1] * 16) == ONE
    assert inflation([10, 11, 12, 13, 14, 15, 16, 17] * 2) > 2 * ONE
    assert inflation(list(range(32))) == 4 * ONE


# --- the other way ---


def test_the_alarm_hears_of_a_turn_for_the_worse_whatever_was_before() -> None:
    alarm = Alarm(1000)
    random = np.random.default_rng(3)
    for value in random.normal(0.1, 0.03, 300):
        alarm.add(int(value * 1e6))
        assert not alarm.reached
    delay = 0
    while not alarm.reached:
        alarm.add(int(random.normal(-0.05, 0.03) * 1e6))
        delay += 1
    assert 6 <= delay <= 40


def test_a_long_bad_time_need_not_be_outweighed_when_good_times_come() -> None:
    alarm = Alarm(1000)
    for _ in range(5000):
        alarm.add(-10_000)
    assert alarm.reached
    delay = 0
    while alarm.reached:
        alarm.add(50_000)
        delay += 1
    assert delay <= 16


def test_false_alarms_are_as_rare_as_stated() -> None:
    runs, epochs, alarms = 20, 200, 0
    for run in range(runs):
        alarm = Alarm(200)
        for value in np.random.default_rng(run).normal(0, 0.03, epochs):
            alarm.add(int(value * 1e6))
            if alarm.reached:
                alarms += 1
                alarm = Alarm(200)
    assert alarms * 200 <= runs * epochs
