"""The down side of one instance: requests in flight, their deadlines, and their fate when it dies.

Every accepted request is answered to its port exactly once.  A completion is believed only if its command id
is in flight; a late, duplicated or forged one is counted and dropped.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Sequence
from enum import Enum
from operator import attrgetter
from typing import Final

import msgspec

from uxk.core.account import Account
from uxk.errors import RequestError, RingFull
from uxk.kernel.machine import Machine
from uxk.kernel.moved import data_ops, moved, moved_bytes
from uxk.kernel.overdue import Overdue
from uxk.kernel.ports import Port
from uxk.uapi.entries import Completion, Entry, Op, Request
from uxk.uapi.manifest import Fate, Manifest

_READ: Final = int(Op.READ)
_WRITE: Final = int(Op.WRITE)
_opcode: Final = attrgetter("opcode")
OVERDUE_MAX: Final = 4096
"""Requests on memory that an instance never answers; with more it counts as hung."""


class Door(Enum):
    """Whether the instance takes requests: at once, later, or not at all."""

    OPEN = "open"
    HELD = "held"
    CLOSED = "closed"


class Batch(msgspec.Struct, eq=False, gc=False):
    """Requests that came together: one record serves them all."""

    port: Port
    requests: tuple[Request, ...]
    first_cid: int
    submitted_ns: int
    moves_data: bool
    """Whether one of :func:`data_ops` is among them."""

    def request(self, cid: int) -> Request:
        """The request with that command id."""
        return self.requests[cid - self.first_cid]


class RequestTable:
    """Requests of all ports of one instance."""

    __slots__ = (
        "_cid", "_complain", "_data_ops", "_depth", "_machine", "_reject_when_full", "_staged", "_sweep_armed",
        "_timeout_ns", "_wake", "account", "away", "backlog", "door", "inflight", "judge", "on_drained", "on_hung",
        "overdue", "timeouts_in_a_row", "timeouts_max",
    )  # fmt: skip

    def __init__(
        self, machine: Machine, account: Account, manifest: Manifest, staged: list[Entry], wake: Callable[[], None],
        complain: Callable[[str, int], None],
    ) -> None:  # fmt: skip
        self._machine = machine
        self.follow(manifest)
        self._staged = staged
        self._wake = wake
        self._complain = complain
        self._cid = 0
        self._sweep_armed = False
        self.account = account
        self.door = Door.CLOSED
        self.inflight: dict[int, Batch] = {}
        """By command id, in the order of submission."""
        self.backlog: dict[int, Batch] = {}
        """Accepted, but waiting for room or for the next incarnation."""
        self.away: dict[int, Batch] = {}
        """Accepted, and in the hands of :attr:`judge`."""
        self.judge: Callable[[Port, Sequence[Request]], None] | None = None
        """Looks at requests first: each goes on by :meth:`admit`, or is answered by :meth:`settle`."""
        self.overdue = Overdue(machine.arena)
        """What the instance has although it was answered with ETIMEDOUT."""
        self.timeouts_in_a_row = 0
        self.on_hung: Callable[[int], None] = _nothing
        self.on_drained: Callable[[], None] | None = None
        """Called once, when the instance has nothing in flight any more."""

    def follow(self, manifest: Manifest) -> None:
        """What the manifest says of requests holds from now on."""
        self._depth = manifest.budget.queue_depth
        self._data_ops = data_ops(manifest)
        self._timeout_ns = manifest.watchdog.request_timeout_ns
        self._reject_when_full = manifest.full == "reject"
        self.timeouts_max = manifest.watchdog.timeouts_max

    @property
    def idle(self) -> bool:
        """Nothing in flight and nothing waiting."""
        return not (self.inflight or self.backlog or self.away)

    @property
    def room(self) -> int:
        """How many more requests would be handed over at once."""
        used = len(self.inflight) + len(self.away)
        return 0 if self.door is not Door.OPEN or self.backlog else max(0, self._depth - used)

    # --- submission ---

    def submit(self, port: Port, requests: Sequence[Request]) -> None:
        """Takes all requests or raises: RingFull (EAGAIN), or RequestError (ENODEV) when the door is closed."""
        count = len(requests)
        if not count:
            return
        if self.judge is not None:
            self._submit_to(self.judge, port, requests)
            return
        book: dict[int, Batch] = self.inflight
        if self.door is not Door.OPEN or self.backlog or len(book) + count > self._depth:
            self._check_backlog(port, count)
            book = self.backlog
        first_cid = cid = self._cid + 1
        for request in requests:
            request.cid = cid
            cid += 1
        self._cid = cid - 1
        if port.tagged:
            for request in requests:
                request.port = port.id
        machine = self._machine
        now_ns = machine.now_ns
        if count == 1:
            moves_data = requests[0].opcode in self._data_ops
            book[first_cid] = Batch(port, tuple(requests), first_cid, now_ns, moves_data)
        else:
            moves_data = not self._data_ops.isdisjoint(map(_opcode, requests))
            batch = Batch(port, tuple(requests), first_cid, now_ns, moves_data)
            book.update(dict.fromkeys(range(first_cid, cid), batch))
        self.account.requests += count
        machine.outstanding += count
        if book is self.inflight:
            self._staged += requests
            self._wake()
        else:
            self.account.deferred += count
            self.pump()  # the room there is gets used
        if not self._sweep_armed:
            self._arm_sweep(now_ns + self._timeout_ns)

    def _submit_to(
        self, judge: Callable[[Port, Sequence[Request]], None], port: Port, requests: Sequence[Request]
    ) -> None:
        """As :meth:`submit`, by way of who looks at each first; what does not fit is refused before that."""
        if self.room < len(requests):
            self._check_backlog(port, len(requests))
        first_cid, machine = self._cid + 1, self._machine
        for cid, request in enumerate(requests, first_cid):
            request.cid = cid
            if port.tagged:
                request.port = port.id
        self._cid += len(requests)
        moves_data = not self._data_ops.isdisjoint(map(_opcode, requests))
        batch = Batch(port, tuple(requests), first_cid, machine.now_ns, moves_data)
        self.away.update(dict.fromkeys(range(first_cid, self._cid + 1), batch))
        self.account.requests += len(requests)
        machine.outstanding += len(requests)
        judge(port, requests)

    def admit(self, cids: Iterable[int]) -> None:
        """Requests that were looked at go the way of all others; a driver that is gone meanwhile fails them (EIO)."""
        passed = {cid: batch for cid in cids if (batch := self.away.pop(cid, None)) is not None}
        if self.door is Door.CLOSED:
            self._fail_all(passed.items(), errno.EIO)
            return
        if self.door is Door.OPEN and not self.backlog and len(self.inflight) + len(passed) <= self._depth:
            self.inflight.update(passed)
            self._staged += [batch.request(cid) for cid, batch in passed.items()]
            self._wake()
        else:
            self.backlog.update(passed)
            self.account.deferred += len(passed)
            self.pump()
        if passed and not self._sweep_armed:
            self._arm_sweep(self._machine.now_ns + self._timeout_ns)

    def settle(self, answers: Iterable[Completion]) -> None:
        """Answers of others than the driver, to requests that were looked at; never inside a submission."""
        known = [(batch, [each]) for each in answers if (batch := self.away.pop(each.cid, None)) is not None]
        for batch, group in _join_ports(known):
            self._deliver(batch.port, group)

    def _check_backlog(self, port: Port, count: int) -> None:
        if self.door is Door.CLOSED:
            raise RequestError(f"{port.target.name}: the driver is gone", errno=errno.ENODEV)
        if self._reject_when_full or len(self.backlog) + len(self.away) + count > self._depth:
            self.account.reject("queue_full", count)
            text = (
                f"{count} more requests of {port.client or 'the user'} do not fit: "
                f"{len(self.inflight) + len(self.away)} in flight and {len(self.backlog)} waiting, depth {self._depth}"
            )
            self._complain(text, errno.EAGAIN)
            raise RingFull(f"{port.target.name}: {text}")

    def pump(self) -> None:
        """Moves waiting requests into the window that completions have opened."""
        backlog, inflight = self.backlog, self.inflight
        if self.door is not Door.OPEN or not backlog:
            if self.on_drained is not None and not inflight:
                tell, self.on_drained = self.on_drained, None
                tell()
            return
        for cid in list(backlog)[: self._depth - len(inflight)]:
            batch = inflight[cid] = backlog.pop(cid)
            self._staged.append(batch.request(cid))
        self._wake()

    # --- completion ---

    def on_replies(self, completions: list[Completion]) -> None:
        """Believes, counts and delivers what the extension answered."""
        if self.overdue.regions:
            self.overdue.answered(completions)
        pop, count = self.inflight.pop, len(completions)
        batches: list[Batch | None] = []
        if count == 1:
            first = pop(completions[0].cid, None)
        else:
            batches = [pop(completion.cid, None) for completion in completions]
            first = batches[0] if batches.count(batches[0]) == count else None
        if first is not None:
            self.timeouts_in_a_row = 0
            self.account.latency.record(self._machine.now_ns - first.submitted_ns, count)
            if first.moves_data:
                self._count_data(first, completions)
            self._deliver(first.port, completions)
        else:
            self._sort_out(completions, batches or [None])
        if self.backlog or self.on_drained is not None:
            self.pump()

    def _sort_out(self, completions: list[Completion], batches: list[Batch | None]) -> None:
        """Answers of several batches, or some that nobody asked for."""
        groups: list[tuple[Batch, list[Completion]]] = []
        for completion, batch in zip(completions, batches, strict=True):
            if batch is None:
                self.account.reject("unknown_cid" if completion.cid > self._cid else "stale_cid")
            elif groups and groups[-1][0] is batch:
                groups[-1][1].append(completion)
            else:
                groups.append((batch, [completion]))
        for batch, group in groups:
            self.timeouts_in_a_row = 0
            self.account.latency.record(self._machine.now_ns - batch.submitted_ns, len(group))
            if batch.moves_data:
                self._count_data(batch, group)
        for batch, group in _join_ports(groups):
            self._deliver(batch.port, group)

    def _count_data(self, batch: Batch, completions: list[Completion]) -> None:
        """Books what the instance has read and written for its clients."""
        account, first_cid, requests, counted = self.account, batch.first_cid, batch.requests, self._data_ops
        read_bytes = 0
        for completion in completions:
            if not completion.status:
                request = requests[completion.cid - first_cid]
                if request.opcode == _READ:
                    if completion.result == request.length and request.region:  # as moved_bytes() says, without a call
                        read_bytes += request.length
                    else:
                        read_bytes += moved_bytes(request, completion)
                elif request.opcode == _WRITE:
                    account.written_bytes += moved_bytes(request, completion)
                elif request.opcode in counted:
                    data = moved(request, completion)
                    read_bytes += data[0]
                    account.written_bytes += data[1]
        account.read_bytes += read_bytes

    def _deliver(self, port: Port, completions: list[Completion]) -> None:
        account, count = self.account, len(completions)
        account.completed += count
        self._machine.outstanding -= count
        for completion in completions:
            if completion.status:
                account.failed += 1
        port.on_completions(completions)

    def fail_one(self, cid: int, status: int) -> bool:
        """Answers one request on the extension's behalf; False if it is not in flight."""
        batch, answer = self.inflight.pop(cid, None), Completion(cid, status)
        self.overdue.answered([answer])
        if batch is None:
            return False
        self._deliver(batch.port, [answer])
        self.pump()
        return True

    def keep(self, region: int, offset: int) -> None:
        """Memory at ``offset`` of the arena, which requests name ``region``, is given up: those in flight keep it."""
        for cid, batch in self.inflight.items():
            request = batch.request(cid)
            if request.region == region:
                self.overdue.add(request)
        self.overdue.keep(region, offset)

    def abort(self, cids: Collection[int]) -> None:
        """Answers requests in flight on the extension's behalf with ETIMEDOUT, as at their deadline."""
        late = [(cid, self.inflight.pop(cid)) for cid in cids]
        self._forget(late)
        for cid, batch in late:
            self._deliver(batch.port, [Completion(cid, errno.ETIMEDOUT)])
            self.pump()

    def _forget(self, late: Sequence[tuple[int, Batch]]) -> None:
        """Takes back what the extension has not been given yet; the rest it has, and may still work on."""
        cids = {cid for cid, _ in late}
        unseen = {entry.cid for entry in self._staged if isinstance(entry, Request) and entry.cid in cids}
        if unseen:
            self._staged[:] = [x for x in self._staged if not (isinstance(x, Request) and x.cid in unseen)]
        for cid, batch in late:
            if cid not in unseen:
                self.overdue.add(batch.request(cid))

    def _fail_all(self, items: Iterable[tuple[int, Batch]], status: int) -> None:
        for batch, group in _join_ports([(batch, [Completion(cid, status)]) for cid, batch in items]):
            self._deliver(batch.port, group)

    # --- deadlines ---

    def _arm_sweep(self, due_ns: int) -> None:
        self._sweep_armed = True
        self._machine.heap.call_at_daemon(due_ns, self._sweep)

    def _sweep(self, _: object) -> None:
        """Answers what is past its deadline with ETIMEDOUT.  Deadlines are equal, so the oldest come first."""
        self._sweep_armed = False
        limit_ns = self._machine.now_ns - self._timeout_ns
        late = _older_than(self.inflight, limit_ns)
        hung = len(late)
        if late:
            self._forget(late)
        late += _older_than(self.backlog, limit_ns)
        if late:
            self.account.timeouts += len(late)
            self.timeouts_in_a_row += hung
            self._fail_all(late, errno.ETIMEDOUT)
            self.pump()
        books = [book for book in (self.inflight, self.backlog) if book]
        oldest = min((next(iter(book.values())).submitted_ns for book in books), default=-1)
        if oldest >= 0 and not self._sweep_armed:
            self._arm_sweep(max(oldest + self._timeout_ns, self._machine.now_ns + 1))
        if hung and (self.timeouts_in_a_row >= self.timeouts_max or len(self.overdue) > OVERDUE_MAX):
            self.timeouts_in_a_row = 0
            self.on_hung(hung)

    # --- death and rebirth ---

    def on_death(self, fate: Fate) -> None:
        """The instance died and may come back: applies the declared fate (ublk's user recovery, docs.kernel.org).

        fail: all fail with EIO, new ones with ENODEV.  requeue: what it had not seen waits for the next
        instance, what it had seen fails.  reissue: all wait; what it had seen may be done twice.
        """
        unseen = {entry.cid for entry in self._staged if isinstance(entry, Request)}
        self.on_drained = None
        self._staged.clear()
        self.overdue.clear()
        kept: dict[int, Batch] = {}
        lost: dict[int, Batch] = {}
        for cid, batch in self.inflight.items():
            waits = fate == "reissue" or (fate == "requeue" and cid in unseen)
            (kept if waits else lost)[cid] = batch
        self.inflight.clear()
        if fate == "fail":
            self.door = Door.CLOSED
            lost.update(self.backlog)
            self.backlog = {}
        else:
            self.door = Door.HELD
            self.backlog = {**kept, **self.backlog}
        self._fail_all(lost.items(), errno.EIO)

    def hold(self, on_drained: Callable[[], None]) -> None:
        """What the instance has not seen waits, with all that comes; ``on_drained`` is called when the rest is done.

        Never from here.  :meth:`open` ends it, and so does a death.
        """
        self.door = Door.HELD
        unseen = [entry.cid for entry in self._staged if isinstance(entry, Request)]
        self._staged[:] = [entry for entry in self._staged if not isinstance(entry, Request)]
        kept = {cid: self.inflight.pop(cid) for cid in unseen if cid in self.inflight}
        self.backlog = {**kept, **self.backlog}
        self.on_drained = on_drained

    def close(self, status: int = errno.ENODEV) -> None:
        """No more: everything in flight or waiting is answered with ``status``."""
        self.door = Door.CLOSED
        self.on_drained = None
        items = [*self.inflight.items(), *self.backlog.items(), *self.away.items()]
        for book in (self.inflight, self.backlog, self.away):
            book.clear()
        self._staged.clear()
        self.overdue.clear()
        self._fail_all(items, status)

    def open(self) -> None:
        """Takes requests from now on, the waiting ones first."""
        self.door = Door.OPEN
        self.on_drained = None
        self.pump()


def _older_than(book: dict[int, Batch], limit_ns: int) -> list[tuple[int, Batch]]:
    """Takes out what was submitted at or before ``limit_ns``."""
    late: list[tuple[int, Batch]] = []
    for cid, batch in book.items():
        if batch.submitted_ns > limit_ns:
            break
        late.append((cid, batch))
    for cid, _ in late:
        del book[cid]
    return late


def _join_ports(groups: Iterable[tuple[Batch, list[Completion]]]) -> list[tuple[Batch, list[Completion]]]:
    """Joins neighbours that go to the same port, so that it hears of them in one call."""
    joined: list[tuple[Batch, list[Completion]]] = []
    for batch, group in groups:
        if joined and joined[-1][0].port is batch.port:
            joined[-1][1].extend(group)
        else:
            joined.append((batch, group))
    return joined


def _nothing(_: int) -> None:
    """The handler of whom nobody watches."""
