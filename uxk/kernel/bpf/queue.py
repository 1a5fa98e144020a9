"""Programs on a device's queue: each request passes through them, in the order in which they were attached (R31).

A program sees the request as nine 64-bit fields (:data:`FIELDS`) and says: pass it on, answer it here, or give it to
another device.  The first that does not pass it decides.  One that faults is taken off, and requests go on without it.
Ports opened before the first program was attached do not go through the queue.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Final

import msgspec

from uxk.bpf.proto import body
from uxk.core.suggest import did_you_mean
from uxk.errors import UsageError, UxkError
from uxk.kernel.bpf.loaded import Loaded
from uxk.kernel.ports import Gate, GatePort, OnCompletions
from uxk.uapi.entries import Completion, Request

if TYPE_CHECKING:
    from uxk.kernel.bpf.registry import Bpf
    from uxk.kernel.devices import Change, Device, DeviceRegistry

PREFIX: Final = "queue/"
TARGETS_MAX: Final = 8
PASS, ANSWER, REDIRECT = range(3)
"""Verdicts; ``REDIRECT`` + n names the target n."""
FIELDS: Final = ("opcode", "flags", "device", "port", "offset", "length", "payload_bytes", "status", "result")
"""What a program sees, 8 bytes each; of the last two, which are 0 at first, it makes the answer."""
_CONTEXT: Final = Struct("<9q")
_ANSWER: Final = Struct("<2q")
_ANSWER_AT: Final = 8 * FIELDS.index("status")
SPEC: Final = body(_CONTEXT.size)._replace(verdict=(PASS, REDIRECT + TARGETS_MAX - 1))


class QueuePoint:
    """The attach point ``queue/DEVICE``, and the gate that its clients open their ports at."""

    spec, commands, exclusive, gone = SPEC, False, False, False

    def __init__(self, queues: Queues, device: Device) -> None:
        self._queues = queues
        self.name = f"{PREFIX}{device.name}"
        self.device = device
        self.below: Gate = device.gate
        self.programs: list[Loaded] = []
        self.targets: list[str] = []
        self.passed = self.answered = self.redirected = 0

    # --- attach point ---

    def attach(self, program: Loaded) -> None:
        """Behind those that are there."""
        if not self.programs and self.device.gate is not self:
            self.below, self.device.gate = self.device.gate, self
        self.programs.append(program)
        program.on_fault = self._fault

    def detach(self, program: Loaded, why: str) -> None:
        """The others stay; without any, new ports go straight to what is below."""
        self.programs.remove(program)
        if not self.programs and self.device.gate is self:
            self.device.gate = self.below

    def _fault(self, program: Loaded, why: str) -> None:
        if program in self.programs:
            self._queues.bpf.detach(program, self.name, f"fault: {why}")

    # --- gate ---

    def open_port(self, client: str, on_completions: OnCompletions, *, tagged: bool = False) -> GatePort:
        """A connection whose requests go through the programs."""
        return QueuePort(self, self._queues, client, on_completions, tagged=tagged)

    def judge(self, request: Request, port: int) -> tuple[int, int, int, int]:
        """Verdict, status and result of a request, and what looking at it costs."""
        context = bytearray(_CONTEXT.pack(
            request.opcode, request.flags, request.device, port, request.offset, request.length,
            len(request.payload), 0, 0,
        ))  # fmt: skip
        cost_ns = 0
        for program in tuple(self.programs):
            cost_ns += program.cost_ns
            verdict = program.run(context, port)
            if verdict:
                return verdict, *_ANSWER.unpack_from(context, _ANSWER_AT), cost_ns
        return PASS, 0, 0, cost_ns


class QueuePort:
    """A client's connection to a queue; command ids are its own, whoever answers."""

    def __init__(
        self, point: QueuePoint, queues: Queues, client: str, on_completions: OnCompletions, *, tagged: bool
    ) -> None:
        self._point, self._queues, self._on_completions = point, queues, on_completions
        self._inner = point.below.open_port(
            client, lambda answers: self._answered(self._inner_cids, answers), tagged=tagged
        )
        self._inner_cids: dict[int, int] = {}
        """The client's command ids, by those of what is below."""
        self._others: dict[str, tuple[GatePort, dict[int, int], Device]] = {}
        self._last = 0

    @property
    def id(self) -> int:
        """Its number among the ports of what is below."""
        return self._inner.id

    @property
    def client(self) -> str:
        """Whose it is."""
        return self._inner.client

    def submit(self, request: Request) -> int:
        """As :meth:`submit_batch`; the command id."""
        self.submit_batch((request,))
        return request.cid

    def submit_batch(self, requests: Sequence[Request]) -> None:
        """Those that pass are taken together or not at all; for those that go elsewhere, no room is an answer."""
        point, passed, elsewhere, done = self._point, list[Request](), list[tuple[Request, str]](), list[Completion]()
        cost_ns = 0
        for number, request in enumerate(requests, self._last + 1):
            verdict, status, result, spent_ns = point.judge(request, self.id)
            cost_ns += spent_ns
            if verdict == PASS:
                passed.append(msgspec.structs.replace(request, cid=number))
            elif verdict == ANSWER:
                done.append(Completion(number, min(max(status, 0), 4095), result))
            elif verdict - REDIRECT < len(point.targets) and not request.region:
                elsewhere.append((msgspec.structs.replace(request, cid=number), point.targets[verdict - REDIRECT]))
            else:  # memory is lent to one driver
                done.append(Completion(number, errno.EXDEV if request.region else errno.ENODEV))
        if passed:
            self._pass(self._inner, self._inner_cids, passed)
        for number, request in enumerate(requests, self._last + 1):
            request.cid = number
        self._last += len(requests)
        point.passed += len(passed)
        point.answered += len(done)
        for request, name in elsewhere:
            number = request.cid
            try:
                port, cids, device = self._other(name)
                request.device = device.number
                self._pass(port, cids, [request])
                point.redirected += 1
            except UxkError as exc:
                done.append(Completion(number, exc.errno or errno.EIO))
        if done:
            machine = self._queues.bpf.machine
            delay_ns = cost_ns if machine.clock == "charged" else 0
            machine.call_at(machine.now_ns + delay_ns, self._deliver, done)

    def _pass(self, port: GatePort, cids: dict[int, int], requests: list[Request]) -> None:
        own = [request.cid for request in requests]
        port.submit_batch(requests)
        cids.update(zip((request.cid for request in requests), own, strict=True))

    def _other(self, name: str) -> tuple[GatePort, dict[int, int], Device]:
        device = self._queues.devices.get(name)
        known = self._others.get(name)
        if known is None or known[2] is not device:
            cids: dict[int, int] = {}
            gate = device.gate.below if isinstance(device.gate, QueuePoint) else device.gate
            port = gate.open_port(self.client, partial(self._answered, cids))
            known = self._others[name] = (port, cids, device)
        return known

    def _answered(self, cids: dict[int, int], answers: list[Completion]) -> None:
        for answer in answers:
            answer.cid = cids.pop(answer.cid)
        self._on_completions(answers)

    def _deliver(self, answers: list[Completion]) -> None:
        self._on_completions(answers)

    def waits_for(self) -> str:
        """What is below it says so."""
        return self._inner.waits_for()

    def close(self, on_late: OnCompletions | None = None) -> None:
        """Nothing more is submitted; what comes late goes to ``on_late`` under the client's own ids, or is dropped."""
        self._on_completions = on_late or (lambda answers: None)
        self._inner.close(lambda answers: self._answered(self._inner_cids, answers))
        for port, cids, _ in self._others.values():
            port.close(partial(self._answered, cids))


class Queues:
    """Makes the queues of devices; ``kernel.queues`` is the one of a kernel."""

    def __init__(self, bpf: Bpf, devices: DeviceRegistry) -> None:
        self.bpf, self.devices = bpf, devices
        bpf.find_point.append(self._find)
        devices.on_change.append(self._changed)

    def point(self, device: str) -> QueuePoint:
        """The queue of a device; ENODEV."""
        self.devices.get(device)
        found = self.bpf.point(f"{PREFIX}{device}")
        assert isinstance(found, QueuePoint)
        return found

    def redirect_to(self, device: str, targets: Sequence[str]) -> None:
        """Names the devices that programs on a queue may give requests to, in the order of their verdicts.

        EINVAL for more than :data:`TARGETS_MAX`, or the device itself; ENODEV.
        """
        if len(targets) > TARGETS_MAX:
            raise UsageError(f"queue of {device}: {len(targets)} targets, at most {TARGETS_MAX}")
        for name in targets:
            if name == device:
                raise UsageError(f"queue of {device}: cannot give requests to itself")
            self.devices.get(name)
        self.point(device).targets = list(targets)

    def _find(self, name: str) -> QueuePoint | None:
        if not name.startswith(PREFIX):
            return None
        device = self.devices.devices.get(name.removeprefix(PREFIX))
        if device is None:
            hint = did_you_mean(name.removeprefix(PREFIX), self.devices.devices)
            raise UsageError(f"bpf: {name}: no such device{hint}", errno=errno.ENODEV)
        return QueuePoint(self, device)

    def _changed(self, device: Device, change: Change) -> None:
        if change == "remove":
            self.bpf.remove_point(f"{PREFIX}{device.name}", f"device {device.name} is gone")
