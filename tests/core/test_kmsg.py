"""The kernel log: ring, readers, followers, formats; and the rate limits."""

from __future__ import annotations

import errno
import json
import re
from fractions import Fraction
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from uxk import limits
from uxk.core import kmsg
from uxk.core.kmsg import (
    KmsgReader,
    KmsgRing,
    Record,
    format_dev_kmsg,
    format_dmesg,
    parse_level,
    to_json,
)
from uxk.core.ratelimit import RateLimit, TokenBucket
from uxk.errors import TreeError, UsageError

SECOND = limits.NS_PER_S


def fill(ring: KmsgRing, count: int, level: int = kmsg.INFO) -> None:
    for _ in range(count):
        ring.log(0, level, "test", f"line {ring.next_seq}")


def test_the_ring_keeps_the_newest_and_counts_the_rest() -> None:
    ring = KmsgRing(4)
    assert (ring.records(), ring.first_seq) == ([], 0)
    fill(ring, 6)
    assert [record.seq for record in ring.records()] == [2, 3, 4, 5]
    assert ring.get(2).text == "line 2"
    for seq in (1, 6, -1):
        with pytest.raises(UsageError) as caught:
            ring.get(seq)
        assert caught.value.errno == errno.ENOENT
    ring.log(0, kmsg.ERR, "disk", "bad")
    assert [record.text for record in ring.records(max_level=kmsg.ERR)] == ["bad"]
    assert [record.seq for record in ring.records(source="test", newest=2)] == [4, 5]
    assert ring.records(newest=0) == []
    statistics = ring.statistics()
    assert (statistics.logged, statistics.held, statistics.dropped) == (7, 4, 3)
    assert statistics.by_level == (0, 0, 0, 1, 0, 0, 6, 0)
    with pytest.raises(UsageError):
        KmsgRing(0)


def test_readers_start_anywhere_and_learn_what_they_lost() -> None:
    ring = KmsgRing(4)
    fill(ring, 3)
    now, oldest, third = ring.reader("now"), ring.reader(), ring.reader(2)
    assert now.read() is None
    assert [record.seq for record in oldest] == [0, 1, 2]
    fill(ring, 5)
    assert [record.seq for record in third] == [4, 5, 6, 7]
    assert third.lost == 2
    assert [record.seq for record in now] == [4, 5, 6, 7]
    assert (now.lost, oldest.lost) == (1, 0)
    late = ring.reader(0)
    assert late.read() is not None
    assert late.lost == 4
    assert ring.reader(10**9).next_seq == 8
    assert ring.reader(-5).next_seq == 0
    ring.log(0, kmsg.CRIT, "x", "y")
    assert [record.level for record in ring.reader(max_level=kmsg.CRIT)] == [kmsg.CRIT]


def test_everything_logged_is_bounded() -> None:
    ring = KmsgRing(8)
    fields: dict[str, str | int] = {f"key{i}": "v" * 5000 for i in range(40)}
    ring.log(0, 99, "s" * 500, "é" * 5000, fields)
    ring.log(0, -3, "s", "\ud800" * 5000, {"k" * 99: 1 << 70, "a b=\n": True, "a c=\n": -5})
    ring.log(0, 6, "s", "x" * limits.KMSG_TEXT_MAX_BYTES + "\n", {"big": 10**5000})
    first, second, third = ring.records()
    assert (first.level, second.level) == (7, 0)
    for record in (first, second, third):
        assert len(record.text.encode()) <= limits.KMSG_TEXT_MAX_BYTES
        assert len(record.source.encode()) <= limits.NAME_MAX_BYTES
        assert len(record.fields) <= limits.KMSG_FIELDS_MAX
        assert all(len(str(v).encode()) <= kmsg.FIELD_VALUE_MAX_BYTES for v in record.fields.values())
    assert first.text.endswith("é<truncated>")
    assert second.text.startswith("\\ud800")
    assert second.fields["a_b__"] == 1
    assert third.text == "x" * limits.KMSG_TEXT_MAX_BYTES
    assert ring.statistics().truncated == 3


def test_fields_are_a_copy() -> None:
    ring = KmsgRing(8)
    fields: dict[str, str | int] = {"a": 1}
    ring.log(0, 6, "s", "x", fields)
    fields["a"] = 2
    assert ring.get(0).fields == {"a": 1}


def test_followers_are_woken_dropped_and_cannot_loop() -> None:
    ring = KmsgRing(16)
    reader = ring.reader("now")
    got: list[str] = []

    def echo() -> None:
        got.extend(record.text for record in iter(reader.read, None))
        ring.log(0, 6, "echo", "said by a follower")

    def broken() -> None:
        raise KeyError("x")

    cancel = ring.subscribe(echo)
    ring.subscribe(broken)
    ring.log(0, 6, "s", "hello")
    assert got == ["hello", "said by a follower", "follower dropped: KeyError: 'x'"]
    assert ring.statistics().followers == 1
    assert ring.next_seq == 4
    cancel()
    ring.log(0, 6, "s", "unheard")
    assert len(got) == 3
    for _ in range(limits.POLL_WAITERS_MAX):
        ring.subscribe(broken)
    with pytest.raises(TreeError) as caught:
        ring.subscribe(broken)
    assert caught.value.errno == errno.ENOSPC


def test_a_hostile_follower_exception_is_contained() -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def rude() -> None:
        raise Rude

    ring = KmsgRing(16)
    ring.subscribe(rude)
    ring.log(0, 6, "s", "x")
    assert ring.get(1).text == "follower dropped: Rude"


def record(text: str, source: str = "nvme", time_ns: int = 5_123_456_789, level: int = 4) -> Record:
    return Record(339, time_ns, level, kmsg.FACILITY_KERNEL, source, text, {"DEVICE": "+x:1", "n": 3})


def test_formats() -> None:
    assert format_dmesg(record("up")) == "[    5.123456] nvme: up"
    assert format_dmesg(record("a\nb\x1b\\é\t", "", 0)) == "[    0.000000] a\n[    0.000000] b\\x1b\\é\t"
    assert format_dmesg(record("x", time_ns=123_456 * SECOND)) == "[123456.000000] nvme: x"
    assert format_dev_kmsg(record("up")) == "4,339,5123456,-;nvme: up\n DEVICE=+x:1\n n=3\n"
    user = Record(0, 0, 6, kmsg.FACILITY_USER, "", "a\nb\\é", {"k": "1\n2"})
    assert format_dev_kmsg(user) == "14,0,0,-;a\\x0ab\\x5c\\xc3\\xa9\n k=1\\x0a2\n"
    assert json.loads(json.dumps(to_json(record("up")))) == {
        "seq": 339, "time_ns": 5_123_456_789, "level": "warning", "facility": 0, "source": "nvme",
        "text": "up", "fields": {"DEVICE": "+x:1", "n": 3},
    }  # fmt: skip


@given(st.text(max_size=60), st.text(max_size=20), st.dictionaries(st.text(max_size=9), st.text()))
def test_no_text_breaks_the_formats(text: str, source: str, fields: dict[str, str]) -> None:
    ring = KmsgRing(2)
    ring.log(7, 3, source, text, dict(fields), facility=kmsg.FACILITY_USER)
    entry = ring.get(0)
    first, *more = format_dev_kmsg(entry).splitlines()
    assert re.fullmatch(r"11,0,0,-;[ -~]*", first)
    assert len(more) == len(entry.fields)
    assert all(re.fullmatch(r" \w+=[ -~]*", line, re.ASCII) for line in more)
    body = first.partition(";")[2].encode()
    plain = re.sub(rb"\\x(..)", lambda match: bytes.fromhex(match[1].decode()), body).decode()
    assert plain == (f"{entry.source}: {entry.text}" if entry.source else entry.text)
    for line in format_dmesg(entry).split("\n"):
        assert line.startswith("[    0.000000] ")
        assert line.replace("\t", "").isprintable()
    json.dumps(to_json(entry)).encode()


def test_parse_level() -> None:
    names = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"]
    assert [parse_level(name) for name in names] == list(range(8))
    assert [parse_level(text) for text in ("warn", " Error ", "panic", "4", 4, "0")] == [4, 3, 0, 4, 4, 0]
    for bad in ("", "8", "-1", "loud", "٣", "44", 8, -1, 10**5000, "x" * 9999):
        with pytest.raises(UsageError, match="expected 0 to 7 or one of emerg") as caught:
            parse_level(bad)
        assert len(str(caught.value)) < 200


class KmsgMachine(RuleBasedStateMachine):
    """A reader sees every record once and in order, or counts it as lost."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = KmsgRing(5)
        self.readers: list[tuple[KmsgReader, int, list[int]]] = []

    @rule(count=st.integers(1, 12))
    def log(self, count: int) -> None:
        fill(self.ring, count)

    @rule(back=st.integers(0, 8))
    def open(self, back: int) -> None:
        start = max(0, self.ring.next_seq - back)
        self.readers.append((self.ring.reader(start), start, []))

    @rule(data=st.data(), count=st.integers(1, 6))
    def read(self, data: st.DataObject, count: int) -> None:
        if self.readers:
            reader, _, seen = data.draw(st.sampled_from(self.readers))
            seen += [entry.seq for entry in islice(reader, count)]

    @invariant()
    def nothing_is_lost_silently(self) -> None:
        assert len(self.ring.records()) == min(5, self.ring.next_seq)
        for reader, start, seen in self.readers:
            assert seen == sorted(set(seen))
            assert len(seen) + reader.lost == reader.next_seq - start
            assert reader.next_seq <= self.ring.next_seq


TestKmsgMachine = KmsgMachine.TestCase


def test_rate_limit_passes_a_burst_per_interval_and_reports_the_rest() -> None:
    limit = RateLimit(2, 10)
    assert [limit.allow(now) for now in (100, 101, 102, 109)] == [True, True, False, False]
    assert limit.allow(110)
    assert (limit.take_suppressed(), limit.take_suppressed(), limit.suppressed_total) == (2, 0, 2)
    assert not RateLimit(0, 10).allow(0)
    assert all(RateLimit(0, 0).allow(0) for _ in range(5))
    for burst, interval_ns in ((-1, 0), (0, -1)):
        with pytest.raises(UsageError):
            RateLimit(burst, interval_ns)


@given(st.integers(0, 5), st.integers(1, 50), st.lists(st.integers(0, 30), max_size=60))
def test_rate_limit_never_exceeds_its_burst(burst: int, interval: int, steps: list[int]) -> None:
    limit, now, passed = RateLimit(burst, interval), 0, []
    for step in steps:
        now += step
        if limit.allow(now):
            passed.append(now)
    assert len(passed) + limit.suppressed == len(steps)
    for first in passed:
        # an interval of any position touches at most two of the limit's own
        assert sum(first <= at < first + interval for at in passed) <= 2 * burst


def test_token_bucket_is_exact() -> None:
    bucket = TokenBucket(3, 2)
    assert [bucket.take(0) for _ in range(3)] == [True, True, False]
    assert not bucket.take(SECOND // 3)  # a third of a second, rounded down, is just not enough
    assert bucket.take(SECOND // 3 + 1)
    assert bucket.take(100 * SECOND, 2)
    assert not bucket.take(0)
    assert (bucket.tokens, bucket.refused) == (0, 3)
    assert bucket.take(100 * SECOND, 0)
    assert not bucket.take(200 * SECOND, 3)
    with pytest.raises(UsageError):
        bucket.take(0, -1)
    with pytest.raises(UsageError):
        TokenBucket(-1, 0)


@given(
    st.integers(0, 5),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(0, SECOND), st.integers(0, 3)), max_size=50),
)
def test_token_bucket_agrees_with_exact_fractions(rate: int, burst: int, steps: list[tuple[int, int]]) -> None:
    bucket, now, saved = TokenBucket(rate, burst), 0, Fraction(burst)
    for step, n in steps:
        now += step
        saved = min(saved + Fraction(step * rate, SECOND), Fraction(burst))
        assert bucket.take(now, n) == (saved >= n)
        saved -= n if saved >= n else 0
        assert bucket.tokens == int(saved)
