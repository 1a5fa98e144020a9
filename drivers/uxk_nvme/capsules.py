"""Queues whose commands come as requests and whose completions go as their answers: capsules, and waits for events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import uxk
from uxk_nvme.controller import Controller
from uxk_nvme.queues import Done, Fast, Item, ReplyQueue
from uxk_nvme.spec import PSDT_SGL, SQE_DWORDS, SQE_FAST
from uxk_nvme.watch import Watch

_HEAD: Final = ~0xFFFFFC00 & 0xFFFFFFFFFFFFFFFF
"""Opcode, fuse and NSID of a command's first two dwords."""


class CapsuleQueue:
    """One queue of one client's controller: commands come as requests, completions go as their answers."""

    __slots__ = (
        "_answer", "_batch", "_free", "_last", "batch", "bounces", "controller", "peers", "qid", "requests", "watch",
    )  # fmt: skip

    def __init__(
        self, controller: Controller, qid: int, peers: Mapping[int, ReplyQueue],
        answer: Callable[[CapsuleQueue, uxk.Request, int, Done], object],
    ) -> None:  # fmt: skip
        self.controller = controller
        self.qid = qid
        self.peers: Mapping[int, ReplyQueue] | None = peers
        """The same client's queues: its Abort commands name no others."""
        self.watch = Watch()
        self._answer = answer
        self._free: list[int] = []
        self._last = 0
        self.requests: dict[int, uxk.Request] = {}
        """Commands under way by tag: hosts may use identifiers twice."""
        self.bounces: dict[int, int] = {}
        """Their bounce buffers."""
        self.batch: list[Fast] = []
        self._batch: list[uxk.Request] = []

    def add(self, request: uxk.Request, address: int, length: int, place: int) -> None:
        """Puts a command into the batch, with its data where ``address`` says."""
        tag = self._free.pop() if self._free else self._last
        if tag == self._last:
            self._last += 1
        self.requests[tag] = request
        if place >= 0:
            self.bounces[tag] = place
        head, _, _, slba, control = SQE_FAST.unpack_from(request.payload)
        self.batch.append((head & _HEAD | PSDT_SGL << 8 | tag << 16, address, length, slba, control))
        self._batch.append(request)

    def run(self, now_ns: int) -> None:
        """Executes the batch."""
        entries, self.batch = self.batch, []
        if self.qid:
            self.controller.run_io(self, entries, now_ns)
        else:
            self.controller.run_admin(self, entries, now_ns)
        self._batch.clear()

    def dwords(self, index: int) -> tuple[int, ...]:
        """All 16 dwords, as the host wrote them."""
        return SQE_DWORDS.unpack_from(self._batch[index].payload)

    def post(self, items: Sequence[Item]) -> None:
        """Answers requests."""
        for item in items:
            done = Done(item, 0) if isinstance(item, int) else item
            request, place = self.take(done.tag)
            self._answer(self, request, place, done)

    def take(self, tag: int) -> tuple[uxk.Request, int]:
        """A command is over: its request, and its bounce buffer or -1."""
        self._free.append(tag)
        return self.requests.pop(tag), self.bounces.pop(tag, -1)

    def command_id(self, tag: int) -> int:
        """The identifier that the host gave."""
        return int.from_bytes(self.requests[tag].payload[2:4], "little")

    def tag_of(self, command_id: int) -> int | None:
        """The oldest command with that identifier."""
        return next((tag for tag in self.requests if self.command_id(tag) == command_id), None)


class EventQueue:
    """Requests that wait for an event of a controller (WAIT_EVENT)."""

    __slots__ = ("_answer", "_last", "peers", "qid", "requests")

    def __init__(self, answer: Callable[[uxk.Request, Done], object]) -> None:
        self.qid = 0
        self.peers: Mapping[int, ReplyQueue] | None = None
        self._answer = answer
        self._last = 0
        self.requests: dict[int, uxk.Request] = {}

    def add(self, request: uxk.Request) -> int:
        """A tag for a request."""
        self._last += 1
        self.requests[self._last] = request
        return self._last

    def post(self, items: Sequence[Item]) -> None:
        """Answers requests."""
        for item in items:
            done = Done(item, 0) if isinstance(item, int) else item
            self._answer(self.requests.pop(done.tag), done)

    def dwords(self, index: int) -> tuple[int, ...]:
        """Nothing: these are no commands."""
        return (0,) * 16

    def command_id(self, tag: int) -> int:
        """None."""
        return 0xFFFF

    def tag_of(self, command_id: int) -> int | None:
        """None."""
        return None
