"""The mode machine: who decides, the kernel's default or an agent's hints, and on what evidence that changes.

kernel-ml-lib names the modes; it has no transitions.  These are a proposal, built on three rules:

* *Up one step at a time, on evidence.*  A sequential test on paired epochs (:mod:`uxk.core.evidence`), and a time
  to stay that doubles with every disappointment.
* *Down at once.*  One bad epoch (trip-wire), a spent loss budget, or a watermark ends in EMERGENCY, where defaults
  alone decide; steady evidence that hints are worse takes one step down.
* *Back through LEARNING.*  EMERGENCY ends after a calm period, which doubles with every emergency until a
  promotion, with no watermark critical and half of the loss budget free again.  Stopping and starting the model,
  which an agent may be allowed to do, is no way around that, nor around an administrator's override.

Whatever an agent does, the loss against the default stays near ``loss_budget_ppm``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from uxk.core.evidence import Alarm, Evidence, difference_ppm
from uxk.core.kpi import Epoch, Ledger
from uxk.errors import KernelBug, UsageError
from uxk.limits import PPM
from uxk.uapi.ml import Mode, ModeChange

TIMELINE_MAX: Final = 4096
"""Transitions remembered."""
PATIENCE_MAX: Final = 6
"""Doublings of the time to stay and of the calm period, at most."""


class ModeConfig(Struct, frozen=True, kw_only=True):
    """Settings of a mode machine; shares and bounds in parts per million."""

    learning_share_ppm: int = 62_500
    collaboration_share_ppm: int = 500_000
    recommendation_share_ppm: int = PPM
    """Below one million it keeps a default arm to compare with for ever."""
    alpha_ppm: int = 50_000
    """Chance that a promotion is ever granted to hints that change nothing."""
    correlation_ppm: int = 300_000
    """Autocorrelation of epochs that is assumed at least: caution against epochs that are not independent."""
    correlation_max_ppm: int = 600_000
    """The most that is believed of what is seen: a trend looks like autocorrelation, too."""
    alarm_run_length: int = 1_000
    """Epochs between false demotions, on average and at least."""
    epochs_min: int = 6
    """Paired epochs in a mode before a promotion."""
    trip_ppm: int = 500_000
    """One epoch worse by more than this is an emergency."""
    loss_budget_ppm: int = 10_000
    """Loss against the default that a run may have, of the default's cumulated KPI."""
    loss_floor_epochs: int = 16
    calm_epochs: int = 8
    silence_ns: int = 0
    """An agent that was heard once and then not for this long is silent; 0: never."""
    rejects_max_ppm: int = 500_000
    """Share of an epoch's hints that may be refused."""
    rejects_min: int = 8
    """Hints in an epoch before their share counts."""

    def __post_init__(self) -> None:
        ranges = {
            "learning_share_ppm": (0, PPM), "collaboration_share_ppm": (0, PPM), "recommendation_share_ppm": (0, PPM),
            "alpha_ppm": (1, PPM - 1), "correlation_ppm": (0, 600_000),
            "correlation_max_ppm": (0, 600_000), "alarm_run_length": (2, 1 << 40),
            "epochs_min": (1, 1 << 32), "trip_ppm": (1, 1 << 40), "loss_budget_ppm": (0, PPM),
            "loss_floor_epochs": (1, 1 << 32), "calm_epochs": (0, 1 << 32), "silence_ns": (0, 1 << 62),
            "rejects_max_ppm": (0, PPM), "rejects_min": (1, 1 << 32),
        }  # fmt: skip
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise UsageError(f"modes: {name}={value!r}, expected {least} to {most}")


class Trigger(Enum):
    """What moves the machine."""

    CREATE = "created"
    START = "started"
    STOP = "stopped"
    DESTROY = "destroyed"
    BETTER = "better"
    WORSE = "worse"
    TRIP = "trip-wire"
    LOSS = "loss budget"
    ALARM = "watermark"
    CALM = "calm"


_M, _T = Mode, Trigger
_DOWN: Final = {
    _T.TRIP: _M.EMERGENCY, _T.LOSS: _M.EMERGENCY, _T.ALARM: _M.EMERGENCY, _T.STOP: _M.EMERGENCY,
    _T.DESTROY: _M.UNKNOWN,
}  # fmt: skip

TRANSITIONS: Final[Mapping[Mode, Mapping[Trigger, Mode]]] = MappingProxyType({
    _M.UNKNOWN: {_T.CREATE: _M.EMERGENCY},
    _M.EMERGENCY: {_T.START: _M.LEARNING, _T.CALM: _M.LEARNING, _T.DESTROY: _M.UNKNOWN},
    _M.LEARNING: {**_DOWN, _T.BETTER: _M.COLLABORATION},
    _M.COLLABORATION: {**_DOWN, _T.BETTER: _M.RECOMMENDATION, _T.WORSE: _M.LEARNING},
    _M.RECOMMENDATION: {**_DOWN, _T.WORSE: _M.COLLABORATION},
})  # fmt: skip
"""Every move there is; a trigger that a mode does not list changes nothing there."""


class ModeMachine:
    """The mode of one model.  ``on_change`` hears of every transition."""

    __slots__ = (
        "_alarm", "_calm", "_emergencies", "_evidence", "_patience", "_recovering", "_started", "_starts", "config",
        "critical", "epoch", "ledger", "mode", "mode_epochs", "on_change", "override", "timeline",
    )  # fmt: skip

    def __init__(self, config: ModeConfig, on_change: Callable[[ModeChange], object] = lambda change: None) -> None:
        self.config = config
        self.on_change = on_change
        self.mode = Mode.UNKNOWN
        self.override: Mode | None = None
        """What the administrator has set, or None."""
        self.epoch = 0
        self.mode_epochs = dict.fromkeys(Mode, 0)
        """Epochs spent in each mode."""
        self.timeline: list[ModeChange] = []
        self.critical: dict[str, str] = {}
        """Watermarks that are passed now, and by how much, in words."""
        self.ledger = Ledger(config.loss_floor_epochs)
        self._started = False
        self._recovering = False
        """Whether an emergency waits for calm: starting the model does not end it."""
        self._calm = self._patience = self._emergencies = 0
        self._starts: dict[Mode, int] = {}
        """Starts of the tests made in each mode: all of them together have the error ``alpha_ppm``."""
        self._evidence = self._test(0)
        self._alarm = Alarm(config.alarm_run_length)

    @property
    def share_ppm(self) -> int:
        """The share of units that follow hints now."""
        config = self.config
        return {
            Mode.LEARNING: config.learning_share_ppm, Mode.COLLABORATION: config.collaboration_share_ppm,
            Mode.RECOMMENDATION: config.recommendation_share_ppm,
        }.get(self.mode, 0)  # fmt: skip

    @property
    def evidence(self) -> str:
        """What the next decision rests on, in words."""
        return (
            f"better: {self._evidence}; worse: {self._alarm}; efficiency {self.ledger.efficiency_ppm} ppm; "
            f"loss {self.ledger.loss_ppm} of {self.config.loss_budget_ppm} ppm"
        )

    # --- life ---

    def configure(self, config: ModeConfig) -> None:
        """Other settings, for a model that is not started; what was measured stays."""
        self.config = config
        self.ledger.floor_epochs = config.loss_floor_epochs

    def create(self, now_ns: int) -> None:
        """There is a model: defaults decide, until it is started."""
        self._trigger(now_ns, Trigger.CREATE, "model created")

    def start(self, now_ns: int) -> None:
        """Hints count from now on: once it is calm, if there is an emergency; or as the override has it."""
        self._started = True
        if self.override is not None:
            self._change(now_ns, self.override, "model started: override")
        elif self.critical or self._recovering or not self._affordable:
            self._recovering = True
        else:
            self._trigger(now_ns, Trigger.START, "model started")

    def stop(self, now_ns: int) -> None:
        """Defaults decide, until it is started again; an override holds from then on."""
        if self._started and self.mode is Mode.EMERGENCY and self.override is None:
            self._recovering = True
        self._started = False
        self._trigger(now_ns, Trigger.STOP, "model stopped")

    def destroy(self, now_ns: int) -> None:
        """There is no model any more."""
        self._started, self.override = False, None
        self._trigger(now_ns, Trigger.DESTROY, "model destroyed")

    def set_override(self, now_ns: int, mode: Mode | None, who: str = "administrator") -> None:
        """Fixes the mode, whatever the evidence; None lets it go on from there.

        In a model that is not started it holds once that is.  EINVAL for UNKNOWN, and if there is no model.
        """
        if mode is Mode.UNKNOWN or self.mode is Mode.UNKNOWN:
            wanted = "auto" if mode is None else mode.name
            raise UsageError(f"mode_override: {wanted} in mode {self.mode.name}: expected a model and a mode for it")
        self.override = mode
        if not self._started:
            return
        if mode is not None:
            self._change(now_ns, mode, f"override by {who}")
        elif self.critical:
            self._alarmed(now_ns)

    # --- what happens ---

    def watermark(self, now_ns: int, name: str, critical: bool, why: str = "") -> None:
        """A watermark is passed, or not any more."""
        if critical:
            news = name not in self.critical
            self.critical[name] = why
            if news:
                self._alarmed(now_ns)
        else:
            self.critical.pop(name, None)

    def _alarmed(self, now_ns: int) -> None:
        why = "; ".join(f"{name}: {why}" if why else name for name, why in self.critical.items())
        self._trigger(now_ns, Trigger.ALARM, f"watermark {why}")

    def observe(self, now_ns: int, epoch: Epoch) -> Mode:
        """One epoch was measured; returns the mode from now on."""
        self.epoch += 1
        self.mode_epochs[self.mode] += 1
        self.ledger.add(epoch)
        self._calm = 0 if self.critical else self._calm + 1
        default, hinted = epoch.default_kpi or self.ledger.baseline, epoch.hinted_kpi
        if default and hinted is not None and epoch.hinted_weight:
            difference = difference_ppm(default, hinted)
            if epoch.default_kpi is not None:
                self._evidence.add(difference)
            self._alarm.add(difference)
            excess_ppm = (hinted - default) * PPM // default
        else:
            excess_ppm = 0
        if self.override is None and self._started:
            self._decide(now_ns, excess_ppm)
        return self.mode

    def _decide(self, now_ns: int, excess_ppm: int) -> None:
        config, ledger = self.config, self.ledger
        if self.mode is Mode.EMERGENCY:
            calm = config.calm_epochs << min(max(self._emergencies - 1, 0), PATIENCE_MAX)
            if self._calm >= calm and not self.critical and self._affordable:
                self._trigger(now_ns, Trigger.CALM, f"calm for {self._calm} epochs; loss {ledger.loss_ppm} ppm")
        elif excess_ppm > config.trip_ppm:
            why = f"trip-wire: one epoch {excess_ppm} ppm worse, at most {config.trip_ppm}"
            self._trigger(now_ns, Trigger.TRIP, why)
        elif ledger.loss_ppm > config.loss_budget_ppm:
            self._trigger(now_ns, Trigger.LOSS, f"loss budget: {ledger.loss_ppm} of {config.loss_budget_ppm} ppm used")
        elif self._alarm.reached:
            self._trigger(now_ns, Trigger.WORSE, f"worse: {self._alarm}; efficiency {ledger.efficiency_ppm} ppm")
        elif self._evidence.epochs >= config.epochs_min << self._patience and self._evidence.reached:
            self._trigger(now_ns, Trigger.BETTER, f"better: {self._evidence}; efficiency {ledger.efficiency_ppm} ppm")

    @property
    def _affordable(self) -> bool:
        """Whether half of the loss budget is free."""
        return 2 * self.ledger.loss_ppm <= self.config.loss_budget_ppm

    def _test(self, starts: int) -> Evidence:
        config = self.config
        return Evidence(
            config.alpha_ppm, starts, correlation_ppm=config.correlation_ppm,
            correlation_max_ppm=config.correlation_max_ppm,
        )  # fmt: skip

    # --- moving ---

    def _trigger(self, now_ns: int, trigger: Trigger, why: str) -> None:
        if self.override is not None and trigger not in (Trigger.STOP, Trigger.DESTROY):
            return
        after = TRANSITIONS[self.mode].get(trigger)
        if after is None:
            if trigger in (Trigger.CREATE, Trigger.DESTROY):
                raise KernelBug(f"modes: {trigger.name} in mode {self.mode.name}")
            return
        if trigger in (Trigger.TRIP, Trigger.LOSS, Trigger.ALARM):
            self._emergencies += 1
            self._recovering = True
        if trigger in (Trigger.TRIP, Trigger.LOSS, Trigger.WORSE):
            self._patience = min(self._patience + 1, PATIENCE_MAX)
        if trigger is Trigger.BETTER:
            self._emergencies = 0
        self._change(now_ns, after, why)

    def _change(self, now_ns: int, mode: Mode, why: str) -> None:
        before, self.mode = self.mode, mode
        self._recovering = self._recovering and mode is Mode.EMERGENCY
        self._calm = 0
        self._starts[before] = self._evidence.starts
        self._evidence = self._test(self._starts.get(mode, 0))
        self._alarm = Alarm(self.config.alarm_run_length)
        self.ledger.forget_window()
        change = ModeChange(now_ns, self.epoch, before, mode, why)
        if len(self.timeline) >= TIMELINE_MAX:
            del self.timeline[0]
        self.timeline.append(change)
        self.on_change(change)
