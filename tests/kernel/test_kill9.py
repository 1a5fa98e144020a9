"""kill -9 of a block driver's process under load: no request lost, none answered twice, the data right after each.

The client below is a judge: it knows the one right content of every block, and that every request has one answer.  A
request that fails is asked for again until it does not, so fates differ in the client's work, not in what it must find.
Moments and manners of dying are drawn from a stream of the run's seed, and the kernel goes on only when the process is
dead, so that a run with six kills has one hash.  ``UXK_SOAK=1`` kills a hundred times.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

import uxk
from uxk.core.cost import ClockKind
from uxk.errors import RequestError, RingFull
from uxk.subsystems.blk.layer import BlockLayer

MEDIUM = Path(__file__).resolve().parent / "hosted/medium.py"
SOAK = bool(os.environ.get("UXK_SOAK"))
BLOCK_BYTES = 4096
LANES = 16
PER_LANE = 8
BLOCKS = LANES * PER_LANE
RETRY_NS = 20_000


class Work:
    """What one lane does at a time: a read or a write of one block."""

    def __init__(self, lane: int, block: int, version: int | None) -> None:
        self.lane, self.block, self.version = lane, block, version

    def request(self) -> uxk.Request:
        at = self.block * BLOCK_BYTES
        if self.version is None:
            return uxk.Request(0, uxk.Op.READ, b"", at, BLOCK_BYTES)
        return uxk.Request(0, uxk.Op.WRITE, content(self.block, self.version), at, BLOCK_BYTES)


def content(block: int, version: int) -> bytes:
    """Of a block: no half of one version passes for another."""
    return b"%08d%08d" % (block, version) * (BLOCK_BYTES // 16) if version else bytes(BLOCK_BYTES)


class Judge:
    """A client with :data:`LANES` requests in flight, each lane on blocks of its own."""

    def __init__(self, kernel: uxk.Kernel, device: str) -> None:
        self.kernel = kernel
        self.random = kernel.machine.streams.stream("test/kill9")
        self.port = kernel.open_port(device, self.on_answers)
        self.versions = [0] * BLOCKS
        """Of every block, what was last written and answered with success."""
        self.open: dict[int, Work] = {}
        self.asked = self.answered = self.failed = self.retries = 0
        self.problems: list[str] = []
        self.running = False
        self.kill_in = -1
        self.kill: Callable[[], None] = lambda: None
        self.resting = 0
        """Lanes that have nothing in flight and nothing to do again."""

    def start(self) -> None:
        """All lanes go to work."""
        self.running, self.resting = True, 0
        for lane in range(LANES):
            self.next(lane)

    def next(self, lane: int) -> None:
        """A lane's next work, drawn; none if it is to rest."""
        if not self.running:
            self.resting += 1
            return
        block = lane * PER_LANE + int(self.random.integers(PER_LANE))
        writes = bool(self.random.integers(3))
        self.submit(Work(lane, block, self.versions[block] + 1 if writes else None))

    def submit(self, work: Work) -> None:
        """Asks, now or when there is somebody to ask."""
        request = work.request()
        try:
            self.port.submit(request)
        except (RequestError, RingFull):
            self.again(work)
            return
        if request.cid in self.open:
            self.problems.append(f"command id {request.cid} was given twice")
        self.open[request.cid] = work
        self.asked += 1

    def again(self, work: Work) -> None:
        self.retries += 1
        self.kernel.call_at_ns(self.kernel.now_ns + RETRY_NS, lambda _: self.submit(work))

    def on_answers(self, answers: Sequence[uxk.Completion]) -> None:
        for answer in answers:
            work = self.open.pop(answer.cid, None)
            if work is None:
                self.problems.append(f"command id {answer.cid} was answered twice")
                continue
            self.answered += 1
            if answer.status:
                self.failed += 1
                self.again(work)
                continue
            if work.version is not None:
                self.versions[work.block] = work.version
            elif answer.payload != content(work.block, self.versions[work.block]):
                self.problems.append(f"block {work.block} is not version {self.versions[work.block]}")
            self.next(work.lane)
        if self.kill_in > 0:
            self.kill_in -= len(answers)
            if self.kill_in <= 0:
                self.kill()

    def verify(self) -> None:
        """Reads everything, one block per lane at a time; the lanes rest after that."""
        assert self.resting == LANES and not self.open
        self.running, self.resting = False, LANES - BLOCKS  # every read lets one lane rest
        for block in range(BLOCKS):
            self.submit(Work(block // PER_LANE, block, None))


def put_to_death(pid: int) -> None:
    """SIGKILL, and on with the run when the process is dead: a moment that the seed knows."""
    descriptor = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(10_000)
    finally:
        os.close(descriptor)


async def until(kernel: uxk.Kernel, condition: Callable[[], bool]) -> None:
    """Lets the kernel go on until then, in its own time."""
    with trio.fail_after(120):
        while not condition():
            await kernel.sleep_ns(50_000)


async def kill_again_and_again(kernel: uxk.Kernel, module: uxk.Module, device: str, kills: int, rest_ns: int) -> Judge:
    """The trial: load, death, load, verification, and so on."""
    judge = Judge(kernel, device)
    manners = ("outside", "half", "whole") if module.name == "medium" else ("outside",)
    for number in range(1, kills + 1):
        manner = manners[int(judge.random.integers(len(manners)))]
        moment = 1 + int(judge.random.integers(200))
        if manner == "outside":
            judge.kill_in, judge.kill = moment, lambda: put_to_death(pid_of(kernel, module.name))
        else:
            await module.submit(b"%d %s" % (moment, manner.encode()))
        judge.start()
        await until(kernel, lambda number=number: module.account.restarts >= number and ready(module))  # type: ignore[misc]
        assert module.account.faults == number, [record.text for record in kernel.kmsg.records()][-20:]
        served = judge.answered
        await until(kernel, lambda served=served: judge.answered >= served + 100)  # type: ignore[misc]
        judge.running = False
        await until(kernel, lambda: judge.resting == LANES)
        judge.verify()
        await until(kernel, lambda: judge.resting == LANES)
        assert judge.problems == [], (number, manner)
        assert not judge.open and judge.asked == judge.answered and kernel.machine.outstanding == 0
        await kernel.sleep_ns(rest_ns)
    return judge


def pid_of(kernel: uxk.Kernel, name: str) -> int:
    return next(row.pid for row in kernel.lsmod() if row.name == name)


def ready(module: uxk.Module) -> bool:
    return module.state.name == "LIVE"


def reported(judge: Judge, what: str) -> str:
    """One line of figures, for those who run with ``-s``."""
    line = f"{what}: {judge.asked} requests, {judge.failed} failed and asked again, {judge.retries} retries"
    print(line)
    return line


def medium(folder: Path, fate: str) -> Path:
    """The driver's file, with that fate in its manifest."""
    file = folder / "medium.py"
    file.write_text(MEDIUM.read_text().replace('fate="reissue"', f'fate="{fate}"'))
    return file


async def trial(file: Path, clock: ClockKind, kills: int) -> tuple[Judge, str]:
    async with uxk.Kernel(seed=9, clock=clock) as kernel:
        BlockLayer(kernel)
        module = await kernel.insmod(file, placement="process")
        judge = await kill_again_and_again(kernel, module, "medium0", kills, 1000)
        return judge, kernel.event_hash()


@pytest.mark.parametrize(
    ("fate", "kills"), [("reissue", 100 if SOAK else 6), ("requeue", 30 if SOAK else 2), ("fail", 30 if SOAK else 2)]
)
async def test_in_virtual_time(fate: str, kills: int, tmp_path: Path) -> None:
    judge, _ = await trial(medium(tmp_path, fate), "virtual", kills)
    reported(judge, f"virtual, {fate}, {kills} kills")
    assert (judge.failed == 0) is (fate == "reissue")
    assert (judge.retries > judge.failed) is (fate == "fail")  # then, new requests are refused, too


async def test_the_same_kills_give_the_same_hash() -> None:
    hashes = {(await trial(MEDIUM, "virtual", 2))[1] for _ in range(2)}
    assert len(hashes) == 1


async def test_on_the_real_clock() -> None:
    kills = 20 if SOAK else 2
    judge, _ = await trial(MEDIUM, "real", kills)
    reported(judge, f"real, reissue, {kills} kills")
    assert judge.failed == 0


async def test_nvme() -> None:
    """The same of a real driver: its medium is kept memory, its controller state a table in it."""
    kills = 100 if SOAK else 2
    async with uxk.Kernel(seed=9) as kernel:
        BlockLayer(kernel)
        module = await kernel.modprobe("nvme", size="1MiB", medium="simple", placement="process")
        judge = await kill_again_and_again(kernel, module, "nvme0n1", kills, 10_000_000_000)
    reported(judge, f"virtual, nvme, {kills} kills")
