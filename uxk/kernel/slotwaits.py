"""Waits of a client for room in the queue of a driver, as the wait-for graph is told of them: one wait for all.

Looked at once for a batch, and further only where something stands between the client and the driver's ring.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from uxk.kernel.ports import GatePort

if TYPE_CHECKING:
    from uxk.kernel.agent import KernelAgent


class SlotWaits:
    """The wait of a client that has requests at ``port`` which the driver has no room for.

    It lasts until all requests that had to wait are answered: one that has got its slot in the meantime is in the hands
    of the driver, which has the others wait.
    """

    __slots__ = ("_client", "_life", "_port", "_resource", "_target", "delayed")

    def __init__(self, client: KernelAgent, target: KernelAgent, port: GatePort) -> None:
        self._client = client
        self._target = target
        self._port = port
        self._resource = ""
        self._life = 0
        """The incarnation of the target when the graph was told: a crash ends all waits for it there."""
        self.delayed: set[int] = set()
        """Requests that had to wait, by the client's command ids; while there are any, the client waits."""

    def note(self, cids: Iterable[int]) -> None:
        """These were accepted together; if any request of the port has no slot yet, all of these are in the wait."""
        resource = self._port.waits_for()
        if not resource:
            return
        if not self.delayed or self._life != self._target.incarnation:
            self._resource, self._life = resource, self._target.incarnation
            self._client.machine.wait(self._client.node, self._target.node, resource)
        self.delayed.update(cids)

    def answered(self, cids: Iterable[int]) -> None:
        """These are answered."""
        self.delayed.difference_update(cids)
        if not self.delayed:
            self._client.machine.waits.remove(self._client.node, self._target.node, self._resource)

    def end(self) -> None:
        """The client waits for none of them any more."""
        if self.delayed:
            self.answered([*self.delayed])
