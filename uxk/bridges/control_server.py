"""The kernel's end of the control socket.

Nothing that a client sends, or fails to read, stops the kernel: bad bytes end that connection, a slow reader blocks
its own task only, and a client that floods is made to pause, so that the kernel finds the quiet moments that it needs.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, get_args

import trio

from uxk.bridges import control_ops
from uxk.bridges.control import Connection, failure_of, is_hosted, may_serve, peer_pid, peer_uid
from uxk.bridges.control_files import FileSession, encode_value, send_value
from uxk.bridges.control_listen import listen, remove
from uxk.bridges.face.api import Face
from uxk.bridges.face.memory import MemoryFace
from uxk.core.ratelimit import RateLimit
from uxk.errors import CapabilityError, ProtocolError, RingFull, UxkError
from uxk.kernel.kernel import Kernel
from uxk.kernel.process_child import HOSTS
from uxk.limits import LOG_INTERVAL_NS_DEFAULT
from uxk.uapi import control as c

CLIENTS_MAX: Final = 64
"""Connections at a time."""
HELLO_TIMEOUT_S: Final = 10
"""A connection that has not said what it wants by then gives its place to others."""
BURST: Final = 64
PAUSE_S: Final = 0.001
"""After this many requests and connections, all clients together pause for so long.  The kernel moves on only when
no task can run: clients that never stop asking must not keep it from that."""
LOG_BURST: Final = 8
FILE_REQUESTS: Final[tuple[type[c.FileRequest], ...]] = get_args(c.FileRequest)

Link: TypeAlias = Connection[c.ToKernel]
_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)
_SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


class ControlStatistics(NamedTuple):
    """Counts since the server began to listen."""

    clients: int
    accepted: int
    refused: int
    requests: int
    bad_frames: int
    records_lost: int
    """Records that were overwritten before a slow follower took them."""


class ControlServer:
    """Serves one kernel on a Unix socket that only its owner, and root, can use.

    ``face`` is what requests for files see: by default the kernel's own.
    """

    def __init__(self, kernel: Kernel, path: str | Path, *, face: Face | None = None) -> None:
        self.path = Path(path).absolute()
        self._kernel = kernel
        self._face = face or MemoryFace(kernel, client="control")
        self._turn = trio.Lock()
        self._turns = 0
        self._clients = self._accepted = self._refused = self._requests = self._bad_frames = self._lost = 0
        self._log_limit = RateLimit(LOG_BURST, LOG_INTERVAL_NS_DEFAULT)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listens until cancelled: ``await nursery.start(server.serve)``.  The socket is gone afterwards.

        Raises UsageError if it cannot listen; EADDRINUSE if another kernel does.
        """
        sock, identity = listen(self.path)
        try:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
            self._kernel.machine.log("info", "control", f"listening on {self.path}")
            async with listener, trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    stream = await self._accept(listener)
                    if stream is not None:
                        await self._gate()
                        self._accepted += 1
                        nursery.start_soon(self._client, stream)
        finally:
            remove(self.path, identity)

    def statistics(self) -> ControlStatistics:
        """Counts since the server began to listen."""
        return ControlStatistics(
            self._clients, self._accepted, self._refused, self._requests, self._bad_frames, self._lost
        )

    async def _accept(self, listener: trio.SocketListener) -> trio.SocketStream | None:
        try:
            return await listener.accept()
        except OSError as exc:
            if exc.errno not in _SCARCE:
                raise
            self._warn(f"cannot accept: {exc.strerror}")
            await trio.sleep(0.1)
            return None

    async def _gate(self) -> None:
        """Lets one in at a time, and all of them wait now and then."""
        async with self._turn:
            self._turns += 1
            if self._turns % BURST == 0:
                await trio.sleep(PAUSE_S)

    # --- one client ---

    async def _client(self, stream: trio.SocketStream) -> None:
        link: Link = Connection(stream, c.ToKernel)
        self._clients += 1
        try:
            async with stream:
                try:
                    self._admit(stream)
                    await self._converse(link)
                except (CapabilityError, RingFull) as exc:
                    self._refused += 1
                    await self._farewell(link, exc)
                except UxkError as exc:
                    self._bad_frames += 1
                    self._warn(f"connection closed: {exc}")
                    await self._farewell(link, exc)
        except _GONE:
            pass
        except Exception as exc:  # a defect of this file must not end the kernel
            self._warn(f"connection closed: {type(exc).__name__}: {exc}")
        finally:
            self._clients -= 1

    def _admit(self, stream: trio.SocketStream) -> None:
        uid = peer_uid(stream.socket)
        if not may_serve(uid):
            raise CapabilityError(f"control socket: uid {uid} may not, expected {os.geteuid()} or 0")
        if is_hosted(peer_pid(stream.socket), HOSTS):
            raise CapabilityError("control socket: an extension's process may not tell a kernel what to do")
        if self._clients > CLIENTS_MAX:
            raise RingFull(f"control socket: {CLIENTS_MAX} clients are connected already")

    async def _converse(self, link: Link) -> None:
        version = await self._greet(link)
        note = partial(control_ops.note_input, self._kernel)
        async with FileSession(self._face, link, note, self._warn) as files:
            while (request := await link.receive()) is not None:
                await self._gate()
                self._requests += 1
                match request:
                    case c.Hello():
                        raise ProtocolError("a second Hello, expected a request")
                    case c.Follow():
                        await self._follow(link, request)
                        return
                    case _ if version < c.VERSION_FILES and isinstance(request, (c.Cancel, *FILE_REQUESTS)):
                        raise ProtocolError(f"{type(request).__name__} is of version {c.VERSION_FILES}")
                    case c.Cancel(cid=cid):
                        files.cancel(cid)
                    case _ if isinstance(request, FILE_REQUESTS):
                        await files.begin(request)
                    case _:
                        await self._answer(link, request)

    async def _greet(self, link: Link) -> int:
        hello = None
        with trio.move_on_after(HELLO_TIMEOUT_S) as scope:
            hello = await link.receive()
        if scope.cancelled_caught:
            raise ProtocolError(f"no Hello within {HELLO_TIMEOUT_S} s", errno=errno.ETIMEDOUT)
        if hello is None:
            raise trio.ClosedResourceError
        if not isinstance(hello, c.Hello):
            raise ProtocolError(f"first message is {type(hello).__name__}, expected Hello")
        ours = c.Versions()
        version = ours.common(c.Versions(hello.oldest, hello.newest))
        if version is None:
            text = f"versions {hello.oldest} to {hello.newest}: this kernel speaks {ours.oldest} to {ours.newest}"
            raise ProtocolError(text, errno=errno.EPROTONOSUPPORT)
        await link.send(c.Welcome(version, self._kernel.machine.clock, os.getpid()))
        return version

    async def _answer(self, link: Link, request: c.Request) -> None:
        """Carries a request out; whatever goes wrong in it is the answer, not the end of the connection."""
        try:
            data = encode_value(await control_ops.perform(self._kernel, request))
        except UxkError as exc:
            await link.send(failure_of(request.cid, exc))
        except Exception as exc:
            self._warn(f"{type(request).__name__}: {type(exc).__name__}: {exc}")
            await link.send(failure_of(request.cid, exc))
        else:
            await send_value(link, request.cid, data)

    async def _farewell(self, link: Link, exc: UxkError) -> None:
        """Says why the connection ends, to a client that may not listen."""
        if not link.torn:
            with trio.move_on_after(1):
                await link.send(failure_of(0, exc))

    # --- the log as a stream ---

    async def _follow(self, link: Link, request: c.Follow) -> None:
        bell = _Bell()
        try:
            cancel = self._kernel.kmsg.subscribe(bell.ring)
        except UxkError as exc:
            await link.send(failure_of(request.cid, exc))
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_hangup, link, nursery.cancel_scope)
                await self._pump(link, request, bell)
        except* _GONE:
            pass
        finally:
            cancel()

    async def _pump(self, link: Link, request: c.Follow, bell: _Bell) -> None:
        """The reader holds nothing but a position in the ring: a client that is slow loses records, no more."""
        reader = self._kernel.kmsg.reader("oldest" if request.oldest else "now")
        try:
            while True:
                bell.reset()
                batch = control_ops.batch_of(reader, request.levels)
                self._lost += batch.lost
                if batch.records or batch.lost:
                    await send_value(link, request.cid, encode_value(batch))
                else:
                    await bell.wait()
        except trio.Cancelled:
            if not link.torn:
                with trio.move_on_after(1, shield=True):
                    await link.send(c.End(request.cid))
            raise

    def _warn(self, text: str) -> None:
        """Clients cannot flood the log."""
        machine = self._kernel.machine
        machine.refresh()
        if self._log_limit.allow(machine.now_ns):
            suppressed = self._log_limit.take_suppressed()
            more: dict[str, int] = {"suppressed": suppressed} if suppressed else {}
            machine.log("warning", "control", text, **more)


class _Bell:
    """Wakes one task from plain code; rings that come together wake it once."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        self._event.set()

    def reset(self) -> None:
        if self._event.is_set():
            self._event = trio.Event()

    async def wait(self) -> None:
        await self._event.wait()


async def _until_hangup(link: Link, scope: trio.CancelScope) -> None:
    """A follower has nothing more to say: whatever comes from it, or its end, ends the stream."""
    try:
        await link.stream.receive_some(1)
    finally:
        scope.cancel()
