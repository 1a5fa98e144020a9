"""A host owns one incarnation of an extension: start, turn, collect, stop; bytes in, bytes out.

Task placement: the extension's actor runs in this process, behind the same frames as in a process of its own
(:class:`uxk.kernel.process_host.ProcessHost`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import trio

from uxk.actor.actor import Actor, Crash, Output, Saved, Start
from uxk.module import Extension


class Host(Protocol):
    """What the kernel knows of a host, wherever its extension runs."""

    done: trio.Event | None
    """Set when nothing of it runs any more; None if nothing ever has."""

    @property
    def runs(self) -> bool:
        """Whether a task of the extension's may stage output outside turns."""
        ...

    @property
    def pid(self) -> int:
        """Process that it runs in."""
        ...

    @property
    def stalled(self) -> bool:
        """Whether it can be given nothing for now; it wakes its instance when it can."""
        ...

    @property
    def crash(self) -> Crash | None:
        """What ended the actor, if something did."""
        ...

    @property
    def ended(self) -> bool:
        """Whether its ``run`` has come to an end."""
        ...

    def setup(self) -> bool:
        """The extension's own initialisation; whether it is over when this returns."""
        ...

    def start_task(
        self, nursery: trio.Nursery, clock: Callable[[], int], on_output: Callable[[], None],
        on_exit: Callable[[], None], book: Callable[[trio.lowlevel.Task], None], kick: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Starts ``run``."""

    def turn(self, now_ns: int, down: Sequence[bytes], answers: Sequence[bytes]) -> Output:
        """One turn of the actor."""
        ...

    def collect(self) -> Output:
        """What was staged outside turns."""
        ...

    def checkpoint(self, on_saved: Callable[[Saved], object]) -> None:
        """Asks a healthy extension for its state; ``on_saved`` is called once, now or later, unless it dies first."""

    def stop(self, reason: str) -> Output:
        """Says goodbye to a healthy extension and returns its last words."""
        ...

    async def farewell(self, reason: str) -> None:
        """The same ahead of time, where last words take time to come."""

    def abandon(self) -> None:
        """Cuts the incarnation off: nothing it says from now on is heard."""


class TaskHost:
    """One incarnation of an extension as an actor, and, if it has a ``run``, as a Trio task."""

    __slots__ = ("_actor", "_on_exit", "_scope", "done", "runs", "turn")

    def __init__(self, cls: type[Extension[Any]], start: Start, map_region: Callable[[int, bool], memoryview]) -> None:
        self._actor = Actor(cls, start, map_region)
        self.turn = self._actor.turn
        """One turn of the actor."""
        self.runs = self._actor.runs
        """Whether a Trio task of the extension's may stage output outside turns."""
        self._scope: trio.CancelScope | None = None
        self._on_exit: Callable[[], None] | None = None
        self.done: trio.Event | None = None

    @property
    def pid(self) -> int:
        """This process."""
        return os.getpid()

    @property
    def stalled(self) -> bool:
        """Never: nothing lies between it and its kernel that could be full."""
        return False

    @property
    def crash(self) -> Crash | None:
        """What ended the actor, if something did."""
        return self._actor.crash

    @property
    def ended(self) -> bool:
        """Whether its ``run`` has come to an end."""
        return self.done is not None and self.done.is_set()

    def setup(self) -> bool:
        """The extension's own initialisation."""
        self._actor.setup()
        return True

    def start_task(
        self, nursery: trio.Nursery, clock: Callable[[], int], on_output: Callable[[], None],
        on_exit: Callable[[], None], book: Callable[[trio.lowlevel.Task], None], kick: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Starts ``run``.

        ``on_output`` is called when it stages something, ``on_exit`` when it ends, ``book`` with its task; by ``kick``
        it can have the kernel act on what it has staged.
        """
        self._scope = trio.CancelScope()
        self._on_exit = on_exit
        self.done = trio.Event()
        self._actor.follow_clock(clock)
        self._actor.watch_output(on_output, kick)
        nursery.start_soon(self._run, book, name=f"uxk {self._actor.ctx.name}")

    async def _run(self, book: Callable[[trio.lowlevel.Task], None]) -> None:
        assert self._scope is not None and self.done is not None
        book(trio.lowlevel.current_task())
        try:
            with self._scope:
                await self._actor.run()
        finally:
            self.done.set()
            if self._on_exit is not None:
                self._on_exit()

    def collect(self) -> Output:
        """What was staged outside turns."""
        return self._actor.output()

    def checkpoint(self, on_saved: Callable[[Saved], object]) -> None:
        """Asks a healthy extension for its state."""
        on_saved(self._actor.checkpoint())

    def stop(self, reason: str) -> Output:
        """Says goodbye to a healthy extension and returns its last words."""
        self._actor.stop(reason)
        return self._actor.output()

    async def farewell(self, reason: str) -> None:
        """Its last words come at once, from :meth:`stop`."""

    def abandon(self) -> None:
        """Cuts the incarnation off: nothing it says from now on is heard."""
        self._on_exit = None
        self._actor.watch_output(None)
        if self._scope is not None:
            self._scope.cancel()
