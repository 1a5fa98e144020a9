from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from uxk.core.ring import Ring
from uxk.errors import RingFull, UsageError
from uxk.limits import QUEUE_DEPTH_MAX, U32_MAX


def drained(ring: Ring) -> list[tuple[bytes, int]]:
    """All frames, oldest first."""
    return list(iter(ring.pop, None))


@pytest.mark.parametrize("depth", [-2, 0, 1, 3, 6, QUEUE_DEPTH_MAX + 1, QUEUE_DEPTH_MAX * 2])
def test_a_depth_that_is_no_power_of_two_in_range_is_refused(depth: int) -> None:
    with pytest.raises(UsageError, match=str(depth)):
        Ring(depth)


@pytest.mark.parametrize("count", [0, -1, 5, 1 << 70])
def test_a_claim_that_cannot_be_is_refused_and_changes_nothing(count: int) -> None:
    ring = Ring(4)
    ring.push(b"x", 1)
    before = ring.statistics()
    with pytest.raises(RingFull) as caught:
        ring.push(b"y", count)
    assert caught.value.errno_name == "EAGAIN"
    assert ring.statistics() == before._replace(full=1)


def test_a_doorbell_rings_once_until_the_consumer_sleeps_again() -> None:
    ring = Ring(8)
    assert [ring.push(b"a", 1), ring.push(b"b", 2), ring.push(b"c", 1)] == [True, False, False]
    assert drained(ring) == [(b"a", 1), (b"b", 2), (b"c", 1)]
    assert not ring.push(b"d", 1)  # it has not said that it sleeps
    ring.need_wakeup = True
    assert ring.push(b"e", 1)
    assert ring.doorbells == 2


def test_an_unused_ring_costs_no_slots() -> None:
    assert drained(Ring(QUEUE_DEPTH_MAX)) == []
    ring = Ring(QUEUE_DEPTH_MAX)
    ring.hand_over(b"x", QUEUE_DEPTH_MAX)
    assert ring._frames is None


class RingMachine(RuleBasedStateMachine):
    """A ring beside a plain list, begun where its counters are about to wrap."""

    @initialize(depth=st.sampled_from([2, 4, 8]), start=st.integers(U32_MAX - 20, U32_MAX + 3) | st.integers(0, 3))
    def begin(self, depth: int, start: int) -> None:
        self.ring = Ring(depth, start=start)
        self.model: list[tuple[bytes, int]] = []
        self.asleep = True
        self.frames = self.entries = self.bytes = self.doorbells = self.full = self.used_max = 0

    @property
    def used(self) -> int:
        return sum(count for _, count in self.model)

    def note(self, frame: bytes, count: int, used: int) -> None:
        self.frames += 1
        self.entries += count
        self.bytes += len(frame)
        self.used_max = max(self.used_max, used)

    @rule(frame=st.binary(max_size=5), count=st.integers(-1, 10))
    def push(self, frame: bytes, count: int) -> None:
        if count <= 0 or self.used + count > self.ring.depth:
            with pytest.raises(RingFull):
                self.ring.push(frame, count)
            self.full += 1
            return
        assert self.ring.push(frame, count) is self.asleep
        self.doorbells += self.asleep
        self.asleep = False
        self.model.append((frame, count))
        self.note(frame, count, self.used)

    @rule()
    def pop(self) -> None:
        assert self.ring.pop() == (self.model.pop(0) if self.model else None)

    @rule()
    def drain(self) -> None:
        assert drained(self.ring) == self.model
        self.model = []

    @rule()
    def sleep(self) -> None:
        self.ring.need_wakeup = self.asleep = True

    @precondition(lambda self: not self.model)
    @rule(frame=st.binary(max_size=5), count=st.integers(-1, 10))
    def hand_over(self, frame: bytes, count: int) -> None:
        if not 0 < count <= self.ring.depth:
            with pytest.raises(RingFull):
                self.ring.hand_over(frame, count)
            self.full += 1
            return
        self.ring.hand_over(frame, count)
        self.note(frame, count, count)

    @invariant()
    def same(self) -> None:
        assert (self.ring.used, self.ring.free) == (self.used, self.ring.depth - self.used)
        assert self.ring.need_wakeup is self.asleep
        assert self.ring.statistics() == (
            self.ring.depth, self.used, self.used_max, self.frames, self.entries, self.bytes, self.doorbells, self.full
        )  # fmt: skip


TestRing = RingMachine.TestCase
