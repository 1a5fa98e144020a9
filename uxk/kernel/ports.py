"""A client's connection to an instance, or to what stands before a device: submits and gets answers in batches."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from uxk.errors import RequestError
from uxk.uapi.entries import Completion, Request

if TYPE_CHECKING:
    from uxk.kernel.agent import KernelAgent
    from uxk.kernel.devices import Device

OnCompletions: TypeAlias = Callable[[list[Completion]], None]
"""Called with every batch of answers: the list and what is in it belong to the callee."""


class GatePort(Protocol):
    """What a client of a gate holds.  Every accepted request is answered exactly once, never inside a submission."""

    @property
    def id(self) -> int:
        """Its number among the gate's ports."""
        ...

    @property
    def client(self) -> str:
        """Whose it is; empty for the kernel's own clients."""
        ...

    def submit(self, request: Request) -> int:
        """Submits one request and returns the command id that its completion will carry."""
        ...

    def submit_batch(self, requests: Sequence[Request]) -> None:
        """Submits all or raises, with a ``cid`` for each: RingFull (EAGAIN), or RequestError (ENODEV)."""

    def waits_for(self) -> str:
        """What keeps any of its requests from the driver, for the wait-for graph; empty if the driver has them all."""
        ...

    def close(self, on_late: OnCompletions | None = None) -> None:
        """Nothing more is submitted; answers to what is still in flight go to ``on_late``, or are dropped."""


class Gate(Protocol):
    """Where clients of a device open their ports: its driver's agent, or a layer in between, such as a disk's queue.

    Requests come with :attr:`~uxk.uapi.entries.Request.device` set; a layer in between leaves it as it is.
    """

    def open_port(self, client: str, on_completions: OnCompletions, *, tagged: bool = False) -> GatePort:
        """A new client's connection; with ``tagged`` its requests carry its number."""
        ...


class Port:
    """One client of one instance.  ``on_completions`` is called with every batch of answers.

    Every accepted request is answered exactly once, whatever becomes of the extension: by it, by its deadline
    (ETIMEDOUT), or by its declared fate.
    """

    __slots__ = ("_agent", "_table", "client", "id", "on_completions", "tagged")

    def __init__(
        self, agent: KernelAgent, port_id: int, client: str, on_completions: OnCompletions, *, tagged: bool = False
    ) -> None:
        self._agent = agent
        self._table = agent.requests
        self.tagged = tagged
        """Whether its requests carry its number: for drivers that tell their clients apart, as open files do."""
        self.id = port_id
        self.client = client
        self.on_completions = on_completions

    @property
    def target(self) -> KernelAgent:
        """The instance that serves this port."""
        return self._agent

    def submit(self, request: Request) -> int:
        """Submits one request and returns the command id that its completion will carry."""
        self._table.submit(self, (request,))
        return request.cid

    def submit_batch(self, requests: Sequence[Request]) -> None:
        """Submits requests; their ``cid`` and ``port`` are filled in.

        All or none: raises :class:`~uxk.errors.RingFull` (EAGAIN) if they do not fit, and
        :class:`~uxk.errors.RequestError` (ENODEV) if the instance is gone or, with fate ``fail``, down.
        """
        self._table.submit(self, requests)

    def waits_for(self) -> str:
        """A queue slot, while any of its requests is in the backlog."""
        held_back = any(batch.port is self for batch in self._table.backlog.values())
        return f"queue slot of {self._agent.name}" if held_back else ""

    def close(self, on_late: OnCompletions | None = None) -> None:
        """Closes the port: answers to what is still in flight go to ``on_late``, or are dropped."""
        self._agent.close_port(self, on_late)


class DevicePort:
    """A port of a kernel-side client on one device: goes through the device's gate, and fills in its number."""

    __slots__ = ("_port", "device")

    def __init__(self, device: Device, on_completions: OnCompletions, client: str = "") -> None:
        self.device = device
        self._port = device.gate.open_port(client, on_completions)
        if client:
            device.openers.append(self)

    @property
    def id(self) -> int:
        """Its number among the gate's ports."""
        return self._port.id

    @property
    def client(self) -> str:
        """Whose it is; with a name, it counts as a user of the driver until it is closed."""
        return self._port.client

    def submit(self, request: Request) -> int:
        """As :meth:`Port.submit`; sets ``request.device``."""
        self._to_device((request,))
        return self._port.submit(request)

    def submit_batch(self, requests: Sequence[Request]) -> None:
        """As :meth:`Port.submit_batch`; sets ``request.device`` of each."""
        self._to_device(requests)
        self._port.submit_batch(requests)

    def _to_device(self, requests: Sequence[Request]) -> None:
        device = self.device
        if device.removed:  # its number may be another's by now
            raise RequestError(f"device {device.name!r} was removed", errno=errno.ENODEV)
        for request in requests:
            request.device = device.number

    def close(self) -> None:
        """Closes the port: answers to what is still in flight are dropped."""
        self._port.close()
        if self in self.device.openers:
            self.device.openers.remove(self)
