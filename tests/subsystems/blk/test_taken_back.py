"""What the block layer takes back from a real driver is aborted there."""

from __future__ import annotations

import pytest

import uxk
from uxk.subsystems.blk.layer import BlockLayer
from uxk.testing import boot

ATTRIBUTES = "/sys/module/nvme/attributes"
SECOND = 1_000_000_000


@pytest.mark.parametrize("action", ["drop", "delay delay_ns=25s"])
async def test_what_the_block_layer_takes_back_is_aborted(action: str) -> None:
    async with boot() as kernel:
        BlockLayer(kernel)
        nvme = await kernel.modprobe("nvme", size="4MiB", queues=1, queue_entries=4)
        kernel.sysfs.write("/sys/block/nvme0n1/queue/io_timeout", "1000")
        kernel.sysfs.write(f"{ATTRIBUTES}/faults", f"add opcode=read action={action} count=3")
        await kernel.sleep_ns(1)
        answers: list[uxk.Completion] = []
        port = kernel.open_port("nvme0n1", answers.extend)
        port.submit_batch([uxk.Request(0, uxk.Op.READ, b"", n * 4096, 4096, flags=64) for n in range(9)])
        await kernel.sleep_ns(SECOND // 2)
        assert not answers, "three that hang have all places of the ring"
        await kernel.sleep_ns(SECOND)
        assert [answer.status for answer in answers] == [0] * 9, "the second try"
        assert "admin_abort 3" in kernel.sysfs.read(f"{ATTRIBUTES}/commands")
        await kernel.sleep_ns(30 * SECOND)
        assert not nvme.account.rejected, "no request was answered twice"
        assert (await nvme.submit(opcode=uxk.Op.READ, length=4096)).status == 0
        port.close()
