"""The reference engine: invariants, the frozen rule, its limits, and what it shows to others."""

from __future__ import annotations

import errno
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from uxk.errors import KernelBug, ParamError
from uxk.subsystems.lfs import policies
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.policies import Greedy, NoSep, Placement, Policy, Selection
from uxk.subsystems.lfs.reference import OPEN, Volume, VolumeFull

SMALL = Geometry(pages=96, segment_blocks=8, gp_ppm=200_000)
ONLINE = [name for name in policies.names() if not name.startswith(("fk/", "fkg6/"))]
page_lists = st.lists(st.integers(0, 95), min_size=1, max_size=600)


def state(volume: Volume) -> tuple[object, ...]:
    """All that two equal volumes agree on."""
    lists = (
        volume.block_of, volume.last, volume.live, volume.used, volume.log_of, volume.sealed_at, volume.clean,
        volume.heads, volume.is_valid,
    )  # fmt: skip
    numbers = (
        volume.now, volume.moved, volume.garbage, volume.total, volume.cleaned, volume.valid, volume.stuck, volume.low,
    )  # fmt: skip
    return (*map(tuple, lists), *numbers)


def fill_up(volume: Volume, pages: list[int]) -> None:
    """Writes the pages round and round without cleaning, until it is refused."""
    for page in cycle(pages):
        volume.write(page, gc=False)


class Journal:
    """A trace that keeps a mapping of its own."""

    def __init__(self) -> None:
        self.block_of: dict[int, int] = {}
        self.copies: dict[int, int] = {}
        self.opened_for: dict[int, int] = {}
        self.steps: list[tuple[object, ...]] = []

    def opened(self, segment: int, log: int) -> None:
        assert segment not in self.opened_for
        self.opened_for[segment] = log
        self.steps.append(("opened", segment, log))

    def written(self, page: int, block: int, old: int) -> None:
        assert self.block_of.get(page, -1) == old
        self.block_of[page] = block
        self.steps.append(("written", page, block))

    def moved(self, page: int, block: int, old: int) -> None:
        assert self.block_of[page] == old != block
        self.block_of[page] = block
        self.steps.append(("moved", page, block))

    def sealed(self, segment: int) -> None:
        self.steps.append(("sealed", segment))

    def cleaned(self, segment: int) -> None:
        del self.opened_for[segment]
        self.steps.append(("cleaned", segment))


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pages", 0), ("pages", 1 << 40), ("pages", "9"), ("pages", True), ("segment_blocks", 1), ("gp_ppm", 0),
        ("gp_ppm", 1_000_000), ("logs", 0), ("logs", 17), ("segments", 13),
    ],
)  # fmt: skip
def test_geometry_names_the_bad_field(field: str, value: object) -> None:
    good: dict[str, object] = {"pages": 64, "segment_blocks": 8, "logs": 6}
    with pytest.raises(ParamError, match=rf"lfs\.{field} = {value!r}: expected"):
        Geometry(**{**good, field: value})  # type: ignore[arg-type]


def test_a_victim_has_its_share_of_garbage_and_a_block_at_least() -> None:
    assert Geometry(64, 512, 150_000).most_valid_blocks == 512 - 76
    assert Geometry(64, 2, 1_000).most_valid_blocks == 1


# --- invariants -----------------------------------------------------------------------------------


class Writing(RuleBasedStateMachine):
    """Writes, cleanings out of turn and runs, in any order, under any policy."""

    @initialize(name=st.sampled_from(ONLINE))
    def start(self, name: str) -> None:
        self.journal = Journal()
        self.volume = Volume(SMALL, policies.lookup(name), self.journal)
        self.written: set[int] = set()

    @rule(page=st.integers(0, 95), gc=st.booleans())
    def write(self, page: int, gc: bool) -> None:
        try:
            block = self.volume.write(page, gc)
        except VolumeFull:
            assert not self.volume.clean
            return
        assert gc or self.volume.block_of[page] == block
        self.written.add(page)

    @rule(pages=page_lists)
    def run(self, pages: list[int]) -> None:
        while self.volume.triggered and (victim := self.volume.select()) >= 0:
            self.volume.collect(victim)
        self.volume.run(pages)
        self.written.update(pages)

    @rule(data=st.data())
    def collect(self, data: st.DataObject) -> None:
        sealed = [segment for segment, at in enumerate(self.volume.sealed_at) if at >= 0]
        if sealed:
            victim = data.draw(st.sampled_from(sealed))
            live = self.volume.live[victim]
            try:
                assert self.volume.collect(victim) == live
            except VolumeFull:
                assert len(self.volume.clean) < self.volume.logs

    @invariant()
    def all_adds_up(self) -> None:
        volume = self.volume
        volume.check()
        assert {page for page, block in enumerate(volume.block_of) if block >= 0} == self.written
        assert self.journal.block_of == {page: volume.block_of[page] for page in self.written}
        assert self.journal.opened_for == {s: log for s, log in enumerate(volume.log_of) if log >= 0}


TestAnyOrderOfSteps = Writing.TestCase


@given(st.sampled_from(ONLINE), page_lists)
def test_run_is_write_for_each(name: str, pages: list[int]) -> None:
    sooner, stepwise, watched = (Volume(SMALL, policies.lookup(name)) for _ in range(3))
    watched.trace = Journal()
    sooner.run(pages)
    watched.run(pages)
    for page in pages:
        stepwise.write(page)
    assert state(sooner) == state(stepwise) == state(watched)
    assert not sooner.triggered or sooner.stuck


@given(page_lists, st.integers(1, 599))
def test_run_in_parts_is_run(pages: list[int], cut: int) -> None:
    whole, parts = (Volume(SMALL, policies.lookup("sepgc/greedy")) for _ in range(2))
    whole.run(pages)
    parts.run(pages[:cut])
    parts.run(pages[cut:])
    assert state(whole) == state(parts)


@given(st.sampled_from(["nosep/greedy", "sepgc/cb-age", "dac/greedy"]), page_lists, st.integers(0, 3))
def test_run_is_full_where_write_is(name: str, pages: list[int], spare: int) -> None:
    tight = Geometry(pages=96, segment_blocks=8, gp_ppm=500_000, segments=19 + spare)
    sooner, stepwise = (Volume(tight, policies.lookup(name)) for _ in range(2))
    errors = []
    for call in (lambda: sooner.run([*range(96), *pages]), lambda: [*map(stepwise.write, [*range(96), *pages])]):
        try:
            call()
        except VolumeFull as full:
            errors.append(str(full))
    assert state(sooner) == state(stepwise)
    assert errors in ([], errors[:1] * 2)


def test_check_finds_a_wrong_number() -> None:
    def volume() -> Volume:
        made = Volume(SMALL, policies.lookup("nosep/greedy"))
        made.run(list(range(96)) * 3)
        made.check()
        return made

    for break_it in (
        lambda v: v.block_of.__setitem__(0, v.block_of[1]),
        lambda v: v.live.__setitem__(0, v.live[0] + 1),
        lambda v: v.is_valid.__setitem__(v.block_of[3], 0),
        lambda v: v.clean.append(v.clean[0]),
        lambda v: v.clean.pop(),
        lambda v: setattr(v, "garbage", v.garbage + 1),
        lambda v: setattr(v, "total", v.total - 1),
        lambda v: setattr(v, "valid", v.valid - 1),
        lambda v: v.used.__setitem__(v.clean[0], 1),
    ):
        broken = volume()
        break_it(broken)
        with pytest.raises(KernelBug, match=r"found .* expected"):
            broken.check()


# --- the frozen rule --------------------------------------------------------------------------------


def test_the_frozen_rule_by_hand() -> None:
    """Segments of 4, one log, a third of garbage: cleaning starts with the first block above the threshold."""
    journal = Journal()
    volume = Volume(Geometry(8, 4, 300_000, logs=1), Policy(NoSep(), Greedy()), journal)
    volume.run([0, 1, 2, 3, 4, 5, 6, 7])
    assert (volume.garbage, volume.total, volume.cleaned) == (0, 8, 0)
    volume.run([0, 1, 2])
    assert (volume.garbage, volume.total) == (3, 11)  # 3 / 11 is below 30 %
    journal.steps.clear()
    volume.write(4)  # fills segment 2; 4 of 12 are garbage: segment 0 with the fewest valid blocks goes
    assert journal.steps == [
        ("written", 4, 11), ("sealed", 2), ("opened", 3, 0), ("moved", 3, 12), ("cleaned", 0),
    ]  # fmt: skip
    assert (volume.garbage, volume.total, volume.moved, volume.cleaned) == (1, 9, 1, 1)
    volume.check()


def test_garbage_of_an_open_segment_counts_from_sealing() -> None:
    volume = Volume(Geometry(8, 4, 300_000, logs=1), Policy(NoSep(), Greedy()))
    volume.run([0, 0, 0])
    assert volume.garbage == 0
    volume.write(1)
    assert (volume.garbage, volume.total, volume.cleaned) == (0, 2, 1)  # sealed with 2 of 4, and cleaned at once
    assert volume.moved == 2


def test_stuck_when_no_segment_has_its_share() -> None:
    """Garbage spread thin: the rule holds, and no victim qualifies."""
    volume = Volume(Geometry(64, 8, 200_000, logs=1), Policy(NoSep(), Greedy()))
    volume.run(range(64))
    assert volume.most == 7
    for page in range(0, 64, 8):
        volume.write(page, gc=False)
    assert volume.select() == 0
    volume.most = 6
    assert volume.select() == -1
    volume.gp_ppm = 1_000
    volume.write(0)
    assert volume.stuck == 1


# --- bounds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [-1, 96])
def test_pages_outside_the_volume(page: int) -> None:
    volume = Volume(SMALL, policies.lookup("nosep/greedy"))
    for call in (lambda: volume.write(page), lambda: volume.run([0, page, 1])):
        with pytest.raises(ParamError, match=f"page {page}: the volume has pages 0 to 95"):
            call()
    assert volume.now == 0


def test_full_without_cleaning_and_nothing_is_changed() -> None:
    volume = Volume(Geometry(16, 4, 200_000, logs=1, segments=6), Policy(NoSep(), Greedy()))
    with pytest.raises(VolumeFull, match="no clean segment left of 6") as full:
        fill_up(volume, list(range(16)))
    assert full.value.errno == errno.ENOSPC
    before = state(volume)
    with pytest.raises(VolumeFull):
        volume.run([3])
    assert state(volume) == before
    volume.check()
    assert volume.select() == 0
    assert volume.live[0] == 0
    volume.collect(0)  # nothing valid in it: needs no room
    volume.write(3, gc=False)
    volume.check()


def test_a_victim_whose_blocks_might_not_fit_is_refused() -> None:
    volume = Volume(Geometry(32, 4, 200_000, logs=6, segments=15), policies.lookup("sepbit/greedy"))
    volume.run(range(32))
    with pytest.raises(VolumeFull):
        fill_up(volume, list(range(0, 32, 2)))
    victim = next(s for s, live in enumerate(volume.live) if 0 < live < OPEN)
    before = state(volume)
    with pytest.raises(VolumeFull, match=f"segment {victim}: 0 clean segments"):
        volume.collect(victim)
    assert state(volume) == before


@pytest.mark.parametrize("segment", [-1, 0, 10_000])
def test_only_sealed_segments_are_cleaned(segment: int) -> None:
    volume = Volume(SMALL, policies.lookup("nosep/greedy"))
    volume.write(0)
    with pytest.raises(ParamError, match=f"segment {segment}: only sealed"):
        volume.collect(segment)


# --- own policies -------------------------------------------------------------------------------------


class Halves(Placement):
    """A policy of one's own, as the docstring of ``policies.base`` promises."""

    name = "halves"

    def user(self, volume: Volume, page: int) -> int:
        return 0 if page < volume.pages // 2 else 1

    def moved(self, volume: Volume, page: int, victim: int) -> int:
        return 2


class Youngest(Selection):
    name = "youngest"

    def score(self, volume: Volume, segment: int) -> int:
        return volume.sealed_at[segment]


def test_own_policy_in_a_few_lines() -> None:
    volume = Volume(SMALL, Policy(Halves(), Youngest()))
    volume.run([(turn * turn) % 96 for turn in range(2_000)])
    volume.check()
    assert volume.policy.name == "halves/youngest"
    assert volume.moved and volume.cleaned
    logs = {log for log in volume.log_of if log >= 0}
    assert logs == {0, 1, 2}


def test_a_policy_that_names_no_log_is_the_one_at_fault() -> None:
    class Wild(Halves):
        name = "wild"

        def user(self, volume: Volume, page: int) -> int:
            return 6

    with pytest.raises(KernelBug, match="wild/greedy: log 6, expected 0 to 5"):
        Volume(SMALL, Policy(Wild(), Greedy())).write(0)


def test_hooks_of_both_parts_are_called_in_order() -> None:
    calls: list[tuple[object, ...]] = []

    class Watching(Greedy):
        def invalidated(self, volume: Volume, page: int, segment: int) -> None:
            calls.append(("invalidated", page))

        def appended(self, volume: Volume, page: int, segment: int, victim: int) -> None:
            calls.append(("appended", page, victim))

        def sealed(self, volume: Volume, segment: int) -> None:
            calls.append(("sealed", segment))

        def retired(self, volume: Volume, victim: int) -> None:
            calls.append(("retired", victim))

    class Also(NoSep):
        def sealed(self, volume: Volume, segment: int) -> None:
            calls.append(("also sealed", segment))

    volume = Volume(Geometry(4, 2, 400_000, logs=1), Policy(Also(), Watching()))
    volume.run([0, 1, 0])
    assert calls == [
        ("appended", 0, -1), ("appended", 1, -1), ("also sealed", 0), ("sealed", 0), ("invalidated", 0),
        ("appended", 0, -1),
    ]  # fmt: skip
    calls.clear()
    volume.collect(0)
    assert calls == [("retired", 0), ("appended", 1, 0), ("also sealed", 1), ("sealed", 1)]
