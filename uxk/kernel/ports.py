"""A client's connection to an instance: submits batches, gets completions in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from uxk.uapi.entries import Completion, Request

if TYPE_CHECKING:
    from uxk.kernel.agent import KernelAgent


class Port:
    """One client of one instance.  ``on_completions`` is called with every batch of answers.

    Every accepted request is answered exactly once, whatever becomes of the extension: by it, by its deadline
    (ETIMEDOUT), or by its declared fate.
    """

    __slots__ = ("_agent", "_table", "client", "id", "on_completions", "tagged")

    def __init__(
        self, agent: KernelAgent, port_id: int, client: str, on_completions: Callable[[list[Completion]], None],
        *, tagged: bool = False,
    ) -> None:  # fmt: skip
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

    def close(self) -> None:
        """Closes the port: answers to what is still in flight are dropped."""
        self._agent.close_port(self)
