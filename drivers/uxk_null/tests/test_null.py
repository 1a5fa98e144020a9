"""What the null device does."""

from __future__ import annotations

import errno
from typing import Any

import pytest

import uxk
import uxk_null
from uxk.testing import Ledger, boot, crash
from uxk.uapi.blk import Extent, limits_of, unpack_extents


async def statuses(module: uxk.Module, *requests: dict[str, Any]) -> list[int]:
    """Status of each request."""
    return [reply.status for reply in await module.submit_batch([uxk.Request(0, **each) for each in requests])]


async def test_reads_give_zeros_and_writes_vanish() -> None:
    async with boot() as kernel:
        null = await kernel.modprobe("null", size="1MiB")
        await null.submit(b"x" * 4096, opcode=uxk.Op.WRITE, length=4096)
        assert (await null.submit(opcode=uxk.Op.READ, length=4096)).payload == bytes(4096)
        assert kernel.sysfs.listdir("/sys/class/block") == ["null0"]
        assert kernel.now_ns == 0


@pytest.mark.parametrize("opcode", [uxk.Op.READ, uxk.Op.WRITE, uxk.Op.DISCARD, uxk.Op.WRITE_ZEROES])
async def test_refuses_what_lies_beyond_the_end(opcode: int) -> None:
    async with boot() as kernel:
        null = await kernel.modprobe("null", size=1 << 20)
        assert await statuses(
            null,
            {"opcode": opcode, "offset": (1 << 20) - 512, "length": 512},
            {"opcode": opcode, "offset": (1 << 20) - 511, "length": 512},
            {"opcode": opcode, "offset": (1 << 63) - 1, "length": (1 << 32) - 1},
        ) == [0, 22, 22]


async def test_a_write_without_a_length_has_that_of_its_payload() -> None:
    async with boot() as kernel:
        null = await kernel.modprobe("null", size=512)
        assert await statuses(
            null,
            {"opcode": uxk.Op.WRITE, "payload": bytes(512)},
            {"opcode": uxk.Op.WRITE, "payload": bytes(513)},
        ) == [0, 22]


async def test_reads_are_bounded() -> None:
    async with boot() as kernel:
        null = await kernel.modprobe("null")
        longest = uxk_null.TRANSFER_MAX_BYTES
        assert len((await null.submit(opcode=uxk.Op.READ, length=longest)).payload) == longest
        assert await statuses(
            null,
            {"opcode": uxk.Op.READ, "length": longest + 1},
            {"opcode": uxk.Op.READ, "length": (1 << 32) - 1},
            {"opcode": uxk.Op.DISCARD, "length": 1 << 30},
        ) == [22, 22, 0]


async def test_other_opcodes() -> None:
    async with boot() as kernel:
        null = await kernel.modprobe("null")
        opcodes = (uxk.Op.NOP, uxk.Op.FLUSH, uxk.Op.CALL, uxk.Op.IOCTL, uxk.Op.PRIVATE, 15)
        assert await statuses(null, *({"opcode": opcode} for opcode in opcodes)) == [0, 0, 95, 95, 95, 95]


async def test_it_is_a_disk_without_anything_allocated() -> None:
    async with boot() as kernel:
        null = await kernel.modprobe("null", size="1MiB")
        limits = limits_of(kernel.devices.devices["null0"].properties)
        assert limits is not None
        assert (limits.capacity_bytes, limits.write_cache, limits.fua) == (1 << 20, 0, 0)
        reply = await null.submit(opcode=uxk.Op.EXTENTS, offset=4096, length=8192)
        assert unpack_extents(reply.payload) == [Extent(8192, hole=True, zero=True)]


async def test_reads_into_memory_that_is_lent() -> None:
    async with boot() as kernel:
        with kernel.dma_pool("test", 8192) as pool:
            null = await kernel.modprobe("null")
            cap = pool.cap_for(kernel.agents["null"])
            pool.view[:] = b"x" * 8192
            read: dict[str, Any] = {"opcode": uxk.Op.READ, "length": 4096}
            reply = await null.submit(**read, region=cap, buffer=2048)
            assert (reply.payload, reply.result) == (b"", 4096)
            assert bytes(pool.view) == b"x" * 2048 + bytes(4096) + b"x" * 2048
            assert await statuses(
                null, {**read, "region": cap, "buffer": 8192}, {**read, "region": cap, "buffer": 1 << 40},
                {**read, "region": cap + 1000}, {"opcode": uxk.Op.WRITE, "length": 4096, "region": cap},
            ) == [errno.EFAULT, errno.EFAULT, errno.EFAULT, 0]  # fmt: skip


async def test_latency_is_virtual_and_can_be_changed() -> None:
    async with boot() as kernel:
        null = await kernel.modprobe("null", latency_ns="10us")
        await null.submit_batch([uxk.Request(0, uxk.Op.NOP) for _ in range(32)])
        assert kernel.now_ns == 10_000, "requests of one batch are served side by side"
        kernel.sysfs.write("/sys/module/null/parameters/latency_ns", "1ms")
        await null.submit(opcode=uxk.Op.NOP)
        assert kernel.now_ns == 1_010_000
        assert null.account.latency.summary().values == 33


async def test_requests_survive_a_crash() -> None:
    async with boot() as kernel:
        await kernel.modprobe("null", latency_ns="1s")
        ledger = Ledger(kernel, "null")
        ledger.submit([uxk.Request(0, uxk.Op.READ, length=512) for _ in range(8)])
        await kernel.sleep_ns(500_000_000)
        crash(kernel, "null")
        await ledger.settle()
        assert {replies[0].status for replies in ledger.answers.values()} == {0}
        assert not ledger.problems()
