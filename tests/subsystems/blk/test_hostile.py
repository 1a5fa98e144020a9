"""Drivers and clients that do what they should not: the queue stays within its bounds, and others are unaffected."""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from uxk.errors import RingFull, UsageError
from uxk.subsystems.blk.checks import length_of, refusal
from uxk.subsystems.blk.limits import QueueLimits
from uxk.subsystems.blk.port import plain_sums
from uxk.subsystems.blk.request import NOMERGE
from uxk.uapi.blk import BlockLimits, IoFlag, limits_of
from uxk.uapi.entries import Completion, Op, Request

SIZE = 1 << 20
U63 = st.integers(0, (1 << 63) - 1)
NEAR = st.one_of(st.integers(0, 8).map(lambda n: n * 512), st.integers(SIZE - 1024, SIZE + 1024), U63)
ANY_REQUEST = st.builds(
    Request, st.just(0), st.integers(0, 140), st.binary(max_size=2048), NEAR, NEAR, st.sampled_from([0, 0, 5]),
    st.just(0), st.integers(0, 5), NEAR, st.integers(0, 255),
)  # fmt: skip
LIMITS = BlockLimits(capacity_bytes=SIZE, max_transfer_bytes=4096, max_discard_bytes=8192, write_cache=1)


PLAIN_REQUEST = st.builds(
    Request, st.just(0), st.sampled_from([1, 2]), st.sampled_from([b"", b"x" * 512, b"x" * 4096]),
    st.integers(0, SIZE // 512 + 1).map(lambda n: n * 512), st.sampled_from([512, 4096, 8192]),
    st.sampled_from([0, 0, 5]), st.just(0), st.just(0), st.just(0), st.sampled_from([0, 0, 1, 2, 8]),
)  # fmt: skip


@given(requests=st.lists(ANY_REQUEST | PLAIN_REQUEST, max_size=4), fua=st.integers(0, 1), read_only=st.integers(0, 1))
def test_the_short_way_is_open_only_to_what_the_queue_would_let_pass(
    requests: list[Request], fua: int, read_only: int
) -> None:
    limits = QueueLimits(msgspec.structs.replace(LIMITS, fua=fua, read_only=read_only), 1)
    sums = plain_sums(requests, limits.plain)
    if sums is None:
        return
    reads, read_bytes, written_bytes, inline = sums
    for request in requests:
        assert request.opcode in (Op.READ, Op.WRITE)
        assert refusal(request, length_of(request), limits) == 0
        assert 0 < request.length <= 4096
        assert not request.flags & (IoFlag.PREFLUSH if fua else IoFlag.PREFLUSH | IoFlag.FUA)
    for first, second in pairwise(requests):
        apart = first.offset + first.length != second.offset and second.offset + second.length != first.offset
        assert (
            apart
            or first.length + second.length > 4096
            or first.opcode != second.opcode
            or first.region == 5
            or (first.region != second.region or (first.flags | second.flags) & NOMERGE)
        )
    assert reads == sum(r.opcode == Op.READ for r in requests)
    assert inline == any(r.opcode == Op.READ and not r.region for r in requests)
    assert read_bytes == sum(r.length for r in requests if r.opcode == Op.READ)
    assert written_bytes == sum(r.length for r in requests if r.opcode == Op.WRITE)


@given(st.dictionaries(st.sampled_from(BlockLimits.__struct_fields__), st.text(max_size=20), min_size=1))
def test_properties_are_limits_or_a_complaint(properties: dict[str, str]) -> None:
    try:
        limits = limits_of(properties)
    except UsageError:
        return
    assert limits is None or QueueLimits(limits, 1).max_bytes >= 512


async def test_a_flood_of_garbage_is_answered_request_by_request(lab: Any) -> None:
    async with lab(max_transfer_bytes=4096, depth=8) as it:
        good, bad = it.client(), it.client("bad")
        shapes = [
            Request(0, op, payload, offset, length, 0, 0, device, 0, flags)
            for op in (0, 1, 2, 3, 4, 5, 7, 16, 17, 18, 99, 128, 1 << 30)
            for payload in (b"", b"x" * 512)
            for offset, length in ((0, 0), (1, 512), (SIZE, 512), ((1 << 63) - 1, 1), (0, (1 << 32) - 1), (0, 512))
            for device, flags in ((0, 0), (7, 255))
        ]
        cids, refused, fine = [], 0, []
        for shape in shapes:
            try:
                cids += bad.submit(shape)
            except RingFull:
                refused += 1
            if it.disk.answers.open > it.disk.waiting_max // 2:
                await it.run()
            fine += good.submit(Request(0, Op.READ, b"", 8192, 512))
        await it.run()
        assert refused == 0
        assert set(bad.answers) == set(cids)
        assert good.status(fine) == [0] * len(shapes)
        assert all(request.device == it.disk.device.number for request in it.medium.seen[-20:])
        it.check_empty()


async def test_a_request_of_four_gigabytes_takes_no_memory(lab: Any) -> None:
    async with lab(capacity_bytes=SIZE, max_discard_bytes=4096) as it:
        device = it.disk.device
        properties = {k: v for k, v in device.properties.items() if k not in ("class", "module", "name")}
        it.kernel.devices.add(device.agent, "blkram0", {**properties, "capacity_bytes": str(1 << 40)})
        client = it.client()
        it.medium.swallow = lambda request: True
        for n in range(20):
            client.submit(Request(0, Op.DISCARD, b"", n << 32, (1 << 32) - 4096))
        assert it.disk.tags_used <= it.disk.nr_requests
        assert it.disk.answers.open == 20
        await it.kernel.sleep_ns(1_000_000)
        assert len(it.medium.seen) <= it.disk.depth


async def test_a_driver_whose_reads_are_too_short_or_too_long_is_not_believed(lab: Any) -> None:
    for wrong in (b"", b"x" * 100, b"x" * 70_000):
        async with lab() as it:
            serve = it.medium.serve
            it.medium.serve = lambda request, wrong=wrong, serve=serve: (
                (0, wrong) if request.offset == 0 else serve(request)
            )
            client = it.client()
            cids = client.submit(*[Request(0, Op.READ, b"", n * 512, 512) for n in range(4)])
            await it.run()
            assert client.status(cids) == [errno.EIO] * 4
            cids = client.submit(Request(0, Op.READ, b"", 0, 100 * 1024))
            await it.run()
            assert client.status(cids) == [errno.EIO]
            it.check_empty()


async def test_answers_to_what_was_never_asked_are_dropped(lab: Any) -> None:
    async with lab() as it:
        it.medium.latency_ns = 1000
        client = it.client()
        cids = client.submit(*[Request(0, Op.READ, b"", n * 512, 512) for n in range(4)])
        table = it.disk.device.agent.requests
        table.on_replies([Completion(cid) for cid in (1 << 62, 0, (1 << 62) + 1, 999)])
        await it.run()
        assert client.status(cids) == [0] * 4
        it.check_empty()


async def test_a_client_that_is_refused_can_go_on(lab: Any) -> None:
    async with lab(depth=2) as it:
        it.medium.latency_ns = 1000
        client, sent, refused = it.client(), [], 0
        for n in range(400):
            try:
                sent += client.submit(*[Request(0, Op.READ, b"", (2 * n + k) * 1024 % SIZE, 512) for k in range(3)])
            except RingFull:
                refused += 1
                await it.run()
        await it.run()
        assert refused
        assert client.status(sent) == [0] * len(sent)
        it.check_empty()
