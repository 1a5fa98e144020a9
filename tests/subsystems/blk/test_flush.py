"""The rules of block/blk-flush.c, on the machine alone and through a disk."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from uxk.subsystems.blk.flush import PENDING_NS_MAX, FlushMachine, steps_of
from uxk.subsystems.blk.limits import QueueLimits
from uxk.subsystems.blk.request import DISCARD, FLUSH, FUA, PREFLUSH, WRITE, Rq
from uxk.uapi.blk import BlockLimits
from uxk.uapi.entries import Op, Request

MS = 1_000_000


def limits(fua: int = 0) -> QueueLimits:
    return QueueLimits(BlockLimits(capacity_bytes=1 << 20, write_cache=1, fua=fua), 1)


class Bench:
    """The machine with its surroundings written down."""

    def __init__(self) -> None:
        self.flushes = 0
        self.data: list[Rq] = []
        self.done: list[tuple[int, int]] = []
        self.machine = FlushMachine(
            self.flush, self.data.append, lambda rq, status: self.done.append((rq.number, status))
        )
        self.numbers = 0

    def flush(self) -> None:
        self.flushes += 1

    def put(self, op: int, flags: int, now_ns: int = 0, fua: int = 0) -> Rq | None:
        """A request; None if it goes the usual way."""
        self.numbers += 1
        rq = Rq(op, 0, 0 if op == FLUSH else 512, flags, 0, self.numbers)
        return rq if self.machine.insert(rq, limits(fua), now_ns) else None


@pytest.mark.parametrize(
    ("op", "flags", "fua", "steps"),
    [
        (FLUSH, 0, 0, ("preflush",)), (WRITE, PREFLUSH, 1, ("preflush", "data")), (WRITE, FUA, 1, ("data",)),
        (WRITE, FUA, 0, ("data", "postflush")), (WRITE, PREFLUSH | FUA, 0, ("preflush", "data", "postflush")),
        (DISCARD, FUA, 1, ("data", "postflush")),
    ],
)  # fmt: skip
def test_steps(op: int, flags: int, fua: int, steps: tuple[str, ...]) -> None:
    assert steps_of(Rq(op, 0, 0 if op == FLUSH else 512, flags, 0, 1), limits(fua)) == steps


def test_one_flush_at_a_time_and_all_who_come_meanwhile_share_the_next() -> None:
    bench = Bench()
    for _ in range(4):
        bench.put(FLUSH, 0)
    assert bench.flushes == 1
    bench.machine.flushed(0, 1)
    assert bench.done == [(1, 0)]
    assert bench.flushes == 2
    bench.machine.flushed(0, 2)
    assert bench.done == [(n, 0) for n in (1, 2, 3, 4)]
    assert bench.flushes == 2
    assert bench.machine.waiting == 0


def test_a_write_with_both_goes_through_three_steps_in_order() -> None:
    bench = Bench()
    rq = bench.put(WRITE, PREFLUSH | FUA)
    assert rq is not None
    assert (bench.flushes, bench.data) == (1, [])
    bench.machine.flushed(0, 1)
    assert bench.data == [rq]
    assert rq.flags == 0, "the driver sees neither flag: what they ask for is done around it"
    bench.machine.data_done(rq, 0, 2)
    assert (bench.flushes, bench.done) == (2, [])
    bench.machine.flushed(0, 3)
    assert bench.done == [(1, 0)]


def test_a_device_with_fua_is_told_so() -> None:
    bench = Bench()
    assert bench.put(WRITE, FUA, fua=1) is None
    rq = bench.put(WRITE, FUA | PREFLUSH, fua=1)
    assert rq is not None
    assert rq.flags == FUA


def test_a_flush_waits_for_data_that_will_want_one_too_but_not_for_ever() -> None:
    bench = Bench()
    first, second = bench.put(WRITE, FUA), bench.put(WRITE, FUA)
    assert first is not None and second is not None
    bench.machine.data_done(first, 0, 10)
    assert bench.flushes == 0, "the other's data are under way: one flush will do for both"
    bench.machine.data_done(second, 0, 20)
    assert bench.flushes == 1
    bench.machine.flushed(0, 30)
    assert bench.done == [(1, 0), (2, 0)]
    third, fourth = bench.put(WRITE, FUA, 30), bench.put(WRITE, FUA, 30)
    assert third is not None and fourth is not None
    bench.machine.data_done(third, 0, 40)
    bench.put(WRITE, FUA, 40 + PENDING_NS_MAX)
    assert bench.flushes == 2


def test_after_a_failure_there_is_no_further_step() -> None:
    bench = Bench()
    bench.put(WRITE, PREFLUSH | FUA)
    bench.machine.flushed(errno.EIO, 1)
    assert (bench.done, bench.data) == ([(1, errno.EIO)], [])
    rq = bench.put(WRITE, FUA)
    assert rq is not None
    bench.machine.data_done(rq, errno.ENOSPC, 2)
    assert bench.done[-1] == (2, errno.ENOSPC)
    assert bench.flushes == 1


def test_the_flush_under_way_serves_only_who_waited_when_it_began() -> None:
    bench = Bench()
    bench.put(FLUSH, 0)
    bench.put(WRITE, PREFLUSH)
    bench.machine.flushed(0, 1)
    assert bench.data == []
    bench.machine.flushed(0, 2)
    assert len(bench.data) == 1


# --- through a disk ---


async def test_what_a_disk_sends(lab: Any) -> None:
    async with lab() as it:
        client = it.client()
        cids = client.submit(Request(0, Op.WRITE, b"a" * 512, 0, 512, flags=FUA | PREFLUSH))
        await it.run()
        assert [(r.opcode, r.flags) for r in it.medium.seen] == [(Op.FLUSH, 0), (Op.WRITE, 0), (Op.FLUSH, 0)]
        assert it.medium.platter[:512] == b"a" * 512
        assert it.stat()[15] == 2
        it.medium.seen.clear()
        for n in range(4):
            cids += client.submit(Request(0, Op.FLUSH))
            cids += client.submit(Request(0, Op.WRITE, bytes([n]) * 512, n * 4096, 512, flags=PREFLUSH))
        await it.run()
        assert client.status(cids) == [0] * 9
        assert [r.opcode for r in it.medium.seen].count(Op.FLUSH) == 2, "eight share two"
        it.check_empty()


async def test_fua_reaches_a_device_that_has_it(lab: Any) -> None:
    async with lab(fua=1) as it:
        client = it.client()
        cids = client.submit(Request(0, Op.WRITE, b"a" * 512, 0, 512, flags=FUA))
        cids += client.submit(Request(0, Op.READ, b"", 0, 512, flags=FUA))
        cids += client.submit(Request(0, Op.DISCARD, b"", 4096, 512, flags=FUA))
        await it.run()
        assert [(r.opcode, r.flags & FUA) for r in it.medium.seen] == [
            (Op.WRITE, FUA), (Op.READ, FUA), (Op.DISCARD, FUA), (Op.FLUSH, 0),
        ]  # fmt: skip
        assert client.status(cids) == [0] * 3


@pytest.mark.parametrize("how", ["device", "attribute"])
async def test_without_a_cache_there_is_nothing_to_flush(lab: Any, how: str) -> None:
    async with lab(write_cache=int(how == "attribute")) as it:
        if how == "attribute":
            it.set("write_cache", "write through")
        client = it.client()
        cids = client.submit(Request(0, Op.FLUSH), Request(0, Op.WRITE, b"a" * 512, 0, 512, flags=FUA | PREFLUSH))
        await it.run()
        assert client.status(cids) == [0, 0]
        assert [(r.opcode, r.flags) for r in it.medium.seen] == [(Op.WRITE, 0)]


async def test_a_failed_flush_fails_all_who_shared_it(lab: Any) -> None:
    async with lab() as it:
        it.medium.latency_ns = MS
        client = it.client()
        cids = client.submit(Request(0, Op.FLUSH))
        it.medium.judge = lambda request: errno.EIO if request.opcode == Op.FLUSH else 0
        cids += client.submit(*[Request(0, Op.FLUSH)] * 1, Request(0, Op.WRITE, b"a" * 512, 0, 512, flags=PREFLUSH))
        await it.run()
        assert client.status(cids) == [errno.EIO] * 3
        assert [r.opcode for r in it.medium.seen] == [Op.FLUSH, Op.FLUSH]
        it.check_empty()
