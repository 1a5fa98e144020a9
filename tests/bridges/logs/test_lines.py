"""Lines of either form: what was logged comes back, and what is no line is refused by name."""

from __future__ import annotations

import json
import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk import limits
from uxk.bridges.logs.lines import Origin, format_line, parse_line, to_json_line, to_syslog, wall_time
from uxk.bridges.logs.settings import LogFormat
from uxk.core.kmsg import KmsgRing
from uxk.errors import UsageError
from uxk.uapi.info import Record

# RFC 5424, 6: HEADER SP STRUCTURED-DATA [SP MSG], written down apart from the code under test.
_NAME = r"[!#-<>-\\^-~]{1,32}"
_VALUE = r'(?:[^"\\\]]|\\["\\\]])*'
RFC5424 = re.compile(
    r"<(\d{1,3})>1 (-|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}Z) [!-~]{1,255} [!-~]{1,48} [!-~]{1,128} [!-~]{1,32} "
    rf'((?:\[{_NAME}(?: {_NAME}="{_VALUE}")*\])+)( .*)?'
)

texts = st.text(max_size=60)
fields = st.dictionaries(texts, st.integers(-limits.U64_MAX, limits.U64_MAX) | texts, max_size=5)
forms = st.sampled_from(("json", "syslog"))
origins = st.sampled_from((Origin(), Origin(1_700_000_000_000_000_000, "host-1")))


def record_of(
    level: int = 6, source: str = "kernel", text: str = "booted", facility: int = 0, **more: int | str
) -> Record:
    ring = KmsgRing(4)
    ring.log(1_234_567_890, level, source, text, more, facility=facility)
    return ring.get(0)


@given(
    level=st.integers(0, 7), source=texts, text=texts, extra=fields, facility=st.integers(0, 0xFFFF),
    time_ns=st.integers(0, 1 << 62), form=forms, origin=origins,
)  # fmt: skip
def test_what_was_logged_comes_back(
    level: int, source: str, text: str, extra: dict[str, int | str], facility: int, time_ns: int, form: LogFormat,
    origin: Origin,
) -> None:  # fmt: skip
    ring = KmsgRing(2)
    ring.log(min(time_ns, 1 << 50) if origin.boot_wall_ns else time_ns, level, source, text, extra, facility=facility)
    record = ring.get(0)
    line = format_line(record, form, origin)
    assert "\n" not in line and "\x1b" not in line and line.replace("\ufeff", "").isprintable()
    assert parse_line(line.encode()) == record
    if form == "syslog":
        found = RFC5424.fullmatch(line)
        assert found is not None, line
        assert int(found[1]) <= 191 and int(found[1]) & 7 == level


def test_a_syslog_line_of_a_run_has_no_wall_time() -> None:
    line = to_syslog(record_of(level=3, text='bad "sector" [7]', errno=5, device="nvme0\\n1]"))
    assert line == (
        '<3>1 - - kernel - - [meta sequenceId="1" sysUpTime="123"][kmsg@32473 seq="0" ns="1234567890"]'
        '[int@32473 errno="5"][str@32473 device="nvme0\\\\x5cn1\\]"] bad "sector" [7]'
    )


def test_a_syslog_line_of_the_real_clock_has_wall_time_and_host() -> None:
    line = to_syslog(record_of(), Origin(1_700_000_000_000_000_000, "host-1"))
    assert line.startswith("<6>1 2023-11-14T22:13:21.234567Z host-1 kernel - - [meta ")
    assert wall_time(Origin(), 5) == ""


def test_text_beyond_ascii_has_a_byte_order_mark() -> None:
    assert to_syslog(record_of(text="Gerät")).endswith(" \ufeffGerät")
    assert "\ufeff" not in to_syslog(record_of(text="device"))


def test_a_facility_that_syslog_has_not_stands_in_the_data() -> None:
    line = to_syslog(record_of(level=2, facility=100))
    assert line.startswith("<10>1 ") and 'facility="100"' in line
    assert parse_line(line.encode()).facility == 100


def test_json_is_what_dmesg_prints() -> None:
    found = json.loads(to_json_line(record_of(errno=5)))
    assert found == {
        "seq": 0, "time_ns": 1_234_567_890, "level": "info", "facility": 0, "source": "kernel", "text": "booted",
        "fields": {"errno": 5},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"hello", "malformed"),
        (b"\xff\xfe", "byte 0 is no UTF-8"),
        (b"{}", "missing required field"),
        (b'{"seq":-1}', "Expected `int` >= 0"),
        (b'{"seq":0,"time_ns":0,"level":"loud","source":"","text":""}', "level"),
        (b'{"seq":0,"time_ns":99999999999999999999,"level":"info","source":"","text":""}', "time_ns"),
        (b'{"seq":0,"time_ns":0,"level":"info","source":"","text":"","more":1}', "unknown field"),
        (b'{"seq":0,"time_ns":0,"level":"info","source":"","text":"' + b"x" * 2000 + b'"}', "length <= 1024"),
        (b'{"seq":0,"time_ns":0,"level":"info","source":"","text":"","fields":{"a":' + b"9" * 30 + b"}}", "at most"),
        (b"[" * 100_000, "Expected `object`"),
        (b"<6>2 - - a - - - text", "RFC 5424"),
        (b"<6>1 - - a - - - text", "not a log of uxk's"),
        (b'<6>1 - - a - - [kmsg@32473 seq="0"] text', "expected an integer"),
        (b'<6>1 - - a - - [kmsg@32473 seq="0" ns="-5"] text', "Expected `int` >= 0"),
        (b'<6>1 - - a - - [kmsg@32473 seq="0" ns="5"]text', "expected a space"),
        (b'<6>1 - - a - - [kmsg@32473 seq="0" ns="5" text', "not a log of uxk's"),
    ],
)  # fmt: skip
def test_what_is_no_line_is_refused(line: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        parse_line(line)


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: ("<6>1 - - a - - " + text).encode()))
def test_no_bytes_raise_anything_else(line: bytes) -> None:
    with suppress(UsageError):
        parse_line(line)


def test_long_structured_data_take_linear_time() -> None:
    line = b"<6>1 - - a - - [kmsg@32473" + b' a="\\\\"' * 20_000
    with pytest.raises(UsageError):
        parse_line(line)
