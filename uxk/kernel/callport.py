"""A port whose answers are awaited: the bridge between callbacks and ``await``."""

from __future__ import annotations

from typing import Final

import msgspec

from uxk.errors import RequestError, UsageError, errno_name
from uxk.kernel.agent import KernelAgent
from uxk.kernel.dispatcher import Dispatcher, Goal
from uxk.uapi.entries import U31, Completion, Request, Submit

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Submit).decode


def checked_copy(request: Request, where: str) -> Request:
    """A copy of a user's request, checked as an extension's would be.  UsageError for one that cannot be."""
    entry = Submit(
        0, request.device, request.opcode, request.payload, request.offset, request.length, request.region, False,
        request.buffer, request.flags,
    )  # fmt: skip
    try:
        entry = _decode(_encode(entry))
        device = msgspec.convert(entry.cap, U31)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError) as exc:
        raise UsageError(f"{where}: {str(request)[:200]}: {exc}") from None
    return Request(
        0, entry.opcode, entry.payload, entry.offset, entry.length, entry.region, 0, device, entry.buffer, entry.flags
    )  # fmt: skip


class CallPort:
    """Submits one request at a time and waits for its answer in virtual time."""

    __slots__ = ("_agent", "_dispatcher", "_waiting", "port")

    def __init__(self, dispatcher: Dispatcher, agent: KernelAgent, client: str) -> None:
        self._agent = agent
        self._dispatcher = dispatcher
        self._waiting: dict[int, tuple[Goal, list[Completion]]] = {}
        self.port = agent.open_port(client, self._on_completions, tagged=bool(client))

    async def call(self, request: Request) -> Completion:
        """Submits and waits; a request always ends, by its deadline at the latest."""
        request = checked_copy(request, self._agent.name)
        self.port.submit(request)
        goal = self._dispatcher.goal(f"request {request.cid} to {self._agent.name}")
        answer: list[Completion] = []
        self._waiting[request.cid] = (goal, answer)
        try:
            await self._dispatcher.wait(goal)
        finally:
            self._waiting.pop(request.cid, None)
        return answer[0]

    async def checked(self, request: Request) -> Completion:
        """As :meth:`call`; raises :class:`RequestError` with the answer's errno."""
        completion = await self.call(request)
        if completion.status:
            text = f"{self._agent.name}: opcode {request.opcode}: {errno_name(completion.status)}"
            raise RequestError(text, errno=completion.status)
        return completion

    def close(self) -> None:
        """Closes the port; answers that still come are dropped."""
        self.port.close()

    def _on_completions(self, completions: list[Completion]) -> None:
        for completion in completions:
            waiting = self._waiting.get(completion.cid)
            if waiting is not None:
                waiting[1].append(completion)
                waiting[0].reach()
