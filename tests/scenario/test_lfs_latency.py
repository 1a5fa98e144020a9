"""Latencies from debts: Lindley's recursion by cumulative sums is the queue played step by step."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from uxk.scenario.lfs.latency import latencies_ns, measure

debts = st.lists(st.integers(0, 600) | st.just(0), max_size=200)
times = st.integers(0, 5_000)


def played(debt: list[int], write_ns: int, read_ns: int, program_ns: int) -> list[int]:
    """One server, first come, first served."""
    free_ns, found = 0, []
    for number, moved in enumerate(debt):
        arrives_ns = number * write_ns
        free_ns = max(free_ns, arrives_ns) + program_ns + moved * (read_ns + program_ns)
        found.append(free_ns - arrives_ns)
    return found


@given(debts, st.integers(1, 50_000), times, times)
def test_latencies_are_those_of_the_queue(debt: list[int], write_ns: int, read_ns: int, program_ns: int) -> None:
    found = latencies_ns(np.array(debt, np.int32), write_ns=write_ns, read_ns=read_ns, program_ns=program_ns)
    assert found.tolist() == played(debt, write_ns, read_ns, program_ns)


@given(debts.filter(bool), st.integers(1, 50_000))
def test_quantiles_are_latencies_of_writes(debt: list[int], write_ns: int) -> None:
    found = measure(np.array(debt, np.int32), write_ns=write_ns, read_ns=1_000, program_ns=2_000)
    ordered = sorted(played(debt, write_ns, 1_000, 2_000))
    assert found.max_ns == ordered[-1]
    assert found.p50_ns == ordered[(len(debt) + 1) // 2 - 1]
    assert found.p999_ns == ordered[-1]  # of less than a thousand writes
    assert found.stalls == sum(moved > 0 for moved in debt)
    assert found.longest_stall_ns == max(debt) * 3_000


def test_too_much_work_is_told() -> None:
    found = measure(np.full(100, 5, np.int32), write_ns=10_000, read_ns=1_000, program_ns=2_000)
    assert found.utilisation_ppm == 1_700_000
    assert found.p50_ns < found.max_ns == 17_000 + 99 * 7_000
