"""Numbers and layouts of the NBD protocol (doc/proto.md of the NBD project).  Everything is big-endian."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

# --- handshake ----------------------------------------------------------------------------------------

NBD_MAGIC: Final = 0x4E42444D41474943
"""``NBDMAGIC``"""
OPTION_MAGIC: Final = 0x49484156454F5054
"""``IHAVEOPT``"""
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9

FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2
"""Both are flags of the server's greeting and of the client's answer."""

GREETING: Final = Struct(">QQH")
CLIENT_FLAGS: Final = Struct(">I")
OPTION: Final = Struct(">QII")
OPTION_REPLY: Final = Struct(">QIII")
U16: Final = Struct(">H")
U32: Final = Struct(">I")
EXPORT_ANSWER: Final = Struct(">QH")
"""Size and transmission flags, as EXPORT_NAME is answered."""
EXPORT_ZEROES: Final = bytes(124)
"""What follows unless the client asked to leave it out."""
INFO_EXPORT: Final = Struct(">HQH")
INFO_BLOCK_SIZE: Final = Struct(">HIII")

NAME_MAX_BYTES: Final = 4096
"""Longest export name, description, or query."""


class Option(IntEnum):
    """What a client may ask during the handshake."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Rep(IntEnum):
    """Types of answers to options; from 2**31 on they are errors."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7
    ERR_TOO_BIG = (1 << 31) + 9


class Info(IntEnum):
    """Kinds of information in answers to INFO and GO."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


ALLOCATION: Final = "base:allocation"
ALLOCATION_ID: Final = 1
"""The number that stands for it in the answers to BLOCK_STATUS."""
HOLE: Final = 1
ZERO: Final = 2
"""Flags of an extent in that context."""

# --- transmission -------------------------------------------------------------------------------------


class Tx(IntFlag):
    """Transmission flags: what an export can do."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    SEND_FLUSH = 4
    SEND_FUA = 8
    SEND_TRIM = 32
    SEND_WRITE_ZEROES = 64
    SEND_DF = 128
    CAN_MULTI_CONN = 256
    SEND_CACHE = 1024
    SEND_FAST_ZERO = 2048


class Cmd(IntEnum):
    """Types of requests."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CmdFlag(IntFlag):
    """Flags of requests."""

    FUA = 1
    NO_HOLE = 2
    DF = 4
    REQ_ONE = 8
    FAST_ZERO = 16


REQUEST: Final = Struct(">IHHQQI")
"""Magic, flags, type, cookie, offset, length."""
REQUEST_MAGIC: Final = 0x25609513
SIMPLE: Final = Struct(">IIQ")
"""Magic, error, cookie."""
SIMPLE_MAGIC: Final = 0x67446698
CHUNK: Final = Struct(">IHHQI")
"""Magic, flags, type, cookie, length of what follows."""
CHUNK_DATA: Final = Struct(">IHHQIQ")
"""The same with the offset that a data chunk begins with."""
CHUNK_MAGIC: Final = 0x668E33EF
CHUNK_DONE: Final = 1
EXTENT: Final = Struct(">II")
"""Length and flags."""
ERROR: Final = Struct(">IH")
"""Error number and length of its text."""


class Chunk(IntEnum):
    """Types of structured reply chunks."""

    NONE = 0
    OFFSET_DATA = 1
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1


class Err(IntEnum):
    """Error numbers on the wire: Linux's values, whatever the system is."""

    PERM = 1
    IO = 5
    NOMEM = 12
    INVAL = 22
    NOSPC = 28
    OVERFLOW = 75
    NOTSUP = 95
    SHUTDOWN = 108


REQUEST_MAX_BYTES: Final = 32 << 20
"""Longest READ and WRITE: what every server should accept, and every client may send without asking."""
