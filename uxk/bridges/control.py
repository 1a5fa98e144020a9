"""Framing of the control protocol on a Trio stream, and errors as they cross it; for both ends."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Container
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
import trio

from uxk import errors, limits
from uxk.errors import ProtocolError, UxkError
from uxk.uapi import control as c
from uxk.uapi.entries import Entry

M = TypeVar("M")

_HEADER: Final = struct.Struct("<I")
_PEERCRED: Final = struct.Struct("3i")
_READ_BYTES: Final = 64 << 10
_encode: Final = msgspec.msgpack.Encoder().encode
# What msgspec may raise on hostile bytes: its own errors, bad UTF-8, nesting too deep, lengths that cannot be.
_HOSTILE: Final = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError, MemoryError)


def frame_of(message: Entry) -> bytes:
    """A message as it goes over the wire.  Raises ProtocolError if it is too long or cannot be encoded."""
    try:
        body = _encode(message)
    except (msgspec.MsgspecError, ValueError, OverflowError) as exc:
        raise ProtocolError(f"{type(message).__name__} cannot be sent: {exc}", errno=errno.EINVAL) from None
    if len(body) > limits.FRAME_MAX_BYTES:
        text = f"{type(message).__name__} of {len(body)} bytes, at most {limits.FRAME_MAX_BYTES}"
        raise ProtocolError(text, errno=errno.EMSGSIZE)
    return _HEADER.pack(len(body)) + body


class Connection(Generic[M]):
    """Messages of one union type in, any entry out.  Bounded: it never holds more than one frame and a read."""

    def __init__(self, stream: trio.SocketStream, incoming: Any) -> None:
        self.stream = stream
        self._decode = msgspec.msgpack.Decoder(cast("type[M]", incoming)).decode
        self._buffer = bytearray()
        self._sending = trio.Lock()
        self.torn = False
        """A message was cut off while being sent: nothing more can be said."""

    async def send(self, message: Entry) -> None:
        """Sends one message; tasks take turns.  Raises what Trio raises if the peer is gone, or one was cut off."""
        frame = frame_of(message)
        async with self._sending:
            if self.torn:
                raise trio.BrokenResourceError("a message was cut off before this one")
            self.torn = True
            await self.stream.send_all(frame)
            self.torn = False

    async def receive(self) -> M | None:
        """The next message, or None if the peer hung up between two.

        Raises :class:`ProtocolError` for a length out of range, a message cut short, or bytes that are no message.
        """
        if not await self._fill(_HEADER.size):
            return None
        (length,) = _HEADER.unpack_from(self._buffer)
        if not 0 < length <= limits.FRAME_MAX_BYTES:
            raise ProtocolError(f"frame of {length} bytes, expected 1 to {limits.FRAME_MAX_BYTES}")
        await self._fill(_HEADER.size + length)
        body = bytes(self._buffer[_HEADER.size : _HEADER.size + length])
        del self._buffer[: _HEADER.size + length]
        try:
            return self._decode(body)
        except _HOSTILE as exc:
            raise ProtocolError(f"frame of {length} bytes is no message: {_legible(exc)}") from None

    async def _fill(self, wanted: int) -> bool:
        """Reads until ``wanted`` bytes are there; False if the peer hung up before the first of them."""
        while len(self._buffer) < wanted:
            data = await self.stream.receive_some(_READ_BYTES)
            if not data:
                if not self._buffer:
                    return False
                raise ProtocolError(f"connection closed after {len(self._buffer)} of {wanted} bytes")
            self._buffer += data
        return True


def peer_uid(sock: trio.socket.SocketType) -> int | None:
    """The user at the other end (Linux: SO_PEERCRED), or None where the system cannot tell."""
    peer = _peer(sock)
    return None if peer is None else peer[1]


def peer_pid(sock: trio.socket.SocketType) -> int | None:
    """The process that has connected, in the same way; it may have ended since."""
    peer = _peer(sock)
    return None if peer is None else peer[0]


def _peer(sock: trio.socket.SocketType) -> tuple[int, int, int] | None:
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    return cast("tuple[int, int, int]", _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, option, _PEERCRED.size)))


def may_serve(uid: int | None) -> bool:
    """Whether a kernel of this process obeys that user: its own, or root.  Without a uid, the file's mode decides."""
    return uid is None or uid in (0, os.geteuid())


def is_hosted(pid: int | None, hosts: Container[int]) -> bool:
    """Whether a process is one of the ``hosts`` of extensions or was started by one, or has ended, as such may have.

    An extension that may use sockets is of the kernel's user, but is not to tell it what to do.
    """
    at, asked = pid or 0, True
    while at > 1 and at != os.getpid():
        if at in hosts:
            return True
        try:
            with open(f"/proc/{at}/stat", encoding="ascii", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            return asked and os.path.isdir("/proc/self")
        if asked and state in "ZX":
            return True
        at, asked = int(parent), False
    return False


# --- errors -------------------------------------------------------------------------------------------


def failure_of(cid: int, exc: Exception) -> c.Failure:
    """An error as it crosses the socket: number, class and message."""
    if isinstance(exc, UxkError):
        kind = next(cls.__name__ for cls in type(exc).__mro__ if getattr(errors, cls.__name__, None) is cls)
        text, number = (str(exc.args[0]) if exc.args else ""), exc.errno
    else:
        kind, text, number = "KernelBug", f"{type(exc).__name__}: {exc}", errno.EFAULT
    text = text.encode(errors="backslashreplace").decode()
    return c.Failure(cid, max(0, number), kind, text[: c.MESSAGE_MAX_CHARS])


def error_of(failure: c.Failure) -> UxkError:
    """The same error on the other side; UxkError itself if this version does not know the class."""
    cls = getattr(errors, failure.kind, UxkError)
    if not (isinstance(cls, type) and issubclass(cls, UxkError)):
        cls = UxkError
    return cls(failure.message, errno=failure.errno)


def _legible(exc: BaseException) -> str:
    text = str(exc) or type(exc).__name__
    return text[:200].encode(errors="backslashreplace").decode()
