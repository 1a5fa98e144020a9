"""CPU time of extensions' Trio tasks: a Trio instrument, installed only while one of them has a ``run``."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import trio

from uxk.core.account import Account
from uxk.kernel.seconds import cpu_ns


class TaskTime(trio.abc.Instrument):
    """Books every step of a task, and of the tasks that it started, to an instance's account."""

    def __init__(self) -> None:
        self._accounts: WeakKeyDictionary[trio.lowlevel.Task, Account | None] = WeakKeyDictionary()
        self._began_ns = 0

    def book(self, task: trio.lowlevel.Task, account: Account) -> None:
        """From now on the task's steps are the instance's."""
        if not self._accounts:
            trio.lowlevel.add_instrument(self)
        self._accounts[task] = account

    def close(self) -> None:
        """Stops watching."""
        if self._accounts:
            self._accounts.clear()
            trio.lowlevel.remove_instrument(self)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Trio's callback."""
        self._began_ns = cpu_ns()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Trio's callback."""
        account = self._account_of(task)
        if account is not None:
            account.cpu_ns += cpu_ns() - self._began_ns

    def _account_of(self, task: trio.lowlevel.Task) -> Account | None:
        """Its own entry, or its parent's: found once for each task."""
        if task in self._accounts:
            return self._accounts[task]
        nursery = task.parent_nursery
        found = None if nursery is None else self._account_of(nursery.parent_task)
        self._accounts[task] = found
        return found
