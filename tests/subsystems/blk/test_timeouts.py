"""Requests that a driver never answers: taken back, tried once more, given up; and the driver is told."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

import uxk
from uxk.uapi.entries import Op, Request

MS = 1_000_000


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("swallowed", [1, 2])
@pytest.mark.parametrize("short_way", [True, False])
async def test_once_more_and_then_never(lab: Any, batch: int, swallowed: int, short_way: bool) -> None:
    async with lab(manifest={"watchdog": uxk.Watchdog(timeouts_max=100)}) as it:
        it.set("io_timeout", 100)
        it.set("nomerges", 2)
        if not short_way:
            it.set("scheduler", "mq-deadline")
        seen: dict[int, int] = {}

        def swallow(request: Request) -> bool:
            seen[request.offset] = seen.get(request.offset, 0) + 1
            return seen[request.offset] <= swallowed

        it.medium.swallow = swallow
        client = it.client()
        cids = client.submit(*[Request(0, Op.WRITE, b"x" * 512, n * 8192, 512) for n in range(batch)])
        await it.run()
        assert client.status(cids) == [0 if swallowed == 1 else errno.ETIMEDOUT] * batch
        assert set(seen.values()) == {2}
        assert it.kernel.now_ns == (100 if swallowed == 1 else 200) * MS
        assert it.disk.timeouts.aborted == swallowed * batch
        aborts = [value for topic, value in it.medium.events if topic == "abort"]
        assert [len(value) for value in aborts] == [8 * batch] * swallowed
        assert sorted(struct.unpack(f"<{batch}Q", aborts[0])) == sorted(r.cid for r in it.medium.seen[:batch])
        assert it.disk.device.agent.account.timeouts == swallowed * batch
        assert it.stat()[4:8] == [batch, 0, batch, (100 if swallowed == 1 else 200) * batch]
        it.check_empty()


async def test_who_is_in_time_is_left_alone(lab: Any) -> None:
    async with lab() as it:
        it.set("io_timeout", 100)
        it.medium.latency_ns = 60 * MS
        it.medium.swallow = lambda request: request.offset == 0 and len(it.medium.seen) < 3
        client = it.client()
        cids = client.submit(Request(0, Op.READ, b"", 0, 512), Request(0, Op.READ, b"", 8192, 512))
        await it.kernel.sleep_ns(50 * MS)
        cids += client.submit(Request(0, Op.READ, b"", 16384, 512))
        await it.run()
        assert client.status(cids) == [0, 0, 0]
        assert it.disk.timeouts.aborted == 1
        assert len(it.medium.seen) == 4
        it.check_empty()


async def test_a_late_answer_is_not_believed(lab: Any) -> None:
    async with lab() as it:
        it.set("io_timeout", 100)
        it.medium.latency_ns = 150 * MS
        client = it.client()
        cids = client.submit(Request(0, Op.READ, b"", 0, 512))
        await it.run()
        assert client.status(cids) == [errno.ETIMEDOUT]
        assert it.disk.device.agent.account.rejects["stale_cid"] >= 1
        it.check_empty()


async def test_without_a_shorter_time_the_kernels_own_deadline_counts(lab: Any) -> None:
    manifest = {"watchdog": uxk.Watchdog(request_timeout_ns=50 * MS, timeouts_max=10)}
    async with lab(manifest=manifest) as it:
        assert it.get("io_timeout") == "50"
        it.medium.swallow = lambda request: len(it.medium.seen) == 1
        client = it.client()
        cids = client.submit(Request(0, Op.READ, b"", 0, 512))
        await it.run()
        assert client.status(cids) == [0]
        assert len(it.medium.seen) == 2, "it, too, means once more"
        assert it.disk.timeouts.aborted == 0
        it.check_empty()


async def test_a_driver_that_lets_everything_time_out_counts_as_hung(lab: Any) -> None:
    manifest = {
        "watchdog": uxk.Watchdog(request_timeout_ns=10_000 * MS, timeouts_max=2),
        "restart": uxk.RestartPolicy(backoff_ns=MS), "fate": "reissue",
    }  # fmt: skip
    async with lab(manifest=manifest) as it:
        it.set("io_timeout", 20)
        it.medium.swallow = lambda request: it.disk.device.agent.incarnation == 0
        client = it.client()
        cids = client.submit(*[Request(0, Op.READ, b"", n * 8192, 512) for n in range(2)])
        await it.run()
        assert it.disk.device.agent.account.restarts == 1
        assert client.status(cids) == [0, 0]
        it.check_empty()


async def test_a_flush_that_hangs_is_tried_again_too(lab: Any) -> None:
    async with lab() as it:
        it.set("io_timeout", 20)
        it.medium.swallow = lambda request: len(it.medium.seen) == 1
        client = it.client()
        cids = client.submit(Request(0, Op.FLUSH))
        await it.run()
        assert client.status(cids) == [0]
        assert [r.opcode for r in it.medium.seen] == [Op.FLUSH, Op.FLUSH]
        it.check_empty()


async def test_what_the_queue_does_not_know_is_not_repeated(lab: Any) -> None:
    async with lab() as it:
        it.set("io_timeout", 20)
        it.medium.swallow = lambda request: True
        client = it.client()
        cids = client.submit(Request(0, Op.CALL, b"launch"))
        await it.run()
        assert client.status(cids) == [errno.ETIMEDOUT]
        assert len(it.medium.seen) == 1
        it.check_empty()


@pytest.mark.parametrize("short_way", [True, False])
async def test_a_shorter_time_counts_at_once(lab: Any, short_way: bool) -> None:
    async with lab(manifest={"watchdog": uxk.Watchdog(timeouts_max=100)}) as it:
        if not short_way:
            it.set("scheduler", "mq-deadline")
        it.set("io_timeout", 20_000)
        it.medium.swallow = lambda request: True
        client, answered_ns = it.client(), list[int]()
        client.on_answer = lambda: answered_ns.append(it.kernel.now_ns)
        client.submit(Request(0, Op.READ, b"", 0, 512))
        await it.kernel.sleep_ns(1000 * MS)
        it.set("io_timeout", 2_000)
        await it.kernel.sleep_ns(500 * MS)
        client.submit(Request(0, Op.READ, b"", 8192, 512))
        it.set("io_timeout", 100)  # the first is late already
        await it.run()
        assert answered_ns == [1600 * MS, 1700 * MS]
        assert it.disk.timeouts.aborted == 4
        it.check_empty()


async def test_a_longer_time_counts_at_once_and_none_is_left_to_the_kernel(lab: Any) -> None:
    manifest = {"watchdog": uxk.Watchdog(request_timeout_ns=3000 * MS, timeouts_max=100)}
    for later_ms, expected_ms in ((1000, 2000), (3000, 6000), (60_000, 6000)):
        async with lab(manifest=manifest) as it:
            it.set("io_timeout", 100)
            it.medium.swallow = lambda request: True
            client, answered_ns = it.client(), list[int]()
            client.on_answer = lambda it=it, told=answered_ns: told.append(it.kernel.now_ns)
            client.submit(Request(0, Op.READ, b"", 0, 512))
            it.set("io_timeout", later_ms)
            await it.run()
            assert answered_ns == [expected_ms * MS]
            assert it.disk.timeouts.aborted == (2 if later_ms == 1000 else 0)
            it.check_empty()
