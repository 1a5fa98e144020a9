"""Listens, shakes hands, keeps clients apart: whatever goes wrong with one stays with it."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import Final
from urllib.parse import quote

import trio

import uxk
from uxk.uapi.blk import BlockLimits
from uxk_nbd_server.checks import Terms
from uxk_nbd_server.connection import Connection
from uxk_nbd_server.disk import Disk, limits_in
from uxk_nbd_server.handshake import ExportInfo, Handshake
from uxk_nbd_server.idle import Spinner
from uxk_nbd_server.memory import COMMON_SLOTS_MIN, OWN_SLOTS, SLOT_BYTES, Pool
from uxk_nbd_server.params import NbdParams
from uxk_nbd_server.sockets import PlainWire, TlsWire, Wire, tls_context
from uxk_nbd_server.wire import REQUEST_MAX_BYTES, Tx

EXPORTS_MAX: Final = 64
_READ_BYTES: Final = 16 << 10
_PREFERRED_BYTES: Final = 4096
_SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_SCARCE_PAUSE_S: Final = 0.1
_CHECK_PAUSE_S: Final = 0.05
_PURSE_SLOTS: Final = OWN_SLOTS + COMMON_SLOTS_MIN + (16 << 20) // SLOT_BYTES
"""Most of one connection: the longest request, and some shorter ones."""


class Server:
    """All clients of one instance."""

    def __init__(self, ctx: uxk.Context, params: NbdParams, region: int, view: memoryview) -> None:
        self._ctx = ctx
        self._params = params
        self._pool = Pool(view)
        self._disks: dict[str, Disk] = {}
        """By the export's name."""
        self._connections: dict[Connection, Disk] = {}
        self._spinner = Spinner(params.spin_ns)
        self._trouble = trio.Event()
        self._opening = trio.Lock()
        self._clients = self._accepted = self._refused = self._requests = 0
        self._tls = tls_context(params.tls_cert, params.tls_key, params.tls_ca) if params.tls != "off" else None
        devices = [name.strip() for name in params.device.split(",") if name.strip()]
        names = [name.strip() for name in params.export.split(",")] if params.export else devices
        if not devices or len(names) != len(devices) or len(set(names)) != len(names) or len(names) > EXPORTS_MAX:
            raise uxk.UsageError(
                f"device={params.device!r} export={params.export!r}: expected 1 to {EXPORTS_MAX} disks, "
                "and a different name for each"
            )
        for name, device in zip(names, devices, strict=True):
            disk = self._disks[name] = Disk(ctx, device, region, self._pool, params.depth)
            disk.on_trouble = self._suspect

    @property
    def first_export(self) -> str:
        """The one that clients get who ask for none in particular."""
        return next(iter(self._disks))

    async def open(self) -> None:
        """Opens all disks.  Raises what they raise."""
        for disk in self._disks.values():
            await disk.open()

    # --- exports ---

    def _info(self, name: str, disk: Disk) -> ExportInfo:
        limits, params = disk.limits, self._params
        flags = Tx.HAS_FLAGS | Tx.SEND_FLUSH | Tx.SEND_FUA | Tx.SEND_CACHE
        if params.read_only or limits.read_only:
            flags |= Tx.READ_ONLY
        else:
            flags |= Tx.SEND_WRITE_ZEROES
            if limits.max_discard_bytes:
                flags |= Tx.SEND_TRIM
            if limits.max_write_zeroes_bytes:
                flags |= Tx.SEND_FAST_ZERO
        if params.multi_conn:  # the device's cache is one for all, and so is a FLUSH of it
            flags |= Tx.CAN_MULTI_CONN
        block = limits.logical_block_bytes
        sizes = (block, max(block, _PREFERRED_BYTES), REQUEST_MAX_BYTES)
        return ExportInfo(name, params.description, limits.capacity_bytes, flags, *sizes)

    def _find(self, name: str) -> ExportInfo | None:
        name = name or self.first_export
        disk = self._disks.get(name)
        return self._info(name, disk) if disk is not None and disk.alive else None

    def _listed(self) -> list[ExportInfo]:
        return [self._info(name, disk) for name, disk in self._disks.items() if disk.alive]

    def device_changed(self, device: str, uevent: bytes) -> None:
        """A disk has other properties now: its clients, who cannot be told, have to come again."""
        try:
            limits = limits_in(uevent)
        except uxk.UxkError:
            limits = None
        for disk in self._disks.values():
            if disk.name == device and disk.alive and limits != disk.limits:
                self._retire(disk, "the disk has changed")

    def device_removed(self, device: str) -> None:
        """A disk is gone."""
        for disk in self._disks.values():
            if disk.name == device and disk.alive:
                self._retire(disk, "the disk is gone")

    def _retire(self, disk: Disk, reason: str) -> None:
        disk.alive = False
        for connection in [each for each, its in self._connections.items() if its is disk]:
            connection.stop(reason)

    def _suspect(self, disk: Disk) -> None:
        self._trouble.set()

    async def _check(self) -> None:
        """Finds out whether disks that refuse requests are still there."""
        while True:
            await self._trouble.wait()
            await trio.sleep(_CHECK_PAUSE_S)
            self._trouble = trio.Event()
            for disk in self._disks.values():
                if disk.alive:
                    limits: BlockLimits | None = None
                    with suppress(uxk.UxkError):
                        limits = await disk.look()
                    if limits != disk.limits:
                        self._retire(disk, "the disk is gone")

    async def _reopen(self) -> None:
        """A disk that was away may have come back."""
        async with self._opening:
            for disk in self._disks.values():
                if not disk.alive:
                    try:
                        await disk.open()
                    except uxk.UxkError as exc:
                        self._warn(f"{disk.name}: {exc}")

    # --- clients ---

    async def serve(self, listener: socket.socket) -> None:
        """Accepts clients until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._check)
            while True:
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(listener)
                    continue
                except OSError as exc:
                    if exc.errno in _SCARCE:
                        self._warn(f"cannot accept: {exc.strerror}")
                        await trio.sleep(_SCARCE_PAUSE_S)
                    continue
                if self._clients >= self._params.connections:
                    self._refuse(sock, f"{self._clients} clients are connected already")
                else:
                    self._clients += 1
                    self._accepted += 1
                    self.show()
                    nursery.start_soon(self._client, sock)

    def _refuse(self, sock: socket.socket, reason: str) -> None:
        self._refused += 1
        sock.close()
        self._warn(f"connection refused: {reason}")
        self.show()

    async def _client(self, sock: socket.socket) -> None:
        """One client from greeting to end."""
        reason = ""
        try:
            reason = await self._converse(sock)
        except* OSError as group:
            reason = str(group.exceptions[0])
        except* Exception as group:  # a defect of this file must not end the others
            reason = f"{group.exceptions[0]!r}"
            self._warn(f"connection failed: {reason}")
        finally:
            sock.close()
            self._clients -= 1
            self.show()
        if reason:
            self._ctx.log(f"connection closed: {reason}", level=7)

    async def _converse(self, sock: socket.socket) -> str:
        """Handshake and transmission; why it has ended."""
        if not all(disk.alive for disk in self._disks.values()):
            await self._reopen()
        link = _Link(PlainWire(sock))
        handshake = Handshake(self._find, self._listed, self._params.tls)
        try:
            with trio.move_on_after(self._params.handshake_ns / 1e9) as limit:
                await self._shake(link, handshake)
            if limit.cancelled_caught:
                return "handshake took too long"
            if handshake.state != "transmission":
                return handshake.reason
            return await self._transmit(link.wire, handshake)
        finally:
            link.wire.close()

    async def _shake(self, link: _Link, handshake: Handshake) -> None:
        """Until an export is chosen, or the client is given up."""
        buffer = memoryview(bytearray(_READ_BYTES))
        await _send(link.wire, handshake.greeting())
        while handshake.state not in ("transmission", "closed"):
            count = await _receive(link.wire, buffer)
            if not count:
                handshake.state, handshake.reason = "closed", "the client left during the handshake"
                break
            await _send(link.wire, handshake.receive(buffer[:count]))
            if handshake.state == "tls":
                assert self._tls is not None and isinstance(link.wire, PlainWire)
                link.wire = secured = TlsWire(link.wire, self._tls)
                await _secure(secured)
                handshake.secured()

    async def _transmit(self, wire: Wire, handshake: Handshake) -> str:
        export = handshake.export
        assert export is not None
        disk = self._disks[export.name]
        purse = self._pool.open(_PURSE_SLOTS)
        if purse is None:
            self._refused += 1
            self._warn("connection refused: no memory for one more (pool)")
            return "no memory"
        terms = Terms(
            export.size_bytes, export.block_min_bytes, bool(export.flags & Tx.READ_ONLY), handshake.structured,
            handshake.allocation, bool(export.flags & Tx.SEND_FAST_ZERO),
        )  # fmt: skip
        spinner = self._spinner if not wire.tls else _NEVER
        connection = Connection(wire, disk, terms, purse, self._params.requests, spinner)
        connection.on_shortage = self._give_way
        self._connections[connection] = disk
        fd = wire.fileno()
        spinner.add(fd)
        self.show()
        try:
            await connection.serve(handshake.rest)
        finally:
            spinner.remove(fd)
            del self._connections[connection]
            self._requests += connection.served
        return connection.lost if not connection.ended else connection.ended

    async def _give_way(self) -> None:
        """Somebody waits for memory: clients that hold some and do not move in the meantime lose it."""
        while True:
            before = {each: each.moved_bytes for each in self._connections if each.stalled_on_client}
            await trio.sleep(self._params.stall_ns / 1e9)
            for each, moved_bytes in before.items():
                if each in self._connections and each.stalled_on_client and each.moved_bytes == moved_bytes:
                    each.kill("held memory that others waited for, and did not move")

    # --- telling ---

    def show(self) -> None:
        """Publishes the figures."""
        requests = self._requests + sum(each.served for each in self._connections)
        figures = {
            "clients": self._clients, "accepted": self._accepted, "refused": self._refused, "requests": requests,
            "memory_free": self._pool.free * SLOT_BYTES,
        }  # fmt: skip
        try:
            for name, value in figures.items():
                self._ctx.set_attribute(name, value)
        except uxk.RingFull:  # the next one will tell
            pass

    def _warn(self, text: str) -> None:
        self._ctx.log(text, level=4)


_NEVER: Final = Spinner(0)


class _Link:
    """A connection, whose wire changes when TLS begins."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire


async def _receive(wire: Wire, view: memoryview) -> int:
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
