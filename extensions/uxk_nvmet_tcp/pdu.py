"""NVMe/TCP protocol data units: layouts, and functions that build them.

Source: NVM Express TCP Transport Specification 1.0, section 3.6.  Everything is little-endian; lengths in bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
Crc: TypeAlias = Callable[[Buffer, int], int]
"""CRC32C of some bytes, continuing from a value (0 to begin with)."""


class PduType(IntEnum):
    """The first byte of a PDU."""

    IC_REQ = 0
    IC_RESP = 1
    H2C_TERM_REQ = 2
    C2H_TERM_REQ = 3
    CAPSULE_CMD = 4
    CAPSULE_RESP = 5
    H2C_DATA = 6
    C2H_DATA = 7
    R2T = 9


class Flag(IntFlag):
    """The second byte."""

    HDGST = 1
    DDGST = 2
    LAST = 4
    SUCCESS = 8


class Fes(IntEnum):
    """Fatal error status of a termination request."""

    INVALID_FIELD = 1
    SEQUENCE = 2
    HEADER_DIGEST = 3
    OUT_OF_RANGE = 4
    LIMIT_EXCEEDED = 5
    UNSUPPORTED = 6


HEADER_BYTES: Final = {
    PduType.IC_REQ: 128, PduType.IC_RESP: 128, PduType.H2C_TERM_REQ: 24, PduType.C2H_TERM_REQ: 24,
    PduType.CAPSULE_CMD: 72, PduType.CAPSULE_RESP: 24, PduType.H2C_DATA: 24, PduType.C2H_DATA: 24, PduType.R2T: 24,
}  # fmt: skip
"""HLEN of each type."""
DIGEST_BYTES: Final = 4
TERM_DATA_MAX_BYTES: Final = 128
"""Of the offending header inside a termination request."""

COMMON: Final = struct.Struct("<BBBBI")
"""Type, flags, HLEN, PDO, PLEN."""
IC: Final = struct.Struct("<BBBBIHBBI112x")
"""Common header; PFV, HPDA or CPDA, DGST, MAXR2T or MAXH2CDATA."""
TERM: Final = struct.Struct("<BBBBIHI10x")
"""Common header; FES, FEI."""
DATA: Final = struct.Struct("<BBBBIHHII4x")
"""Common header; CID, TTAG, offset, length: H2CData, C2HData (TTAG 0) and R2T."""
RESPONSE: Final = struct.Struct("<BBBBIQHHHH")
"""Common header; result (DW0 and DW1), SQHD, SQID, CID, status << 1."""
DIGEST: Final = struct.Struct("<I")

_HDGST: Final = int(Flag.HDGST)
_DDGST: Final = int(Flag.DDGST)


class Common(NamedTuple):
    """The common header."""

    type: int
    flags: int
    hlen: int
    pdo: int
    plen: int


class Digests(NamedTuple):
    """What a connection has agreed on."""

    crc: Crc | None = None
    header: bool = False
    data: bool = False
    align_bytes: int = 4
    """Data of C2HData begin at a multiple of this (HPDA)."""


def ic_req(*, pfv: int = 0, hpda: int = 0, dgst: int = 0, maxr2t: int = 0) -> bytes:
    """What a host says first."""
    return IC.pack(PduType.IC_REQ, 0, 128, 0, 128, pfv, hpda, dgst, maxr2t)


def ic_resp(dgst: int, max_h2c_bytes: int) -> bytes:
    """The controller's answer: no alignment asked for."""
    return IC.pack(PduType.IC_RESP, 0, 128, 0, 128, 0, 0, dgst, max_h2c_bytes)


def term_req(kind: PduType, fes: int, fei: int, header: Buffer = b"") -> bytes:
    """A termination request with (the beginning of) the header that was wrong."""
    shown = bytes(header[:TERM_DATA_MAX_BYTES])
    return TERM.pack(kind, 0, 24, 0, 24 + len(shown), fes, fei) + shown


def with_digest(header: bytes, digests: Digests) -> bytes:
    """The header, and its digest if there is to be one."""
    if digests.header and digests.crc is not None:
        return header + DIGEST.pack(digests.crc(header, 0))
    return header


def capsule_resp(result: int, sqhd: int, sqid: int, cid: int, status: int, digests: Digests) -> bytes:
    """A completion; ``status`` has 15 bits, without the phase."""
    if digests.header:
        return with_digest(RESPONSE.pack(5, _HDGST, 24, 0, 28, result, sqhd, sqid, cid, status << 1), digests)
    return RESPONSE.pack(5, 0, 24, 0, 24, result, sqhd, sqid, cid, status << 1)


def r2t(cid: int, ttag: int, offset_bytes: int, length_bytes: int, digests: Digests) -> bytes:
    """Asks for data of a command."""
    if digests.header:
        return with_digest(DATA.pack(9, _HDGST, 24, 0, 28, cid, ttag, offset_bytes, length_bytes), digests)
    return DATA.pack(9, 0, 24, 0, 24, cid, ttag, offset_bytes, length_bytes)


def c2h_data(cid: int, offset_bytes: int, data: Buffer, flags: int, digests: Digests) -> list[Buffer]:
    """Data to the host, as pieces to be sent one after the other."""
    length = len(data)
    if not (digests.header or digests.data or 24 % digests.align_bytes):
        return [DATA.pack(7, flags, 24, 24, 24 + length, cid, 0, offset_bytes, length), data]
    return data_pdu(PduType.C2H_DATA, cid, 0, offset_bytes, data, flags, digests)


def data_pdu(
    kind: PduType, cid: int, ttag: int, offset_bytes: int, data: Buffer, flags: int, digests: Digests
) -> list[Buffer]:
    """C2HData or H2CData with digests and padding."""
    head = 24 + (DIGEST_BYTES if digests.header else 0)
    pdo = -(-head // digests.align_bytes) * digests.align_bytes
    flags |= (_HDGST if digests.header else 0) | (_DDGST if digests.data else 0)
    plen = pdo + len(data) + (DIGEST_BYTES if digests.data else 0)
    header = with_digest(DATA.pack(kind, flags, 24, pdo, plen, cid, ttag, offset_bytes, len(data)), digests)
    pieces: list[Buffer] = [header + bytes(pdo - head), data]
    if digests.data and digests.crc is not None:
        pieces.append(DIGEST.pack(digests.crc(data, 0)))
    return pieces


def capsule_cmd(sqe: bytes, data: Buffer, digests: Digests) -> bytes:
    """A command as hosts send it, with data in the capsule if there are any."""
    head = 72 + (DIGEST_BYTES if digests.header else 0)
    digest = DIGEST_BYTES if data and digests.data else 0
    flags = (_HDGST if digests.header else 0) | (_DDGST if digest else 0)
    plen = head + len(data) + digest
    capsule = with_digest(COMMON.pack(PduType.CAPSULE_CMD, flags, 72, head if data else 0, plen) + sqe, digests)
    if digest and digests.crc is not None:
        return capsule + data + DIGEST.pack(digests.crc(data, 0))
    return capsule + bytes(data)
