"""Records a run as a Perfetto trace: who submitted what to whom, when it was worked on, and when it was answered.

An untraced kernel pays nothing for it: frames come from the event hash's sink, which is there anyway, requests from a
table that takes the usual one's place (:mod:`uxk.bridges.trace.table`), log lines and hints from their subscribers.
Nothing here changes the run: its event hash is the same with and without.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from pathlib import Path
from types import TracebackType
from typing import IO, Final

import msgspec

from uxk.bridges.trace.packets import PACKETS_MAX_DEFAULT, TraceWriter
from uxk.bridges.trace.table import traced_table
from uxk.core.codec import up_codec
from uxk.core.kmsg import LEVELS
from uxk.errors import UsageError, errno_name
from uxk.kernel.agent import KernelAgent
from uxk.kernel.kernel import Kernel
from uxk.kernel.ports import Port
from uxk.kernel.requests import RequestTable
from uxk.limits import ENTRY_MAX_COUNT
from uxk.uapi.entries import Completion, Event, Hint, Op, Ping, Request, Stop
from uxk.uapi.ml import Mode

KERNEL_PID: Final = 1
_PID_BASE: Final = 100
"""Process ids of instances: their number above it."""
_HINT_FLOW: Final = 1 << 63
_OPS: Final = {op.value: op.name for op in Op}
_MODE: Final = re.compile(r"(\S+) mode (\w+) -> (\w+) at epoch (\d+): (.*)", re.DOTALL)
_NEWS: Final = frozenset({"start", "gone", "crash", "fault", "action", "upgrade", "supervisor", "control", "finding"})
_FRAMES: Final = frozenset({"in", "replies", "up"})
_HOSTILE: Final = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)
_decode_in: Final = msgspec.msgpack.Decoder(list[Request | Event | Ping | Stop | Completion]).decode


class _Instance:
    """Tracks of one instance."""

    __slots__ = (
        "backlog",
        "backlog_seen",
        "free",
        "hints",
        "inflight",
        "inflight_seen",
        "lanes",
        "open",
        "process",
        "turns",
    )

    def __init__(self, writer: TraceWriter, number: int, name: str) -> None:
        self.process = writer.process(_PID_BASE + number, name)
        self.turns = writer.track(self.process, "queues", 2)
        self.hints = 0
        self.inflight = writer.counter(self.process, "in flight", "requests", 3)
        self.backlog = writer.counter(self.process, "backlog", "requests", 4)
        self.inflight_seen = self.backlog_seen = -1
        self.lanes: list[int] = []
        """Tracks of requests: two that overlap need two."""
        self.free: list[int] = []
        self.open: dict[int, int] = {}
        """Lane of each request at work, by its command id."""


class TraceRecorder:
    """Follows one kernel from before its first module is loaded.  A context manager around the kernel's.

    UsageError: ENOENT and others for the file, EBUSY if modules are loaded already, and at the end for a trace that
    could not be written.
    """

    def __init__(self, path: str | Path, kernel: Kernel, *, packets_max: int = PACKETS_MAX_DEFAULT) -> None:
        if kernel.agents:
            raise UsageError(f"trace {path}: modules are loaded already", errno=errno.EBUSY)
        self.path = Path(path)
        self.problem: OSError | None = None
        self._kernel = kernel
        try:
            self._file: IO[bytes] = self.path.open("wb")
        except OSError as exc:
            raise UsageError(f"trace {path}: {exc.strerror}", errno=exc.errno) from None
        try:
            self._writer = writer = TraceWriter(self._file, packets_max)
        except UsageError:
            self._file.close()
            raise
        process = self._process = writer.process(KERNEL_PID, "kernel")
        self._kmsg, self._news = writer.track(process, "kmsg", 1), writer.track(process, "events", 2)
        self._hints, self._modes = writer.track(process, "hints", 3), writer.track(process, "modes", 4)
        self._instances: dict[int, _Instance] = {}
        self._clients: dict[str, int] = {}
        self._mode_counters: dict[str, int] = {}
        self._now_ns = 0
        self._attach()

    @property
    def events(self) -> int:
        """Events written."""
        return self._writer.written

    def _attach(self) -> None:
        machine, kernel = self._kernel.machine, self._kernel
        earlier = machine.hash.sink
        on_event = self._guarded(self._on_event)

        def sink(now_ns: int, kind: str, instance: int, data: bytes) -> None:
            if earlier is not None:
                earlier(now_ns, kind, instance, data)
            on_event(now_ns, kind, instance, data)

        machine.hash.sink = sink
        machine.request_table = traced_table(self)
        reader = kernel.kmsg.reader("oldest")
        kernel.kmsg.subscribe(self._guarded(lambda: self._read(reader)))
        heard, on_hint = kernel.models.on_hint, self._guarded(self._on_hint)

        def hint(agent: KernelAgent, entry: Hint, reason: str) -> None:
            if heard is not None:
                heard(agent, entry, reason)
            on_hint(agent, entry, reason)

        kernel.models.on_hint = hint

    def _guarded(self, record: Callable[..., None]) -> Callable[..., None]:
        """A file that fails ends the recording, not the run."""

        def guarded(*args: object) -> None:
            if self.problem is None and not self._file.closed:
                try:
                    record(*args)
                except OSError as exc:
                    self.problem = exc

        return guarded

    # --- what the kernel does ---

    def _on_event(self, now_ns: int, kind: str, instance: int, data: bytes) -> None:
        self._now_ns = now_ns
        if kind in _FRAMES:
            self._frame(now_ns, kind, instance, data)
            return
        text = data.decode(errors="replace")
        if kind in ("crash", "start", "gone") and instance in self._instances:
            self._end_all(self._instances[instance], now_ns, kind)
        if kind == "mode":
            self._mode(now_ns, text)
        elif kind == "model":
            self._writer.instant(self._modes, now_ns, text)
        elif kind in _NEWS:
            agent = self._agent(instance)
            shown = f"{kind} {agent.name}" if agent is not None else kind
            self._writer.instant(self._news, now_ns, shown, data=text if kind != "control" else f"{len(data)} bytes")

    def _mode(self, now_ns: int, text: str) -> None:
        found = _MODE.fullmatch(text)
        if found is None:
            return
        model, old, new, epoch, why = found.groups()
        self._writer.instant(self._modes, now_ns, f"{model}: {old} -> {new}", epoch=int(epoch), why=why)
        if model not in self._mode_counters:
            self._mode_counters[model] = self._writer.counter(self._process, f"mode of {model}", rank=5)
        self._writer.count(self._mode_counters[model], now_ns, Mode[new].value)

    def _read(self, reader: object) -> None:
        for record in reader:  # type: ignore[attr-defined]
            self._writer.instant(
                self._kmsg, record.time_ns, f"{record.source}: {record.text}" if record.source else record.text,
                level=LEVELS[record.level], seq=record.seq, **{f"field_{k}": v for k, v in record.fields.items()},
            )  # fmt: skip

    def _on_hint(self, agent: KernelAgent, entry: Hint, reason: str) -> None:
        self._writer.instant(
            self._hints, self._kernel.machine.now_ns, f"{entry.site}: {reason or 'taken'}",
            ends=(_HINT_FLOW | _flow(agent.id, entry.cid),), agent=agent.name, generation=entry.generation,
        )  # fmt: skip

    # --- queues ---

    def _frame(self, now_ns: int, kind: str, number: int, frame: bytes) -> None:
        instance, writer = self._instance(number), self._writer
        if kind == "in":
            try:
                entries = _decode_in(frame)
            except _HOSTILE:
                entries = []
            requests = [entry for entry in entries if isinstance(entry, Request)]
            answers = sum(isinstance(entry, Completion) for entry in entries)
            news = [entry.topic for entry in entries if isinstance(entry, Event)]
            writer.instant(
                instance.turns, now_ns, f"in {len(entries)}", bytes=len(frame), requests=len(requests),
                answers=answers, events=" ".join(news),
            )  # fmt: skip
            for request in requests:
                self._begin(instance, now_ns, number, request)
        elif kind == "up":
            ups, _ = up_codec.decode(frame, ENTRY_MAX_COUNT)
            names = [type(entry).__name__ for entry in ups]
            shown = " ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
            writer.instant(instance.turns, now_ns, f"up {len(ups)}", bytes=len(frame), entries=shown)
            for entry in ups:
                if isinstance(entry, Hint):
                    instance.hints = instance.hints or writer.track(instance.process, "hints", 5)
                    flow = _HINT_FLOW | _flow(number, entry.cid)
                    writer.instant(instance.hints, now_ns, entry.site, (flow,), bytes=len(entry.payload))
        else:
            writer.instant(instance.turns, now_ns, "replies", bytes=len(frame))

    def _begin(self, instance: _Instance, now_ns: int, number: int, request: Request) -> None:
        if request.cid in instance.open:  # given anew to the next incarnation
            self._end(instance, request.cid, now_ns, "again")
        if not instance.free:
            instance.lanes.append(self._writer.track(instance.process, "requests", 1))
            heappush(instance.free, len(instance.lanes) - 1)
        name = _OPS.get(request.opcode, f"op {request.opcode}")
        begun = self._writer.begin(
            instance.lanes[instance.free[0]], now_ns, name, (_flow(number, request.cid),), cid=request.cid,
            offset=request.offset, length=request.length,
        )  # fmt: skip
        if begun:
            instance.open[request.cid] = heappop(instance.free)

    def _end(self, instance: _Instance, cid: int, now_ns: int, how: str) -> None:
        lane = instance.open.pop(cid, None)
        if lane is not None:
            self._writer.end(instance.lanes[lane], now_ns, ended=how)
            heappush(instance.free, lane)

    def _end_all(self, instance: _Instance, now_ns: int, how: str) -> None:
        for cid in list(instance.open):
            self._end(instance, cid, now_ns, how)

    # --- requests: called by the traced table ---

    def submitted(self, table: RequestTable, port: Port, requests: Sequence[Request]) -> None:
        """Arrows begin on the client's track."""
        self._guarded(self._submitted)(table, port, requests)

    def refused(self, port: Port, count: int, why: str) -> None:
        """Requests that did not get in."""
        now_ns = self._kernel.machine.now_ns
        self._guarded(lambda: self._writer.instant(self._client(port), now_ns, f"refused {count}", why=why))()

    def completed(self, table: RequestTable, port: Port, completions: list[Completion]) -> None:
        """Arrows end on the client's track."""
        self._guarded(self._completed)(table, port, completions)

    def _submitted(self, table: RequestTable, port: Port, requests: Sequence[Request]) -> None:
        now_ns, number = self._kernel.machine.now_ns, port.target.id
        flows = [_flow(number, request.cid) for request in requests]
        self._writer.instant(self._client(port), now_ns, f"submit {len(flows)}", flows, to=port.target.name)
        self._depths(table, number, now_ns)

    def _completed(self, table: RequestTable, port: Port, completions: list[Completion]) -> None:
        now_ns, number = self._kernel.machine.now_ns, port.target.id
        instance = self._instance(number)
        for each in completions:
            self._end(instance, each.cid, now_ns, errno_name(each.status) if each.status else "done")
        failed = sum(1 for each in completions if each.status)
        flows = [_flow(number, each.cid) for each in completions]
        self._writer.instant(
            self._client(port), now_ns, f"complete {len(flows)}", ends=flows, by=port.target.name, failed=failed
        )
        self._depths(table, number, now_ns)

    def _depths(self, table: RequestTable, number: int, now_ns: int) -> None:
        instance, inflight, backlog = self._instance(number), len(table.inflight), len(table.backlog)
        if inflight != instance.inflight_seen:
            instance.inflight_seen = inflight
            self._writer.count(instance.inflight, now_ns, inflight)
        if backlog != instance.backlog_seen:
            instance.backlog_seen = backlog
            self._writer.count(instance.backlog, now_ns, backlog)

    # --- tracks ---

    def _instance(self, number: int) -> _Instance:
        found = self._instances.get(number)
        if found is None:
            agent = self._agent(number)
            name = f"instance {number}" if agent is None else agent.name
            found = self._instances[number] = _Instance(self._writer, number, name)
        return found

    def _agent(self, number: int) -> KernelAgent | None:
        return next((agent for agent in self._kernel.agents.values() if agent.id == number), None)

    def _client(self, port: Port) -> int:
        name = f"client {port.client or f'{port.id} of {port.target.name}'}"
        if name not in self._clients:
            self._clients[name] = self._writer.track(self._process, name, 6)
        return self._clients[name]

    # --- the end ---

    def __enter__(self) -> TraceRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.close()
        except UsageError:
            if exc is None:
                raise

    def close(self) -> None:
        """Ends what is open, and the file.  UsageError if any of the trace could not be written."""
        if not self._file.closed:
            try:
                if self.problem is None:
                    self._finish()
                self._file.close()
            except OSError as exc:
                self.problem = self.problem or exc
        if self.problem is not None:
            raise UsageError(f"trace {self.path}: {self.problem.strerror}", errno=self.problem.errno)

    def _finish(self) -> None:
        now_ns = max(self._now_ns, self._kernel.machine.now_ns)
        for instance in self._instances.values():
            self._end_all(instance, now_ns, "end of trace")
        if self._writer.left_out:
            self._writer.tell(self._news, now_ns, f"truncated: {self._writer.left_out} more events left out")
        self._writer.flush()


def open_trace(path: str | Path, kernel: Kernel) -> TraceRecorder:
    """A trace of a kernel that is about to run, for ``with``."""
    return TraceRecorder(path, kernel)


def _flow(instance: int, cid: int) -> int:
    """One arrow for each request."""
    return (instance & 0x3F_FFFF) << 40 | cid & 0xFF_FFFF_FFFF
