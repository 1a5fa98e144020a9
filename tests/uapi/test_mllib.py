"""kernel-ml-lib's names and values, literally, and the layouts of its structures, asked of a C compiler, too."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.core.mlmodel import OPERATIONS
from uxk.errors import UsageError
from uxk.kernel.mllib import MlLib
from uxk.uapi import ml, mllib, mllibabi
from uxk.uapi.mllibabi import LAYOUTS, Layout

ROOT = Path(__file__).resolve().parent.parent.parent
HEADER = ROOT / "examples/mllib/ml_lib_uxk.h"

NAMES = {
    "ml_lib_system_mode": """
        ML_LIB_UNKNOWN_MODE 0  ML_LIB_EMERGENCY_MODE 1  ML_LIB_LEARNING_MODE 2  ML_LIB_COLLABORATION_MODE 3
        ML_LIB_RECOMMENDATION_MODE 4  ML_LIB_MODE_MAX 5""",
    "ml_lib_model_state": """
        ML_LIB_UNKNOWN_MODEL_STATE 0  ML_LIB_MODEL_CREATED 1  ML_LIB_MODEL_INITIALIZED 2  ML_LIB_MODEL_STARTED 3
        ML_LIB_MODEL_RUNNING 4  ML_LIB_MODEL_STOPPED 5  ML_LIB_MODEL_SHUTTING_DOWN 6  ML_LIB_MODEL_STATE_MAX 7""",
    "ml_lib_subsystem_state": """
        ML_LIB_UNKNOWN_SUBSYSTEM_STATE 0  ML_LIB_SUBSYSTEM_CREATED 1  ML_LIB_SUBSYSTEM_INITIALIZED 2
        ML_LIB_SUBSYSTEM_STARTED 3  ML_LIB_SUBSYSTEM_RUNNING 4  ML_LIB_SUBSYSTEM_SHUTTING_DOWN 5
        ML_LIB_SUBSYSTEM_STOPPED 6  ML_LIB_SUBSYSTEM_STATE_MAX 7""",
    "ml_lib_subsystem_type": """
        ML_LIB_UNKNOWN_SUBSYSTEM_TYPE 0  ML_LIB_GENERIC_SUBSYSTEM 1  ML_LIB_SPECIALIZED_SUBSYSTEM 2
        ML_LIB_SUBSYSTEM_TYPE_MAX 3""",
    "ml_lib_dataset_type": """
        ML_LIB_UNKNOWN_DATASET_TYPE 0  ML_LIB_EMPTY_DATASET 1  ML_LIB_VALUE_DATASET 2  ML_LIB_STRUCTURE_DATASET 3
        ML_LIB_MEMORY_STREAM_DATASET 4  ML_LIB_DATASET_TYPE_MAX 5""",
    "ml_lib_dataset_state": """
        ML_LIB_UNKNOWN_DATASET_STATE 0  ML_LIB_DATASET_ALLOCATED 1  ML_LIB_DATASET_CLEAN 2
        ML_LIB_DATASET_EXTRACTED_PARTIALLY 3  ML_LIB_DATASET_EXTRACTED_COMPLETELY 4  ML_LIB_DATASET_OBSOLETE 5
        ML_LIB_DATASET_EXTRACTION_FAILURE 6  ML_LIB_DATASET_CORRUPTED 7  ML_LIB_DATASET_STATE_MAX 8""",
    "ml_lib_request_config_type": """
        ML_LIB_UNKNOWN_REQUEST_CONFIG_TYPE 0  ML_LIB_EMPTY_REQUEST_CONFIG 1  ML_LIB_REQUEST_CONFIG_TYPE_MAX 2""",
    "ml_lib_request_config_state": """
        ML_LIB_UNKNOWN_REQUEST_CONFIG_STATE 0  ML_LIB_REQUEST_CONFIG_ALLOCATED 1
        ML_LIB_REQUEST_CONFIG_INITIALIZED 2  ML_LIB_REQUEST_CONFIG_STATE_MAX 3""",
    "ml_lib_bpf_command": """
        ML_LIB_BPF_CMD_NOP 0  ML_LIB_BPF_CMD_START 1  ML_LIB_BPF_CMD_STOP 2  ML_LIB_BPF_CMD_PREPARE_DATASET 3
        ML_LIB_BPF_CMD_DISCARD_DATASET 4""",
    "ml_lib_bpf_event_type": """
        ML_LIB_BPF_EVENT_MODEL_REGISTERED 1  ML_LIB_BPF_EVENT_MODEL_UNREGISTERED 2  ML_LIB_BPF_EVENT_STATE_CHANGE 3
        ML_LIB_BPF_EVENT_DATASET_UPDATE 4  ML_LIB_BPF_EVENT_TEST_DEV_ACCESS 5  ML_LIB_BPF_EVENT_TEST_DEV_IO 6
        ML_LIB_BPF_EVENT_MODE_CHANGE 16""",
}  # fmt: skip
CONSTANTS = {
    "ML_LIB_START_COMMAND": "start", "ML_LIB_STOP_COMMAND": "stop",
    "ML_LIB_PREPARE_DATASET_COMMAND": "prepare_dataset", "ML_LIB_DISCARD_DATASET_COMMAND": "discard_dataset",
    "ML_LIB_SLEEP_TIMEOUT_DEFAULT": 10, "ML_LIB_SLEEP_TIMEOUT_UNSET": 0xFFFFFFFF, "ML_LIB_TEST_BUFFER_BYTES": 1024,
    "UNKNOWN_SUBSYSTEM_NAME": "unknown_subsystem", "UNKNOWN_MODEL_NAME": "unknown_model", "ML_LIB_BPF_NAME_MAX": 64,
    "ML_LIB_TEST_CLASS": "ml_lib_test", "ML_LIB_TEST_DEVICE": "mllibdev", "ML_LIB_TEST_MODEL": "ml_model1",
    # _IO('M', 0), _IOR('M', 1, int), _IOW('M', 2, int), _IOR('M', 3, __u32)
    "ML_LIB_TEST_DEV_IOC_MAGIC": ord("M"), "ML_LIB_TEST_DEV_IOCRESET": 0x4D00,
    "ML_LIB_TEST_DEV_IOCGETSIZE": 0x80044D01, "ML_LIB_TEST_DEV_IOCSETSIZE": 0x40044D02,
    "ML_LIB_TEST_DEV_IOCGETMODELID": 0x80044D03,
}  # fmt: skip
API = """
    ml_model_create ml_model_init ml_model_re_init ml_model_start ml_model_stop ml_model_destroy get_system_state
    ml_model_get_dataset ml_model_discard_dataset ml_model_preprocess_data ml_model_publish_data
    ml_model_preprocess_recommendation estimate_system_state apply_ml_model_recommendation
    execute_ml_model_operation estimate_ml_model_efficiency ml_model_error_backpropagation correct_system_state
"""
KFUNCS = """
    bpf_ml_model_lookup bpf_ml_model_release bpf_ml_model_start bpf_ml_model_stop bpf_ml_model_prepare_dataset
    bpf_ml_model_discard_dataset bpf_ml_model_get_state bpf_ml_model_get_mode bpf_ml_model_get_id
"""
REFERENCE_SIZES = {
    "ml_lib_bpf_cmd_ctx": 8, "ml_lib_bpf_model_info": 148, "ml_lib_bpf_event": 32, "ml_lib_bpf_test_dev_stats": 40,
}  # fmt: skip
PROPOSED_SIZES = {
    "ml_lib_dataset": 32, "ml_lib_user_space_request": 88, "ml_lib_user_space_notification": 48,
    "ml_lib_user_space_recommendation": 56, "ml_lib_backpropagation_feedback": 56, "ml_lib_efficiency": 72,
}  # fmt: skip


@pytest.mark.parametrize("enum", NAMES)
def test_every_enumeration_has_the_names_and_values_of_the_reference(enum: str) -> None:
    words = NAMES[enum].split()
    wanted = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    assert dict(mllib.ENUMS[enum]) == wanted
    for name, value in wanted.items():
        assert getattr(mllib, name) == value


def test_no_enumeration_is_missing() -> None:
    assert mllib.ENUMS.keys() == NAMES.keys()


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(name: str) -> None:
    assert getattr(mllib, name) == CONSTANTS[name]


def test_the_four_words_are_those_of_the_control_file() -> None:
    words = {name: value for name, value in vars(mllib).items() if name.endswith("_COMMAND")}
    assert set(words.values()) == set(ml.CONTROL_COMMANDS)


def test_the_eighteen_calls_and_the_kfuncs_are_there_under_their_names() -> None:
    assert list(mllib.API) == API.split()
    assert set(mllib.API.values()) == set(OPERATIONS)
    assert list(mllib.KFUNCS) == KFUNCS.split()
    for name in (*mllib.API, *mllib.KFUNCS, "ml_lib_dispatch_cmd"):
        assert callable(getattr(MlLib, name))


# --- layouts -------------------------------------------------------------------------------------------------


def test_sizes() -> None:
    assert {name: each.size_bytes for name, each in LAYOUTS.items() if not each.proposal} == REFERENCE_SIZES
    assert {name: each.size_bytes for name, each in LAYOUTS.items() if each.proposal} == PROPOSED_SIZES


def test_the_header_is_up_to_date() -> None:
    assert HEADER.read_text("utf-8") == mllibabi.c_header(), "write uxk.uapi.mllibabi.c_header() to it"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_compiler_agrees(tmp_path: Path) -> None:
    source = tmp_path / "agree.c"
    source.write_text('#include "ml_lib_uxk.h"\nint main(void) { return 0; }\n', "utf-8")
    command = ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{HEADER.parent}", str(source)]
    subprocess.run(command, check=True)


def values_of(layout: Layout) -> st.SearchStrategy[dict[str, int | str]]:
    """Values that fit."""
    found: dict[str, st.SearchStrategy[int | str]] = {}
    for field in layout.fields:
        if field.length:
            found[field.name] = st.text(st.characters(exclude_characters="\0", codec="ascii"), max_size=63)
        else:
            bits = 8 * field.size_bytes
            least = -(1 << bits - 1) if field.kind[0] == "s" else 0
            found[field.name] = st.integers(least, least + (1 << bits) - 1)
    return st.fixed_dictionaries(found)


@given(st.sampled_from(list(LAYOUTS.values())).flatmap(lambda each: st.tuples(st.just(each), values_of(each))))
def test_what_is_packed_comes_out_again(case: tuple[Layout, dict[str, int | str]]) -> None:
    layout, values = case
    raw = layout.pack(**values)
    assert len(raw) == layout.size_bytes
    assert layout.unpack(raw + b"more") == values


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda each: str(each.name))
@given(raw=st.binary(max_size=200))
def test_foreign_bytes_are_read_or_refused(layout: Layout, raw: bytes) -> None:
    try:
        found = layout.unpack(raw)
    except UsageError as exc:
        assert layout.name in str(exc)  # noqa: PT017
    else:
        assert found.keys() == {field.name for field in layout.fields}


@pytest.mark.parametrize(
    "values",
    [{"nothing": 1}, {"model_id": 1 << 32}, {"model_id": -1}, {"model_name": "x" * 64}, {"model_name": "a\0b"}],
    ids=str,
)
def test_what_does_not_fit_is_refused(values: dict[str, int | str]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        mllibabi.MODEL_INFO.pack(**values)


def test_a_structure_with_a_gap_is_none() -> None:
    with pytest.raises(ValueError, match="gap"):
        Layout("crooked", "a:u32 b:u64", "")
    with pytest.raises(ValueError, match="multiple"):
        Layout("short", "a:u64 b:u32", "")
