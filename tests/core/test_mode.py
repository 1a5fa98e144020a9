from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from uxk.core.kpi import Epoch, Ledger
from uxk.core.mode import TRANSITIONS, ModeConfig, ModeMachine, Trigger
from uxk.errors import KernelBug, UsageError
from uxk.limits import I64_MAX, PPM
from uxk.uapi.ml import Mode, ModeChange

KPI = 2_000_000


def started(**settings: Any) -> ModeMachine:
    machine = ModeMachine(ModeConfig(**settings))
    machine.create(0)
    machine.start(0)
    return machine


def epoch(machine: ModeMachine, effect_ppm: int, *, default_ppm: int = 0) -> Mode:
    """One epoch in which hints are better by ``effect_ppm``, and the default worse than usual by ``default_ppm``."""
    share = machine.share_ppm
    default = KPI + KPI * default_ppm // PPM
    hinted = KPI - KPI * effect_ppm // PPM
    return machine.observe(machine.epoch, Epoch(
        default if share < PPM else None, hinted if share else None, 1000, 1000 * share // PPM,
    ))  # fmt: skip


def play(machine: ModeMachine, effect_ppm: int, epochs: int, *, noise_ppm: int = 20_000, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        epoch(machine, effect_ppm + int(random.normal(0, noise_ppm)))


def path(machine: ModeMachine) -> list[str]:
    return [change.new.name for change in machine.timeline]


# --- the table ---


def test_every_mode_can_be_left_and_the_kernel_can_always_take_over() -> None:
    assert set(TRANSITIONS) == set(Mode)
    for mode in (Mode.LEARNING, Mode.COLLABORATION, Mode.RECOMMENDATION):
        for trigger in (Trigger.ALARM, Trigger.TRIP, Trigger.LOSS, Trigger.STOP):
            assert TRANSITIONS[mode][trigger] is Mode.EMERGENCY
        assert TRANSITIONS[mode][Trigger.DESTROY] is Mode.UNKNOWN
    ups = [(m, t, a) for m, moves in TRANSITIONS.items() for t, a in moves.items() if a > m]
    assert all(after - mode == 1 for mode, _, after in ups), "one step at a time"


def test_a_model_is_born_in_emergency_and_learns_once_it_is_started() -> None:
    machine = ModeMachine(ModeConfig())
    assert (machine.mode, machine.share_ppm) == (Mode.UNKNOWN, 0)
    machine.create(1)
    assert (machine.mode, machine.share_ppm) == (Mode.EMERGENCY, 0)
    machine.start(2)
    assert (machine.mode, machine.share_ppm) == (Mode.LEARNING, 62_500)
    machine.stop(3)
    assert machine.mode is Mode.EMERGENCY
    for _ in range(20):
        epoch(machine, 0)
    assert machine.mode is Mode.EMERGENCY, "a stopped model stays where it is"
    machine.destroy(4)
    assert machine.mode is Mode.UNKNOWN
    with pytest.raises(KernelBug, match="DESTROY in mode UNKNOWN"):
        machine.destroy(5)


# --- up ---


def test_good_hints_climb_to_recommendation_with_their_evidence() -> None:
    heard: list[ModeChange] = []
    machine = started()
    machine.on_change = heard.append
    play(machine, 100_000, 40)
    assert path(machine)[2:] == ["COLLABORATION", "RECOMMENDATION"]
    assert heard == machine.timeline[2:]
    assert all(change.why.startswith("better: ln e ") and "efficiency" in change.why for change in heard)
    assert 6 <= heard[0].epoch <= 16
    assert machine.mode_epochs[Mode.RECOMMENDATION] == 40 - heard[1].epoch
    assert 80_000 < machine.ledger.efficiency_ppm < 120_000


def test_hints_that_change_nothing_stay_in_learning() -> None:
    machine = started()
    play(machine, 0, 200, noise_ppm=30_000)
    assert path(machine) == ["EMERGENCY", "LEARNING"]


# --- down ---


def test_a_steady_loss_takes_one_step_down_and_makes_the_next_promotion_harder() -> None:
    machine = started(loss_budget_ppm=PPM)
    play(machine, 100_000, 40)
    turned = machine.epoch
    play(machine, -40_000, 60)
    after = [change for change in machine.timeline if change.epoch > turned]
    assert [change.new for change in after[:2]] == [Mode.COLLABORATION, Mode.LEARNING]
    assert after[0].why.startswith("worse: ln e")
    turned = machine.epoch
    play(machine, 200_000, 60)
    better = next(change for change in machine.timeline if change.epoch > turned)
    assert better.new is Mode.COLLABORATION and better.epoch - after[1].epoch >= 24


def test_one_very_bad_epoch_is_an_emergency() -> None:
    machine = started()
    assert epoch(machine, -500_000) is Mode.LEARNING
    assert epoch(machine, -510_000) is Mode.EMERGENCY
    assert "trip-wire: one epoch 510000 ppm worse" in machine.timeline[-1].why


@pytest.mark.parametrize("effect_ppm", [-50_000, -150_000, -450_000, -2_000_000])
def test_whatever_hints_do_the_loss_stays_near_the_budget(effect_ppm: int) -> None:
    for turn in (0, 40):
        machine = started()
        play(machine, 100_000, turn)
        for _ in range(400):
            epoch(machine, effect_ppm if machine.epoch >= turn else 100_000)
        one_epoch_ppm = -effect_ppm // max(machine.epoch, 16)
        assert machine.ledger.loss_ppm <= machine.config.loss_budget_ppm + one_epoch_ppm
        assert machine.ledger.saved_ppm >= -machine.config.loss_budget_ppm - one_epoch_ppm


@pytest.mark.parametrize("kpi", [1, 3, 17, 10**6])
def test_the_baseline_finds_any_level_of_any_kpi(kpi: int) -> None:
    ledger = Ledger(1)
    ledger.add(Epoch(10, None, 1, 0))
    for _ in range(200):
        ledger.add(Epoch(kpi, None, 1, 0))
    assert ledger.baseline == kpi


def test_gains_pay_losses_back_but_cannot_be_saved_up() -> None:
    ledger = Ledger(1)
    for hinted in (50, 50, 50, 130):
        ledger.add(Epoch(100, hinted, 10, 10))
    assert (ledger.loss, ledger.loss_ppm, ledger.saved) == (300, 75_000, 1200)
    ledger.add(Epoch(None, 80, 10, 10))
    assert (ledger.loss, ledger.baseline) == (100, 100)
    assert ledger.saved_ppm == 280_000


# --- emergency and back ---


def test_a_watermark_is_an_emergency_at_once_and_calm_ends_it() -> None:
    machine = started(calm_epochs=4)
    machine.watermark(7, "clean_segments", True, "3 left")
    assert machine.mode is Mode.EMERGENCY
    assert machine.timeline[-1] == ModeChange(7, 0, Mode.LEARNING, Mode.EMERGENCY, "watermark clean_segments: 3 left")
    machine.watermark(7, "clean_segments", True, "2 left")
    for _ in range(10):
        assert epoch(machine, 0) is Mode.EMERGENCY
    machine.watermark(8, "clean_segments", False)
    assert [epoch(machine, 0) for _ in range(4)] == [Mode.EMERGENCY] * 3 + [Mode.LEARNING]
    assert len(machine.timeline) == 4


def test_every_emergency_in_a_row_takes_twice_as_long() -> None:
    machine = started(calm_epochs=3)
    waits = []
    for _ in range(4):
        machine.watermark(0, "load", True)
        machine.watermark(0, "load", False)
        count = 1
        while epoch(machine, 0) is Mode.EMERGENCY:
            count += 1
        waits.append(count)
    assert waits == [3, 6, 12, 24]


def test_a_model_started_under_an_alarm_waits_for_calm() -> None:
    machine = ModeMachine(ModeConfig(calm_epochs=1))
    machine.create(0)
    machine.watermark(0, "load", True)
    machine.start(0)
    assert machine.mode is Mode.EMERGENCY
    machine.watermark(0, "load", False)
    assert epoch(machine, 0) is Mode.LEARNING


# --- the administrator ---


def test_an_override_holds_against_evidence_and_alarms_until_it_is_lifted() -> None:
    machine = started()
    machine.set_override(5, Mode.RECOMMENDATION, "root")
    assert machine.timeline[-1].why == "override by root"
    for _ in range(20):
        assert epoch(machine, -900_000) is Mode.RECOMMENDATION
    machine.watermark(6, "load", True)
    assert machine.mode is Mode.RECOMMENDATION
    machine.set_override(7, None)
    assert machine.mode is Mode.EMERGENCY


def test_an_override_holds_over_stop_and_start() -> None:
    machine = started()
    machine.set_override(1, Mode.EMERGENCY)
    machine.stop(2)
    machine.start(3)
    assert (machine.mode, machine.timeline[-1].why) == (Mode.EMERGENCY, "model started: override")
    machine.stop(4)
    machine.set_override(5, Mode.COLLABORATION)
    assert (machine.mode, machine.override) == (Mode.EMERGENCY, Mode.COLLABORATION), "from the start on"
    machine.start(6)
    assert machine.mode is Mode.COLLABORATION
    machine.stop(7)
    machine.set_override(8, None)
    machine.start(9)
    assert machine.mode is Mode.LEARNING


def test_there_is_no_overriding_to_a_mode_that_no_model_has() -> None:
    machine = ModeMachine(ModeConfig())
    with pytest.raises(UsageError, match="LEARNING in mode UNKNOWN"):
        machine.set_override(0, Mode.LEARNING)
    machine.create(0)
    with pytest.raises(UsageError, match="UNKNOWN in mode EMERGENCY"):
        machine.set_override(0, Mode.UNKNOWN)
    machine.destroy(1)


# --- a model that is stopped and started, which its agent may do ---


@pytest.mark.parametrize("when", ["after", "before"])
@pytest.mark.parametrize("effect_ppm", [-450_000, -2_000_000])
def test_stopping_and_starting_spends_no_more_than_the_loss_budget(effect_ppm: int, when: str) -> None:
    machine = started()
    for _ in range(400):
        share = machine.share_ppm
        if when == "before":  # so that nothing is decided on what this epoch did
            machine.stop(0)
        machine.observe(0, Epoch(KPI, KPI - KPI * effect_ppm // PPM if share else None, 1000, 1000 * share // PPM))
        if when == "after":
            machine.stop(0)
        machine.start(0)
    one_epoch_ppm = -effect_ppm * machine.config.learning_share_ppm // PPM // 16
    assert machine.ledger.loss_ppm <= machine.config.loss_budget_ppm + one_epoch_ppm


def test_an_emergency_waits_for_calm_whether_or_not_the_model_is_started_again() -> None:
    machine = started(calm_epochs=3)
    machine.watermark(0, "load", True)
    machine.watermark(0, "load", False)
    machine.stop(1)
    machine.start(2)
    assert [epoch(machine, 0) for _ in range(3)] == [Mode.EMERGENCY] * 2 + [Mode.LEARNING]
    machine.stop(3)
    machine.start(4)
    assert machine.mode is Mode.LEARNING, "that one is over"
    machine.set_override(5, Mode.EMERGENCY)
    machine.set_override(6, None)
    machine.stop(7)
    machine.start(8)
    assert machine.mode is Mode.EMERGENCY


def test_settings_count_from_the_moment_they_are_made() -> None:
    machine = ModeMachine(ModeConfig())
    machine.configure(ModeConfig(loss_floor_epochs=1000, loss_budget_ppm=1_000, trip_ppm=PPM))
    machine.create(0)
    machine.start(0)
    for _ in range(9):
        assert epoch(machine, -900_000) is Mode.LEARNING, "1000 epochs of budget"
    machine.configure(ModeConfig(loss_floor_epochs=1))
    assert machine.ledger.loss_ppm > 50_000


def test_a_late_improvement_is_found_however_long_hints_were_worse() -> None:
    machine = started(loss_budget_ppm=PPM)
    play(machine, -10_000, 2000, noise_ppm=10_000)
    assert machine.mode is Mode.LEARNING
    turned = machine.epoch
    play(machine, 50_000, 60, noise_ppm=10_000)
    assert machine.timeline[-1].new > Mode.LEARNING and machine.timeline[2].epoch - turned <= 60


@pytest.mark.parametrize(
    "settings", [{"alpha_ppm": 0}, {"trip_ppm": 0}, {"learning_share_ppm": PPM + 1}, {"epochs_min": True}]
)
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        ModeConfig(**settings)


@pytest.mark.parametrize("bad", [
    (0, 1, 1, 1), (1, -1, 1, 1), (1, 1, 1, 2), (1, 1, 1, -1), (True, 1, 1, 1), (1, 1 << 63, 1, 1), (10**5000, 1, 1, 1),
    (1, 1, 1.5, 1), (1, 1, np.int64(7), 1), (1, 1, 2, True), (1, 1, -1, -1), (1, 1, 10**5000, 1),
    (float("nan"), 1, 1, 1), (-(10**5000), 1, 1, 1),
])  # fmt: skip
def test_an_impossible_epoch_is_refused(bad: tuple[Any, Any, Any, Any]) -> None:
    with pytest.raises(UsageError, match="epoch: "):
        Epoch(*bad)


# --- any history ---


class Histories(RuleBasedStateMachine):
    """Whatever happens, every change is one of the table's, or an override, and shares follow the mode."""

    @initialize(calm=st.integers(0, 3), minimum=st.integers(1, 3))
    def begin(self, calm: int, minimum: int) -> None:
        self.machine = started(calm_epochs=calm, epochs_min=minimum, alpha_ppm=400_000)

    @rule(effect_ppm=st.integers(-900_000, 900_000), default_ppm=st.integers(0, 100_000), times=st.integers(1, 9))
    def epochs(self, effect_ppm: int, default_ppm: int, times: int) -> None:
        for _ in range(times):
            epoch(self.machine, effect_ppm, default_ppm=default_ppm)

    @rule(name=st.sampled_from(["a", "b"]), critical=st.booleans())
    def watermark(self, name: str, critical: bool) -> None:
        self.machine.watermark(0, name, critical)
        if self.machine.critical and self.machine.override is None:
            assert self.machine.mode is Mode.EMERGENCY

    @rule(mode=st.sampled_from([None, *list(Mode)[1:]]))
    def override(self, mode: Mode | None) -> None:
        self.machine.set_override(0, mode)
        assert mode is None or self.machine.mode is mode

    @rule(
        default=st.none() | st.integers(1, I64_MAX), hinted=st.none() | st.integers(1, I64_MAX),
        weight=st.integers(0, I64_MAX), share_ppm=st.integers(0, PPM),
    )  # fmt: skip
    def any_epoch(self, default: int | None, hinted: int | None, weight: int, share_ppm: int) -> None:
        self.machine.observe(0, Epoch(default, hinted, weight, weight * share_ppm // PPM))

    @rule()
    def restart(self) -> None:
        machine = self.machine
        owed = bool(machine.critical) or machine.mode is Mode.EMERGENCY
        machine.stop(0)
        assert machine.mode is Mode.EMERGENCY
        machine.start(0)
        if machine.override is not None:
            assert machine.mode is machine.override
        else:
            assert machine.mode is Mode.EMERGENCY or not owed

    @invariant()
    def sane(self) -> None:
        machine = self.machine
        timeline = machine.timeline
        assert timeline[-1].new is machine.mode
        for before, after in pairwise(timeline):
            assert before.new is after.old
            assert "override" in after.why or after.new in TRANSITIONS[after.old].values()
        assert sum(machine.mode_epochs.values()) == machine.epoch
        assert (machine.share_ppm == 0) == (machine.mode is Mode.EMERGENCY)
        assert machine.evidence


TestHistories = Histories.TestCase
