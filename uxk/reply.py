"""Answers to an extension's commands, and which of its tasks awaits them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any
from weakref import WeakKeyDictionary

import trio

from uxk.errors import RequestError, errno_name
from uxk.limits import TASKS_MAX
from uxk.uapi import entries as e


class Tasks:
    """The Trio tasks of one extension, by numbers that are given in the order of asking."""

    __slots__ = ("_last", "_numbers", "root")

    def __init__(self) -> None:
        self.root: trio.lowlevel.Task | None = None
        """That of its ``run``, number 1; set by the actor runtime."""
        self._numbers: WeakKeyDictionary[trio.lowlevel.Task, int] = WeakKeyDictionary()
        self._last = 1

    def calling(self) -> tuple[int, ...]:
        """The task that calls, then those that cannot end before it; ``()`` if none of the extension's does.

        A callback is no task.
        """
        if self.root is None:
            return ()
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        found: list[trio.lowlevel.Task] = []
        while task is not self.root:
            nursery = None if task is None else task.parent_nursery
            if task is None or nursery is None or len(found) == TASKS_MAX - 1:
                return ()
            found.append(task)
            task = nursery.parent_task
        return (*map(self._number, found), 1)

    def _number(self, task: trio.lowlevel.Task) -> int:
        number = self._numbers.get(task)
        if number is None:
            self._last += 1
            number = self._numbers[task] = self._last
        return number


class Reply:
    """The answer to a command, when it comes.  ``await`` it, or give it a callback."""

    __slots__ = ("_entry", "_event", "_tasks", "_then", "_what", "completion")

    def __init__(self, what: str, entry: e.Entry, tasks: Tasks | None = None) -> None:
        self._entry = entry
        self._tasks = tasks
        self.completion: e.Completion | None = None
        self._then: Callable[[e.Completion], object] | None = None
        self._event: trio.Event | None = None
        self._what = what

    def then(self, callback: Callable[[e.Completion], object]) -> Reply:
        """Calls ``callback(completion)`` when the answer arrives, whatever its status; at once if it is there."""
        self._then = callback
        if self.completion is not None:
            callback(self.completion)
        return self

    @property
    def cid(self) -> int:
        """The command's number."""
        return int(getattr(self._entry, "cid", 0))

    def resolve(self, completion: e.Completion) -> None:
        """Delivers the answer; called by the actor runtime."""
        self.completion = completion
        if self._event is not None:
            self._event.set()
        if self._then is not None:
            self._then(completion)

    async def _wait(self) -> e.Completion:
        if self.completion is None:
            if isinstance(self._entry, e.Submit):
                # The wait-for graph should know, if the entry has not left yet.
                self._entry.wait = (self._tasks is not None and self._tasks.calling()) or True
            if self._event is None:
                self._event = trio.Event()
            await self._event.wait()
        completion = self.completion
        assert completion is not None
        if completion.status:
            text = completion.payload.decode(errors="replace") or errno_name(completion.status)
            raise RequestError(f"{self._what}: {text}", errno=completion.status)
        return completion

    def __await__(self) -> Generator[Any, Any, e.Completion]:
        return self._wait().__await__()
