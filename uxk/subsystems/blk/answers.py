"""Answers on their way back to clients: never inside a submission, each client's together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uxk.kernel.machine import Machine
from uxk.subsystems.blk.request import Bio
from uxk.uapi.entries import Completion

if TYPE_CHECKING:
    from uxk.subsystems.blk.port import DiskPort


class Answers:
    """What the queue of one disk has accepted and not yet answered; a member of the kernel's run queue."""

    __slots__ = ("_done", "_due", "_machine", "name", "open")

    def __init__(self, machine: Machine, name: str) -> None:
        self._machine = machine
        self.name = name
        self.open = 0
        """Clients' requests in the queue."""
        self._done: list[Bio] = []
        self._due = False

    @property
    def id(self) -> int:
        """For the dispatcher: no instance's number."""
        return -1

    def expect(self, count: int) -> None:
        """That many will have to be answered."""
        self.open += count
        self._machine.outstanding += count

    def add(self, bio: Bio) -> None:
        """One is done."""
        self._done.append(bio)

    def deliver(self) -> None:
        """Tells clients, each of all its answers at once, in the order of their first."""
        if not self._done:
            return
        done, self._done = self._done, []
        groups: dict[DiskPort, list[Completion]] = {}
        for bio in done:
            groups.setdefault(bio.port, []).append(bio.answer())
        self.open -= len(done)
        self._machine.outstanding -= len(done)
        for port, completions in groups.items():
            port.deliver(completions)

    def soon(self) -> None:
        """What is done is delivered in a turn of its own."""
        if self._done and not self._due:
            self._due = True
            machine = self._machine
            machine.runnable.append(self)
            if machine.parked:
                machine.wake()

    def turn(self) -> None:
        """For the dispatcher."""
        self._due = False
        self.deliver()

    def collect(self) -> None:
        """For the dispatcher: there is no task."""
