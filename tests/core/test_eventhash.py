"""The event hash: a digest of the history, of all of it, and of nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.core import eventhash
from uxk.core.eventhash import EventHash, HashedEvent
from uxk.limits import I64_MAX

KINDS = st.sampled_from(["in", "up", "replies", "start", "gone", "crash"])
EVENTS = st.tuples(st.integers(0, I64_MAX), KINDS, st.integers(0, 99), st.binary(max_size=12))
HISTORY = st.lists(EVENTS, max_size=40)


def digest(history: list[HashedEvent], looks: frozenset[int] = frozenset()) -> str:
    hashed = EventHash()
    for i, event in enumerate(history):
        if i in looks:
            hashed.hexdigest()
        hashed.note(*event)
    assert hashed.count == len(history)
    return hashed.hexdigest()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventhash, "_BLOCK_EVENTS", 4)


@given(HISTORY, st.frozensets(st.integers(0, 40)))
def test_equal_histories_have_equal_digests_and_looking_changes_nothing(
    history: list[HashedEvent], looks: frozenset[int]
) -> None:
    assert digest(history) == digest(list(history), looks)


@given(HISTORY, HISTORY)
def test_different_histories_have_different_digests(one: list[HashedEvent], two: list[HashedEvent]) -> None:
    assert (digest(one) == digest(two)) == (one == two)


@given(st.lists(EVENTS, min_size=1, max_size=20), st.data())
def test_every_part_of_every_event_counts(history: list[HashedEvent], data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(history) - 1))
    now_ns, kind, instance, payload = history[i]
    for other in (
        (now_ns ^ 1, kind, instance, payload), (now_ns, kind + "x", instance, payload),
        (now_ns, kind, instance + 1, payload), (now_ns, kind, instance, payload + b"\0"),
    ):  # fmt: skip
        assert digest([*history[:i], other, *history[i + 1 :]]) != digest(history)
    assert digest([*history, history[-1]]) != digest(history) != digest(history[:-1])


def test_bytes_cannot_move_from_one_event_to_the_next() -> None:
    assert digest([(1, "in", 1, b"ab"), (1, "in", 1, b"c")]) != digest([(1, "in", 1, b"a"), (1, "in", 1, b"bc")])


@given(HISTORY)
def test_the_sink_sees_everything_and_changes_nothing(history: list[HashedEvent]) -> None:
    hashed, seen = EventHash(), []
    hashed.sink = lambda *event: seen.append(event)
    for event in history:
        hashed.note(*event)
    assert seen == history and hashed.hexdigest() == digest(history)


@given(HISTORY, st.integers(0, 99), st.integers(1, 10))
def test_the_last_events_of_an_instance_are_at_hand(history: list[HashedEvent], instance: int, most: int) -> None:
    hashed = EventHash()
    for event in history:
        hashed.note(*event)
    recent = history[(len(history) // 4 - 1) * 4 if len(history) >= 4 else 0 :]
    assert hashed.last(instance, most) == [event for event in recent if event[2] == instance][-most:]


@given(st.integers(0, 20_000), st.integers(0, 19_999))
def test_long_data_count_to_the_last_byte_though_the_record_keeps_little(length: int, place: int) -> None:
    data = bytes(length)
    hashed = EventHash()
    hashed.note(1, "in", 1, data)
    assert len(hashed.last(1, 1)[0][3]) <= 4096
    other = bytearray(data)
    if length:
        other[place % length] ^= 1
        assert digest([(1, "in", 1, bytes(other))]) != hashed.hexdigest()
    assert digest([(1, "in", 1, data + b"\0")]) != hashed.hexdigest()
