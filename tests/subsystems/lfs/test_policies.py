"""Placements and selections, each against a case worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from uxk.errors import ConfigError, ParamError
from uxk.subsystems.lfs import policies
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.miniature import Miniature, parse_policy
from uxk.subsystems.lfs.policies import (
    DAC,
    ETI,
    FK,
    FKG6,
    SFS,
    Atgc,
    CbAge,
    CbSqrt,
    DChoices,
    F2fs,
    F2fsCb,
    FADaC,
    Greedy,
    Mdc,
    MiDA,
    MultiLog,
    NoSep,
    Placement,
    Policy,
    Selection,
    SepBIT,
    SepGC,
    Table,
    Timestamp,
    Warcip,
    next_writes,
)
from uxk.subsystems.lfs.policies.random import MODULUS, following, seeded
from uxk.subsystems.lfs.reference import Volume

NEVER = 1 << 60


def volume(placement: Placement, selection: Selection | None = None, **shape: int) -> Volume:
    """A small one: 32 pages in segments of 4."""
    geometry: dict[str, int] = {"pages": 32, "segment_blocks": 4, "gp_ppm": 500_000, **shape}
    return Volume(Geometry(**geometry), Policy(placement, selection or Greedy()))


def log_of(made: Volume, page: int) -> int:
    """Log of the segment that holds the page now."""
    return made.log_of[made.block_of[page] // made.size]


def write(made: Volume, *pages: int) -> list[int]:
    """Writes without cleaning; the logs that were chosen."""
    return [made.log_of[made.write(page, gc=False) // made.size] for page in pages]


def clean(made: Volume, page: int) -> None:
    """Cleans the segment that holds the page."""
    made.collect(made.block_of[page] // made.size)


# --- names ----------------------------------------------------------------------------------------


def test_every_name_makes_a_policy_of_that_name() -> None:
    for name in policies.names():
        assert policies.lookup(name, future=[NEVER]).name == name
    assert policies.lookup("table/greedy", table=bytes(32)).name == "table/greedy"
    assert set(policies.HUMANS) < set(policies.names())
    assert len(set(policies.HUMANS)) == len(policies.HUMANS) == 53
    assert policies.DEFAULT in policies.HUMANS


def test_every_part_says_where_it_comes_from() -> None:
    for name in policies.names():
        policy = policies.lookup(name, future=[NEVER])
        for part in (policy.placement, policy.selection):
            assert part.source, part.name
            assert type(part).__doc__


def test_lookup_makes_new_objects() -> None:
    assert policies.lookup("dac/mdc").placement is not policies.lookup("dac/mdc").placement


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sepbit/cb-agee", "no selection 'cb-agee' (did you mean 'cb-age'?)"),
        ("sepbot/greedy", "no placement 'sepbot' (did you mean 'sepbit'?)"),
        ("f2sf", "(did you mean 'f2fs'?)"),
        ("sepbit", "expected placement/selection"),
        ("", "expected placement/selection"),
        ("sepbit/", "no selection ''"),
        ("/greedy", "no placement ''"),
        ("fkg6/greedy", "needs future="),
        ("table/greedy", "needs table="),
    ],
)
def test_wrong_names_are_told_what_is_right(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        policies.lookup(name)
    assert words in str(error.value)
    assert repr(name) in str(error.value)


def test_a_placement_asks_for_the_logs_it_needs() -> None:
    with pytest.raises(ParamError, match=r"sepbit/greedy: lfs.logs = 3, expected at least 4"):
        volume(SepBIT(), logs=3)


# --- placements -----------------------------------------------------------------------------------


def test_nosep_and_sepgc() -> None:
    for placement, moved in ((NoSep(), 0), (SepGC(), 1)):
        made = volume(placement)
        assert write(made, 0, 1, 2, 3, 0) == [0] * 5
        clean(made, 1)
        assert [log_of(made, page) for page in (0, 1, 2, 3)] == [0, moved, moved, moved]


def test_dac_climbs_and_falls() -> None:
    made = volume(DAC())
    assert write(made, *[7] * 8) == [0, 1, 2, 3, 4, 5, 5, 5]
    assert write(made, 8, 9, 8, 8, 8) == [0, 0, 1, 2, 3]
    write(made, *range(20, 23), 23)  # log 0 fills
    clean(made, 9)
    assert log_of(made, 9) == 0
    write(made, 7, 7)  # fills the segment of log 5 that holds it
    made.write(7, gc=False)
    while made.sealed_at[made.block_of[7] // made.size] < 0:
        made.write(7, gc=False)
    clean(made, 7)
    assert log_of(made, 7) == 4


def test_mida_counts_moves_since_the_last_write() -> None:
    made = volume(MiDA(), logs=3)
    assert write(made, 0, 1, 2, 3) == [0] * 4
    for expected in (1, 2, 2):
        clean(made, 0)
        assert [log_of(made, page) for page in range(4)] == [expected] * 4
    assert write(made, 0) == [0]


def test_fadac_counts_in_decades_of_the_average() -> None:
    """The average is one write per block from the first block on, so the bounds are 1, 10, 100, ..."""
    made = volume(FADaC())
    assert write(made, *[5] * 12) == [1] * 9 + [2] * 3


def test_sepbit_infers_lifespans() -> None:
    made = volume(SepBIT(), gp_ppm=900_000, segments=60)
    assert write(made, 0, 1, 0, 1) == [1, 1, 0, 0]  # before the first mean every rewrite is short-lived
    while made.policy.placement.lifespan == 0:  # type: ignore[attr-defined]
        write(made, 0, 1, 2, 3)
        for segment in range(made.segments):
            if made.sealed_at[segment] >= 0 and made.log_of[segment] == 0:
                made.collect(segment)
                break
    mean = made.policy.placement.lifespan  # type: ignore[attr-defined]
    for page in (8, 9):
        write(made, page)
    write(made, *[10] * (mean + 1))
    assert write(made, 8) == [1]  # longer than the mean ago
    assert write(made, 8) == [0]
    clean_out = made.block_of[8] // made.size
    while made.sealed_at[clean_out] < 0:
        write(made, 8 if made.block_of[8] // made.size != clean_out else 11)
    assert made.policy.placement.moved(made, 9, _segment_of_log(made, 0)) == 2
    victim = _segment_of_log(made, 1)
    for age, log in ((0, 3), (4 * mean - 1, 3), (4 * mean, 4), (16 * mean - 1, 4), (16 * mean, 5), (1 << 40, 5)):
        made.last[9] = made.now - age
        assert made.policy.placement.moved(made, 9, victim) == log


def _segment_of_log(made: Volume, log: int) -> int:
    return made.log_of.index(log)


def test_eti_splits_extents_and_joins_them() -> None:
    eti = ETI()
    made = volume(eti, pages=100, logs=3)
    assert write(made, 50) == [1]
    assert (eti.starts, eti.counts) == ([0, 50, 51], [0, 1, 0])
    assert write(made, 50, 50, 50, 50) == [1, 1, 0, 0]
    write(made, 0, 99)
    assert (eti.starts, eti.counts) == ([0, 1, 50, 51, 99], [1, 0, 5, 0, 1])
    write(made, *[50] * 20)
    assert eti.counts[2] == 15
    eti.requests = 4_095
    write(made, 3)  # halves, joins what is cold, and counts
    assert (eti.starts, eti.counts) == ([0, 3, 4, 50, 51], [0, 1, 0, 7, 0])
    while made.sealed_at[made.block_of[50] // made.size] < 0:
        write(made, 50)
    clean(made, 50)
    assert log_of(made, 50) == 2


def test_eti_keeps_at_most_1024_extents() -> None:
    eti = ETI()
    made = volume(eti, pages=4_000, segment_blocks=64)
    write(made, *range(1, 4_000, 2))
    assert 1_024 <= len(eti.starts) <= 1_025
    assert eti.starts == sorted(set(eti.starts))


def test_multilog_sinks_with_moves_and_rises_when_sooner_than_expected() -> None:
    multilog = MultiLog(seed=3)
    made = volume(multilog, pages=64, gp_ppm=800_000)
    assert write(made, *range(8)) == [0] * 8
    clean(made, 0)  # log 0 still holds 4 valid blocks, a segment's worth, so log 1 opens
    assert [log_of(made, page) for page in (0, 3)] == [1, 1]
    assert (multilog.coldest, multilog.valid[:3]) == (1, [4, 4, 0])
    clean(made, 0)  # log 1 holds nothing else: no log 2
    assert log_of(made, 0) == 1
    assert multilog.collected[:2] == multilog.collected_valid[:2] == [4, 4]
    rises = 0
    for _ in range(60):
        multilog.level[0], multilog.valid[1] = 1, 1_000
        rises += write(made, 0, 0)[0] == 0
    assert 50 < rises <= 60  # rewritten at once where about 500 writes were expected
    multilog.level[0], multilog.valid[1], made.last[0] = 1, 10, 0
    assert write(made, 0) == [1]  # later than expected: never


def test_sfs_sends_blocks_to_the_nearest_centre() -> None:
    sfs = SFS()
    made = volume(sfs, logs=3)
    assert write(made, 0) == [0]  # new pages count as hottest
    assert write(made, *[0] * 3) == [2, 2, 2]  # no centre is set: the coldest
    sfs.centres = [4 << 32, 1 << 32, 0]
    assert write(made, 0) == [0]  # four writes, the last of them one block ago
    assert write(made, 1, 2, 1) == [0, 0, 2]  # 1 / 2, halfway: the colder
    made.collect(_segment_of_log(made, 2) if made.sealed_at[_segment_of_log(made, 2)] >= 0 else 0)
    made.check()


def test_sfs_keeps_sums_of_valid_blocks_only() -> None:
    sfs = SFS()
    made = volume(sfs, pages=32)
    made.run([(turn * turn + turn // 3) % 32 for turn in range(3_000)])
    for segment in range(made.segments):
        held = [page for page, block in enumerate(made.block_of) if block // made.size == segment]
        assert sfs.segment_writes[segment] == sum(sfs.writes[page] for page in held)
        assert sfs.segment_lasts[segment] == sum(made.last[page] for page in held)
    assert sfs.centres == sorted(sfs.centres, reverse=True)


def test_warcip_draws_centres_and_adds_penalties() -> None:
    warcip = Warcip()
    made = volume(warcip, logs=3, gp_ppm=900_000)
    assert write(made, 0, 0) == [2, 2]  # all centres are 0: the last cluster, which is drawn to 0 and 1
    assert warcip.centres == [0, 0, 128]
    write(made, 1)
    assert write(made, 0) == [2]
    warcip.centres[1:] = [100 << 8, 3 << 8]
    clean_at = made.block_of[0] // made.size
    while made.sealed_at[clean_at] < 0:
        write(made, 9)
    write(made, *[9] * 90)
    made.collect(clean_at)
    assert log_of(made, 0) == 0
    age = warcip.penalty[0]
    assert age == made.now - made.last[0] > 80
    warcip.blocks = [0, 0, 0]
    assert write(made, 0) == [1]
    assert warcip.penalty[0] == 0
    assert warcip.centres[1] == (age + 1 + age) << 8


def test_warcip_splits_and_merges() -> None:
    warcip = Warcip()
    made = volume(warcip, logs=4)
    warcip.writes, warcip.total = [0, 90, 1, 0], 91
    warcip.sealed_segments = 255
    while warcip.sealed_segments:
        made.write(0)
    assert warcip.merging == 2  # all logs are in use: no split, the first idle one goes
    log = warcip.log_at[2]
    made.heads[log] = -1
    segment = made.clean[-1]
    made.log_of[segment] = log
    warcip.sealed(made, segment)
    assert len(warcip.log_at) == 3
    assert log not in warcip.log_at
    warcip.writes, warcip.total, warcip.centres = [0, 10, 1], 11, [0, 8, 90]
    warcip._adapt(made)
    assert (warcip.log_at[1], warcip.centres) == (log, [0, 4, 8, 90])
    assert warcip.writes == [0, 0, 0, 0]


def test_next_writes() -> None:
    assert list(next_writes([4, 5, 4, 4, 6])) == [3, NEVER, 4, NEVER, NEVER]


def test_oracles_by_remaining_life() -> None:
    pages = [0, 1, 2, *[3] * 40, 1]
    for placement, expected in ((FK(next_writes(pages)), [5, 5, 5, 0]), (FKG6(next_writes(pages)), [5, 1, 5, 0])):
        made = volume(placement, gp_ppm=900_000, segments=60)
        assert write(made, *pages[:4]) == expected
    made = volume(FKG6([2, 3]), gp_ppm=900_000)
    write(made, 0, 0)
    with pytest.raises(ParamError, match="write 3, but the future of 2 writes is known"):
        write(made, 0)


def test_fkg6_bounds_are_geometric() -> None:
    made = volume(FKG6([]))
    oracle = FKG6([])
    bounds = [16, 64, 256, 1_024, 4_096]
    assert [oracle.level(made, bound - 1) for bound in bounds] == [0, 1, 2, 3, 4]
    assert [oracle.level(made, bound) for bound in bounds] == [1, 2, 3, 4, 5]


def test_table_and_its_default() -> None:
    made = volume(Table([2] * 8 + [255] * 16 + [200] * 8, DAC()))
    assert write(made, 0, 0, 8, 8, 31) == [2, 2, 0, 1, 0]
    assert write(made, 1, 2) == [2, 2]
    clean(made, 1)
    assert log_of(made, 1) == 2
    with pytest.raises(ParamError, match="table: 3 classes, expected one for each of 32 pages"):
        volume(Table(b"abc", DAC()))
    with pytest.raises(ParamError, match="table: 3 logs, but sepbit needs 4"):
        volume(Table(bytes(32), SepBIT()), logs=3)


def test_table_of_the_default_only_is_the_default() -> None:
    pages = [(turn * turn + turn // 5) % 32 for turn in range(2_000)]
    for default in (SepBIT, MultiLog, Warcip, SFS, SepGC):
        alone, by_table = volume(default()), volume(Table(bytes([255] * 32), default()))
        alone.run(pages)
        by_table.run(pages)
        assert alone.block_of == by_table.block_of


def test_f2fs_by_update_interval() -> None:
    made = volume(F2fs(hot_blocks=3, warm_blocks=10), gp_ppm=900_000)
    assert write(made, 0, 1, 0, 2, 3, 4, 5, 1) == [1, 1, 0, 1, 1, 1, 1, 1]
    write(made, *[9] * 20)
    assert write(made, 0) == [2]
    assert write(made, 0, 0) == [1, 0]  # 70 % of 1 and 30 % of 26; then of 8
    assert volume(F2fs()).policy.placement.moved_log == 2


# --- selections -----------------------------------------------------------------------------------


def three_segments(selection: Selection) -> Volume:
    """Segments 0, 1, 2 sealed at 4, 8, 12 with 2, 1 and 3 valid blocks, at clock 16."""
    made = volume(NoSep(), selection, logs=1, gp_ppm=250_000, segments=20)
    write(made, *range(12))
    write(made, 0, 1, 4, 5)
    write(made, 6, 8)
    return made


@pytest.mark.parametrize(
    ("selection", "victim"),
    [
        (Greedy(), 1),  # 1 valid block
        (CbAge(), 1),  # 2 * 14 / 2, 3 * 10 / 1, 1 * 6 / 3
        (CbSqrt(), 1),
        (Timestamp(), 0),
        (DChoices(), 1),
        (Mdc(), 1),
        (F2fsCb(), 1),
        (Atgc(), 0),
    ],
)
def test_selections_by_hand(selection: Selection, victim: int) -> None:
    made = three_segments(selection)
    assert [made.live[s] for s in range(3)] == [2, 1, 3]
    assert made.select() == victim


def test_cost_benefit_weighs_age() -> None:
    made = three_segments(CbAge())
    made.sealed_at[0] = -0
    made.now = 1_000
    made.sealed_at[1] = 990  # 2 * 1000 / 2 against 3 * 10 / 1
    assert made.select() == 0
    assert CbAge().score(made, 0) == 1_000 << 16
    assert CbSqrt().score(made, 1) == (9 * 10 << 8) // 1


@pytest.mark.parametrize("name", [*policies.SELECTIONS, "f2fs-cb"])
def test_dead_segments_first_open_and_full_ones_never(name: str) -> None:
    selection = F2fsCb() if name == "f2fs-cb" else policies.SELECTIONS[name]()
    made = volume(NoSep(), selection, logs=1, gp_ppm=250_000, segments=20)
    write(made, *range(8))
    assert made.select() == -1  # sealed, but without garbage
    write(made, 4, 5, 6)
    assert made.select() == 1
    write(made, 7)
    if name != "atgc":
        assert made.select() == 1
    assert made.live[1] == 0
    made.collect(1)
    made.check()


def test_mdc_inherits_times() -> None:
    mdc = Mdc()
    made = volume(NoSep(), mdc, logs=1, gp_ppm=250_000)
    write(made, 0, 1, 2, 3)
    assert mdc.sums[0] == 0  # nothing is known of new pages
    write(made, 0)  # clock 5: halfway between 0 and 5
    assert mdc.sums[1] == 2
    write(made, 0)  # clock 6: that segment's mean is 2, halfway is 4
    assert mdc.sums[1] == 6
    made.collect(0)
    assert mdc.time(made, 1) == 6 // made.used[1]
    assert mdc.sums[0] == 0


def test_atgc_takes_the_emptiest_of_the_oldest() -> None:
    made = volume(NoSep(), Atgc(), logs=1, pages=400, gp_ppm=250_000)
    write(made, *range(400))
    write(made, *range(0, 400, 4))  # one dead block in each
    write(made, 361, 362, 363, 201, 1)
    write(made, 41, 42)
    assert made.select() == 10  # among the oldest twenty the two dead blocks more outweigh ten places of age
    assert made.live[90] == 0  # younger than the oldest fifth


def test_d_choices_repeats_itself_by_seed() -> None:
    def moved(seed: int) -> int:
        made = volume(SepGC(), DChoices(seed), pages=400, gp_ppm=200_000)
        made.run([(turn * turn * 7 + turn // 3) % 400 for turn in range(6_000)])
        return made.moved

    assert moved(1) == moved(1)
    assert len({moved(seed) for seed in range(1, 6)}) > 1


def test_random_numbers_stay_small() -> None:
    state = seeded(0)
    assert state == 1
    seen = set()
    for _ in range(2_000):
        state = following(state)
        assert 0 < state < MODULUS
        seen.add(state)
    assert len(seen) == 2_000
    assert seeded(-5) > 0
    state = 1
    for _ in range(10_000):
        state = following(state)
    assert state == 399_268_537  # the check value of Park, Miller & Stockmeyer for 48,271


@pytest.mark.parametrize("page", [-1, 64, 1 << 30])
def test_a_miniature_refuses_pages_outside_it_before_it_writes(page: int) -> None:
    volume = Miniature(64, 8, 150_000, 2, parse_policy("sepgc/greedy"))
    with pytest.raises(ParamError, match=f"page {page}: the volume has pages 0 to 63"):
        volume.run(np.array([1, page], np.int32))
    assert volume.epoch().user == 0
