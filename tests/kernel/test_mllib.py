"""kernel-ml-lib's functions under their names, its BPF plane, and ``/dev/ml_lib``."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import uxk
from uxk.core.kpi import Epoch
from uxk.core.mlmodel import TABLE
from uxk.errors import TreeError, UsageError
from uxk.kernel.devmllib import MlLibFile
from uxk.kernel.mllib import MlLib
from uxk.kernel.proxy import MLModelProxy
from uxk.uapi import ml, mllib, mllibabi
from uxk.uapi.entries import Hint
from uxk.uapi.ml import DatasetState, Mode, ModelCommand, ModelEvent, ModelState, SubsystemState

ROWS = np.dtype([("value", "u1")])
OTHER = np.dtype([("lba", "<u4")])


class Listener(uxk.Extension):
    """Attached to everything; gives hints when told to."""

    manifest = uxk.Manifest(
        name="listener", kind="ml-agent", capabilities=("model:*:read,write", "site:*")
    )  # fmt: skip
    ctx: ClassVar[uxk.Context]
    events: ClassVar[list[uxk.Event]]

    def setup(self, ctx: uxk.Context) -> None:
        type(self).ctx, type(self).events = ctx, []
        ctx.attach("m0")

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        self.events.append(event)


@pytest.fixture
async def kernel() -> AsyncIterator[uxk.Kernel]:
    async with uxk.Kernel(seed=1) as booted:
        yield booted


def started(kernel: uxk.Kernel) -> tuple[MlLib, MLModelProxy]:
    lib = MlLib(kernel.models)
    model = lib.allocate_ml_model(lib.allocate_subsystem_object("toy"), "m0")
    lib.ml_model_create(model)
    lib.ml_model_init(model)
    lib.ml_model_start(model)
    return lib, model


def news(lib: MlLib) -> list[tuple[ModelEvent, int, int, int]]:
    return [(event.type, event.old_value, event.new_value, event.error) for _, event in lib.events.reader()]


# --- the eighteen ---


async def test_the_eighteen_calls_end_to_end(kernel: uxk.Kernel) -> None:
    lib, model = started(kernel)
    made: list[int] = []

    def extract(dataset: Any) -> None:
        made.append(dataset.append(np.full(4, len(made) + 1, "u1").view(ROWS)))

    lib.allocate_dataset(model, "rows", ROWS, 8, extract)
    site = model.site("m0.pick", lambda payload: "" if payload else "malformed", units=2)
    agent = kernel.agents[(await kernel.insmod(Listener)).name]
    hint = Hint(7, "m0.pick", 0, 10**12, b"go", standing=True)
    assert lib.ml_model_preprocess_recommendation(model, agent, Hint(6, "m0.pick", 0, 1, b"")) == "malformed"
    assert lib.ml_model_preprocess_recommendation(model, agent, hint) == ""
    unit = next(unit for unit in range(2) if site.follows(unit))
    assert lib.apply_ml_model_recommendation(model, "m0.pick", unit, standing=True) is hint
    answer = lib.execute_ml_model_operation(
        model, "m0.pick", lambda: b"default", lambda given: given.payload, unit=unit, standing=True
    )
    assert answer == b"go"
    lib.ml_model_error_backpropagation(model, hint, outcome=900, baseline=1000)
    record = mllibabi.EFFICIENCY.unpack(lib.estimate_ml_model_efficiency(model, Epoch(1000, 900, 16, 8)))
    assert record["model_id"] == model.id
    assert (record["default_kpi"], record["hinted_kpi"], record["mode"]) == (1000, 900, Mode.LEARNING)
    assert int(record["efficiency_ppm"]) == 100_000
    assert lib.ml_model_publish_data(model, "rows") == 1
    lib.ml_model_discard_dataset(model, "rows")
    config = lib.allocate_request_config()
    with pytest.raises(UsageError, match="ALLOCATED"):
        lib.ml_model_get_dataset(model, agent, "rows", config)
    config.init(offset=0, size=3)
    dataset, cap = lib.ml_model_get_dataset(model, agent, "rows", config)
    assert (dataset.state, dataset.portion_size, cap > 0) == (DatasetState.EXTRACTED_PARTIALLY, 3, True)
    assert dataset.type is ml.DatasetType.MEMORY_STREAM
    assert lib.ml_model_preprocess_data(model, "rows") == 0
    assert lib.get_system_state(model)["mode"] == "learning"
    assert lib.estimate_system_state(model) == {}
    lib.correct_system_state(model, "test")
    lib.ml_model_stop(model)
    lib.ml_model_re_init(model, lib.allocate_ml_model_options(sleep_timeout=20))
    assert model.modes.config.silence_ns == 20_000_000
    with pytest.raises(UsageError, match="destroy it first"):
        lib.free_ml_model(model)
    lib.ml_model_destroy(model)
    lib.free_ml_model(model)
    assert model.state == mllib.ML_LIB_MODEL_STATE_MAX
    config.destroy()
    lib.free_request_config(config)


async def test_each_call_is_refused_where_the_table_says(kernel: uxk.Kernel) -> None:
    lib = MlLib(kernel.models)
    model = lib.allocate_ml_model()
    calls: dict[str, Callable[[], object]] = {
        "ml_model_create": lambda: lib.ml_model_create(model),
        "ml_model_start": lambda: lib.ml_model_start(model), "ml_model_stop": lambda: lib.ml_model_stop(model),
        "ml_model_publish_data": lambda: lib.ml_model_publish_data(model, "rows"),
        "ml_model_discard_dataset": lambda: lib.ml_model_discard_dataset(model),
        "ml_model_destroy": lambda: lib.ml_model_destroy(model),
        "correct_system_state": lambda: lib.correct_system_state(model, "why"),
        "get_system_state": lambda: lib.get_system_state(model),
    }  # fmt: skip
    for name, call in calls.items():
        if mllib.API[name] not in TABLE[ModelState.UNKNOWN]:
            with pytest.raises(UsageError, match="in state UNKNOWN") as caught:
                call()
            assert caught.value.errno == errno.EINVAL
    lib.ml_model_create(model)
    assert kernel.sysfs.exists("/sys/kernel/ml/unknown_subsystem/unknown_model/control")
    lib.ml_model_init(model)
    lib.ml_model_start(model)
    for name in ("ml_model_start", "ml_model_destroy"):
        with pytest.raises(UsageError, match="stop it first") as caught:
            calls[name]()
        assert caught.value.errno == errno.EBUSY


async def test_a_subsystem_shuts_down_before_it_stops(kernel: uxk.Kernel) -> None:
    lib = MlLib(kernel.models)
    model = lib.allocate_ml_model()
    watch = lib.allocate_subsystem_state(model)
    assert watch.snapshot() is SubsystemState.UNKNOWN
    lib.ml_model_create(model)
    lib.ml_model_init(model)
    lib.ml_model_start(model)
    assert watch.snapshot() == mllib.ML_LIB_SUBSYSTEM_STARTED
    assert watch.passed == [SubsystemState.CREATED, SubsystemState.INITIALIZED, SubsystemState.STARTED]
    lib.ml_model_stop(model)
    assert watch.snapshot() == mllib.ML_LIB_SUBSYSTEM_STOPPED == 6
    assert watch.passed == [SubsystemState.SHUTTING_DOWN, SubsystemState.STOPPED]
    lib.ml_model_destroy(model)
    assert watch.snapshot() is SubsystemState.UNKNOWN
    assert watch.passed == [SubsystemState.SHUTTING_DOWN, SubsystemState.UNKNOWN]


async def test_a_timeout_that_is_no_u32_is_refused(kernel: uxk.Kernel) -> None:
    lib = MlLib(kernel.models)
    model = lib.allocate_ml_model()
    lib.ml_model_create(model)
    with pytest.raises(UsageError, match="sleep_timeout=-1"):
        lib.ml_model_init(model, lib.allocate_ml_model_options(sleep_timeout=-1))


# --- the BPF plane ---


async def test_references_are_counted_and_do_not_keep_a_model(kernel: uxk.Kernel) -> None:
    lib, model = started(kernel)
    assert lib.bpf_ml_model_lookup(model.id + 1) is None
    reference = lib.bpf_ml_model_lookup(model.id)
    assert reference is not None
    assert lib.bpf_ml_model_get_id(reference) == model.id == 1
    assert lib.bpf_ml_model_get_state(reference) == mllib.ML_LIB_MODEL_STARTED
    assert lib.bpf_ml_model_get_mode(reference) == mllib.ML_LIB_LEARNING_MODE
    assert lib.bpf_ml_model_start(reference) == -errno.EBUSY
    assert lib.bpf_ml_model_prepare_dataset(reference) == 0
    assert lib.bpf_ml_model_discard_dataset(reference) == 0
    assert lib.bpf_ml_model_stop(reference) == 0
    assert lib.bpf_ml_model_prepare_dataset(reference) == 0  # there is no dataset: nothing to be refused
    lib.ml_model_destroy(model)
    assert lib.bpf_ml_model_start(reference) == -errno.ENODEV
    assert lib.bpf_ml_model_get_state(reference) == mllib.ML_LIB_MODEL_STATE_MAX
    assert lib.bpf_ml_model_lookup(1) is None
    lib.bpf_ml_model_release(reference)
    assert lib.bpf_ml_model_get_mode(reference) == lib.bpf_ml_model_stop(reference) == -errno.EINVAL
    with pytest.raises(UsageError, match="released already"):
        lib.bpf_ml_model_release(reference)


async def test_commands_are_dispatched(kernel: uxk.Kernel) -> None:
    lib, model = started(kernel)
    model.dataset("rows", ROWS, 8)

    def send(command: int, model_id: int = 1) -> int:
        return lib.ml_lib_dispatch_cmd(mllibabi.COMMAND.pack(model_id=model_id, command=command))

    assert send(mllib.ML_LIB_BPF_CMD_NOP) == 0
    assert send(mllib.ML_LIB_BPF_CMD_PREPARE_DATASET) == 0
    assert model.datasets["rows"].state is DatasetState.CLEAN
    assert send(mllib.ML_LIB_BPF_CMD_DISCARD_DATASET) == 0
    assert model.datasets["rows"].state is DatasetState.OBSOLETE
    assert send(mllib.ML_LIB_BPF_CMD_STOP) == 0
    assert send(mllib.ML_LIB_BPF_CMD_STOP) == -errno.EINVAL
    assert send(mllib.ML_LIB_BPF_CMD_START) == 0
    assert send(mllib.ML_LIB_BPF_CMD_NOP, 9) == -errno.ENOENT
    for strange in (5, 16, 1 << 31):
        assert send(strange) == -errno.EINVAL
    assert lib.ml_lib_dispatch_cmd(b"") == lib.ml_lib_dispatch_cmd(bytes(88)) == -errno.EINVAL
    request = mllibabi.REQUEST.pack(
        magic=mllibabi.REQUEST_MAGIC, model_id=1, command=ModelCommand.PREPARE_DATASET, dataset_name="none"
    )
    assert lib.ml_lib_dispatch_cmd(request) == -errno.ENOENT


async def test_a_model_is_described(kernel: uxk.Kernel) -> None:
    lib, model = started(kernel)
    info = mllibabi.MODEL_INFO.unpack(lib.bpf_model_info(1))
    assert info == {
        "model_id": 1, "mode": Mode.LEARNING, "state": ModelState.STARTED, "dataset_type": ml.DatasetType.EMPTY,
        "dataset_state": 0, "subsystem_name": "toy", "model_name": "m0",
    }  # fmt: skip
    model.dataset("table", OTHER, 8)
    info = mllibabi.MODEL_INFO.unpack(lib.bpf_model_info(1))
    assert (info["dataset_type"], info["dataset_state"]) == (ml.DatasetType.STRUCTURE, DatasetState.ALLOCATED)
    with pytest.raises(UsageError, match="no model 3"):
        lib.bpf_model_info(3)


async def test_every_kind_of_event_is_told(kernel: uxk.Kernel) -> None:
    lib, model = started(kernel)

    def broken(dataset: object) -> None:
        raise ValueError("no")

    model.dataset("rows", ROWS, 8)
    lib.ml_model_publish_data(model, "rows")
    model.dataset("broken", ROWS, 8, extract=broken)
    with pytest.raises(UsageError, match="extraction failed"):
        lib.ml_model_publish_data(model, "broken")
    lib.ml_model_stop(model)
    lib.ml_model_destroy(model)
    state, mode, data = ModelEvent.STATE_CHANGE, ModelEvent.MODE_CHANGE, ModelEvent.DATASET_UPDATE
    assert news(lib) == [
        (ModelEvent.MODEL_REGISTERED, 0, ModelState.CREATED, 0), (mode, 0, 1, 0),
        (state, 1, 2, 0), (state, 2, 3, 0), (mode, 1, 2, 0), (state, 3, 4, 0),
        (data, DatasetState.ALLOCATED, DatasetState.CLEAN, 0),
        (data, DatasetState.ALLOCATED, DatasetState.EXTRACTION_FAILURE, -errno.EIO),
        (state, 4, 5, 0), (mode, 2, 1, 0), (state, 5, 6, 0), (mode, 1, 0, 0),
        (ModelEvent.MODEL_UNREGISTERED, ModelState.SHUTTING_DOWN, ModelState.DEAD, 0), (state, 6, 7, 0),
    ]  # fmt: skip


# --- /dev/ml_lib ---


def unpacked(data: bytes) -> list[dict[str, int | str]]:
    size = mllibabi.NOTIFICATION.size_bytes
    assert len(data) % size == 0
    return [mllibabi.NOTIFICATION.unpack(data[at : at + size]) for at in range(0, len(data), size)]


async def test_events_and_commands_go_through_a_file(kernel: uxk.Kernel) -> None:
    _, model = started(kernel)
    async with await kernel.open("/dev/ml_lib") as file:
        assert isinstance(file, MlLibFile)
        found = unpacked(await file.read(10**6))
        assert [each["sequence"] for each in found] == list(range(len(found)))
        assert {each["dropped"] for each in found} == {0}
        with pytest.raises(TreeError) as caught:
            await file.read(wait=False)
        assert caught.value.errno == errno.EAGAIN
        assert await file.poll() == 4
        command = mllibabi.COMMAND.pack(model_id=1, command=mllib.ML_LIB_BPF_CMD_STOP)
        assert await file.write(command) == len(command)
        assert model.state is ModelState.STOPPED
        assert await file.poll(1) == 1
        assert [each["type"] for each in unpacked(await file.read(48))] == [ModelEvent.STATE_CHANGE]
        with pytest.raises(UsageError) as refused:
            await file.write(command)
        assert refused.value.errno == errno.EINVAL
        with pytest.raises(UsageError, match="at least 48"):
            await file.read(47)
        with pytest.raises(UsageError, match="no ioctl"):
            await file.ioctl(1)
        with pytest.raises(UsageError, match="poll for 0x2"):
            await file.poll(2)
    with pytest.raises(UsageError, match="closed"):
        await file.read()


async def test_a_portion_is_asked_for_and_read(kernel: uxk.Kernel) -> None:
    _, model = started(kernel)
    rows = model.dataset("rows", ROWS, 8)
    rows.append(np.arange(8, dtype="u1").view(ROWS))
    rows.publish()
    async with await kernel.open("/dev/ml_lib") as file:

        async def portion(offset: int, size: int, name: str = "rows") -> tuple[dict[str, int | str], bytes]:
            await file.write(mllibabi.REQUEST.pack(
                magic=mllibabi.REQUEST_MAGIC, model_id=1, command=ModelCommand.GET_DATASET, dataset_name=name,
                portion_offset=offset, portion_size=size,
            ))  # fmt: skip
            head = await file.read(mllibabi.DATASET.size_bytes)
            found = mllibabi.DATASET.unpack(head)
            return found, await file.read(100) if found["portion_size"] else b""

        first, data = await portion(0, 3)
        assert (first["state"], first["type"], data) == (
            DatasetState.EXTRACTED_PARTIALLY, ml.DatasetType.MEMORY_STREAM, bytes([0, 1, 2]),
        )  # fmt: skip
        with pytest.raises(UsageError, match="in order"):
            await portion(4, 1)
        last, data = await portion(3, 0, "")
        assert (last["state"], data) == (DatasetState.EXTRACTED_COMPLETELY, bytes([3, 4, 5, 6, 7]))
        assert unpacked(await file.read(48))[0]["sequence"] == 0  # events come after the answer


async def test_a_slow_reader_is_told_what_it_missed(kernel: uxk.Kernel) -> None:
    lib, _ = started(kernel)
    async with await kernel.open("/dev/ml_lib") as file:
        before = lib.events.next_seq
        for _ in range(lib.events.capacity):
            lib.events.emit(kernel.now_ns, ModelEvent.STATE_CHANGE, 1)
        (found,) = unpacked(await file.read(48))
        assert (found["dropped"], found["sequence"]) == (before, before)


@given(st.lists(st.one_of(
    st.binary(max_size=100),
    st.builds(
        lambda model_id, command: mllibabi.COMMAND.pack(model_id=model_id, command=command),
        st.integers(0, 3), st.integers(0, 20),
    ),
    st.builds(
        lambda model_id, command, offset, size, name: mllibabi.REQUEST.pack(
            magic=mllibabi.REQUEST_MAGIC, model_id=model_id, command=command, portion_offset=offset,
            portion_size=size, dataset_name=name,
        ),
        st.integers(0, 2), st.sampled_from([1, 2, 3, 4, 18, 99]), st.sampled_from([0, 1, 4, 8, 1 << 63]),
        st.sampled_from([0, 1, 4, 9, (1 << 32) - 1]), st.sampled_from(["rows", "", "none", "../rows"]),
    ),
), max_size=12))  # fmt: skip
@settings(deadline=None)
def test_whatever_is_written_is_done_or_refused(writes: list[bytes]) -> None:
    async def main() -> None:
        async with uxk.Kernel(seed=1) as kernel:
            _, model = started(kernel)
            model.dataset("rows", ROWS, 8)
            async with await kernel.open("/dev/ml_lib") as file:
                for data in writes:
                    try:
                        assert await file.write(data) == len(data)
                    except UsageError as exc:
                        assert exc.errno in (errno.EINVAL, errno.ENOENT, errno.EBUSY)  # noqa: PT017
                    with suppress(TreeError):
                        await file.read(48, wait=False)
            assert not [record for record in kernel.kmsg.records() if record.level <= 3]

    trio.run(main)


async def test_no_driver_may_take_its_name(kernel: uxk.Kernel) -> None:
    class Thief(uxk.Extension):
        """Wants a node that is the kernel's."""

        manifest = uxk.Manifest(name="thief")
        status: ClassVar[list[int]] = []

        def setup(self, ctx: uxk.Context) -> None:
            ctx.add_chardev("ml_lib").then(lambda answer: self.status.append(answer.status))

    await kernel.insmod(Thief)
    await kernel.run()
    assert Thief.status == [errno.EINVAL]
