"""Rules at work in the module: what its clients see of each action, and what is left when the rule is gone."""

from __future__ import annotations

import errno
from typing import Any

import uxk
from uxk.testing import boot

KIB = 1 << 10
BLOCK = 4096


class Drive:
    """A loaded module with one namespace, and a region for its data."""

    def __init__(self, kernel: uxk.Kernel, module: uxk.Module) -> None:
        self.kernel = kernel
        self.module = module
        self.device = kernel.devices.devices["nvme0n1"].number
        self.pool = kernel.dma_pool("test", 1 << 20)
        self.cap = self.pool.cap_for(kernel.agents["nvme"])

    def request(self, opcode: int, index: int, length: int = BLOCK) -> uxk.Request:
        """Block ``index`` of the disk, and of the region."""
        return uxk.Request(0, opcode, b"", index * BLOCK, length, self.cap, 0, self.device, index * BLOCK)

    async def statuses(self, opcode: int, *indices: int) -> list[int]:
        return [each.status for each in await self.module.submit_batch([self.request(opcode, n) for n in indices])]

    async def rule(self, text: str) -> str:
        """Writes to the attribute; what the module says of it."""
        self.kernel.sysfs.write("/sys/module/nvme/attributes/faults", text)
        await self.kernel.sleep_ns(1)
        return str(self.kernel.sysfs.read("/sys/module/nvme/attributes/faults_status"))

    def block(self, index: int) -> memoryview:
        return self.pool.view[index * BLOCK : (index + 1) * BLOCK]


async def drive(kernel: uxk.Kernel, **params: Any) -> Drive:
    return Drive(kernel, await kernel.modprobe("nvme", **{"size": "1MiB", **params}))


READ, WRITE = uxk.Op.READ, uxk.Op.WRITE


async def test_a_status_harms_only_the_commands_that_it_strikes() -> None:
    async with boot() as kernel:
        disk = await drive(kernel)
        assert await disk.rule("add opcode=read lba=8,24 action=status status=media-error dnr=1") == "1 ok"
        assert await disk.statuses(READ, *range(8)) == [0, errno.ENODATA, 0, errno.ENODATA, 0, 0, 0, 0]
        assert await disk.statuses(READ, 1, 0, 2) == [errno.ENODATA, 0, 0]
        assert await disk.statuses(WRITE, *range(4)) == [0] * 4
        assert "matched=3 fired=3" in kernel.sysfs.read("/sys/module/nvme/attributes/faults")
        await disk.rule("clear")
        assert await disk.statuses(READ, *range(8)) == [0] * 8


async def test_what_may_be_repeated_is_tried_again_by_the_driver() -> None:
    async with boot() as kernel:
        disk = await drive(kernel)
        await disk.rule("add count=1 action=status status=internal-error")
        assert await disk.statuses(READ, 0, 1) == [0, 0]
        await disk.rule("clear\nadd count=1 action=status status=internal-error dnr=1")
        assert sorted(await disk.statuses(READ, 0, 1)) == [0, errno.EIO]


async def test_a_delay_takes_its_time() -> None:
    async with boot() as kernel:
        disk = await drive(kernel)
        await disk.rule("add opcode=read action=delay delay_ns=3ms")
        before_ns = kernel.now_ns
        assert await disk.statuses(READ, 0, 1) == [0, 0]
        assert kernel.now_ns - before_ns == 3_000_000
        await disk.rule("clear\nadd opcode=read action=delay delay_ns=1ms lanes=1")
        before_ns = kernel.now_ns
        assert await disk.statuses(READ, 0, 1, 2) == [0] * 3
        assert kernel.now_ns - before_ns == 3_000_000


async def test_a_swallowed_command_is_aborted_by_the_driver() -> None:
    async with boot() as kernel:
        disk = await drive(kernel, timeout_ns="20ms")
        await disk.rule("add opcode=write count=1 action=drop")
        assert await disk.statuses(WRITE, 0, 1) == [errno.ETIMEDOUT, 0]
        assert 20_000_000 <= kernel.now_ns <= 100_000_000
        assert await disk.statuses(WRITE, 0, 1) == [0, 0]


async def test_corruption_on_the_way_out_leaves_the_medium_whole() -> None:
    async with boot() as kernel:
        disk = await drive(kernel)
        data = bytes(range(256)) * (BLOCK // 256)
        disk.block(0)[:] = data
        assert await disk.statuses(WRITE, 0) == [0]
        await disk.rule("add opcode=read count=1 action=corrupt bits=5")
        assert await disk.statuses(READ, 0) == [0]
        assert sum((a ^ b).bit_count() for a, b in zip(data, bytes(disk.block(0)), strict=True)) == 5
        assert await disk.statuses(READ, 0) == [0]
        assert bytes(disk.block(0)) == data


async def test_a_truncated_write_is_torn() -> None:
    async with boot() as kernel:
        disk = await drive(kernel)
        disk.block(0)[:] = b"o" * BLOCK
        assert await disk.statuses(WRITE, 0) == [0]
        await disk.rule("add opcode=write action=truncate keep_bytes=1024")
        disk.block(0)[:] = b"n" * BLOCK
        assert await disk.statuses(WRITE, 0) == [0], "it claims success"
        assert await disk.statuses(READ, 0) == [0]
        assert bytes(disk.block(0)) == b"n" * 1024 + b"o" * 3072


async def test_power_loss_takes_what_was_not_flushed() -> None:
    async with boot() as kernel:
        disk = await drive(kernel, write_cache="256KiB", medium="simple")
        disk.block(0)[:] = b"d" * BLOCK
        assert await disk.statuses(WRITE, 0) == [0]
        assert await disk.statuses(uxk.Op.FLUSH, 0) == [0]
        disk.block(0)[:] = b"l" * BLOCK
        assert await disk.statuses(WRITE, 0) == [0]
        await disk.rule("add opcode=read count=1 action=powerloss")
        await disk.statuses(READ, 1)
        assert await disk.statuses(READ, 0) == [0]
        assert bytes(disk.block(0)) == b"d" * BLOCK


async def test_a_mistake_is_told_and_changes_nothing() -> None:
    async with boot() as kernel:
        disk = await drive(kernel)
        said = await disk.rule("add opcode=raed action=drop")
        assert said.startswith("1 error: faults: line 1: token 1, opcode=raed: ")
        assert kernel.sysfs.read("/sys/module/nvme/attributes/faults") == ""
        assert await disk.statuses(READ, 0) == [0]
        assert any("opcode=raed" in record.text for record in kernel.kmsg.records(max_level=3))
