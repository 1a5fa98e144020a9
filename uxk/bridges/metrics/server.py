"""``GET /metrics`` over HTTP, for Prometheus.

The kernel is held for one snapshot, at most ten times a second, whoever asks and how often; a thread formats it, for
a twentieth of the time at most, since it shares the interpreter with the kernel.
Clients are few, have little time, and say little: whoever is slow is cut off.  It listens on loopback unless told
otherwise, and there only to requests that name this host, so that a web page elsewhere cannot read it through a name
of its own (DNS rebinding).
"""

from __future__ import annotations

import errno
import ipaddress
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from uxk.bridges.metrics.families import render
from uxk.bridges.metrics.snapshot import take_snapshot
from uxk.errors import UsageError
from uxk.kernel.kernel import Kernel
from uxk.uapi.metrics import Snapshot

if TYPE_CHECKING:
    import h11

LOOPBACK: Final = "127.0.0.1"
CLIENTS_MAX: Final = 16
"""Connections at a time; further ones are closed at once."""
DEADLINE_S: Final = 5
"""From the connection to the last byte of the answer."""
HEAD_MAX_BYTES: Final = 16 << 10
FRESH_NS: Final = 100_000_000
"""Host time for which a snapshot is good, at least."""
REST: Final = 20
"""So many times as long as it took to make is a text good."""
_BURST: Final = 32
_PAUSE_S: Final = 0.001
"""After so many connections the listener pauses: the kernel moves on only when no task can run."""
_SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class MetricsStatistics(NamedTuple):
    """Counts since it began to listen."""

    clients: int
    accepted: int
    served: int
    refused: int
    snapshots: int


class _Answer(NamedTuple):
    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"


def parse_address(text: str) -> tuple[str, int]:
    """``PORT``, ``HOST:PORT`` or ``[IPV6]:PORT``, without a host on loopback.  UsageError for anything else."""
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535 or (":" in host and not host.startswith("[")):
        raise UsageError(f"metrics: {text!r}, expected PORT, HOST:PORT or [IPV6]:PORT")
    return host.strip("[]") or LOOPBACK, int(port)


class MetricsServer:
    """Serves one kernel's metrics; port 0 is any free one, see :attr:`port` once it listens."""

    def __init__(self, kernel: Kernel, port: int, host: str = LOOPBACK) -> None:
        self.host = host
        self.port = port
        self._kernel = kernel
        self._snapshot: Snapshot | None = None
        self._stale_ns = 0
        """Host time from which on there should be another snapshot."""
        self._texts: dict[str, tuple[bytes, str]] = {}
        self._rendering = trio.Lock()
        self._clients = self._accepted = self._served = self._refused = self._snapshots = 0

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listens until cancelled: ``await nursery.start(server.serve)``.

        Raises UsageError without the extra ``metrics``, or if it cannot listen there.
        """
        try:
            import h11  # noqa: F401  # now, not with the first client
        except ModuleNotFoundError:
            raise UsageError("metrics need h11: pip install 'uxk[metrics]'") from None
        render(take_snapshot(self._kernel))
        try:
            listeners = await trio.open_tcp_listeners(self.port, host=self.host)
        except OSError as exc:
            why = exc.strerror or str(exc)
            raise UsageError(f"metrics: {self.host}:{self.port}: {why}", errno=exc.errno or errno.EINVAL) from None
        listener, others = listeners[0], listeners[1:]
        for other in others:  # a name with several addresses: the first
            await other.aclose()
        self.port = listener.socket.getsockname()[1]
        self._kernel.machine.log("info", "metrics", f"listening on {self.host}:{self.port}")
        async with listener, trio.open_nursery() as nursery:
            task_status.started()
            while True:
                stream = await self._accept(listener)
                if stream is not None:
                    self._accepted += 1
                    if self._clients >= CLIENTS_MAX:
                        self._refused += 1
                        await trio.aclose_forcefully(stream)
                    else:
                        self._clients += 1
                        nursery.start_soon(self._client, stream)
                if self._accepted % _BURST == 0:
                    await trio.sleep(_PAUSE_S)

    def statistics(self) -> MetricsStatistics:
        """Counts since it began to listen."""
        return MetricsStatistics(self._clients, self._accepted, self._served, self._refused, self._snapshots)

    async def _accept(self, listener: trio.SocketListener) -> trio.SocketStream | None:
        try:
            return await listener.accept()
        except OSError as exc:
            if exc.errno not in _SCARCE:
                raise
            await trio.sleep(0.1)
            return None

    # --- one client ---

    async def _client(self, stream: trio.SocketStream) -> None:
        import h11

        try:
            with trio.move_on_after(DEADLINE_S):
                try:
                    await self._converse(stream, h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX_BYTES))
                finally:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                        await trio.aclose_forcefully(stream)
        except _GONE:
            pass
        except Exception as exc:  # a defect of this file, or of a library's, must not end the kernel
            self._kernel.machine.log("warning", "metrics", f"connection closed: {type(exc).__name__}: {exc}"[:200])
        finally:
            self._clients -= 1

    async def _converse(self, stream: trio.SocketStream, http: h11.Connection) -> None:
        """One request, one answer."""
        import h11

        try:
            request = await _request(stream, http)
            if request is None:
                return
            answer = await self._answer(request)
        except h11.RemoteProtocolError as exc:
            self._refused += 1
            request, answer = None, _Answer(exc.error_status_hint, f"{exc}\n".encode())
        headers = [("Content-Type", answer.kind), ("Content-Length", str(len(answer.body))), ("Connection", "close")]
        if answer.status == 405:
            headers.append(("Allow", "GET, HEAD"))
        head = h11.Response(
            status_code=answer.status, headers=headers, reason=HTTPStatus(answer.status).phrase.encode()
        )
        if http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        await stream.send_all(http.send(head) or b"")
        if request is None or request.method != b"HEAD":
            await stream.send_all(answer.body)
        await stream.send_eof()

    async def _answer(self, request: h11.Request) -> _Answer:
        headers = {bytes(name): bytes(value) for name, value in request.headers}
        if not self._is_ours(headers.get(b"host", b"").decode("latin-1")):
            self._refused += 1
            return _Answer(421, b"this server answers to its own address only\n")
        if request.method not in (b"GET", b"HEAD"):
            return _Answer(405, b"expected GET\n")
        if bytes(request.target).partition(b"?")[0] != b"/metrics":
            return _Answer(404, b"expected /metrics\n")
        body, kind = await self._text(headers.get(b"accept", b"").decode("latin-1"))
        self._served += 1
        return _Answer(200, body, kind)

    def _is_ours(self, host: str) -> bool:
        """Whether a request's Host names this server; where it was told to listen wider, any does."""
        if not _is_loopback(self.host):
            return True
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        return not host or name == self.host or _is_loopback(name.strip("[]"))

    async def _text(self, accept: str) -> tuple[bytes, str]:
        """The answer, made by a thread: from a snapshot that is not much older than the question."""
        form = "application/openmetrics-text" if "application/openmetrics-text" in accept else ""
        async with self._rendering:
            now_ns = time.monotonic_ns()
            if self._snapshot is None or now_ns > self._stale_ns:
                self._snapshot, self._stale_ns, self._texts = take_snapshot(self._kernel), now_ns + FRESH_NS, {}
                self._snapshots += 1
            if form not in self._texts:
                self._texts[form] = await trio.to_thread.run_sync(render, self._snapshot, form, abandon_on_cancel=True)
                done_ns = time.monotonic_ns()
                self._stale_ns = max(self._stale_ns, done_ns + REST * (done_ns - now_ns))
            return self._texts[form]


async def _request(stream: trio.SocketStream, http: h11.Connection) -> h11.Request | None:
    """The head of a request; what follows is not read.  None if the client hangs up first."""
    import h11

    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = await stream.receive_some(4096)
            if not data:
                return None
            http.receive_data(bytes(data))
        elif isinstance(event, h11.Request):
            return event
        else:
            return None


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
