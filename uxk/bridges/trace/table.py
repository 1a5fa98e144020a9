"""A request table that tells of every submission and every answer: the kernel uses it while it is traced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from uxk.errors import UxkError
from uxk.kernel.ports import Port
from uxk.kernel.requests import RequestTable
from uxk.uapi.entries import Completion, Request


class Listener(Protocol):
    """Who is told."""

    def submitted(self, table: RequestTable, port: Port, requests: Sequence[Request]) -> None:
        """Requests were accepted; they have their numbers."""
        ...

    def refused(self, port: Port, count: int, why: str) -> None:
        """Requests were refused."""
        ...

    def completed(self, table: RequestTable, port: Port, completions: list[Completion]) -> None:
        """Requests are answered, by the instance or on its behalf."""
        ...


def traced_table(listener: Listener) -> Callable[..., RequestTable]:
    """What makes such tables, for :attr:`uxk.kernel.machine.Machine.request_table`."""

    class TracedTable(RequestTable):
        """Does what the table does, and tells."""

        __slots__ = ()

        def submit(self, port: Port, requests: Sequence[Request]) -> None:
            try:
                super().submit(port, requests)
            except UxkError as exc:
                listener.refused(port, len(requests), str(exc))
                raise
            listener.submitted(self, port, requests)

        def _deliver(self, port: Port, completions: list[Completion]) -> None:
            listener.completed(self, port, completions)
            super()._deliver(port, completions)

    return TracedTable
