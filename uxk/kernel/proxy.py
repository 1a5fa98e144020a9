"""The ML model proxy: kernel-ml-lib's eighteen operations, for a subsystem of the emulated kernel (R35-R42).

Data flow, never execution flow: the proxy publishes datasets and takes hints in; the subsystem asks at its own
decisions, and goes on with its default if nothing good is there.  The names of the operations are those of
``struct ml_lib_model_operations`` (and ``ml_model_discard_dataset``); which may be called when is a table
(:mod:`uxk.core.mlmodel`).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar

from numpy.typing import DTypeLike, NDArray

from uxk import limits
from uxk.core.kpi import Epoch
from uxk.core.manifest import name_problem
from uxk.core.mlmodel import SUBSYSTEM_STATE, after
from uxk.core.mode import ModeConfig, ModeMachine
from uxk.core.suggest import did_you_mean
from uxk.errors import UsageError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.machine import Machine
from uxk.kernel.proxydata import ProxyDataset
from uxk.kernel.sites import ProxySite
from uxk.uapi.entries import Hint
from uxk.uapi.ids import CapId
from uxk.uapi.ml import (
    Dataset,
    DatasetState,
    Mode,
    ModeChange,
    ModelEvent,
    ModelInfo,
    ModelState,
    SubsystemState,
    encode,
)

if TYPE_CHECKING:
    from uxk.kernel.models import Models

T = TypeVar("T")
Probe: TypeAlias = Mapping[str, "str | None"]
"""Watermarks by name: why it is critical, or None."""
PARTS_MAX: Final = 64
"""Sites, and datasets, of one model."""
_NAME: Final = re.compile(rf"[\w.-]{{1,{limits.NAME_MAX_BYTES}}}", re.ASCII)
"""What a capability can name without being a pattern, and a path without leaving its folder."""
_RUNS: Final = frozenset({ModelState.STARTED, ModelState.RUNNING})


class Hooks(NamedTuple):
    """What the subsystem brings: none of it is needed."""

    state: Callable[[], Mapping[str, int | str]] = dict
    """Its state for :meth:`MLModelProxy.get_system_state`: what an agent or an administrator may see."""
    probe: Callable[[], Probe] = dict
    """Its watermarks, looked at in every epoch."""
    correct: Callable[[str], object] = lambda why: None
    """Undoes what hints have left behind; called with the reason at every emergency."""


class MLModelProxy:
    """One model.  Made by :meth:`uxk.kernel.models.Models.create`, see there for the arguments.

    Every operation raises :class:`UsageError` (EINVAL, EBUSY) in a state that does not allow it.
    """

    __slots__ = (
        "_heard_ns", "_hooks", "_machine", "_models", "_rate", "agents", "datasets", "id", "modes", "name", "senders",
        "sites", "state", "subsystem",
    )  # fmt: skip

    def __init__(
        self, machine: Machine, models: Models, number: int, subsystem: str, name: str, hooks: Hooks
    ) -> None:  # fmt: skip
        for each in (subsystem, name):
            if problem := name_problem(each):
                raise UsageError(f"model: {problem}")
        self._machine = machine
        self._models = models
        self._hooks = hooks
        self._heard_ns = 0
        self._rate = (0, 0)
        self.id = number
        self.subsystem = subsystem
        self.name = name
        self.state = ModelState.UNKNOWN
        self.modes = ModeMachine(ModeConfig(), self._mode_changed)
        self.sites: dict[str, ProxySite] = {}
        self.datasets: dict[str, ProxyDataset] = {}
        self.agents: dict[int, KernelAgent] = {}
        """Who is attached, by instance."""
        self.senders: dict[int, KernelAgent] = {}
        """Whose hints were taken in, and who is still there."""

    # --- what is told of it ---

    @property
    def path(self) -> str:
        """Its place in sysfs."""
        return f"/sys/kernel/ml/{self.subsystem}/{self.name}"

    @property
    def writer(self) -> str:
        """Who writes one of its attributes at this moment."""
        return self._machine.tree.writer

    @property
    def runs(self) -> bool:
        """Whether it is started: data and hints flow."""
        return self.state in _RUNS

    @property
    def mode(self) -> Mode:
        """Who decides now."""
        return self.modes.mode

    @property
    def timeline(self) -> list[ModeChange]:
        """All changes of the mode, oldest first."""
        return self.modes.timeline

    @property
    def mode_epochs(self) -> dict[Mode, int]:
        """Epochs spent in each mode."""
        return self.modes.mode_epochs

    @property
    def efficiency_ppm(self) -> int:
        """By how much units with hints did better than the default lately; negative if worse."""
        return self.modes.ledger.efficiency_ppm

    @property
    def rejects(self) -> dict[str, int]:
        """Refused hints of all sites, by reason."""
        found: dict[str, int] = {}
        for site in self.sites.values():
            for reason, count in site.rejects.items():
                found[reason] = found.get(reason, 0) + count
        return dict(sorted(found.items()))

    def total(self, counter: str) -> int:
        """A counter of the sites, summed up: ``hints_received``, ``hints_applied``, ``expired``, ``superseded``."""
        return sum(getattr(site, counter) for site in self.sites.values())

    def info(self) -> ModelInfo:
        """As its agents see it."""
        return ModelInfo(
            self.id, self.subsystem, self.name, self.mode, self.state, tuple(self.sites),
            tuple(dataset.describe() for dataset in self.datasets.values()),
            tuple(site.generation for site in self.sites.values()),
        )  # fmt: skip

    def report(self) -> dict[str, Any]:
        """Its figures for the results of a run: plain integers, texts and lists."""
        ledger = self.modes.ledger
        return {
            "mode": self.mode.name.lower(), "epochs": self.modes.epoch,
            "mode_epochs": {mode.name.lower(): count for mode, count in self.mode_epochs.items() if count},
            "efficiency_ppm": ledger.efficiency_ppm, "saved_ppm": ledger.saved_ppm, "loss_ppm": ledger.loss_ppm,
            "hints_received": self.total("hints_received"), "hints_applied": self.total("hints_applied"),
            "hints_expired": self.total("expired"), "hints_superseded": self.total("superseded"),
            "rejects": self.rejects,
            "timeline": [
                {"now_ns": c.now_ns, "epoch": c.epoch, "from": c.old.name.lower(), "to": c.new.name.lower(),
                 "why": c.why} for c in self.timeline
            ],
        }  # fmt: skip

    # --- 1 to 6: life ---

    def create(self) -> None:
        """It exists from now on, in mode EMERGENCY."""
        self._call("create")
        self._models.register(self)
        self.modes.create(self._machine.now_ns)

    def init(self, config: ModeConfig | None = None) -> None:
        """Settles its options."""
        self._call("init")
        self.modes.configure(config or ModeConfig())

    def re_init(self, config: ModeConfig) -> None:
        """Other options, while it does not run; what was measured stays."""
        self._call("re_init")
        self.modes.configure(config)

    def start(self) -> None:
        """Data and hints flow; the mode becomes LEARNING."""
        self._call("start")
        self.modes.start(self._machine.now_ns)

    def stop(self) -> None:
        """Nothing flows; hints that wait are dropped, defaults decide."""
        self._call("stop")
        self.modes.stop(self._machine.now_ns)
        self._drop_hints("stopped")

    def destroy(self) -> None:
        """Takes everything back: sites, datasets, their memory and capabilities, attributes; agents are told."""
        self._call("destroy")
        self.modes.destroy(self._machine.now_ns)
        self._models.unregister(self)
        for dataset in self.datasets.values():
            dataset.free()
        self.datasets.clear()
        self.sites.clear()
        self.agents.clear()
        self.senders.clear()
        self._enter(ModelState.DEAD)

    def close(self) -> None:
        """Stops it if it runs, and destroys it; a dead one stays dead."""
        if self.runs:
            self.stop()
        if self.state is not ModelState.DEAD:
            self.destroy()

    # --- 7 to 10, 18: state and data ---

    def get_system_state(self) -> dict[str, int | str]:
        """What the subsystem says of itself, with model state, mode, baseline and critical watermarks."""
        self._call("get_system_state")
        return {
            "subsystem_state": self.subsystem_state.name.lower(), "model_state": self.state.name.lower(),
            "mode": self.mode.name.lower(), "baseline_kpi": self.modes.ledger.baseline,
            "critical": " ".join(self.modes.critical), **self._hooks.state(),
        }  # fmt: skip

    @property
    def subsystem_state(self) -> SubsystemState:
        """The parent's state."""
        return SUBSYSTEM_STATE[self.state]

    def get_dataset(
        self, agent: KernelAgent | None, name: str, offset: int = 0, size: int = 0
    ) -> tuple[Dataset, CapId]:
        """A portion of a dataset for an agent, extracted first if nothing fresh is there (pull)."""
        self._call("get_dataset")
        return self._dataset(name).pull(agent, offset, size)

    def preprocess_data(self, name: str) -> int:
        """Applies the dataset's own filter to the rows appended so far; returns how many are left."""
        self._call("preprocess_data")
        return self._dataset(name).preprocess()

    def publish_data(self, name: str) -> int:
        """Publishes the rows appended so far (push), extracting them first if the dataset knows how."""
        self._call("publish_data")
        dataset = self._dataset(name)
        if dataset.request():  # its rows come when they are made, and are published then
            return dataset.generation
        number = dataset.extract()
        self._push(dataset)
        return number

    def discard_dataset(self, name: str = "") -> None:
        """Marks a dataset, or all of them, OBSOLETE: the next request extracts anew."""
        self._call("discard_dataset")
        for dataset in [self._dataset(name)] if name else self.datasets.values():
            dataset.discard()

    # --- 11 to 17: hints ---

    def preprocess_recommendation(self, agent: KernelAgent, hint: Hint) -> str:
        """Takes a hint in, after every check that can be made now; returns why it is refused, or ``""``."""
        self._call("preprocess_recommendation")
        now_ns = self._machine.now_ns
        reason = self.sites[hint.site].offer(agent.id, hint, now_ns)
        if not reason:
            self.senders[agent.id] = agent
            self._models.know(agent)
            self._heard_ns = now_ns
            self.modes.watermark(now_ns, "agent_dead", False)
            self.modes.watermark(now_ns, "agent_silent", False)
        return reason

    def estimate_system_state(self) -> dict[str, str]:
        """Looks at every watermark (the subsystem's own, silence, refused hints); returns those that are critical."""
        self._call("estimate_system_state")
        now_ns, modes = self._machine.now_ns, self.modes
        for name, why in self._hooks.probe().items():
            modes.watermark(now_ns, name, why is not None, why or "")
        silence_ns, limit_ns = now_ns - self._heard_ns, modes.config.silence_ns
        if limit_ns and self.senders and silence_ns > limit_ns:
            modes.watermark(now_ns, "agent_silent", True, f"{silence_ns} ns, at most {limit_ns}")
        received, refused = self.total("hints_received"), self.total("hints_refused")
        new, bad = received - self._rate[0], refused - self._rate[1]
        self._rate = (received, refused)
        config = modes.config
        many = new >= config.rejects_min and bad * limits.PPM > config.rejects_max_ppm * new
        modes.watermark(now_ns, "rejects", many, f"{bad} of {new} hints refused")
        return dict(modes.critical)

    def apply_recommendation(self, site: str, unit: int = -1, *, standing: bool = False) -> Hint | None:
        """The hint to follow now, or None for the default.  Never waits."""
        self._call("apply_recommendation")
        found, now_ns = self._site(site), self._machine.now_ns
        return found.standing(now_ns, unit) if standing else found.take(now_ns, unit)

    def execute_operation(
        self, site: str, default: Callable[[], T], hinted: Callable[[Hint], T], *, unit: int = -1,
        standing: bool = False,
    ) -> T:  # fmt: skip
        """Decides and acts in one step: ``hinted(hint)`` with a good hint, ``default()`` without."""
        self._call("execute_operation")
        hint = self.apply_recommendation(site, unit, standing=standing)
        return default() if hint is None else hinted(hint)

    def estimate_efficiency(self, epoch: Epoch) -> int:
        """Books what the arms did in one epoch, looks at the watermarks, and moves the mode; returns efficiency_ppm."""
        self._call("estimate_efficiency")
        self.estimate_system_state()
        self.modes.observe(self._machine.now_ns, epoch)
        return self.efficiency_ppm

    def error_backpropagation(self, hint: Hint, outcome: int, baseline: int = 0) -> None:
        """Tells a hint's sender what came of it."""
        self._call("error_backpropagation")
        self._site(hint.site).applied(hint, outcome=outcome, baseline=baseline)

    def correct_system_state(self, why: str) -> None:
        """Drops every hint that waits, and lets the subsystem undo what hints have left behind."""
        self._call("correct_system_state")
        self._drop_hints("emergency")
        self._hooks.correct(why)

    def _drop_hints(self, reason: str) -> None:
        for site in self.sites.values():
            site.clear(reason)

    # --- its parts ---

    def dataset(
        self, name: str, dtype: DTypeLike, capacity: int, *, slots: int = 2,
        extract: Callable[[ProxyDataset], object] | None = None,
        preprocess: Callable[[NDArray[Any]], NDArray[Any]] | None = None, checked: bool = False,
        ask: Callable[[], object] | None = None,
    ) -> ProxyDataset:  # fmt: skip
        """Adds a dataset of at most ``capacity`` rows.  EEXIST, ENOSPC, ENOMEM, EINVAL; see :class:`ProxyDataset`."""
        self._new_part("dataset", name, self.datasets)
        made = self.datasets[name] = ProxyDataset(
            self._machine, self.name, name, self._models.next_dataset_id(), dtype, capacity, slots=slots,
            extract=extract, preprocess=preprocess, checked=checked, on_push=self._push,
            on_prepared=self._prepared, on_step=self._dataset_moved, ask=ask,
        )  # fmt: skip
        self._models.show_dataset(self, made)
        self.announce()
        return made

    def site(
        self, name: str, check: Callable[[bytes], str], *, units: int = 1, depth: int = 1, lag_max: int = -1
    ) -> ProxySite:
        """Adds a decision site.  EEXIST, ENOSPC, EINVAL; see :class:`~uxk.core.site.DecisionSite`.

        Hints from a dataset more than ``lag_max`` generations old are refused as ``stale_dataset``; -1: none are.
        """
        self._new_part("site", name, self.sites)
        if name in self._machine.sites:
            raise UsageError(f"site {name!r} exists already", errno=errno.EEXIST)
        made = ProxySite(
            self, name, check, units=units, depth=depth, origin=partial(self._origin, lag_max),
            feedback=self._models.tell,
        )  # fmt: skip
        self.sites[name] = self._machine.sites[name] = made
        self._models.show_site(self, made)
        self.announce()
        return made

    def watermark(self, name: str, *, critical: bool, why: str = "") -> None:
        """A watermark of the subsystem's is passed, which is an emergency, or not any more."""
        self.modes.watermark(self._machine.now_ns, name, critical, why)

    def override(self, mode: Mode | None, who: str = "administrator") -> None:
        """Fixes the mode; None lets evidence decide again."""
        self.modes.set_override(self._machine.now_ns, mode, who)

    def attach(self, agent: KernelAgent) -> None:
        """The agent hears of everything from now on."""
        self.agents[agent.id] = agent
        agent.event("model", self.name, encode(self.info()))

    def detach(self, agent: KernelAgent) -> None:
        """The agent hears no more of it, and reads no more of its data; its hints stay."""
        for dataset in self.datasets.values():
            dataset.forget(agent.id)
        self.agents.pop(agent.id, None)

    def forget(self, agent: KernelAgent) -> None:
        """An agent is gone, and with it its hints.  The last one of those who gave any leaves an emergency."""
        for site in self.sites.values():
            site.forget(agent.id)
        self.detach(agent)
        if self.senders.pop(agent.id, None) is not None and not self.senders:
            self.modes.watermark(self._machine.now_ns, "agent_dead", True, agent.name)

    def announce(self, site: ProxySite | None = None) -> None:
        """Tells attached agents soon of new parts, or of a site's new generation; once for many changes."""
        if self.agents:
            self._models.announce(self, site)

    # --- inside ---

    def _call(self, call: str) -> None:
        """Checks that an operation is legal now; remembers the state it leads to."""
        self._enter(after(self.name, self.state, call))

    def _enter(self, state: ModelState) -> None:
        before = self.state
        if state is not before:
            self.state = state
            self._machine.note("model", 0, f"{self.subsystem}/{self.name} {state.name}".encode())
            self._models.notify(self, "state")
            if before is not ModelState.UNKNOWN:  # that it exists is told when it is registered
                self._models.emit(self, ModelEvent.STATE_CHANGE, before, state)

    def _mode_changed(self, change: ModeChange) -> None:
        machine = self._machine
        text = f"mode {change.old.name} -> {change.new.name} at epoch {change.epoch}: {change.why}"
        emergency = change.new is Mode.EMERGENCY and self.runs
        machine.log(
            "warning" if emergency else "notice", f"{self.subsystem}/{self.name}", text[: limits.KMSG_TEXT_MAX_BYTES],
            mode=change.new.name.lower(), epoch=change.epoch,
        )  # fmt: skip
        machine.note("mode", 0, f"{self.subsystem}/{self.name} {text}".encode())
        value = encode(change)
        for agent in self.agents.values():
            agent.event("mode", self.name, value)
        self._models.notify(self, "mode")
        self._models.emit(self, ModelEvent.MODE_CHANGE, change.old, change.new)
        for look in self._models.on_mode:
            look(self, change)
        if emergency:
            self.correct_system_state(change.why)

    def _dataset_moved(self, before: DatasetState, after: DatasetState) -> None:
        bad = after in (DatasetState.EXTRACTION_FAILURE, DatasetState.CORRUPTED)
        self._models.emit(self, ModelEvent.DATASET_UPDATE, before, after, -errno.EIO if bad else 0)

    def _prepared(self, dataset: ProxyDataset) -> None:
        if self.runs:
            for look in self._models.on_generation:
                look(self, dataset)

    def _push(self, dataset: ProxyDataset) -> None:
        """A stopped model publishes for nobody."""
        if self.runs:
            self._call("publish_data")
            for agent in self._models.readers(self):
                dataset.push(agent)
        self._models.notify(self, f"datasets/{dataset.name}/generation")

    def _origin(self, lag_max: int, hint: Hint) -> str:
        """What speaks against the dataset that a hint names as its origin."""
        if not hint.dataset:
            return "forged" if hint.dataset_generation else ""
        for dataset in self.datasets.values():
            if dataset.id == hint.dataset:
                lag = dataset.generation - hint.dataset_generation
                return "forged" if lag < 0 else "stale_dataset" if 0 <= lag_max < lag else ""
        return "forged"

    def _dataset(self, name: str) -> ProxyDataset:
        found = self.datasets.get(name)
        if found is None:
            hint = did_you_mean(name, self.datasets)
            raise UsageError(f"model {self.name}: no dataset {name!r}{hint}", errno=errno.ENOENT)
        return found

    def _site(self, name: str) -> ProxySite:
        found = self.sites.get(name)
        if found is None:
            hint = did_you_mean(name, self.sites)
            raise UsageError(f"model {self.name}: no site {name!r}{hint}", errno=errno.ENODEV)
        return found

    def _new_part(self, what: str, name: str, known: Mapping[str, object]) -> None:
        if not _NAME.fullmatch(name) or name in (".", ".."):
            raise UsageError(
                f"model {self.name}: {what} {name!r}: expected a name of 1 to {limits.NAME_MAX_BYTES} letters, digits "
                "and '_.-'"
            )
        if self.state in (ModelState.UNKNOWN, ModelState.SHUTTING_DOWN, ModelState.DEAD):
            raise UsageError(f"model {self.name}: {what} {name!r} in state {self.state.name}")
        if name in known:
            raise UsageError(f"model {self.name}: {what} {name!r} exists already", errno=errno.EEXIST)
        if len(known) >= PARTS_MAX:
            raise UsageError(f"model {self.name}: {PARTS_MAX} of {what} at most", errno=errno.ENOSPC)
