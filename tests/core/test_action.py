"""The trial of a change: one at a time, judged by its KPI, gone unless it proves itself."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from uxk.core.action import NAMES_MAX, PATIENCE_MAX, ActionConfig, End, Trial
from uxk.errors import UsageError, UxkError
from uxk.uapi.action import Step


def trial(*names: str, before: tuple[int, ...] = (100, 100), **config: Any) -> Trial:
    made = Trial(ActionConfig(**config))
    for name in names or ("a",):
        made.add(name)
    for kpi in before:
        assert made.epoch(kpi) is None
    return made


def begin(t: Trial, name: str = "a", *, now_ns: int = 0, lifetime_ns: int = 1000, number: int = 1) -> None:
    t.check(name, now_ns, lifetime_ns)
    t.begin(number, name, now_ns, lifetime_ns)


def refusal(t: Trial, name: str = "a", *, now_ns: int = 0, lifetime_ns: int = 1000) -> int:
    with pytest.raises(UxkError) as caught:
        t.check(name, now_ns, lifetime_ns)
    return caught.value.errno


def step_of(end: End | None) -> Step | None:
    return None if end is None else end.step


def test_worse_is_reverted_as_soon_as_it_may_be_judged() -> None:
    t = trial(worse_ppm=50_000)
    begin(t)
    assert t.epoch(300) is None, "one epoch is too few"
    end = t.epoch(300)
    assert end is not None and end.step is Step.REVERTED
    assert "KPI 100 -> 300 in 2 epochs" in end.why
    assert t.pending is None


@pytest.mark.parametrize(("kpi", "step"), [(105, None), (106, Step.REVERTED)])
def test_the_bound_is_exact(kpi: int, step: Step | None) -> None:
    t = trial(worse_ppm=50_000)
    begin(t)
    t.epoch(kpi)
    assert step_of(t.epoch(kpi)) is step


def test_an_agent_that_never_learns_costs_ever_less() -> None:
    t = trial(before=(), epochs_min=1, burst=100)
    pauses = []
    for number in range(12):
        pause = 0
        while True:
            try:
                t.check("a", number, 0)
            except UsageError:
                t.epoch(100)
                pause += 1
            else:
                break
        pauses.append(pause)
        t.begin(number, "a", number, 0)
        assert step_of(t.epoch(200)) is Step.REVERTED
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024]
    for _ in range(1024):
        t.epoch(100)
    begin(t, now_ns=99)
    t.epoch(100)
    assert t.confirm().step is Step.CONFIRMED
    begin(t, now_ns=99)


def test_late_harm_is_noticed() -> None:
    t = trial(epochs=4)
    begin(t)
    for _ in range(1000):
        assert t.epoch(50) is None
    ends = [t.epoch(500) for _ in range(2)]
    assert Step.REVERTED in [step_of(end) for end in ends]


def test_after_nothing_anything_is_worse() -> None:
    t = trial(before=(0, 0), epochs_min=1)
    begin(t)
    assert t.epoch(0) is None
    assert step_of(t.epoch(1)) is Step.REVERTED


def test_lifetime_in_time_and_in_epochs() -> None:
    t = trial()
    begin(t, now_ns=5, lifetime_ns=10)
    assert t.expire(14) is None
    assert step_of(t.expire(15)) is Step.REVERTED
    assert t.expire(99) is None
    t = trial(lifetime_epochs=3, lifetime_max_ns=7)
    begin(t, lifetime_ns=0)
    assert t.pending is not None and t.pending.until_ns == 7
    assert [step_of(t.epoch(1)) for _ in range(3)] == [None, None, Step.REVERTED]


def test_confirmation_needs_evidence() -> None:
    t = trial(worse_ppm=100_000)
    begin(t)
    t.epoch(101)
    with pytest.raises(UsageError, match="1 epochs on trial, expected 2") as early:
        t.confirm()
    assert early.value.errno == errno.EAGAIN
    t.epoch(101)
    with pytest.raises(UxkError, match="KPI 100 -> 101") as worse:
        t.confirm()
    assert worse.value.errno == errno.EACCES
    t.epoch(90)
    assert t.confirm().step is Step.CONFIRMED
    assert refusal(t, lifetime_ns=-1) == errno.EINVAL
    begin(t, number=2)  # measured on trial, compared with now
    assert t.pending is not None and t.pending.before == (101, 101, 90)
    with pytest.raises(UsageError, match="nothing is on trial"):
        trial().confirm()


def test_a_foreign_write_wins() -> None:
    t = trial("a", "b")
    begin(t)
    assert t.written("b", "root", changed=False) is None
    end = t.written("a", "root", changed=False)
    assert end is not None and (end.step, end.why) == (Step.SUPERSEDED, "written by root")
    assert refusal(t) == errno.EAGAIN, "the epochs before were measured on trial"
    t = trial("a", "b")
    begin(t)
    assert step_of(t.written("b", "root", changed=True)) is Step.REVERTED, "nothing to compare with any more"
    t = trial("a", "b")
    assert t.written("a", "root", changed=False) is None
    begin(t)


def test_refusals() -> None:
    t = trial("a", "b", burst=1, interval_ns=100, lifetime_max_ns=1000, epochs_min=1)
    assert refusal(t, lifetime_ns=1001) == errno.EINVAL
    begin(t)
    assert refusal(t, "b") == errno.EBUSY
    assert t.withdraw("enough").why == "enough"
    assert refusal(t) == errno.EAGAIN
    t.epoch(1)
    assert refusal(t, now_ns=99) == errno.EDQUOT
    begin(t, "b", now_ns=99)
    with pytest.raises(UsageError, match="watched already"):
        t.add("a")
    for number in range(NAMES_MAX - 2):
        t.add(f"c{number}")
    with pytest.raises(UsageError, match="at most"):
        t.add("one more")
    for bad in (-1, True, "7", 1 << 63, 10**5000, -(10**5000)):
        with pytest.raises(UsageError, match="expected an integer"):
            t.epoch(bad)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "bad", [{"epochs_min": 9}, {"epochs": 0}, {"worse_ppm": -1}, {"burst": 0}, {"worse_ppm": True}]
)
def test_settings_are_checked(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"actions: {next(iter(bad))}="):
        ActionConfig(**bad)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@given(before=st.lists(st.integers(0, 1000), min_size=2, max_size=8), since=st.lists(st.integers(0, 1000), min_size=2))
def test_means_are_compared_exactly(before: list[int], since: list[int]) -> None:
    from fractions import Fraction

    t = trial(before=tuple(before), worse_ppm=10_000, epochs=8)
    begin(t)
    seen: list[int] = []
    for kpi in since:
        seen.append(kpi)
        end = t.epoch(kpi)
        last = seen[-8:]
        worse = Fraction(sum(last), len(last)) > Fraction(sum(before), len(before)) * Fraction(101, 100)
        assert (end is not None) == (worse and len(seen) >= 2)
        if end is not None:
            break


class Machine(RuleBasedStateMachine):
    """Writes of agents and administrators, epochs and time, against a model that keeps the values.

    The rule above all: a value that an agent set is in force only while its action is pending or after it was
    confirmed, and an administrator's value is never undone.
    """

    @initialize(epochs_min=st.integers(1, 3), lifetime_epochs=st.sampled_from([0, 5]))
    def start(self, epochs_min: int, lifetime_epochs: int) -> None:
        self.trial = Trial(ActionConfig(
            epochs=4, epochs_min=epochs_min, lifetime_epochs=lifetime_epochs, burst=2, interval_ns=20, worse_ppm=50_000,
        ))  # fmt: skip
        self.epochs_min = epochs_min
        self.now_ns = 0
        self.number = 0
        self.settled = {"a": 0, "b": 0}
        """What holds without agents: the defaults, confirmed values, administrators' values."""
        self.value = dict(self.settled)
        self.quiet = 0
        """Epochs since anything changed."""
        self.patience = 0
        """Changes in a row that made it worse."""
        self.grants: dict[str, list[int]] = {"a": [], "b": []}
        for name in self.settled:
            self.trial.add(name)

    def on_end(self, end: End | None) -> None:
        if end is None:
            return
        name = end.action.name
        if end.step is Step.REVERTED:
            self.value[name] = self.settled[name]
        elif end.step is Step.CONFIRMED:
            self.settled[name] = self.value[name]
            self.patience = 0
        self.patience += end.why.startswith("worse")
        self.quiet = len(end.action.since) if end.step is Step.CONFIRMED else 0

    @rule(name=st.sampled_from("ab"), value=st.integers(1, 9), lifetime_ns=st.integers(0, 30))
    def recommend(self, name: str, value: int, lifetime_ns: int) -> None:
        free = self.trial.pending is None
        allowed = free and self.quiet >= self.epochs_min << min(self.patience, PATIENCE_MAX)
        refused = 0
        try:
            self.trial.check(name, self.now_ns, lifetime_ns)
        except UxkError as exc:
            refused = exc.errno
        if refused:
            recent = [at_ns for at_ns in self.grants[name] if self.now_ns - at_ns < 20]
            assert not allowed or (refused == errno.EDQUOT and recent)
            return
        assert allowed
        self.grants[name].append(self.now_ns)
        self.number += 1
        self.value[name] = value
        self.trial.begin(self.number, name, self.now_ns, lifetime_ns)

    @rule(name=st.sampled_from("ab"), value=st.integers(10, 12))
    def administer(self, name: str, value: int) -> None:
        changed = self.value[name] != value
        self.value[name] = self.settled[name] = value
        self.on_end(self.trial.written(name, "root", changed=changed))
        if changed:
            self.quiet = 0
        assert self.value[name] == value

    @rule(kpi=st.integers(90, 115))
    def epoch(self, kpi: int) -> None:
        free = self.trial.pending is None
        end = self.trial.epoch(kpi)
        if free:
            self.quiet += 1
        self.on_end(end)

    @rule(step_ns=st.integers(1, 40))
    def pass_time(self, step_ns: int) -> None:
        self.now_ns += step_ns
        self.on_end(self.trial.expire(self.now_ns))
        pending = self.trial.pending
        assert pending is None or self.now_ns < pending.until_ns

    @precondition(lambda self: self.trial.pending is not None)
    @rule()
    def confirm(self) -> None:
        pending = self.trial.pending
        assert pending is not None
        try:
            self.on_end(self.trial.confirm())
        except UxkError:
            assert pending.epochs < self.epochs_min or pending.worse_than(0)

    @precondition(lambda self: self.trial.pending is not None)
    @rule()
    def die(self) -> None:
        self.on_end(self.trial.withdraw("its agent died"))

    @invariant()
    def only_what_is_on_trial_differs(self) -> None:
        if not hasattr(self, "trial"):
            return
        pending = self.trial.pending
        for name, value in self.value.items():
            if pending is None or pending.name != name:
                assert value == self.settled[name]


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
