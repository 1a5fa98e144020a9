"""One controller: takes commands from its queues, answers each with a status; knows no clock but ``now_ns``.

Plain reads and writes go by a fast path, a batch at a time; everything else goes through the tables of
:mod:`uxk_nvme.admin` and :mod:`uxk_nvme.io`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from uxk_nvme.command import Command
from uxk_nvme.events import INVALID_DOORBELL, NAMESPACE_CHANGED, Events
from uxk_nvme.features import Features
from uxk_nvme.inject import struck
from uxk_nvme.iommu import OFFSET_BITS, OFFSET_MASK
from uxk_nvme.later import ENDLESS
from uxk_nvme.logs import ErrorLog
from uxk_nvme.namespaces import Namespace
from uxk_nvme.queues import Done, Fast, Item, ReplyQueue
from uxk_nvme.spec import MORE, PSDT_SGL, TRANSFER_MAX_BYTES, Feature, Io, Refused, Status, final

if TYPE_CHECKING:
    from uxk_nvme.subsystem import Subsystem

Handler: TypeAlias = Callable[[Command], "int | None"]
"""Acts on a command; returns when it is done, in nanoseconds, or None if its answer comes otherwise."""

_READ: Final = Io.READ | PSDT_SGL << 8
_WRITE: Final = Io.WRITE | PSDT_SGL << 8
_KIND: Final = ~(0xFFFF << 16) & (1 << 64) - 1
"""All of a command's first two dwords but its identifier."""
_NO_VIEW: Final = memoryview(b"")
CHANGED_MAX: Final = 1024


class Controller:
    """State of one controller of the subsystem: what is attached, features, events, errors, counters."""

    __slots__ = (
        "active", "admin_table", "changed", "cntlid", "errors", "events", "fabrics", "features", "host", "host_id",
        "io_table", "lost", "port", "queue_limit", "queues", "seen_ns", "subsystem", "warned",
    )  # fmt: skip

    def __init__(
        self, subsystem: Subsystem, cntlid: int, *, host: str, host_id: bytes, port: int, fabrics: bool,
        tables: tuple[Mapping[int, Handler], Mapping[int, Handler]],
    ) -> None:  # fmt: skip
        self.subsystem = subsystem
        self.cntlid = cntlid
        self.host = host
        """Host NQN; empty for the kernel's own driver."""
        self.host_id = host_id
        self.port = port
        """Of which of the driver's clients it is; 0: the kernel."""
        self.fabrics = fabrics
        """Whether commands come as capsules: there are no queues to create then."""
        self.admin_table, self.io_table = tables
        self.queue_limit = subsystem.queue_limit
        self.queues: dict[int, ReplyQueue] = {}
        """By queue identifier; 0 is the admin queue."""
        self.events = Events()
        self.features = Features(self)
        self.features.host_id = host_id.ljust(16, b"\0")[:16]
        self.errors = ErrorLog()
        self.active: dict[int, Namespace] = subsystem.namespaces.active_of(cntlid)
        self.seen_ns = 0
        """When the host was last heard."""
        self.warned = 0
        """Critical warnings that were reported."""
        self.changed: dict[int, None] = {}
        """NSIDs that have changed since the log was read."""
        self.lost: dict[tuple[ReplyQueue, int], None] = {}
        """Commands that a fault has swallowed: only Abort ends them."""

    @property
    def has_io_queues(self) -> bool:
        """Whether there are others than the admin queue."""
        return any(self.queues)

    # --- the ways in ---

    def run_admin(self, queue: ReplyQueue, entries: Sequence[Fast], now_ns: int) -> None:
        """Executes a batch of admin commands."""
        ready: list[Item] = []
        for index, entry in enumerate(entries):
            self._execute(queue, index, entry, self.admin_table, now_ns, ready)
        if ready:
            queue.post(ready)
        self.subsystem.settle(now_ns)

    def run_io(self, queue: ReplyQueue, entries: Sequence[Fast], now_ns: int) -> None:
        """Executes a batch of I/O commands."""
        subsystem = self.subsystem
        ready: list[Item] = []
        if subsystem.slow or subsystem.faults.active:
            for index, entry in enumerate(entries):
                self._execute(queue, index, entry, self.io_table, now_ns, ready)
        elif len(entries) > 1 or not self._run_one(queue, entries, now_ns, ready):
            self._run_fast(queue, entries, now_ns, ready)
        if ready:
            subsystem.counters.immediate += len(ready)
            queue.post(ready)
        subsystem.settle(now_ns)

    def _bucket(self, queue: ReplyQueue) -> Callable[[int, ReplyQueue], list[Item]]:
        """Where completions of I/O commands wait: as feature 08h says, or else parameter ``coalesce_ns``."""
        subsystem = self.subsystem
        later, grain_ns = subsystem.later, subsystem.coalesce_ns
        if Feature.COALESCING in self.features.values:
            coalescing = self.features.coalescing(queue.qid)
            if coalescing is not None:
                return partial(later.together, window_ns=coalescing[0], most=coalescing[1])
        return partial(later.together, window_ns=grain_ns, most=ENDLESS) if grain_ns else later.bucket

    def _run_fast(self, queue: ReplyQueue, entries: Sequence[Fast], now_ns: int, ready: list[Item]) -> None:
        """Reads and writes without flags, of whole and attached namespaces; the rest is executed as it comes.

        Neighbours mostly differ in their addresses alone: what was found out about one holds for those that follow.
        """
        subsystem = self.subsystem
        bucket, latencies = self._bucket(queue), subsystem.counters.latencies
        read, write, active = subsystem.medium.read, subsystem.medium.write, self.active
        append = append_later = ready.append
        kind = kind_length = kind_control = handle = last_ns = last_slba = last_offset = -1
        shift = base = start = equal = 0
        view, last, readonly = _NO_VIEW, -1, True
        act: Callable[[int, memoryview, int], int] = read
        for index, entry in enumerate(entries):
            head, address, length, slba, control = entry
            offset = address - start
            if (
                head & _KIND != kind or length != kind_length or control != kind_control or slba > last_slba
                or not 0 <= offset <= last_offset
            ):  # fmt: skip
                if address >> OFFSET_BITS != handle:
                    handle = address >> OFFSET_BITS
                    view, last, readonly = subsystem.iommu.whole(handle)
                    start = handle << OFFSET_BITS
                    offset = address - start
                namespace, key = active.get(head >> 32), head & 0xFFFF
                # Equal lengths mean that there are no flags beside NLB, the longest transfer being what it is.
                if (
                    namespace is None or not namespace.writable or slba + control >= namespace.blocks
                    or length != control + 1 << namespace.shift or length > TRANSFER_MAX_BYTES
                    or offset + length > last or (key != _WRITE and (readonly or key != _READ))
                ):  # fmt: skip
                    self._execute(queue, index, entry, self.io_table, now_ns, ready)
                    kind = handle = -1  # it may have changed what is kept here
                    continue
                kind, kind_length, kind_control = head & _KIND, length, control
                shift, base, act = namespace.shift, namespace.base, read if key == _READ else write
                last_slba, last_offset = namespace.blocks - control - 1, last - length
            due_ns = act(base + (slba << shift), view[offset : offset + length], now_ns)
            if due_ns <= now_ns:
                if due_ns >= 0:
                    append(head >> 16 & 0xFFFF)
                else:
                    append(self._failed(Command(self, queue, queue.dwords(index), entry, now_ns), -due_ns))
                continue
            if due_ns != last_ns:
                if equal:
                    latencies.append((last_ns - now_ns, equal))
                last_ns, append_later, equal = due_ns, bucket(due_ns, queue).append, 0
            equal += 1
            append_later(head >> 16 & 0xFFFF)
        if equal:
            latencies.append((last_ns - now_ns, equal))

    def _run_one(self, queue: ReplyQueue, entries: Sequence[Fast], now_ns: int, ready: list[Item]) -> bool:
        """One plain read or write alone, as they come when each ends at a time of its own; False if it is none.

        As :meth:`_run_fast`, without keeping anything for the next.
        """
        if not entries:
            return True
        subsystem = self.subsystem
        head, address, length, slba, control = entries[0]
        key, tag, namespace = head & 0xFFFF, head >> 16 & 0xFFFF, self.active.get(head >> 32)
        view, last, readonly = subsystem.iommu.whole(address >> OFFSET_BITS)
        offset = address & OFFSET_MASK
        end = offset + length
        if (
            namespace is None or not namespace.writable or slba + control >= namespace.blocks
            or length != control + 1 << namespace.shift or length > TRANSFER_MAX_BYTES or end > last
        ):  # fmt: skip
            return False
        at = namespace.base + (slba << namespace.shift)
        if key == _READ and not readonly:
            due_ns = subsystem.medium.read(at, view[offset:end], now_ns)
        elif key == _WRITE:
            due_ns = subsystem.medium.write(at, view[offset:end], now_ns)
        else:
            return False
        if due_ns > now_ns:
            subsystem.counters.latencies.append((due_ns - now_ns, 1))
            self._bucket(queue)(due_ns, queue).append(tag)
        elif due_ns >= 0:
            ready.append(tag)
        else:
            ready.append(self._failed(Command(self, queue, queue.dwords(0), entries[0], now_ns), -due_ns))
        return True

    def _execute(
        self, queue: ReplyQueue, index: int, entry: Fast, table: Mapping[int, Handler], now_ns: int, ready: list[Item]
    ) -> None:
        """One command by its handler; what is done at once goes to ``ready``."""
        cmd = Command(self, queue, queue.dwords(index), entry, now_ns)
        extra_ns, status = 0, 0
        due_ns: int | None = now_ns
        subsystem = self.subsystem
        subsystem.counters.count(cmd.opcode, admin=table is self.admin_table)
        try:
            if entry[0] >> 8 & 3:  # FUSES says that there are no fused operations
                raise Refused(Status.INVALID_FIELD, byte=1)
            handler = table.get(cmd.opcode)
            if handler is None:
                raise Refused(Status.INVALID_OPCODE, byte=0)
            if subsystem.faults.active:
                action = struck(cmd, admin=table is self.admin_table)
                if action is not None:
                    if action.lost:
                        self.lost[queue, cmd.tag] = None
                        return
                    extra_ns, status = action.delay_ns, action.status
            if not status:
                due_ns = handler(cmd)
        except Refused as refusal:
            status = self.errors.note(cmd, refusal.status, refusal.location)
        else:
            if status:
                status = self.errors.note(cmd, status, 0xFFFF)
        if due_ns is None:
            return
        extra_ns += subsystem.extra_latency_ns if table is self.io_table else 0
        due_ns = max(due_ns, now_ns) + extra_ns
        if cmd.edit is not None:
            cmd.dw0 = cmd.edit
        item: Item = Done(cmd.tag, status, cmd.dw0) if status or cmd.dw0 else cmd.tag
        if due_ns <= now_ns:
            ready.append(item)
        else:
            if table is self.io_table:
                subsystem.counters.latencies.append((due_ns - now_ns, 1))
                self._bucket(queue)(due_ns, queue).append(item)
            else:
                subsystem.later.bucket(due_ns, queue).append(item)

    def _failed(self, cmd: Command, status: int) -> Done:
        return Done(cmd.tag, self.errors.note(cmd, final(status), 0xFFFF))

    # --- what happens to it ---

    def abort(self, queue: ReplyQueue, tag: int) -> bool:
        """Ends a command that is under way, with Command Abort Requested; False if there is none (any more)."""
        if not self.forget(queue, tag):
            return False
        queue.post([Done(tag, Status.ABORTED)])
        return True

    def forget(self, queue: ReplyQueue, tag: int) -> bool:
        """Takes a command back that is under way: there will be no completion; False if there is none (any more)."""
        if (queue, tag) in self.lost:
            del self.lost[queue, tag]
            return True
        return self.events.let_go(queue, tag) or self.subsystem.later.take(queue, tag)

    def bad_doorbell(self) -> None:
        """A doorbell had a value that cannot be: an entry in the error log, and an event."""
        self.errors.note(None, int(Status.INVALID_FIELD) | MORE, 0xFFFF)
        self.events.happen(INVALID_DOORBELL)

    def namespace_changed(self, nsid: int) -> None:
        """One of its namespaces came, went, or looks different."""
        self.active = self.subsystem.namespaces.active_of(self.cntlid)
        if len(self.changed) <= CHANGED_MAX:
            self.changed[nsid] = None
        self.events.happen(NAMESPACE_CHANGED)
