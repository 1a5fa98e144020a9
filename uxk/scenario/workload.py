"""Workloads at work: requests on a port, answers by callback, time from the kernel's heap; no Trio task per I/O."""

from __future__ import annotations

import errno
from collections import deque
from typing import Any, Final, NamedTuple

from uxk.core.histogram import Histogram
from uxk.core.lifecycle import ModuleState
from uxk.errors import RequestError, RingFull, errno_name
from uxk.kernel.agent import KernelAgent
from uxk.kernel.devices import Device
from uxk.kernel.kernel import Kernel
from uxk.scenario.choices import gaps_ns, operations
from uxk.scenario.model import AnyWorkload, ClosedLoop, OpenLoop
from uxk.scenario.verify import Verifier
from uxk.uapi.entries import Completion, Op, Request

RETRY_NS: Final = 1_000_000
"""A closed loop whose device is down or full asks again after this time."""
MISMATCHES_TOLD: Final = 8
"""Mismatches that are described in kmsg; the others are only counted."""


class Operation(NamedTuple):
    """One request as it was chosen."""

    read: bool
    block: int
    version: int
    """Of the data that a verifying write writes; else 0."""
    began_ns: int


class Generator:
    """One workload on one device."""

    def __init__(self, kernel: Kernel, spec: AnyWorkload, device: Device) -> None:
        self._machine = kernel.machine
        self.spec = spec
        self._device = device
        rng = self._machine.streams.stream(f"workload/{spec.name}")
        self._operations = operations(spec, rng)
        self._gaps = gaps_ns(spec, rng) if isinstance(spec, OpenLoop) else None
        self._depth = spec.depth if isinstance(spec, ClosedLoop) else 1
        self._think_ns = spec.think_ns if isinstance(spec, ClosedLoop) else 0
        self._data = bytes(spec.size_bytes)
        self._verifier = Verifier(spec.blocks, spec.size_bytes) if spec.verify else None
        self._read_back: deque[int] | None = None
        self._ready: deque[Operation] = deque()
        self._retry_armed = False
        self._ends_ns: int | None = None
        self._spent = 0
        """Operations chosen of ``count``; reading back comes on top."""
        self.stopped = False
        self.gave_up = False
        """A closed loop stopped because its device is gone for good."""
        self.first_mismatch = ""
        self.outstanding: dict[int, Operation] = {}
        """Accepted and not yet answered, by command id."""
        self.issued = self.accepted = self.completed = self.failed = self.refused = self.retries = 0
        self.reads = self.writes = self.verified = self.mismatches = self.unexpected = 0
        self.errors: dict[str, int] = {}
        self.latency = Histogram()
        self.port = device.gate.open_port(f"workload/{spec.name}", self._on_completions)

    @property
    def agent(self) -> KernelAgent:
        """The instance that serves its device."""
        return self._device.agent

    def start(self) -> None:
        """Begins at ``start_ns`` from now."""
        begins_ns = self._machine.now_ns + self.spec.start_ns
        if self.spec.duration_ns:
            self._ends_ns = begins_ns + self.spec.duration_ns
        self._machine.heap.call_at(begins_ns, self._begin)

    def stop(self) -> None:
        """Sends nothing more; answers still come."""
        self.stopped = True
        self._ready.clear()

    def _begin(self, _: object) -> None:
        if self._gaps is None:
            self._choose(self._depth)
            self._pump()
        else:
            self._machine.call_later(next(self._gaps), self._arrive)

    # --- choosing ---

    def _may_issue(self) -> bool:
        count, ends_ns = self.spec.count, self._ends_ns
        return not (
            self.stopped
            or (count and self._spent >= count)
            or (ends_ns is not None and self._machine.now_ns >= ends_ns)
        )

    def _choose(self, wanted: int) -> None:
        """Readies up to ``wanted`` operations."""
        verifier, now_ns = self._verifier, self._machine.now_ns
        for _ in range(wanted):
            if not self._may_issue():
                self._choose_read_back()
                continue
            read, block = next(self._operations)
            self._spent += 1
            self.issued += 1
            version = 0
            if verifier is not None:
                free = verifier.take(block)
                if free is None:
                    self.refused += 1
                    continue
                block, version = free, 0 if read else verifier.next_version()
            self._ready.append(Operation(read, block, version, now_ns))

    def _choose_read_back(self) -> None:
        """After the last operation of a count: reads everything that was written, once."""
        verifier = self._verifier
        if verifier is None or self.stopped or not self.spec.count or self._spent < self.spec.count:
            return
        if self._read_back is None:
            if self.outstanding or self._ready:
                return
            self._read_back = deque(verifier.written())
            self._choose(self._depth - 1)
        while self._read_back:
            block = self._read_back.popleft()
            if verifier.take(block) is not None:
                self.issued += 1
                self._ready.append(Operation(True, block, 0, self._machine.now_ns))
            return

    # --- sending ---

    def _request(self, operation: Operation) -> Request:
        size_bytes, number = self.spec.size_bytes, self._device.number
        offset = operation.block * size_bytes
        if operation.read:
            return Request(0, Op.READ, b"", offset, size_bytes, 0, 0, number)
        verifier = self._verifier
        data = self._data if verifier is None else verifier.pattern(operation.block, operation.version)
        return Request(0, Op.WRITE, data, offset, size_bytes, 0, 0, number)

    def _pump(self, _: object = None) -> None:
        """Sends what is ready, together if it fits; what does not fit waits for answers, or for a while."""
        ready = self._ready
        while ready:
            batch = list(ready)
            if not self._send(batch):
                batch = batch[:1]
                if len(ready) == 1 or not self._send(batch):
                    self._retry()
                    return
            for _operation in batch:
                ready.popleft()

    def _send(self, batch: list[Operation]) -> bool:
        requests = [self._request(operation) for operation in batch]
        try:
            self.port.submit_batch(requests)
        except (RingFull, RequestError):
            return False
        for request, operation in zip(requests, batch, strict=True):
            self.outstanding[request.cid] = operation
            if operation.read:
                self.reads += 1
            else:
                self.writes += 1
        self.accepted += len(batch)
        return True

    def _retry(self) -> None:
        if self._device.agent.state is ModuleState.GONE:
            self.refused += len(self._ready)
            self.gave_up = True
            self.stop()
        elif not self._retry_armed:
            self._retry_armed = True
            self.retries += 1
            self._machine.call_later(RETRY_NS, self._again)

    def _again(self, _: object) -> None:
        self._retry_armed = False
        self._pump()

    def _arrive(self, _: object) -> None:
        """An open loop's arrival: sent at once or refused."""
        if not self._may_issue():
            if not self.outstanding:
                self._choose_read_back()
                self._pump()
            return
        self._choose(1)
        if self._ready and not self._send([self._ready[0]]):
            self._drop(self._ready[0])
        self._ready.clear()
        assert self._gaps is not None
        self._machine.call_later(next(self._gaps), self._arrive)

    def _drop(self, operation: Operation) -> None:
        self.refused += 1
        if self._verifier is not None:
            self._verifier.give_back(operation.block)

    # --- answers ---

    def _on_completions(self, completions: list[Completion]) -> None:
        now_ns = self._machine.now_ns
        answered = 0
        for completion in completions:
            operation = self.outstanding.pop(completion.cid, None)
            if operation is None:
                self.unexpected += 1
                continue
            answered += 1
            self.latency.record(now_ns - operation.began_ns)
            if completion.status:
                self.failed += 1
                name = errno_name(completion.status)
                self.errors[name] = self.errors.get(name, 0) + 1
            if self._verifier is not None:
                self._verify(self._verifier, operation, completion)
        self.completed += answered
        if self._gaps is not None:
            self._after_arrivals()
        elif self._think_ns:
            self._machine.call_later(self._think_ns, self._thought, answered)
        else:
            self._thought(answered)

    def _thought(self, answered: int) -> None:
        self._choose(answered)
        self._pump()

    def _after_arrivals(self) -> None:
        """An open loop reads back like a closed one of depth 1."""
        if not self._may_issue() and not self.outstanding:
            self._choose_read_back()
            self._pump()

    def _verify(self, verifier: Verifier, operation: Operation, completion: Completion) -> None:
        verifier.give_back(operation.block)
        if not operation.read:
            verifier.wrote(operation.block, operation.version, completion.status == 0)
            return
        wrong = verifier.judge(operation.block, completion.payload) if completion.status == 0 else None
        if wrong == "":
            self.verified += 1
        elif wrong:
            self.mismatches += 1
            self.first_mismatch = self.first_mismatch or f"block {operation.block}: {wrong}"
            if self.mismatches <= MISMATCHES_TOLD:
                text = f"workload {self.spec.name}: block {operation.block}: {wrong}"
                self._machine.log("err", self._device.agent.name, text, errno=errno.EILSEQ)

    def note(self) -> str:
        """What a report should say beside the figures, ``"EIO x4; stopped after 5 of 20"``; else ``""``."""
        parts = [", ".join(f"{name} x{times}" for name, times in sorted(self.errors.items()))]
        if self.gave_up:
            count = self.spec.count
            whole = f" of {count}" if count else ""
            reading = count and self.accepted >= count
            parts.append("stopped while reading back" if reading else f"stopped after {self.accepted}{whole}")
        return "; ".join(filter(None, parts))

    def results(self) -> dict[str, Any]:
        """Figures for ``workloads.NAME``."""
        latency = self.latency.summary()
        return {
            "device": self._device.name, "issued": self.issued, "accepted": self.accepted,
            "completed": self.completed, "failed": self.failed, "refused": self.refused, "retries": self.retries,
            "inflight": len(self.outstanding), "reads": self.reads, "writes": self.writes,
            "verified": self.verified, "mismatches": self.mismatches, "errors": dict(sorted(self.errors.items())),
            "p50_ns": latency.p50_ns, "p99_ns": latency.p99_ns, "p999_ns": latency.p999_ns,
            "latency": latency._asdict(),
        }  # fmt: skip
