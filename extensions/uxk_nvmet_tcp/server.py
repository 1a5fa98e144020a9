"""The sockets: one reader for each connection, one place that writes, and a sweep now and then.

Whatever a host does ends at most its own connection.  A host that does not read what it has asked for is not read
from either, and is dropped after a while.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, Final

import trio

import uxk
from uxk_nvmet_tcp.session import Session
from uxk_nvmet_tcp.target import Target

CHUNK_BYTES: Final = 256 << 10
"""Read at once, and acted on as one batch."""
STALL_S: Final = 30
"""A host that takes nothing for so long is dropped."""
LINGER_S: Final = 1
"""For the last words on a connection to arrive."""
SWEEP_NS: Final = 250_000_000
BACKLOG: Final = 64
ADDRESS_TRIES: Final = 10
"""The socket of an incarnation that has just died may not be closed yet."""
_SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


async def listen(host: str, port: int) -> socket.socket:
    """A listening socket.  UsageError names the address that cannot be had."""
    try:
        found = await trio.socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )  # fmt: skip
    except (OSError, UnicodeError) as exc:  # UnicodeError: of Python's own encoding of names
        why = exc.strerror if isinstance(exc, OSError) else "no name of a host"
        raise uxk.UsageError(f"host={host!r}: {why}", errno=errno.EADDRNOTAVAIL) from exc
    family, _, _, _, address = found[0]
    for tries in range(1, ADDRESS_TRIES + 1):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            return sock
        except OSError as exc:
            sock.close()
            if exc.errno != errno.EADDRINUSE or tries == ADDRESS_TRIES:
                raise uxk.UsageError(f"{host}:{port}: cannot listen there: {exc.strerror}", errno=exc.errno) from exc
        await trio.sleep(0.02)
    raise AssertionError  # the last try has returned or raised


def shown(address: Any) -> tuple[str, int]:
    """Address and port of a socket address; IPv4 ones as such, even where an IPv6 socket took them."""
    text = str(address[0]).partition("%")[0]
    return text.removeprefix("::ffff:"), int(address[1])


class Peer:
    """A socket and its session."""

    __slots__ = ("farewell", "pending", "reading", "room", "session", "sock")

    def __init__(self, sock: socket.socket, session: Session) -> None:
        self.sock = sock
        self.session = session
        self.pending = memoryview(b"")
        """What the socket has not taken yet; until it has, further replies stay where they are."""
        self.reading = trio.CancelScope()
        self.room: trio.Event | None = None
        """Set when nothing is pending any more."""
        self.farewell = False
        """There are last words for the host to read."""

    async def sent(self) -> None:
        """Waits until the socket has taken everything."""
        while self.pending:
            self.room = trio.Event()
            await self.room.wait()


class Server:
    """Serves a target on a listening socket."""

    def __init__(self, ctx: uxk.Context, listener: socket.socket, target: Target, peers_max: int) -> None:
        self._ctx = ctx
        self._listener = listener
        self._target = target
        self._kick = ctx.kick
        self._peers_max = peers_max
        self._peers: dict[Session, Peer] = {}
        self._parting: dict[Peer, trio.CancelScope] = {}
        """Those whose last words are on their way, the oldest first."""
        self._chunk = bytearray(CHUNK_BYTES)
        self._view = memoryview(self._chunk)
        self._holding = False
        self._nursery: trio.Nursery | None = None

    async def run(self, after_sweep: Callable[[], object]) -> None:
        """Takes connections until cancelled; ``after_sweep`` is called several times a second."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._accept)
            while True:
                self._target.sweep()
                self.flush()
                after_sweep()
                await self._ctx.sleep_ns(SWEEP_NS, daemon=True)

    async def _accept(self) -> None:
        assert self._nursery is not None
        while True:
            await trio.lowlevel.wait_readable(self._listener)
            try:
                sock, address = self._listener.accept()
            except OSError as exc:
                if exc.errno in _SCARCE:
                    await trio.sleep(0.1)
                continue  # the host has changed its mind
            session = self._open(sock, address)
            self.flush()  # somebody may have had to make room
            if session is None:
                sock.close()
                continue
            peer = self._peers[session] = Peer(sock, session)
            self._nursery.start_soon(self._serve, peer)

    def _open(self, sock: socket.socket, address: Any) -> Session | None:
        if len(self._peers) >= self._peers_max:  # more than have a place: some are parting, and can do it faster
            if not self._parting:
                return None
            self._parting.pop(next(iter(self._parting))).cancel()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            name, port = shown(address)
            return self._target.open(f"{name}:{port}", shown(sock.getsockname()))
        except OSError:
            return None

    # --- one connection ---

    async def _serve(self, peer: Peer) -> None:
        try:
            with peer.reading:
                await self._read(peer)
            if peer.farewell:
                await self._part(peer)
        except (OSError, trio.ClosedResourceError) as exc:
            peer.session.close(str(exc) or type(exc).__name__)
        except Exception as exc:  # a defect of this module must not end the connections of others
            self._ctx.log(f"{peer.session.peer}: {type(exc).__name__}: {exc}", level=3)
        finally:
            del self._peers[peer.session]
            self._parting.pop(peer, None)
            peer.session.close("the host has left")
            self._target.dirty.pop(peer.session, None)
            trio.lowlevel.notify_closing(peer.sock)
            peer.sock.close()
            self.flush()

    async def _read(self, peer: Peer) -> None:
        sock, session = peer.sock, peer.session
        while not session.closed:
            await trio.lowlevel.wait_readable(sock)
            try:
                size = sock.recv_into(self._chunk)
            except BlockingIOError:
                continue
            if not size:
                return
            self._holding = True  # answers that come at once are sent together
            try:
                session.receive(bytes(self._view[:size]))
                self._kick()
            finally:
                self._holding = False
            self.flush()
            while session.conn.held:
                await peer.sent()

    async def _part(self, peer: Peer) -> None:
        """Lets the last words arrive: closing with unread data in the socket would take them back."""
        with trio.move_on_after(LINGER_S) as limit:
            self._parting[peer] = limit
            await peer.sent()
            peer.sock.shutdown(socket.SHUT_WR)
            while True:
                await trio.lowlevel.wait_readable(peer.sock)
                if not peer.sock.recv_into(self._chunk):
                    return

    # --- output ---

    def on_answers(self) -> None:
        """The device has answered."""
        if not self._holding:
            self.flush()

    def flush(self) -> None:
        """Sends what sessions have to say, each in one piece; ends those that are closed."""
        dirty = self._target.dirty
        while dirty:
            session, _ = dirty.popitem()
            peer = self._peers.get(session)
            if peer is None:
                session.take_output()
                continue
            if not peer.pending:
                self._send(peer, session.take_output())
            if session.closed:
                peer.farewell = bool(peer.pending or session.conn.out) or peer.farewell
                peer.reading.cancel()

    def _send(self, peer: Peer, data: bytes) -> None:
        sent = 0
        try:
            sent = peer.sock.send(data) if data else 0
        except BlockingIOError:
            pass
        except OSError as exc:
            peer.session.close(exc.strerror or str(exc))
            return
        peer.farewell = peer.session.closed and bool(data)
        if sent < len(data):
            peer.pending = memoryview(data)[sent:]
            assert self._nursery is not None
            self._nursery.start_soon(self._drain, peer)

    async def _drain(self, peer: Peer) -> None:
        """Sends what the socket did not take."""
        try:
            while peer.pending:
                with trio.move_on_after(STALL_S) as limit:
                    await trio.lowlevel.wait_writable(peer.sock)
                if limit.cancelled_caught:
                    peer.session.close(f"it took nothing for {STALL_S} s")
                    break
                try:
                    peer.pending = peer.pending[peer.sock.send(peer.pending) :]
                except BlockingIOError:
                    continue
        except (OSError, trio.ClosedResourceError) as exc:
            peer.session.close(str(exc) or type(exc).__name__)
        if peer.pending:
            peer.session.conn.out.clear()
            peer.pending = memoryview(b"")
        self._target.dirty[peer.session] = None
        self.flush()
        if peer.room is not None and not peer.pending:
            peer.room.set()
