"""A connection between a socket and a device that both do as they please: nothing is lost, mixed up, or kept."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import trio
import trio.lowlevel
from hypothesis import example, given
from hypothesis import strategies as st

import uxk
from uxk.uapi.blk import BlockLimits
from uxk_nbd_server.checks import Terms
from uxk_nbd_server.connection import Connection
from uxk_nbd_server.disk import Disk
from uxk_nbd_server.idle import Spinner
from uxk_nbd_server.memory import OWN_SLOTS, SLOT_BYTES, Pool, Purse
from uxk_nbd_server.wire import REQUEST, REQUEST_MAGIC, REQUEST_MAX_BYTES, SIMPLE, SIMPLE_MAGIC, Cmd

SIZE = 1 << 20
POOL = Pool(memoryview(bytearray((4 * OWN_SLOTS + REQUEST_MAX_BYTES // SLOT_BYTES) * SLOT_BYTES)), 4)


class Wire:
    """Gives and takes as much as it likes, at times nothing."""

    tls = False

    def __init__(self, stream: bytes, gives: Sequence[int], takes: Sequence[int]) -> None:
        self.stream = stream
        self.given = 0
        self.gives, self.takes = deque(gives), deque(takes)
        self.received = bytearray()

    def fileno(self) -> int:
        return -1

    def receive(self, views: Sequence[memoryview]) -> int:
        self.gives.rotate(-1)
        if not self.gives[0] and self.given < len(self.stream):
            raise BlockingIOError
        count = 0
        for view in views:
            part = self.stream[self.given : self.given + min(len(view), max(1, self.gives[0]) - count)]
            view[: len(part)] = part
            self.given += len(part)
            count += len(part)
        return count

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        self.takes.rotate(-1)
        if not self.takes[0]:
            raise BlockingIOError
        data = b"".join(buffers)[: self.takes[0]]
        self.received += data
        return len(data)

    def hang_up(self) -> None:
        pass

    def close(self) -> None:
        pass


class Device:
    """Stands in for a context: keeps bytes; answers some requests at once, others later, some with EAGAIN first."""

    def __init__(self, delays: Sequence[int]) -> None:
        self.data = bytearray(SIZE)
        self.delays = deque(delays)
        self.staged: list[tuple[int, int, int, int, int]] = []
        self.late: list[tuple[int, int, int, int, int]] = []
        self.on_completions: Callable[[list[uxk.Completion]], object] = list
        self.cid = 0

    def queue(self, cap: int, on_completions: Callable[[list[uxk.Completion]], object]) -> Device:
        self.on_completions = on_completions
        return self

    def submit(self, opcode: int, offset: int, length: int, payload: bytes, region: int, buffer: int, _: int) -> int:
        self.cid += 1
        self.staged.append((self.cid, opcode, offset, length, buffer))
        return self.cid

    def submit_batch(self, requests: Sequence[tuple[int, int, int, int, int, int]]) -> int:
        if self.delays[0] == 3:
            raise uxk.RingFull("made up")
        cids = [
            self.submit(opcode, at, size, b"", region, buffer, 0) for opcode, at, size, region, buffer, _ in requests
        ]
        return cids[0]

    def kick(self) -> bool:
        now, self.staged = self.staged, []
        self.serve([each for each in now if self.pick(each)])
        return True

    def pick(self, entry: tuple[int, int, int, int, int]) -> bool:
        self.delays.rotate(-1)
        if self.delays[0]:
            self.late.append(entry)
        return not self.delays[0]

    def serve(self, entries: Sequence[tuple[int, int, int, int, int]]) -> None:
        done = []
        for cid, opcode, offset, length, buffer in entries:
            self.delays.rotate(-1)
            if self.delays[0] > 2:
                done.append(uxk.Completion(cid, errno.EAGAIN))
                continue
            if opcode == uxk.Op.READ:
                POOL.region[buffer : buffer + length] = self.data[offset : offset + length]
            elif opcode == uxk.Op.WRITE:
                self.data[offset : offset + length] = POOL.region[buffer : buffer + length]
            done.append(uxk.Completion(cid, 0, length))
        if done:
            self.on_completions(done)

    def call_later_ns(self, delay_ns: int, callback: Callable[[Any], object]) -> None:
        trio.lowlevel.spawn_system_task(self.later, callback)

    async def later(self, callback: Callable[[Any], object]) -> None:
        await trio.lowlevel.checkpoint()
        callback(None)

    async def answer_late(self) -> None:
        """What was not answered at once."""
        while True:
            await trio.lowlevel.checkpoint()
            late, self.late = self.late, []
            late += self.staged
            self.staged = []
            self.serve(late[::-1])


def packed(requests: Sequence[tuple[bool, int, int]]) -> bytes:
    """READs and WRITEs, each in a place of its own, so that their order does not matter."""
    out = []
    for cookie, (write, _, length) in enumerate(requests):
        kind = Cmd.WRITE if write else Cmd.READ
        out.append(REQUEST.pack(REQUEST_MAGIC, 0, kind, cookie, place(requests, cookie), length))
        if write:
            out.append(payload(cookie, length))
    return b"".join(out)


def place(requests: Sequence[tuple[bool, int, int]], index: int) -> int:
    return sum(length for _, _, length in requests[:index])


def payload(cookie: int, length: int) -> bytes:
    return bytes([cookie + 1]) * length


async def converse(
    stream: bytes, gives: Sequence[int], takes: Sequence[int], delays: Sequence[int]
) -> tuple[bytes, bytes]:
    """Plays a whole connection; its replies and the device's bytes."""
    device: Any = Device(delays)
    disk = Disk(device, "made-up", 1, POOL, 8)
    disk.limits = BlockLimits(capacity_bytes=SIZE)
    disk.piece_max_bytes = 48 << 10
    queue = device.queue(0, disk._on_completions)
    disk._submit, disk._submit_batch = queue.submit, queue.submit_batch
    disk.alive = True
    purse = POOL.open(POOL.slots)
    assert purse is not None
    wire = Wire(stream, gives, takes)
    terms = Terms(SIZE, 512, read_only=False, structured=False, allocation=False, fast_zero=False)
    connection = Connection(wire, disk, terms, purse, 5, Spinner(0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.answer_late)
        await connection.serve(b"")
        nursery.cancel_scope.cancel()
    assert not disk.inflight and connection.lost == "closed"
    assert purse.held == 0 and POOL.free == POOL.slots and POOL.common == POOL.stock
    return bytes(wire.received), bytes(device.data)


LENGTHS = st.sampled_from([512, 4096, 48 << 10, 49 << 10, 66 << 10])
REQUESTS = st.lists(st.tuples(st.booleans(), st.just(0), LENGTHS), max_size=8)
AMOUNTS = st.lists(st.sampled_from([0, 17, 28, 1000, 40_000, 1 << 17]), min_size=1, max_size=6).filter(
    lambda each: sum(each) > 3000
)


@given(REQUESTS, AMOUNTS, AMOUNTS, st.lists(st.integers(0, 3), min_size=1, max_size=5).filter(lambda each: 0 in each))
@example([(False, 0, 49152)], [40_000], [0, 0, 0, 40_000], [0])  # patience ended when nothing had gone yet
def test_every_request_is_answered_once(
    requests: list[tuple[bool, int, int]], gives: list[int], takes: list[int], delays: list[int]
) -> None:
    async def main() -> tuple[bytes, bytes]:
        real = trio.lowlevel.wait_readable, trio.lowlevel.wait_writable
        trio.lowlevel.wait_readable = trio.lowlevel.wait_writable = _soon  # type: ignore[assignment]
        try:
            return await converse(packed(requests), gives, takes, delays)
        finally:
            trio.lowlevel.wait_readable, trio.lowlevel.wait_writable = real

    replies, data = trio.run(main)
    seen = []
    while replies:
        magic, error, cookie = SIMPLE.unpack_from(replies)
        assert (magic, error) == (SIMPLE_MAGIC, 0)
        write, _, length = requests[cookie]
        size = 0 if write else length
        assert replies[SIMPLE.size : SIMPLE.size + size] == bytes(size)
        replies = replies[SIMPLE.size + size :]
        seen.append(cookie)
    assert sorted(seen) == list(range(len(requests)))
    for cookie, (write, _, length) in enumerate(requests):
        begin = place(requests, cookie)
        assert data[begin : begin + length] == (payload(cookie, length) if write else bytes(length))


async def _soon(_: object) -> None:
    await trio.lowlevel.checkpoint()


class Still(Wire):
    """Takes nothing; a stream that never ends."""

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        raise BlockingIOError


def made(wire: Wire) -> tuple[Connection, Purse]:
    """A connection by itself, with nothing under way."""
    device: Any = Device([0])
    disk = Disk(device, "made-up", 1, POOL, 8)
    disk.limits = BlockLimits(capacity_bytes=SIZE)
    purse = POOL.open(POOL.slots)
    assert purse is not None
    terms = Terms(SIZE, 512, read_only=False, structured=False, allocation=False, fast_zero=False)
    return Connection(wire, disk, terms, purse, 5, Spinner(0)), purse


def test_who_lags() -> None:
    """It counts what goes in the direction that memory is held for, and only if it was held all the time."""
    connection, purse = made(Still(b"", [1], [0]))
    assert connection.mark() is None, "nothing is borrowed"
    slots = purse.take(OWN_SLOTS + 6)
    assert slots is not None
    assert connection.mark() is None, "nothing is waited for"
    connection._outbox.show(slots[0], 0, 1000)
    connection.flush()
    mark = connection.mark()
    assert mark is not None and mark == (-1, 0)
    connection._received_bytes += 1 << 30
    assert connection.lags(mark, 0), "it talks, and does not listen"
    connection._outbox._gone(100)
    assert connection.lags(mark, 100) and not connection.lags(mark, 99)
    connection._outbox._gone(900)
    assert not connection.lags(mark, 1 << 30), "it has taken all of it"
    for slot in slots[1:]:
        slot.release()
    purse.close()
    assert POOL.free == POOL.slots and POOL.common == POOL.stock and not POOL.taken
