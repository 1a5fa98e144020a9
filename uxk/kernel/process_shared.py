"""A host process that several instances share, as its kernel holds it: one process, and a seat in it for each.

Every seat has a connection of its own, so nothing of one instance's conversation is another's.  What they share is
their fate: a process dies as a whole, so whoever brings it down brings down all of them, at one instant, each with
an oops of its own.  An instance that only raises an exception, or is unloaded, leaves its seat to the others' profit.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import trio

from uxk.actor import wire
from uxk.actor.actor import Crash
from uxk.actor.link import Gone, Link
from uxk.actor.sandbox import SPARE_FILES
from uxk.errors import ModuleError
from uxk.kernel.process_child import CLOSED, GRACE_NS, HostProcess
from uxk.kernel.process_start import is_chance, program_of_shared
from uxk.kernel.seconds import to_seconds
from uxk.uapi.manifest import Sandbox

SEATS_MAX: Final = 64
"""Instances of one process: each wait for one looks at the connections of all."""
_DISCARDED_BYTES: Final = 1 << 16
_DISCARDED_MAX: Final = 1024
"""Pieces of that size that one who leaves may still have had to say: the longest output, together."""


class Occupant(Protocol):
    """The incarnation that a seat is for."""

    @property
    def number(self) -> int:
        """Of its instance: the order in which all fall."""
        ...

    def listen(self) -> None:
        """Hears what its extension has said, without waiting."""

    def fall(self, crash: Crash, *, chance: bool) -> None:
        """Its process has ended, by whatever cause."""


class SharedHost:
    """One process, and who sits in it."""

    def __init__(self, name: str, start: wire.Start, retire: Callable[[SharedHost], None]) -> None:
        """``start`` is that of the first instance; ``retire`` is called when nobody may join.  May raise OSError."""
        self.name = name
        self.process = HostProcess(program_of_shared())
        self.seats: list[Seat] = []
        self.confined = False
        """Whether the process is under its limits: then they can be raised."""
        self.waiting: list[Callable[[], None]] = []
        """What to do when it is."""
        self.fallen = self.watched = False
        self.unburied = 0
        self._first = start
        self._retire = retire
        self._granted: tuple[int, ...] = (0, 0, 0)

    def join(self, start: wire.Start) -> Seat:
        """A seat for one more instance.  ModuleError if its sandbox is another's, or there is no room.

        Gone if the process takes no more: it is dead, or its code has hung up.
        """
        if (differs := _difference(start.sandbox, self._first.sandbox)) is not None:
            field, first = f"sandbox.{differs}", self._first.name
            raise ModuleError(f"{start.name}: host {self.name!r}: its {field} is not that of {first}, who is in there")
        if len(self.seats) >= SEATS_MAX:
            raise ModuleError(f"{start.name}: host {self.name!r}: {SEATS_MAX} instances share it already")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.process.link.sock.setblocking(False)
            socket.send_fds(self.process.link.sock, [b"\0"], [theirs.fileno()])
        except (BrokenPipeError, ConnectionResetError):
            ours.close()
            raise Gone(self.name) from None
        except OSError as exc:
            ours.close()
            raise ModuleError(f"{start.name}: host {self.name!r}: {exc.strerror}", errno=exc.errno) from exc
        finally:
            theirs.close()
        seat = Seat(self, start, ours)
        for other in self.seats:
            other.link.watch(ours.fileno())
            seat.link.watch(other.link.sock.fileno())
        self.seats.append(seat)
        self.unburied += 1
        return seat

    def leave(self, seat: Seat) -> None:
        """The others hear nothing of it any more; when nobody is left, nobody may come."""
        if seat in self.seats:
            self.seats.remove(seat)
            for other in self.seats:
                other.link.unwatch(seat.link.sock.fileno())
            if not self.seats:
                self._retire(self)

    def fall(self, seat: Seat | None, crash: Crash) -> None:
        """The process has died, or is to die, because of one of them, or of nobody knows whom."""
        if self.fallen:
            return
        self.fallen = True
        self.process.kill()
        self._retire(self)
        told, chance = crash, is_chance(crash)
        if crash.kind not in ("Killed", "Exited") or crash.message == CLOSED:
            whom = "all" if seat is None else seat.start.name
            why = f"host {self.name} killed for {whom}: {crash.kind} in {crash.where}: {crash.message}"
            told = Crash("process", "Killed", why, self.process.tail.decode(errors="replace"))
        for other in sorted(self.seats, key=lambda each: each.number):
            if other is not seat and other.occupant is not None:
                other.occupant.fall(told, chance=chance)

    def widen(self) -> str:
        """Raises the limits of the process to the sum of what its instances may use; why that failed, or ``""``.

        They are never lowered while it lives: what somebody who has left used need not be free again.
        """
        rules = [(seat.start.sandbox, 2 * seat.start.memory_bytes) for seat in self.seats]
        wanted = (
            sum(sandbox.memory_bytes for sandbox, _ in rules),
            sum(sandbox.memory_bytes + mapped for sandbox, mapped in rules),
            sum(sandbox.files + SPARE_FILES for sandbox, _ in rules),
        )
        more = tuple(max(0, now - before) for now, before in zip(wanted, self._granted, strict=True))
        self._granted = tuple(map(max, wanted, self._granted))
        if not self.confined or self.process.reap():  # the process sets those of the first itself
            return ""
        try:
            for which, added in zip(_LIMITS, more, strict=True):
                soft, hard = resource.prlimit(self.process.pid, which)
                if soft != resource.RLIM_INFINITY:
                    raised = soft + added if hard == resource.RLIM_INFINITY else min(hard, soft + added)
                    resource.prlimit(self.process.pid, which, (raised, hard))
        except OSError as exc:
            return f"host {self.name}: its limits cannot be raised: {exc.strerror}"
        return ""


_LIMITS: Final = (resource.RLIMIT_DATA, resource.RLIMIT_AS, resource.RLIMIT_NOFILE)


class Seat:
    """One instance's part of a shared process; same surface as a process of its own."""

    __slots__ = ("_shared", "link", "occupant", "start")

    def __init__(self, shared: SharedHost, start: wire.Start, sock: socket.socket) -> None:
        self._shared = shared
        self.start = start
        self.link: Link[wire.FromChild] = Link(sock, wire.FromChild, (shared.process.err,))
        self.occupant: Occupant | None = None

    @property
    def number(self) -> int:
        """Of its instance."""
        return self.start.instance

    @property
    def pid(self) -> int:
        """Of the process that they share."""
        return self._shared.process.pid

    @property
    def tail(self) -> bytes:
        """The last that anybody in it printed."""
        return self._shared.process.tail

    def admit(self, send: Callable[[], None]) -> str:
        """Calls ``send`` when the process is under its limits, and these allow for one more; as :meth:`widen`."""
        shared = self._shared
        if not shared.confined and shared.seats[0] is not self:
            shared.waiting.append(lambda: self._admit_late(send))
            return ""
        problem = shared.widen()
        send()
        return problem

    def _admit_late(self, send: Callable[[], None]) -> None:
        if self in self._shared.seats:
            self._shared.widen()
            send()

    def set_up(self) -> None:
        """The instance has been set up, so the process is under its limits."""
        shared = self._shared
        if not shared.confined:
            shared.confined = True
            waiting, shared.waiting = shared.waiting, []
            for each in waiting:
                each()

    def listen_to_others(self) -> None:
        """While one is waited for, others in its process may need an answer before it can give its own."""
        for other in list(self._shared.seats):
            if other is not self and other.occupant is not None:
                other.occupant.listen()

    def drain(self) -> bool:
        """Takes what the process has printed; False at the end."""
        shared = self._shared
        if shared.process.drain():
            return True
        for seat in shared.seats:
            seat.link.unwatch(shared.process.err)
        return False

    async def watch_stderr(self) -> None:
        """Keeps the pipe of the process empty; the first that asks does so for all."""
        if not self._shared.watched:
            self._shared.watched = True
            await self._shared.process.watch_stderr()

    def fell(self, crash: Crash) -> None:
        """Its instance has brought the process down, or deserves that."""
        self._shared.fall(self, crash)

    def cut(self, *, obedient: bool) -> None:
        """Nothing of its instance is to run any more: one that answers is let go, one that does not ends with all."""
        if not obedient:
            self._shared.fall(self, Crash("watchdog", "Hung", "it left an answer owing", ""))
        self._shared.leave(self)

    def leave(self) -> None:
        """Its instance is over, in peace."""
        self._shared.leave(self)

    def end(self) -> str:
        """Why the process died."""
        return self._shared.process.end()

    async def ended(self) -> str:
        """The same without holding anybody up."""
        return await self._shared.process.ended()

    def reap(self) -> str:
        """Status of a process that has ended, ``""`` of one that runs."""
        return self._shared.process.reap()

    async def bury(self, on_gone: Callable[[], None], *, gently: bool) -> None:
        """Hangs up, and waits until nothing of the instance runs; after the last, until the process has ended."""
        shared = self._shared
        with trio.CancelScope(shield=True):
            await self._hang_up()
            shared.unburied -= 1
            if not shared.unburied:
                shared.leave(self)
                await shared.process.bury(_nothing, gently=not shared.fallen)
        on_gone()

    async def _hang_up(self) -> None:
        sock = self.link.sock
        if sock.fileno() < 0:
            return
        trio.lowlevel.notify_closing(sock)  # its reader and writer let go
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        with trio.move_on_after(to_seconds(GRACE_NS)) as grace:
            for _ in range(_DISCARDED_MAX):
                if self._shared.fallen or not await _says_more(sock):
                    break
            else:
                self._shared.fall(self, Crash("watchdog", "Hung", "it went on speaking", ""))
        if grace.cancelled_caught:
            self._shared.fall(self, Crash("watchdog", "Hung", f"its tasks went on for {GRACE_NS} ns", ""))
        trio.lowlevel.notify_closing(sock)
        self.link.close()


async def _says_more(sock: socket.socket) -> bool:
    """Whether the other end is still open; what it says is not heard."""
    try:
        await trio.lowlevel.wait_readable(sock)
        return bool(sock.recv(_DISCARDED_BYTES))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _difference(one: Sandbox, other: Sandbox) -> str | None:
    """The first field of a filter, which a process has for good, in which two sandboxes differ."""
    for field in ("network", "processes", "read", "write"):
        if getattr(one, field) != getattr(other, field):
            return field
    return None


def _nothing() -> None:
    """Nobody waits for it alone."""
