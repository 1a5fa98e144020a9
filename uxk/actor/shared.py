"""A host process that several extensions share: ``python -m uxk.actor.shared DESCRIPTOR PARENT``.

The descriptor is not a connection to speak over: for each instance the kernel sends one byte through it, and with
that a connected socket, over which the instance's conversation is held as in a process of its own.  There is one Trio
loop and one task that reads; a callback that does not return holds up all of them.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from uxk.actor import sandbox, wire
from uxk.actor.child import Child, package_of
from uxk.actor.link import Gone, Link
from uxk.actor.mapping import Mappings
from uxk.actor.rest import Rest


class Seat(Child):
    """One instance of those in this process."""

    def __init__(self, link: Link[wire.FromKernel], confine: Callable[[wire.Start], None]) -> None:
        super().__init__(link)
        self._confine_all = confine
        self.scope = trio.CancelScope()
        self.begun = self.runs = self.has_tasks = self._left = False

    def _confine(self, start: wire.Start) -> None:
        self._confine_all(start)
        if start.module.startswith("uxk_insmod_"):  # the file may be another by now than when it was imported last
            top = start.module.partition(".")[0]
            for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
                del sys.modules[name]

    @property
    def has_waiting(self) -> bool:
        """Whether messages came while it waited for memory, as its connection does not tell any more."""
        return bool(self._waiting)

    async def hear(self, rest: Rest) -> None:
        """Acts on what the kernel has sent.  Gone if it has hung up."""
        self._waiting += self._link.receive()
        while self._waiting:
            message = self._waiting.pop(0)
            if not self.begun:
                self.begun = True
                self.runs = self.has_tasks = self.begin(message)
                self.resting = self.runs and self._start.held
            elif self.runs and isinstance(message, wire.Settle):
                await self._settle(message, rest)
                self.resting = False
            else:
                self.resting = self.resting or (self.runs and self._start.held and isinstance(message, wire.Turn))
                self._handle(message)

    async def live(self) -> None:
        """The extension's tasks, to their end."""
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._run, name=f"uxk {self._start.name}")
                    if not self._start.held:
                        nursery.start_soon(self._flush_quietly)
        finally:
            self.has_tasks = False
            if self._left:
                self._link.close()

    async def _flush_quietly(self) -> None:
        with suppress(Gone):  # whoever reads finds the end
            await self._flusher()

    def leave(self) -> None:
        """The kernel has hung up; the other end hears of it when nothing of the instance runs any more."""
        self._left, self.resting = True, False
        self._mappings = Mappings()
        if self.has_tasks:
            self.scope.cancel()
        else:
            self._link.close()


class SharedHost:
    """Serves one kernel until that has no use for this process."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.epoll()
        self._poll.register(control, select.EPOLLIN)
        self._seats: dict[int, Seat] = {}
        self._leaving: list[Seat] = []
        self._open = True
        self._confined = False
        self._rest = Rest()

    async def serve(self) -> None:
        """To the end of all connections."""
        self._rest.watch()
        async with trio.open_nursery() as nursery:
            while self._open or self._seats:
                for descriptor in await self._ready():
                    if descriptor == self._control.fileno():
                        self._admit()
                    elif descriptor in self._seats:
                        await self._hear(descriptor, nursery)
            nursery.cancel_scope.cancel()

    async def _ready(self) -> list[int]:
        """Which connections have something to read.  Tasks run meanwhile, unless the kernel has not let them yet."""
        seats = self._seats.values()
        if waiting := sorted(descriptor for descriptor, seat in self._seats.items() if seat.has_waiting):
            return waiting
        self._leaving = [seat for seat in self._leaving if seat.has_tasks]
        tasks = bool(self._leaving) or any(seat.has_tasks for seat in seats)
        if not tasks or any(seat.resting for seat in seats):
            return sorted(descriptor for descriptor, _ in self._poll.poll())
        await trio.lowlevel.checkpoint()
        if not (found := self._poll.poll(0)):
            await trio.lowlevel.wait_readable(self._poll.fileno())
            found = self._poll.poll(0)
        return sorted(descriptor for descriptor, _ in found)

    def _admit(self) -> None:
        """Another instance."""
        data, descriptors, _, _ = socket.recv_fds(self._control, 1, 1, socket.MSG_CMSG_CLOEXEC)
        if not data:
            self._open = False
            self._poll.unregister(self._control)
        for descriptor in descriptors:
            seat = Seat(Link(socket.socket(fileno=descriptor), wire.FromKernel), self._confine)
            self._seats[descriptor] = seat
            self._poll.register(descriptor, select.EPOLLIN)
            with suppress(Gone):
                seat.greet()

    async def _hear(self, descriptor: int, nursery: trio.Nursery) -> None:
        seat = self._seats[descriptor]
        had_begun = seat.begun
        try:
            await seat.hear(self._rest)
        except Gone:
            del self._seats[descriptor]
            self._poll.unregister(descriptor)
            seat.leave()
            self._leaving.append(seat)
        if seat.has_tasks and not had_begun:
            nursery.start_soon(seat.live)

    def _confine(self, start: wire.Start) -> None:
        """Gives up what the first instance's manifest does not ask for: the others ask for the same.

        Ends this process if that fails.  The folder around the first one's file, or package, stays readable, as those
        of others may lie there.
        """
        if self._confined:
            return
        self._confined = True
        try:
            folders = [os.path.dirname(package_of(start) or start.file)] if start.file else []
            sandbox.enter(start.sandbox, start.memory_bytes, [*start.search, *folders], shared=True)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)


def main(argv: Sequence[str]) -> int:
    """``DESCRIPTOR PARENT``: where connections come from, and the process that they lead to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the kernel's to act on
    sandbox.die_with_parent(int(argv[1]))
    sandbox.close_descriptors(int(argv[0]))
    try:
        trio.run(SharedHost(socket.socket(fileno=int(argv[0]))).serve)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # other threads, of a library's, end with it
