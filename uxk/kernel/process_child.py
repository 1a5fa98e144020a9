"""A host process as its kernel holds it: started, watched by descriptor, killed, reaped.

Nothing here waits for long: a process that has been told to go is killed if it does not, and a dead one is reaped
through its pidfd, so that neither zombies nor descriptors stay, and no number is ever mistaken for another's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import trio

import uxk.errors
from uxk.actor import wire
from uxk.actor.actor import Crash
from uxk.actor.link import Link
from uxk.actor.sandbox import environment
from uxk.kernel.seconds import to_seconds

STDERR_KEPT_BYTES: Final = 4096
"""The end of what the process has printed, for the report of its death."""
_STDERR_STEP_BYTES: Final = 1 << 16
SOCKET_FD: Final = 3
"""Where the child finds its end of the connection."""
GRACE_NS: Final = 1_000_000_000
"""Host time that a process which was told to go may take."""
_DYING_MS: Final = 500
"""Host time in which the process must follow its connection."""
_POLL_NS: Final = 1_000_000
CLOSED: Final = "it closed its connection"
HOSTS: Final[set[int]] = set()
"""Numbers of all host processes of all kernels in this process, until they are reaped and the numbers are free."""


class HostProcess:
    """One child and the descriptors that lead to it."""

    __slots__ = ("_pidfd", "_reaped", "_status", "err", "link", "occupant", "pid", "tail")

    def __init__(self, argv: Sequence[str]) -> None:
        """``argv`` is what the interpreter is started with."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        err_read, err_write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(err_read, False)
        try:
            self.pid = _spawn(argv, theirs.fileno(), err_write)
            HOSTS.add(self.pid)
            self._pidfd = os.pidfd_open(self.pid)
        except BaseException:
            ours.close()
            os.close(err_read)
            raise
        finally:
            theirs.close()
            os.close(err_write)
        self.err = err_read
        """Where what it prints comes out."""
        self.occupant: object = None
        self.link: Link[wire.FromChild] = Link(ours, wire.FromChild, (err_read,))
        self.tail = b""
        """The last that it printed."""
        self._status = ""
        self._reaped = False

    # --- what it prints ---

    def drain(self) -> bool:
        """Takes what it has printed, a bounded amount; only the end is kept.  False at the end of file."""
        try:
            data = os.read(self.err, _STDERR_STEP_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            self.link.unwatch(self.err)
        self.tail = (self.tail + data)[-STDERR_KEPT_BYTES:]
        return bool(data)

    async def watch_stderr(self) -> None:
        """Keeps its pipe empty, at a pace that costs little: a process that prints without end waits for it."""
        try:
            while self.drain():
                await trio.lowlevel.wait_readable(self.err)
                await trio.sleep(to_seconds(_POLL_NS))
        except (trio.ClosedResourceError, OSError):
            return

    # --- sharing: it does not ---

    def admit(self, send: Callable[[], None]) -> str:
        """Calls ``send`` when the instance may be told to start, which is now; why it may use less than it should."""
        send()
        return ""

    def set_up(self) -> None:
        """The instance has been set up."""

    def listen_to_others(self) -> None:
        """There is nobody else in it."""

    def fell(self, crash: Crash) -> None:
        """Its instance is dead, or deserves to be."""
        self.kill()

    def cut(self, *, obedient: bool) -> None:
        """Nothing of its instance is to run any more."""
        self.kill()

    def leave(self) -> None:
        """Its instance is over, in peace."""

    # --- its end ---

    def kill(self) -> None:
        """Ends it, whatever it is doing, and what it has started, as far as that stayed in its group."""
        if not self._reaped:  # until then its number, and so that of its group, is nobody else's
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> str:
        """Why it died, after its connection has: waits for it a moment, else ends it."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(_DYING_MS):
            self.kill()
            return CLOSED
        return self.reap()

    async def ended(self) -> str:
        """The same without holding anybody up."""
        for _ in range(_DYING_MS):
            if found := self.reap():
                return found
            await trio.sleep(to_seconds(_POLL_NS))
        self.kill()
        return CLOSED

    def reap(self) -> str:
        """Takes the status of a process that has ended; ``""`` if it has not."""
        if not self._reaped:
            found = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            if found is None:
                return ""
            self._reaped = True
            HOSTS.discard(self.pid)
            exited = found.si_code == os.CLD_EXITED
            self._status = f"status {found.si_status}" if exited else f"signal {found.si_status}"
        return self._status

    async def bury(self, on_gone: Callable[[], None], *, gently: bool) -> None:
        """Hangs up and reaps it, after a moment of grace or none."""
        with trio.CancelScope(shield=True):
            self._close_link()
            if gently:
                with trio.move_on_after(to_seconds(GRACE_NS)):
                    await trio.lowlevel.wait_readable(self._pidfd)
            self.kill()
            await trio.lowlevel.wait_readable(self._pidfd)
            self.reap()
            trio.lowlevel.notify_closing(self.err)
            os.close(self.err)
            self.err = -1
            os.close(self._pidfd)
        on_gone()

    def _close_link(self) -> None:
        sock = self.link.sock
        if sock.fileno() >= 0:
            trio.lowlevel.notify_closing(sock)
            self.link.close()


def _spawn(argv: Sequence[str], sock: int, err: int) -> int:
    """Starts a fresh interpreter with the socket as descriptor 3; it prints into the pipe."""
    package = Path(uxk.errors.__file__).parent.parent
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, err, 1),
        (os.POSIX_SPAWN_DUP2, err, 2),
        (os.POSIX_SPAWN_DUP2, sock, SOCKET_FD),
    ]
    return os.posix_spawn(
        sys.executable, [sys.executable, "-P", *argv], {**environment(os.environ), "PYTHONPATH": path},
        file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=(signal.SIGINT, signal.SIGPIPE, signal.SIGTERM),
    )  # fmt: skip
