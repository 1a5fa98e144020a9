"""The event heap: order, daemons, cancellation; against a plain list as the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from uxk.core import events
from uxk.core.events import EventHeap, EventId, nanoseconds
from uxk.errors import UsageError
from uxk.limits import I64_MAX


class HeapMachine(RuleBasedStateMachine):
    """The model is the list of (due_ns, id, daemon) that should still come."""

    def __init__(self) -> None:
        super().__init__()
        self.heap = EventHeap()
        self.pending: list[tuple[int, int, bool]] = []
        self.gone: list[int] = []
        self.fired: list[int] = []
        self.count = 0

    @rule(due_ns=st.integers(-3, 40), daemon=st.booleans())
    def schedule(self, due_ns: int, daemon: bool) -> None:
        call = self.heap.call_at_daemon if daemon else self.heap.call_at
        self.count += 1
        event = call(due_ns, self.fired.append, self.count)
        assert event == self.count  # ids count up, so the argument tells which fired
        self.pending.append((due_ns, event, daemon))

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        item = data.draw(st.sampled_from(self.pending))
        self.pending.remove(item)
        self.gone.append(item[1])
        self.heap.cancel(EventId(item[1]))

    @rule(data=st.data())
    def discard(self, data: Any) -> None:
        known = [item[1] for item in self.pending] + self.gone + [self.count + 1, 0, -1]
        event = data.draw(st.sampled_from(known))
        waits = [item for item in self.pending if item[1] == event]
        assert self.heap.discard(EventId(event)) == bool(waits)
        for item in waits:
            self.pending.remove(item)
            self.gone.append(event)

    @rule(now_ns=st.integers(-5, 45))
    def pop(self, now_ns: int) -> None:
        due = sorted(item for item in self.pending if item[0] <= now_ns)
        while (found := self.heap.pop_due(now_ns)) is not None:
            callback, argument = found
            callback(argument)
            item = due.pop(0)
            assert self.fired[-1] == item[1]
            self.pending.remove(item)
            self.gone.append(item[1])
        assert due == []

    @invariant()
    def agrees(self) -> None:
        assert len(self.heap) == len(self.pending)
        assert self.heap.lasting == sum(not item[2] for item in self.pending)
        assert self.heap.next_due_ns() == min((item[0] for item in self.pending), default=None)
        assert all(self.heap.is_due(item[0]) for item in self.pending)
        assert self.heap.fired == len(self.fired)


class CompactingMachine(HeapMachine):
    """The same with a heap that compacts all the time."""

    def __init__(self) -> None:
        super().__init__()
        events._COMPACT_MIN = 2  # type: ignore[misc]

    def teardown(self) -> None:
        events._COMPACT_MIN = 1024  # type: ignore[misc]


TestHeap = HeapMachine.TestCase
TestCompactingHeap = CompactingMachine.TestCase


def test_cancelled_events_do_not_pile_up() -> None:
    heap = EventHeap()
    for i in range(50_000):
        heap.cancel(heap.call_at(10**9 + i, print))
    assert len(heap) == 0 and len(heap._heap) < 5000 and len(heap._cancelled) < 5000


def test_equal_times_run_in_the_order_of_scheduling_whatever_the_callbacks_are() -> None:
    heap = EventHeap()
    order: list[object] = []
    for argument in (object(), "x", None, 5, [], {}):  # not comparable with each other
        heap.call_at(5, order.append, argument)
    while (due := heap.pop_due(5)) is not None:
        due[0](due[1])
    assert order[1:4] == ["x", None, 5]


@pytest.mark.parametrize("value", [0, 5, -5, True, I64_MAX, np.int64(7), np.uint8(3)])
def test_integers_become_plain_ones(value: Any) -> None:
    assert nanoseconds("x_ns", value) == value and type(nanoseconds("x_ns", value)) is int


@pytest.mark.parametrize("value", [1.0, float("nan"), "5", None, b"5", I64_MAX + 1, -I64_MAX - 1, np.float64(1)])
def test_everything_else_is_refused_by_name_and_value(value: Any) -> None:
    with pytest.raises(UsageError, match="x_ns="):
        nanoseconds("x_ns", value)
