from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from uxk.core.mode import ModeConfig, ModeMachine
from uxk.core.site import GIVEN_MAX, REASON_MAX_CHARS, REASONS_MAX, DecisionSite
from uxk.errors import UsageError
from uxk.limits import PPM
from uxk.uapi.entries import Hint
from uxk.uapi.ml import Feedback, Mode


def hint(payload: bytes = b"good", *, cid: int = 1, generation: int = 0, ttl_ns: int = 100, standing: bool = False,
         predicted: int = 0) -> Hint:  # fmt: skip
    return Hint(cid, "site", generation, ttl_ns, payload, 0, 0, predicted, standing)


def refuse_bad(payload: bytes) -> str:
    return "bad" if payload.startswith(b"bad") else ""


def learning(**settings: int) -> ModeMachine:
    modes = ModeMachine(ModeConfig(**settings))
    modes.create(0)
    modes.start(0)
    return modes


def test_the_newest_hint_wins_and_is_taken_once() -> None:
    site = DecisionSite("site", refuse_bad)
    assert site.offer(1, hint(b"old"), 0) == site.offer(2, hint(b"new"), 0) == ""
    taken = site.take(0)
    assert taken is not None and taken.payload == b"new"
    assert site.take(0) is None
    assert (site.superseded, site.rejects, site.held) == (1, {}, 0)


def test_several_one_shot_hints_are_taken_in_their_order() -> None:
    site = DecisionSite("site", refuse_bad, depth=2)
    for payload in (b"1", b"2", b"3"):
        site.offer(1, hint(payload), 0)
    taken = [site.take(0) for _ in range(3)]
    assert [each.payload if each else None for each in taken] == [b"2", b"3", None]


def test_a_standing_hint_stays_in_force_until_its_time_is_over() -> None:
    site = DecisionSite("site", refuse_bad)
    site.offer(1, hint(b"table", standing=True), 0)
    site.offer(1, hint(b"victim"), 0)
    for now_ns in (0, 50, 100):
        found = site.standing(now_ns)
        assert found is not None and found.payload == b"table"
    assert site.standing(101) is None
    assert (site.expired, site.rejects) == (1, {"expired": 1})
    assert site.held == 1, "one-shot hints are kept apart"


def test_a_refused_hint_does_not_push_out_a_good_one() -> None:
    site = DecisionSite("site", refuse_bad)
    site.offer(1, hint(), 0)
    assert site.offer(1, hint(b"bad"), 0) == "bad"
    assert site.offer(1, hint(generation=1), 0) == "stale_generation"
    assert site.take(0) is not None
    assert site.rejects == {"bad": 1, "stale_generation": 1}


@pytest.mark.parametrize("standing", [False, True])
def test_it_is_checked_again_against_the_state_of_the_moment(standing: bool) -> None:
    forbidden: set[bytes] = set()
    told: list[Feedback] = []
    site = DecisionSite(
        "site", lambda payload: "out_of_range" if payload in forbidden else "",
        feedback=lambda sender, record: told.append(record),
    )  # fmt: skip
    site.offer(1, hint(b"x", cid=9, standing=standing), 0)
    forbidden.add(b"x")
    assert (site.standing(0) if standing else site.take(0)) is None
    assert site.rejects == {"out_of_range": 1}
    assert told == [Feedback(9, "site", 0, 0, 0, "out_of_range")]


def test_the_sender_hears_what_came_of_every_hint() -> None:
    told: list[tuple[int, Feedback]] = []
    site = DecisionSite("site", refuse_bad, depth=4, feedback=lambda *each: told.append(each))
    site.offer(7, hint(b"table", cid=1, standing=True, predicted=40), 0)
    site.offer(8, hint(b"one", cid=1, predicted=50), 0)
    site.offer(8, hint(b"two", cid=2), 0)
    table, one, two = site.standing(0), site.take(0), site.take(0)
    assert table and one and two
    site.applied(one, outcome=55, baseline=80)
    site.applied(table, outcome=41)
    site.applied(table, outcome=42)
    site.refuse(two, "too_late")
    assert told == [
        (8, Feedback(1, "site", 50, 55, 80)), (7, Feedback(1, "site", 40, 41, 0)), (7, Feedback(1, "site", 40, 42, 0)),
        (8, Feedback(2, "site", 0, 0, 0, "too_late")),
    ]  # fmt: skip
    assert (site.hints_applied, site.rejects) == (3, {"too_late": 1})
    for gone in (one, two, hint()):
        with pytest.raises(UsageError, match="was not given out here"):
            site.applied(gone, outcome=0)


def test_refusing_a_standing_hint_ends_it() -> None:
    site = DecisionSite("site", refuse_bad)
    site.offer(1, hint(standing=True), 0)
    found = site.standing(0)
    assert found is not None
    site.refuse(found, "costly")
    assert site.standing(0) is None


def test_with_its_sender_a_hint_vanishes() -> None:
    told: list[Feedback] = []
    site = DecisionSite("site", refuse_bad, depth=3, feedback=lambda sender, record: told.append(record))
    site.offer(1, hint(standing=True), 0)
    site.offer(1, hint(b"a"), 0)
    site.offer(2, hint(b"b"), 0)
    given = site.take(0)
    assert given is not None and site.forget(1) and not site.forget(1)
    assert (site.standing(0), site.held) == (None, 1)
    with pytest.raises(UsageError):
        site.applied(given, outcome=1)
    assert told == []


def test_what_is_dropped_in_an_emergency_is_nobodys_fault() -> None:
    told: list[Feedback] = []
    site = DecisionSite("site", refuse_bad, feedback=lambda sender, record: told.append(record))
    site.offer(1, hint(standing=True), 0)
    site.offer(1, hint(), 0)
    site.clear("emergency")
    assert [record.reject for record in told] == ["emergency"] * 2
    assert (site.held, site.rejects, site.hints_refused) == (0, {}, 0)


def test_memory_is_bounded_whatever_the_subsystem_forgets_to_report() -> None:
    site = DecisionSite("site", lambda payload: payload.decode())
    for number in range(REASONS_MAX + 10):
        site.offer(1, hint(str(number).encode()), 0)
    assert len(site.rejects) == REASONS_MAX + 1 and site.rejects["other"] == 10
    site = DecisionSite("site", refuse_bad)
    for _ in range(GIVEN_MAX + 10):
        site.offer(1, hint(), 0)
        assert site.take(0) is not None
    assert len(site._given) == GIVEN_MAX


def test_reasons_are_short_and_fit_for_a_terminal() -> None:
    site = DecisionSite("site", lambda payload: payload.decode())
    assert site.offer(1, hint(b"x" * 9999), 0) == "x" * REASON_MAX_CHARS
    assert site.offer(1, hint(b"a\nfake 7\x1b[2J"), 0) == "a\\nfake 7\\x1b[2J"
    assert all(len(reason) <= REASON_MAX_CHARS and reason.isprintable() for reason in site.rejects)


@pytest.mark.parametrize("bad", [1.5, 10**30, True, None])
def test_an_outcome_that_no_record_can_hold_is_refused_where_it_is_told(bad: Any) -> None:
    told: list[Feedback] = []
    site = DecisionSite("site", refuse_bad, feedback=lambda sender, record: told.append(record))
    site.offer(1, hint(standing=True), 0)
    found = site.standing(0)
    assert found is not None
    for call in (
        lambda: site.applied(found, outcome=bad), lambda: site.applied(found, outcome=1, baseline=bad),
        lambda: site.refuse(found, "costly", outcome=bad),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="signed 64-bit"):
            call()
    assert (told, site.hints_applied, site.rejects) == ([], 0, {})


# --- shares ---


@pytest.mark.parametrize(("mode", "count"), [
    (Mode.EMERGENCY, 0), (Mode.LEARNING, 1), (Mode.COLLABORATION, 8), (Mode.RECOMMENDATION, 16),
])  # fmt: skip
def test_the_mode_says_how_many_units_follow_hints(mode: Mode, count: int) -> None:
    modes = learning()
    site = DecisionSite("site", refuse_bad, modes=modes, units=16)
    modes.set_override(0, mode)
    site.offer(1, hint(standing=True), 0)
    following = [unit for unit in range(16) if site.follows(unit)]
    assert len(following) == count
    assert [unit for unit in range(16) if site.standing(0, unit)] == following
    assert site.follows() == (count > 0) and (site.standing(0) is not None) == (count > 0)


def test_the_hinted_arm_only_grows_with_the_share() -> None:
    modes = learning()
    site = DecisionSite("lfs0.gc", refuse_bad, modes=modes, units=11)
    arms = []
    for mode in (Mode.LEARNING, Mode.COLLABORATION, Mode.RECOMMENDATION):
        modes.set_override(0, mode)
        arms.append({unit for unit in range(11) if site.follows(unit)})
    assert arms[0] < arms[1] < arms[2]


@pytest.mark.parametrize(("units", "share_ppm"), [(2, 1), (2, PPM - 1), (3, 1)])
def test_both_arms_have_a_unit_below_the_full_share(units: int, share_ppm: int) -> None:
    site = DecisionSite("site", refuse_bad, modes=learning(learning_share_ppm=share_ppm), units=units)
    assert 0 < sum(site.follows(unit) for unit in range(units)) < units


def test_a_unit_that_there_is_not_is_named() -> None:
    site = DecisionSite("site", refuse_bad, modes=learning(), units=4)
    with pytest.raises(UsageError, match="unit 4, expected 0 to 3"):
        site.follows(4)


def test_units_and_depth_are_checked() -> None:
    for units, depth in ((0, 1), (1, 0)):
        with pytest.raises(UsageError, match="expected at least 1"):
            DecisionSite("site", refuse_bad, units=units, depth=depth)


# --- any history ---


class SiteMachine(RuleBasedStateMachine):
    """Beside a model that remembers one hint of each kind, its sender and its end."""

    @initialize()
    def begin(self) -> None:
        self.site = DecisionSite("site", refuse_bad)
        self.now_ns = self.generation = self.received = self.refused = 0
        self.rejects: dict[str, int] = {}
        self.kept: dict[bool, tuple[Hint, int, int]] = {}

    def count(self, reason: str) -> str:
        self.refused += 1
        self.rejects[reason] = self.rejects.get(reason, 0) + 1
        return reason

    @rule(
        sender=st.integers(1, 3), payload=st.sampled_from([b"good", b"bad", b""]), standing=st.booleans(),
        offset=st.integers(-1, 1), ttl_ns=st.integers(0, 20),
    )  # fmt: skip
    def offer(self, sender: int, payload: bytes, standing: bool, offset: int, ttl_ns: int) -> None:
        self.received += 1
        offered = hint(payload, generation=max(0, self.generation + offset), ttl_ns=ttl_ns, standing=standing)
        if offered.generation != self.generation:
            expected = self.count("stale_generation")
        elif payload == b"bad":
            expected = self.count("bad")
        else:
            expected, self.kept[standing] = "", (offered, sender, self.now_ns + ttl_ns)
        assert self.site.offer(sender, offered, self.now_ns) == expected

    @rule(standing=st.booleans())
    def ask(self, standing: bool) -> None:
        found = self.site.standing(self.now_ns) if standing else self.site.take(self.now_ns)
        kept = self.kept.get(standing)
        if kept is None:
            assert found is None
            return
        stale = kept[0].generation != self.generation
        late = self.now_ns > kept[2]
        if stale or late:
            self.count("expired" if late else "stale_generation")
            assert found is None
        else:
            assert found is kept[0]
        if stale or late or not standing:
            del self.kept[standing]

    @rule(step_ns=st.integers(0, 15))
    def wait(self, step_ns: int) -> None:
        self.now_ns += step_ns

    @rule()
    def advance(self) -> None:
        self.generation += 1
        assert self.site.advance() == self.generation

    @rule(sender=st.integers(1, 3))
    def forget(self, sender: int) -> None:
        self.site.forget(sender)
        self.kept = {key: kept for key, kept in self.kept.items() if kept[1] != sender}

    @invariant()
    def same(self) -> None:
        site = self.site
        assert (site.rejects, site.held) == (self.rejects, len(self.kept))
        assert (site.hints_received, site.hints_refused) == (self.received, self.refused)


TestSite = SiteMachine.TestCase
