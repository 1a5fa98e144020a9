"""One disk as the server uses it: what it can do, and the requests that are under way there.

Requests of all connections go through one queue of the kernel's; answers come back a batch at a time.  What fits
into one request of the device's is an :data:`Entry` that its connection finishes; anything else is a :class:`Job`.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import uxk
from uxk.uapi.blk import BlockLimits, limits_of
from uxk_nbd_server.memory import SLOT_BYTES, Pool, Slot

if TYPE_CHECKING:
    from uxk_nbd_server.jobs import Job
    from uxk_nbd_server.starting import Starting

_RETRY_NS: Final = 1_000_000
"""When a device that had no room, and answers nothing, is asked again."""
_DEPTH_MIN: Final = 4
_TROUBLE: Final = frozenset({errno.EAGAIN, errno.ENODEV, errno.ESTALE, errno.ESHUTDOWN, errno.ECANCELED})
"""Answers that say something of the device rather than of the request."""


class Finisher(Protocol):
    """Who takes the answer to an entry."""

    def finished(self, done: Sequence[tuple[Entry, uxk.Completion]]) -> None:
        """The device has answered some of its entries.  Must not raise."""


class Flusher(Protocol):
    """Who may have something to send."""

    def flush(self) -> None:
        """Sends it.  Must not raise."""


Entry: TypeAlias = tuple[Finisher, int, int, Slot | None, int, int, int, int]
"""Whose it is, opcode, cookie, slot or None, where in there, length, offset, flags."""


class Disk:
    """A device, opened."""

    def __init__(self, ctx: uxk.Context, name: str, region: int, pool: Pool, depth: int) -> None:
        self.name = name
        self.limits = BlockLimits(capacity_bytes=0)
        self.alive = False
        """Whether requests make sense: it is there, and as its clients know it."""
        self.inflight = 0
        self.depth = self._depth_max = depth
        self.job_inflight = 0
        self.piece_max_bytes = 0
        """Longest data of one request of the device's."""
        self.touched: dict[Flusher, None] = {}
        """Who has replies to send when a batch of answers has been gone through."""
        self.on_trouble: Callable[[Disk], object] = lambda _: None
        """Called when it may have been taken away."""
        self._ctx = ctx
        self._region = region
        self._derived = 0
        self._pool = pool
        self._submit: Callable[..., int] | None = None
        self._submit_batch: Callable[[Sequence[tuple[int, int, int, int, int, int]]], int] | None = None
        self._kick: Callable[[], object] = ctx.kick
        self._pending: dict[int, Entry] = {}
        self._again: deque[Entry] = deque()
        """Entries that the device had no room for."""
        self._retrying = False
        self._jobs: dict[Starting, deque[Job]] = {}
        """Of each connection, which take turns."""
        self._waiting: list[Callable[[], object]] = []

    async def open(self) -> None:
        """Finds out what it can do and hands the memory to its driver.  Raises RequestError or UsageError."""
        ctx = self._ctx
        limits = await self.look()
        if limits is None or not limits.capacity_bytes:
            raise uxk.UsageError(f"device {self.name}: has no capacity_bytes, so it is no disk", errno=errno.ENOTBLK)
        if limits.logical_block_bytes & (limits.logical_block_bytes - 1):
            text = f"device {self.name}: logical_block_bytes={limits.logical_block_bytes}, expected a power of two"
            raise uxk.UsageError(text)
        opened = await ctx.open_device(self.name)
        if self._derived:
            ctx.revoke(self._derived)
        rights = uxk.Rights.READ | uxk.Rights.WRITE
        self._derived = (await ctx.derive(self._region, opened.payload.decode(), rights)).result
        queue = ctx.queue(opened.result, self._on_completions)
        self._submit, self._submit_batch = queue.submit, queue.submit_batch
        self.limits = limits
        block = limits.logical_block_bytes
        most = min(limits.max_transfer_bytes, SLOT_BYTES)
        self.piece_max_bytes = max(block, most - most % block)
        self.alive = True

    async def look(self) -> BlockLimits | None:
        """What it can do now.  RequestError if there is no such disk."""
        return limits_in((await self._ctx.read(f"/sys/class/block/{self.name}/uevent")).payload)

    # --- submission ---

    def put(self, entry: Entry) -> bool:
        """Stages an entry; see that there is room before.  An answer always comes, even if False is returned."""
        _, opcode, _, slot, start, length, offset, flags = entry
        submit = self._submit
        assert submit is not None
        try:
            if slot is None:
                cid = submit(opcode, offset, length, b"", 0, 0, flags)
            else:
                cid = submit(opcode, offset, length, b"", self._region, slot.base + start, flags)
        except uxk.RingFull:
            self._put_off(entry)
            return False
        self._pending[cid] = entry
        self.inflight += 1
        return True

    def put_batch(self, entries: Sequence[Entry]) -> None:
        """Stages entries with data; see that there is room before.  Answers always come."""
        submit, region = self._submit_batch, self._region
        assert submit is not None
        try:
            first = submit([
                (opcode, offset, length, region, slot.base + start, flags)  # type: ignore[union-attr]
                for _, opcode, _, slot, start, length, offset, flags in entries
            ])  # fmt: skip
        except uxk.RingFull:
            for entry in entries:
                self.put(entry)
            return
        self._pending.update(zip(range(first, first + len(entries)), entries, strict=True))
        self.inflight += len(entries)

    def start(self, job: Job) -> None:
        """Begins a job; its pieces go out as there is room."""
        self._add(job)
        self._feed()

    def drop(self, connection: Starting) -> None:
        """Whoever asked is gone: what has not begun yet never does."""
        for job in self._jobs.pop(connection, ()):
            job.next_entry()

    def kick(self) -> None:
        """Lets the kernel act on what is staged, now."""
        self._kick()

    def when_room(self, callback: Callable[[], object]) -> None:
        """Calls back once when answers have come."""
        self._waiting.append(callback)

    def _put_off(self, entry: Entry) -> None:
        """No room there: fewer at a time from now on, and this one again when answers have come."""
        self.depth = max(_DEPTH_MIN, min(self.depth, self.inflight))
        self._again.append(entry)
        if not self.inflight and not self._retrying:
            self._retrying = True
            self._ctx.call_later_ns(_RETRY_NS, self._retry)

    def _retry(self, _: object) -> None:
        self._retrying = False
        self._feed()
        self._settle()

    def _feed(self) -> None:
        """What was put off, and pieces of jobs, as far as there is room; jobs leave half of it to others."""
        while self._again and self.inflight < self.depth and not self._retrying:
            if not self.put(self._again.popleft()):
                return
        jobs = self._jobs
        while jobs and self.inflight < self.depth and self.job_inflight <= self.depth >> 1 and not self._again:
            connection = next(iter(jobs))
            queue = jobs.pop(connection)
            job = queue.popleft()
            if queue:
                jobs[connection] = queue
            entry = job.next_entry()
            if entry is not None:
                self.job_inflight += 1
                self._add(job)
                if not self.put(entry):
                    return

    def _add(self, job: Job) -> None:
        self._jobs.setdefault(job.connection, deque()).append(job)

    # --- answers ---

    def _on_completions(self, completions: list[uxk.Completion]) -> None:
        pop = self._pending.pop
        self.inflight -= len(completions)
        owner: Finisher | None = None
        group: list[tuple[Entry, uxk.Completion]] = []
        for completion in completions:
            entry = pop(completion.cid)
            if completion.status in _TROUBLE:
                if completion.status == errno.EAGAIN:
                    self._put_off(entry)
                    continue
                self.on_trouble(self)
            if entry[0] is not owner:
                if owner is not None:
                    owner.finished(group)
                owner, group = entry[0], []
            group.append((entry, completion))
        if owner is not None:
            owner.finished(group)
        if self._again or self._jobs:
            self._feed()
        elif self.depth < self._depth_max:
            self.depth += 1
        self._settle()

    def _settle(self) -> None:
        touched, self.touched = self.touched, {}
        for each in touched:
            each.flush()
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for call in waiting:
                call()


def limits_in(uevent: bytes) -> BlockLimits | None:
    """A disk's limits among the properties of its uevent."""
    pairs = (line.partition("=") for line in uevent.decode().splitlines())
    return limits_of({key.lower(): value for key, _, value in pairs})


def pieces_of(offset: int, length: int, most: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the parts that a range is split into."""
    end = offset + length
    while offset < end:
        size = min(most, end - offset)
        yield offset, size
        offset += size
