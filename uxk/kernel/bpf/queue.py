"""Programs on a device's queue: each request passes through them, in the order in which they were attached (R31).

A program sees the request as nine 64-bit fields (:data:`FIELDS`) and says: pass it on, answer it here, or give it to
another device.  The first that does not pass it decides.  One that faults is taken off, and requests go on without it.

They stand where requests enter the driver's queue, behind what merges or reorders them, so that no client's port goes
past them, whenever it was opened.  On the charged clock a request waits for the programs that look at it, one request
after the other: nothing overtakes.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from uxk.bpf.proto import body
from uxk.core.kobject import brief
from uxk.core.suggest import did_you_mean
from uxk.errors import UsageError, UxkError
from uxk.kernel.bpf.loaded import Loaded
from uxk.kernel.ports import Port
from uxk.uapi.entries import Completion, Request

if TYPE_CHECKING:
    from uxk.kernel.agent import KernelAgent
    from uxk.kernel.bpf.registry import Bpf
    from uxk.kernel.devices import Change, Device, DeviceRegistry
    from uxk.kernel.requests import RequestTable

PREFIX: Final = "queue/"
TARGETS_MAX: Final = 8
PASS, ANSWER, REDIRECT = range(3)
"""Verdicts; ``REDIRECT`` + n names the target n."""
FIELDS: Final = ("opcode", "flags", "device", "port", "offset", "length", "payload_bytes", "status", "result")
"""What a program sees, 8 bytes each; of the last two, which are 0 at first, it makes the answer."""
ERRNO_MAX: Final = 4095
_CONTEXT: Final = Struct("<9q")
_ANSWER: Final = Struct("<2q")
_ANSWER_AT: Final = 8 * FIELDS.index("status")
SPEC: Final = body(_CONTEXT.size)._replace(verdict=(PASS, REDIRECT + TARGETS_MAX - 1))


class Judged(NamedTuple):
    """What programs say of a request."""

    verdict: int
    status: int = 0
    result: int = 0
    cost_ns: int = 0


class QueuePoint:
    """The attach point ``queue/DEVICE``."""

    spec, commands, exclusive, gone = SPEC, False, False, False

    def __init__(self, queues: Queues, device: Device) -> None:
        self._queues = queues
        self.name = f"{PREFIX}{device.name}"
        self.device = device
        self.programs: list[Loaded] = []
        self.targets: list[str] = []
        self.passed = self.answered = self.redirected = 0
        self._links: dict[str, Link] = {}

    def attach(self, program: Loaded, instead: Loaded | None = None) -> None:
        """Behind those that are there, or in the place of one of them."""
        place = len(self.programs) if instead is None else self.programs.index(instead)
        self.programs[place : place + (instead is not None)] = [program]
        program.on_fault = self._fault
        self._queues.hook(self.device.agent)

    def detach(self, program: Loaded, why: str) -> None:
        """The others stay; without any, requests go straight to the driver.  What is elsewhere is answered still."""
        if program in self.programs:
            self.programs.remove(program)
        if not self.programs:
            for link in self._links.values():
                link.close()
            self._links.clear()
            self._queues.hook(self.device.agent)

    def _fault(self, program: Loaded, why: str) -> None:
        if program in self.programs:
            self._queues.bpf.detach(program, self.name, f"fault: {why}")

    def judge(self, request: Request, port: int) -> Judged:
        """What the programs say of a request, and what it costs that they look at it."""
        context = bytearray(_CONTEXT.pack(
            request.opcode, request.flags, request.device, port, request.offset, request.length,
            len(request.payload), 0, 0,
        ))  # fmt: skip
        cost_ns = 0
        for program in tuple(self.programs):
            cost_ns += program.cost_ns
            verdict = program.run(context, port)
            if verdict:
                status, result = _ANSWER.unpack_from(context, _ANSWER_AT)
                return Judged(verdict, status, result, cost_ns)
        return Judged(PASS, cost_ns=cost_ns)

    def link(self, name: str) -> Link:
        """The way to the device of that name; ENODEV."""
        device, known = self._queues.devices.get(name), self._links.get(name)
        if known is None or known.device is not device:
            if known is not None:
                known.close()
            known = self._links[name] = Link(self._queues.links, self.device.agent.requests, device)
        return known


class Link:
    """The way of requests from one device's queue into another's, and of the answers back."""

    def __init__(self, known: set[tuple[int, int]], source: RequestTable, device: Device) -> None:
        self.device = device
        self._source, self._known = source, known
        self._cids: dict[int, int] = {}
        """Command ids at the source, by those at the device."""
        self.port = device.agent.open_port("", self._answered)  # without a name: keeps no driver from being unloaded
        self._key = (device.agent.id, self.port.id)
        known.add(self._key)

    def submit(self, request: Request) -> None:
        """Gives a copy of a request to the device.  Raises as :meth:`~uxk.kernel.ports.Port.submit`."""
        copy = msgspec.structs.replace(request, device=self.device.number)
        self.port.submit(copy)
        self._cids[copy.cid] = request.cid

    def _answered(self, answers: list[Completion]) -> None:
        for answer in answers:
            answer.cid = self._cids.pop(answer.cid)
        self._source.settle(answers)

    def close(self) -> None:
        """Nothing more goes there."""
        self.port.close(self._answered)
        self._known.discard(self._key)


class Queues:
    """Makes the queues of devices; ``kernel.queues`` is the one of a kernel."""

    def __init__(self, bpf: Bpf, devices: DeviceRegistry) -> None:
        self.bpf, self.devices = bpf, devices
        self.links: set[tuple[int, int]] = set()
        """Instance and port of what leads from one queue into another: nothing is redirected twice."""
        self._busy_until_ns: dict[int, int] = {}
        """By instance: when its programs have looked at what there is to look at."""
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
            raise UsageError(f"bpf: {brief(name)}: no such device{hint}", errno=errno.ENODEV)
        return QueuePoint(self, device)

    def _changed(self, device: Device, change: Change) -> None:
        if change == "remove":
            self.bpf.remove_point(f"{PREFIX}{device.name}", f"device {device.name} is gone")

    # --- requests ---

    def hook(self, agent: KernelAgent) -> None:
        """Has programs look at an instance's requests, as far as there are any."""
        points = {
            each.device.number: each for each in self.bpf.points.values()
            if isinstance(each, QueuePoint) and each.device.agent is agent and each.programs
        }  # fmt: skip
        agent.requests.judge = partial(self._look, agent, points) if points else None
        if not points:
            self._busy_until_ns.pop(agent.id, None)

    def _look(self, agent: KernelAgent, points: dict[int, QueuePoint], port: Port, requests: Sequence[Request]) -> None:
        """Each request before the programs of its device; then, when their time is over, each on its way."""
        passed, answers, elsewhere, cost_ns = list[int](), list[Completion](), list[tuple[Request, Link]](), 0
        for request in requests:
            point = points.get(request.device)
            judged = Judged(PASS) if point is None else point.judge(request, port.id)
            cost_ns += judged.cost_ns
            if point is None or judged.verdict == PASS:
                passed.append(request.cid)
                if point is not None:
                    point.passed += 1
            elif judged.verdict == ANSWER:
                point.answered += 1
                answers.append(Completion(request.cid, min(max(judged.status, 0), ERRNO_MAX), judged.result))
            else:
                try:
                    elsewhere.append((request, self._link(agent, point, judged.verdict - REDIRECT, request, port)))
                    point.redirected += 1
                except UxkError as exc:
                    answers.append(Completion(request.cid, exc.errno or errno.EIO))
        machine, table = self.bpf.machine, agent.requests
        due_ns = machine.now_ns
        if machine.clock == "charged":
            due_ns = max(due_ns, self._busy_until_ns.get(agent.id, 0)) + cost_ns
            self._busy_until_ns[agent.id] = due_ns
        if answers:
            machine.call_at(due_ns, table.settle, answers)
        if due_ns == machine.now_ns:
            self._send_on(table, (passed, elsewhere))
        else:
            machine.call_at(due_ns, partial(self._send_on, table), (passed, elsewhere))

    def _link(self, agent: KernelAgent, point: QueuePoint, target: int, request: Request, port: Port) -> Link:
        if (agent.id, port.id) in self.links:
            raise UsageError("queue: redirected once already", errno=errno.ELOOP)
        if request.region:  # memory is lent to one driver
            raise UsageError("queue: refers to memory", errno=errno.EXDEV)
        if target >= len(point.targets):
            raise UsageError("queue: no such target", errno=errno.ENODEV)
        return point.link(point.targets[target])

    def _send_on(self, table: RequestTable, item: tuple[list[int], list[tuple[Request, Link]]]) -> None:
        """To the driver, and to others; no room there is an answer."""
        passed, elsewhere = item
        if passed:
            table.admit(passed)
        refused = list[Completion]()
        for request, link in elsewhere:
            try:
                link.submit(request)
            except UxkError as exc:
                refused.append(Completion(request.cid, exc.errno or errno.EIO))
        if refused:
            self.bpf.machine.call_at(self.bpf.machine.now_ns, table.settle, refused)
