"""States of subsystems and request configurations, and the ring of events."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.core import mlmodel
from uxk.core.mlevents import MlEventRing
from uxk.core.mllib import REQUEST_CONFIG, SUBSYSTEM, Lifecycle, way
from uxk.errors import UsageError
from uxk.uapi.ml import ModelEvent, RequestConfigState, SubsystemState

# --- states -----------------------------------------------------------------------------------------------------


def test_every_state_has_its_row() -> None:
    assert set(SUBSYSTEM) == set(SubsystemState)
    assert set(REQUEST_CONFIG) == set(RequestConfigState)


def test_a_subsystem_can_follow_its_model_wherever_it_goes() -> None:
    for before, calls in mlmodel.TABLE.items():
        for after in calls.values():
            steps = way(mlmodel.SUBSYSTEM_STATE[before], mlmodel.SUBSYSTEM_STATE[after])
            assert len(steps) <= 2, f"{before.name} to {after.name}: {steps}"


@given(st.lists(st.sampled_from(["allocate", "init", "destroy", "free"])))
def test_a_request_config_goes_where_the_table_says(calls: list[str]) -> None:
    life: Lifecycle[RequestConfigState] = Lifecycle("config", REQUEST_CONFIG, RequestConfigState.UNKNOWN)
    for call in calls:
        before = life.state
        wanted = REQUEST_CONFIG[before].get(call)
        if wanted is None:
            with pytest.raises(UsageError, match=f"{call} in state {before.name}") as caught:
                life.step(call)
            assert caught.value.errno == errno.EINVAL
            assert life.state is before
        else:
            assert life.step(call) is life.state is wanted


# --- events -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.lists(st.one_of(st.just("emit"), st.integers(0, 2))))
def test_each_reader_hears_of_everything_once_or_is_told_how_much_it_missed(capacity: int, steps: list[object]) -> None:
    ring = MlEventRing(capacity)
    readers = [ring.reader() for _ in range(3)]
    heard: list[list[int]] = [[], [], []]
    emitted = 0
    for step in steps:
        if step == "emit":
            ring.emit(emitted, ModelEvent.STATE_CHANGE, 1, new=emitted)
            emitted += 1
        elif isinstance(step, int):
            for seq, event in readers[step]:
                assert seq == event.new_value == event.timestamp_ns
                heard[step].append(seq)
    for reader, seqs in zip(readers, heard, strict=True):
        seqs += [seq for seq, _ in reader]
        assert sorted(set(seqs)) == seqs
        assert len(seqs) + reader.dropped == emitted
        assert seqs[-1:] == [emitted - 1][: len(seqs)]


def test_a_late_reader_begins_at_the_oldest_or_now_and_followers_are_woken() -> None:
    ring, woken = MlEventRing(2), list[int]()
    cancel = ring.subscribe(lambda: woken.append(ring.next_seq))
    for _ in range(3):
        ring.emit(5, ModelEvent.MODE_CHANGE, 1, 1 << 40, 3, -errno.EIO)
    cancel()
    ring.emit(6, ModelEvent.MODE_CHANGE, 1)
    assert woken == [1, 2, 3]
    late, now = ring.reader(), ring.reader(oldest=False)
    found = late.read()
    assert found is not None
    assert found[0] == 2
    assert found[1] == (ModelEvent.MODE_CHANGE, 1, (1 << 32) - 1, 3, -errno.EIO, 5)
    assert (late.dropped, now.read()) == (0, None)
