"""Which of kernel-ml-lib's calls a model allows in which state, as a table.

The reference checks nothing: any call succeeds in any state.  Here an illegal one is refused: EBUSY for a model
that runs and would have to be stopped first, EINVAL for one that is not so far yet, or dead.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from uxk.errors import UsageError
from uxk.uapi.ml import ModelState, SubsystemState

OPERATIONS: Final = (
    "create", "init", "re_init", "start", "stop", "destroy", "get_system_state", "get_dataset", "preprocess_data",
    "publish_data", "preprocess_recommendation", "estimate_system_state", "apply_recommendation",
    "execute_operation", "estimate_efficiency", "error_backpropagation", "correct_system_state", "discard_dataset",
)  # fmt: skip
"""The eighteen: ``struct ml_lib_model_operations`` and ``ml_model_discard_dataset``."""

_S = ModelState
_LOOK: Final = ("get_system_state", "estimate_system_state", "estimate_efficiency")
_DATA: Final = ("get_dataset", "preprocess_data", "publish_data", "discard_dataset")
_HINTS: Final = (
    "preprocess_recommendation", "apply_recommendation", "execute_operation", "error_backpropagation",
    "correct_system_state",
)  # fmt: skip


def _same(state: ModelState, *calls: str) -> dict[str, ModelState]:
    return dict.fromkeys(calls, state)


TABLE: Final[Mapping[ModelState, Mapping[str, ModelState]]] = MappingProxyType({
    _S.UNKNOWN: {"create": _S.CREATED},
    _S.CREATED: {"init": _S.INITIALIZED, "destroy": _S.SHUTTING_DOWN, **_same(_S.CREATED, *_LOOK)},
    _S.INITIALIZED: {
        "re_init": _S.INITIALIZED, "start": _S.STARTED, "destroy": _S.SHUTTING_DOWN,
        **_same(_S.INITIALIZED, *_LOOK, "discard_dataset"),
    },
    _S.STARTED: {"stop": _S.STOPPED, **_same(_S.STARTED, *_LOOK), **_same(_S.RUNNING, *_DATA, *_HINTS)},
    _S.RUNNING: {"stop": _S.STOPPED, **_same(_S.RUNNING, *_LOOK, *_DATA, *_HINTS)},
    _S.STOPPED: {
        "re_init": _S.INITIALIZED, "start": _S.STARTED, "destroy": _S.SHUTTING_DOWN,
        **_same(_S.STOPPED, *_LOOK, "discard_dataset"),
    },
    _S.SHUTTING_DOWN: {},
    _S.DEAD: {},
})  # fmt: skip
"""State after each legal call.  Data and hints flow only in a started model, and make it RUNNING."""

_BUSY: Final = frozenset({_S.STARTED, _S.RUNNING})

SUBSYSTEM_STATE: Final[Mapping[ModelState, SubsystemState]] = MappingProxyType({
    _S.UNKNOWN: SubsystemState.UNKNOWN, _S.CREATED: SubsystemState.CREATED,
    _S.INITIALIZED: SubsystemState.INITIALIZED, _S.STARTED: SubsystemState.STARTED,
    _S.RUNNING: SubsystemState.RUNNING, _S.STOPPED: SubsystemState.STOPPED,
    _S.SHUTTING_DOWN: SubsystemState.SHUTTING_DOWN, _S.DEAD: SubsystemState.UNKNOWN,
})  # fmt: skip
"""The parent's state by the model's."""


def after(model: str, state: ModelState, call: str) -> ModelState:
    """The state after ``call``.  :class:`UsageError` (EINVAL, EBUSY) names state, call and what would be legal."""
    found = TABLE[state].get(call)
    if found is None:
        legal = ", ".join(TABLE[state]) or "nothing"
        busy = state in _BUSY
        what = "stop it first" if busy else f"legal here: {legal}"
        number = errno.EBUSY if busy else errno.EINVAL
        raise UsageError(f"model {model}: {call} in state {state.name}: {what}", errno=number)
    return found
