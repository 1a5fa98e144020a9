"""What a table of faults does to a stream of commands."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import uxk
from uxk_nvme.faultrules import DELAY_MAX_NS, RULE_MAX_CHARS, Delay
from uxk_nvme.faults import RULES_MAX, TEXT_MAX_BYTES, Action, FaultTable, sample_ns


def table(*rules: str, seed: int = 1) -> FaultTable:
    made = FaultTable(np.random.default_rng(seed))
    for text in rules:
        made.add(text)
    return made


def read(faults: FaultTable, slba: int = 0, nlb: int = 8, now_ns: int = 0) -> Action | None:
    return faults.match(2, False, 1, 1, slba, nlb, now_ns)


def struck(faults: FaultTable, commands: int) -> list[int]:
    """Which of so many reads were struck."""
    return [number for number in range(commands) if read(faults)]


def test_without_rules_it_is_not_active() -> None:
    faults = table()
    assert not faults.active
    assert read(faults) is None
    assert faults.render() == ""


def test_a_status_has_its_field_of_the_completion() -> None:
    action = read(table("opcode=read action=status status=media-error dnr=1 more=1"))
    assert action is not None
    assert action == Action("status", 0x281, True, True, rule=1)
    assert action.status_field == 0x281 | 1 << 13 | 1 << 14


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("after=3", [3, 4, 5, 6, 7, 8, 9]), ("every=3", [2, 5, 8]), ("count=2", [0, 1]), ("after=9", [9]),
        ("after=10", []), ("after=1 every=4 count=2", [4, 8]),
    ],
)  # fmt: skip
def test_after_every_count(rule: str, expected: list[int]) -> None:
    faults = table(f"{rule} action=drop")
    assert struck(faults, 10) == expected
    assert faults.counters()[1][1] == len(expected)


def test_it_is_inactive_when_no_rule_can_strike_again() -> None:
    faults = table("count=1 action=drop", "count=2 action=drop")
    assert struck(faults, 5) == [0, 1, 2]
    assert not faults.active
    assert faults.counters() == {1: (1, 1), 2: (2, 2)}
    faults.add("action=drop")
    assert faults.active


def test_the_first_rule_that_strikes_decides() -> None:
    faults = table("lba=5 action=drop", "every=2 action=delay delay_ns=1us", "action=edit dw0=7")
    kinds = [action.kind if (action := read(faults, slba)) else "" for slba in (0, 5, 6, 7)]
    assert kinds == ["drop", "drop", "edit", "delay"]
    assert faults.counters() == {1: (2, 2), 2: (2, 1), 3: (1, 1)}


def test_probability_comes_from_the_stream() -> None:
    rule = "probability_ppm=250000 action=drop"
    first, again, other = (struck(table(rule, seed=seed), 400) for seed in (5, 5, 6))
    assert first == again != other
    assert 60 < len(first) < 140


def test_rules_with_other_filters_draw_nothing() -> None:
    faults = table("lba=99 probability_ppm=500000 action=drop", "probability_ppm=500000 action=drop")
    assert struck(faults, 50) == struck(table("probability_ppm=500000 action=drop"), 50)


def test_a_delay_joins_other_actions() -> None:
    action = read(table("action=status status=0x006 delay_ns=2ms"))
    assert action is not None
    assert (action.kind, action.status, action.delay_ns) == ("status", 6, 2_000_000)


def test_lanes_serve_so_many_at_a_time() -> None:
    faults = table("action=delay delay_ns=100 lanes=2")
    waits = [action.delay_ns if (action := read(faults, now_ns=now_ns)) else 0 for now_ns in (0, 0, 0, 50, 400)]
    assert waits == [100, 100, 200, 150, 100]


def test_a_lognormal_delay_has_its_percentiles() -> None:
    stream = np.random.default_rng(3)
    drawn = sorted(sample_ns(Delay(100_000, "p50", 5_000_000, "p99"), stream) for _ in range(4000))
    assert 90_000 < drawn[2000] < 110_000
    assert 3_500_000 < drawn[3960] < 7_000_000
    assert sample_ns(Delay(7, "p50", 7, "p90"), stream) == 7
    assert max(sample_ns(Delay(1, "p50", DELAY_MAX_NS, "p90"), stream) for _ in range(200)) == DELAY_MAX_NS


@given(st.binary(max_size=64), st.integers(0, 2**63 - 1), st.integers(1, 1000))
def test_corrupt_flips_as_many_bits(data: bytes, seed: int, bits: int) -> None:
    damaged, again = bytearray(data), bytearray(data)
    Action("corrupt", seed=seed, bits=bits).corrupt(damaged)
    Action("corrupt", seed=seed, bits=bits).corrupt(memoryview(again))
    assert damaged == again
    flipped = sum((a ^ b).bit_count() for a, b in zip(data, damaged, strict=True))
    assert flipped == min(bits, 8 * len(data))


def test_each_corruption_has_a_seed_of_its_own() -> None:
    faults = table("action=corrupt bits=3")
    first, second = read(faults), read(faults)
    assert first and second
    assert first.bits == 3
    assert first.seed != second.seed


# --- commands -----------------------------------------------------------------------------------------


def test_what_is_shown_can_be_written_back() -> None:
    faults = table("opcode=read lba=1-2 action=status status=media-error", "queue=any count=1 action=drop")
    faults.remove(1)
    faults.apply("add nsid=2 action=powerloss\n")
    read(faults)
    assert faults.render() == (
        "add id=2 queue=any count=1 action=drop # matched=1 fired=1\n"
        "add id=3 nsid=2 action=powerloss # matched=0 fired=0"
    )
    copy = table()
    copy.apply("clear\n" + faults.render() + "\n")
    assert [line.split(" #")[0] for line in copy.render().splitlines()] == [
        line.split(" #")[0] for line in faults.render().splitlines()
    ]
    assert copy.add("action=drop") == 4


@pytest.mark.parametrize(
    ("text", "message", "number"),
    [
        ("add action=drop\nadd opcode=raed action=drop", "^faults: line 2: token 1, .*mean 'read'", errno.EINVAL),
        ("add", "line 1: no action", errno.EINVAL),
        ("ad action=drop", r"'ad': expected add RULE, rm ID or clear \(did you mean 'add'\?\)", errno.EINVAL),
        ("rm 7", "rm 7: no such rule, there are: 1", errno.ENOENT),
        ("rm one", "rm 'one': expected the number", errno.EINVAL),
        ("clear all", "'clear': expected", errno.EINVAL),
        ("add id=1 action=drop", "id=1: there is a rule", errno.EEXIST),
        ("add id=0 action=drop", "id=0: expected a number, 1 to", errno.EINVAL),
    ],
)  # fmt: skip
def test_a_write_with_a_mistake_changes_nothing(text: str, message: str, number: int) -> None:
    faults = table("action=drop")
    before = faults.render()
    with pytest.raises(uxk.UsageError, match=message) as caught:
        faults.apply(text)
    assert caught.value.errno == number
    assert faults.render() == before
    assert faults.add("action=drop") == 2


def test_rules_are_bounded() -> None:
    faults = table(*["action=drop"] * RULES_MAX)
    with pytest.raises(uxk.UsageError, match=f"at most {RULES_MAX}"):
        faults.add("action=drop")
    assert len(faults.render()) <= TEXT_MAX_BYTES
    faults.clear()
    long = ("lba=" + ",".join(str(2**62 + n) for n in range(16)))[: RULE_MAX_CHARS - 20] + " action=drop"
    with pytest.raises(uxk.UsageError, match="remove some"):
        faults.apply("\n".join([f"add {long}"] * RULES_MAX))
    faults.apply("\n".join([f"add {long}"] * 9))
    assert len(faults.render()) <= TEXT_MAX_BYTES


def test_a_text_that_counters_have_made_too_long_goes_without_them() -> None:
    faults = table(*["action=drop"] * RULES_MAX)
    for live in faults._rules.values():
        live.matched = live.fired = 10**60
    assert "#" not in faults.render()


class Fake:
    """What of a context the table uses."""

    def __init__(self) -> None:
        self.attributes: dict[str, tuple[str, bool]] = {}
        self.lines: list[tuple[int, str]] = []

    def set_attribute(self, name: str, value: object, *, writable: bool = False) -> None:
        self.attributes[name] = str(value), writable

    def log(self, text: str, *, level: int = 6) -> None:
        self.lines.append((level, text))


def test_a_write_is_answered_by_the_status() -> None:
    faults, ctx = table(), Fake()
    anything: Any = ctx
    faults.publish(anything)
    assert ctx.attributes == {"faults": ("", True), "faults_status": ("0 ok", False)}
    assert not faults.dirty
    faults.store(anything, b"add action=drop\n")
    assert ctx.attributes["faults"] == ("add id=1 action=drop # matched=0 fired=0", True)
    assert ctx.attributes["faults_status"][0] == "1 ok"
    faults.store(anything, b"\xff")
    assert ctx.attributes["faults_status"][0].startswith("2 error: faults: line 1: ")
    assert ctx.lines and ctx.lines[0][0] == 3
    faults.store(anything, b"clear")
    assert ctx.attributes["faults_status"][0] == "3 ok"
    assert not faults.dirty
    read(faults)
    assert not faults.dirty


class TableMachine(RuleBasedStateMachine):
    """However rules come and go: what is shown is what there is, and a copy of it behaves the same."""

    def __init__(self) -> None:
        super().__init__()
        self.faults = table()
        self.known: set[int] = set()

    @rule(text=st.sampled_from(["action=drop", "every=2 action=delay delay_ns=5", "count=1 action=edit dw0=1", "bad"]))
    def add(self, text: str) -> None:
        try:
            self.known.add(self.faults.add(text))
        except uxk.UsageError:
            assert text == "bad" or len(self.known) == RULES_MAX

    @rule(number=st.integers(1, 6))
    def remove(self, number: int) -> None:
        try:
            self.faults.remove(number)
        except uxk.UsageError:
            assert number not in self.known
        self.known.discard(number)

    @precondition(lambda self: self.known)
    @rule()
    def command(self) -> None:
        before = self.faults.counters()
        action = read(self.faults)
        fired = {n: now[1] - before[n][1] for n, now in self.faults.counters().items() if now[1] != before[n][1]}
        assert fired == ({action.rule: 1} if action else {})

    @invariant()
    def the_text_is_the_table(self) -> None:
        copy = table()
        copy.apply(self.faults.render())
        assert set(copy.counters()) == set(self.faults.counters()) == self.known
        assert self.faults.active or read(self.faults) is None


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
