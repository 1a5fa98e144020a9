"""Frames from a hostile peer: the codec never raises, loses nothing legible, and believes nothing else."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.core.codec import Bad, Codec, completion_codec, down_codec, down_reply_codec, encode, frames_of, up_codec
from uxk.limits import FRAME_MAX_BYTES, I64_MAX, KMSG_FIELDS_MAX, PAYLOAD_MAX_BYTES
from uxk.uapi import entries as e

CODECS: dict[str, Codec[Any]] = {
    "down": down_codec, "reply": down_reply_codec, "up": up_codec, "completion": completion_codec
}  # fmt: skip
pack = msgspec.msgpack.encode

UPS = [
    e.Submit(1, 2, 3, b"payload", 4, 5, 6, True), e.Ready(), e.Log(3, "text", {"field": 1, "other": "x"}),
    e.Open(2, "device", "null0", 4), e.Derive(3, 4, "echo", 1, 2, 3), e.Revoke(4, 5), e.Allocate(5, 4096, "keep"),
    e.Free(6, 7), e.Acquire(7, 8, False, 9), e.Release(8, 9, 10), e.Publish(9, 10, b"data", 11), e.Pin(10, 11),
    e.Unpin(11, 12, 13), e.TreeRead(12, "/sys"), e.TreeWrite(13, "/sys/x", "1"), e.SetAttribute("name", "value", True),
    e.AddDevice(14, "disk0", {"vendor": "uxk"}), e.RemoveDevice(15, "disk0"), e.AddChardev(16, "tap"),
    e.SetPoll("tap", 5), e.FollowKmsg(17, 4, True), e.Hint(18, "site", 1, 2, b"hint", 3), e.Charge(1000),
]  # fmt: skip
REPLIES = [e.Completion(1, 5, -7, b"answer"), e.Pong(3)]
DOWNS = [e.Request(1, 2, b"x", 3, 4, 5, 6, 7), e.Event("topic", "name", b"value", 1), e.Ping(9), e.Stop("rmmod")]
GOOD = {"down": DOWNS, "reply": REPLIES, "up": UPS, "completion": [REPLIES[0]]}


@pytest.mark.parametrize("which", CODECS)
def test_every_entry_survives_the_round_trip(which: str) -> None:
    entries, bad = CODECS[which].decode(encode(GOOD[which]), 100)
    assert (entries, list(bad)) == (GOOD[which], [])


@pytest.mark.parametrize("which", CODECS)
def test_a_frame_cut_anywhere_is_refused_whole(which: str) -> None:
    frame = encode(GOOD[which])
    for end in range(len(frame)):
        assert CODECS[which].decode(frame[:end], 100) == ([], (Bad(None, "malformed_frame"),))


@pytest.mark.parametrize("which", CODECS)
def test_bytes_after_the_frame_are_refused(which: str) -> None:
    entries, bad = CODECS[which].decode(encode(GOOD[which]) + b"\x00", 100)
    assert (entries, list(bad)) == ([], [Bad(None, "malformed_frame")])


@pytest.mark.parametrize("entry", UPS, ids=lambda entry: type(entry).__name__)
def test_one_damaged_entry_costs_only_itself(entry: e.Entry) -> None:
    """Every field in turn is replaced by something of a wrong type; neighbours pass, a legible id is found."""
    fields: list[Any] = msgspec.msgpack.decode(pack(entry))
    for at in range(len(fields)):
        damaged = [*fields[:at], {"wrong": [1.5]}, *fields[at + 1 :]]
        frame = pack([pack_raw(e.Pin(77, 1)), damaged, pack_raw(e.Ready())])
        entries, bad = up_codec.decode(frame, 10)
        assert entries == [e.Pin(77, 1), e.Ready()]
        cid = getattr(entry, "cid", None) if at > 1 else None
        assert list(bad) == [Bad(cid, "malformed_entry")]


def pack_raw(entry: e.Entry) -> msgspec.Raw:
    return msgspec.Raw(pack(entry))


OUT_OF_RANGE: list[Any] = [
    [32, -1, 1], [32, I64_MAX + 1, 1], [32, 1, -1], [32, 1, 1, 1 << 31], [32, 1, 1, 0, b"", -1],
    [32, 1, 1, 0, b"", 0, 1 << 32], [32, True, 1], [32, 1.0, 1], [32, "1", 1],
    [32, 1, 1, 0, b"x" * (PAYLOAD_MAX_BYTES + 1)], [34, 8, "level"], [34, -1, "level"], [34, 1, "x" * 1025],
    [34, 1, "x", {f"f{n}": n for n in range(KMSG_FIELDS_MAX + 1)}],
    [34, 1, "x", {"": 1}], [34, 1, "x", {1: 1}], [34, 1, "x", {"a": None}], [34, 1, "x", {"a": 1.5}],
    [35, 1, "", "x", 1], [36, 1, 1, "x" * 56, 1], [45, 1, ""], [52, 1, 8], [54, -1],
    [33, 1], [37, 1, 2, 3], [0], [-1, 1], [255, 1], [1 << 40, 1], ["32", 1, 1], [None, 1], [],
    None, 7, "text", {}, {"cid": 1},
]  # fmt: skip


@pytest.mark.parametrize("wrong", OUT_OF_RANGE, ids=lambda wrong: repr(wrong)[:40])
def test_values_out_of_range_and_unknown_tags_are_refused(wrong: Any) -> None:
    entries, bad = up_codec.decode(pack([wrong, [33]]), 10)
    assert entries == [e.Ready()]
    assert [each.reason for each in bad] == ["malformed_entry"]
    tag_carries_id = isinstance(wrong, list) and len(wrong) > 1 and wrong[0] in (32, 35, 36, 37, 45, 52)
    legible = tag_carries_id and type(wrong[1]) is int and 0 <= wrong[1] <= I64_MAX
    assert bad[0].cid == (wrong[1] if legible else None)


@pytest.mark.parametrize(
    "frame",
    [
        b"", b"\x00", b"\xc1", b"\xff", b"\x90\x90", pack("text"), pack({}), pack(None), pack(b"x" * 100),
        b"\xdd\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff" + b"\x90" * 1000, b"\xdc\xff\xff",
        b"\x91\x93\x20\x01\xc6\xff\xff\xff\xff", b"\x91\xdd\xff\xff\xff\xff\x20", b"\x91\xdf\xff\xff\xff\xff",
        b"\x91" * 100_000, b"\x81" * 100_000, b"\x91" * 1_000_000 + b"\xc0", b"\x91\x93\x22\x01\xa2\xff\xfe",
        b"\x91\x94\x22\x01\xa1x\x81\xa1\xff\x01", b"\x91\xc7\x04\x01abcd", b"\x91\xd6\xff\x00\x00\x00\x00",
    ],
    ids=lambda frame: frame[:12].hex(),
)  # fmt: skip
def test_nonsense_lengths_nesting_and_text_are_refused(frame: bytes) -> None:
    for codec in CODECS.values():
        entries, bad = codec.decode(frame, 10)
        assert entries == []
        assert all(each.cid is None for each in bad)
        assert bad or frame == b"\x90"


def test_deep_nesting_inside_an_entry_spares_the_others() -> None:
    deep = b"\x93\x20\x07" + b"\x91" * 5000 + b"\xc0"
    entries, bad = up_codec.decode(b"\x92" + deep + b"\x91\x21", 10)
    assert (entries, list(bad)) in (
        ([e.Ready()], [Bad(7, "malformed_entry")]),
        ([], [Bad(None, "malformed_frame")]),  # where even skipping it goes too deep
    )


def test_an_oversized_frame_is_not_even_looked_at() -> None:
    assert up_codec.decode(b"\x90" + bytes(FRAME_MAX_BYTES), 10) == ([], (Bad(None, "oversized"),))


@pytest.mark.parametrize("damage", [False, True])
@pytest.mark.parametrize("claimed", [0, 1, 3, 4, 5])
def test_more_entries_than_claimed_are_cut_off_and_counted(claimed: int, damage: bool) -> None:
    frame = pack([[33], [33], [99] if damage else [33], [33]])
    entries, bad = up_codec.decode(frame, claimed)
    reasons = [each.reason for each in bad]
    assert reasons.count("too_many") == max(0, 4 - claimed)
    assert len(entries) + len(reasons) == 4
    assert all(entry == e.Ready() for entry in entries)


def test_duplicated_ids_pass_the_codec_and_are_the_tables_to_judge() -> None:
    twice = [e.Completion(5), e.Completion(5)]
    assert down_reply_codec.decode(encode(twice), 2) == (twice, ())


def test_a_batch_over_the_frame_limit_becomes_several_frames_in_order() -> None:
    entries = [e.Request(n, payload=os.urandom(PAYLOAD_MAX_BYTES)) for n in range(11)]
    frames = frames_of(entries)
    assert len(frames) > 1
    assert sum(count for _, count in frames) == 11
    got: list[e.Entry] = []
    for frame, count in frames:
        assert len(frame) <= FRAME_MAX_BYTES
        decoded, bad = down_codec.decode(frame, count)
        assert not bad
        got += decoded
    assert got == entries


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
mutated = st.builds(
    lambda entry, at, value: [*(fields := msgspec.msgpack.decode(pack(entry)))[:at], value, *fields[at + 1 :]],
    st.sampled_from([*UPS, *REPLIES, *DOWNS]), st.integers(0, 8), json_like,
)  # fmt: skip
frames = st.one_of(
    st.binary(max_size=60),
    st.lists(mutated | json_like, max_size=6).map(pack),
    st.tuples(st.lists(mutated, max_size=4).map(pack), st.integers(0, 200), st.binary(max_size=4)).map(
        lambda item: item[0][: item[1]] + item[2] + item[0][item[1] + len(item[2]) :]
    ),
)


@given(frames, st.integers(0, 8), st.sampled_from(sorted(CODECS)))
def test_whatever_the_bytes_it_never_raises_and_stays_within_the_claim(frame: bytes, claimed: int, which: str) -> None:
    entries, bad = CODECS[which].decode(frame, claimed)
    assert len(entries) <= claimed
    for entry in entries:  # what passes is exactly what a friendly peer could have sent
        assert CODECS[which].decode(encode([entry]), 1) == ([entry], ())
    assert all(each.cid is None or 0 <= each.cid <= I64_MAX for each in bad)
