"""Miniatures that judge a policy, and the share of choices that follows it: without a kernel."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk_nvme.medium import MediumParams, open_medium
from uxk_nvme.medium.ftl.arms import ROWS_MAX, SCHEMA, SHARES, Arms
from uxk_nvme.medium.ftl.device import FtlMedium
from uxk_nvme.medium.ftl.miniature import Miniature, Sample
from uxk_nvme.medium.hint import (
    POLICIES,
    PPM,
    VICTIMS_MAX,
    GcHint,
    Policy,
    Unfit,
    decode_hint,
    encode_hint,
    selector_for,
)

MIB = 1 << 20
PAGE = b"x" * 4096


def arms(**more: Any) -> tuple[FtlMedium, Arms]:
    """Flash full of random data, and its arms."""
    given: dict[str, Any] = {"size": 4 * MIB, "medium": "ftl", "cell": "slc", "precondition": "random", **more}
    medium = open_medium(MediumParams(**given), np.random.default_rng(1))
    assert isinstance(medium, FtlMedium)
    return medium, Arms(medium, np.random.SeedSequence(1))


def skewed(medium: FtlMedium, writes: int, *, seed: int = 1, hot_ppm: int = 900_000) -> None:
    """Single units, so many of them of the first tenth."""
    draw = random.Random(seed)
    units, now_ns = medium.geometry.units, 0
    for _ in range(writes):
        unit = draw.randrange(units // 10 if draw.randrange(PPM) < hot_ppm else units)
        now_ns = medium.write(unit * 4096, PAGE, now_ns)
        assert now_ns >= 0


def policy(name: str, *args: int) -> bytes:
    return encode_hint(GcHint(name, args))


def pair_of(subject: Arms) -> tuple[Miniature, Miniature]:
    assert subject.miniatures is not None
    return subject.miniatures


def check_books(miniature: Miniature) -> None:
    """Counts agree with the map, and no line is lost."""
    flash, geometry = miniature.flash, miniature.flash.geometry
    counted = [0] * geometry.lines
    for unit in range(geometry.units):
        at = flash.l2p[unit]
        if at >= 0:
            assert flash.p2l[at] == unit
            counted[at // geometry.line_units] += 1
    assert counted == flash.valid
    assert flash.l2p[geometry.units] == -1


@pytest.mark.parametrize("more", [{}, {"size": 64 * MIB, "cell": "tlc-2tb-scaled"}, {"gc_foreground_lines": 20}])
def test_miniatures_begin_with_what_the_flash_holds(more: dict[str, Any]) -> None:
    medium, subject = arms(**more)
    skewed(medium, 2000)
    assert subject.follow(policy("greedy"), 1) == ""
    sample = Sample(medium.geometry)
    assert sample.units == medium.geometry.units // sample.ratio
    for miniature in pair_of(subject):
        check_books(miniature)
        held = [medium.flash.l2p[sample.unit(number)] >= 0 for number in range(sample.units)]
        assert [at >= 0 for at in miniature.flash.l2p[:-1]] == held
        if sample.ratio == 1:
            busy = (medium.flash.host.line, medium.flash.gc.line, medium.collector.victim)
            of_flash = sorted(v for line, v in enumerate(medium.flash.valid) if line not in busy and v)
            # The same lines but those that were open, which come together.
            missing = set(of_flash) - set(miniature.flash.valid)
            assert len(missing) <= 2


def test_a_sample_takes_one_unit_of_every_group_and_spreads_them() -> None:
    medium, _ = arms(size=64 * MIB, cell="tlc-2tb-scaled")
    sample = Sample(medium.geometry)
    assert sample.ratio == 4
    assert sample.of(list(range(medium.geometry.units))) == list(range(sample.units))
    places = [sample.unit(number) % sample.ratio for number in range(sample.units)]
    assert all(900 < places.count(place) < 1150 for place in range(sample.ratio))


def test_the_same_policy_is_worth_the_same_to_a_unit() -> None:
    medium, subject = arms()
    for name in ("greedy", ""):
        assert subject.follow(policy(name) if name else encode_hint(GcHint(victims=(1,))), 4) == ""
        skewed(medium, 3000)
        found = subject.measure()
        assert found.default_ppm == found.hinted_ppm > PPM
        assert found.weight > 0
        assert found.hinted_weight == found.weight * 4 // SHARES


@pytest.mark.parametrize("name", ["greedy", "cost-benefit", "fifo"])
def test_a_full_size_miniature_tracks_the_flash(name: str) -> None:
    medium, subject = arms()
    subject.follow(policy(name), SHARES)
    skewed(medium, 2000)
    subject.measure()
    before = medium.figures()
    skewed(medium, 8000, seed=2)
    found, after = subject.measure(), medium.figures()
    moved, host = (after[key] - before[key] for key in ("moved_units", "host_units"))
    real_ppm = (host + moved) * PPM // host
    assert abs(found.hinted_ppm - real_ppm) < real_ppm * 3 // 100


def test_cost_benefit_beats_greedy_under_skew_and_not_without() -> None:
    for hot_ppm, better in ((900_000, True), (0, False)):
        medium, subject = arms()
        subject.follow(policy("cost-benefit"), 1)
        skewed(medium, 3000, hot_ppm=hot_ppm)
        subject.measure()
        skewed(medium, 6000, seed=2, hot_ppm=hot_ppm)
        found = subject.measure()
        assert (found.hinted_ppm < found.default_ppm * 9 // 10) is better


@pytest.mark.parametrize("share", [1, 5, 16])
def test_the_share_of_choices_follows(share: int) -> None:
    medium, subject = arms()
    subject.follow(policy("d-choices", 2), share)
    before = medium.collector.victims
    skewed(medium, 4000)
    choices = subject.followed + subject.useless
    assert abs(choices - (medium.collector.victims - before) * share // SHARES) <= (medium.collector.victims >> 3) + 1
    assert choices > 0


def test_what_gains_nothing_is_not_followed() -> None:
    medium, subject = arms()
    subject.follow(policy("age-weighted", -4 * PPM), SHARES)  # the youngest: nearly all valid
    skewed(medium, 500)
    assert subject.useless > 0
    for miniature in pair_of(subject):
        check_books(miniature)


def test_deallocation_reaches_the_miniatures() -> None:
    for more in ({}, {"size": 64 * MIB, "cell": "tlc-2tb-scaled"}):
        medium, subject = arms(**more)
        subject.follow(policy("fifo"), 8)
        sample, draw = Sample(medium.geometry), random.Random(1)
        for _ in range(20):
            first, count = draw.randrange(medium.geometry.units - 99), draw.randrange(1, 99)
            medium.deallocate(first * 4096, count * 4096, 0)
            skewed(medium, 50)
        medium.flush(0)
        for miniature in pair_of(subject):
            check_books(miniature)
            gone = [number for number, at in enumerate(miniature.flash.l2p[:-1]) if at < 0]
            pending = set(miniature._pending)
            real = [n for n in range(sample.units) if medium.flash.l2p[sample.unit(n)] < 0]
            assert set(real) <= set(gone) <= set(real) | pending


def test_whoever_stops_gives_everything_back() -> None:
    medium, subject = arms(gc_victim="cost-benefit")
    default = medium.collector.selector
    now = medium.victim_candidates()
    subject.follow(encode_hint(GcHint("fifo", victims=tuple(now.line[:5]))), 16)
    assert medium.collector.selector is not default
    assert medium.collector.hints
    assert medium.flash.listener is not None
    assert subject.follow(b"", 16) == ""
    assert medium.collector.selector is default
    assert not medium.collector.hints
    assert medium.flash.listener is None
    assert subject.policy == ""
    assert subject.miniatures is None
    skewed(medium, 500)
    found = subject.measure()
    assert found.default_ppm >= PPM
    assert (found.hinted_ppm, found.hinted_weight) == (0, 0)


def test_an_epoch_is_a_sixteenth_of_the_capacity() -> None:
    medium, subject = arms()
    assert not subject.due
    for unit in range(medium.geometry.units):
        if not subject.due:
            medium.write(unit * 4096, PAGE, unit * 1_000_000)
    assert subject.measure().weight == medium.geometry.units // 16
    assert not subject.due


def test_rows_are_the_candidates_bounded() -> None:
    medium, subject = arms()
    skewed(medium, 300)
    rows = np.frombuffer(subject.rows(), np.dtype(list(SCHEMA)))
    now = medium.victim_candidates()
    assert len(rows) == min(len(now.line), ROWS_MAX)
    assert rows["valid"].tolist() == sorted(now.valid)[:ROWS_MAX]
    assert set(rows["units"].tolist()) == {medium.geometry.line_units}
    for row in rows:
        line = int(row["line"])
        assert (row["valid"], row["erases"]) == (medium.flash.valid[line], medium.flash.erases[line])
        assert row["generation"] == medium.flash.generation[line]


# --- victims by name ---


def ranked(medium: FtlMedium) -> tuple[list[int], list[int]]:
    """Lines by valid units, and their generations."""
    now = medium.victim_candidates()
    order = sorted(range(len(now.line)), key=now.valid.__getitem__)
    return [now.line[i] for i in order], [now.generation[i] for i in order]


def test_named_victims_are_looked_at_again() -> None:
    medium, subject = arms()
    skewed(medium, 300)
    lines, generations = ranked(medium)
    hint = GcHint(
        victims=(lines[1], lines[2], lines[-1]), generations=(generations[1], generations[2] + 1, generations[-1])
    )
    assert subject.follow(encode_hint(hint), SHARES) == ""
    assert subject.offered == 3
    skewed(medium, 100)
    hints = medium.collector.hints
    assert (hints.applied, hints.refused["stale"], hints.refused["not_worth"]) == (1, 1, 1)
    assert subject.follow(encode_hint(hint), SHARES) == ""
    assert subject.offered == 3, "a hint that stands names its victims once"


def test_named_victims_do_not_outlive_their_epoch_and_keep_to_the_share() -> None:
    medium, subject = arms()
    skewed(medium, 300)
    lines, _ = ranked(medium)
    subject.follow(encode_hint(GcHint(victims=tuple(lines[:32]))), 4)
    assert subject.offered == 8
    subject.measure()
    assert not medium.collector.hints
    assert medium.collector.hints.refused["expired"] == 8


# --- hostile payloads ---


@given(st.binary(max_size=200))
def test_any_bytes_are_a_hint_or_refused(payload: bytes) -> None:
    try:
        hint = decode_hint(payload)
    except Unfit:
        return
    assert hint.policy or hint.victims


NUMBERS = st.integers(-(1 << 63), (1 << 64) - 1)
WORDS = st.sampled_from([*POLICIES, "", "Greedy", "x" * 65, "\0"])


@given(
    st.lists(
        st.builds(
            lambda *parts: encode_hint(parts),
            WORDS, st.lists(NUMBERS | st.integers(0, 40), max_size=3),
            st.lists(NUMBERS | st.integers(0, 150), max_size=VICTIMS_MAX + 1), st.lists(NUMBERS, max_size=3), NUMBERS,
        ),
        max_size=3,
    ),
    st.integers(0, SHARES),
)  # fmt: skip
def test_whatever_is_hinted_the_flash_goes_on(payloads: list[bytes], share: int) -> None:
    medium, subject = arms(size=MIB)
    for payload in payloads:
        reason = subject.follow(payload, share)
        assert reason in ("", "malformed", "unknown_policy", "out_of_range")
        assert not reason or medium.flash.listener is None
        skewed(medium, 60)
        subject.measure()
    assert not medium.read_only


def test_policies_have_ranges() -> None:
    for name, rule in POLICIES.items():
        assert callable(selector_for(name))
        for args in ((1, 2), (rule.least - 1,), (rule.most + 1,)) if isinstance(rule, Policy) else ((1,),):
            with pytest.raises(Unfit, match="out_of_range"):
                selector_for(name, args)
    with pytest.raises(Unfit, match="unknown_policy"):
        selector_for("oracle")
