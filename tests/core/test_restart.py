from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.core.restart import GiveUp, Restart, Restarter, Stay
from uxk.errors import KernelBug
from uxk.uapi.manifest import RestartPolicy


def restarter(**policy: Any) -> Restarter:
    return Restarter(RestartPolicy(**policy))


@pytest.mark.parametrize(
    ("mode", "after_crash", "after_end"),
    [("permanent", Restart, Restart), ("transient", Restart, Stay), ("temporary", Stay, Stay)],
)
def test_modes(mode: str, after_crash: type, after_end: type) -> None:
    assert isinstance(restarter(mode=mode).on_exit(0, crashed=True), after_crash)
    assert isinstance(restarter(mode=mode).on_exit(0, crashed=False), after_end)


def test_back_off_doubles_to_its_maximum_and_resets_after_quiet() -> None:
    r = restarter(max_restarts=100, period_ns=1000, backoff_ns=10, backoff_max_ns=50)
    delays: list[int] = []
    for now in (0, 1, 2, 3, 4):
        answer = r.on_exit(now, crashed=True)
        assert isinstance(answer, Restart)
        delays.append(answer.delay_ns)
    assert delays == [10, 20, 40, 50, 50]
    assert r.restarts == 5
    assert r.on_exit(4 + 50 + 999, crashed=True) == Restart(50)
    assert r.on_exit(4 + 50 + 999 + 50 + 1000, crashed=True) == Restart(10)
    assert r.restarts == 7


def test_waiting_is_not_quiet() -> None:
    r = restarter(max_restarts=9, period_ns=10, backoff_ns=100, backoff_max_ns=1000)
    assert r.on_exit(0, crashed=True) == Restart(100)
    assert r.on_exit(100, crashed=True) == Restart(200)
    assert r.on_exit(300, crashed=True) == Restart(400)


def test_intensity_is_otps() -> None:
    r = restarter(max_restarts=2, period_ns=10, backoff_ns=0)
    assert [r.on_exit(t, crashed=True) for t in (0, 5)] == [Restart(0), Restart(0)]
    answer = r.on_exit(10, crashed=True)
    assert isinstance(answer, GiveUp)
    assert "3 exits within 10 ns" in answer.reason
    assert r.on_exit(10**9, crashed=True) is answer, "giving up is final"
    late = restarter(max_restarts=2, period_ns=10, backoff_ns=0)
    assert [late.on_exit(t, crashed=True) for t in (0, 5, 11)] == [Restart(0)] * 3


def test_zero_restarts_and_huge_rows() -> None:
    assert isinstance(restarter(max_restarts=0).on_exit(7, crashed=True), GiveUp)
    r = restarter(max_restarts=1024, period_ns=1, backoff_ns=1, backoff_max_ns=1 << 62)
    now = 0
    delay_ns = 0
    for _ in range(200):
        answer = r.on_exit(now, crashed=True)
        assert isinstance(answer, Restart)
        delay_ns = answer.delay_ns
        now += delay_ns
    assert delay_ns == 1 << 62


def test_time_cannot_run_backwards() -> None:
    r = restarter()
    r.on_exit(5, crashed=True)
    with pytest.raises(KernelBug, match="before the last at 5 ns"):
        r.on_exit(4, crashed=True)


@given(
    gaps=st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=30),
    max_restarts=st.integers(0, 4), period_ns=st.integers(1, 20),
    backoff_ns=st.integers(0, 3), backoff_max_ns=st.integers(3, 9),
    mode=st.sampled_from(["permanent", "transient", "temporary"]),
)  # fmt: skip
def test_against_a_model_that_remembers_everything(
    gaps: list[tuple[int, bool]], max_restarts: int, period_ns: int, backoff_ns: int,
    backoff_max_ns: int, mode: Any,
) -> None:  # fmt: skip
    policy = RestartPolicy(
        mode=mode, max_restarts=max_restarts, period_ns=period_ns, backoff_ns=backoff_ns,
        backoff_max_ns=backoff_max_ns,
    )  # fmt: skip
    r = Restarter(policy)
    granted: list[tuple[int, int]] = []  # (time of exit, delay)
    row = 0
    times = accumulate(gap for gap, _ in gaps)
    for now, (_, crashed) in zip(times, gaps, strict=True):
        answer = r.on_exit(now, crashed)
        if mode == "temporary" or (mode == "transient" and not crashed):
            assert answer == Stay()
            continue
        in_window = sum(1 for then, _ in granted if now <= then + period_ns) + 1
        if in_window > max_restarts:
            assert isinstance(answer, GiveUp)
            break
        quiet = bool(granted) and now - sum(granted[-1]) >= period_ns
        row = 1 if quiet else row + 1
        delay = min(backoff_ns * 2 ** (row - 1), backoff_max_ns)
        assert answer == Restart(delay)
        granted.append((now, delay))
        assert r.restarts == len(granted)
