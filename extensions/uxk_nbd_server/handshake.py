"""The handshake, without I/O: bytes in, bytes out, until there is an export or an end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final, Literal, NamedTuple, TypeAlias

from uxk_nbd_server.wire import (
    ALLOCATION,
    ALLOCATION_ID,
    CLIENT_FLAGS,
    EXPORT_ANSWER,
    EXPORT_ZEROES,
    FIXED_NEWSTYLE,
    GREETING,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    NAME_MAX_BYTES,
    NBD_MAGIC,
    NO_ZEROES,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    U16,
    U32,
    Info,
    Option,
    Rep,
    Tx,
)

TlsPolicy: TypeAlias = Literal["off", "allow", "require"]
State: TypeAlias = Literal["flags", "options", "tls", "transmission", "closed"]

OPTIONS_MAX: Final = 1000
"""Options of one client; who asks more often wants no export."""
UNSENT_MAX_BYTES: Final = 256 << 10
"""With more to send, nothing more is done until it is sent: some options have long answers."""
OPTION_MAX_BYTES: Final = 64 << 10
"""Longest data of an option that is read: a name and fifteen queries of full length."""
SKIP_MAX_BYTES: Final = 1 << 20
"""Longest data that is thrown away and answered with an error; beyond, the connection ends."""
_NEVER_NAMED: Final = "\0"
"""No export is called so: what a client has not named yet."""


class ExportInfo(NamedTuple):
    """What a client is told of an export."""

    name: str
    description: str
    size_bytes: int
    flags: Tx
    """Without DF, which goes with structured replies."""
    block_min_bytes: int
    block_preferred_bytes: int
    block_max_bytes: int


class Malformed(Exception):
    """Data of an option that contradict themselves."""


class Handshake:
    """One client's handshake.  Feed it with :meth:`receive` and send what it returns until :attr:`state` changes.

    ``tls``: begin TLS, then call :meth:`secured`.  ``transmission``: :attr:`export`, :attr:`structured` and
    :attr:`allocation` are what was agreed on, :attr:`rest` the bytes that came after it.  ``closed``: hang up,
    :attr:`reason` says why.
    """

    def __init__(
        self, find: Callable[[str], ExportInfo | None], listed: Callable[[], Sequence[ExportInfo]],
        tls: TlsPolicy = "off",
    ) -> None:  # fmt: skip
        self._find = find
        self._listed = listed
        self._tls = tls
        self._secure = False
        self._buffer = bytearray()
        self._skip_bytes = 0
        self._no_zeroes = False
        self._options = 0
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._context_of = _NEVER_NAMED
        self.state: State = "flags"
        self.reason = ""
        self.export: ExportInfo | None = None
        self.structured = False
        self.allocation = False
        """Whether BLOCK_STATUS may be asked for ``base:allocation``."""

    @staticmethod
    def greeting() -> bytes:
        """What the server says first."""
        return GREETING.pack(NBD_MAGIC, OPTION_MAGIC, FIXED_NEWSTYLE | NO_ZEROES)

    @property
    def rest(self) -> bytes:
        """Bytes received and not used."""
        return bytes(self._buffer)

    def receive(self, data: bytes | memoryview) -> bytes:
        """Takes bytes of the client's and returns those for it.  Never raises for anything a client may send.

        It may stop before all is done: call it again, with nothing new, until it returns nothing.
        """
        self._buffer += data
        while self._out_bytes < UNSENT_MAX_BYTES and self._step():
            pass
        out, self._out, self._out_bytes = self._out, [], 0
        return b"".join(out)

    def secured(self) -> None:
        """TLS is up: what was agreed on before is void."""
        self._secure = True
        self.structured = self.allocation = False
        self._context_of = _NEVER_NAMED
        self.state = "options"

    def _step(self) -> bool:
        """One thing of what is in the buffer; False if nothing is complete."""
        buffer = self._buffer
        if self._skip_bytes:
            gone = min(self._skip_bytes, len(buffer))
            del buffer[:gone]
            self._skip_bytes -= gone
            return gone > 0
        if self.state == "flags" and len(buffer) >= CLIENT_FLAGS.size:
            (flags,) = CLIENT_FLAGS.unpack_from(buffer)
            del buffer[: CLIENT_FLAGS.size]
            if flags & ~(FIXED_NEWSTYLE | NO_ZEROES):
                return self._close(f"unknown client flags {flags:#x}")
            self._no_zeroes = bool(flags & NO_ZEROES)
            self.state = "options"
            return True
        if self.state == "options" and len(buffer) >= OPTION.size:
            return self._option()
        return False

    def _option(self) -> bool:
        magic, option, length = OPTION.unpack_from(self._buffer)
        if magic != OPTION_MAGIC:
            return self._close(f"option with magic {magic:#x}")
        if length > SKIP_MAX_BYTES or (length > OPTION_MAX_BYTES and option == Option.EXPORT_NAME):
            return self._close(f"option {option} with {length} bytes of data")
        if length <= OPTION_MAX_BYTES and len(self._buffer) < OPTION.size + length:
            return False
        self._options += 1
        if self._options > OPTIONS_MAX:
            return self._close(f"more than {OPTIONS_MAX} options")
        if length > OPTION_MAX_BYTES:
            del self._buffer[: OPTION.size]
            self._skip_bytes = length
            self._error(option, Rep.ERR_TOO_BIG, f"{length} bytes, at most {OPTION_MAX_BYTES}")
            return True
        data = bytes(self._buffer[OPTION.size : OPTION.size + length])
        del self._buffer[: OPTION.size + length]
        self._act(option, data)
        return self.state == "options"

    def _act(self, option: int, data: bytes) -> None:
        """Answers one option."""
        if self._tls == "require" and not self._secure and option not in (Option.ABORT, Option.STARTTLS):
            if option == Option.EXPORT_NAME:
                self._close("export asked for without TLS")
            else:
                self._error(option, Rep.ERR_TLS_REQD, "this server wants TLS first")
            return
        try:
            match option:
                case Option.EXPORT_NAME:
                    self._export_name(data)
                case Option.ABORT:
                    self._reply(option, Rep.ACK)
                    self._close("aborted by the client")
                case Option.LIST:
                    self._list(data)
                case Option.STARTTLS:
                    self._starttls(data)
                case Option.INFO | Option.GO:
                    self._info(option, data)
                case Option.STRUCTURED_REPLY:
                    _nothing(data)
                    self.structured = True
                    self._reply(option, Rep.ACK)
                case Option.LIST_META_CONTEXT | Option.SET_META_CONTEXT:
                    self._meta(option, data)
                case _:
                    self._error(option, Rep.ERR_UNSUP, "unknown option")
        except Malformed as exc:
            self._error(option, Rep.ERR_INVALID, str(exc))

    # --- the options ---

    def _export_name(self, data: bytes) -> None:
        name = data.decode(errors="replace")
        export = self._find(name) if len(data) <= NAME_MAX_BYTES else None
        if export is None:
            self._close(f"unknown export {name[:80]!r}")
            return
        self._out.append(EXPORT_ANSWER.pack(export.size_bytes, self._flags(export)))
        if not self._no_zeroes:
            self._out.append(EXPORT_ZEROES)
        self._begin(export)

    def _list(self, data: bytes) -> None:
        _nothing(data)
        for export in self._listed():
            name = export.name.encode()
            self._reply(Option.LIST, Rep.SERVER, U32.pack(len(name)) + name + export.description.encode())
        self._reply(Option.LIST, Rep.ACK)

    def _starttls(self, data: bytes) -> None:
        _nothing(data)
        if self._tls == "off":
            self._error(Option.STARTTLS, Rep.ERR_UNSUP, "this server has no TLS")
        elif self._secure:
            raise Malformed("TLS is up already")
        elif self._buffer:  # said in the clear, it would be taken for said under TLS
            self._close("data before TLS was up")
        else:
            self._reply(Option.STARTTLS, Rep.ACK)
            self.state = "tls"

    def _info(self, option: int, data: bytes) -> None:
        name, position = _text(data, 0)
        (count,) = _unpacked(U16, data, position)
        if len(data) != position + U16.size * (1 + count):
            raise Malformed(f"{count} requests for information in {len(data)} bytes")
        wanted = {_unpacked(U16, data, position + U16.size * (1 + index))[0] for index in range(count)}
        export = self._find(name)
        if export is None:
            self._error(option, Rep.ERR_UNKNOWN, f"no export {name[:80]!r}")
            return
        self._reply(option, Rep.INFO, INFO_EXPORT.pack(Info.EXPORT, export.size_bytes, self._flags(export)))
        if Info.NAME in wanted:
            self._reply(option, Rep.INFO, U16.pack(Info.NAME) + export.name.encode())
        if Info.DESCRIPTION in wanted and export.description:
            self._reply(option, Rep.INFO, U16.pack(Info.DESCRIPTION) + export.description.encode())
        if Info.BLOCK_SIZE in wanted:
            sizes = (export.block_min_bytes, export.block_preferred_bytes, export.block_max_bytes)
            self._reply(option, Rep.INFO, INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, *sizes))
        self._reply(option, Rep.ACK)
        if option == Option.GO:
            self._begin(export)

    def _meta(self, option: int, data: bytes) -> None:
        """Contexts: all of them if LIST asks for none in particular; SET replaces what was set before."""
        if not self.structured:
            raise Malformed("meta contexts need structured replies first")
        name, position = _text(data, 0)
        (count,) = _unpacked(U32, data, position)
        position += U32.size
        if count * U32.size > len(data) - position:
            raise Malformed(f"{count} queries in {len(data) - position} bytes")
        queries = set()
        for _ in range(count):
            query, position = _text(data, position)
            queries.add(query)
        if position != len(data):
            raise Malformed(f"{len(data) - position} bytes after the queries")
        setting = option == Option.SET_META_CONTEXT
        if setting:
            self.allocation = False
        export = self._find(name)
        if export is None:
            self._error(option, Rep.ERR_UNKNOWN, f"no export {name[:80]!r}")
            return
        if setting:
            self.allocation, self._context_of = ALLOCATION in queries, export.name
            found = self.allocation
        else:
            found = not queries or not queries.isdisjoint((ALLOCATION, "base:"))
        if found:
            self._reply(option, Rep.META_CONTEXT, U32.pack(ALLOCATION_ID) + ALLOCATION.encode())
        self._reply(option, Rep.ACK)

    # --- inside ---

    def _begin(self, export: ExportInfo) -> None:
        """A context that was set for another export is void."""
        self.export = export
        self.allocation = self.allocation and self._context_of == export.name
        self.state = "transmission"

    def _flags(self, export: ExportInfo) -> int:
        return int(export.flags | Tx.SEND_DF if self.structured else export.flags)

    def _reply(self, option: int, kind: Rep, data: bytes = b"") -> None:
        self._out.append(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data)
        self._out_bytes += OPTION_REPLY.size + len(data)

    def _error(self, option: int, kind: Rep, text: str) -> None:
        self._reply(option, kind, text.encode())

    def _close(self, reason: str) -> bool:
        self.state, self.reason = "closed", reason
        return False


def _nothing(data: bytes) -> None:
    """For options without data."""
    if data:
        raise Malformed(f"{len(data)} bytes of data, expected none")


def _unpacked(layout: Struct, data: bytes, position: int) -> tuple[int, ...]:
    """Integers at ``position``; Malformed if the data end before."""
    size = layout.size
    if position + size > len(data):
        raise Malformed(f"{len(data)} bytes of data, expected more")
    return layout.unpack_from(data, position)


def _text(data: bytes, position: int) -> tuple[str, int]:
    """A text with its length in front, and where it ends."""
    (length,) = _unpacked(U32, data, position)
    begin = position + U32.size
    if length > NAME_MAX_BYTES:
        raise Malformed(f"text of {length} bytes, at most {NAME_MAX_BYTES}")
    if begin + length > len(data):
        raise Malformed(f"text of {length} bytes in {len(data) - begin}")
    try:
        return data[begin : begin + length].decode(), begin + length
    except UnicodeDecodeError:
        raise Malformed("text that is no UTF-8") from None
