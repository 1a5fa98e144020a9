"""The face of a kernel in another process, over its control socket."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import msgspec
import trio

from uxk.bridges.control import Connection, error_of
from uxk.bridges.control_client import dial
from uxk.bridges.face.api import READ_MAX_BYTES, WRITE_MAX_BYTES, Face, FaceFile, Mode, Stat
from uxk.bridges.face.errors import check_mode, check_value, tree_errors
from uxk.core.kobject import split_path, tree_error
from uxk.errors import ProtocolError, TreeError, UsageError, UxkError
from uxk.uapi import control as c

V = TypeVar("V")
SEND_TIMEOUT_S: Final = 10
"""A message is sent whole or the connection is closed: a kernel that takes none for so long is stuck."""
_HOSTILE: Final = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)
_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)
_check: Final = msgspec.msgpack.Decoder(c.ToKernel).decode


class _Answer:
    """What has come of one answer."""

    __slots__ = ("data", "done", "error", "opens", "unwanted")

    def __init__(self, opens: bool) -> None:
        self.opens = opens
        """It is the number of a file, which somebody must close."""
        self.data = bytearray()
        self.done = trio.Event()
        self.error: UxkError | None = None
        self.unwanted = False


class SocketFace(Face):
    """``async with SocketFace(path) as face`` connects.  Any number of tasks may use it at the same time.

    Entering raises UsageError if there is no kernel, or one too old for faces (EPROTONOSUPPORT), CapabilityError if it
    is a stranger's.  When the kernel is gone, everything is ECONNRESET.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.welcome = c.Welcome(0, "unknown", 0)
        """What the kernel said of itself: protocol version, clock, process id."""
        self._link: Connection[c.ToClient] | None = None
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None
        self._answers: dict[int, _Answer] = {}
        self._cid = 0
        self._gone: TreeError | None = None

    async def __aenter__(self) -> SocketFace:
        link = await dial(self.path)
        try:
            self.welcome = await self._greet(link)
        except BaseException:
            await trio.aclose_forcefully(link.stream)
            raise
        self._link = link
        self._nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self._receive, link)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        link, self._link, self._nursery = self._link, None, None
        if link is not None:
            try:
                await trio.aclose_forcefully(link.stream)
            finally:
                await self._manager.__aexit__(None, None, None)  # in no group: what the body raised goes on as it is

    async def _greet(self, link: Connection[c.ToClient]) -> c.Welcome:
        with suppress(*_GONE):  # it may have said why
            await link.send(c.Hello(*c.Versions()))
        answer: c.ToClient | None = None
        with suppress(*_GONE):
            answer = await link.receive()
        if isinstance(answer, c.Failure):
            raise error_of(answer)
        if not isinstance(answer, c.Welcome):
            raise ProtocolError(f"{self.path}: answered {type(answer).__name__}, expected Welcome")
        if answer.version < c.VERSION_FILES:
            text = f"{self.path}: the kernel speaks version {answer.version}, files need {c.VERSION_FILES}"
            raise UsageError(text, errno=errno.EPROTONOSUPPORT)
        return answer

    # --- the tree ---

    async def stat(self, path: str) -> Stat:
        """See :class:`Face`."""
        return await self._on_path(c.StatFile, Stat, path)

    async def scan(self, path: str) -> dict[str, Stat]:
        """See :class:`Face`."""
        return await self._on_path(c.ScanFolder, dict[str, Stat], path)

    async def read(self, path: str) -> bytes:
        """See :class:`Face`."""
        return await self._on_path(c.ReadFile, bytes, path)

    async def readlink(self, path: str) -> str:
        """See :class:`Face`."""
        return await self._on_path(c.ReadLink, str, path)

    async def read_at(self, path: str, offset: int, size_bytes: int) -> bytes:
        """See :class:`Face`."""
        if offset < 0 or size_bytes < 0:
            raise tree_error(path, f"offset {offset}, {size_bytes} bytes: expected at least 0", errno.EINVAL)
        return await self._on_path(c.ReadRange, bytes, path, offset, min(size_bytes, READ_MAX_BYTES))

    async def write(self, path: str, data: bytes) -> None:
        """See :class:`Face`."""
        check_value(path, data)
        await self._on_path(c.WriteFile, type(None), path, data)

    async def open(self, path: str, mode: Mode = "r") -> FaceFile:
        """See :class:`Face`."""
        check_mode(path, mode)
        return SocketFile(self, path, await self._on_path(c.OpenFile, int, path, mode))

    async def _on_path(self, request: Callable[..., c.FileRequest], expected: type[V], path: str, *more: object) -> V:
        split_path(path)
        return await self.call(path, request, expected, path, *more)

    # --- requests and answers ---

    async def call(
        self, where: str, request: Callable[..., c.FileRequest], expected: type[V], *arguments: object
    ) -> V:  # fmt: skip
        """Sends one request and waits for its answer; cancelled, it is ended in the kernel, too."""
        self._cid += 1
        cid = self._cid
        message = request(cid, *arguments)
        with tree_errors(where):
            try:
                _check(msgspec.msgpack.encode(message))
            except (*_HOSTILE, TypeError) as exc:
                raise UsageError(f"{where}: {type(message).__name__}: {exc}") from None
            answer = self._answers[cid] = _Answer(request is c.OpenFile)
            try:
                await self._send(message)
                await answer.done.wait()
            except trio.Cancelled:
                await self._give_up(cid, answer)
                raise
            if answer.error is not None:
                raise answer.error
            try:
                return msgspec.msgpack.decode(answer.data, type=expected)
            except _HOSTILE as exc:
                raise ProtocolError(f"{where}: answer is no {expected}: {exc}") from None

    async def _send(self, message: c.ToKernel) -> None:
        """Whole or not at all, unless the kernel takes none of it: then the connection is of no use any more."""
        if self._link is None:
            raise UsageError(f"{self.path}: not connected", errno=errno.ENOTCONN)
        if self._gone is not None:
            raise self._gone
        with trio.move_on_after(SEND_TIMEOUT_S, shield=True) as scope:
            try:
                await self._link.send(message)
            except _GONE:
                return  # whoever receives learns why, and tells all who wait
        if scope.cancelled_caught:
            self._end(TreeError(f"{self.path}: the kernel takes no requests", errno=errno.ETIMEDOUT))
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _give_up(self, cid: int, answer: _Answer) -> None:
        """Nobody waits for the answer any more.  It still comes, and is thrown away."""
        if answer.done.is_set():
            self._drop(answer)
            return
        answer.unwanted = True
        with suppress(UxkError), trio.CancelScope(shield=True):
            await self._send(c.Cancel(cid))

    def _drop(self, answer: _Answer) -> None:
        """A file that was opened for nobody is closed."""
        if answer.opens and answer.error is None and self._nursery is not None:
            with suppress(*_HOSTILE):
                self._nursery.start_soon(self._close, msgspec.msgpack.decode(answer.data, type=int))

    async def _close(self, number: int) -> None:
        with suppress(UxkError):
            await self.call("/", c.CloseOpen, type(None), number)

    async def _receive(self, link: Connection[c.ToClient]) -> None:
        """Sorts what comes until the connection ends; never raises."""
        error = TreeError(f"{self.path}: the kernel is gone", errno=errno.ECONNRESET)
        try:
            while (message := await link.receive()) is not None:
                self._take(message)
        except _GONE:
            pass
        except UxkError as exc:
            error = TreeError(str(exc.args[0]), errno=exc.errno)
        finally:
            self._end(error)

    def _take(self, message: c.ToClient) -> None:
        if isinstance(message, c.Failure) and message.cid == 0:
            raise error_of(message)
        answer = None if isinstance(message, c.Welcome) else self._answers.get(message.cid)
        if answer is None or not isinstance(message, (c.Part, c.Failure)):
            raise ProtocolError(f"{self.path}: {type(message).__name__} answers nothing that was asked")
        if isinstance(message, c.Failure):
            answer.error = error_of(message)
        else:
            answer.data += message.data
            if len(answer.data) > c.REPLY_MAX_BYTES:
                raise ProtocolError(f"{self.path}: answer longer than {c.REPLY_MAX_BYTES} bytes")
            if message.more:
                return
        del self._answers[message.cid]
        answer.done.set()
        if answer.unwanted:
            self._drop(answer)

    def _end(self, error: TreeError) -> None:
        """The connection is over: everybody who waits hears why, and so does everybody who comes."""
        self._gone = self._gone or error
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.error = self._gone
            answer.done.set()


class SocketFile(FaceFile):
    """An open file in the kernel's process."""

    def __init__(self, face: SocketFace, path: str, number: int) -> None:
        self._face = face
        self._path = path
        self._number = number
        self._closed = False

    async def read(self, size_bytes: int = READ_MAX_BYTES, *, wait: bool = True) -> bytes:
        """See :class:`FaceFile`."""
        return await self._call(c.ReadOpen, bytes, max(0, min(size_bytes, READ_MAX_BYTES)), wait)

    async def write(self, data: bytes) -> int:
        """See :class:`FaceFile`."""
        if len(data) > WRITE_MAX_BYTES:
            raise tree_error(self._path, f"{len(data)} bytes, at most {WRITE_MAX_BYTES}", errno.EMSGSIZE)
        return await self._call(c.WriteOpen, int, data)

    async def poll(self, mask: int) -> int:
        """See :class:`FaceFile`."""
        return await self._call(c.PollOpen, int, mask)

    async def ioctl(self, command: str | int, argument: object = None) -> object:
        """See :class:`FaceFile`."""
        reply: Any = await self._call(c.IoctlOpen, object, command, argument)
        return reply

    async def aclose(self) -> None:
        """See :class:`FaceFile`."""
        if self._closed:
            return
        self._closed = True
        with suppress(UxkError):
            await self._face.call(self._path, c.CloseOpen, type(None), self._number)

    async def _call(self, request: Callable[..., c.FileRequest], expected: type[V], *arguments: object) -> V:
        if self._closed:
            raise tree_error(self._path, "file is closed", errno.EBADF)
        return await self._face.call(self._path, request, expected, self._number, *arguments)
