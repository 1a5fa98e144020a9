"""Page workloads: what their names promise."""

from __future__ import annotations

import lzma
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uxk.errors import ConfigError
from uxk.scenario.pages import HOLDOUTS, WORKLOADS, bundled, load_pages, workload_names
from uxk.scenario.pages.synthetic import Zipf

N = 4096
M = 20 * N
FAMILIES = (*WORKLOADS, *HOLDOUTS)


def writes_of(name: str, seed: int = 1) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    run = load_pages(name, pages=N, writes=M, seed=seed)
    return run.pages[run.fill :].astype(np.int64)


def share_of_top(writes: np.ndarray[tuple[int], np.dtype[np.int64]], share: float) -> float:
    counts = np.sort(np.bincount(writes, minlength=N))[::-1]
    return float(counts[: round(share * N)].sum() / len(writes))


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=10)
@given(pages=st.integers(16, 300), writes=st.integers(0, 700), seed=st.integers(0, 9))
def test_fill_then_writes_within_the_volume(name: str, pages: int, writes: int, seed: int) -> None:
    run = load_pages(name, pages=pages, writes=writes, seed=seed)
    assert (run.name, run.fill, run.volume_pages, run.user_writes) == (name, pages, pages, pages + writes)
    assert run.pages[:pages].tolist() == list(range(pages))
    assert run.pages.min() >= 0 and run.pages.max() < pages
    again = load_pages(name, pages=pages, writes=writes, seed=seed)
    assert np.array_equal(run.pages, again.pages)


@pytest.mark.parametrize("name", FAMILIES)
def test_seeds_matter_and_a_generator_is_taken(name: str) -> None:
    assert not np.array_equal(writes_of(name, 1), writes_of(name, 2))
    one, two = (load_pages(name, pages=64, writes=99, seed=np.random.default_rng(5)).pages for _ in range(2))
    assert np.array_equal(one, two)


def test_defaults() -> None:
    run = load_pages("uniform")
    assert (run.fill, run.user_writes, run.pages.dtype) == (262_144, 11 * 262_144, np.int32)


@pytest.mark.parametrize(("name", "s"), [("zipf0.9", 0.9), ("zipf1.0", 1.0), ("zipf1.2", 1.2)])
def test_zipf_is_zipf(name: str, s: float) -> None:
    counts = np.sort(np.bincount(writes_of(name), minlength=N))[::-1]
    expected = np.arange(1, N + 1) ** -s
    expected *= M / expected.sum()
    assert np.abs(counts[:20] / expected[:20] - 1).max() < 0.2
    assert abs(counts[: N // 10].sum() / expected[: N // 10].sum() - 1) < 0.02
    top = np.argsort(np.bincount(writes_of(name), minlength=N))[::-1][:100]
    assert np.abs(np.diff(top)).mean() > N / 10  # popular pages are not neighbours


def test_zipf_ranks_of_one_page() -> None:
    assert Zipf(1, 1.0).ranks(5, np.random.default_rng(0)).tolist() == [0] * 5


@pytest.mark.parametrize(("name", "hot"), [("hot-cold-80-20", 0.8), ("hot-cold-90-10", 0.9)])
def test_hot_and_cold(name: str, hot: float) -> None:
    assert abs(share_of_top(writes_of(name), 1 - hot) - hot) < 0.02


def test_shifting_zipf_shifts() -> None:
    parts = np.array_split(writes_of("shifting-zipf"), 11)
    popular = [set(np.argsort(np.bincount(part, minlength=N))[::-1][:50].tolist()) for part in parts]
    stay = [len(a & b) for a, b in pairwise(popular)]
    assert len(stay) == 10
    assert 20 <= np.mean(stay) <= 42
    assert len(popular[0] & popular[10]) < 15


def test_mixed_is_three_things() -> None:
    writes = writes_of("mixed")
    journal, table = round(0.02 * N), round(0.5 * N)
    in_journal, in_scan = writes < journal, writes >= journal + table
    assert abs(in_journal.mean() - 0.30) < 0.01
    assert abs(in_scan.mean() - 0.15) < 0.01
    assert set(np.diff(writes[in_journal]).tolist()) == {1, 1 - journal}
    assert set(np.diff(writes[in_scan]).tolist()) == {1, 1 + journal + table - N}


def test_holdouts_differ_from_one_another() -> None:
    assert len(HOLDOUTS) >= 5 and all(name.startswith("holdout-") for name in HOLDOUTS)
    shares = {name: round(share_of_top(writes_of(name), 0.05), 2) for name in HOLDOUTS}
    assert shares["holdout-recurring"] > 2 * shares["holdout-drift"]
    files = writes_of("holdout-files")
    assert (np.diff(files) == 1).mean() > 0.7
    log = writes_of("holdout-log-random")
    assert abs((log < N // 4).mean() - 0.5) < 0.02
    # Distances at which writes recur have a heavy tail: the median is small beside the mean.
    recurring = writes_of("holdout-recurring")
    order = np.argsort(recurring, kind="stable")
    gaps = np.diff(order)[recurring[order][1:] == recurring[order][:-1]]
    assert np.median(gaps) * 10 < gaps.mean()


def test_unknown_and_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"workload 'zipf-1.0' \(did you mean 'zipf1.0'\?\): expected zipf0.9, "):
        load_pages("zipf-1.0")
    with pytest.raises(ConfigError, match="pages=15 for mixed: expected 16 to"):
        load_pages("mixed", pages=15)
    with pytest.raises(ConfigError, match="writes=-1 for mixed"):
        load_pages("mixed", writes=-1)


def test_bundled_by_name(tmp_path: Path) -> None:
    plain = tmp_path / "a.pages.npy"
    np.save(plain, np.array([7, 9, 7, 1 << 33], np.int64))
    (tmp_path / "b.blkparse.xz").write_bytes(
        lzma.compress(b"8,0 1 1 0.5 1 D W 8 + 16 [a]\n8,0 1 1 0.75 1 D W 0 + 8 [a]\n")
    )
    (tmp_path / "README.md").write_text("how they were made")
    assert {name: one.format for name, one in bundled(tmp_path).items()} == {"a": "pages", "b": "blkparse"}
    run = load_pages("a", folder=tmp_path, pages=99, seed=7)
    assert (run.pages.tolist(), run.fill, run.volume_pages, run.arrival_ns) == ([0, 1, 0, 2], 0, 3, None)
    run = load_pages("b", folder=tmp_path, writes=2)
    assert run.pages.tolist() == [1, 2]
    assert run.arrival_ns is not None and run.arrival_ns.tolist() == [0, 0]
    with pytest.raises(ConfigError, match=r"'c'.*uniform, holdout-.*, a, b"):
        load_pages("c", folder=tmp_path)
    assert bundled(tmp_path / "missing") == {}


def test_bundled_names_are_workloads() -> None:
    names = workload_names()
    assert len(set(names)) == len(names)
    for name, one in bundled().items():
        run = load_pages(name)
        assert run.user_writes >= 5 * run.volume_pages, f"{one.path}: too little is overwritten to collect anything"
        assert np.array_equal(np.unique(run.pages), np.arange(run.volume_pages))
