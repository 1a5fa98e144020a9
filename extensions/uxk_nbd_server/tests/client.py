"""A small NBD client for tests: says what it is told to, right or wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import trio

import uxk
from uxk_nbd_server.driver import NbdServer
from uxk_nbd_server.tests.ramdisk import RamDisk
from uxk_nbd_server.wire import (
    CHUNK,
    CHUNK_DONE,
    CHUNK_MAGIC,
    CLIENT_FLAGS,
    GREETING,
    NBD_MAGIC,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE,
    SIMPLE_MAGIC,
    U16,
    U32,
    Chunk,
    Cmd,
    Option,
    Rep,
)


class Answer(NamedTuple):
    """A reply: an error number, or data, or extents."""

    cookie: int
    error: int
    data: bytes
    extents: tuple[tuple[int, int], ...] = ()


class Gone(Exception):
    """The server hung up."""


class Client:
    """One connection, by hand."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.structured = False
        self.size_bytes = self.flags = 0
        self.sizes: tuple[int, ...] = ()
        self._buffer = bytearray()
        self._lengths: dict[int, int] = {}
        self._cookie = 0

    async def exactly(self, count: int) -> bytes:
        """So many bytes; Gone if the server hangs up before."""
        while len(self._buffer) < count:
            try:
                data = await self.stream.receive_some(1 << 18)
            except trio.BrokenResourceError:
                raise Gone from None
            if not data:
                raise Gone(f"after {bytes(self._buffer)!r}"[:200])
            self._buffer += data
        data, self._buffer = bytes(self._buffer[:count]), self._buffer[count:]
        return data

    async def is_hung_up(self) -> bool:
        """Whether the server says nothing more and goes, within a second."""
        with trio.move_on_after(20):
            try:
                while await self.exactly(1):
                    pass
            except Gone:
                return True
        return False

    # --- handshake ---

    async def greet(self, flags: int = 3) -> None:
        assert GREETING.unpack(await self.exactly(GREETING.size)) == (NBD_MAGIC, OPTION_MAGIC, 3)
        await self.stream.send_all(CLIENT_FLAGS.pack(flags))

    async def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """All answers to an option, the last of which is ACK or an error."""
        await self.stream.send_all(OPTION.pack(OPTION_MAGIC, option, len(data)) + data)
        return await self.option_replies(option)

    async def option_replies(self, option: int) -> list[tuple[int, bytes]]:
        answers: list[tuple[int, bytes]] = []
        while not answers or 1 < answers[-1][0] < 1 << 31:
            magic, echoed, kind, length = OPTION_REPLY.unpack(await self.exactly(OPTION_REPLY.size))
            assert (magic, echoed) == (OPTION_REPLY_MAGIC, option)
            answers.append((kind, await self.exactly(length)))
        return answers

    async def go(self, name: str = "", *, structured: bool = False, allocation: bool = False) -> None:
        """From the greeting to the transmission phase."""
        await self.greet()
        await self.choose(name, structured=structured, allocation=allocation)

    async def choose(self, name: str = "", *, structured: bool = False, allocation: bool = False) -> None:
        if structured or allocation:
            assert await self.option(Option.STRUCTURED_REPLY) == [(Rep.ACK, b"")]
            self.structured = True
        if allocation:
            answers = await self.option(Option.SET_META_CONTEXT, meta(name, ["base:allocation"]))
            assert answers == [(Rep.META_CONTEXT, b"\0\0\0\1base:allocation"), (Rep.ACK, b"")], answers
        for kind, data in await self.option(Option.GO, go_data(name, [3])):
            assert kind in (Rep.ACK, Rep.INFO), (kind, data)
            if kind == Rep.INFO and data[:2] == b"\0\0":
                self.size_bytes, self.flags = int.from_bytes(data[2:10], "big"), int.from_bytes(data[10:], "big")
            elif kind == Rep.INFO and data[:2] == b"\0\3":
                self.sizes = tuple(int.from_bytes(data[at : at + 4], "big") for at in (2, 6, 10))

    # --- transmission ---

    def packed(self, kind: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> bytes:
        """A request with the next cookie."""
        self._cookie += 1
        self._lengths[self._cookie] = length if kind == Cmd.READ else 0
        return REQUEST.pack(REQUEST_MAGIC, flags, kind, self._cookie, offset, length) + data

    async def send(self, kind: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> int:
        await self.stream.send_all(self.packed(kind, offset, length, data, flags))
        return self._cookie

    async def reply(self) -> Answer:
        """The next reply, with all its chunks."""
        data = bytearray()
        extents: list[tuple[int, int]] = []
        while True:
            magic = U32.unpack(await self.exactly(4))[0]
            if magic == SIMPLE_MAGIC:
                _, error, cookie = SIMPLE.unpack(magic.to_bytes(4, "big") + await self.exactly(SIMPLE.size - 4))
                length = 0 if error or self.structured else self._lengths[cookie]
                return Answer(cookie, error, await self.exactly(length))
            assert magic == CHUNK_MAGIC and self.structured
            header = magic.to_bytes(4, "big") + await self.exactly(CHUNK.size - 4)
            _, flags, kind, cookie, length = CHUNK.unpack(header)
            body = await self.exactly(length)
            if kind == Chunk.ERROR:
                assert flags & CHUNK_DONE
                return Answer(cookie, int.from_bytes(body[:4], "big"), b"")
            if kind == Chunk.OFFSET_DATA:
                data += body[8:]
            elif kind == Chunk.BLOCK_STATUS:
                assert body[:4] == b"\0\0\0\1"
                words = [int.from_bytes(body[at : at + 4], "big") for at in range(4, length, 4)]
                extents += zip(words[::2], words[1::2], strict=True)
            if flags & CHUNK_DONE:
                return Answer(cookie, 0, bytes(data), tuple(extents))

    async def ask(self, kind: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> Answer:
        """One request and its reply."""
        cookie = await self.send(kind, offset, length, data, flags)
        answer = await self.reply()
        assert answer.cookie == cookie
        return answer

    async def write(self, offset: int, data: bytes, flags: int = 0) -> int:
        return (await self.ask(Cmd.WRITE, offset, len(data), data, flags)).error

    async def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        answer = await self.ask(Cmd.READ, offset, length, flags=flags)
        assert not answer.error and len(answer.data) == length
        return answer.data


def text(value: str | bytes) -> bytes:
    """With its length in front."""
    data = value.encode() if isinstance(value, str) else value
    return U32.pack(len(data)) + data


def go_data(name: str, infos: Sequence[int] = ()) -> bytes:
    return text(name) + U16.pack(len(infos)) + b"".join(U16.pack(info) for info in infos)


def meta(name: str, queries: Sequence[str]) -> bytes:
    return text(name) + U32.pack(len(queries)) + b"".join(text(query) for query in queries)


class Served:
    """A kernel with a disk and a server in it."""

    def __init__(self, kernel: uxk.Kernel, path: Path) -> None:
        self.kernel = kernel
        self.path = path
        self.uri = f"nbd+unix:///?socket={path}"

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A connection; closed afterwards whatever happened."""
        stream = await trio.open_unix_socket(str(self.path))
        async with stream:
            yield Client(stream)

    def set_disk(self, name: str, value: object) -> None:
        """Sets a parameter of the disk's."""
        self.kernel.sysfs.write(f"/sys/module/nbd_ram/parameters/{name}", str(value))

    def figure(self, name: str) -> int:
        return int(self.kernel.sysfs.read(f"/sys/module/nbd_server/attributes/{name}"))

    def messages(self) -> list[str]:
        return [record.text for record in self.kernel.kmsg.records(source="nbd_server")]

    def log(self) -> list[str]:
        """What the disk was asked for last, as opcode:offset:length:flags."""
        return self.kernel.sysfs.read("/sys/module/nbd_ram/attributes/log").split()

    def account(self, instance: str) -> Any:
        return self.kernel.agents[instance].account


@asynccontextmanager
async def served(tmp_path: Path, disk: dict[str, Any] | None = None, **params: Any) -> AsyncIterator[Served]:
    """A RAM disk, exported on a Unix socket."""
    path = tmp_path / "nbd.sock"
    async with uxk.Kernel(clock="real") as kernel:
        await kernel.insmod(RamDisk, **(disk or {}))
        await kernel.insmod(NbdServer, **({"device": "nbd_ram0", "unix": str(path)} | params))
        with trio.fail_after(60):
            yield Served(kernel, path)


async def until(condition: Any) -> None:
    """Until something has come true in this process."""
    while not condition():  # noqa: ASYNC110 - nobody would set an event
        await trio.sleep(0.002)
