"""What a driver says that it has moved, and what clients and accounts make of it."""

from __future__ import annotations

import errno
from typing import Any

import pytest

import uxk
from uxk.subsystems.blk.layer import BlockLayer
from uxk.uapi.entries import Completion, Op, Request

EIO = errno.EIO


def read(block: int, count: int = 1) -> Request:
    return Request(0, Op.READ, b"", block * 512, count * 512)


@pytest.mark.parametrize("wrong", [b"", b"x" * 100, b"x" * 511, b"x" * 100_512])
@pytest.mark.parametrize("scheduler", ["none", "mq-deadline"])
async def test_a_read_of_the_wrong_length_is_an_error_on_every_way(lab: Any, wrong: bytes, scheduler: str) -> None:
    async with lab() as it:
        it.set("scheduler", scheduler)
        await it.run()
        serve = it.medium.serve
        it.medium.serve = lambda request: (0, wrong) if request.offset == 0 else serve(request)
        client = it.client()
        alone = client.submit(read(0))
        await it.run()
        assert client.status(alone) == [EIO]
        assert client.answers[alone[0]].payload == b""
        several = client.submit(read(16), read(0), read(32), Request(0, Op.WRITE, b"w" * 512, 32768, 512))
        await it.run()
        assert client.status(several) == [0, EIO, 0, 0]
        assert [len(client.answers[cid].payload) for cid in several] == [512, 0, 512, 0]
        joined = client.submit(read(0), read(1))
        await it.run()
        assert client.status(joined) == [EIO, EIO]
        it.check_empty()


async def test_only_one_of_a_batch_that_comes_back_in_parts_is_wrong(lab: Any) -> None:
    async with lab() as it:
        it.medium.swallow = lambda request: True
        client = it.client()
        cids = client.submit(read(0), read(16), read(32), Request(0, Op.WRITE, b"w" * 512, 32768, 512))
        await it.kernel.sleep_ns(0)
        table = it.disk.device.agent.requests
        right = bytes(512)
        table.on_replies([Completion(cids[2], 0, 512, right + b"x"), Completion(cids[3], 0, 512)])
        table.on_replies([Completion(cids[1], 0, 512, right), Completion(cids[0], 0, 512, b"")])
        await it.run()
        assert client.status(cids) == [EIO, 0, EIO, 0]
        it.check_empty()


async def test_two_wrong_lengths_do_not_make_a_right_one(lab: Any) -> None:
    async with lab() as it:
        it.medium.serve = lambda request: (0, bytes(1024 if request.offset else 0))
        client = it.client()
        cids = client.submit(read(0), read(16))
        await it.run()
        assert client.status(cids) == [EIO, EIO]
        it.check_empty()


class Half(uxk.Extension):
    """Says of every request that it moved 512 bytes."""

    manifest = uxk.Manifest(name="half", driver_class="block")

    def setup(self, ctx: uxk.Context) -> None:
        ctx.add_device(ctx.device, capacity_bytes="1048576", max_transfer_bytes="4096", write_cache="1", fua="1")

    def on_batch(self, ctx: uxk.Context, requests: Any) -> None:
        for request in requests:
            ctx.complete(request, result=512)


async def half(*requests: Request) -> tuple[list[tuple[int, int]], int]:
    """Answers, and what the driver's account says was written."""
    async with uxk.Kernel(seed=1) as kernel:
        BlockLayer(kernel)
        await kernel.insmod(Half)
        answers: list[Completion] = []
        kernel.open_port("half0", answers.extend).submit_batch(requests)
        await kernel.run()
        answers.sort(key=lambda done: done.cid)
        return [(done.status, done.result) for done in answers], kernel.agents["half"].account.written_bytes


def write(offset: int, size_bytes: int, flags: int = 0) -> Request:
    return Request(0, Op.WRITE, b"x" * size_bytes, offset, size_bytes, flags=flags)


async def test_a_part_of_a_write_is_told_to_who_asked_for_just_that() -> None:
    assert await half(write(0, 4096)) == ([(0, 512)], 512)


@pytest.mark.parametrize(
    "requests",
    [
        [write(0, 8192)],  # split
        [write(0, 2048), write(2048, 2048)],  # joined
        [write(0, 4096, flags=3)],  # flush and FUA
    ],
    ids=["split", "joined", "flush"],
)
async def test_a_part_of_a_write_that_is_nobodys_part_is_an_error(requests: list[Request]) -> None:
    answers, _ = await half(*requests)
    assert answers == [(EIO, 0)] * len(requests)


async def test_the_accounts_never_count_more_than_was_asked_for(lab: Any) -> None:
    async with lab() as it:
        it.medium.serve = lambda request: (0, bytes(100_512))
        agent, told = it.disk.device.agent, list[Completion]()
        agent.open_port("", told.extend).submit_batch([read(0)])
        await it.run()
        assert len(told[0].payload) == 100_512, "past the gate, the driver's answer is what it is"
        assert agent.account.read_bytes == 512
