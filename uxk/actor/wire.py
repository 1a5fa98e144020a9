"""The wire protocol between a kernel and an extension's host process: messages, framing, version.  Sans-IO.

On a byte stream every message is its length, four bytes little-endian, and a MessagePack array whose first item is
the message's number.  The frames of the queues travel inside as they are, so both placements hash the same bytes.
A peer's bytes are believed in nothing: what is no message raises :class:`~uxk.errors.ProtocolError`.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Final, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from uxk import limits
from uxk.errors import ProtocolError
from uxk.uapi.manifest import Sandbox

T = TypeVar("T")

MAGIC: Final = "uxk"
VERSION_MIN: Final = 1
VERSION_MAX: Final = 1
"""Versions of this protocol that this side speaks."""
HEADER_BYTES: Final = 4
MESSAGE_MAX_BYTES: Final = 4 * limits.FRAME_MAX_BYTES
"""Longest message; a turn or an output with more frames than fit goes as several, all but the last with ``more``."""
SPLIT_BYTES: Final = 2 * limits.FRAME_MAX_BYTES
"""Frames that one message holds together before a sender begins the next."""
ANSWER_MAX_BYTES: Final = 64 << 20
"""Frames of one whole output: more would make the kernel hold what no queue could take."""
TRACEBACK_MAX_CHARS: Final = 64 << 10
WORD_MAX_CHARS: Final = 1 << 10

Number: TypeAlias = Annotated[int, Meta(ge=0, le=limits.I64_MAX)]
Word: TypeAlias = Annotated[str, Meta(max_length=WORD_MAX_CHARS)]
Text: TypeAlias = Annotated[str, Meta(max_length=TRACEBACK_MAX_CHARS)]


class Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of all messages; each has its number as tag."""


# --- kernel to child -----------------------------------------------------------------------------------


class Start(Message, tag=1):
    """The answer to a HELLO: the version to speak, who the instance is, and which class it runs."""

    version: int
    name: str
    instance: int
    seed: int
    """Where all its randomness comes from, that runs can be repeated; another one in every incarnation."""
    depth: int
    """Slots of each of its rings: entries that one output may hold."""
    now_ns: int
    params: bytes
    """As MessagePack."""
    device: str
    """Name of its own device."""
    module: str
    """Import name of the class's module."""
    qualname: str
    file: str
    """Where it lies: taken if the import name leads nowhere, or for a file given to insmod."""
    search: tuple[str, ...]
    """Folders to import from, as in the kernel's process."""
    held: bool
    """Whether the kernel holds its clock: then tasks run only when told to (SETTLE), and every message is asked for."""
    boot_ns: int
    """Kernel time 0 on the host's monotonic clock; meaningful if the clock is not held."""
    memory_bytes: int
    """Arena memory that there is: more shared memory it has no use for."""
    sandbox: Sandbox
    """What its process may do, with the parameters filled in."""
    state_version: int | None = None
    """Of the ``state`` that the instance before it hands over; None if it hands none over."""
    state: bytes = b""


class Turn(Message, tag=2):
    """One turn: requests and events, answers; with ``more``, part of one.  Answered by OUTPUT."""

    now_ns: int
    down: list[bytes]
    """Frames of requests, events, pings."""
    answers: list[bytes]
    """Frames of completions of its own commands."""
    more: bool = False


class Settle(Message, tag=3):
    """Lets the extension's tasks run until all of them wait.  Answered by OUTPUT, without frames unless ``take``."""

    now_ns: int
    take: bool


class Stop(Message, tag=4):
    """The instance is going.  Answered by OUTPUT with its last words."""

    reason: str


class Mapped(Message, tag=5):
    """The answer to MAP: bytes ``offset`` to ``offset + length`` of the memory whose descriptor comes with it.

    ``status`` is 0, or an errno with its ``text``; then there is no descriptor.
    """

    cap: int
    length: int
    offset: int
    writable: bool
    status: int = 0
    text: str = ""
    region: int = 0
    """Number of the region that these bytes are part of."""
    generation: int = 0
    """Number of the file that it lies in now: a higher one than before says that it has moved."""


class Refuse(Message, tag=6):
    """The answer to a HELLO that the kernel cannot work with; it hangs up."""

    reason: str


class Unmap(Message, tag=7):
    """Capabilities whose memory is not what was mapped any more.  Not answered."""

    ended: list[int]
    """They were revoked, or the memory is gone: let go of it."""
    moved: list[int]
    """Its contents are in a new file: ask for it again, or go on looking at the old."""


class Checkpoint(Message, tag=8):
    """Asks for the extension's state, to hand it over to another instance.  Answered by SAVED."""


# --- child to kernel -----------------------------------------------------------------------------------


class Hello(Message, tag=64):
    """The child's first word."""

    magic: Word
    version_min: Number
    version_max: Number
    runtime: Word = ""
    """Whoever speaks, for people."""


class Out(Message, tag=65):
    """What the extension said, and when it is to be called again; with ``more``, part of it.

    ``number`` counts the messages answered so far: START is 0, each TURN, SETTLE, STOP and CHECKPOINT one more.
    """

    number: Number
    replies: list[tuple[bytes, int]]
    up: list[tuple[bytes, int]]
    wake_at_ns: Annotated[int, Meta(ge=0, le=limits.I64_MAX)] | None
    """When it wants a turn at the latest."""
    daemon_wake: bool
    """Whether a run may end before that."""
    cpu_ns: Number
    """What the answer took, for its account on the real clock."""
    staged: bool = False
    """Whether its tasks have staged anything since it was last taken, or ended."""
    ended: bool = False
    """Whether its ``run`` has come to an end."""
    more: bool = False


class Crashed(Message, tag=66):
    """The extension is dead, its process is not yet; sent before the OUTPUT of the turn that killed it."""

    where: Word
    kind: Word
    message: Text
    traceback: Text
    errno: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    refusal: bool = False


class Map(Message, tag=67):
    """Asks for the memory that a capability names."""

    cap: Number
    writable: bool


class Dirty(Message, tag=68):
    """The world woke a task, which has staged something: the kernel should SETTLE."""


class Saved(Message, tag=69):
    """The answer to CHECKPOINT: the state and the version of its format, none (``version`` is None), or why not."""

    number: Number
    version: Annotated[int, Meta(ge=0, le=limits.I64_MAX)] | None
    data: Annotated[bytes, Meta(max_length=limits.STATE_MAX_BYTES)] = b""
    problem: Text = ""


FromKernel: TypeAlias = Start | Turn | Settle | Stop | Mapped | Unmap | Checkpoint | Refuse
FromChild: TypeAlias = Hello | Out | Crashed | Map | Dirty | Saved

_HOSTILE: Final = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError, MemoryError)
_encode: Final = msgspec.msgpack.Encoder().encode
_pack, _unpack_from = struct.Struct("<I").pack, struct.Struct("<I").unpack_from


def packed(message: Message) -> bytes:
    """A message as it goes onto the stream.  ProtocolError if it is too long to be sent."""
    body = _encode(message)
    length = len(body)
    if length > MESSAGE_MAX_BYTES:
        raise ProtocolError(f"{type(message).__name__} of {length} bytes, expected at most {MESSAGE_MAX_BYTES}")
    return _pack(length) + body


class Reader(Generic[T]):
    """Cuts a stream into messages.  Fill :meth:`room`, say how much with :meth:`filled`, and get what is whole."""

    __slots__ = ("_buffer", "_decode", "_end", "_view", "more")

    def __init__(self, kinds: Any, size_bytes: int = 1 << 18) -> None:
        self._decode = msgspec.msgpack.Decoder[T](kinds).decode
        self._buffer = bytearray(size_bytes)
        self._view = memoryview(self._buffer)
        self._end = 0
        """Bytes at hand; they begin with a header."""
        self.more = False
        """Whether ``filled(0)`` would find another message, or that there is none."""

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._view[self._end :]

    def filled(self, count: int, most: int = limits.I64_MAX) -> list[T]:
        """``count`` more bytes lie in :meth:`room`: the messages that are whole now, the first ``most`` of them.

        ProtocolError says what is wrong with the first that is none; the stream is of no use from then on.
        """
        self._end += count
        found: list[T] = []
        view, end, at = self._view, self._end, 0
        while end - at >= HEADER_BYTES and len(found) < most:
            (length,) = _unpack_from(view, at)
            if length > MESSAGE_MAX_BYTES:
                raise ProtocolError(f"a message of {length} bytes, expected at most {MESSAGE_MAX_BYTES}")
            stop = at + HEADER_BYTES + length
            if stop > end:
                break
            try:
                found.append(self._decode(view[at + HEADER_BYTES : stop]))
            except _HOSTILE as exc:
                raise ProtocolError(f"{length} bytes that are no message: {str(exc)[:WORD_MAX_CHARS]}") from None
            at = stop
        else:
            length = 0
        self.more = len(found) == most and self._goes_on(at)
        self._keep(at, HEADER_BYTES + length)
        return found

    def _goes_on(self, at: int) -> bool:
        """Whether more than the beginning of a message lies at ``at``."""
        left = self._end - at - HEADER_BYTES
        return left >= 0 and (left >= (length := _unpack_from(self._view, at)[0]) or length > MESSAGE_MAX_BYTES)

    def _keep(self, at: int, wanted: int) -> None:
        """Moves what is left to the front, and makes room for a message of ``wanted`` bytes."""
        left = self._end - at
        if wanted > len(self._buffer):
            grown = bytearray(max(wanted, 2 * len(self._buffer)))
            grown[:left] = self._view[at : self._end]
            self._buffer, self._view = grown, memoryview(grown)
        elif at and left:
            self._buffer[:left] = self._buffer[at : self._end]
        self._end = left


def chosen_version(hello: Hello) -> int:
    """The newest version that both sides speak.  ProtocolError if there is none, or it is no HELLO of ours."""
    if hello.magic != MAGIC:
        raise ProtocolError(f"HELLO with magic {hello.magic[:16]!r}, expected {MAGIC!r}")
    version = min(VERSION_MAX, hello.version_max)
    if version < max(VERSION_MIN, hello.version_min):
        raise ProtocolError(
            f"HELLO with versions {hello.version_min} to {hello.version_max}, this kernel speaks {VERSION_MIN} to "
            f"{VERSION_MAX}"
        )
    return version
