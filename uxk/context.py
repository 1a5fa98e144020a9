"""The extension's view of the kernel: every method stages entries of the up queue, none of them waits.

A method that the kernel answers returns a :class:`Reply`: attach a callback with :meth:`Reply.then` (fast
path), or ``await`` it inside ``async def run``.  The entries leave as one frame when the turn ends.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from uxk.core.events import EventHeap, EventId, nanoseconds
from uxk.core.streams import RandomStreams
from uxk.errors import BudgetError, CapabilityError, RingFull, UsageError
from uxk.limits import I64_MAX, KMSG_TEXT_MAX_BYTES, TIMERS_PER_ACTOR_MAX
from uxk.reply import Reply as Reply
from uxk.reply import Tasks
from uxk.submission import SubmissionQueue
from uxk.uapi import entries as e
from uxk.uapi.ml import ModelCommand
from uxk.uapi.rights import Rights

if TYPE_CHECKING:
    import numpy as np

_Completion = e.Completion


class Context:
    """One instance's handle on its kernel."""

    __slots__ = (
        "_cid", "_clock", "_depth", "_inbox", "_inbox_event", "_kick", "_map", "_now_ns",
        "_on_output", "_pending", "_raw", "_replies", "_reply", "_tasks", "_timers", "_up", "device",
        "dropped_log_lines", "instance", "name", "random_streams",
    )  # fmt: skip

    def __init__(self, name: str, instance: int, seed: int, depth: int, now_ns: int) -> None:
        self.name = name
        self.instance = instance
        self._now_ns = now_ns
        self._clock: Callable[[], int] | None = None
        self.device = ""
        self.dropped_log_lines = 0
        self.random_streams = RandomStreams(seed)
        self._depth = depth
        self._cid = 0
        self._pending: dict[int, Reply | SubmissionQueue] = {}
        self._up: list[e.Entry] = []
        self._replies: list[e.Entry] = []
        self._reply = self._replies.append
        self._map: Callable[[int, bool], memoryview] | None = None
        self._raw: list[tuple[bool, bytes, int]] = []
        self._timers: EventHeap | None = None
        self._on_output: Callable[[], None] | None = None
        self._kick: Callable[[], bool] | None = None
        self._inbox: list[e.Request] = []
        self._inbox_event: trio.Event | None = None
        self._tasks = Tasks()

    @property
    def now_ns(self) -> int:
        """Virtual time: as of the present turn, or, for an extension with a ``run``, as of now."""
        return self._now_ns if self._clock is None else self._clock()

    # --- requests ---

    def complete(self, request: e.Request, payload: bytes = b"", *, status: int = 0, result: int = 0) -> None:
        """Answers a request; ``status`` is 0 or an errno."""
        self._reply(_Completion(request.cid, status, result, payload))
        if self._on_output is not None:
            self._on_output()

    def complete_batch(self, requests: Sequence[e.Request], payloads: Iterable[bytes] = ()) -> None:
        """Answers a whole batch with success: with ``payloads``, one each, or with none."""
        done: list[e.Entry] = (
            [_Completion(request.cid, 0, 0, payload) for request, payload in zip(requests, payloads, strict=True)]
            if payloads else [_Completion(request.cid) for request in requests]
        )  # fmt: skip
        self._replies += done
        if self._on_output is not None:
            self._on_output()

    def complete_moved(self, requests: Sequence[e.Request]) -> None:
        """Answers a whole batch with success, each with its own ``length`` as the result: a disk's reads and writes."""
        self._replies += [_Completion(request.cid, 0, request.length) for request in requests]
        if self._on_output is not None:
            self._on_output()

    def fail(self, request: e.Request, status: int = errno.EIO) -> None:
        """Answers a request with an errno."""
        self.complete(request, status=status)

    def batches(self) -> AsyncIterator[list[e.Request]]:
        """Requests as they come, for an extension whose ``run`` serves them itself: ``async for batch in ...``."""
        return _Batches(self)

    async def _next_batch(self) -> list[e.Request]:
        while True:
            if not self._inbox:
                self._inbox_event = trio.Event()
                await self._inbox_event.wait()
            batch, self._inbox = self._inbox, []
            requests = [entry for entry in batch if isinstance(entry, e.Request)]
            self._replies += [e.Pong(entry.number) for entry in batch if isinstance(entry, e.Ping)]
            self._note_output()
            if requests:
                return requests

    # --- staging ---

    def _note_output(self) -> None:
        if self._on_output is not None:
            self._on_output()

    def stage(self, entry: e.Entry) -> None:
        """Stages an entry that has no answer.  EAGAIN if the up queue is full."""
        if len(self._up) >= self._depth:
            raise RingFull(f"{self.name}: up queue of {self._depth} entries is full in this turn")
        self._up.append(entry)
        if self._inbox:
            self._answer_pings()
        self._note_output()

    def _answer_pings(self) -> None:
        """A ``run`` that calls its context is alive, whether or not it serves batches."""
        pings = [entry for entry in self._inbox if isinstance(entry, e.Ping)]
        if pings:
            self._inbox = [entry for entry in self._inbox if not isinstance(entry, e.Ping)]
            self._replies += [e.Pong(ping.number) for ping in pings]
            self._note_output()

    def _say_last(self, entry: e.SetAttribute | e.SetPoll) -> None:
        """Stages ``entry`` in place of an earlier one of this turn on the same name: only the last value counts.

        So an author may publish after every request and every event without filling the queue.
        """
        for index, staged in enumerate(self._up):
            if isinstance(staged, (e.SetAttribute, e.SetPoll)) and type(staged) is type(entry):
                if staged.name == entry.name:
                    self._up[index] = entry
                    return
        self.stage(entry)

    def command(self, make: Callable[[int], e.Entry]) -> Reply:
        """Stages ``make(cid)`` and returns its reply.  EAGAIN if too many answers are outstanding."""
        if len(self._pending) >= self._depth:
            raise RingFull(f"{self.name}: {self._depth} commands are outstanding already")
        self._cid += 1
        entry = make(self._cid)
        self.stage(entry)
        reply = self._pending[self._cid] = Reply(f"{self.name}: {type(entry).__name__}", entry, self._tasks)
        return reply

    def write_raw(self, frame: bytes, count: int = 1, *, up: bool = False) -> None:
        """Writes bytes into a queue as they are, claiming ``count`` entries: for tests of the kernel's defences."""
        if not isinstance(frame, bytes) or not isinstance(count, int):
            kinds = f"{type(frame).__name__} and {type(count).__name__}"
            raise TypeError(f"write_raw: expected bytes and int, got {kinds}")
        self._raw.append((up, frame, count))
        self._note_output()

    # --- life ---

    def ready(self) -> None:
        """The readiness signal, for a manifest with ``ready="explicit"``."""
        self.stage(e.Ready())

    def charge_ns(self, cost_ns: int) -> None:
        """Declares that this turn's thinking costs ``cost_ns``."""
        self.stage(e.Charge(cost_ns))

    def log(self, text: str, *, level: int = 6, **fields: int | str) -> None:
        """A kmsg line, levels 0 (emergency) to 7 (debug).  What a full queue cannot take is counted."""
        if len(self._up) >= self._depth:
            self.dropped_log_lines += 1
            return
        self._up.append(e.Log(level, text[:KMSG_TEXT_MAX_BYTES], fields))
        self._note_output()

    def random(self, name: str = "") -> np.random.Generator:
        """A random stream of this instance, derived from the run's seed."""
        return self.random_streams.stream(name)

    # --- time ---

    def call_at_ns(
        self, due_ns: int, callback: Callable[[Any], object], argument: Any = None, *, daemon: bool = False
    ) -> EventId:
        """Calls ``callback(argument)`` at virtual time ``due_ns``.  A daemon timer keeps no run alive."""
        if due_ns > I64_MAX:
            raise UsageError(f"{self.name}: due_ns={due_ns}, expected at most {I64_MAX}")
        timers = self._timers
        if timers is None:
            timers = self._timers = EventHeap()
        if len(timers) >= TIMERS_PER_ACTOR_MAX:
            raise BudgetError(f"{self.name}: more than {TIMERS_PER_ACTOR_MAX} timers")
        schedule = timers.call_at_daemon if daemon else timers.call_at
        if type(due_ns) is not int or due_ns < 0:
            due_ns = nanoseconds("due_ns", due_ns)
        now_ns = self.now_ns
        if due_ns < now_ns:
            due_ns = now_ns
        event = schedule(due_ns, callback, argument)
        if self._on_output is not None:
            self._on_output()
        return event

    def call_later_ns(
        self, delay_ns: int, callback: Callable[[Any], object], argument: Any = None, *, daemon: bool = False
    ) -> EventId:
        """Calls ``callback(argument)`` after ``delay_ns``."""
        if delay_ns < 0:
            raise UsageError(f"{self.name}: delay_ns={delay_ns}, expected >= 0")
        return self.call_at_ns(self.now_ns + delay_ns, callback, argument, daemon=daemon)

    def cancel_timer(self, timer: EventId) -> None:
        """Takes back a timer; one that has fired already is no mistake."""
        if self._timers is not None and self._timers.discard(timer):
            self._note_output()

    async def sleep_ns(self, delay_ns: int, *, daemon: bool = False) -> None:
        """Sleeps in the kernel's time."""
        event = trio.Event()
        timer = self.call_later_ns(delay_ns, lambda _: event.set(), daemon=daemon)
        self._answer_pings()
        try:
            await event.wait()
            self._answer_pings()
        finally:
            if not event.is_set():
                self.cancel_timer(timer)
                self._note_output()

    # --- other devices ---

    def open(self, kind: str, target: str, rights: Rights) -> Reply:
        """Asks for a capability; its id is the completion's ``result``.  The manifest must have asked too."""
        return self.command(lambda cid: e.Open(cid, kind, target, int(rights)))

    def open_device(self, name: str) -> Reply:
        """Asks for the right to submit requests to device ``name``."""
        return self.open("device", name, Rights.SUBMIT)

    def submit(
        self, cap: int, opcode: int = e.Op.CALL, payload: bytes = b"", *, offset: int = 0, length: int = 0,
        region: int = 0, wait: bool = False, buffer: int = 0, flags: int = 0,
    ) -> Reply:  # fmt: skip
        """Sends a request to the device that ``cap`` names.

        Its data are the payload, or lie in ``region``, an arena capability, from byte ``buffer`` on.
        """
        return self.command(
            lambda cid: e.Submit(cid, cap, opcode, payload, offset, length, region, wait, buffer, flags)
        )

    def queue(self, cap: int, on_completions: Callable[[list[e.Completion]], object]) -> SubmissionQueue:
        """For many requests to the device that ``cap`` names: answers come to one callback, a batch at a time."""
        return SubmissionQueue(self, cap, on_completions)

    def kick(self) -> bool:
        """On the real clock, lets the kernel act on what is staged now, inside this call, if it sleeps.

        For a ``run`` that has taken work from the world: answers that come at once are delivered before this returns.
        Elsewhere it does nothing, what is staged leaves as ever.  Returns whether the kernel acted.
        """
        return self._kick is not None and self._kick()

    def derive(self, cap: int, to: str, rights: Rights, *, start: int = 0, length: int | None = None) -> Reply:
        """Hands (a part of) a capability to instance ``to``."""
        return self.command(lambda cid: e.Derive(cid, cap, to, int(rights), start, length))

    def revoke(self, cap: int) -> Reply:
        """Withdraws a capability and all that was derived from it."""
        return self.command(lambda cid: e.Revoke(cid, cap))

    # --- memory, locks, snapshots ---

    def allocate(self, length_bytes: int, *, keep: str = "") -> Reply:
        """Arena memory, zeroed; ``result`` is its capability.

        With a name in ``keep`` it survives a crash of this instance: ask for the same name again.
        """
        return self.command(lambda cid: e.Allocate(cid, length_bytes, keep))

    def map(self, cap: int, *, writable: bool = False) -> memoryview:
        """The bytes of an arena capability, as mmap would.  EACCES or ESTALE without the right to them."""
        if self._map is None:
            raise CapabilityError(f"{self.name}: no arena is attached")
        return self._map(cap, writable)

    def free(self, cap: int) -> Reply:
        """Gives arena memory back."""
        return self.command(lambda cid: e.Free(cid, cap))

    def acquire(self, cap: int, *, exclusive: bool = True, lease_ns: int = 0) -> Reply:
        """Takes a lock; answered when granted, ``result`` is the fencing token.  0: the default lease."""
        return self.command(lambda cid: e.Acquire(cid, cap, exclusive, lease_ns, self._tasks.calling()))

    def release(self, cap: int, token: int) -> Reply:
        """Gives a lock back; ESTALE if the lease had run out."""
        return self.command(lambda cid: e.Release(cid, cap, token))

    @asynccontextmanager
    async def lock(self, cap: int, *, exclusive: bool = True, lease_ns: int = 0) -> AsyncIterator[int]:
        """``async with ctx.lock(cap) as token``, inside ``run``."""
        reply = self.acquire(cap, exclusive=exclusive, lease_ns=lease_ns)
        try:
            token = (await reply).result
        except trio.Cancelled:  # it may be granted yet: nobody would give it back before its lease ends
            reply.then(lambda grant: None if grant.status else self.release(cap, grant.result))
            raise
        try:
            yield token
        finally:
            self.release(cap, token)

    def publish(self, cap: int, data: bytes, *, expected: int = 0) -> Reply:
        """New version of a snapshot; with ``expected``, only if that is still the current one."""
        return self.command(lambda cid: e.Publish(cid, cap, data, expected))

    def pin(self, cap: int) -> Reply:
        """Reads a snapshot; ``result`` is its version, which lives until :meth:`unpin`."""
        return self.command(lambda cid: e.Pin(cid, cap))

    def unpin(self, cap: int, version: int) -> Reply:
        """Lets go of a version."""
        return self.command(lambda cid: e.Unpin(cid, cap, version))

    # --- sysfs, devices, logs, hints ---

    def read(self, path: str) -> Reply:
        """Reads an attribute of sysfs or /proc/sys; the payload is its text."""
        return self.command(lambda cid: e.TreeRead(cid, path))

    def write(self, path: str, value: str) -> Reply:
        """Writes an attribute of sysfs or /proc/sys."""
        return self.command(lambda cid: e.TreeWrite(cid, path, value))

    def set_attribute(self, name: str, value: object, *, writable: bool = False) -> None:
        """Publishes ``/sys/module/NAME/attributes/name``; a write to it arrives as an event ``store``.

        ``DEVICE/name`` stands in the directory of a device of this instance's.
        """
        self._say_last(e.SetAttribute(name, str(value), writable))

    def add_device(self, name: str, **properties: str) -> Reply:
        """Registers a further device of this instance under its driver class."""
        return self.command(lambda cid: e.AddDevice(cid, name, properties))

    def remove_device(self, name: str) -> Reply:
        """Takes a device away."""
        return self.command(lambda cid: e.RemoveDevice(cid, name))

    def add_chardev(self, name: str) -> Reply:
        """Registers ``/dev/name``; open, read, write, ioctl and release arrive as requests."""
        return self.command(lambda cid: e.AddChardev(cid, name))

    def set_poll(self, name: str, *, readable: bool = False, writable: bool = False) -> None:
        """What ``poll`` on ``/dev/name`` reports from now on."""
        self._say_last(e.SetPoll(name, (1 if readable else 0) | (4 if writable else 0)))

    def follow_kmsg(self, *, max_level: int = 7, oldest: bool = False) -> Reply:
        """kmsg as events with topic ``kmsg``: name is the source, value the record as JSON."""
        return self.command(lambda cid: e.FollowKmsg(cid, max_level, oldest))

    def hint(
        self, site: str, generation: int, ttl_ns: int, payload: bytes, dataset: int = 0, *,
        dataset_generation: int = 0, predicted: int = 0, standing: bool = False,
    ) -> Reply:  # fmt: skip
        """Recommends ``payload`` to a decision site; the answer says only whether it was taken in.

        With ``standing`` it is in force until its time is over or the next one comes; else one decision uses it
        up.  The reply's ``cid`` is the number by which feedback names it.
        """
        return self.command(lambda cid: e.Hint(
            cid, site, generation, ttl_ns, payload, dataset, dataset_generation, predicted, standing
        ))  # fmt: skip

    def model(self, name: str, command: int, dataset: str = "", *, offset: int = 0, size: int = 0) -> Reply:
        """A command for a model proxy, see :class:`~uxk.uapi.ml.ModelCommand`."""
        return self.command(lambda cid: e.Model(cid, name, int(command), dataset, offset, size))

    def attach(self, model: str) -> Reply:
        """Asks for the events of a model, whether it exists already or not; the manifest asks for ``model:NAME``."""
        return self.model(model, ModelCommand.ATTACH)

    # --- actions ---

    def recommend_sysctl(
        self, sysctl: str, value: int | str | tuple[int, ...], *, lifetime_ns: int = 0, why: str = ""
    ) -> Reply:
        """A sysctl write on trial: reverted after ``lifetime_ns``, when its KPI gets worse, or when this instance ends.

        The answer's ``result`` is the action's number, the status says why there is none: ENODEV (nobody watches
        that sysctl), EINVAL (its range), EBUSY (another is on trial), EAGAIN (nothing to compare with yet), EDQUOT.
        The manifest asks for ``sysctl:NAME:submit``.  News of it come as events with topic ``action``.
        """
        number = int(value) if isinstance(value, bool) else value
        text = " ".join(map(str, number)) if isinstance(number, tuple) else str(number)
        return self.command(lambda cid: e.RecommendSysctl(cid, sysctl, text, lifetime_ns, why))

    def settle_action(self, action: int, *, keep: bool) -> Reply:
        """Asks to keep an action's value for good, which its KPI must justify (EAGAIN, EACCES); or takes it back."""
        return self.command(lambda cid: e.SettleAction(cid, action, keep))

    def recommend_build(self, module: str, constants: Mapping[str, int | str], *, why: str = "") -> Reply:
        """Another build of a running module, on probation; answered at its end, with status 0 if it stays.

        The manifest asks for ``module:NAME:submit``.  ENODEV: no builds of it are offered; EINVAL, EBUSY, EAGAIN (too
        soon), ECANCELED (rolled back).
        """
        return self.command(lambda cid: e.RecommendBuild(cid, module, dict(constants), why))

    def inject(self, site: str, code: bytes, *, weights: bytes = b"", why: str = "") -> Reply:
        """Bytecode as a site's policy in the kernel: verified, run in the shadow of its decisions, then swapped in.

        Answered at the end of that: status 0 if it decides from now on.  The manifest asks for ``bpf:site/NAME``.
        EINVAL: the verifier's reason; ENODEV: that site takes none; EBUSY, EAGAIN (too soon, emergency), ECANCELED
        (the model disagreed, or a fault).  Decisions come as events ``shadow``: answer with :meth:`judge`.
        """
        _check_program(site, code)
        return self.command(lambda cid: e.InjectPolicy(cid, site, code, weights, why))

    def load_program(self, at: str, code: bytes, *, arrays: Sequence[tuple[int, int]] = (), replaces: int = 0) -> Reply:
        """Attaches a program to ``queue/DEVICE`` or ``agent/INSTANCE``, as long as this instance lives.

        The answer's ``result`` is its number; with ``replaces`` it takes the place of that one, in one step.
        The manifest asks for ``bpf:queue/DEVICE`` or ``bpf:agent/INSTANCE``.
        """
        _check_program(at, code)
        return self.command(lambda cid: e.LoadProgram(cid, at, code, tuple(arrays), replaces))

    def judge(self, injection: int, first: int, verdicts: Sequence[int]) -> Reply:
        """What the model would have decided, from the decision number ``first`` on."""
        for each in verdicts:
            if int(each) != each:
                raise UsageError(f"judge: verdict {each!r}: expected an integer, the kernel has no floats")
        data = b"".join(int(each).to_bytes(8, "little", signed=True) for each in verdicts)
        return self.command(lambda cid: e.JudgePolicy(cid, injection, first, data))

    def update_weights(self, injection: int, weights: bytes) -> Reply:
        """Other weights of an injected policy, without a new program; the answer's ``result`` is their generation."""
        return self.command(lambda cid: e.UpdatePolicy(cid, injection, weights))

    # --- decisions of its own ---

    def offer_site(
        self, site: str, *, units: int = 1, schema: Sequence[tuple[str, str]] = (), rows_max: int = 1,
        start: bool = True, on_demand: bool = False, **modes: int,
    ) -> Reply:  # fmt: skip
        """Opens a decision site of this driver's for agents to advise: ``DEVICE.NAME``, of model ``DEVICE-NAME``."""
        return self.command(lambda cid: e.OfferSite(cid, site, units, tuple(schema), rows_max, modes, start, on_demand))

    def fill_dataset(self, site: str, rows: bytes = b"", *, failed: str = "") -> Reply:
        """Answers an event ``prepare``: the rows of a site offered with ``on_demand``, or why there are none."""
        return self.command(lambda cid: e.FillDataset(cid, site, rows, failed))

    def end_epoch(
        self, site: str, *, default_kpi: int = 0, hinted_kpi: int = 0, weight: int = 0, hinted_weight: int = 0,
        rows: bytes = b"", refused: str = "",
    ) -> Reply:  # fmt: skip
        """Reports an epoch of a site of one's own; the answer's payload is a :class:`uxk.uapi.ml.SiteState`."""
        return self.command(
            lambda cid: e.EndEpoch(cid, site, default_kpi, hinted_kpi, weight, hinted_weight, rows, refused)
        )


class _Batches:
    """What :meth:`Context.batches` returns.  No generator: a loop that is cancelled leaves nothing to close."""

    __slots__ = ("_ctx",)

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def __aiter__(self) -> _Batches:
        return self

    async def __anext__(self) -> list[e.Request]:
        return await self._ctx._next_batch()


def _check_program(at: str, code: bytes) -> None:
    """Two words are easily swapped, and the kernel would only say that it cannot read the frame."""
    if not isinstance(at, str) or not isinstance(code, bytes | bytearray | memoryview):
        given = f"{type(at).__name__} and {type(code).__name__}"
        raise UsageError(f"a program: expected where it goes (str), then its bytes; got {given}")
