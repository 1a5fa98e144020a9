"""The wire protocol: what goes in comes out, however the stream is cut; what is no message is refused in words."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.actor import wire
from uxk.errors import ProtocolError

FROM_CHILD = (
    wire.Hello("uxk", 1, 3, "python"),
    wire.Out(3, [(b"abc", 1)], [(b"", -1), (b"d", 7)], 12, True, 99, staged=True),
    wire.Out(0, [], [], None, False, 0, more=True),
    wire.Crashed("turn", "ValueError", "no", "Traceback\n", 5, True),
    wire.Map(1 << 40, True),
    wire.Dirty(),
)


def read(data: bytes, *cuts: int, most: int = 1 << 30) -> list[wire.FromChild]:
    """Everything in ``data``, which comes in pieces that end at ``cuts``."""
    reader: wire.Reader[wire.FromChild] = wire.Reader(wire.FromChild, 64)
    found: list[wire.FromChild] = []
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        while at < cut:
            room = reader.room()
            assert len(room)
            piece = data[at : min(cut, at + len(room))]
            room[: len(piece)] = piece
            found += reader.filled(len(piece), most)
            while reader.more:
                found += (some := reader.filled(0, most))
                assert 0 < len(some) <= most
            at += len(piece)
    return found


CUTS = st.lists(st.integers(0, 400), max_size=8)


@given(st.lists(st.sampled_from(FROM_CHILD), max_size=6), CUTS, st.integers(1, 4))
def test_a_stream_may_be_cut_anywhere(messages: list[wire.FromChild], cuts: list[int], most: int) -> None:
    data = b"".join(map(wire.packed, messages))
    assert read(data, *(cut for cut in cuts if cut <= len(data)), most=most) == messages


def test_a_message_longer_than_the_buffer_has_room_made_for_it() -> None:
    big = wire.Out(1, [(bytes(100_000), 3)], [], None, False, 0)
    assert read(wire.packed(big) + wire.packed(wire.Dirty())) == [big, wire.Dirty()]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\xff\xff\xff\xff", "a message of 4294967295 bytes, expected at most 4194304"),
        (b"\0\0\0\0", "0 bytes that are no message: Input data was truncated"),
        (b"\1\0\0\0\xc1", "1 bytes that are no message"),
        (b"\x02\0\0\0\x91\x01", "2 bytes that are no message: Invalid value 1"),  # START is the kernel's to say
        (wire.packed(wire.Out(-1, [], [], None, False, 0)), "`int` >= 0"),
        (wire.packed(wire.Out(0, [], [], -5, False, 0)), "`int` >= 0"),
        (wire.packed(wire.Crashed("w" * 2000, "", "", "")), "length <= 1024"),
        (wire.packed(wire.Map(1 << 63, False)), "no message"),
        (b"\x04\0\0\0" + msgspec.msgpack.encode([68, 1, 2]), "no message"),
        (b"\x10\0\0\0" + b"\x91" * 16, "no message"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint.replace("(", r"\(")):
        read(data)


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        read(data)


def test_nothing_too_long_is_sent() -> None:
    with pytest.raises(ProtocolError, match="Out of 4194322 bytes, expected at most 4194304"):
        wire.packed(wire.Out(1, [(bytes(wire.MESSAGE_MAX_BYTES), 3)], [], None, False, 0))


def test_the_newest_common_version_is_chosen() -> None:
    assert wire.chosen_version(wire.Hello("uxk", 0, 9)) == wire.VERSION_MAX
    with pytest.raises(ProtocolError, match="versions 2 to 9, this kernel speaks 1 to 1"):
        wire.chosen_version(wire.Hello("uxk", 2, 9))
    with pytest.raises(ProtocolError, match="magic 'http', expected 'uxk'"):
        wire.chosen_version(wire.Hello("http", 1, 1))
