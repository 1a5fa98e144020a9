"""From requests to page writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.errors import ConfigError
from uxk.scenario.trace import Trace, TraceOp, read_trace, to_pages

SHARED = Path("/work/shared/data")
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="third-party traces are not here")

Request = tuple[TraceOp, int, int, int]
"""Operation, offset, length, device."""


def trace_of(requests: list[Request], times_ns: list[int] | None = None) -> Trace:
    op, offset, length, device = (np.array(column, np.int64) for column in zip(*requests, strict=True))
    time = np.array(times_ns if times_ns is not None else range(len(requests)), np.int64)
    devices = tuple(map(str, range(int(device.max()) + 1)))
    return Trace(
        time, op.astype(np.uint8), offset, length, device.astype(np.int32), devices, "made", "made", len(op), 0, 0, ()
    )


request = st.tuples(
    st.sampled_from(list(TraceOp)),
    st.one_of(st.integers(0, 1 << 16), st.integers(0, 1 << 50)),
    st.integers(1, 20000),
    st.integers(0, 2),
)


@given(
    requests=st.lists(request, min_size=1, max_size=30),
    page_bytes=st.sampled_from([512, 1000, 4096]),
    sparse=st.sampled_from([0, 1 << 20]),
)
def test_same_as_page_by_page(requests: list[Request], page_bytes: int, sparse: int) -> None:
    wanted: list[tuple[int, int]] = []
    arrivals: list[int] = []
    for i, (op, offset, length, device) in enumerate(requests):
        if op is TraceOp.WRITE:
            touched = range(offset // page_bytes, (offset + length - 1) // page_bytes + 1)
            wanted += [(device, page) for page in touched]
            arrivals += [i] * len(touched)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uxk.scenario.trace.split._SMALL", sparse)
        if not wanted:
            with pytest.raises(ConfigError, match="no write in"):
                to_pages(trace_of(requests), page_bytes)
            return
        by_address = to_pages(trace_of(requests), page_bytes, arrivals=True)
        by_first = to_pages(trace_of(requests), page_bytes, order="first")
    rank = {page: i for i, page in enumerate(sorted(set(wanted)))}
    first = {page: i for i, page in enumerate(dict.fromkeys(wanted))}
    assert by_address.pages.tolist() == [rank[page] for page in wanted]
    assert by_first.pages.tolist() == [first[page] for page in wanted]
    assert by_address.volume_pages == by_first.volume_pages == len(rank)
    assert by_address.user_writes == len(wanted)
    assert by_address.arrival_ns is not None and by_address.arrival_ns.tolist() == [t - arrivals[0] for t in arrivals]


def test_arrivals_never_step_back() -> None:
    trace = trace_of([(TraceOp.WRITE, 0, 8192, 0)] * 3, [5, 3, 9])
    arrival_ns = to_pages(trace, arrivals=True).arrival_ns
    assert arrival_ns is not None and arrival_ns.tolist() == [0, 0, 0, 0, 4, 4]


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = trace_of([(TraceOp.WRITE, 0, 1 << 20, 0)])
    monkeypatch.setattr("uxk.scenario.trace.split.PAGE_WRITES_MAX", 255)
    with pytest.raises(ConfigError, match="256 page writes, more than 255"):
        to_pages(trace)
    with pytest.raises(ConfigError, match="page_bytes=0"):
        to_pages(trace, 0)
    with pytest.raises(ConfigError, match="order='rank'"):
        to_pages(trace, order="rank")  # type: ignore[arg-type]


@needs_data
def test_hplajw() -> None:
    trace = read_trace(SHARED / "hplajw" / "hplajw-1week.srt", "disksim-hp")
    counts = trace.counts()
    assert (counts["requests"], counts["writes"], counts["malformed"]) == (44_519, 31_479, 0)
    pages = to_pages(trace, 1024)
    assert (pages.user_writes, pages.volume_pages) == (197_049, 15_061)


@needs_data
def test_mqsim_sample() -> None:
    trace = read_trace(SHARED / "mqsim-tpcc" / "mqsim-tpcc-small.trace", "mqsim")
    assert trace.counts()["requests"] == 6_999
    assert (trace.counts()["reads"], len(trace.devices)) == (4_381, 16)
