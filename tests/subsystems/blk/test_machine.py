"""Random requests of several clients against a model disk, with a driver that answers late, wrongly, twice or never.

No Trio here: the test is the driver and the clock.
"""

from __future__ import annotations

import errno
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import uxk
from uxk.core.cost import CostModel
from uxk.errors import RingFull
from uxk.kernel.agent import KernelAgent
from uxk.kernel.devices import Device
from uxk.kernel.machine import Machine
from uxk.subsystems.blk.disk import Disk
from uxk.subsystems.blk.port import DiskPort
from uxk.uapi.blk import BlockLimits, IoFlag
from uxk.uapi.entries import Completion, Op, Request
from uxk.uapi.ids import InstanceId

BLOCK = 512
BLOCKS = 48
MS = 1_000_000
LIMITS = BlockLimits(
    capacity_bytes=BLOCKS * BLOCK, max_transfer_bytes=8 * BLOCK, max_discard_bytes=16 * BLOCK,
    max_write_zeroes_bytes=12 * BLOCK, write_cache=1, queues=2,
)  # fmt: skip
REGION = 77
"""A capability on memory as large as the disk: byte n of the disk goes to and from byte n of it."""
FUA, PREFLUSH = int(IoFlag.FUA), int(IoFlag.PREFLUSH)
LONGEST = {
    int(Op.READ): 8 * BLOCK, int(Op.WRITE): 8 * BLOCK, int(Op.DISCARD): 16 * BLOCK, int(Op.WRITE_ZEROES): 12 * BLOCK,
}  # fmt: skip
WRITES = frozenset({int(Op.WRITE), int(Op.DISCARD), int(Op.WRITE_ZEROES)})


class Driver(uxk.Extension):
    """Never runs: the test answers in its place."""

    manifest = uxk.Manifest(name="blkmodel", driver_class="block", budget=uxk.Budget(queue_depth=8))


class Asked:
    """What a client has asked for."""

    def __init__(self, request: Request, version: int, done_before: int) -> None:
        self.request = request
        self.version = version
        self.done_before = done_before
        """Writes that were answered when it was submitted."""
        self.blocks = range(request.offset // BLOCK, (request.offset + request.length) // BLOCK)


class QueueModel(RuleBasedStateMachine):
    """One disk, three clients."""

    @initialize(fua=st.booleans(), zeroes=st.booleans(), tagged=st.booleans())
    def begin(self, fua: bool, zeroes: bool, tagged: bool) -> None:
        self.now = Machine(seed=0, clock="virtual", cost=CostModel(), arena_bytes=1 << 16)
        self.agent = KernelAgent(self.now, InstanceId(1), "blkmodel", Driver, Driver.manifest.params())
        self.agent.requests.open()
        device = Device("blkmodel0", self.agent, 0, {"class": "block"})
        changes: dict[str, Any] = {"fua": int(fua), "max_write_zeroes_bytes": 12 * BLOCK if zeroes else 0}
        limits = BlockLimits(**{f: changes.get(f, getattr(LIMITS, f)) for f in LIMITS.__struct_fields__})
        self.disk = Disk(self.now, device, limits, cpus=3, minor=1)
        self.ports: list[DiskPort] = [
            self.disk.open_port("", lambda done, n=n: self.answered(n, done), tagged=tagged) for n in range(3)
        ]
        self.asked: list[dict[int, Asked]] = [{}, {}, {}]
        self.cache = [0] * BLOCKS
        self.platter = [0] * BLOCKS
        self.memory = bytearray(BLOCKS * BLOCK)
        self.model: list[int | None] = [0] * BLOCKS
        """What each block holds for its clients; None after a failure."""
        self.durable_since: list[int] = [0] * BLOCKS
        self.busy: set[int] = set()
        self.version = self.writes_done = 0
        self.at_driver: list[Request] = []

    # --- clients ---

    def request(self, op: int, block: int, count: int, flags: int, by_region: bool) -> Request | None:
        count = min(count, BLOCKS - block)
        blocks = set(range(block, block + count))
        if op == Op.FLUSH:
            return Request(0, op)
        if blocks & self.busy:
            return None
        self.busy |= blocks
        offset, length = block * BLOCK, count * BLOCK
        region = REGION if by_region and op in (Op.READ, Op.WRITE) else 0
        payload = b""
        if op == Op.WRITE:
            self.version += 1
            data = b"".join(self.version.to_bytes(8, "little") + bytes(BLOCK - 8) for _ in blocks)
            if region:
                self.memory[offset : offset + length] = data
            else:
                payload = data
        return Request(0, op, payload, offset, length, region, 0, 0, offset if region else 0, flags)

    @rule(
        client=st.integers(0, 2), by_region=st.booleans(),
        wanted=st.lists(
            st.tuples(
                st.sampled_from([Op.READ, Op.WRITE, Op.WRITE, Op.READ, Op.FLUSH, Op.DISCARD, Op.WRITE_ZEROES]),
                st.integers(0, BLOCKS - 1), st.integers(1, 20), st.sampled_from([0, 0, 0, FUA, PREFLUSH, 3]),
            ), min_size=1, max_size=6,
        ), run=st.sampled_from(["", "up", "down"]),
    )  # fmt: skip
    def submit(self, client: int, by_region: bool, wanted: list[tuple[Op, int, int, int]], run: str) -> None:
        """A batch; as a ``run`` neighbours of the first, so that there is something to merge."""
        requests = []
        first_op, beside = wanted[0][0], wanted[0][1]
        for op, block, count, flags in wanted:
            if run:
                size = count % 3 + 1
                beside -= size if run == "down" else 0
                request = self.request(first_op, max(beside, 0), size, 0, by_region) if beside >= 0 else None
                beside = min(beside + size, BLOCKS - 1) if run == "up" else beside
            else:
                request = self.request(op, block, count, flags, by_region)
            if request is not None:
                requests.append(request)
        if not requests:
            return
        try:
            self.ports[client].submit_batch(requests)
        except RingFull:
            for request in requests:
                self.busy -= set(Asked(request, 0, 0).blocks)
            return
        for request in requests:
            assert request.cid not in self.asked[client]
            first = int.from_bytes(self.data_of(request)[:8], "little") if request.opcode == Op.WRITE else 0
            self.asked[client][request.cid] = Asked(request, first, self.writes_done)

    def data_of(self, request: Request) -> bytes:
        if request.region:
            return bytes(self.memory[request.buffer : request.buffer + request.length])
        return request.payload

    def answered(self, client: int, completions: list[Completion]) -> None:
        for completion in completions:
            asked = self.asked[client].pop(completion.cid)  # KeyError: answered twice, or to the wrong client
            request = asked.request
            self.busy -= set(asked.blocks)
            if request.opcode in WRITES:
                value = asked.version if request.opcode == Op.WRITE else 0
                self.writes_done += 1
                for block in asked.blocks:
                    self.model[block] = None if completion.status else value
                    self.durable_since[block] = self.writes_done
                    if not completion.status and request.flags & FUA and self.disk.limits.cache:
                        assert self.platter[block] == value, "FUA, and not durable"
            elif not completion.status and request.opcode == Op.READ:
                data = self.data_of(request) if request.region else completion.payload
                assert len(data) == request.length
                for n, block in enumerate(asked.blocks):
                    seen = int.from_bytes(data[n * BLOCK : n * BLOCK + 8], "little")
                    assert self.model[block] in (None, seen), f"block {block}"
            if (
                not completion.status
                and self.disk.limits.cache
                and (request.opcode == Op.FLUSH or (request.flags & PREFLUSH and request.opcode in WRITES))
            ):
                self.check_durable(asked)

    def check_durable(self, asked: Asked) -> None:
        """Whatever was answered before a flush was asked for survives a loss of power."""
        for block in range(BLOCKS):
            value = self.model[block]
            since = self.durable_since[block]
            if value is not None and since <= asked.done_before and block not in self.busy:
                assert self.platter[block] == value, f"block {block} is lost"

    # --- the driver ---

    def take(self) -> None:
        staged = self.agent.queues.staged
        self.at_driver += [entry for entry in staged if isinstance(entry, Request)]
        staged.clear()

    def perform(self, request: Request) -> Completion:
        blocks = range(request.offset // BLOCK, (request.offset + request.length) // BLOCK)
        payload = b""
        if request.opcode == Op.READ:
            data = b"".join(self.cache[b].to_bytes(8, "little") + bytes(BLOCK - 8) for b in blocks)
            if request.region:
                self.memory[request.buffer : request.buffer + request.length] = data
            else:
                payload = data
        elif request.opcode == Op.FLUSH:
            self.platter = list(self.cache)
        else:
            data = self.data_of(request) if request.opcode == Op.WRITE else bytes(request.length)
            assert len(data) == request.length
            assert request.opcode != Op.WRITE_ZEROES or LIMITS.max_write_zeroes_bytes
            for n, block in enumerate(blocks):
                self.cache[block] = int.from_bytes(data[n * BLOCK : n * BLOCK + 8], "little")
                if request.flags & FUA or not self.disk.limits.cache:
                    self.platter[block] = self.cache[block]
        return Completion(request.cid, 0, request.length, payload)

    @rule(data=st.data())
    def serve(self, data: st.DataObject) -> None:
        """Answers some of what it has, in any order; now and then badly."""
        self.take()
        if not self.at_driver:
            return
        count = data.draw(st.integers(1, len(self.at_driver)))
        picked = data.draw(st.permutations(range(len(self.at_driver))))[:count]
        requests = [self.at_driver[index] for index in picked]
        self.at_driver = [r for i, r in enumerate(self.at_driver) if i not in picked]
        fate = data.draw(st.sampled_from(["good"] * 6 + ["bad", "late", "never", "twice"]))
        status = errno.EIO if fate == "bad" else errno.ETIMEDOUT
        done = [self.perform(r) if fate in ("good", "twice") else Completion(r.cid, status) for r in requests]
        if fate == "never":
            return
        self.agent.requests.on_replies(done)
        if fate == "twice":
            self.agent.requests.on_replies([Completion(r.cid) for r in requests])
        self.turn()

    @rule(wait_ms=st.sampled_from([1, 400, 6_000, 31_000]))
    def wait(self, wait_ms: int) -> None:
        """Time passes; what the driver swallowed runs into its deadline."""
        until_ns = self.now.now_ns + wait_ms * MS
        while (event := self.now.heap.pop_until(until_ns)) is not None:
            self.now.now_ns = max(self.now.now_ns, event[0])
            event[2](event[3])
            self.turn()
        self.now.now_ns = until_ns
        self.forget_aborted()

    def forget_aborted(self) -> None:
        self.at_driver = [r for r in self.at_driver if r.cid in self.agent.requests.inflight]

    def turn(self) -> None:
        while self.now.runnable:
            member = self.now.runnable.popleft()
            member.turn()

    # --- the administrator ---

    @rule(name=st.sampled_from(["none", "mq-deadline"]))
    def switch(self, name: str) -> None:
        self.disk.set_scheduler(name)

    @rule(nomerges=st.integers(0, 2), blocks=st.integers(1, 8), count=st.integers(4, 12), timeout_ms=st.sampled_from(
        [100, 5_000, 30_000]))  # fmt: skip
    def tune(self, nomerges: int, blocks: int, count: int, timeout_ms: int) -> None:
        limits = self.disk.limits
        limits.nomerges = nomerges
        limits.max_setting_bytes = blocks * BLOCK
        limits.io_timeout_ns = timeout_ms * MS
        limits.work_out()
        self.disk.timeouts.set()
        self.disk.set_requests(count)
        self.disk.advance()

    @precondition(lambda self: hasattr(self, "disk"))
    @invariant()
    def books_agree(self) -> None:
        disk = self.disk
        assert 0 <= disk.issued <= disk.depth
        assert disk.issued == len(disk.flights) + len(disk.hardware.under_way)
        assert disk.answers.open <= disk.waiting_max
        assert disk.tags_used >= disk.issued - disk.flush.under_way
        assert sum(port.under_way for port in self.ports) == sum(map(len, self.asked))
        assert all(count >= 0 for count in disk.stats.inflight)
        for request in self.agent.queues.staged:
            assert isinstance(request, Request)
            assert request.offset + request.length <= BLOCKS * BLOCK
            assert request.length <= LONGEST.get(request.opcode, 0)
            assert not request.flags & PREFLUSH
            assert not request.flags & FUA or request.opcode == Op.READ or disk.limits.fua

    def teardown(self) -> None:
        """Everything is answered in the end, and nothing is left."""
        if not hasattr(self, "disk"):
            return
        self.turn()
        for _ in range(2000):
            self.take()
            if not self.at_driver and not any(self.asked):
                break
            if self.at_driver:
                requests, self.at_driver = self.at_driver, []
                alive = [r for r in requests if r.cid in self.agent.requests.inflight]
                if alive:
                    self.agent.requests.on_replies([self.perform(r) for r in alive])
                self.turn()
            else:
                self.wait(31_000)
        disk = self.disk
        assert not any(self.asked)
        assert (disk.issued, disk.tags_used, disk.answers.open, disk.flush.waiting) == (0, 0, 0, 0)
        assert disk.clear
        assert disk.stats.inflight == [0, 0, 0, 0]
        assert self.now.outstanding == 0
        for block, value in enumerate(self.model):
            assert value is None or self.cache[block] == value


TestQueueModel = QueueModel.TestCase
