"""Memory of the kernel's own clients, and modules whose memory is a parameter."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Annotated, ClassVar

import pytest

import uxk
from uxk.testing.kernels import crash, residue

PAGE = 4096


class DiskParams(uxk.Params):
    size: Annotated[int, uxk.param(ge=1, unit="bytes", help="capacity")] = 4 * PAGE
    spare: Annotated[int, uxk.param(ge=0, unit="bytes", help="more")] = 0


class Disk(uxk.Extension[DiskParams]):
    """Turns what it is given around, in place."""

    manifest = uxk.Manifest(
        name="dma-disk", params=DiskParams, restart=uxk.RestartPolicy(backoff_ns=10), fate="reissue",
        budget=uxk.Budget(memory_bytes=PAGE, memory_params=("size", "spare")),
    )  # fmt: skip
    seen: ClassVar[list[uxk.Request]]
    hold: ClassVar[bool]
    built: ClassVar[int] = 0

    def setup(self, ctx: uxk.Context) -> None:
        Disk.built += 1

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            Disk.seen.append(request)
            if request.opcode == uxk.Op.CALL:
                ctx.allocate(request.length).then(lambda done, r=request: ctx.complete(r, status=done.status))  # type: ignore[misc]
                continue
            if Disk.hold:
                continue
            try:
                view = ctx.map(request.region, writable=True)[request.buffer : request.buffer + request.length]
            except uxk.CapabilityError as exc:
                ctx.fail(request, exc.errno or errno.EIO)
                continue
            view[:] = bytes(view)[::-1]
            ctx.complete(request, result=request.length)


@pytest.fixture(autouse=True)
def fresh() -> None:
    Disk.seen, Disk.hold, Disk.built = [], False, 0


async def test_a_pool_is_shared_with_whom_the_kernel_gives_it_to() -> None:
    async with uxk.Kernel() as kernel:
        disk = await kernel.insmod(Disk)
        agent = kernel.agents["dma_disk"]
        before = kernel.machine.granted_bytes
        with kernel.dma_pool("test", PAGE + 1) as pool:
            assert (pool.size_bytes, len(pool.view), repr(pool)) == (2 * PAGE, 2 * PAGE, "<DmaPool test: 8192 bytes>")
            assert kernel.machine.granted_bytes == before + 2 * PAGE
            pool.view[10:14] = b"abcd"
            cap = pool.cap_for(agent)
            assert pool.cap_for(agent) == cap
            done = await disk.submit(opcode=uxk.Op.WRITE, length=4, region=cap, buffer=10, flags=3)
            assert done.result == 4 and bytes(pool.view[9:15]) == b"\0dcba\0"
            assert Disk.seen[0].flags == 3
            crash(kernel, "dma_disk")
            await kernel.sleep_ns(100)
            await disk.submit(opcode=uxk.Op.WRITE, length=2, region=cap, buffer=10)  # the next incarnation has it too
            assert bytes(pool.view[10:14]) == b"cdba" and pool.cap_for(agent) == cap
        assert kernel.machine.granted_bytes == before
        with pytest.raises(ValueError, match="released"):
            pool.view[0]
        with pytest.raises(uxk.RequestError) as caught:
            await disk.submit(opcode=uxk.Op.WRITE, length=4, region=cap)
        assert caught.value.errno == errno.ESTALE
        pool.close()
        await kernel.rmmod("dma_disk")
        assert residue(kernel) == {}


async def test_requests_in_flight_keep_their_region_over_a_death() -> None:
    async with uxk.Kernel() as kernel:
        await kernel.insmod(Disk)
        with kernel.dma_pool("test", PAGE) as pool:
            pool.view[:2] = b"ab"
            done: list[uxk.Completion] = []
            port = kernel.open_port("dma_disk0", done.extend)
            Disk.hold = True
            cap = pool.cap_for(kernel.agents["dma_disk"])
            port.submit_batch([uxk.Request(0, uxk.Op.WRITE, b"", 0, 2, cap)])
            await kernel.sleep_ns(0)
            Disk.hold = False
            crash(kernel, "dma_disk")
            await kernel.sleep_ns(100)
            assert [answer.status for answer in done] == [0] and bytes(pool.view[:2]) == b"ba"
            account = kernel.module("dma_disk").account
            assert (account.written_bytes, account.restarts) == (2, 1)


async def test_an_instance_that_comes_later_gets_a_capability_of_its_own() -> None:
    async with uxk.Kernel() as kernel:
        with kernel.dma_pool("test", PAGE) as pool:
            caps = []
            for _ in range(2):
                await kernel.insmod(Disk)
                caps.append(pool.cap_for(kernel.agents["dma_disk"]))
                await kernel.rmmod("dma_disk")
            assert caps[0] != caps[1]


async def test_pools_and_modules_share_one_arena() -> None:
    async with uxk.Kernel(arena_bytes=16 * PAGE) as kernel:
        with pytest.raises(uxk.UsageError, match="of 0 bytes"):
            kernel.dma_pool("empty", 0)
        with kernel.dma_pool("big", 13 * PAGE):
            with pytest.raises(uxk.BudgetError, match="16384 bytes: 12288 of 65536 are left"):
                kernel.dma_pool("more", 4 * PAGE)
            with pytest.raises(uxk.BudgetError) as caught:
                await kernel.insmod(Disk)
            assert caught.value.errno == errno.ENOMEM
            assert str(caught.value).startswith(
                "dma_disk: budget memory_bytes=4096 + size=16384 + spare=0: 12288 of 65536 bytes are left to grant"
            )
        assert Disk.built == 0
        await kernel.insmod(Disk)


async def test_memory_is_as_large_as_the_parameters_say() -> None:
    async with uxk.Kernel(arena_bytes=64 * PAGE) as kernel:
        disk = await kernel.insmod(Disk, size=10 * PAGE, spare="1B")  # a byte is a page
        assert kernel.machine.granted_bytes == 12 * PAGE
        for pages, status in ((10, 0), (3, errno.EDQUOT), (2, 0), (1, errno.EDQUOT)):
            assert (await disk.submit(length=pages * PAGE, check=False)).status == status, pages
        assert kernel.modinfo("dma_disk").memory_params == ("size", "spare")
        with pytest.raises(uxk.BudgetError, match="the size of the arena is set at boot"):
            await kernel.insmod(Disk, instance="huge", size="1TiB")
        await kernel.rmmod("dma_disk")
        assert kernel.machine.granted_bytes == 0
