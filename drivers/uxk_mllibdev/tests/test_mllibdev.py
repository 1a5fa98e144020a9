"""The test device: its node, its attributes, its ioctls, and a model that learns from what is written."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

import uxk
from uxk.testing import boot
from uxk.uapi import mllib, mllibabi
from uxk_mllibdev import MlLibDev
from uxk_mllibdev.device import DEFAULT_GUESS, UNITS, Stream, cost

SYSTEM = "/sys/class/ml_lib_test/mllibdev"
MODEL = f"{SYSTEM}/ml_model1"


@pytest.fixture
async def kernel() -> AsyncIterator[uxk.Kernel]:
    async with boot(seed=1) as booted:
        await booted.insmod(MlLibDev)
        yield booted


def look(kernel: uxk.Kernel, name: str) -> str:
    return kernel.sysfs.read(f"{SYSTEM}/{name}")


def control(kernel: uxk.Kernel, word: str) -> None:
    kernel.sysfs.write(f"{MODEL}/control", word + "\n")


def state(kernel: uxk.Kernel) -> str:
    return look(kernel, "ml_model1/datasets/rows/state")


async def opened(kernel: uxk.Kernel) -> Any:
    return await kernel.open("/dev/mllibdev")


# --- GEN1 -------------------------------------------------------------------------------------------------------


async def test_it_stands_where_the_reference_has_it(kernel: uxk.Kernel) -> None:
    assert kernel.sysfs.listdir("/sys/class/ml_lib_test") == ["mllibdev"]
    assert kernel.sysfs.stat(f"{MODEL}/control").mode == 0o220
    assert [look(kernel, name) for name in ("buffer_size", "data_size", "access_count", "stats")] == [
        "1024", "0", "0", "Opens: 0\nReads: 0\nWrites: 0",
    ]  # fmt: skip
    assert look(kernel, "ml_model1/state") == "initialized"


@pytest.mark.parametrize("word", ["s", "sto", "start now", "START", "", "prepare_dataset discard_dataset", " start"])
async def test_control_takes_four_exact_words(kernel: uxk.Kernel, word: str) -> None:
    with pytest.raises(uxk.UxkError) as caught:
        control(kernel, word)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert look(kernel, "ml_model1/state") == "initialized"


async def test_a_dataset_is_read_in_portions(kernel: uxk.Kernel) -> None:
    control(kernel, "start")
    control(kernel, "prepare_dataset")
    await kernel.sleep_ns(0)
    assert state(kernel) == "clean"
    async with await opened(kernel) as file:
        first = await file.read(1000)
        assert state(kernel) == "extracted_partially"
        rest = await file.read(1000)
        assert state(kernel) == "extracted_completely"
        assert await file.read(1000) == b""
        assert (len(first), len(rest), len({*first, *rest})) == (1000, 24, 1)
        file.offset = 10
        assert await file.read(4) == first[:4]
        control(kernel, "discard_dataset")
        assert state(kernel) == "obsolete"
        file.offset = 1
        with pytest.raises(uxk.UxkError) as caught:  # of the new generation, the first byte comes first
            await file.read(1)
        assert caught.value.errno == errno.EINVAL
        assert state(kernel) == "clean"
    assert look(kernel, "stats") == "Opens: 1\nReads: 3\nWrites: 0"


async def test_readers_at_once_get_the_same_rows(kernel: uxk.Kernel) -> None:
    control(kernel, "start")
    heard: list[bytes] = []

    async def reader() -> None:
        async with await opened(kernel) as file:
            heard.append(await file.read(1024))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(reader)
    assert len(heard) == 5
    assert len(set(heard)) == 1
    assert look(kernel, "ml_model1/datasets/rows/generation") == "1"


async def test_equal_seeds_give_equal_runs() -> None:
    async def run() -> tuple[str, str]:
        async with boot(seed=3) as kernel:
            await kernel.insmod(MlLibDev)
            control(kernel, "start")
            async with await opened(kernel) as file:
                await file.read(1)
                file.offset = 0
                await file.write(b"\xc8")
            await kernel.sleep_ns(10**9)
            return kernel.event_hash(), look(kernel, "feedback")

    assert await run() == await run()


async def test_nothing_is_read_or_taken_before_the_start(kernel: uxk.Kernel) -> None:
    async with await opened(kernel) as file:
        for attempt in (file.read(10), file.write(b"\xc8")):
            with pytest.raises(uxk.UxkError) as caught:
                await attempt
            assert caught.value.errno == errno.EINVAL
    assert look(kernel, "data_size") == "1"


async def test_the_buffer_holds_1024_bytes(kernel: uxk.Kernel) -> None:
    control(kernel, "start")
    async with await opened(kernel) as file:
        assert await file.write(bytes([200]) * 2000) == 1024
        with pytest.raises(uxk.UxkError) as caught:
            await file.write(b"x")
        assert caught.value.errno == errno.ENOSPC
    assert look(kernel, "data_size") == "1024"


async def test_ioctls(kernel: uxk.Kernel) -> None:
    control(kernel, "start")
    async with await opened(kernel) as file:
        await file.write(b"\xc8\xc8")
        assert await file.ioctl(mllib.ML_LIB_TEST_DEV_IOCGETSIZE) == 2
        assert await file.ioctl("ml_lib_test_dev_iocsetsize", 50) == 0
        assert await file.ioctl("ml_lib_test_dev_iocgetsize") == 50
        assert look(kernel, "data_size") == "50"
        for wrong in (-1, 1025):
            with pytest.raises(uxk.UxkError) as caught:
                await file.ioctl(mllib.ML_LIB_TEST_DEV_IOCSETSIZE, wrong)
            assert caught.value.errno == errno.EINVAL
        assert await file.ioctl(mllib.ML_LIB_TEST_DEV_IOCRESET) == 0
        assert await file.ioctl(mllib.ML_LIB_TEST_DEV_IOCGETSIZE) == 0
        assert await file.ioctl(mllib.ML_LIB_TEST_DEV_IOCGETMODELID) == int(look(kernel, "ml_model1/model_id"))
        with pytest.raises(uxk.UxkError) as caught:
            await file.ioctl(mllib.ML_LIB_TEST_DEV_IOCGETFEEDBACK)
        assert caught.value.errno == errno.ENODATA
        with pytest.raises(uxk.UxkError) as caught:
            await file.ioctl(0x4D63)
        assert caught.value.errno == errno.ENOTTY
        stats = mllibabi.TEST_DEV_STATS.unpack(await file.ioctl(mllib.ML_LIB_TEST_DEV_IOCGETSTATS))
        assert stats == {"buffer_size": 1024, "data_size": 0, "access_count": 1, "read_count": 0, "write_count": 1}


# --- what becomes of advice -----------------------------------------------------------------------------------------


def recommendation(payload: bytes, **fields: int) -> bytes:
    values = {
        "magic": mllibabi.RECOMMENDATION_MAGIC, "flags": mllibabi.RECOMMENDATION_STANDING, "ttl_ns": 10**12,
        "payload_size": len(payload), **fields,
    }  # fmt: skip
    return mllibabi.RECOMMENDATION.pack(**values) + payload


@pytest.mark.parametrize("advice", [b"\xc8", recommendation(b"\xc8", predicted=500)], ids=["bare", "structure"])
async def test_good_advice_is_followed_and_told_of(kernel: uxk.Kernel, advice: bytes) -> None:
    control(kernel, "start")
    async with await opened(kernel) as file:
        await file.read(1)
        file.offset = 0
        assert await file.write(advice) == len(advice)
        await kernel.sleep_ns(2_000_000_000)
        assert look(kernel, "ml_model1/mode") == "recommendation"
        assert int(look(kernel, "ml_model1/efficiency_ppm")) > 800_000
        record = mllibabi.FEEDBACK.unpack(await file.ioctl(mllib.ML_LIB_TEST_DEV_IOCGETFEEDBACK))
    assert (record["status"], record["predicted"]) == (mllibabi.FEEDBACK_APPLIED, 500 if len(advice) > 1 else 0)
    assert int(record["outcome"]) < int(record["baseline"])
    assert (record["dataset_generation"] == 1) == (advice == b"\xc8")  # bare advice is from what was read last
    assert "status applied" in look(kernel, "feedback")


async def test_bad_advice_ends_in_defaults(kernel: uxk.Kernel) -> None:
    control(kernel, "start")
    async with await opened(kernel) as file:
        await file.write(b"\x00")
    await kernel.sleep_ns(200_000_000)
    assert look(kernel, "ml_model1/mode") == "emergency"
    assert "trip-wire" in look(kernel, "ml_model1/timeline")


@pytest.mark.parametrize(
    "advice",
    [
        recommendation(b"\xc8", payload_size=2), recommendation(b""), recommendation(b"\xc8", flags=0),
        recommendation(b"\xc8", generation=9), recommendation(b"\xc8", dataset_id=99),
        mllibabi.RECOMMENDATION_MAGIC.to_bytes(4, "little"),
    ],
    ids=["size", "empty", "once", "generation", "dataset", "cut"],
)  # fmt: skip
async def test_a_structure_that_is_wrong_is_refused(kernel: uxk.Kernel, advice: bytes) -> None:
    control(kernel, "start")
    async with await opened(kernel) as file:
        with pytest.raises(uxk.UxkError) as caught:
            await file.write(advice)
        assert caught.value.errno == errno.EINVAL
    assert look(kernel, "ml_model1/hints_applied") == "0"


async def test_the_level_can_be_moved(kernel: uxk.Kernel) -> None:
    control(kernel, "start")
    kernel.sysfs.write("/sys/module/mllibdev/parameters/level", "20")
    async with await opened(kernel) as file:
        assert 12 <= (await file.read(1))[0] <= 28


async def test_a_second_instance_has_a_device_of_its_own(kernel: uxk.Kernel) -> None:
    await kernel.modprobe("mllibdev", instance="other")
    assert kernel.sysfs.listdir("/sys/class/ml_lib_test") == ["mllibdev", "other"]
    kernel.sysfs.write("/sys/class/ml_lib_test/other/ml_model1/control", "start")
    async with await kernel.open("/dev/other") as file:
        assert len(await file.read(2000)) == 1024
    await kernel.rmmod("other")
    assert kernel.sysfs.listdir("/sys/class/ml_lib_test") == ["mllibdev"]
    assert look(kernel, "ml_model1/state") == "initialized"


# --- the stream -----------------------------------------------------------------------------------------------------


def test_arms() -> None:
    stream = Stream(lambda low, end: end - 1, 250, 8)
    assert stream.draw() == 255
    assert stream.epoch(None, 5) == (cost(DEFAULT_GUESS, [255]), 0, 0)
    assert stream.epoch(255, 5) == (100 + 100 * 127, 100, 5)
    assert stream.epoch(255, UNITS) == (100 + 100 * 127, 100, UNITS)  # the default is scored all the same
