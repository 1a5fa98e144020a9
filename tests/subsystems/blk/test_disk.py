"""Requests through a disk on a kernel: checked, merged, split, zeroed, held back, and answered to whom they belong."""

from __future__ import annotations

import errno
from typing import Any

import pytest

import uxk
from uxk.errors import RequestError, RingFull
from uxk.uapi.blk import Extent, IoFlag, pack_extents
from uxk.uapi.entries import Op, Request

KB = 1 << 10
SIZE = 1 << 20


def read(offset: int, length: int, **rest: Any) -> Request:
    return Request(0, Op.READ, b"", offset, length, **rest)


def write(offset: int, data: bytes, **rest: Any) -> Request:
    return Request(0, Op.WRITE, data, offset, len(data), **rest)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (read(1, 512), errno.EINVAL), (read(0, 100), errno.EINVAL), (read(0, 512 * KB), errno.EINVAL),
        (read(-512, 512), errno.EINVAL), (read(SIZE, 512), errno.EIO), (read(SIZE - 512, 1024), errno.EIO),
        (write(SIZE, b"x" * 512), errno.ENOSPC), (write(0, b"x" * 100), errno.EINVAL),
        (Request(0, Op.WRITE, b"x" * 512, 0, 1024), errno.EINVAL), (Request(0, Op.WRITE, b"", 0, 512), errno.EINVAL),
        (Request(0, Op.DISCARD, b"", 100, 512), errno.EINVAL), (Request(0, Op.DISCARD, b"", SIZE, 512), errno.EIO),
        (Request(0, Op.WRITE_ZEROES, b"", SIZE, 512), errno.EIO), (Request(0, Op.FLUSH, b"", 0, 512), errno.EINVAL),
        (Request(0, Op.DISCARD, b"", 0, 512, 7, 0, 0, -512), errno.EINVAL), (read(1 << 70, 512), errno.EIO),
        (Request(0, Op.EXTENTS, b"", SIZE, 512), errno.EIO), (read(0, 0), 0), (Request(0, Op.DISCARD, b"", 512, 0), 0),
        (Request(0, Op.WRITE, b"y" * 512), 0),
    ],
)  # fmt: skip
async def test_the_queue_answers_itself_what_no_driver_should_see(lab: Any, request_: Request, status: int) -> None:
    async with lab() as it:
        client = it.client()
        cids = client.submit(request_)
        assert not client.answers, "never inside the submission"
        await it.run()
        assert client.status(cids) == [status]
        assert len(it.medium.seen) == (1 if request_.payload and not status else 0)
        it.check_empty()


async def test_a_device_may_be_read_only_or_be_made_so(lab: Any) -> None:
    ops = (write(0, b"x" * 512), Request(0, Op.DISCARD, b"", 0, 512), Request(0, Op.WRITE_ZEROES, b"", 0, 512))
    async with lab(read_only=1) as it:
        client = it.client()
        assert it.kernel.sysfs.read(f"{it.path}/ro") == "1"
        cids = client.submit(*ops, read(0, 512))
        await it.run()
        assert client.status(cids) == [errno.EROFS] * 3 + [0]
    async with lab() as it:
        client = it.client()
        it.kernel.sysfs.write(f"{it.path}/ro", "1")
        cids = client.submit(*ops)
        await it.run()
        assert client.status(cids) == [errno.EPERM] * 3
        it.kernel.sysfs.write(f"{it.path}/ro", "0")
        cids = client.submit(write(0, b"x" * 512))
        await it.run()
        assert client.status(cids) == [0]


async def test_neighbours_of_a_batch_become_one_request_and_each_client_gets_its_own_answers(lab: Any) -> None:
    async with lab() as it:
        client = it.client()
        cids = client.submit(*[write(n * 4096, bytes([n]) * 4096) for n in (3, 2, 4, 5, 1, 9)])
        await it.run()
        assert it.medium.ops() == [(Op.WRITE, 4096, 5 * 4096), (Op.WRITE, 9 * 4096, 4096)]
        assert client.status(cids) == [0] * 6
        assert [client.answers[cid].result for cid in cids] == [4096] * 6
        cids = client.submit(*[read(n * 4096, 4096) for n in (1, 2, 3, 4)])
        await it.run()
        assert it.medium.ops()[-1] == (Op.READ, 4096, 4 * 4096)
        assert [client.answers[cid].payload for cid in cids] == [bytes([n]) * 4096 for n in (1, 2, 3, 4)]
        assert it.stat()[:3] == [1, 3, 32]
        assert it.stat()[4:7] == [2, 4, 48]
        it.check_empty()


async def test_requests_of_different_clients_merge_unless_the_driver_tells_them_apart(lab: Any) -> None:
    for tagged, expected in ((False, 2), (True, 3)):
        async with lab(depth=2) as it:
            it.set("scheduler", "mq-deadline")
            it.set("nr_requests", "8")
            one, other = it.client("one", tagged=tagged), it.client("other", tagged=tagged)
            full = one.submit(read(64 * KB, 512)), one.submit(read(128 * KB, 512))
            mine, theirs = one.submit(write(0, b"a" * 4096)), other.submit(write(4096, b"b" * 4096))
            await it.run()
            assert one.status([*full[0], *full[1], *mine]) == [0, 0, 0]
            assert set(one.answers) == {*full[0], *full[1], *mine}
            assert set(other.answers) == set(theirs)
            assert len(it.medium.seen) == 1 + expected
            assert it.medium.cache[:8192] == b"a" * 4096 + b"b" * 4096
            ports = {request.port for request in it.medium.seen if request.opcode == Op.WRITE}
            assert ports == ({one.port.id, other.port.id} if tagged else {0})


async def test_memory_is_joined_only_where_it_lies_side_by_side(lab: Any) -> None:
    async with lab() as it:
        it.medium.judge = lambda request: errno.EIO  # the test's region exists nowhere
        client = it.client()

        def by_region(offset: int, buffer: int, region: int = 7) -> Request:
            return Request(0, Op.READ, b"", offset, 4096, region, 0, 0, buffer)

        client.submit(by_region(0, 0), by_region(4096, 4096), by_region(8192, 16384), by_region(12288, 20480, 8))
        client.submit(by_region(40960, 8192), by_region(36864, 4096), by_region(32768, 8192))
        await it.run()
        assert [(r.offset, r.length, r.region, r.buffer) for r in it.medium.seen] == [
            (0, 8192, 7, 0), (8192, 4096, 7, 16384), (12288, 4096, 8, 20480),
            (36864, 8192, 7, 4096), (32768, 4096, 7, 8192),
        ]  # fmt: skip


@pytest.mark.parametrize(("nomerges", "driver_sees"), [(0, 1), (1, 1), (2, 4)])
async def test_nomerges(lab: Any, nomerges: int, driver_sees: int) -> None:
    async with lab() as it:
        it.set("nomerges", nomerges)
        it.client().submit(*[write(n * 512, b"x" * 512) for n in range(4)])
        await it.run()
        assert len(it.medium.seen) == driver_sees


async def test_flags_forbid_merging(lab: Any) -> None:
    async with lab() as it:
        it.client().submit(*[read(n * 512, 512, flags=int(IoFlag.NOMERGE)) for n in range(3)])
        await it.run()
        assert len(it.medium.seen) == 3


async def test_what_is_too_large_is_split_and_answered_once(lab: Any) -> None:
    async with lab(max_transfer_bytes=16 * KB) as it:
        client = it.client()
        data = bytes(range(256)) * 400  # 100 KiB
        cids = client.submit(write(4096, data))
        await it.run()
        assert [length for _, _, length in it.medium.ops()] == [16 * KB] * 6 + [4 * KB]
        cids += client.submit(read(4096, len(data)))
        await it.run()
        assert client.status(cids) == [0, 0]
        assert client.answers[cids[1]].payload == data
        it.set("max_sectors_kb", 8)
        it.medium.seen.clear()
        client.submit(read(0, 64 * KB))
        await it.run()
        assert [length for _, _, length in it.medium.ops()] == [8 * KB] * 8
        it.check_empty()


async def test_one_bad_piece_fails_the_whole(lab: Any) -> None:
    async with lab(max_transfer_bytes=16 * KB) as it:
        it.medium.judge = lambda request: errno.ENODATA if request.offset == 32 * KB else 0
        client = it.client()
        cids = client.submit(read(0, 64 * KB))
        await it.run()
        assert client.status(cids) == [errno.ENODATA]
        assert client.answers[cids[0]].payload == b""


async def test_a_failed_request_fails_all_that_were_merged_into_it_and_no_others(lab: Any) -> None:
    async with lab() as it:
        it.medium.judge = lambda request: errno.EIO if request.offset == 0 else 0
        client = it.client()
        cids = client.submit(*[read(n * 512, 512) for n in (0, 1, 2, 100, 101)])
        await it.run()
        assert client.status(cids) == [errno.EIO] * 3 + [0] * 2


async def test_discards_keep_to_their_own_limit(lab: Any) -> None:
    async with lab() as it:
        client = it.client()
        it.medium.cache[:] = b"x" * SIZE
        cids = client.submit(Request(0, Op.DISCARD, b"", 0, SIZE))
        await it.run()
        assert it.medium.ops() == [(Op.DISCARD, n * 256 * KB, 256 * KB) for n in range(4)]
        it.set("discard_max_bytes", 128 * KB)
        cids += client.submit(Request(0, Op.DISCARD, b"", 0, 512 * KB))
        await it.run()
        assert len(it.medium.seen) == 4 + 4
        it.set("discard_max_bytes", 0)
        cids += client.submit(Request(0, Op.DISCARD, b"", 0, 512))
        await it.run()
        assert client.status(cids) == [0, 0, errno.EOPNOTSUPP]
        assert it.stat()[11:14] == [8, 0, (SIZE + 512 * KB) >> 9]


@pytest.mark.parametrize("promised", [False, True])
async def test_zeroes_are_written_where_the_device_cannot_make_them(lab: Any, promised: bool) -> None:
    async with lab(max_write_zeroes_bytes=512 * KB if promised else 0) as it:
        it.medium.cache[:] = b"x" * SIZE
        it.medium.judge = lambda request: errno.EOPNOTSUPP if request.opcode == Op.WRITE_ZEROES else 0
        client = it.client()
        cids = client.submit(Request(0, Op.WRITE_ZEROES, b"", 4096, 700 * KB), read(0, 512))
        await it.run()
        assert client.status(cids) == [0, 0]
        assert client.answers[cids[0]].result == 700 * KB
        assert it.medium.cache[4096 : 4096 + 700 * KB] == bytes(700 * KB)
        assert it.medium.cache[:4096] == b"x" * 4096
        assert it.medium.cache[4096 + 700 * KB :].count(b"x") == SIZE - 4096 - 700 * KB
        assert it.get("write_zeroes_max_bytes") == "0"
        it.check_empty()


async def test_back_pressure_is_bounded_and_nothing_accepted_is_lost(lab: Any) -> None:
    async with lab(depth=4) as it:
        client = it.client()
        most, cids = it.disk.waiting_max, []
        for n in range(4):
            cids += client.submit(read(n * 8192, 512))
        for n in range(most):
            cids += client.submit(read(n * 1024 % SIZE, 512, flags=int(IoFlag.NOMERGE)))
        with pytest.raises(RingFull, match="256 are waiting"):
            client.submit(read(0, 512))
        with pytest.raises(RingFull):
            client.submit(*[read(0, 512)] * 3)
        assert it.disk.issued <= 4
        await it.run()
        assert client.status(cids) == [0] * (most + 4)
        it.check_empty()


async def test_the_driver_never_has_more_than_its_depth_and_others_may_use_it_too(lab: Any) -> None:
    async with lab(depth=8) as it:
        it.medium.latency_ns = 1000
        direct: list[int] = []
        beside = it.disk.device.agent.open_port("", lambda done: direct.extend(c.cid for c in done))
        for count in (8, 6):  # fills it, and its backlog nearly
            beside.submit_batch([read(0, 512) for _ in range(count)])
        client = it.client()
        cids = client.submit(*[read(n * 4096, 512) for n in range(8)])
        await it.run()
        assert client.status(cids) == [0] * 8
        assert len(direct) == 14
        it.check_empty()


async def test_who_answers_late_submits_again_from_inside_the_answer(lab: Any) -> None:
    async with lab(depth=4) as it:
        client, left = it.client(), [40]

        def more() -> None:
            while left[0] and client.port.under_way < 6:
                left[0] -= 1
                client.submit(read(left[0] * 8192, 512), read(left[0] * 8192 + 512, 512))

        client.on_answer = more
        more()
        await it.run()
        assert len(client.answers) == 80
        it.check_empty()


async def test_what_the_queue_does_not_know_passes_through(lab: Any) -> None:
    async with lab() as it:
        client = it.client()
        cids = client.submit(Request(0, Op.CALL, b"hello"), Request(0, 130, b"z", 5, 3, 0, 0, 0, 4, 9))
        await it.run()
        assert client.status(cids) == [0, 0]
        assert [client.answers[cid].payload for cid in cids] == [b"other", b"other"]
        seen = it.medium.seen[1]
        assert (seen.opcode, seen.payload, seen.offset, seen.length, seen.buffer, seen.flags) == (130, b"z", 5, 3, 4, 9)
        assert it.stat() == [0] * 17
        it.check_empty()


async def test_extents_pass_in_one_piece(lab: Any) -> None:
    async with lab(max_transfer_bytes=4096) as it:
        client = it.client()
        cids = client.submit(Request(0, Op.EXTENTS, b"", 0, SIZE))
        await it.run()
        assert it.medium.ops() == [(Op.EXTENTS, 0, SIZE)]
        assert client.status(cids) == [0]
        assert pack_extents([Extent(SIZE, True, True)])


async def test_a_closed_port_hears_nothing_and_lets_the_driver_go(lab: Any) -> None:
    async with lab() as it:
        it.medium.latency_ns = 1000
        client = it.client("gone")
        client.submit(read(0, 512))
        client.submit(read(4096, 512), read(4608, 512))
        client.port.close()
        assert it.disk.device.agent.clients() == ["gone", "user"]
        await it.run()
        assert client.answers == {}
        assert it.disk.device.agent.clients() == []
        it.check_empty()


async def test_a_disk_whose_driver_is_gone_refuses(lab: Any) -> None:
    async with lab() as it:
        client = it.client()
        it.medium.latency_ns = 1000
        cids = client.submit(read(0, 512))
        cids += client.submit(*[read(4096 * n, 512, flags=int(IoFlag.NOMERGE)) for n in range(12)])
        with pytest.raises(Exception, match="in use"):
            await it.kernel.rmmod("blkram")
        it.kernel._loader.unload_all()
        assert client.status(cids) == [errno.ENODEV] * 13
        with pytest.raises(RequestError):
            client.submit(read(0, 512))
        assert it.layer.disks == {}
        assert not it.kernel.sysfs.exists("/sys/block/blkram0")
        assert it.kernel.machine.outstanding == 0


class Copier(uxk.Extension):
    """A client in user space: neighbours that merge, a read that is split, in memory of its own and inside entries."""

    manifest = uxk.Manifest(
        name="blk_copier", kind="ml-agent", capabilities=("device:*:submit",), budget=uxk.Budget(queue_depth=64)
    )

    def setup(self, ctx: uxk.Context) -> None:
        ctx.open_device("blkram0").then(lambda done: self.begin(ctx, done.result))

    def begin(self, ctx: uxk.Context, cap: int) -> None:
        queue = ctx.queue(cap, lambda done: ctx.log(" ".join(f"{c.status}:{len(c.payload)}" for c in done)))
        for n in range(8):
            queue.submit(Op.WRITE, n * 4096, 4096, bytes([n]) * 4096)
        queue.submit(Op.READ, 0, 160 * KB)
        queue.submit(Op.READ, 1 << 30, 4096)


async def test_the_accounts_of_client_and_driver_agree_with_what_was_moved(lab: Any) -> None:
    async with lab(depth=16) as it:
        copier = await it.kernel.insmod(Copier)
        await it.run()
        driver, client = it.disk.device.agent.account, copier.account
        assert [r.length for r in it.medium.seen if r.opcode == Op.WRITE] == [32 * KB]
        assert (client.io_written_bytes, client.io_read_bytes) == (32 * KB, 160 * KB)
        assert (driver.written_bytes, driver.read_bytes) == (32 * KB, 160 * KB)
        assert client.submitted == 10
        said = [record.text for record in it.kernel.kmsg.records(source="blk_copier", max_level=6)]
        assert " ".join(said).split().count("0:0") == 8
        assert f"0:{160 * KB}" in " ".join(said)
        assert "5:0" in " ".join(said)
        it.check_empty()


async def test_an_empty_batch_is_nothing(lab: Any) -> None:
    async with lab() as it:
        client = it.client()
        assert client.submit() == []
        it.set("scheduler", "mq-deadline")
        assert client.submit() == []
        it.kernel.open_port("blkram0", client.order.append).submit_batch([])
        await it.run()
        assert it.medium.seen == []
        assert client.order == []
        it.check_empty()


async def test_an_idle_disk_takes_one_batch_of_any_size(lab: Any) -> None:
    async with lab(depth=8) as it:
        client, most = it.client(), it.disk.waiting_max
        cids = client.submit(*[read(n * 1024, 512) for n in range(most + 50)])
        with pytest.raises(RingFull, match=f"{most + 50} are waiting, at most {most}"):
            client.submit(read(0, 512))
        await it.run()
        assert client.status(cids) == [0] * (most + 50)
        it.check_empty()


@pytest.mark.parametrize("fua", [0, 1])
async def test_zeroes_with_flushes_are_written_too_where_the_driver_cannot(lab: Any, fua: int) -> None:
    async with lab(fua=fua) as it:
        it.medium.judge = lambda request: errno.EOPNOTSUPP if request.opcode == Op.WRITE_ZEROES else 0
        client = it.client()
        it.medium.cache[:] = it.medium.platter[:] = b"x" * SIZE
        flags = int(IoFlag.FUA | IoFlag.PREFLUSH)
        cids = client.submit(Request(0, Op.WRITE_ZEROES, b"", 0, 128 * KB, flags=flags))
        cids += client.submit(write(512 * KB, b"y" * 512, flags=flags))
        await it.run()
        assert client.status(cids) == [0, 0]
        assert it.medium.platter[: 128 * KB] == bytes(128 * KB)
        assert it.medium.platter[128 * KB] == ord("x")
        it.check_empty()
