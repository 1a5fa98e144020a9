from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.core.lifecycle import TRANSITIONS, Event, ModuleState, advance, allowed
from uxk.errors import KernelBug

S = ModuleState


def test_numbers_and_texts_are_linux() -> None:
    assert [S.LIVE, S.COMING, S.GOING, S.UNFORMED] == [0, 1, 2, 3]
    assert S.LIVE.initstate == "live"


def test_a_life_with_one_crash() -> None:
    state = S.UNFORMED
    seen = [state]
    for event in (
        Event.FORM, Event.READY, Event.DIE, Event.RETRY, Event.READY, Event.STOP, Event.RECLAIMED,
    ):  # fmt: skip
        state = advance(state, event)
        seen.append(state)
    assert seen == [
        S.UNFORMED, S.COMING, S.LIVE, S.RESTARTING, S.COMING, S.LIVE, S.GOING, S.GONE,
    ]  # fmt: skip


@pytest.mark.parametrize("state", ModuleState)
@pytest.mark.parametrize("event", Event)
def test_every_pair_moves_or_is_a_bug(state: ModuleState, event: Event) -> None:
    if allowed(state, event):
        assert advance(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(KernelBug, match=f"event {event.name} in state {state.name}"):
            advance(state, event)


def test_the_table_keeps_its_theory() -> None:
    assert set(TRANSITIONS) == set(ModuleState)
    into_gone = [(s, e) for s, row in TRANSITIONS.items() for e in row if row[e] is S.GONE]
    assert into_gone == [(S.GOING, Event.RECLAIMED)]
    into_coming = {e for row in TRANSITIONS.values() for e in row if row[e] is S.COMING}
    assert into_coming == {Event.FORM, Event.RETRY}
    assert not TRANSITIONS[S.GONE]
    assert all(allowed(s, Event.STOP) for s in S if s not in (S.GOING, S.GONE))


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_every_life_can_end(events: list[Event]) -> None:
    state = S.UNFORMED
    for event in events:
        if allowed(state, event):
            state = advance(state, event)
    if allowed(state, Event.STOP):
        state = advance(state, Event.STOP)
    if state is S.GOING:
        state = advance(state, Event.RECLAIMED)
    assert state is S.GONE


def test_the_table_is_read_only() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[S.GONE] = {}  # type: ignore[index]
