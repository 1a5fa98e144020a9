"""Steps of extensions' Trio tasks: a Trio instrument, installed only while one of them has a ``run``.

Books their CPU time, and wakes the dispatcher after a step that has left something to do.
"""

from __future__ import annotations

import trio

from uxk.core.account import Account
from uxk.kernel.machine import Machine
from uxk.kernel.seconds import cpu_ns


class TaskTime(trio.abc.Instrument):
    """Books every step of a task, and of the tasks that it started, to an instance's account."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._accounts: dict[trio.lowlevel.Task, Account | None] = {}
        self._ended: tuple[trio.lowlevel.Task, Account | None] | None = None
        """The task whose last step this is."""
        self._installed = False
        self._began_ns = 0

    def book(self, task: trio.lowlevel.Task, account: Account) -> None:
        """From now on the task's steps are the instance's."""
        if not self._installed:
            self._installed = True
            self._began_ns = cpu_ns()  # in the middle of a step
            trio.lowlevel.add_instrument(self)
        self._accounts[task] = account

    def close(self) -> None:
        """Stops watching."""
        if self._installed:
            self._installed = False
            self._accounts.clear()
            trio.lowlevel.remove_instrument(self)

    def exclude(self, spent_ns: int) -> None:
        """Time of the present step that was not the task's own."""
        self._began_ns += spent_ns

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Trio's callback."""
        self._began_ns = cpu_ns()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Trio's callback."""
        if self._ended is not None and self._ended[0] is task:
            account, self._ended = self._ended[1], None
        else:
            account = self._accounts.get(task)
            if account is None and task not in self._accounts:
                account = self._account_of(task)
        if account is not None:
            account.cpu_ns += cpu_ns() - self._began_ns
        machine = self._machine
        if machine.dirty and machine.parked:
            machine.wake()

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """Trio's callback, before the end of its last step."""
        self._ended = (task, self._accounts.pop(task, None))

    def _account_of(self, task: trio.lowlevel.Task) -> Account | None:
        """Its own entry, or its parent's: found once for each task."""
        if task in self._accounts:
            return self._accounts[task]
        nursery = task.parent_nursery
        found = None if nursery is None else self._account_of(nursery.parent_task)
        self._accounts[task] = found
        return found
