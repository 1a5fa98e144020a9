"""Two engines, one meaning; and the figures of a second source."""

from __future__ import annotations

import os
import statistics
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from bench.lfs_validation import EXACT, OVERWRITES, TABLE, TOLERANCE, amplification, next_writes, workload
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs import fast, policies
from uxk.subsystems.lfs.fast.kernel import run
from uxk.subsystems.lfs.fast.volume import Volume as Arrays
from uxk.subsystems.lfs.fast.volume import make_volume, set_policy
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.policies.lifetimes import FIRST_SEGMENTS
from uxk.subsystems.lfs.policy import PLACEMENTS, SELECTIONS
from uxk.subsystems.lfs.reference import OPEN, Volume, VolumeFull

SOAK = bool(os.environ.get("UXK_SOAK"))
SEEDS = range(1, 6) if SOAK else range(1, 2)
GEOMETRY = Geometry(pages=600, segment_blocks=8)
PARTS = 3


def codes_of(name: str) -> tuple[int, int]:
    """What the batch kernel calls a policy."""
    policy = policies.lookup(name, future=[1], table=b"")
    name = policy.placement.name
    return c.F2FS if name == "f2fs" else PLACEMENTS[name], SELECTIONS[policy.selection.name]


def arrays(geometry: Geometry, name: str, aux: np.ndarray | None) -> Arrays:
    """The batch kernel's volume under a policy."""
    made = make_volume(geometry.pages, geometry.segment_blocks, geometry.gp_ppm, geometry.logs, aux)
    set_policy(made, *codes_of(name), (FIRST_SEGMENTS,) if name.startswith("fkg6") else ())
    return made


def registers(made: Arrays) -> dict[str, int]:
    """Its counters, by the reference's names."""
    names = ("now", "moved", "garbage", "total", "cleaned", "valid", "stuck", "low")
    return {name: int(made.reg[getattr(c, name.upper())]) for name in names}


def assert_equal(slow: Volume, made: Arrays) -> None:
    """Every number that both have: mapping, segments, logs, the clean ones in order, counters."""
    assert {name: getattr(slow, name) for name in registers(made)} == registers(made)
    assert made.page[: slow.pages, c.BLOCK].tolist() == list(slow.block_of)
    assert made.page[: slow.pages, c.LAST].tolist() == list(slow.last)
    assert made.seg[:, c.LIVE].tolist() == [live & (OPEN - 1) for live in slow.live]
    assert made.seg[:, c.USED].tolist() == slow.used
    assert made.seg[:, c.CLASS].tolist() == slow.log_of
    assert made.seg[:, c.SEALED].tolist() == slow.sealed_at
    assert made.seg[: len(slow.clean), c.STACK].tolist() == slow.clean
    assert made.reg[c.HEAD : c.HEAD + slow.logs].tolist() == slow.heads
    slow.check()


def both(name: str, geometry: Geometry, ops: np.ndarray, table: bytes | None = None) -> None:
    """Runs both engines in step over parts of the writes, and compares after each."""
    future = next_writes(ops)
    aux = (
        future if name.startswith("fk") else None if table is None else np.frombuffer(table, np.uint8).astype(np.int64)
    )
    slow = Volume(geometry, policies.lookup(name, future=future.tolist(), table=table))
    made = arrays(geometry, name, aux)
    edges = np.linspace(0, len(ops), PARTS + 1).astype(int).tolist()
    for start, stop in pairwise(edges):
        slow.run(ops[start:stop])
        run(*made, ops, start, stop)
        assert_equal(slow, made)


def skewed(pages: int, writes: int, seed: int) -> np.ndarray:
    """Fill, then writes of which most go to few pages, and the few are others in each quarter."""
    rng = np.random.default_rng(seed)
    quarters = [(rng.random(writes // 4) ** 4 * pages).astype(np.int64) for _ in range(4)]
    drawn = [(part + number * pages // 5) % pages for number, part in enumerate(quarters)]
    return np.concatenate([np.arange(pages), *drawn]).astype(np.int32)


# --- block for block ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", policies.names())
def test_engines_agree_on_skewed_writes(name: str) -> None:
    seed = policies.names().index(name)
    both(name, GEOMETRY, skewed(GEOMETRY.pages, 7_200, seed))


@settings(max_examples=400 if SOAK else 60)
@given(st.data())
def test_engines_agree_on_anything(data: st.DataObject) -> None:
    pages = data.draw(st.integers(2, 300))
    geometry = Geometry(
        pages=pages,
        segment_blocks=data.draw(st.integers(2, 20)),
        gp_ppm=data.draw(st.integers(20_000, 600_000)),
        logs=data.draw(st.integers(4, 9)),
    )
    head = data.draw(st.lists(st.integers(0, pages - 1), max_size=60))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    tail = rng.random(data.draw(st.integers(1, 1_500))) ** data.draw(st.integers(1, 5)) * pages
    ops = np.concatenate([np.array(head, np.int32), tail.astype(np.int32)]).astype(np.int32)
    both(data.draw(st.sampled_from(policies.names())), geometry, ops)


@given(st.sampled_from(policies.HUMANS), st.integers(0, 3), st.integers(0, 99))
def test_engines_run_full_at_the_same_write(name: str, spare: int, seed: int) -> None:
    """Few segments and much garbage: one raises, the other stops, after the same steps."""
    pages, size, logs = 120, 8, 6
    geometry = Geometry(pages, size, 400_000, logs, segments=-(-pages // size) + logs + 1 + spare)
    ops = skewed(pages, 2_000, seed)
    slow = Volume(geometry, policies.lookup(name))
    made = make_volume(pages, size, geometry.gp_ppm, logs, None, geometry.segments)
    set_policy(made, *codes_of(name))
    stopped = run(*made, ops, 0, len(ops))
    full = False
    try:
        slow.run(ops)
    except VolumeFull:
        full = True
    assert (full, slow.now) == (bool(made.reg[c.FULL]), stopped)
    assert_equal(slow, made)


def test_engines_agree_on_tables() -> None:
    table = bytes((page * 7 % 5, 255, 2)[page % 3] for page in range(GEOMETRY.pages))
    both("table/cb-age", GEOMETRY, skewed(GEOMETRY.pages, 7_200, 1), table)


def test_every_published_policy_is_in_the_batch_kernel() -> None:
    assert fast.__doc__
    for name in policies.HUMANS:
        placement, selection = codes_of(name)
        assert placement >= 0 <= selection


# --- the second source ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn() -> dict[int, np.ndarray]:
    """The stated run, by seed: 262,144 pages, fill and ten times as many writes of zipf 1.0."""
    return {seed: workload("zipf1.0", seed) for seed in SEEDS}


@pytest.mark.parametrize("name", EXACT)
def test_figures_of_sepbits_simulator(name: str, drawn: dict[int, np.ndarray]) -> None:
    """Within 0.5 %; ``make soak`` takes the mean of five seeds, as does ``python -m bench.lfs_validation``."""
    found = [amplification(name, ops, next_writes(ops) if name == "fk/greedy" else None) for ops in drawn.values()]
    assert statistics.mean(found) == pytest.approx(EXACT[name], rel=TOLERANCE)


@pytest.mark.parametrize(
    "name", [name for name in TABLE if name not in EXACT] if SOAK else ["sfs/cb-sqrt", "warcip/greedy"]
)
def test_the_other_placements_too(name: str, drawn: dict[int, np.ndarray]) -> None:
    """Their figures have two decimals: one per cent."""
    found = amplification(name, drawn[1], next_writes(drawn[1]) if name.startswith("fk/") else None)
    assert found == pytest.approx(TABLE[name][1], rel=0.01)


def test_the_stated_run(drawn: dict[int, np.ndarray]) -> None:
    ops = drawn[1]
    assert len(ops) == 262_144 * (1 + OVERWRITES)
    assert ops[:262_144].tolist() == list(range(262_144))
    assert workload("mixed", 3, pages=1_000).tolist() == workload("mixed", 3, pages=1_000).tolist()


def test_next_writes_on_arrays() -> None:
    ops = np.array([3, 1, 3, 3, 2, 1], np.int32)
    assert next_writes(ops).tolist() == list(policies.next_writes(ops.tolist()))
