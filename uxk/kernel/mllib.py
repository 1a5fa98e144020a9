"""kernel-ml-lib's functions under their names, for subsystems and tools written against it.

:class:`MlLib` binds them to what uxk has: a ``struct ml_lib_model`` is an :class:`~uxk.kernel.proxy.MLModelProxy`.
Where the reference returns -EOPNOTSUPP or does nothing, these work; and each raises
:class:`~uxk.errors.UsageError` in a state that does not allow it (:data:`uxk.core.mlmodel.TABLE`).  The ``bpf_*``
functions and :meth:`MlLib.ml_lib_dispatch_cmd` are called by programs, and so return 0 or -errno.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec import Struct
from numpy.typing import DTypeLike

from uxk.core.kpi import Epoch
from uxk.core.mllib import REQUEST_CONFIG, SUBSYSTEM, Lifecycle, way
from uxk.core.mode import ModeConfig
from uxk.errors import UsageError, UxkError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.models import Models, control
from uxk.kernel.proxy import Hooks, MLModelProxy
from uxk.kernel.proxydata import ProxyDataset
from uxk.uapi import mllib
from uxk.uapi.entries import Hint
from uxk.uapi.ids import CapId
from uxk.uapi.ml import (
    Dataset,
    DatasetState,
    DatasetType,
    ModelCommand,
    ModelState,
    RequestConfigState,
    RequestConfigType,
    SubsystemState,
    SubsystemType,
)
from uxk.uapi.mllibabi import COMMAND, DATASET, EFFICIENCY, MODEL_INFO, REQUEST, REQUEST_MAGIC

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")
MS_NS: Final = 1_000_000
REFERENCES_MAX: Final = 1024
"""References that one library object holds at a time."""
_COMMANDS: Final = frozenset(ModelCommand(value) for value in mllib.ENUMS["ml_lib_bpf_command"].values())


class ModelOptions(Struct, kw_only=True):
    """``struct ml_lib_model_options``, which has ``sleep_timeout`` only.

    Here that is the longest silence of an agent, in ms, before it is an emergency, unless it is unset.
    """

    sleep_timeout: int = mllib.ML_LIB_SLEEP_TIMEOUT_UNSET
    modes: ModeConfig = ModeConfig()

    def config(self) -> ModeConfig:
        """What the mode machine is told; EINVAL for a timeout that is no u32."""
        timeout, fields = self.sleep_timeout, {name: getattr(self.modes, name) for name in ModeConfig.__struct_fields__}
        if type(timeout) is not int or not 0 <= timeout <= mllib.ML_LIB_SLEEP_TIMEOUT_UNSET:
            raise UsageError(f"sleep_timeout={timeout!r}: expected 0 to {mllib.ML_LIB_SLEEP_TIMEOUT_UNSET}")
        if timeout != mllib.ML_LIB_SLEEP_TIMEOUT_UNSET:
            fields["silence_ns"] = timeout * MS_NS
        return ModeConfig(**fields)


class SubsystemObject(Struct, kw_only=True):
    """``struct ml_lib_subsystem``: what a model is created for.  ``private`` is its own, and ``size`` what it says."""

    name: str = mllib.UNKNOWN_SUBSYSTEM_NAME
    type: SubsystemType = SubsystemType.GENERIC
    size: int = 0
    private: Any = None
    hooks: Hooks = Hooks()


class RequestConfig:
    """``struct ml_lib_request_config``: which part of a dataset a request is for; its calls are legal in order only."""

    __slots__ = ("_life", "offset", "size", "type")

    def __init__(self) -> None:
        self._life: Lifecycle[RequestConfigState] = Lifecycle(
            "request config", REQUEST_CONFIG, RequestConfigState.UNKNOWN
        )
        self._life.step("allocate")
        self.type = RequestConfigType.UNKNOWN
        self.offset = self.size = 0

    @property
    def state(self) -> RequestConfigState:
        """Its state."""
        return self._life.state

    def init(self, offset: int = 0, size: int = 0) -> None:
        """Settles the portion, in bytes; all of it unless told otherwise."""
        self._life.step("init")
        self.type, self.offset, self.size = RequestConfigType.EMPTY, offset, size

    def destroy(self) -> None:
        """The opposite of ``init``."""
        self._life.step("destroy")
        self.type = RequestConfigType.UNKNOWN

    def free(self) -> None:
        """The end of it."""
        self._life.step("free")


class SubsystemWatch:
    """``struct ml_lib_subsystem_state``: where a model's subsystem is, and every state on its way there."""

    __slots__ = ("_life", "_model", "passed")

    def __init__(self, model: MLModelProxy) -> None:
        self._model = model
        self._life: Lifecycle[SubsystemState] = Lifecycle(
            f"subsystem {model.subsystem}", SUBSYSTEM, SubsystemState.UNKNOWN
        )
        self.passed: list[SubsystemState] = []
        """States that the last :meth:`snapshot` went through, the present one included."""

    @property
    def state(self) -> SubsystemState:
        """As of the last snapshot."""
        return self._life.state

    def snapshot(self) -> SubsystemState:
        """``snapshot_state``: follows the model to where it is now, by legal steps only."""
        self.passed = [self._life.step(call) for call in way(self.state, self._model.subsystem_state)]
        return self.state


class ModelReference:
    """A counted reference (``bpf_ml_model_lookup``).  It does not keep the model: a destroyed one answers ENODEV."""

    __slots__ = ("held", "model")

    def __init__(self, model: MLModelProxy) -> None:
        self.model = model
        self.held = True


class MlLib:
    """The library of one kernel: ``MlLib(kernel.models)``."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._references = 0
        self.events = models.events
        """The event ring: see :class:`uxk.core.mlevents.MlEventRing`."""

    # --- objects ---

    def allocate_subsystem_object(
        self, name: str | None = None, type: SubsystemType = SubsystemType.GENERIC, size: int = 0
    ) -> SubsystemObject:
        """A subsystem, to be named in :meth:`ml_model_create`."""
        return SubsystemObject(name=name or mllib.UNKNOWN_SUBSYSTEM_NAME, type=type, size=size)

    def allocate_ml_model_options(
        self, sleep_timeout: int = mllib.ML_LIB_SLEEP_TIMEOUT_UNSET, modes: ModeConfig | None = None
    ) -> ModelOptions:
        """Options for :meth:`ml_model_init`."""
        return ModelOptions(sleep_timeout=sleep_timeout, modes=modes or ModeConfig())

    def allocate_ml_model(self, subsystem: SubsystemObject | None = None, name: str | None = None) -> MLModelProxy:
        """A model that is yet to be created; without names it is ``unknown_model`` of ``unknown_subsystem``."""
        parent = subsystem or SubsystemObject()
        return self._models.make(parent.name, name or mllib.UNKNOWN_MODEL_NAME, parent.hooks)

    def free_ml_model(self, model: MLModelProxy) -> None:
        """The end of a model that was never created or is destroyed; EBUSY for any other."""
        if model.state not in (ModelState.UNKNOWN, ModelState.DEAD):
            text = f"model {model.name}: free in state {model.state.name}: destroy it first"
            raise UsageError(text, errno=errno.EBUSY)

    def allocate_dataset(
        self, model: MLModelProxy, name: str, dtype: DTypeLike, capacity: int,
        extract: Callable[[ProxyDataset], object] | None = None,
    ) -> ProxyDataset:  # fmt: skip
        """A dataset of a model, of at most ``capacity`` rows; it is freed with the model."""
        return model.dataset(name, dtype, capacity, extract=extract)

    def allocate_subsystem_state(self, model: MLModelProxy) -> SubsystemWatch:
        """The state of a model's subsystem, to be looked at with :meth:`SubsystemWatch.snapshot`."""
        return SubsystemWatch(model)

    def allocate_request_config(self) -> RequestConfig:
        """A request configuration, to be initialised."""
        return RequestConfig()

    def free_request_config(self, config: RequestConfig) -> None:
        """The end of one that is not initialised (any more)."""
        config.free()

    # --- the eighteen ---

    def ml_model_create(self, model: MLModelProxy) -> None:
        """It exists from now on, in mode EMERGENCY."""
        model.create()

    def ml_model_init(self, model: MLModelProxy, options: ModelOptions | None = None) -> None:
        """Settles its options."""
        model.init((options or ModelOptions()).config())

    def ml_model_re_init(self, model: MLModelProxy, options: ModelOptions) -> None:
        """Other options, while it does not run."""
        model.re_init(options.config())

    def ml_model_start(self, model: MLModelProxy) -> None:
        """Data and hints flow."""
        model.start()

    def ml_model_stop(self, model: MLModelProxy) -> None:
        """Nothing flows; the subsystem's default decides."""
        model.stop()

    def ml_model_destroy(self, model: MLModelProxy) -> None:
        """Takes everything back; its state is ML_LIB_MODEL_STATE_MAX then."""
        model.destroy()

    def get_system_state(self, model: MLModelProxy) -> Mapping[str, int | str]:
        """What the subsystem says of itself, with model state, mode and critical watermarks."""
        return model.get_system_state()

    def ml_model_get_dataset(
        self, model: MLModelProxy, agent: KernelAgent, name: str, config: RequestConfig | None = None
    ) -> tuple[Dataset, CapId]:
        """A portion of a dataset for an agent; EINVAL for a ``config`` that is not initialised."""
        if config is not None and config.state is not RequestConfigState.INITIALIZED:
            raise UsageError(f"request config in state {config.state.name}, expected INITIALIZED")
        offset, size = (config.offset, config.size) if config else (0, 0)
        return model.get_dataset(agent, name, offset, size)

    def ml_model_discard_dataset(self, model: MLModelProxy, name: str = "") -> None:
        """Marks a dataset, or all, OBSOLETE."""
        model.discard_dataset(name)

    def ml_model_preprocess_data(self, model: MLModelProxy, name: str) -> int:
        """Applies the dataset's own filter; returns how many rows are left."""
        return model.preprocess_data(name)

    def ml_model_publish_data(self, model: MLModelProxy, name: str) -> int:
        """Publishes a generation, extracted anew; returns its number."""
        return model.publish_data(name)

    def ml_model_preprocess_recommendation(self, model: MLModelProxy, agent: KernelAgent, hint: Hint) -> str:
        """Takes a hint in; returns why it is refused, or ""."""
        return model.preprocess_recommendation(agent, hint)

    def estimate_system_state(self, model: MLModelProxy) -> Mapping[str, str]:
        """Looks at every watermark; returns those that are critical."""
        return model.estimate_system_state()

    def apply_ml_model_recommendation(
        self, model: MLModelProxy, site: str, unit: int = -1, *, standing: bool = False
    ) -> Hint | None:
        """The hint to follow now, or None for the default.  Never waits."""
        return model.apply_recommendation(site, unit, standing=standing)

    def execute_ml_model_operation(
        self, model: MLModelProxy, site: str, default: Callable[[], T], hinted: Callable[[Hint], T], *, unit: int = -1,
        standing: bool = False,
    ) -> T:  # fmt: skip
        """Decides and acts in one step."""
        return model.execute_operation(site, default, hinted, unit=unit, standing=standing)

    def estimate_ml_model_efficiency(self, model: MLModelProxy, epoch: Epoch) -> bytes:
        """Books an epoch and moves the mode; returns a ``struct ml_lib_efficiency``."""
        efficiency_ppm, ledger = model.estimate_efficiency(epoch), model.modes.ledger
        return EFFICIENCY.pack(
            model_id=model.id, mode=model.mode, epoch=model.modes.epoch, default_kpi=epoch.default_kpi or 0,
            hinted_kpi=epoch.hinted_kpi or 0, weight=epoch.weight, hinted_weight=epoch.hinted_weight,
            efficiency_ppm=efficiency_ppm, saved_ppm=ledger.saved_ppm, loss_ppm=ledger.loss_ppm,
        )  # fmt: skip

    def ml_model_error_backpropagation(self, model: MLModelProxy, hint: Hint, outcome: int, baseline: int = 0) -> None:
        """Tells a hint's sender what came of it."""
        model.error_backpropagation(hint, outcome, baseline)

    def correct_system_state(self, model: MLModelProxy, why: str) -> None:
        """Drops hints that wait, and lets the subsystem undo what others have left behind."""
        model.correct_system_state(why)

    # --- the BPF plane ---

    def bpf_ml_model_lookup(self, model_id: int) -> ModelReference | None:
        """A reference to the model of that id, or None; give it back with :meth:`bpf_ml_model_release`."""
        model = next((each for each in self._models if each.id == model_id), None)
        if model is None or self._references >= REFERENCES_MAX:
            return None
        self._references += 1
        return ModelReference(model)

    def bpf_ml_model_release(self, reference: ModelReference) -> None:
        """Gives a reference back; EINVAL the second time."""
        if not reference.held:
            raise UsageError(f"model {reference.model.id}: this reference was released already")
        reference.held = False
        self._references -= 1

    def bpf_ml_model_start(self, reference: ModelReference) -> int:
        """``start``: 0 or -errno."""
        return self._command(reference, ModelCommand.START)

    def bpf_ml_model_stop(self, reference: ModelReference) -> int:
        """``stop``: 0 or -errno."""
        return self._command(reference, ModelCommand.STOP)

    def bpf_ml_model_prepare_dataset(self, reference: ModelReference) -> int:
        """``prepare_dataset``: 0 or -errno."""
        return self._command(reference, ModelCommand.PREPARE_DATASET)

    def bpf_ml_model_discard_dataset(self, reference: ModelReference) -> int:
        """``discard_dataset``: 0 or -errno."""
        return self._command(reference, ModelCommand.DISCARD_DATASET)

    def bpf_ml_model_get_state(self, reference: ModelReference) -> int:
        """Its state, ML_LIB_MODEL_STATE_MAX once it is destroyed; -EINVAL for a released reference."""
        return int(reference.model.state) if reference.held else -errno.EINVAL

    def bpf_ml_model_get_mode(self, reference: ModelReference) -> int:
        """Its mode, or -EINVAL."""
        return int(reference.model.mode) if reference.held else -errno.EINVAL

    def bpf_ml_model_get_id(self, reference: ModelReference) -> int:
        """Its id, or -EINVAL."""
        return reference.model.id if reference.held else -errno.EINVAL

    def ml_lib_dispatch_cmd(self, context: bytes) -> int:
        """What the reference's syscall program does with a command context: 0 or -errno."""
        try:
            self.dispatch(context)
        except UxkError as exc:
            return -(exc.errno or errno.EIO)
        return 0

    def dispatch(self, context: bytes) -> bytes:
        """The same for a command or a ``struct ml_lib_user_space_request``; raises what is wrong.

        A request may have the command ``GET_DATASET`` (18) as well: the answer is a ``struct ml_lib_dataset`` and the
        bytes of the portion; that of all others is empty.  ENOENT for an id that is no model's, or a dataset that it
        has not; EINVAL for bytes that are neither, and for an unknown command.
        """
        if len(context) == COMMAND.size_bytes:
            found = COMMAND.unpack(context)
        elif len(context) == REQUEST.size_bytes:
            found = REQUEST.unpack(context)
            if found["magic"] != REQUEST_MAGIC:
                raise UsageError(f"struct {REQUEST.name}: magic {found['magic']:#x}, expected {REQUEST_MAGIC:#x}")
        else:
            expected = f"{COMMAND.size_bytes} ({COMMAND.name}) or {REQUEST.size_bytes} ({REQUEST.name})"
            raise UsageError(f"command of {len(context)} bytes, expected {expected}")
        number, model = int(found["command"]), self._model(int(found["model_id"]))
        name = str(found.get("dataset_name", ""))
        if number == ModelCommand.GET_DATASET and "magic" in found:
            return _portion(model, name, int(found["portion_offset"]), int(found["portion_size"]))
        if number not in _COMMANDS:
            raise UsageError(f"command {number}, expected {min(_COMMANDS)} to {max(_COMMANDS)}")
        if number != ModelCommand.NOP:
            control(model, ModelCommand(number), name)
        return b""

    def _model(self, model_id: int) -> MLModelProxy:
        model = next((each for each in self._models if each.id == model_id), None)
        if model is None:
            raise UsageError(f"no model {model_id}", errno=errno.ENOENT)
        return model

    def bpf_model_info(self, model_id: int) -> bytes:
        """A ``struct ml_lib_bpf_model_info``; ENOENT if there is no such model."""
        model = self._model(model_id)
        first = next(iter(model.datasets.values()), None)
        return MODEL_INFO.pack(
            model_id=model.id, mode=model.mode, state=model.state,
            dataset_type=DatasetType.EMPTY if first is None else first.type,
            dataset_state=DatasetState.UNKNOWN if first is None else first.state,
            subsystem_name=model.subsystem, model_name=model.name,
        )  # fmt: skip

    def _command(self, reference: ModelReference, command: ModelCommand) -> int:
        if not reference.held:
            return -errno.EINVAL
        if reference.model.state is ModelState.DEAD:
            return -errno.ENODEV
        try:
            control(reference.model, command)
        except UxkError as exc:
            return -(exc.errno or errno.EIO)
        return 0


def _portion(model: MLModelProxy, name: str, offset: int, size: int) -> bytes:
    """A portion with its descriptor; of the first dataset if none is named."""
    dataset, _ = model.get_dataset(None, name or next(iter(model.datasets), ""), offset, size)
    head = DATASET.pack(
        type=dataset.type, state=dataset.state, allocated_size=dataset.allocated_size,
        portion_offset=dataset.portion_offset, portion_size=dataset.portion_size,
    )  # fmt: skip
    raw = model.datasets[dataset.name].published.tobytes()
    return head + raw[dataset.portion_offset : dataset.portion_offset + dataset.portion_size]
