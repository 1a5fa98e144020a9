"""What the author of a learning agent subclasses: :class:`MLAgent`; and what connects it to river: :func:`online`.

The base class attaches to the model, decodes what comes, names generations and datasets in hints, keeps track of
the mode, and keeps checkpoints; an author says what to learn and what to recommend.  river is imported by
:func:`online` when a model is asked for by its name, and never before.
"""

from __future__ import annotations

import errno
import importlib
import inspect
import math
import operator
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from uxk.context import Context
from uxk.core.checkpoint import Slots, libraries_of, pack, unpack
from uxk.core.checkpoint import versions_of as versions_of
from uxk.core.rows import DatasetView as DatasetView
from uxk.core.rows import Features, best_of_each, feature_dicts, rows_of
from uxk.core.suggest import did_you_mean
from uxk.errors import CapabilityError, ManifestError, RingFull, UsageError, errno_name
from uxk.limits import NS_PER_S
from uxk.module import Extension, P
from uxk.uapi import ml
from uxk.uapi.action import ActionChange, decode_action
from uxk.uapi.entries import Completion, Event
from uxk.uapi.manifest import Manifest

_SENT_MAX: Final = 1024
"""Hints whose feedback can still be told apart; a standing one gets feedback more than once."""
_OF_THE_MODEL: Final = frozenset({"dataset", "mode", "model", "model_gone"})
"""Topics of events whose name is that of the model."""


class Advice(NamedTuple):
    """What :meth:`MLAgent.recommend` returns if there is more to say than the payload."""

    payload: bytes
    predicted: int = 0
    """What the agent expects to come of it, in the site's own unit."""
    ttl_ns: int = 0
    """0: the agent's ``ttl_ns``."""
    standing: bool | None = None
    """None: the agent's ``standing``."""
    note: Any = None
    """The author's own, kept here: :meth:`MLAgent.advice_of` gives it back when feedback comes."""


class MLAgent(Extension[P]):
    """Base class of every agent that learns.

    A subclass names ``model`` and the decision ``sites`` that it advises; the capabilities for them, and for
    ``sysctls`` that it recommends values for, and ``policies`` that it injects, are added to its manifest.  After each
    dataset, :meth:`on_dataset` is called, then :meth:`recommend` for each site.  Errors in hooks are contained.

    One that overrides ``checkpoint`` and ``restore`` keeps what it has learned over a crash, too: it is read back if
    module, ``state_version`` and library versions are the same, before any dataset comes.

    An override of ``on_event`` calls ``super().on_event``, one of ``__init__`` ``super().__init__``.
    """

    model: ClassVar[str] = ""
    """The model to attach to, now or when it is created."""
    sites: ClassVar[tuple[str, ...]] = ()
    """Decision sites to be asked for, after each dataset."""
    policies: ClassVar[tuple[str, ...]] = ()
    """Decision sites that it may inject programs at, see :meth:`judge`."""
    sysctls: ClassVar[tuple[str, ...]] = ()
    """Sysctls that it may recommend values for, see :meth:`~uxk.context.Context.recommend_sysctl`."""
    ttl_ns: ClassVar[int] = NS_PER_S
    """How long a hint is good."""
    standing: ClassVar[bool] = True
    """Whether a hint stays in force until its time is over or the next one comes."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose exact version a checkpoint needs; Python, numpy, uxk, and river when it is in use, are
    noted by themselves."""
    checkpoint_every: ClassVar[int] = 1
    """Datasets between checkpoints; 0: only when :meth:`save_checkpoint` is called."""
    checkpoint_max_bytes: ClassVar[int] = 256 << 10
    """Memory for one checkpoint, of two; the manifest's budget pays for it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if {"manifest", "model", "sites", "policies", "sysctls"} & cls.__dict__.keys():
            manifest = getattr(cls, "manifest", None)
            if isinstance(manifest, Manifest):
                cls.manifest = _complete(cls, manifest)
        super().__init_subclass__(**kwargs)

    def __init__(self) -> None:
        self.info: ml.ModelInfo | None = None
        """The model, once it exists."""
        self.mode = ml.Mode.UNKNOWN
        """Who decides now."""
        self.generations: dict[str, int] = {}
        """The present generation of each site."""
        self.datasets_seen = self.datasets_missed = 0
        """Datasets delivered, and those that were overwritten before they could be read."""
        self.hints_sent = self.hints_dropped = 0
        """Hints that left, and those that found the queue full."""
        self._sent: dict[int, Advice] = {}
        self._slots: Slots | None = None
        self._too_long = False

    # --- what an author overrides ---

    def on_model(self, ctx: Context, info: ml.ModelInfo | None) -> None:
        """The model is there, or has new sites or datasets; None: it is gone."""

    def on_dataset(self, ctx: Context, dataset: DatasetView) -> None:
        """A dataset was published, or pulled: learn from its rows."""

    def recommend(self, ctx: Context, site: str) -> bytes | Advice | None:
        """What the site should do: a payload in the site's format, or None for nothing new."""
        return None

    def on_feedback(self, ctx: Context, feedback: ml.Feedback) -> None:
        """What became of a hint, applied or refused; :meth:`advice_of` says which one it was."""

    def on_mode(self, ctx: Context, change: ml.ModeChange) -> None:
        """The mode has changed; ``self.mode`` is the new one."""

    def judge(self, ctx: Context, site: str, rows: NDArray[np.int64]) -> Sequence[Any] | None:
        """What the model says of decisions of a program of this agent's, in the kernel: one verdict for each row.

        ``rows`` are features in the order of the site's schema, a decision in each; where a site ranks candidates, one
        of those, and what is returned is their scores: the highest wins, the first of equals.  None: nothing to say.
        """
        return None

    def on_policy(self, ctx: Context, site: str, change: ml.PolicyChange) -> None:
        """A step of a program that was injected: in the shadow, in force, refused, over."""

    def on_action(self, ctx: Context, change: ActionChange) -> None:
        """A step of a recommended sysctl write: applied, confirmed, reverted, superseded."""

    # --- what an author calls ---

    def pull(self, ctx: Context, dataset: str) -> None:
        """Asks for a dataset instead of waiting; it arrives in :meth:`on_dataset`."""
        reply = ctx.model(self.model, ml.ModelCommand.GET_DATASET, dataset)
        reply.then(lambda done: self._pulled(ctx, dataset, done))

    def advise(self, ctx: Context, site: str, advice: bytes | Advice, dataset: DatasetView | None = None) -> int:
        """Sends a hint now; returns its number, or 0 if the queue is full (counted): advice may be lost.

        :class:`TypeError` for a prediction that is no integer, of Python's or numpy's: the kernel has no floats.
        """
        if not isinstance(advice, Advice):
            advice = Advice(advice)
        standing = self.standing if advice.standing is None else advice.standing
        try:
            reply = ctx.hint(
                site, self.generations.get(site, 0), advice.ttl_ns or self.ttl_ns, advice.payload,
                0 if dataset is None else dataset.info.id,
                dataset_generation=0 if dataset is None else dataset.generation,
                predicted=int(operator.index(advice.predicted)), standing=standing,
            )  # fmt: skip
        except RingFull:
            self.hints_dropped += 1
            return 0
        self.hints_sent += 1
        self._sent[reply.cid] = advice
        if len(self._sent) > _SENT_MAX:
            del self._sent[next(iter(self._sent))]
        reply.then(lambda done: self._answered(ctx, site, advice, dataset, done))
        return reply.cid

    def advice_of(self, feedback: ml.Feedback) -> Advice | None:
        """The advice that feedback is about; None if it is too long ago, or another incarnation's."""
        return self._sent.get(feedback.hint)

    def save_checkpoint(self, ctx: Context) -> bool:
        """Keeps a checkpoint now; False, with a line in the log, if there is no room for it."""
        if self._slots is None:
            return False
        manifest, data = self.manifest, self.checkpoint()
        if not isinstance(data, bytes):
            raise TypeError(f"{ctx.name}: checkpoint() returned {type(data).__name__}, expected bytes")
        blob = pack(
            data, module=manifest.name, state_version=manifest.state_version, libraries=versions_of(self._libraries())
        )  # fmt: skip
        if len(blob) > self._slots.room:
            if not self._too_long:
                ctx.log(f"checkpoint of {len(blob)} bytes, there is room for {self._slots.room}", level=4)
            self._too_long = True
            return False
        self._slots.write(blob)
        return True

    # --- the kernel's side ---

    def _begin(self, ctx: Context) -> None:
        if type(self).checkpoint is MLAgent.checkpoint:
            self._attach(ctx)
        else:
            reply = ctx.allocate(2 * self.checkpoint_max_bytes, keep="checkpoint")
            reply.then(lambda done: self._on_memory(ctx, done))

    def _attach(self, ctx: Context) -> None:
        if self.model:
            ctx.attach(self.model)

    def _on_memory(self, ctx: Context, done: Completion) -> None:
        if done.status:
            ctx.log(f"no checkpoints: {done.payload.decode(errors='replace')}", level=3)
        else:
            self._slots = Slots(ctx.map(done.result, writable=True))
            if not self._handed_over:
                self._warm_up(ctx, self._slots)
        self._attach(ctx)

    def _warm_up(self, ctx: Context, slots: Slots) -> None:
        """Restores the newest checkpoint; what cannot be read, or killed its last reader, is told and left out."""
        blob = slots.newest
        if blob is None:
            return
        if slots.deadly:
            ctx.log("the checkpoint ended the instance before this one: starting cold", level=4)
            slots.clear()
            return
        manifest, versions = self.manifest, versions_of((*libraries_of(blob), *self._libraries()))
        try:
            data = unpack(blob, module=manifest.name, state_version=manifest.state_version, libraries=versions)
        except UsageError as exc:
            ctx.log(f"{exc}: starting cold", level=3)
            slots.clear()
            return
        slots.tried()
        self.restore(data)
        slots.survived()
        ctx.log(f"restored a checkpoint of {len(data)} bytes")

    def _libraries(self) -> tuple[str, ...]:
        return (*self.libraries, "python", "numpy", "uxk", *(("river",) if "river" in sys.modules else ()))

    def on_event(self, ctx: Context, event: Event) -> None:
        """Decodes what concerns the model and its hints, and calls the hook; other topics are the author's.

        So are events of further models that it is attached to, for these hooks do not tell one from the other.
        """
        if event.topic in _OF_THE_MODEL and self.model not in ("", event.name):
            return
        match event.topic:
            case "dataset":
                self._on_dataset(ctx, ml.decode_dataset(event.value), event.cap)
            case "feedback":
                for feedback in ml.decode_feedback(event.value):
                    self.on_feedback(ctx, feedback)
            case "mode":
                change = ml.decode_mode(event.value)
                self.mode = change.new
                self.on_mode(ctx, change)
            case "generation":
                self.generations[event.name] = ml.decode_generation(event.value)
            case "model":
                info = self.info = ml.decode_model(event.value)
                self.mode = info.mode
                self.generations.update(zip(info.sites, info.generations, strict=False))
                self.on_model(ctx, info)
            case "model_gone":
                self.info, self.mode = None, ml.Mode.UNKNOWN
                self.generations.clear()
                self.on_model(ctx, None)
            case "shadow":
                self._judge(ctx, event.name, ml.decode_shadow(event.value))
            case "policy":
                self.on_policy(ctx, event.name, ml.decode_policy(event.value))
            case "action":
                self.on_action(ctx, decode_action(event.value))
            case _:
                pass

    def _judge(self, ctx: Context, site: str, shown: ml.ShadowRows) -> None:
        rows = np.frombuffer(shown.rows, "<i8").reshape(-1, shown.width)
        said = self.judge(ctx, site, rows)
        if said is None:
            return
        if len(said) != len(rows):
            raise UsageError(f"{ctx.name}: judge() gave {len(said)} verdicts for {len(rows)} rows of {site}")
        ctx.judge(shown.injection, shown.first, best_of_each(said, shown.counts) if shown.counts else said)

    def _pulled(self, ctx: Context, dataset: str, done: Completion) -> None:
        if done.status:
            ctx.log(f"dataset {dataset}: {done.payload.decode(errors='replace')}", level=4)
        else:
            self._on_dataset(ctx, ml.decode_dataset(done.payload), done.result)

    def _on_dataset(self, ctx: Context, info: ml.Dataset, cap: int) -> None:
        try:
            memory = ctx.map(cap)
        except CapabilityError as exc:
            if exc.errno != errno.ESTALE:
                raise
            self.datasets_missed += 1  # newer ones were published before this one was looked at
            return
        dataset = DatasetView(info, rows_of(info, memory))
        self.datasets_seen += 1
        self.on_dataset(ctx, dataset)
        for site in self.sites:
            advice = self.recommend(ctx, site)
            if advice is not None:
                self.advise(ctx, site, advice, dataset)
        if self.checkpoint_every and self.datasets_seen % self.checkpoint_every == 0:
            self.save_checkpoint(ctx)

    def _answered(self, ctx: Context, site: str, advice: Advice, dataset: DatasetView | None, done: Completion) -> None:
        """A hint that was refused at once is fed back like one that was refused later."""
        if not done.status:
            return
        text = done.payload.decode(errors="replace")
        reason = text if done.status == errno.EINVAL and text.isidentifier() else errno_name(done.status)
        number, generation = (0, 0) if dataset is None else (dataset.info.id, dataset.generation)
        self.on_feedback(ctx, ml.Feedback(done.cid, site, advice.predicted, 0, 0, reason, number, generation))


def _complete(cls: type[MLAgent[Any]], manifest: Manifest) -> Manifest:
    """The manifest with the capabilities that the class attributes imply; an author's own for the same stay."""
    for name in ("sites", "policies", "sysctls"):
        value = getattr(cls, name)
        if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
            raise ManifestError(f"{cls.__name__}.{name} is {value!r}, expected a tuple of names")
    if not isinstance(cls.model, str) or not isinstance(manifest.capabilities, tuple):
        raise ManifestError(f"{cls.__name__}: model is {cls.model!r}, capabilities are {manifest.capabilities!r}")
    wanted = [f"model:{cls.model}"] if cls.model else []
    wanted += [f"bpf:site/{site}" for site in cls.policies]
    wanted += [f"site:{site}" for site in cls.sites] + [f"sysctl:{name}:submit" for name in cls.sysctls]
    mine = [
        each for each in wanted
        if not any(own == each or own.startswith(f"{each}:") for own in manifest.capabilities)
    ]  # fmt: skip
    return msgspec.structs.replace(
        manifest, kind="ml-agent" if manifest.kind == "driver" else manifest.kind,
        capabilities=(*manifest.capabilities, *mine),
    )  # fmt: skip


# --- learners ---


@runtime_checkable
class Learner(Protocol):
    """Anything that learns row by row: river's models, or an author's own."""

    def learn_one(self, x: Features, y: Any) -> object:
        """Learns from one row and what came of it."""
        ...

    def predict_one(self, x: Features) -> Any:
        """What will come of a row."""
        ...


class Online:
    """A learner with guards: nothing to say and nonsense become the default, and its error is measured as it goes.

    It is a :class:`Learner`, too; pickling it pickles the model.
    """

    def __init__(self, model: Learner) -> None:
        self.model = model
        self.learned = self.predicted = 0
        """Calls: what the agent's thinking consists of."""
        self.unknown = 0
        """Predictions that were None or no finite number."""
        self.tested = 0
        """Rows of the progressive validation."""
        self._error = self._naive = 0.0
        self._last: Any = None

    def __repr__(self) -> str:
        return f"<Online {type(self.model).__name__}, learned {self.learned}>"

    def learn_one(self, x: Features, y: Any) -> None:
        """Learns from one row."""
        self.model.learn_one(x, y)
        self.learned += 1

    def predict_one(self, x: Features, default: Any = None) -> Any:
        """The model's prediction; ``default`` for None, NaN and infinity."""
        self.predicted += 1
        answer = self.model.predict_one(x)
        if answer is None or (isinstance(answer, (float, np.floating)) and not math.isfinite(answer)):
            self.unknown += 1
            return default
        return answer

    def learn_many(self, rows: NDArray[Any], target: str, features: Sequence[str] = ()) -> int:
        """Learns from structured rows in their order; ``features`` are all columns but the target, unless named.

        Returns how many.
        """
        names = features or tuple(name for name in rows.dtype.names or () if name != target)
        targets = [row[target] for row in feature_dicts(rows, (target,))]
        for x, y in zip(feature_dicts(rows, names), targets, strict=True):
            self.learn_one(x, y)
        return len(targets)

    def predict_many(self, rows: NDArray[Any], features: Sequence[str] = (), default: Any = None) -> list[Any]:
        """Predictions for structured rows."""
        return [self.predict_one(x, default) for x in feature_dicts(rows, features)]

    def test_then_learn(self, x: Features, y: Any, default: Any = None) -> Any:
        """Progressive validation (prequential; Gama, Sebastiao and Rodrigues, KDD 2009): predicts, then learns.

        Returns the prediction; the errors are in :attr:`error` and :attr:`naive_error`.
        """
        answer = self.predict_one(x, default)
        if self._last is not None and answer is not None:
            self.tested += 1
            self._error += _distance(answer, y)
            self._naive += _distance(self._last, y)
        self._last = y
        self.learn_one(x, y)
        return answer

    @property
    def error(self) -> float:
        """Mean absolute error of the predictions tested so far, or for labels the share that was wrong."""
        return self._error / self.tested if self.tested else 0.0

    @property
    def naive_error(self) -> float:
        """The same of who predicts what came last: a model that is not below it has learned nothing."""
        return self._naive / self.tested if self.tested else 0.0


def _distance(answer: Any, truth: Any) -> float:
    if isinstance(truth, (bool, str, bytes)) or isinstance(answer, (bool, str, bytes)):
        return float(answer != truth)
    return abs(float(answer) - float(truth))


def online(model: Learner | str, **settings: Any) -> Online:
    """A guarded learner from an object, or from river by name: ``online("linear_model.LinearRegression", l2=0.1)``.

    A model of river's that would begin with a seed of chance gets the seed 0, unless another is given: runs repeat.
    Raises :class:`UsageError` for a name that river has not, and for an object without ``learn_one`` or
    ``predict_one``.
    """
    if isinstance(model, str):
        cls = _from_river(model)
        if "seed" in inspect.signature(cls).parameters:
            settings = {"seed": 0, **settings}
        made = cls(**settings)
    elif settings:
        raise UsageError(f"online: settings {', '.join(settings)} are for models by name; {model!r} is made already")
    else:
        made = model
    if isinstance(made, type):
        raise UsageError(f"online: {made.__name__} is a class, expected an object: {made.__name__}(...)")
    missing = [name for name in ("learn_one", "predict_one") if not callable(getattr(made, name, None))]
    if missing:
        raise UsageError(f"online: {type(made).__name__} has no {' and no '.join(missing)}")
    return Online(made)


def _from_river(name: str) -> Any:
    where, _, cls = name.removeprefix("river.").rpartition(".")
    try:
        river = importlib.import_module("river")
    except ModuleNotFoundError:
        raise UsageError(f"online: {name!r} needs river, which is not installed") from None
    modules: Mapping[str, object] = {each.name: None for each in pkgutil.iter_modules(river.__path__)}
    if where.partition(".")[0] not in modules:
        raise UsageError(f"online: {name!r}: river has no {where!r}{did_you_mean(where, modules)}")
    try:
        known = vars(importlib.import_module(f"river.{where}"))
    except ModuleNotFoundError:
        raise UsageError(f"online: {name!r}: there is no river.{where}") from None
    found = known.get(cls)
    if not isinstance(found, type):
        raise UsageError(f"online: river.{where} has no class {cls!r}{did_you_mean(cls, known)}")
    return found
