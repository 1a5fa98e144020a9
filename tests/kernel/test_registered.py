"""Registered buffers: which of several is found, what outlives a death, and what a loan allows."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import ClassVar

import pytest
import trio

import uxk
from uxk.testing.kernels import crash

PAGE = 4096
READ, WRITE = uxk.Op.READ, uxk.Op.WRITE
RW = uxk.Rights.READ | uxk.Rights.WRITE


class Copier(uxk.Extension):
    """Notes under which capability it finds the memory of a request, and whether it may write there."""

    manifest = uxk.Manifest(name="copier", fate="reissue", restart=uxk.RestartPolicy(backoff_ns=10, max_restarts=9))
    seen: ClassVar[list[tuple[int, int, bool]]]

    def setup(self, ctx: uxk.Context) -> None:
        Copier.seen = []

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            try:
                ctx.map(request.region, writable=True)
                writable = True
            except uxk.CapabilityError:
                writable = False
            Copier.seen.append((request.region, request.buffer, writable))
            ctx.complete(request, result=len(ctx.map(request.region)[request.buffer :][: request.length]))


class Owner(uxk.Extension):
    """The test speaks for it."""

    manifest = uxk.Manifest(
        name="owner", kind="ml-agent", capabilities=("device:*:submit",), budget=uxk.Budget(memory_bytes=64 * PAGE)
    )
    ctx: ClassVar[uxk.Context]

    def setup(self, ctx: uxk.Context) -> None:
        Owner.ctx = ctx

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


async def ask(kernel: uxk.Kernel, reply: uxk.Reply) -> uxk.Completion:
    await kernel.sleep_ns(0)
    assert reply.completion is not None
    return reply.completion


async def pair(kernel: uxk.Kernel) -> tuple[uxk.Context, int, int]:
    """Both loaded: the client's context, its capability on the device, and one on four pages."""
    await kernel.insmod(Copier)
    await kernel.insmod(Owner)
    device = (await ask(kernel, Owner.ctx.open_device("copier0"))).result
    return Owner.ctx, device, (await ask(kernel, Owner.ctx.allocate(4 * PAGE))).result


async def hand(kernel: uxk.Kernel, region: int, rights: uxk.Rights = RW, **part: int) -> int:
    done = await ask(kernel, Owner.ctx.derive(region, "copier", rights, **part))
    assert done.status == 0
    return done.result


async def used(kernel: uxk.Kernel, device: int, region: int, buffer: int, opcode: int = READ) -> tuple[int, int]:
    """Under which capability, and where in it, the driver finds the memory of a request."""
    done = await ask(kernel, Owner.ctx.submit(device, opcode, length=8, region=region, buffer=buffer))
    assert (done.status, done.result) == (0, 8)
    return Copier.seen[-1][:2]


async def test_a_later_registration_serves_what_the_first_does_not() -> None:
    async with uxk.Kernel() as kernel:
        _, device, region = await pair(kernel)
        first = await hand(kernel, region, start=PAGE, length=PAGE)
        assert await used(kernel, device, region, PAGE + 4) == (first, 4)
        rest = await hand(kernel, region, start=2 * PAGE)
        assert await used(kernel, device, region, 3 * PAGE) == (rest, PAGE)
        assert await used(kernel, device, region, PAGE) == (first, 0)
        all_of_it = await hand(kernel, region)
        assert await used(kernel, device, region, 2 * PAGE - 4) == (all_of_it, 2 * PAGE - 4)


async def test_a_writable_registration_serves_what_a_read_only_one_does_not() -> None:
    async with uxk.Kernel() as kernel:
        _, device, region = await pair(kernel)
        read_only = await hand(kernel, region, uxk.Rights.READ)
        assert await used(kernel, device, region, 0, WRITE) == (read_only, 0)
        writable = await hand(kernel, region)
        assert await used(kernel, device, region, 0, READ) == (writable, 0)


async def test_when_the_newest_is_revoked_the_one_before_is_found() -> None:
    async with uxk.Kernel() as kernel:
        ctx, device, region = await pair(kernel)
        first, second = [await hand(kernel, region) for _ in range(2)]
        assert await used(kernel, device, region, 0) == (second, 0)
        await ask(kernel, ctx.revoke(second))
        assert await used(kernel, device, region, 0) == (first, 0)
        await ask(kernel, ctx.revoke(first))
        assert (await used(kernel, device, region, 0))[0] not in (first, second)


async def test_memory_handed_over_and_not_used_yet_outlives_the_death_of_the_driver() -> None:
    async with uxk.Kernel() as kernel:
        _, device, region = await pair(kernel)
        handed = await hand(kernel, region)
        crash(kernel, "copier")
        await kernel.sleep_ns(100)
        assert await used(kernel, device, region, 0) == (handed, 0)


async def test_memory_from_who_uses_nothing_of_the_driver_goes_with_its_incarnation() -> None:
    async with uxk.Kernel() as kernel:
        ctx, device, region = await pair(kernel)
        await hand(kernel, region)
        await ask(kernel, ctx.revoke(device))
        held = kernel.machine.caps.count(kernel.agents["copier"].id)
        crash(kernel, "copier")
        await kernel.sleep_ns(100)
        assert kernel.machine.caps.count(kernel.agents["copier"].id) == held - 1


@pytest.mark.parametrize("opcode", [READ, WRITE, uxk.Op.PRIVATE])
async def test_a_loan_allows_what_the_operation_needs(opcode: int) -> None:
    async with uxk.Kernel() as kernel:
        _, device, region = await pair(kernel)
        await used(kernel, device, region, 0, opcode)
        assert Copier.seen[-1][2] is (opcode != WRITE)


async def test_the_kernel_refuses_what_the_memory_does_not_allow() -> None:
    async with uxk.Kernel() as kernel:
        ctx, device, region = await pair(kernel)
        narrowed = await ask(kernel, ctx.derive(region, "owner", uxk.Rights.READ | uxk.Rights.GRANT))
        done = await ask(kernel, ctx.submit(device, READ, length=8, region=narrowed.result))
        assert done.status == errno.EACCES
        assert (await used(kernel, device, narrowed.result, 0, WRITE))[0] != narrowed.result
        for _ in range(2):  # lent, and registered
            done = await ask(kernel, ctx.submit(device, WRITE, b"inline too", region=region, buffer=4 * PAGE))
            assert done.status == errno.EINVAL and b"expected one of them" in done.payload
            await hand(kernel, region)
        assert len(Copier.seen) == 1
