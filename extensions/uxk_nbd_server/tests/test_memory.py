"""The pool: a share for everybody, and one line for what is beyond."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from uxk_nbd_server.memory import COMMON_SLOTS_MIN, OWN_SLOTS, SLOT_BYTES, Pool, Purse, Slot

REGION = memoryview(bytearray((4 * OWN_SLOTS + COMMON_SLOTS_MIN) * SLOT_BYTES))


def opened(pool: Pool, most: int = 1 << 20) -> Purse:
    purse = pool.open(most)
    assert purse is not None
    return purse


def taken(purse: Purse, count: int) -> list[Slot]:
    slots = purse.take(count)
    assert slots is not None
    return slots


def test_everybody_has_a_share_whatever_the_others_take() -> None:
    pool = Pool(REGION, 4)
    greedy = opened(pool)
    assert greedy.take(pool.slots) is None
    taken(greedy, COMMON_SLOTS_MIN + OWN_SLOTS)
    others = [opened(pool) for _ in range(3)]
    assert pool.open(1 << 20) is None
    for purse in others:
        taken(purse, OWN_SLOTS)
        assert purse.take(1) is None
    assert pool.free == 0


@pytest.mark.parametrize(("slots", "places"), [(0, 0), (128, 0), (131, 1), (144, 5), (1000, 40)])
def test_places_that_there_is_memory_for(slots: int, places: int) -> None:
    assert Pool(memoryview(bytearray(slots * SLOT_BYTES)), 40).places == places


def test_the_first_in_line_is_not_passed_over() -> None:
    """Small ones come all the time: they must not keep the stock below what the long one needs."""
    pool = Pool(REGION, 4)
    holder, long, small = opened(pool), opened(pool), opened(pool)
    held = taken(holder, 100)
    called: list[str] = []
    assert long.take(100) is None
    long.when_free(100, lambda: called.append("long"))
    own = taken(small, OWN_SLOTS)
    assert small.take(1) is None, "there would be enough, but somebody waits"
    small.when_free(1, lambda: called.append("small"))
    assert pool.shortfall == 97 - (128 - 97)
    for slot in held:
        slot.release()
    assert called == ["long", "small"]
    assert len(taken(long, 100)) == 100
    assert small.take(2) is not None
    assert own


def test_one_who_is_gone_holds_up_nobody() -> None:
    pool = Pool(REGION, 4)
    holder, first, second = opened(pool), opened(pool), opened(pool)
    held = taken(holder, 110)
    called: list[str] = []
    first.when_free(128, lambda: called.append("first"))
    second.when_free(20, lambda: called.append("second"))
    assert not called
    first.close()
    assert called == ["second"]
    assert pool.taken == 2
    second.close()
    for slot in held:
        slot.release()
    assert pool.common == pool.stock, "what was set aside came back"


def test_what_was_set_aside_and_not_taken_goes_to_the_next() -> None:
    pool = Pool(REGION, 4)
    holder, first, second = opened(pool), opened(pool), opened(pool)
    held = taken(holder, 131)
    called: list[str] = []
    first.when_free(128, lambda: called.append("first"))
    second.when_free(128, lambda: called.append("second"))
    for slot in held:
        slot.release()
    assert called == ["first"]
    taken(first, 2)
    assert called == ["first", "second"]
    assert len(taken(second, 128)) == 128


def test_one_at_its_own_limit_waits_for_itself() -> None:
    pool = Pool(REGION, 4)
    purse = opened(pool, 10)
    held = taken(purse, 10)
    called: list[int] = []
    assert purse.take(2) is None
    purse.when_free(2, lambda: called.append(1))
    assert not pool.waiting
    held.pop().release()
    assert not called
    held.pop().release()
    assert called == [1]
    assert len(taken(purse, 2)) == 2


def test_a_place_is_free_when_the_last_slot_is_back() -> None:
    pool = Pool(REGION, 1)
    purse = opened(pool)
    held = taken(purse, 5)
    purse.close()
    for slot in held:
        assert pool.open(9) is None
        slot.release()
    assert pool.common == pool.stock
    opened(pool)


class Crowd(RuleBasedStateMachine):
    """Everybody takes, gives, waits, comes and goes as he likes."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(REGION, 4)
        self.purses: list[Purse] = []
        self.held: dict[Purse, list[Slot]] = {}
        self.granted: dict[Purse, int] = {}

    @rule()
    def come(self) -> None:
        purse = self.pool.open(140)
        assert (purse is None) == (len(self.purses) == 4)
        if purse is not None:
            self.purses.append(purse)
            self.held[purse] = []

    @rule(which=st.integers(0, 3), count=st.sampled_from([1, 2, 3, 40, 128]))
    def want(self, which: int, count: int) -> None:
        if which >= len(self.purses):
            return
        purse = self.purses[which]
        granted = self.granted.pop(purse, None)
        if granted is not None:
            count = granted
        slots = purse.take(count)
        if slots is not None:
            self.held[purse] += slots
        else:
            assert granted is None, "set aside, and not there"
            purse.when_free(count, lambda: self.granted.__setitem__(purse, count))

    @rule(which=st.integers(0, 3), count=st.integers(1, 140))
    def give(self, which: int, count: int) -> None:
        if which < len(self.purses):
            held = self.held[self.purses[which]]
            for _ in range(min(count, len(held))):
                held.pop().release()

    @rule(which=st.integers(0, 3))
    def go(self, which: int) -> None:
        if which < len(self.purses):
            purse = self.purses.pop(which)
            purse.close()
            self.granted.pop(purse, None)
            for slot in self.held.pop(purse):
                slot.release()

    @invariant()
    def adds_up(self) -> None:
        pool = self.pool
        assert pool.free + sum(map(len, self.held.values())) == pool.slots
        borrowed = sum(purse.borrowed for purse in self.purses)
        reserved = sum(purse._reserved for purse in self.purses)
        assert pool.common + borrowed + reserved == pool.stock
        assert pool.common >= 0 and pool.taken == len(self.purses)
        for purse in self.purses:
            assert purse.held == len(self.held[purse])

    @invariant()
    def nobody_waits_without_need(self) -> None:
        assert not self.pool.waiting or self.pool.shortfall > 0
        for purse in self.purses:
            assert not (purse.waits and purse in self.granted)
            if purse.waits and not purse._queued:
                assert purse.held + purse.wanted > 140

    def teardown(self) -> None:
        while self.purses:
            self.go(0)
        assert self.pool.free == self.pool.slots and self.pool.common == self.pool.stock and not self.pool.taken


TestCrowd = Crowd.TestCase
