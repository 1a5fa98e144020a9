"""Checkpoints: read by whom they were meant for, whole or not at all."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.core.checkpoint import Slots, libraries_of, pack, unpack
from uxk.errors import UsageError
from uxk.limits import U64_MAX

MINE = {"module": "gc", "state_version": 2, "libraries": {"river": "0.22.0"}}


def test_what_was_packed_comes_back() -> None:
    blob = pack(b"model", **MINE)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert libraries_of(blob) == ("river",)
    assert unpack(blob, **MINE) == b"model"  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_what_does_not_fit_is_named() -> None:
    blob = pack(b"", **MINE)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError) as caught:
        unpack(blob, module="other", state_version=3, libraries={})
    for says in ("module gc, expected other", "state version 2, expected 3", "river 0.22.0, expected none"):
        assert says in str(caught.value)
    for rubbish in (b"", b"rubbish", blob[:-1]):
        with pytest.raises(UsageError, match="unreadable"):
            unpack(rubbish, module="gc", state_version=2, libraries={})
        assert libraries_of(rubbish) == ()


def test_too_long_and_too_small() -> None:
    slots = Slots(memoryview(bytearray(200)))
    assert slots.newest is None and not slots.deadly
    slots.write(b"x" * slots.room)
    with pytest.raises(UsageError, match="room for 60") as caught:
        slots.write(b"x" * (slots.room + 1))
    assert caught.value.errno == errno.ENOSPC
    assert slots.newest == b"x" * slots.room
    with pytest.raises(UsageError, match="64 bytes of memory"):
        Slots(memoryview(bytearray(64)))


def test_a_number_that_has_no_successor_is_survived() -> None:
    memory = bytearray(256)
    slots = Slots(memoryview(memory))
    slots.write(b"one")
    struct.pack_into("<Q", memory, 8, U64_MAX)
    assert slots.newest == b"one"
    assert slots.write(b"two") == 1
    assert slots.newest == b"two"


def test_what_killed_its_reader_is_known() -> None:
    memory = bytearray(256)
    slots = Slots(memoryview(memory))
    slots.write(b"one")
    slots.tried()
    assert Slots(memoryview(memory)).deadly
    slots.survived()
    assert not slots.deadly
    slots.tried()
    slots.write(b"two")
    assert not slots.deadly and slots.newest == b"two"
    slots.clear()
    assert slots.newest is None


@given(
    blobs=st.lists(st.binary(max_size=80), min_size=1, max_size=6), cut=st.integers(0, 300), junk=st.binary(min_size=1)
)
def test_a_torn_write_leaves_the_one_before(blobs: list[bytes], cut: int, junk: bytes) -> None:
    memory = bytearray(300)
    slots = Slots(memoryview(memory))
    states = [bytes(memory)]
    for blob in blobs:
        slots.write(blob)
        states.append(bytes(memory))
    assert slots.newest == blobs[-1]
    # A writer that dies after `cut` bytes of its data: the header is void until the end.
    begin = 0 if states[-2][:150] != states[-1][:150] else 150
    torn = bytearray(states[-2])
    torn[begin : begin + 40] = bytes(40)
    data = (junk * 110)[: min(cut, 110)]
    torn[begin + 40 : begin + 40 + len(data)] = data
    before = blobs[-2] if len(blobs) > 1 else None
    assert Slots(memoryview(torn)).newest == before


@given(st.binary(max_size=300), st.binary(max_size=60))
def test_any_bytes_at_all_are_read_or_refused(memory: bytes, blob: bytes) -> None:
    slots = Slots(memoryview(bytearray(memory.ljust(300, b"\0"))))
    for text in (slots.newest or b"", blob, pack(blob, module="gc", state_version=2, libraries={})):
        libraries_of(text)
        try:
            unpack(text, module="gc", state_version=2, libraries={})
        except UsageError:
            continue
    slots.write(blob)
    assert slots.newest == blob
