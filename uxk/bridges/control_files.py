"""The kernel's end of the control socket's requests for files: one session for each connection.

Each request has a task of its own, so that one that waits (for a driver, for news of an attribute) holds up nobody;
its answer goes out when it is there.  Nothing outlives the connection.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeAlias

import msgspec
import trio

from uxk.bridges.control import Connection, failure_of
from uxk.bridges.face.api import Face, FaceFile
from uxk.core.kobject import split_path
from uxk.errors import KernelBug, ProtocolError, RingFull, TreeError, UsageError, UxkError
from uxk.kernel.chardev import BUILTIN
from uxk.uapi import control as c

Link: TypeAlias = Connection[c.ToKernel]
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class FileSession:
    """An async context manager around one connection's conversation.

    ``note`` hears of what changes something or asks a driver: it is part of the run.  ``warn`` hears of defects.
    """

    def __init__(
        self, face: Face, link: Link, note: Callable[[c.FileRequest], None], warn: Callable[[str], None]
    ) -> None:
        self._face = face
        self._link = link
        self._note = note
        self._warn = warn
        self._files: dict[int, tuple[FaceFile, bool]] = {}
        self._next = 0
        self._under_way: dict[int, trio.CancelScope] = {}
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> FileSession:
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Ends all requests and closes all files; drivers are told, and not waited for."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        try:
            await self._manager.__aexit__(None, None, None)  # never in a group: what the body raised goes on as it is
        finally:
            for file, _ in self._files.values():
                with trio.CancelScope(shield=True) as scope:
                    scope.cancel()
                    await file.aclose()
            self._files.clear()

    @property
    def count(self) -> int:
        """Open files."""
        return len(self._files)

    async def begin(self, request: c.FileRequest) -> None:
        """Starts a request; its answer comes by itself.  ProtocolError for a number that is under way."""
        if self._nursery is None:
            raise UsageError("no session of files")
        if request.cid in self._under_way:
            raise ProtocolError(f"request {request.cid} is under way already", errno=errno.EINVAL)
        if len(self._under_way) >= c.FILE_REQUESTS_MAX:
            full = RingFull(f"{c.FILE_REQUESTS_MAX} requests for files are under way already")
            await self._link.send(failure_of(request.cid, full))
            return
        self._under_way[request.cid] = trio.CancelScope()
        self._nursery.start_soon(self._run, request)

    def cancel(self, cid: int) -> None:
        """Ends a request early; nothing happens if it is over."""
        scope = self._under_way.get(cid)
        if scope is not None:
            scope.cancel()

    # --- one request, in its task ---

    async def _run(self, request: c.FileRequest) -> None:
        assert self._nursery is not None
        answer: bytes | Exception = TreeError("the request was cancelled", errno=errno.ECANCELED)
        scope = self._under_way[request.cid]
        try:
            with scope:
                answer = encode_value(await self._perform(request))
        except UxkError as exc:
            answer = exc
        except Exception as exc:
            self._warn(f"{type(request).__name__}: {type(exc).__name__}: {exc}")
            answer = exc
        try:
            if isinstance(answer, bytes):
                await send_value(self._link, request.cid, answer)
            else:
                await self._link.send(failure_of(request.cid, answer))
        except _GONE:
            self._nursery.cancel_scope.cancel()
        finally:
            del self._under_way[request.cid]

    async def _perform(self, request: c.FileRequest) -> Any:
        face = self._face
        match request:
            case c.StatFile(path=path):
                return await face.stat(path)
            case c.ScanFolder(path=path):
                return await face.scan(path)
            case c.ReadLink(path=path):
                return await face.readlink(path)
            case c.ReadFile(path=path):
                return await face.read(path)
            case c.ReadRange(path=path, offset=offset, size_bytes=size_bytes):
                return await face.read_at(path, offset, size_bytes)
            case c.WriteFile(path=path, data=data):
                self._note(request)
                return await face.write(path, data)
            case c.OpenFile():
                return await self._open(request)
            case _:
                return await self._on_file(request)

    async def _on_file(self, request: c.ReadOpen | c.WriteOpen | c.PollOpen | c.IoctlOpen | c.CloseOpen) -> Any:
        entry = self._files.get(request.file)
        if entry is None:
            raise TreeError(f"no open file {request.file} on this connection", errno=errno.EBADF)
        file, device = entry
        if isinstance(request, c.WriteOpen) or (device and not isinstance(request, c.PollOpen)):
            self._note(request)
        match request:
            case c.ReadOpen(size_bytes=size_bytes, wait=wait):
                return await file.read(size_bytes, wait=wait)
            case c.WriteOpen(data=data):
                return await file.write(data)
            case c.PollOpen(mask=mask):
                return await file.poll(mask)
            case c.IoctlOpen(command=command, argument=argument):
                return await file.ioctl(command, argument)
            case c.CloseOpen():
                del self._files[request.file]
                await file.aclose()
                return None

    async def _open(self, request: c.OpenFile) -> int:
        if len(self._files) >= c.FILES_MAX:
            raise TreeError(f"{request.path}: {c.FILES_MAX} files are open already", errno=errno.EMFILE)
        names = split_path(request.path)
        device = names[:1] == ["dev"] and names[1:] not in ([name] for name in BUILTIN)
        if device:
            self._note(request)
        file = await self._face.open(request.path, request.mode)
        if len(self._files) >= c.FILES_MAX:  # others were opened meanwhile
            await file.aclose()
            raise TreeError(f"{request.path}: {c.FILES_MAX} files are open already", errno=errno.EMFILE)
        self._next += 1
        self._files[self._next] = file, device
        return self._next


def encode_value(value: object) -> bytes:
    """The bytes of an answer.  Raises KernelBug if the kernel gave what cannot cross, UsageError if it is too big."""
    try:
        data = msgspec.msgpack.encode(value)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as exc:
        raise KernelBug(f"{type(value).__name__} cannot be sent: {exc}") from exc
    if len(data) > c.REPLY_MAX_BYTES:
        raise UsageError(f"answer of {len(data)} bytes, at most {c.REPLY_MAX_BYTES}", errno=errno.EFBIG)
    return data


async def send_value(link: Link, cid: int, data: bytes) -> None:
    """Sends a value in as many parts as it needs."""
    for start in range(0, len(data), c.PART_MAX_BYTES):
        end = start + c.PART_MAX_BYTES
        await link.send(c.Part(cid, data[start:end], end < len(data)))
