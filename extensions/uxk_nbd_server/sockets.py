"""Sockets: listening ones, and connections in the clear or under TLS, without blocking."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, Protocol

import uxk

BACKLOG: Final = 128
_PATH_MAX_BYTES: Final = 107
"""Longest path of a Unix socket (Linux: UNIX_PATH_MAX, 108 with its NUL)."""
_BUFFERS_MAX: Final = 1024
"""Buffers of one sendmsg (Linux: UIO_MAXIOV)."""
_SEND_BUFFER_BYTES: Final = 4 << 20
_TLS_PART_BYTES: Final = 256 << 10


class Wire(Protocol):
    """A connection.  Both directions raise BlockingIOError instead of waiting, and OSError if it is lost."""

    tls: bool

    def fileno(self) -> int:
        """For waiting."""
        ...

    def receive(self, views: Sequence[memoryview]) -> int:
        """Fills the views in order; 0 at the end of the stream."""
        ...

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Sends buffers one after the other; how many bytes of them went."""
        ...

    def hang_up(self) -> None:
        """Ends both directions at once, without a word; it is still to be closed."""

    def close(self) -> None:
        """Says goodbye, and closes it."""


class PlainWire:
    """In the clear."""

    tls = False

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # before the greeting: delayed ACKs
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # idle clients may stay, dead ones may not

    def fileno(self) -> int:
        """For waiting."""
        return self.sock.fileno()

    def receive(self, views: Sequence[memoryview]) -> int:
        """Fills the views in order; 0 at the end of the stream."""
        if len(views) == 1:
            return self.sock.recv_into(views[0])
        return self.sock.recvmsg_into(views)[0]

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Sends buffers one after the other; how many bytes of them went."""
        count = len(buffers)
        if count == 1:
            return self.sock.send(buffers[0])
        return self.sock.sendmsg(buffers if count <= _BUFFERS_MAX else buffers[:_BUFFERS_MAX])

    def hang_up(self) -> None:
        """Ends both directions at once; it is still to be closed."""
        _shut(self.sock)

    def close(self) -> None:
        """Closes it."""
        self.sock.close()


class TlsWire:
    """Under TLS.  OpenSSL wants a record that it could not send offered again as it was."""

    tls = True

    def __init__(self, plain: PlainWire, context: ssl.SSLContext) -> None:
        self.sock = context.wrap_socket(plain.sock, server_side=True, do_handshake_on_connect=False)
        self._again = b""

    def fileno(self) -> int:
        """For waiting."""
        return self.sock.fileno()

    def handshake(self) -> Literal["done", "read", "write"]:
        """A step of TLS's own handshake: done, or what to wait for.  OSError if it fails."""
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            return "read"
        except ssl.SSLWantWriteError:
            return "write"
        return "done"

    def receive(self, views: Sequence[memoryview]) -> int:
        """Fills the first view; 0 at the end of the stream."""
        try:
            return self.sock.recv_into(views[0])
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        except ssl.SSLZeroReturnError:
            return 0

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Sends buffers one after the other; how many bytes of them went."""
        data = self._again or _joined(buffers, _TLS_PART_BYTES)
        self._again = data
        try:
            self.sock.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        self._again = b""
        return len(data)

    def hang_up(self) -> None:
        """Ends both directions at once, without a word; it is still to be closed."""
        _shut(self.sock)

    def close(self) -> None:
        """Says goodbye, if the peer can hear it, and hangs up."""
        with suppress(OSError, ValueError):
            self.sock.unwrap()
        self.sock.close()


def _shut(sock: socket.socket) -> None:
    """The connection below; TLS, if there is some, does not hear of it, and would speak in the clear if it did."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _joined(buffers: Sequence[bytes | memoryview], most: int) -> bytes:
    """The first bytes of buffers, at most so many."""
    parts: list[bytes | memoryview] = []
    size = 0
    for buffer in buffers:
        part = buffer[: most - size]
        parts.append(part)
        size += len(part)
        if size == most:
            break
    return b"".join(parts)


def tls_context(cert: str, key: str, ca: str) -> ssl.SSLContext:
    """TLS for a server; with ``ca``, clients must have a certificate of it.  UsageError names the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key or None)
    except OSError as exc:
        raise uxk.UsageError(f"tls_cert={cert} tls_key={key}: {exc.strerror or exc}", errno=_number(exc)) from None
    if ca:
        try:
            context.load_verify_locations(ca)
        except OSError as exc:
            raise uxk.UsageError(f"tls_ca={ca}: {exc.strerror or exc}", errno=_number(exc)) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


# --- listening ----------------------------------------------------------------------------------------


def listen_tcp(address: str) -> socket.socket:
    """A listening socket at ``HOST:PORT`` or ``[HOST]:PORT``; port 0 is any free one.  Raises UsageError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise uxk.UsageError(f"tcp={address!r}: expected HOST:PORT, with a port from 0 to 65535")
    try:
        found = socket.getaddrinfo(host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, where = found[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
    except UnicodeError:  # a label of more than 63 characters, or an empty one
        raise uxk.UsageError(f"tcp={address!r}: {host[:80]!r} is no host name", errno=errno.EADDRNOTAVAIL) from None
    except OSError as exc:
        raise uxk.UsageError(f"tcp={address}: cannot listen there: {exc.strerror}", errno=_number(exc)) from None
    return sock


def listen_unix(path: Path) -> socket.socket:
    """A listening socket at ``path``, mode 0600; a stale one there is replaced.  Raises UsageError.

    It listens in a private directory before its name appears: it is never open to others, and whoever finds the
    name and is refused knows that it is stale.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".nbd-", dir=path.parent) as folder:
            private = Path(folder, "s")
            if max(len(os.fsencode(private)), len(os.fsencode(path))) > _PATH_MAX_BYTES:
                raise uxk.UsageError(f"unix={path}: too long for a socket", errno=errno.ENAMETOOLONG)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.bind(os.fspath(private))
                private.chmod(0o600)
                sock.listen(BACKLOG)
                sock.setblocking(False)
                _clear_stale(path)
                os.link(private, path)
            except BaseException:
                sock.close()
                raise
    except FileExistsError:
        raise uxk.UsageError(f"unix={path}: somebody else took it just now", errno=errno.EADDRINUSE) from None
    except OSError as exc:
        raise uxk.UsageError(f"unix={path}: cannot listen there: {exc.strerror}", errno=_number(exc)) from None
    return sock


def remove_unix(path: Path, identity: tuple[int, int]) -> None:
    """Takes away our own socket's name; what somebody else has put there since stays."""
    try:
        if identity_of(path) == identity:
            path.unlink()
    except OSError:
        pass


def identity_of(path: Path) -> tuple[int, int]:
    """Device and inode."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def _clear_stale(path: Path) -> None:
    """Takes away a socket that nobody listens on; raises UsageError for anything else."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise uxk.UsageError(f"unix={path}: exists and is no socket", errno=errno.EEXIST)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:  # its backlog is full: busy, not dead
            pass
    raise uxk.UsageError(f"unix={path}: somebody listens there already", errno=errno.EADDRINUSE)


def _number(exc: OSError) -> int:
    """Name resolution and OpenSSL have numbers of their own, which are no errnos."""
    if isinstance(exc, ssl.SSLError):
        return errno.EINVAL
    return errno.EADDRNOTAVAIL if isinstance(exc, socket.gaierror) or not exc.errno else exc.errno
