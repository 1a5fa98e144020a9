"""What ``modprobe`` returns: a loaded instance as its user sees it.

Requests submitted here go to the instance itself, past whatever stands before its devices: a disk's queue, for one,
with its checks, its ``ro`` and its counters.  The way through is :meth:`uxk.Kernel.open_port`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from uxk.core.account import Account
from uxk.core.lifecycle import ModuleState
from uxk.core.ring import RingStatistics
from uxk.errors import UsageError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.callport import CallPort, checked_copy
from uxk.kernel.dispatcher import Dispatcher
from uxk.kernel.ports import Port
from uxk.limits import PAYLOAD_MAX_BYTES
from uxk.uapi.entries import Completion, Op, Request
from uxk.uapi.manifest import Manifest, Params


class Module:
    """A handle on a loaded instance."""

    def __init__(self, agent: KernelAgent, dispatcher: Dispatcher) -> None:
        self._agent = agent
        self._dispatcher = dispatcher
        self._port: CallPort | None = None

    def __repr__(self) -> str:
        return f"<Module {self.name} {self.state.name}>"

    @property
    def name(self) -> str:
        """The instance's name."""
        return self._agent.name

    @property
    def id(self) -> int:
        """The instance's number."""
        return self._agent.id

    @property
    def manifest(self) -> Manifest:
        """What it says of itself."""
        return self._agent.manifest

    @property
    def params(self) -> Params:
        """Its parameters as they are now."""
        return self._agent.params

    @property
    def state(self) -> ModuleState:
        """UNFORMED, COMING, LIVE, GOING, RESTARTING or GONE."""
        return self._agent.state

    @property
    def account(self) -> Account:
        """Everything it did and holds."""
        return self._agent.account

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of its devices."""
        return tuple(self._agent.devices)

    def statistics(self) -> dict[str, Any]:
        """The account and the rings as plain data."""
        agent = self._agent
        rings: dict[str, RingStatistics] = {
            "sq": agent.queues.sq.statistics(), "cq": agent.queues.cq.statistics(),
            "up": agent.queues.up.statistics(), "answers": agent.queues.answers.statistics(),
        }  # fmt: skip
        figures: dict[str, Any] = agent.account.to_dict()
        figures["rings"] = {name: ring._asdict() for name, ring in rings.items()}
        return figures

    def open_port(self, on_completions: Callable[[list[Completion]], None], client: str = "") -> Port:
        """A port for batches and callbacks, past any gate; with a ``client`` name it counts as a user until closed."""
        return self._agent.open_port(client, on_completions)

    async def submit(
        self, payload: bytes = b"", *, opcode: int = Op.CALL, offset: int = 0, length: int = 0, device: int = 0,
        region: int = 0, buffer: int = 0, flags: int = 0, check: bool = True,
    ) -> Completion:  # fmt: skip
        """Submits one request to the driver itself, past any gate, and waits for its answer in virtual time.

        ``region`` is a capability of the instance's on memory that holds the data, from byte ``buffer`` on: see
        :meth:`uxk.Kernel.dma_pool`.
        Raises :class:`RequestError` with the answer's errno (not with ``check=False``),
        :class:`~uxk.errors.RingFull` if there is no room, and UsageError for an impossible request.
        """
        if len(payload) > PAYLOAD_MAX_BYTES:
            raise UsageError(f"{self.name}: payload of {len(payload)} bytes, at most {PAYLOAD_MAX_BYTES}")
        if self._port is None:
            self._port = CallPort(self._dispatcher, self._agent, "")
        request = Request(0, opcode, payload, offset, length, region, 0, device, buffer, flags)
        return await (self._port.checked(request) if check else self._port.call(request))

    async def submit_batch(self, requests: Sequence[Request]) -> list[Completion]:
        """Submits copies of requests together, past any gate; waits for all answers, in the order of the requests."""
        done: list[Completion] = []
        goal = self._dispatcher.goal(f"{len(requests)} requests to {self.name}")

        def on_completions(completions: list[Completion]) -> None:
            done.extend(completions)
            if len(done) == len(requests):
                goal.reach()

        port = self._agent.open_port("", on_completions)
        try:
            port.submit_batch([checked_copy(request, self.name) for request in requests])
            if requests:
                await self._dispatcher.wait(goal)
        finally:
            port.close()
        return sorted(done, key=lambda completion: completion.cid)
