"""The published rules of mq-deadline, on the scheduler alone; and schedulers as they are chosen for a disk."""

from __future__ import annotations

from typing import Any, cast

import pytest

from uxk.errors import TreeError, UsageError
from uxk.subsystems.blk.deadline import MqDeadline
from uxk.subsystems.blk.elevator import Shape, SoftwareQueues
from uxk.subsystems.blk.limits import QueueLimits
from uxk.subsystems.blk.port import DiskPort
from uxk.subsystems.blk.request import READ, WRITE, Bio, Rq
from uxk.subsystems.blk.schedulers import SCHEDULERS, make_scheduler, register_scheduler
from uxk.uapi.blk import BlockLimits
from uxk.uapi.entries import Op, Request

MS = 1_000_000
S = 1000 * MS
SHAPE = Shape(QueueLimits(BlockLimits(capacity_bytes=1 << 30), 1), 4, 2)


class Bench:
    """A scheduler with requests that have a size and no client worth the name."""

    def __init__(self, **settings: int) -> None:
        self.scheduler = MqDeadline(SHAPE)
        for name, value in settings.items():
            assert hasattr(self.scheduler, name)
            setattr(self.scheduler, name, value)
        self.numbers = 0

    def put(self, op: int, sector: int, now_ns: int = 0, prio: int = 1, sectors: int = 1) -> Rq:
        self.numbers += 1
        rq = Rq(op, sector * 512, sectors * 512, 0, 0, self.numbers)
        rq.prio = prio
        rq.segments.append((bio_of(op, sector, sectors, prio), 0, sectors * 512))
        self.scheduler.insert(rq, now_ns)
        return rq

    def take(self, count: int = 1000, now_ns: int = 0, *, complete: bool = True) -> list[tuple[str, int]]:
        """What comes next: direction and sector."""
        found: list[tuple[str, int]] = []
        while len(found) < count and (rq := self.scheduler.dispatch(now_ns)) is not None:
            found.append(("r" if rq.op == READ else "w", rq.offset // 512))
            if complete:
                self.scheduler.completed(rq)
        return found


class Someone:
    """As much of a port as schedulers look at."""

    def __init__(self, prio: int, cpu: int = 0) -> None:
        self.prio = prio
        self.cpu = cpu


def bio_of(op: int, sector: int, sectors: int, prio: int = 1, cpu: int = 0) -> Bio:
    payload = b"x" * (sectors * 512) if op == WRITE else b""
    request = Request(0, op, payload, sector * 512, sectors * 512)
    return Bio(cast("DiskPort", Someone(prio, cpu)), 1, request, sectors * 512)


def test_a_batch_goes_up_the_disk_and_does_not_turn_around_within() -> None:
    bench = Bench()
    for sector in (50, 10, 30, 70):
        bench.put(READ, sector)
    assert bench.take(2) == [("r", 10), ("r", 30)]
    bench.put(READ, 20)
    assert bench.take() == [("r", 50), ("r", 70), ("r", 20)]


def test_reads_go_first_until_writes_have_starved_twice() -> None:
    bench = Bench(fifo_batch=2)
    for n in range(8):
        bench.put(READ, 100 + n * 2)
        bench.put(WRITE, 10 + n * 2)
    order = "".join(direction for direction, _ in bench.take())
    assert order == "wwrrrrwwrrrrwwww", "the first batch goes on with writes, as if the last had been one"


def test_writes_starved_0_alternates() -> None:
    bench = Bench(fifo_batch=1, writes_starved=0)
    for n in range(3):
        bench.put(READ, 100 + n * 2)
        bench.put(WRITE, 10 + n * 2)
    assert "".join(direction for direction, _ in bench.take()) == "wwwrrr"


def test_a_batch_is_at_most_fifo_batch_long() -> None:
    bench = Bench(fifo_batch=3)
    for n in range(5):
        bench.put(READ, n * 2)
    bench.put(WRITE, 1)
    assert "".join(direction for direction, _ in bench.take()) == "wrrrrr"
    assert bench.scheduler.fifo_batch == 3


def test_who_has_waited_too_long_is_next_when_a_batch_ends() -> None:
    bench = Bench(fifo_batch=2)
    bench.put(READ, 5, now_ns=0)
    for sector in (100, 110, 120, 130):
        bench.put(READ, sector, now_ns=400 * MS)
    bench.scheduler._classes[1].lanes[0].latest = 90 * 512  # the head is behind the old one
    assert bench.take(2, 450 * MS) == [("r", 100), ("r", 110)]
    assert bench.take(1, 499 * MS) == [("r", 120)], "not yet"
    bench.put(READ, 140, now_ns=499 * MS)
    assert bench.take(1, 500 * MS) == [("r", 130)], "the batch goes on"
    assert bench.take(2, 501 * MS) == [("r", 5), ("r", 140)], "500 ms are over"


def test_writes_expire_after_five_seconds() -> None:
    bench = Bench(fifo_batch=1)
    bench.put(WRITE, 5)
    bench.put(WRITE, 100, 4 * S)
    bench.scheduler._classes[1].lanes[1].latest = 90 * 512
    assert bench.take(1, 4 * S) == [("w", 100)]
    bench.put(WRITE, 100, 4 * S)
    assert bench.take(1, 5 * S) == [("w", 5)]


def test_lower_classes_wait_for_higher_ones_even_under_way_and_come_when_they_are_old() -> None:
    bench = Bench()
    bench.put(READ, 1, prio=2)
    bench.put(READ, 2, prio=1)
    first = bench.put(READ, 3, prio=0)
    assert bench.take(complete=False) == [("r", 3)]
    assert bench.take(now_ns=9 * S) == [], "the highest is still under way"
    bench.scheduler.completed(first)
    assert bench.take(1, 9 * S) == [("r", 2)]
    assert bench.take(1, 9 * S) == [("r", 1)]
    bench.put(READ, 1, 9 * S, prio=2)
    bench.put(READ, 2, 9 * S, prio=0)
    assert bench.take(1, 9 * S + 10_000 * MS) == [("r", 1)], "prio_aging_expire"


def test_front_merges_can_be_turned_off() -> None:
    for allowed in (1, 0):
        bench = Bench(front_merges=allowed)
        rq = bench.put(READ, 10, sectors=2)
        assert bench.scheduler.merge(bio_of(READ, 12, 2), 0, 1024) == (rq, False)
        assert bench.scheduler.merge(bio_of(READ, 8, 2), 0, 1024) == ((rq, True) if allowed else None)
        assert bench.scheduler.merge(bio_of(WRITE, 12, 2), 0, 1024) is None
        assert bench.scheduler.merge(bio_of(READ, 12, 2, prio=0), 0, 1024) is None


@pytest.mark.parametrize("gap_first", [True, False])
async def test_filling_a_gap_joins_three_requests(lab: Any, gap_first: bool) -> None:
    async with lab(depth=2) as it:
        it.set("scheduler", "mq-deadline")
        it.set("nr_requests", 16)
        client = it.client()
        busy = (
            client.submit(Request(0, Op.READ, b"", 1 << 19, 512)),
            client.submit(Request(0, Op.READ, b"", 1 << 18, 512)),
        )
        order = (1, 3, 2, 0) if gap_first else (3, 2, 0, 1)
        cids = [client.submit(Request(0, Op.WRITE, bytes([n]) * 512, n * 512, 512))[0] for n in order]
        assert len(it.disk.scheduler) == 1
        await it.run()
        assert it.medium.ops()[2:] == [(Op.WRITE, 0, 2048)]
        assert client.status([*cids, *busy[0], *busy[1]]) == [0] * 6
        assert it.medium.cache[:2048] == b"".join(bytes([n]) * 512 for n in range(4))
        assert it.stat()[4:7] == [1, 3, 4]
        it.check_empty()


def test_software_queues_are_served_in_turn() -> None:
    queues = SoftwareQueues(SHAPE)
    for number, cpu in enumerate((0, 0, 0, 2, 2, 3)):
        rq = Rq(READ, number * 4096, 512, 0, cpu, number)
        queues.insert(rq, 0)
    order = []
    while (taken := queues.dispatch(0)) is not None:
        order.append(taken.number)
    assert order == [0, 3, 5, 1, 4, 2]
    assert len(queues) == 0
    assert [SHAPE.hctx_of(cpu) for cpu in range(4)] == [0, 0, 1, 1]


def test_a_software_queue_merges_with_the_newest_of_its_own_cpu() -> None:
    queues = SoftwareQueues(SHAPE)
    old = Rq(READ, 0, 512, 0, 0, 1)
    old.segments.append((bio_of(READ, 0, 1), 0, 512))
    queues.insert(old, 0)
    assert queues.merge(bio_of(READ, 1, 1), 0, 512) == (old, False)
    assert queues.merge(bio_of(READ, 1, 1, cpu=1), 0, 512) is None
    for number in range(8):
        rq = Rq(READ, (100 + 2 * number) * 512, 512, 0, 0, number + 2)
        rq.segments.append((bio_of(READ, 100 + 2 * number, 1), 0, 512))
        queues.insert(rq, 0)
    assert queues.merge(bio_of(READ, 1, 1), 0, 512) is None, "eight back is far enough"


# --- choosing ---


async def test_switching_drains_first(lab: Any) -> None:
    async with lab() as it:
        it.medium.latency_ns = MS
        client = it.client()
        cids = client.submit(*[Request(0, Op.READ, b"", n * 8192, 512) for n in range(4)])
        it.set("scheduler", "mq-deadline")
        assert it.get("scheduler") == "none [mq-deadline]"
        assert it.disk.scheduler.name == "none", "four are still under way"
        cids += client.submit(*[Request(0, Op.READ, b"", n * 8192, 512) for n in range(8, 14)])
        assert it.disk.issued == 4
        await it.run()
        assert it.disk.scheduler.name == "mq-deadline"
        assert client.status(cids) == [0] * 10
        assert it.get("nr_requests") == "16", "twice the driver's depth"
        assert it.get("iosched/read_expire") == "500"
        it.set("scheduler", "none")
        assert not it.kernel.sysfs.exists(f"{it.path}/queue/iosched")
        assert it.get("nr_requests") == "8"
        it.check_empty()


async def test_settings_of_the_scheduler_take_effect(lab: Any) -> None:
    async with lab(depth=2) as it:
        it.set("scheduler", "mq-deadline")
        table = {name: it.get(f"iosched/{name}") for name in it.kernel.sysfs.listdir(f"{it.path}/queue/iosched")}
        assert table == {
            "fifo_batch": "16", "front_merges": "1", "prio_aging_expire": "10000", "read_expire": "500",
            "write_expire": "5000", "writes_starved": "2",
        }  # fmt: skip
        it.set("iosched/fifo_batch", 1)
        it.set("iosched/writes_starved", 1)
        client = it.client()
        client.submit(Request(0, Op.READ, b"", 1 << 19, 512), Request(0, Op.READ, b"", 1 << 18, 512))
        for n in range(4):
            client.submit(Request(0, Op.READ, b"", 65536 + n * 8192, 512))
            client.submit(Request(0, Op.WRITE, b"x" * 512, n * 8192, 512))
        await it.run()
        assert "".join("rw"[op == Op.WRITE] for op, _, _ in it.medium.ops()[2:]) == "rwrwrwrw"
        for name, text in (("fifo_batch", "x"), ("front_merges", "2"), ("read_expire", "-1")):
            with pytest.raises(TreeError, match=name):
                it.set(f"iosched/{name}", text)


async def test_an_unknown_scheduler_is_refused_with_what_there_is(lab: Any) -> None:
    async with lab() as it:
        with pytest.raises(TreeError, match=r"did you mean 'mq-deadline'.*known: none, mq-deadline"):
            it.set("scheduler", "mq-deadlin")
        assert it.get("scheduler") == "[none] mq-deadline"


async def test_others_can_be_made_known(lab: Any) -> None:
    class Newest(SoftwareQueues):
        """Serves the newest first."""

        name = "newest"

        def __init__(self, shape: Shape) -> None:
            super().__init__(shape)
            self.stack: list[Rq] = []

        def merge(self, bio: Bio, at: int, count: int) -> None:
            return None

        def insert(self, rq: Rq, now_ns: int) -> None:
            self.stack.append(rq)

        def dispatch(self, now_ns: int) -> Rq | None:
            return self.stack.pop() if self.stack else None

        def __len__(self) -> int:
            return len(self.stack)

    register_scheduler("newest", Newest)
    try:
        with pytest.raises(UsageError, match="registered already"):
            register_scheduler("newest", Newest)
        assert make_scheduler("newest", SHAPE).name == "newest"
        async with lab() as it:
            it.set("scheduler", "newest")
            it.client().submit(*[Request(0, Op.READ, b"", n * 8192, 512) for n in range(4)])
            await it.run()
            assert [offset for _, offset, _ in it.medium.ops()] == [24576, 16384, 8192, 0]
            it.check_empty()
    finally:
        del SCHEDULERS["newest"]
