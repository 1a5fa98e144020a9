"""Listens, shakes hands, keeps clients apart: whatever goes wrong with one stays with it."""

from __future__ import annotations

import errno
import socket
from typing import Final
from urllib.parse import quote

import trio

import uxk
from uxk_nbd_server.checks import Terms
from uxk_nbd_server.connection import Connection
from uxk_nbd_server.disk import Disk
from uxk_nbd_server.exports import Exports
from uxk_nbd_server.handshake import Handshake
from uxk_nbd_server.idle import Spinner
from uxk_nbd_server.memory import COMMON_SLOTS_MIN, OWN_SLOTS, SLOT_BYTES, Pool
from uxk_nbd_server.params import NbdParams
from uxk_nbd_server.places import Guest, Places, Refused, peer_of
from uxk_nbd_server.sockets import PlainWire, TlsWire, Wire, tls_context
from uxk_nbd_server.telling import Teller
from uxk_nbd_server.wire import Tx

_READ_BYTES: Final = 16 << 10
_SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_SCARCE_PAUSE_S: Final = 0.1
_PURSE_SLOTS: Final = OWN_SLOTS + COMMON_SLOTS_MIN + (16 << 20) // SLOT_BYTES
"""Most of one connection: the longest request, and some shorter ones."""
_HOLD_PERIODS: Final = 6
"""Whoever holds memory that others wait for must get on fast enough to be done after so many times ``stall_ns``."""
_HURRY_MAX: Final = 4
"""With more who wait, ``stall_ns`` is shorter, down to this part of it: they stand in one line."""


class Server:
    """All clients of one instance."""

    def __init__(self, ctx: uxk.Context, params: NbdParams, region: int, view: memoryview) -> None:
        self._params = params
        self._teller = Teller(ctx)
        self._pool = Pool(view, params.connections)
        if self._pool.places < params.connections:
            ctx.log(f"connections={params.connections}: the pool has memory for {self._pool.places}", level=4)
        self._places = Places(self._pool.places, params.per_address or max(1, self._pool.places * 3 // 4))
        self._exports = Exports(ctx, params, region, self._pool, self._retire, self._complain)
        self._connections: dict[Connection, Disk] = {}
        self._spinner = Spinner(params.spin_ns)
        self._accepted = self._refused = self._requests = 0
        self._tls = tls_context(params.tls_cert, params.tls_key, params.tls_ca) if params.tls != "off" else None
        self.link = True

    @property
    def exports(self) -> Exports:
        """What is served."""
        return self._exports

    def _retire(self, disk: Disk, reason: str) -> None:
        for connection in [each for each, its in self._connections.items() if its is disk]:
            connection.stop(reason)

    def set_link(self, up: bool) -> None:
        """Down: every connection is dropped, and none taken, until it is up again."""
        self.link = up
        for guest in self._places.all() if not up else ():
            guest.leave("link down")

    # --- clients ---

    async def serve(self, listener: socket.socket) -> None:
        """Accepts clients until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._exports.watch)
            nursery.start_soon(self._teller.run, self.figures)
            while True:
                await trio.lowlevel.checkpoint()  # those who are there come first
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(listener)
                    continue
                except OSError as exc:
                    if exc.errno in _SCARCE:
                        self._teller.say("cannot accept", f"cannot accept: {exc.strerror}")
                        await trio.sleep(_SCARCE_PAUSE_S)
                    continue
                self._admit(sock, nursery)
                self._teller.changed()

    def _admit(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        """A place for a client, or none."""
        client = _Client()
        guest = self._places.admit(peer_of(sock), client.leave) if self.link else Refused("link down")
        if isinstance(guest, Refused):
            self._refused += 1
            sock.close()
            self._teller.say("connections refused", f"connection refused: {guest.reason}")
            return
        self._accepted += 1
        nursery.start_soon(self._client, sock, guest, client)

    async def _client(self, sock: socket.socket, guest: Guest, client: _Client) -> None:
        """One client from greeting to end."""
        reason = ""
        try:
            with client.shaking:
                reason = await self._converse(sock, guest, client)
        except* OSError as group:
            reason = str(group.exceptions[0])
        except* Exception as group:  # a defect of this file must not end the others
            self._teller.say("connections failed", f"connection failed: {group.exceptions[0]!r}")
        finally:
            sock.close()
            self._places.leave(guest)
            self._teller.changed()
        reason = client.reason or reason
        if reason:
            who = f" ({guest.peer})" if guest.peer else ""
            self._teller.say("connections closed", f"connection closed{who}: {reason}", 7)

    async def _converse(self, sock: socket.socket, guest: Guest, client: _Client) -> str:
        """Handshake and transmission; why it has ended."""
        client.wire = PlainWire(sock)
        handshake = Handshake(self._exports.find, self._exports.listed, self._params.tls)
        try:
            with trio.move_on_after(self._params.handshake_ns / 1e9) as limit:
                await self._exports.reopen()
                await self._shake(client, handshake)
            if limit.cancelled_caught:
                return "handshake took too long"
            if handshake.state != "transmission" or client.reason:  # it has lost its place just now
                return handshake.reason
            self._places.settle(guest)
            return await self._transmit(client, handshake)
        finally:
            client.wire.close()

    async def _shake(self, client: _Client, handshake: Handshake) -> None:
        """Until an export is chosen, or the client is given up."""
        buffer = memoryview(bytearray(_READ_BYTES))
        assert client.wire is not None
        await _send(client.wire, handshake.greeting())
        while handshake.state not in ("transmission", "closed"):
            count = await _receive(client.wire, buffer)
            if not count:
                handshake.state, handshake.reason = "closed", "the client left during the handshake"
                break
            answer = handshake.receive(buffer[:count])
            while answer:
                await _send(client.wire, answer)
                answer = handshake.receive(b"")
            if handshake.state == "tls":
                assert self._tls is not None and isinstance(client.wire, PlainWire)
                client.wire = secured = TlsWire(client.wire, self._tls)
                await _secure(secured)
                handshake.secured()

    async def _transmit(self, client: _Client, handshake: Handshake) -> str:
        export, wire = handshake.export, client.wire
        purse = self._pool.open(_PURSE_SLOTS)
        assert export is not None and wire is not None and purse is not None  # there are as many purses as places
        disk = self._exports.disk(export.name)
        terms = Terms(
            export.size_bytes, export.block_min_bytes, bool(export.flags & Tx.READ_ONLY), handshake.structured,
            handshake.allocation, bool(export.flags & Tx.SEND_FAST_ZERO),
        )  # fmt: skip
        spinner = self._spinner if not wire.tls else _NEVER
        connection = client.connection = Connection(wire, disk, terms, purse, self._params.requests, spinner)
        connection.on_shortage = self._give_way
        self._connections[connection] = disk
        self._teller.changed()
        try:
            await connection.serve(handshake.rest)
        finally:
            del self._connections[connection]
            self._requests += connection.served
        return connection.lost if not connection.ended else connection.ended

    async def _give_way(self) -> None:
        """Somebody waits for memory: those who hold some and do not get on in the meantime lose it."""
        while True:
            hurry = max(1, min(_HURRY_MAX, self._pool.waiting))
            before = {each: mark for each in self._connections if (mark := each.mark()) is not None}
            await trio.sleep(self._params.stall_ns / 1e9 / hurry)
            late = [
                (each.borrowed, each) for each, mark in before.items()
                if not each.lost and each.lags(mark, each.borrowed * SLOT_BYTES // (_HOLD_PERIODS * hurry))
            ]  # fmt: skip
            missing = self._pool.shortfall - sum(each.borrowed for each in self._connections if each.lost)
            for borrowed, each in sorted(late, key=lambda pair: -pair[0]):
                if missing <= 0:
                    break
                each.kill("held memory that others waited for, and did not get on")
                missing -= borrowed

    # --- telling ---

    def figures(self) -> dict[str, int]:
        """What is published."""
        return {
            "clients": self._places.taken, "accepted": self._accepted, "refused": self._refused,
            "requests": self._requests + sum(each.served for each in self._connections),
            "memory_free": self._pool.free * SLOT_BYTES,
        }  # fmt: skip

    def show(self) -> None:
        """Publishes the figures now."""
        self._teller.show(self.figures())

    def _complain(self, text: str) -> None:
        self._teller.say("complaints of disks", text)


_NEVER: Final = Spinner(0)


class _Client:
    """What a client is by now: somebody who shakes hands on a wire, and then a connection."""

    def __init__(self) -> None:
        self.shaking = trio.CancelScope()
        self.wire: Wire | None = None
        self.connection: Connection | None = None
        self.reason = ""

    def leave(self, reason: str) -> None:
        """It has to go, at once."""
        self.reason = reason
        if self.connection is None:
            self.shaking.cancel()
        else:
            self.connection.kill(reason)


async def _receive(wire: Wire, view: memoryview) -> int:
    await trio.lowlevel.checkpoint()  # one who always has something to say gets no more than a turn
    while True:
        try:
            return wire.receive([view])
        except BlockingIOError:
            await trio.lowlevel.wait_readable(wire.fileno())


async def _send(wire: Wire, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        try:
            view = view[wire.send([view]) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(wire.fileno())


async def _secure(wire: TlsWire) -> None:
    """TLS's own handshake."""
    while (wanted := wire.handshake()) != "done":
        if wanted == "read":
            await trio.lowlevel.wait_readable(wire.fileno())
        else:
            await trio.lowlevel.wait_writable(wire.fileno())


def uri_of(listener: socket.socket, path: str, export: str, *, tls: bool) -> str:
    """The URI under which clients reach an export (doc/uri.md of the NBD project); ``path`` of a Unix socket."""
    scheme = "nbds" if tls else "nbd"
    if path:
        return f"{scheme}+unix:///{quote(export)}?socket={quote(path)}"
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}/{quote(export)}"
