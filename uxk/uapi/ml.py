"""What an ML model proxy and its agents tell each other: kernel-ml-lib's names and numbers, and uxk's records.

The enumerations have the names and values of kernel-ml-lib (``include/linux/ml-lib/ml_lib.h`` and
``include/uapi/linux/ml_lib_bpf.h``), so that work ports over in both directions.  Where the reference is empty
the contents are proposals of uxk's: :class:`Dataset`'s schema, :class:`Feedback`, :class:`ModeChange`,
:class:`ModelInfo`, the commands from :attr:`ModelCommand.ATTACH` up.

An agent gets them as the value of an :class:`~uxk.uapi.entries.Event`:

=================  =============  =============================  ==============================
topic              name           value                          cap
=================  =============  =============================  ==============================
``model``          the model      :class:`ModelInfo`             0
``model_gone``     the model      empty                          0
``generation``     the site       an integer                     0
``dataset``        the model      :class:`Dataset`               the arena range with the rows
``mode``           the model      :class:`ModeChange`            0
``feedback``       the site       a list of :class:`Feedback`    0
``shadow``         the site       :class:`ShadowRows`            0
``policy``         the site       :class:`PolicyChange`          0
=================  =============  =============================  ==============================
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

Schema: TypeAlias = tuple[tuple[str, str], ...]
"""Columns of a table, as ``numpy.dtype(list(schema))`` takes them: name and type, e.g. ``("lba", "<u4")``."""
Reject: TypeAlias = Literal[
    "stale_generation", "stale_dataset", "expired", "out_of_range", "malformed", "forged", "too_late", "costly",
    "stopped",
]  # fmt: skip
"""Why a hint was refused; a site's own check may give further reasons.

``forged`` and ``stopped`` (the model does not run) are counted, and no fault of the model's own agents.
"""


class Mode(IntEnum):
    """``enum ml_lib_system_mode``: who decides."""

    UNKNOWN = 0
    """There is no model (any more)."""
    EMERGENCY = 1
    """The kernel's defaults alone."""
    LEARNING = 2
    """A small share follows hints."""
    COLLABORATION = 3
    """Half of it does."""
    RECOMMENDATION = 4
    """Hints, wherever they are valid."""


class ModelState(IntEnum):
    """``enum ml_lib_model_state``."""

    UNKNOWN = 0
    CREATED = 1
    INITIALIZED = 2
    STARTED = 3
    RUNNING = 4
    STOPPED = 5
    SHUTTING_DOWN = 6
    DEAD = 7
    """``ML_LIB_MODEL_STATE_MAX``: what destroying leaves behind."""


class SubsystemState(IntEnum):
    """``enum ml_lib_subsystem_state``; the last two are the other way round than in :class:`ModelState`."""

    UNKNOWN = 0
    CREATED = 1
    INITIALIZED = 2
    STARTED = 3
    RUNNING = 4
    SHUTTING_DOWN = 5
    STOPPED = 6


class SubsystemType(IntEnum):
    """``enum ml_lib_subsystem_type``."""

    UNKNOWN = 0
    GENERIC = 1
    SPECIALIZED = 2


class DatasetType(IntEnum):
    """``enum ml_lib_dataset_type``."""

    UNKNOWN = 0
    EMPTY = 1
    VALUE = 2
    STRUCTURE = 3
    """A table with a schema: what uxk's datasets are."""
    MEMORY_STREAM = 4


class DatasetState(IntEnum):
    """``enum ml_lib_dataset_state``."""

    UNKNOWN = 0
    ALLOCATED = 1
    """There is room, and nothing in it."""
    CLEAN = 2
    """Fresh, and nobody has read it."""
    EXTRACTED_PARTIALLY = 3
    EXTRACTED_COMPLETELY = 4
    OBSOLETE = 5
    """Discarded: the next request extracts anew."""
    EXTRACTION_FAILURE = 6
    CORRUPTED = 7


class RequestConfigType(IntEnum):
    """``enum ml_lib_request_config_type``."""

    UNKNOWN = 0
    EMPTY = 1


class RequestConfigState(IntEnum):
    """``enum ml_lib_request_config_state``."""

    UNKNOWN = 0
    ALLOCATED = 1
    INITIALIZED = 2


class ModelCommand(IntEnum):
    """``enum ml_lib_bpf_command``; from 16 up uxk's own."""

    NOP = 0
    START = 1
    STOP = 2
    PREPARE_DATASET = 3
    DISCARD_DATASET = 4
    ATTACH = 16
    """Send me the model's events, from now on or from when there is such a model."""
    DETACH = 17
    GET_DATASET = 18
    """Pull a portion; what is not fresh is extracted first."""


class ModelEvent(IntEnum):
    """``enum ml_lib_bpf_event_type``; from 16 up uxk's own."""

    MODEL_REGISTERED = 1
    MODEL_UNREGISTERED = 2
    STATE_CHANGE = 3
    DATASET_UPDATE = 4
    TEST_DEV_ACCESS = 5
    """The char device of an instance that has a model was opened."""
    TEST_DEV_IO = 6
    """It was read (old value 0) or written (1): how many bytes, or which error."""
    MODE_CHANGE = 16


class Dataset(Struct, array_like=True, frozen=True):
    """``struct ml_lib_dataset``, and what it takes to read the bytes.  Sizes and offsets are bytes."""

    id: int
    """Its number among the datasets of the kernel, from 1: what a hint names as its origin."""
    name: str
    type: DatasetType
    state: DatasetState
    allocated_size: int
    portion_offset: int
    """Where the portion begins in the range that the capability names."""
    portion_size: int
    schema: Schema
    generation: int
    """Grows by one with every publication."""
    rows: int
    """In the whole of this generation."""
    lost: int = 0
    """Rows that found no room since the last generation."""


class ModelInfo(Struct, array_like=True, frozen=True):
    """A model as its agents see it (``struct ml_lib_bpf_model_info``, and its parts)."""

    model_id: int
    subsystem_name: str
    model_name: str
    mode: Mode
    state: ModelState
    sites: tuple[str, ...]
    datasets: tuple[Dataset, ...]
    generations: tuple[int, ...] = ()
    """Of the sites, in their order: what a hint must name."""


class SiteState(Struct, array_like=True, frozen=True):
    """What an extension that offers a decision site follows until its next epoch ends."""

    mode: Mode
    share_ppm: int
    hinted_units: int
    """How many of its units follow the hint."""
    hint: bytes = b""
    """Payload of the hint in force; empty: its own default decides everywhere."""


class ModeChange(Struct, array_like=True, frozen=True):
    """One transition of the mode machine, with what it was decided on."""

    now_ns: int
    epoch: int
    old: Mode
    new: Mode
    why: str


class Feedback(Struct, array_like=True, frozen=True):
    """What became of a hint.  Integers; ``predicted``, ``outcome`` and ``baseline`` are in the site's own unit.

    The contents of ``struct ml_lib_backpropagation_feedback``, which the reference leaves empty.
    """

    hint: int
    """The command id under which the agent sent it."""
    site: str
    predicted: int
    """What the agent had said would come of it."""
    outcome: int
    """What came of it; 0 if it was refused."""
    baseline: int
    """What the kernel's default would have given, by estimate; 0 if there is none."""
    reject: str = ""
    """Why it was not applied; empty if it was."""
    dataset: int = 0
    generation: int = 0
    """Of the dataset that it was derived from."""


class PolicyStep(Enum):
    """The steps of an injected policy."""

    SHADOW = "shadow"
    """It is verified, and runs beside the decisions; nobody follows it."""
    SWAPPED = "swapped"
    """It decides."""
    REFUSED = "refused"
    """It did not come into force."""
    ENDED = "ended"
    """The kernel's built-in rule decides again."""


class PolicyChange(Struct, array_like=True, frozen=True):
    """One step of an injection: the value of an event ``policy``, whose name is the site."""

    injection: int
    step: PolicyStep
    generation: int
    """Of the site's policy, from now on; every verdict carries it."""
    agreement_ppm: int
    """Share of the decisions that the model has judged, in which it agreed."""
    why: str


class ShadowRows(Struct, array_like=True, frozen=True):
    """Decisions for the model to judge: the value of an event ``shadow``, whose name is the site.

    ``rows`` are ``width`` signed 64-bit numbers each, in the order of the site's schema.  Where a site ranks
    candidates, ``counts`` says how many rows belong to each decision, and the verdict is the place of the best, from 0.
    """

    injection: int
    first: int
    """Number of the first decision; the others follow it."""
    width: int
    rows: bytes
    counts: tuple[int, ...] = ()


CONTROL_COMMANDS: Final = {
    "start": ModelCommand.START,
    "stop": ModelCommand.STOP,
    "prepare_dataset": ModelCommand.PREPARE_DATASET,
    "discard_dataset": ModelCommand.DISCARD_DATASET,
}
"""The four words of the file ``control``."""
OVERRIDES: Final[dict[str, Mode | None]] = {
    "auto": None,
    "emergency": Mode.EMERGENCY,
    "learning": Mode.LEARNING,
    "collaboration": Mode.COLLABORATION,
    "recommendation": Mode.RECOMMENDATION,
}
"""The words of the file ``mode_override``."""

encode: Final = msgspec.msgpack.Encoder().encode
"""Any of the records above, or a list of them, as bytes."""
decode_model: Final = msgspec.msgpack.Decoder(ModelInfo).decode
decode_dataset: Final = msgspec.msgpack.Decoder(Dataset).decode
decode_mode: Final = msgspec.msgpack.Decoder(ModeChange).decode
decode_generation: Final = msgspec.msgpack.Decoder(int).decode
_decode_site: Final = msgspec.msgpack.Decoder(SiteState).decode
decode_policy: Final = msgspec.msgpack.Decoder(PolicyChange).decode
decode_shadow: Final = msgspec.msgpack.Decoder(ShadowRows).decode
decode_feedback: Final = msgspec.msgpack.Decoder(list[Feedback]).decode


def decode_site(payload: bytes) -> SiteState:
    """What the answer to :class:`~uxk.uapi.entries.EndEpoch` says."""
    return _decode_site(payload)
