"""The language of device faults: what can be said, and what is said about mistakes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk_nvme.faultnames import ADMIN_OPCODES, IO_OPCODES, STATUS, Scope, status_name
from uxk_nvme.faultrules import (
    BITS_MAX,
    DELAY_MAX_NS,
    I63_MAX,
    ITEMS_MAX,
    LANES_MAX,
    PERCENTILES,
    PPM,
    RULE_MAX_CHARS,
    Delay,
    Rule,
    parse_rule,
)


def covers(text: str, opcode: int = 2, admin: bool = False, qid: int = 1, nsid: int = 1, slba: int = 0, nlb: int = 8,
           now_ns: int = 0) -> bool:  # fmt: skip
    """Whether a read of blocks 0 to 7, or what is said instead, passes the filters of a rule."""
    return parse_rule(f"{text} action=drop").covers(opcode, admin, qid, nsid, slba, nlb, now_ns)


def test_the_example_of_the_documentation() -> None:
    rule = parse_rule(
        "opcode=read lba=100-200 probability_ppm=1000 after=10 count=5 window=1ms-2s action=status status=0x281 dnr=1"
    )
    assert rule == Rule(
        "status", opcodes=(2,), lbas=((100, 200),), probability_ppm=1000, after=10, limit=5, from_ns=1_000_000,
        until_ns=2_000_000_000, status=0x281, dnr=True,
    )  # fmt: skip
    assert str(rule) == (
        "opcode=read lba=100-200 window=1000000-2000000000 after=10 probability_ppm=1000 count=5 action=status "
        "status=media-error dnr=1"
    )


def test_filters() -> None:
    assert covers("")
    assert covers("opcode=read,write") and not covers("opcode=write")
    assert covers("opcode=0x02") and covers("opcode=1,2")
    assert covers("queue=1,3") and not covers("queue=2")
    assert covers("nsid=1") and not covers("nsid=2")
    assert covers("window=10-20", now_ns=19) and not covers("window=10-20", now_ns=20)
    assert covers("window=10-", now_ns=I63_MAX) and not covers("window=10-", now_ns=9)
    assert covers("window=-1us", now_ns=999) and not covers("window=-1us", now_ns=1000)


def test_admin_commands_are_spared_unless_asked_for() -> None:
    assert not covers("", admin=True, qid=0)
    assert covers("queue=any", admin=True, qid=0) and covers("queue=any")
    assert covers("queue=admin", admin=True, qid=0) and not covers("queue=admin")
    assert covers("opcode=identify", opcode=6, admin=True, qid=0), "the name says it"
    assert not covers("opcode=identify", opcode=6)


@pytest.mark.parametrize(
    ("lba", "slba", "nlb", "hit"),
    [
        ("8", 0, 8, False), ("7", 0, 8, True), ("0", 0, 1, True), ("0", 1, 1, False),
        ("8-9", 0, 8, False), ("3-4", 0, 8, True), ("100-200", 200, 1, True), ("100-200", 201, 1, False),
        ("100-200", 90, 10, False), ("100-200", 90, 11, True), ("1,5,9-10", 6, 4, True), ("0-99", 50, 0, False),
    ],
)  # fmt: skip
def test_a_command_is_hit_when_it_touches_a_block(lba: str, slba: int, nlb: int, hit: bool) -> None:
    assert covers(f"lba={lba}", slba=slba, nlb=nlb) is hit


@pytest.mark.parametrize(
    ("text", "number"), [("media-error", 0x281), ("2/0x81", 0x281), ("0x281", 0x281), ("641", 641)]
)
def test_a_status_may_be_written_in_several_ways(text: str, number: int) -> None:
    assert parse_rule(f"action=status status={text}").status == number


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("action=drop opcode=raed", r"token 2, opcode=raed: 'raed': expected one of flush, .*mean 'read'\?\)"),
        ("action=drop opcode=256", "opcode=256: 256: expected 0 to 255"),
        ("action=drop opcode=read,identify", "names I/O and admin commands"),
        ("action=drop opcode=read queue=admin", "names of io commands, expected queue=io"),
        ("action=drop opcode=read,,write", "'': expected one of"),
        ("action=drop lba=9-3", "token 2, lba=9-3: '9-3': expected FIRST-LAST with FIRST <= LAST"),
        ("action=drop lba=-3", "'': not an integer"),
        ("action=drop lba=" + ",".join("1" * (ITEMS_MAX + 1)), f"expected at most {ITEMS_MAX}"),
        ("action=drop window=1ms", "expected FROM-TO, FROM- or -TO"),
        ("action=drop window=-", "expected FROM-TO"),
        ("action=drop window=2ms-1ms", "a TO later than FROM"),
        ("action=drop window=1lightyear-", "unknown unit"),
        ("action=drop probability_ppm=0", "probability_ppm=0: 0: expected 1 to 1000000"),
        ("action=drop every=0", "expected 1 to"),
        ("action=drop nsid=0", "expected 1 to 4294967295"),
        ("action=drop queue=0", "expected 1 to 65535"),
        ("action=drop queue=amdin", "did you mean 'admin'"),
        ("action=drop oops", "token 2, 'oops': expected KEY=VALUE"),
        ("action=drop lba=", "expected KEY=VALUE"),
        ("action=drop lba=1 lba=2", "token 3, 'lba=2': lba is given twice"),
        ("action=drop probability=3", r"no such key; known: opcode"),
        ("action=drop lab=3", r"no such key \(did you mean 'lba'\?\)"),
        ("action=drop status=0x281", "status has no meaning for action=drop, it is for: status"),
        ("action=drop delay_ns=1ms", "delay_ns has no meaning for action=drop"),
        ("action=statsu", r"did you mean 'status'"),
        ("action=status", "action=status: needs status"),
        ("action=status status=0", "0 is success"),
        ("action=status status=2/0x181", "385: expected 0 to 255"),
        ("action=status status=0x800", "expected 0 to 2047"),
        ("action=status status=medium-error", "did you mean 'media-error'"),
        ("action=status status=media-error dnr=yes", "'yes': not an integer"),
        ("action=delay", "needs delay_ns"),
        ("action=delay delay_ns=0", "expected 1 to"),
        ("action=delay delay_ns=2h", f"expected 1 to {DELAY_MAX_NS} ns"),
        ("action=delay delay_ns=p50:1ms", "two percentiles such as"),
        ("action=delay delay_ns=p50:1ms,p99:1us", "lower percentile first"),
        ("action=delay delay_ns=p99:1ms,p50:1ms", "lower percentile first"),
        ("action=delay delay_ns=p50:1ms,p98:2ms", "'p98': expected one of p50"),
        ("action=corrupt lanes=3", "lanes=3: needs delay_ns"),
        ("action=edit", "needs dw0"),
        ("opcode=read", "no action: expected action= and one of status, delay"),
        ("", "no action"),
        ("x" * (RULE_MAX_CHARS + 1), f"expected at most {RULE_MAX_CHARS}"),
    ],
)  # fmt: skip
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(uxk.UsageError, match=message):
        parse_rule(text)


# --- texts of all rules are read back as the same rules --------------------------------------------------

I63 = st.integers(0, I63_MAX)
SCOPES: tuple[Scope, ...] = ("io", "admin", "any")
RANGES = st.tuples(I63, I63).map(lambda pair: (min(pair), max(pair)))


def sets(item: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(item, max_size=4).map(lambda found: tuple(sorted(found)))


@st.composite
def delays(draw: st.DrawFn) -> Delay:
    low, high = sorted(draw(st.tuples(st.integers(1, DELAY_MAX_NS), st.integers(1, DELAY_MAX_NS))))
    names = list(PERCENTILES)
    at = draw(st.integers(0, len(names) - 2))
    return (
        Delay(low, names[at], high, names[draw(st.integers(at + 1, len(names) - 1))])
        if draw(st.booleans())
        else Delay(low)
    )


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    action = draw(st.sampled_from(["status", "delay", "drop", "corrupt", "truncate", "powerloss", "edit"]))
    scope: Scope = draw(st.sampled_from(SCOPES))
    from_ns, until_ns = sorted(draw(st.tuples(I63, I63)))
    delay = (
        draw(delays())
        if action == "delay" or (action not in ("drop", "powerloss") and draw(st.booleans()))
        else Delay()
    )
    return Rule(
        action,
        opcodes=draw(sets(st.integers(0, 255))),
        scope=scope,
        queues=draw(sets(st.integers(1, 0xFFFF))) if scope == "io" else (),
        nsids=draw(sets(st.integers(1, 0xFFFFFFFF))),
        lbas=tuple(sorted(draw(st.sets(RANGES, max_size=3)))),
        from_ns=from_ns,
        until_ns=until_ns if until_ns > from_ns else 0,
        after=draw(I63),
        every=draw(st.integers(1, I63_MAX)),
        probability_ppm=draw(st.integers(1, PPM)),
        limit=draw(I63),
        status=draw(st.integers(1, 0x7FF)) if action == "status" else 0,
        dnr=action == "status" and draw(st.booleans()),
        more=action == "status" and draw(st.booleans()),
        delay=delay,
        lanes=draw(st.integers(0, LANES_MAX)) if delay.low_ns else 0,
        bits=draw(st.integers(1, BITS_MAX)) if action == "corrupt" else 1,
        keep_bytes=draw(I63) if action == "truncate" else 0,
        dw0=draw(st.integers(0, 0xFFFFFFFF)) if action == "edit" else None,
    )


@given(rules())
def test_every_rule_survives_its_text(rule: Rule) -> None:
    text = str(rule)
    if len(text) > RULE_MAX_CHARS:
        return
    assert parse_rule(text) == rule
    assert str(parse_rule(text)) == text


PIECES = (
    "opcode=read", "opcode=", "lba=1-", "lba=5", "action=status", "action=delay", "status=2/129",
    "delay_ns=p50:1,p99:2", "window=-", "queue=any", "=", "id=1", "count=\u0663", "every=1", "lanes=2",
)  # fmt: skip


@given(st.text(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=6).map(" ".join))
def test_any_text_is_a_rule_or_a_usage_error(text: str) -> None:
    try:
        rule = parse_rule(text)
    except uxk.UsageError:
        return
    assert parse_rule(str(rule)) == rule


def test_names_are_unique_and_shown() -> None:
    for names in (IO_OPCODES, ADMIN_OPCODES, STATUS):
        assert len(set(names.values())) == len(names)
    assert status_name(0x281) == "media-error"
    assert status_name(0x17F) == "0x17f"
