"""A kernel that runs in another process, as its administrator sees it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import msgspec
import trio

from uxk.bridges.control import Connection, error_of, peer_uid
from uxk.errors import CapabilityError, ProtocolError, UsageError, UxkError
from uxk.uapi import control as c
from uxk.uapi.info import Dependencies, ModuleInfo, ModuleRow, Record
from uxk.uapi.metrics import Snapshot
from uxk.uapi.supervisor import SupervisorSpec

V = TypeVar("V")
_HOSTILE: Final = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)
_check: Final = msgspec.msgpack.Decoder(c.ToKernel).decode
_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class ControlClient:
    """``async with ControlClient(path) as kernel`` connects; the methods are those of a kernel.

    What the kernel refuses is raised here as the same class of UxkError.  Tasks may share a client; a request that
    is cancelled under way closes the connection, since its answer can no longer be told from the next.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.welcome = c.Welcome(0, "unknown", 0)
        """What the kernel said of itself: protocol version, clock, process id."""
        self._link: Connection[c.ToClient] | None = None
        self._busy = trio.Lock()
        self._cid = 0

    async def __aenter__(self) -> ControlClient:
        self._link = await dial(self.path)
        try:
            answer = await self._ask(c.Hello(*c.Versions()))
            if not isinstance(answer, c.Welcome):
                raise ProtocolError(f"{self.path}: answered {type(answer).__name__}, expected Welcome")
            self.welcome = answer
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hangs up."""
        link, self._link = self._link, None
        if link is not None:
            await trio.aclose_forcefully(link.stream)

    # --- modules ---

    async def lsmod(self) -> tuple[ModuleRow, ...]:
        """Loaded instances, the newest first."""
        return await self._call(c.ListModules, tuple[ModuleRow, ...], False)

    async def available(self) -> tuple[ModuleRow, ...]:
        """Modules that could be loaded."""
        return await self._call(c.ListModules, tuple[ModuleRow, ...], True)

    async def modprobe(self, name: str, params: Mapping[str, str] | None = None, *, instance: str = "") -> str:
        """Loads a module with what it depends on; the instance's name."""
        return await self._call(c.Modprobe, str, name, dict(params or {}), instance)

    async def insmod(self, path: str | Path, params: Mapping[str, str] | None = None, *, instance: str = "") -> str:
        """Loads a single file, which the kernel's process must be able to read; the instance's name."""
        return await self._call(c.Insmod, str, absolute(path), dict(params or {}), instance)

    async def rmmod(self, name: str) -> None:
        """Unloads an instance; InUse names who holds it."""
        await self._call(c.Rmmod, type(None), name)

    async def upgrade(
        self, name: str, to: str = "", params: Mapping[str, str] | None = None, *, quiesce_ns: int | None = None,
        probation_ns: int | None = None, kpi: str = "",
    ) -> str:  # fmt: skip
        """Replaces an instance's build, by itself if ``to`` is empty; the version that runs then."""
        if to.endswith((".py", ".toml")) or "/" in to:
            to = absolute(to)
        return await self._call(c.Upgrade, str, name, to, dict(params or {}), quiesce_ns, probation_ns, kpi)

    async def supervise(self, spec: SupervisorSpec) -> None:
        """Puts instances under a supervisor."""
        await self._call(c.Supervise, type(None), spec)

    async def unsupervise(self, name: str) -> None:
        """Takes a supervisor away."""
        await self._call(c.Unsupervise, type(None), name)

    async def modinfo(self, name: str) -> ModuleInfo:
        """What a module says of itself."""
        return await self._call(c.Modinfo, ModuleInfo, name)

    async def depmod(self) -> Dependencies:
        """Dependencies and aliases of every module that the kernel can find."""
        return await self._call(c.Depmod, Dependencies)

    # --- log ---

    async def dmesg(self, levels: int = 255) -> list[Record]:
        """The records held, oldest first; bit n of ``levels`` asks for level n."""
        return list((await self._call(c.Dmesg, c.LogBatch, levels)).records)

    async def follow(self, levels: int = 255, *, oldest: bool = True) -> KmsgStream:
        """Records as they come, for ``async for``.  The connection is good for nothing else afterwards."""
        async with self._busy:
            await self._send(c.Follow(self._next_cid(), levels, oldest))
        return KmsgStream(self)

    # --- tree ---

    async def read(self, path: str) -> str:
        """An attribute's text."""
        return await self._call(c.ReadAttribute, str, path)

    async def write(self, path: str, value: str) -> None:
        """Writes an attribute."""
        await self._call(c.WriteAttribute, type(None), path, value)

    async def listdir(self, path: str = "/") -> tuple[c.TreeEntry, ...]:
        """A directory's entries by name."""
        return await self._call(c.ListDirectory, tuple[c.TreeEntry, ...], path)

    async def stat(self, path: str) -> c.TreeEntry:
        """What is there; a link at the end is not followed."""
        return await self._call(c.StatPath, c.TreeEntry, path)

    async def render(self, path: str = "/", *, values: bool = False) -> str:
        """A picture like that of ``tree``."""
        return await self._call(c.Render, str, path, values)

    async def statistics(self, name: str = "") -> dict[str, Any]:
        """Figures of an instance, or of the kernel."""
        return await self._call(c.Statistics, dict[str, Any], name)

    async def metrics(self) -> Snapshot:
        """All counters at one instant."""
        return await self._call(c.Metrics, Snapshot)

    # --- inside ---

    def _live(self) -> Connection[c.ToClient]:
        if self._link is None:
            raise UsageError(f"{self.path}: not connected", errno=errno.ENOTCONN)
        return self._link

    def _next_cid(self) -> int:
        self._cid += 1
        return self._cid

    async def _call(self, request: Callable[..., c.Request], expected: type[V], *arguments: object) -> V:
        """Sends one request and returns its answer's value."""
        async with self._busy:
            cid = self._next_cid()
            answer = await self._ask(request(cid, *arguments))
            return await self._value(answer, cid, expected)

    async def _ask(self, message: c.ToKernel) -> c.ToClient:
        await self._send(message)
        return await self._next()

    async def _send(self, message: c.ToKernel) -> None:
        """Refuses here what the kernel would hang up upon.  A kernel that is gone may have said why: read on."""
        try:
            _check(msgspec.msgpack.encode(message))
        except _HOSTILE as exc:
            raise UsageError(f"{type(message).__name__}: {exc}") from None
        with suppress(*_GONE):
            await self._guarded(self._live().send, message)

    async def _next(self) -> c.ToClient:
        try:
            answer: c.ToClient | None = await self._guarded(self._live().receive)
        except _GONE:
            answer = None
        if answer is None:
            await self.aclose()
            raise UxkError(f"{self.path}: the kernel is gone", errno=errno.ECONNRESET)
        if isinstance(answer, c.Failure) and answer.cid == 0:
            await self.aclose()
            raise error_of(answer)
        return answer

    async def _guarded(self, operation: Callable[..., Any], *arguments: object) -> Any:
        """Runs an operation on the connection.  One that is out of step afterwards is closed."""
        try:
            return await operation(*arguments)
        except _GONE:
            raise
        except BaseException:
            await self.aclose()
            raise

    async def _value(self, answer: c.ToClient, cid: int, expected: type[V]) -> V:
        data = bytearray()
        while True:
            if isinstance(answer, c.Failure) and answer.cid == cid:
                raise error_of(answer)
            if not isinstance(answer, c.Part) or answer.cid != cid:
                await self.aclose()
                raise ProtocolError(f"{self.path}: {type(answer).__name__} is no answer to request {cid}")
            data += answer.data
            if len(data) > c.REPLY_MAX_BYTES:
                await self.aclose()
                raise ProtocolError(f"{self.path}: answer longer than {c.REPLY_MAX_BYTES} bytes")
            if not answer.more:
                break
            answer = await self._next()
        try:
            return msgspec.msgpack.decode(data, type=expected)
        except _HOSTILE as exc:
            raise ProtocolError(f"{self.path}: answer is no {expected}: {exc}") from None

    async def _next_batch(self) -> c.LogBatch | None:
        """The next of a stream, None at its end."""
        async with self._busy:
            answer = await self._next()
            return None if isinstance(answer, c.End) else await self._value(answer, self._cid, c.LogBatch)


class KmsgStream:
    """Batches of records and how many were lost before each, until the kernel shuts down."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def __aiter__(self) -> KmsgStream:
        return self

    async def __anext__(self) -> tuple[list[Record], int]:
        batch = await self._client._next_batch()
        if batch is None:
            raise StopAsyncIteration
        return list(batch.records), batch.lost


async def dial(path: Path) -> Connection[c.ToClient]:
    """A connection to a kernel's socket.  Raises UsageError with a hint, CapabilityError if it is a stranger's."""
    try:
        stream = await trio.open_unix_socket(os.fspath(path))
    except (OSError, ValueError) as exc:
        number = exc.errno if isinstance(exc, OSError) else errno.ENAMETOOLONG
        reason = os.strerror(number) if number else str(exc)
        hint = ""
        if number in (errno.ENOENT, errno.ECONNREFUSED):
            hint = f" (start one with: uxk boot --socket {path})"
        elif number in (errno.EACCES, errno.EPERM):
            hint = " (the socket belongs to its owner: only that user may connect)"
        raise UsageError(f"no kernel at {path}: {reason}{hint}", errno=number or errno.EIO) from exc
    uid, own = peer_uid(stream.socket), os.geteuid()
    if uid not in (None, 0, own) and own != 0:
        await trio.aclose_forcefully(stream)
        raise CapabilityError(f"{path}: belongs to uid {uid}, expected {own} or 0")
    return Connection(stream, c.ToClient)


def absolute(path: str | Path) -> str:
    """Where a file is, told to somebody with another working directory."""
    return str(Path(path).absolute())
