"""kernel-ml-lib's names, as it spells them, with its values: code written against it finds what it looks for.

Each constant is the member of the enumeration in :mod:`uxk.uapi.ml` that uxk itself uses.  What the reference has not
is marked *uxk proposal*; binary layouts are in :mod:`uxk.uapi.mllibabi`, the operations themselves in
:class:`uxk.kernel.mllib.MlLib`.  docs/kernel-ml-lib.md compares everything with the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from uxk.limits import U32_MAX
from uxk.uapi.ml import (
    DatasetState,
    DatasetType,
    Mode,
    ModelCommand,
    ModelEvent,
    ModelState,
    RequestConfigState,
    RequestConfigType,
    SubsystemState,
    SubsystemType,
)

# enum ml_lib_system_mode
ML_LIB_UNKNOWN_MODE: Final = Mode.UNKNOWN
ML_LIB_EMERGENCY_MODE: Final = Mode.EMERGENCY
ML_LIB_LEARNING_MODE: Final = Mode.LEARNING
ML_LIB_COLLABORATION_MODE: Final = Mode.COLLABORATION
ML_LIB_RECOMMENDATION_MODE: Final = Mode.RECOMMENDATION
ML_LIB_MODE_MAX: Final = 5

# enum ml_lib_model_state
ML_LIB_UNKNOWN_MODEL_STATE: Final = ModelState.UNKNOWN
ML_LIB_MODEL_CREATED: Final = ModelState.CREATED
ML_LIB_MODEL_INITIALIZED: Final = ModelState.INITIALIZED
ML_LIB_MODEL_STARTED: Final = ModelState.STARTED
ML_LIB_MODEL_RUNNING: Final = ModelState.RUNNING
ML_LIB_MODEL_STOPPED: Final = ModelState.STOPPED
ML_LIB_MODEL_SHUTTING_DOWN: Final = ModelState.SHUTTING_DOWN
ML_LIB_MODEL_STATE_MAX: Final = ModelState.DEAD

# enum ml_lib_subsystem_state: its last two are the other way round than a model's
ML_LIB_UNKNOWN_SUBSYSTEM_STATE: Final = SubsystemState.UNKNOWN
ML_LIB_SUBSYSTEM_CREATED: Final = SubsystemState.CREATED
ML_LIB_SUBSYSTEM_INITIALIZED: Final = SubsystemState.INITIALIZED
ML_LIB_SUBSYSTEM_STARTED: Final = SubsystemState.STARTED
ML_LIB_SUBSYSTEM_RUNNING: Final = SubsystemState.RUNNING
ML_LIB_SUBSYSTEM_SHUTTING_DOWN: Final = SubsystemState.SHUTTING_DOWN
ML_LIB_SUBSYSTEM_STOPPED: Final = SubsystemState.STOPPED
ML_LIB_SUBSYSTEM_STATE_MAX: Final = 7

# enum ml_lib_subsystem_type
ML_LIB_UNKNOWN_SUBSYSTEM_TYPE: Final = SubsystemType.UNKNOWN
ML_LIB_GENERIC_SUBSYSTEM: Final = SubsystemType.GENERIC
ML_LIB_SPECIALIZED_SUBSYSTEM: Final = SubsystemType.SPECIALIZED
ML_LIB_SUBSYSTEM_TYPE_MAX: Final = 3

# enum ml_lib_dataset_type
ML_LIB_UNKNOWN_DATASET_TYPE: Final = DatasetType.UNKNOWN
ML_LIB_EMPTY_DATASET: Final = DatasetType.EMPTY
ML_LIB_VALUE_DATASET: Final = DatasetType.VALUE
ML_LIB_STRUCTURE_DATASET: Final = DatasetType.STRUCTURE
ML_LIB_MEMORY_STREAM_DATASET: Final = DatasetType.MEMORY_STREAM
ML_LIB_DATASET_TYPE_MAX: Final = 5

# enum ml_lib_dataset_state
ML_LIB_UNKNOWN_DATASET_STATE: Final = DatasetState.UNKNOWN
ML_LIB_DATASET_ALLOCATED: Final = DatasetState.ALLOCATED
ML_LIB_DATASET_CLEAN: Final = DatasetState.CLEAN
ML_LIB_DATASET_EXTRACTED_PARTIALLY: Final = DatasetState.EXTRACTED_PARTIALLY
ML_LIB_DATASET_EXTRACTED_COMPLETELY: Final = DatasetState.EXTRACTED_COMPLETELY
ML_LIB_DATASET_OBSOLETE: Final = DatasetState.OBSOLETE
ML_LIB_DATASET_EXTRACTION_FAILURE: Final = DatasetState.EXTRACTION_FAILURE
ML_LIB_DATASET_CORRUPTED: Final = DatasetState.CORRUPTED
ML_LIB_DATASET_STATE_MAX: Final = 8

# enum ml_lib_request_config_type
ML_LIB_UNKNOWN_REQUEST_CONFIG_TYPE: Final = RequestConfigType.UNKNOWN
ML_LIB_EMPTY_REQUEST_CONFIG: Final = RequestConfigType.EMPTY
ML_LIB_REQUEST_CONFIG_TYPE_MAX: Final = 2

# enum ml_lib_request_config_state
ML_LIB_UNKNOWN_REQUEST_CONFIG_STATE: Final = RequestConfigState.UNKNOWN
ML_LIB_REQUEST_CONFIG_ALLOCATED: Final = RequestConfigState.ALLOCATED
ML_LIB_REQUEST_CONFIG_INITIALIZED: Final = RequestConfigState.INITIALIZED
ML_LIB_REQUEST_CONFIG_STATE_MAX: Final = 3

# enum ml_lib_bpf_command
ML_LIB_BPF_CMD_NOP: Final = ModelCommand.NOP
ML_LIB_BPF_CMD_START: Final = ModelCommand.START
ML_LIB_BPF_CMD_STOP: Final = ModelCommand.STOP
ML_LIB_BPF_CMD_PREPARE_DATASET: Final = ModelCommand.PREPARE_DATASET
ML_LIB_BPF_CMD_DISCARD_DATASET: Final = ModelCommand.DISCARD_DATASET

# enum ml_lib_bpf_event_type
ML_LIB_BPF_EVENT_MODEL_REGISTERED: Final = ModelEvent.MODEL_REGISTERED
ML_LIB_BPF_EVENT_MODEL_UNREGISTERED: Final = ModelEvent.MODEL_UNREGISTERED
ML_LIB_BPF_EVENT_STATE_CHANGE: Final = ModelEvent.STATE_CHANGE
ML_LIB_BPF_EVENT_DATASET_UPDATE: Final = ModelEvent.DATASET_UPDATE
ML_LIB_BPF_EVENT_TEST_DEV_ACCESS: Final = ModelEvent.TEST_DEV_ACCESS
ML_LIB_BPF_EVENT_TEST_DEV_IO: Final = ModelEvent.TEST_DEV_IO
ML_LIB_BPF_EVENT_MODE_CHANGE: Final = ModelEvent.MODE_CHANGE
"""uxk proposal."""


def _values(first: str, last: str) -> Mapping[str, int]:
    """The constants above from one to another, in their order."""
    names = list(globals())
    found = names[names.index(first) : names.index(last) + 1]
    return MappingProxyType({name: int(globals()[name]) for name in found})


ENUMS: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType({
    "ml_lib_system_mode": _values("ML_LIB_UNKNOWN_MODE", "ML_LIB_MODE_MAX"),
    "ml_lib_model_state": _values("ML_LIB_UNKNOWN_MODEL_STATE", "ML_LIB_MODEL_STATE_MAX"),
    "ml_lib_subsystem_state": _values("ML_LIB_UNKNOWN_SUBSYSTEM_STATE", "ML_LIB_SUBSYSTEM_STATE_MAX"),
    "ml_lib_subsystem_type": _values("ML_LIB_UNKNOWN_SUBSYSTEM_TYPE", "ML_LIB_SUBSYSTEM_TYPE_MAX"),
    "ml_lib_dataset_type": _values("ML_LIB_UNKNOWN_DATASET_TYPE", "ML_LIB_DATASET_TYPE_MAX"),
    "ml_lib_dataset_state": _values("ML_LIB_UNKNOWN_DATASET_STATE", "ML_LIB_DATASET_STATE_MAX"),
    "ml_lib_request_config_type": _values("ML_LIB_UNKNOWN_REQUEST_CONFIG_TYPE", "ML_LIB_REQUEST_CONFIG_TYPE_MAX"),
    "ml_lib_request_config_state": _values("ML_LIB_UNKNOWN_REQUEST_CONFIG_STATE", "ML_LIB_REQUEST_CONFIG_STATE_MAX"),
    "ml_lib_bpf_command": _values("ML_LIB_BPF_CMD_NOP", "ML_LIB_BPF_CMD_DISCARD_DATASET"),
    "ml_lib_bpf_event_type": _values("ML_LIB_BPF_EVENT_MODEL_REGISTERED", "ML_LIB_BPF_EVENT_MODE_CHANGE"),
})  # fmt: skip
"""Every enumeration by its name in C."""

# --- GEN1: sysfs and character device ---

ML_LIB_START_COMMAND: Final = "start"
ML_LIB_STOP_COMMAND: Final = "stop"
ML_LIB_PREPARE_DATASET_COMMAND: Final = "prepare_dataset"
ML_LIB_DISCARD_DATASET_COMMAND: Final = "discard_dataset"

ML_LIB_SLEEP_TIMEOUT_DEFAULT: Final = 10
ML_LIB_SLEEP_TIMEOUT_UNSET: Final = U32_MAX
UNKNOWN_SUBSYSTEM_NAME: Final = "unknown_subsystem"
UNKNOWN_MODEL_NAME: Final = "unknown_model"
"""Names of a model that is created without any."""

ML_LIB_TEST_CLASS: Final = "ml_lib_test"
ML_LIB_TEST_DEVICE: Final = "mllibdev"
ML_LIB_TEST_MODEL: Final = "ml_model1"
ML_LIB_TEST_BUFFER_BYTES: Final = 1024
ML_LIB_TEST_DEV_IOC_MAGIC: Final = ord("M")


def _ioc(direction: int, number: int, size_bytes: int) -> int:
    """``_IOC`` of include/uapi/asm-generic/ioctl.h: direction 0 none, 1 write, 2 read."""
    return direction << 30 | size_bytes << 16 | ML_LIB_TEST_DEV_IOC_MAGIC << 8 | number


ML_LIB_TEST_DEV_IOCRESET: Final = _ioc(0, 0, 0)
ML_LIB_TEST_DEV_IOCGETSIZE: Final = _ioc(2, 1, 4)
ML_LIB_TEST_DEV_IOCSETSIZE: Final = _ioc(1, 2, 4)
ML_LIB_TEST_DEV_IOCGETMODELID: Final = _ioc(2, 3, 4)
ML_LIB_TEST_DEV_IOCGETSTATS: Final = _ioc(2, 16, 40)
"""uxk proposal: ``struct ml_lib_bpf_test_dev_stats``."""
ML_LIB_TEST_DEV_IOCGETFEEDBACK: Final = _ioc(2, 17, 56)
"""uxk proposal: the last ``struct ml_lib_backpropagation_feedback``; ENODATA before there is one."""

# --- GEN2: ids, commands, events ---

ML_LIB_BPF_NAME_MAX: Final = 64
KFUNCS: Final = (
    "bpf_ml_model_lookup", "bpf_ml_model_release", "bpf_ml_model_start", "bpf_ml_model_stop",
    "bpf_ml_model_prepare_dataset", "bpf_ml_model_discard_dataset", "bpf_ml_model_get_state", "bpf_ml_model_get_mode",
    "bpf_ml_model_get_id",
)  # fmt: skip
"""The set ``ml_lib_bpf_kfunc_ids``."""
TRACEPOINTS: Final[Mapping[str, ModelEvent]] = MappingProxyType({
    "ml_lib:ml_lib_model_registered": ModelEvent.MODEL_REGISTERED,
    "ml_lib:ml_lib_model_unregistered": ModelEvent.MODEL_UNREGISTERED,
    "ml_lib:ml_lib_state_change": ModelEvent.STATE_CHANGE,
    "ml_lib:ml_lib_dataset_update": ModelEvent.DATASET_UPDATE,
    "ml_lib_test:ml_lib_test_dev_access": ModelEvent.TEST_DEV_ACCESS,
    "ml_lib_test:ml_lib_test_dev_io": ModelEvent.TEST_DEV_IO,
})  # fmt: skip
"""What the reference traces, and the event that tells of it here."""

# --- the operations ---

API: Final[Mapping[str, str]] = MappingProxyType({
    "ml_model_create": "create",
    "ml_model_init": "init",
    "ml_model_re_init": "re_init",
    "ml_model_start": "start",
    "ml_model_stop": "stop",
    "ml_model_destroy": "destroy",
    "get_system_state": "get_system_state",
    "ml_model_get_dataset": "get_dataset",
    "ml_model_discard_dataset": "discard_dataset",
    "ml_model_preprocess_data": "preprocess_data",
    "ml_model_publish_data": "publish_data",
    "ml_model_preprocess_recommendation": "preprocess_recommendation",
    "estimate_system_state": "estimate_system_state",
    "apply_ml_model_recommendation": "apply_recommendation",
    "execute_ml_model_operation": "execute_operation",
    "estimate_ml_model_efficiency": "estimate_efficiency",
    "ml_model_error_backpropagation": "error_backpropagation",
    "correct_system_state": "correct_system_state",
})  # fmt: skip
"""The eighteen calls, and which row of :data:`uxk.core.mlmodel.TABLE` says where each is legal."""
