"""The batch kernel: its books balance after every write, and it is the reference engine block for block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uxk.errors import ConfigError, ParamError, UsageError
from uxk.limits import PPM
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs import policies
from uxk.subsystems.lfs.fast import pools
from uxk.subsystems.lfs.fast.debt import run_debt
from uxk.subsystems.lfs.fast.kernel import run
from uxk.subsystems.lfs.fast.volume import Volume, check_pages, make_volume, registers, set_policy
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.policy import parse_policy
from uxk.subsystems.lfs.reference import Volume as Reference

PRESETS = {
    "f2fs": (c.F2FS, c.GREEDY),
    "f2fs-atgc": (c.F2FS, c.ATGC),
    "nilfs2": (c.NOSEP, c.TIMESTAMP),
}


class FastVolume:
    """One volume under one policy by name, e.g. ``"sepbit/cb-age"`` or ``"nilfs2"``.

    ``aux`` is each write's next one for ``fk`` and ``fkg6``, or each page's class for ``table``.
    """

    def __init__(
        self, geometry: Geometry, policy: str, args: Sequence[int] = (), aux: npt.ArrayLike | None = None
    ) -> None:
        self.geometry = geometry
        more = None if aux is None else np.ascontiguousarray(aux, np.int64)
        self.volume: Volume = make_volume(
            geometry.pages, geometry.segment_blocks, geometry.gp_ppm, geometry.logs, more, geometry.segments
        )
        self.follow(policy, args)

    def follow(self, policy: str, args: Sequence[int] = ()) -> None:
        """Puts another policy in force from the next write on; :class:`ConfigError` for an unknown name."""
        if policy in PRESETS:
            set_policy(self.volume, *PRESETS[policy], args)
        else:
            set_policy(self.volume, *parse_policy(policy, args).codes)
        self.policy = policy

    def run(self, pages: npt.ArrayLike) -> None:
        """Writes pages under the frozen rule.

        Raises :class:`ParamError` for a page outside the volume, before the first write, and :class:`UsageError`
        when clean segments run out.
        """
        ops = np.ascontiguousarray(pages, np.int32)
        check_pages(ops, self.geometry.pages)
        done = run(*self.volume, ops, 0, len(ops))
        if self.volume.reg[c.FULL]:
            clean, count = self.volume.reg[c.CLEAN], self.volume.reg[c.SEGMENTS]
            raise UsageError(f"write {done} of {len(ops)}: {clean} clean segments of {count} are too few to go on")

    @property
    def wa_ppm(self) -> int:
        """Write amplification, (user + moved) / user blocks, in ppm; 0 before the first write."""
        reg = self.volume.reg
        return int((reg[c.NOW] + reg[c.MOVED]) * PPM // reg[c.NOW]) if reg[c.NOW] else 0

    def statistics(self) -> dict[str, int]:
        """Counts since the beginning, by name."""
        names = {
            "user": c.NOW, "moved": c.MOVED, "garbage": c.GARBAGE, "total": c.TOTAL, "clean": c.CLEAN,
            "cleaned": c.CLEANED, "valid": c.VALID, "stuck": c.STUCK, "clean_min": c.LOW,
        }  # fmt: skip
        return {name: int(self.volume.reg[register]) for name, register in names.items()}


PAGES = 600
NAMES = [*(f"{p}/{s}" for p in (*policies.PLACEMENTS, *policies.ORACLES) for s in policies.SELECTIONS)]


def writes(seed: int, count: int, pages: int = PAGES) -> np.ndarray:
    """A sequential fill, and then skewed writes whose hot pages change half way."""
    rng = np.random.default_rng(seed)
    skewed = rng.random(count) ** 3 * pages
    skewed[count // 2 :] += pages // 3
    return np.concatenate([np.arange(pages), skewed.astype(np.int64) % pages]).astype(np.int32)


def check(volume: Volume) -> None:
    """Every live block is mapped once, every count is what it counts, and pools share nothing."""
    reg, page, seg, owner, _ = volume
    pages, size, segments = (int(reg[k]) for k in (c.PAGES, c.SIZE, c.SEGMENTS))
    blocks = owner.reshape(segments, size)
    assert np.array_equal((blocks >= 0).sum(1), seg[:, c.LIVE])
    assert (blocks[np.arange(size) >= seg[:, c.USED, None]] == -1).all()
    block = page[:pages, c.BLOCK]
    written = np.flatnonzero(block >= 0)
    assert np.array_equal(owner[block[written]], written)
    assert (owner >= 0).sum() == len(written) == reg[c.VALID]
    clean = seg[: reg[c.CLEAN], c.STACK]
    assert sorted(clean) == np.flatnonzero(seg[:, c.USED] == 0).tolist()
    sums = np.zeros(4, np.int64)
    for number in range(int(reg[c.POOLS])):
        pool = registers(volume, number)
        mine = (seg[:, c.POOL] == number) & (seg[:, c.USED] > 0)
        sealed = mine & (seg[:, c.SEALED] >= 0)
        assert pool[c.GARBAGE] == (seg[sealed, c.USED] - seg[sealed, c.LIVE]).sum()
        assert pool[c.TOTAL] == seg[mine, c.USED].sum()
        heads = pool[c.HEAD : c.HEAD + 16]
        assert sorted(heads[heads >= 0]) == np.flatnonzero(mine & ~sealed).tolist()
        sums += pool[[c.GARBAGE, c.TOTAL, c.MOVED, c.USER]]
    assert np.array_equal(sums, reg[[c.GARBAGE, c.TOTAL, c.MOVED, c.NOW]])


def test_equals_the_reference_under_every_policy() -> None:
    ops = writes(1, 5_000)
    future = policies.next_writes(ops.tolist())
    for name in (*NAMES, *policies.PRESETS):
        geometry = Geometry(PAGES, 20 if "cb" in name else 16, 150_000, 6)
        slow = Reference(geometry, policies.lookup(name, future=future))
        slow.run(ops)
        fast = FastVolume(geometry, name, aux=np.array(future) if name.startswith("fk") else None)
        fast.run(ops)
        assert np.array_equal(fast.volume.page[:, c.BLOCK], np.array(slow.block_of)), name
        assert fast.statistics()["clean_min"] == slow.low, name
        assert fast.wa_ppm == slow.wa_ppm, name
        check(fast.volume)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([*NAMES, *policies.PRESETS, "table/greedy", "table/cb-age", "table/mdc"]),
    st.integers(40, 300), st.sampled_from([4, 8, 13, 16]), st.sampled_from([30_000, 150_000, 500_000]),
    st.integers(4, 16), st.integers(0, 999), st.lists(st.integers(0, 39), max_size=100),
    st.lists(st.integers(0, 2_500), max_size=3),
)  # fmt: skip
def test_equals_the_reference_whatever_is_written(
    name: str, pages: int, size: int, gp_ppm: int, logs: int, seed: int, more: list[int], cuts: list[int]
) -> None:
    ops = np.concatenate([np.array(more, np.int32), writes(seed, 2_000, pages), np.array(more, np.int32)])
    future = policies.next_writes(ops.tolist())
    table = np.random.default_rng(seed).integers(0, logs + 3, pages)
    geometry = Geometry(pages, size, gp_ppm, logs)
    slow = Reference(geometry, policies.lookup(name, future=future, table=table.tolist()))
    slow.run(ops)
    slow.check()
    fast = FastVolume(geometry, name, aux=np.array(future) if name.startswith("fk") else table)
    for part in np.split(ops, sorted(cuts)):  # however it is cut into runs
        fast.run(part)
    assert np.array_equal(fast.volume.page[:, c.BLOCK], np.array(slow.block_of))
    counts = fast.statistics()
    found = [counts[key] for key in ("user", "moved", "garbage", "total", "cleaned", "valid", "stuck", "clean_min")]
    expected = [slow.now, slow.moved, slow.garbage, slow.total, slow.cleaned, slow.valid, slow.stuck, slow.low]
    assert found == expected
    assert fast.volume.seg[: counts["clean"], c.STACK].tolist() == slow.clean
    check(fast.volume)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([name for name in NAMES if not name.startswith("fk")]),
    st.sampled_from([8, 12]), st.sampled_from([70_000, 150_000, 400_000]), st.integers(4, 16),
    st.lists(st.integers(0, 99), min_size=200, max_size=500),
)  # fmt: skip
def test_books_balance_after_every_write(name: str, size: int, gp_ppm: int, logs: int, ops: list[int]) -> None:
    fast = FastVolume(Geometry(100, size, gp_ppm, logs), name)
    for page in ops:
        fast.run([page])
        check(fast.volume)
        counts = fast.statistics()
        assert counts["stuck"] or counts["garbage"] * 1_000_000 <= gp_ppm * counts["total"]


OTHERS = ("dac/cb-age", "sfs/mdc", "multilog/atgc", "warcip/greedy", "table/cb-age")
STEPS = st.one_of(
    st.tuples(st.just("share"), st.integers(0, 1024)),
    st.tuples(st.just("adopt"), st.integers(0, 1)),
    st.tuples(st.just("victims"), st.lists(st.integers(-2, 300), max_size=20)),
    st.tuples(
        st.just("policy"), st.sampled_from(["dac/cb-age", "sfs/mdc", "multilog/atgc", "warcip/greedy", "table/cb-age"])
    ),
    st.tuples(st.just("write"), st.integers(0, 1000)),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(STEPS, min_size=3, max_size=12))
def test_pools_balance_whatever_one_does_to_them(steps: list[tuple[str, object]]) -> None:
    volume = make_volume(PAGES, 16, 150_000, 6, np.full(PAGES, 255), pools=2)
    for pool in (0, 1):
        set_policy(volume, *parse_policy("sepbit/cb-age").codes, pool=pool)
    ops = writes(2, 0)
    run(*volume, ops, 0, len(ops))
    for kind, what in [*steps, ("write", 7)]:
        if kind == "share":
            pools.share(volume, what)
        elif kind == "adopt":
            pools.adopt(volume, what)
        elif kind == "victims":
            pools.hint_victims(volume, what, 8)
        elif kind == "policy":
            set_policy(volume, *parse_policy(what).codes, pool=1)
        else:
            ops = writes(what, 400)[PAGES:]
            assert run(*volume, ops, 0, len(ops)) == len(ops), "the frozen rule never runs out of clean segments"
        check(volume)


def two_pools(share: int) -> Volume:
    volume = make_volume(PAGES, 16, 150_000, 6, pools=2)
    for pool in (0, 1):
        set_policy(volume, *parse_policy("sepbit/cb-age").codes, pool=pool)
    pools.share(volume, share)
    return volume


@pytest.mark.parametrize(("share", "pool"), [(0, 0), (1024, 1)])
def test_one_pool_with_all_pages_is_a_volume_of_its_own(share: int, pool: int) -> None:
    ops = writes(3, 6_000)
    alone = FastVolume(Geometry(PAGES, 16, 150_000, 6), "sepbit/cb-age")
    alone.run(ops)
    volume = two_pools(share)
    run(*volume, ops, 0, len(ops))
    assert volume.reg[c.MOVED] == alone.statistics()["moved"] == pools.count(volume, pool).moved
    assert pools.count(volume, 1 - pool) == (0, 0, 0, 0, 0)


def test_a_share_moves_over_and_comes_back_as_blocks_are_written() -> None:
    volume = two_pools(512)
    ops = writes(4, 8_000)
    run(*volume, ops, 0, len(ops))
    hinted = pools.count(volume, 1)
    assert 0 < hinted.user < len(ops)
    pools.share(volume, 0)
    pools.adopt(volume, 0)
    check(volume)
    assert pools.count(volume, 1).total == 0
    run(*volume, ops, 0, len(ops))
    assert pools.count(volume, 1).user == hinted.user


@pytest.mark.parametrize("number", [1, 2])
def test_debt_is_what_each_write_moved(number: int) -> None:
    ops = writes(8, 4_000)
    volumes = [make_volume(PAGES, 16, 150_000, 6, pools=number) for _ in range(2)]
    for volume in volumes:
        for pool in range(number):
            set_policy(volume, *parse_policy("sepbit/cb-age").codes, pool=pool)
        if number == 2:
            pools.share(volume, 512)
    debt = np.full(len(ops) + 2, 7, np.int32)
    assert run_debt(volumes[0], ops, 0, 900, debt) == 900
    assert run_debt(volumes[0], ops, 900, len(ops), debt) == len(ops)
    moved = []
    for at in range(len(ops)):
        run(*volumes[1], ops, at, at + 1)
        moved.append(int(volumes[1].reg[c.MOVED]))
    assert np.diff(moved, prepend=0).tolist() == debt[:-2].tolist()
    assert debt[-2:].tolist() == [7, 7]
    assert np.array_equal(volumes[0].page, volumes[1].page)


def test_hinted_victims_are_checked_again_one_by_one() -> None:
    volume = two_pools(1024)
    ops = writes(5, 3_000)
    run(*volume, ops, 0, len(ops))
    seg = volume.seg
    sealed = np.flatnonzero((seg[:, c.SEALED] >= 0) & (seg[:, c.POOL] == 1))
    full = int(sealed[seg[sealed, c.LIVE].argmax()])
    good = int(sealed[seg[sealed, c.LIVE].argmin()])
    clean = int(seg[0, c.STACK])
    pools.hint_victims(volume, [-1, 10**9, clean, full, good], int(volume.reg[c.MOST]))
    for at in range(PAGES, len(ops)):
        run(*volume, ops, at, at + 1)
        check(volume)
    fates = pools.hint_fates(volume)
    assert fates["range"] == 2
    assert fates["not_sealed"] >= 1
    assert fates["waiting"] == 0
    assert fates["used"] + fates["too_full"] + fates["costly"] + fates["not_sealed"] == 3


def test_table_decides_and_255_leaves_it_to_the_basis() -> None:
    ops = writes(6, 5_000)
    usual = FastVolume(Geometry(PAGES, 16, 150_000, 6), "sepbit/cb-age")
    usual.run(ops)
    none = FastVolume(Geometry(PAGES, 16, 150_000, 6), "table/cb-age", aux=np.full(PAGES, 255))
    none.run(ops)
    assert np.array_equal(none.volume.page[:, c.BLOCK], usual.volume.page[:, c.BLOCK])
    every = FastVolume(Geometry(PAGES, 16, 150_000, 6), "table/cb-age", aux=np.arange(PAGES) % 3)
    every.run(ops)
    seg, owner = every.volume.seg, every.volume.owner.reshape(-1, 16)
    for segment in np.flatnonzero(seg[:, c.LIVE]):
        assert {int(page) % 3 for page in owner[segment] if page >= 0} == {seg[segment, c.CLASS]}


def test_another_policy_starts_with_statistics_of_its_own() -> None:
    fast = FastVolume(Geometry(PAGES, 16, 150_000, 6), "warcip/mdc")
    for name in ("dac/cb-age", "sfs/atgc", "multilog/greedy", "fadac/mdc", "eti/d-choices"):
        fast.run(writes(7, 2_000))
        fast.follow(name)
        check(fast.volume)
    fast.run(writes(7, 2_000))
    check(fast.volume)


def test_errors_name_what_is_wrong() -> None:
    geometry = Geometry(100, 8, 150_000, 4)
    with pytest.raises(ConfigError, match="sepbt"):
        FastVolume(geometry, "sepbt/greedy")
    with pytest.raises(ParamError, match="page 100"):
        FastVolume(geometry, "nosep/greedy").run([100])
    with pytest.raises(ParamError, match="aux"):
        FastVolume(geometry, "table/greedy")
    with pytest.raises(ParamError, match="one pool"):
        pools.share(make_volume(100, 8, 150_000, 4), 1)
    with pytest.raises(ParamError, match="pool 2"):
        registers(two_pools(0), 2)
    with pytest.raises(ParamError, match="1025"):
        pools.share(two_pools(0), 1025)
    with pytest.raises(ParamError, match="65 victims"):
        pools.hint_victims(two_pools(0), range(65))
    tight = FastVolume(Geometry(96, 8, 900_000, 1, segments=14), "nosep/greedy")
    with pytest.raises(UsageError, match="clean segments"):
        tight.run(np.arange(500) % 96)
    check(tight.volume)
