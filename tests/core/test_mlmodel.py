"""The tables of model and dataset states, against kernel-ml-lib's vocabulary."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.core.dataset import READABLE, TABLE, Extraction, Step
from uxk.core.mlmodel import OPERATIONS, SUBSYSTEM_STATE, after
from uxk.core.mlmodel import TABLE as MODEL_TABLE
from uxk.errors import UsageError
from uxk.uapi import ml
from uxk.uapi.ml import DatasetState, ModelState, SubsystemState


def test_numbers_are_those_of_the_reference() -> None:
    assert [mode.name for mode in ml.Mode] == ["UNKNOWN", "EMERGENCY", "LEARNING", "COLLABORATION", "RECOMMENDATION"]
    assert (ModelState.STOPPED, ModelState.SHUTTING_DOWN, ModelState.DEAD) == (5, 6, 7)
    assert (SubsystemState.SHUTTING_DOWN, SubsystemState.STOPPED) == (5, 6)
    assert [state.value for state in DatasetState] == list(range(8))
    assert ml.DatasetState.CORRUPTED == 7 and ml.DatasetType.MEMORY_STREAM == 4
    assert [ml.CONTROL_COMMANDS[word] for word in ("start", "stop", "prepare_dataset", "discard_dataset")] == [
        1,
        2,
        3,
        4,
    ]
    assert {each.value for each in ml.ModelEvent} == {1, 2, 3, 4, 5, 6, 16}


def test_records_survive_the_wire() -> None:
    dataset = ml.Dataset(1, "writes", ml.DatasetType.STRUCTURE, DatasetState.CLEAN, 80, 0, 8, (("lba", "<u8"),), 3, 1)
    info = ml.ModelInfo(1, "lfs", "lfs0", ml.Mode.LEARNING, ModelState.RUNNING, ("a",), (dataset,), (4,))
    change = ml.ModeChange(5, 6, ml.Mode.LEARNING, ml.Mode.EMERGENCY, "why")
    feedback = [ml.Feedback(1, "a", 2, 3, 4, "", 5, 6)]
    assert ml.decode_dataset(ml.encode(dataset)) == dataset
    assert ml.decode_model(ml.encode(info)) == info
    assert ml.decode_mode(ml.encode(change)) == change
    assert ml.decode_feedback(ml.encode(feedback)) == feedback
    assert ml.decode_generation(ml.encode(7)) == 7


# --- models ---


def test_there_are_eighteen_operations_and_each_is_legal_somewhere() -> None:
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 18
    assert {call for calls in MODEL_TABLE.values() for call in calls} == set(OPERATIONS)
    assert set(MODEL_TABLE) == set(ModelState) == set(SUBSYSTEM_STATE)


@pytest.mark.parametrize(("state", "call", "number"), [
    (ModelState.UNKNOWN, "start", errno.EINVAL), (ModelState.CREATED, "start", errno.EINVAL),
    (ModelState.INITIALIZED, "publish_data", errno.EINVAL), (ModelState.STARTED, "start", errno.EBUSY),
    (ModelState.RUNNING, "destroy", errno.EBUSY), (ModelState.RUNNING, "re_init", errno.EBUSY),
    (ModelState.STOPPED, "get_dataset", errno.EINVAL), (ModelState.DEAD, "create", errno.EINVAL),
])  # fmt: skip
def test_an_illegal_call_names_state_and_call(state: ModelState, call: str, number: int) -> None:
    with pytest.raises(UsageError, match=rf"model m: {call} in state {state.name}") as caught:
        after("m", state, call)
    assert caught.value.errno == number


@given(st.lists(st.sampled_from(OPERATIONS), max_size=30))
def test_nothing_flows_in_a_model_that_is_not_started(calls: list[str]) -> None:
    state = ModelState.UNKNOWN
    for call in calls:
        try:
            state = after("m", state, call)
        except UsageError:
            continue
        if call in ("get_dataset", "publish_data", "apply_recommendation"):
            assert state is ModelState.RUNNING


# --- datasets ---


def test_portions_are_read_in_order_and_told_as_states() -> None:
    extraction = Extraction("d")
    with pytest.raises(UsageError, match="nothing to read") as caught:
        extraction.portion(0, 1)
    assert caught.value.errno == errno.ENODATA
    extraction.prepared(10)
    assert extraction.portion(0, 4) == (0, 4)
    assert extraction.state is DatasetState.EXTRACTED_PARTIALLY
    with pytest.raises(UsageError, match="4 of 10 bytes are extracted"):
        extraction.portion(5, 5)
    with pytest.raises(UsageError, match=r"portion 4\+7"):
        extraction.portion(4, 7)
    assert extraction.portion(2, 2) == (2, 2)
    assert extraction.portion(4, 0) == (4, 6)
    assert extraction.state is DatasetState.EXTRACTED_COMPLETELY
    extraction.portion(0, 3)
    assert extraction.state is DatasetState.EXTRACTED_COMPLETELY
    extraction.step(Step.DISCARD)
    with pytest.raises(UsageError, match="OBSOLETE"):
        extraction.portion(0, 1)
    with pytest.raises(UsageError, match="corrupt in state OBSOLETE; legal here: prepare"):
        extraction.step(Step.CORRUPT)
    extraction.prepared(0)
    assert extraction.portion(0, 0) == (0, 0) and extraction.state is DatasetState.EXTRACTED_COMPLETELY
    extraction.free()
    with pytest.raises(UsageError, match="legal here: nothing"):
        extraction.step(Step.PREPARE)


def test_what_is_not_readable_can_always_be_prepared_anew() -> None:
    for state in DatasetState:
        if state is not DatasetState.UNKNOWN:
            assert TABLE[state][Step.PREPARE] is DatasetState.CLEAN
            assert (Step.LAST in TABLE[state]) == (state in READABLE)
