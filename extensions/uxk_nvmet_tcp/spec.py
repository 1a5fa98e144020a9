"""Numbers of NVMe that the target itself needs; everything else passes through.

Sources: NVM Express Base Specification 2.0 (opcodes, status codes, properties, fabrics commands).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

DISCOVERY_NQN: Final = "nqn.2014-08.org.nvmexpress.discovery"
PAGE_BYTES: Final = 4096
SQE_BYTES: Final = 64
ADMIN_CAPSULE_BYTES: Final = 8192
"""In-capsule data that every admin queue takes, and fabrics commands on any (TCP transport, 3.4)."""
NO_FLOW_CONTROL: Final = 0xFFFF
"""SQHD where submission queue flow control is off."""

DNR: Final = 1 << 14
"""Do Not Retry, in a status field without phase."""
MORE: Final = 1 << 13


class Status(IntEnum):
    """Status code type << 8 | status code."""

    SUCCESS = 0x00
    INVALID_OPCODE = 0x01
    INVALID_FIELD = 0x02
    CID_CONFLICT = 0x03
    DATA_TRANSFER = 0x04
    INTERNAL = 0x06
    ABORTED = 0x07
    SEQUENCE = 0x0C
    SGL_LENGTH = 0x0F
    SGL_TYPE = 0x11
    SGL_OFFSET = 0x16
    TRANSIENT_TRANSPORT = 0x22
    AER_LIMIT = 0x105
    INVALID_LOG_PAGE = 0x109
    NOT_CHANGEABLE = 0x10E
    CONNECT_FORMAT = 0x180
    CONTROLLER_BUSY = 0x181
    CONNECT_PARAMETER = 0x182
    CONNECT_HOST = 0x184


class Admin(IntEnum):
    """Admin opcodes."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT = 0x0C
    KEEP_ALIVE = 0x18
    VIRTUALIZATION = 0x1C
    DOORBELL_BUFFER = 0x7C


FABRICS: Final = 0x7F


class FcType(IntEnum):
    """Types of fabrics commands."""

    PROPERTY_SET = 0x00
    CONNECT = 0x01
    PROPERTY_GET = 0x04
    DISCONNECT = 0x08


class Prop(IntEnum):
    """Offsets of controller properties."""

    CAP = 0x00
    VS = 0x08
    CC = 0x14
    CSTS = 0x1C
    NSSR = 0x20
    CRTO = 0x68


class Feature(IntEnum):
    """Features that the target answers itself."""

    QUEUES = 0x07
    EVENTS = 0x0B
    KATO = 0x0F


class Log(IntEnum):
    """Log pages that the discovery controller has."""

    SUPPORTED = 0x00
    DISCOVERY = 0x70


CSTS_RDY: Final = 1
CSTS_CFS: Final = 2
CSTS_SHUTDOWN_DONE: Final = 2 << 2
CC_EN: Final = 1
CC_SHN: Final = 3 << 14
CC_CSS: Final = 7 << 4
CC_MPS: Final = 15 << 7

SQE_FLUSH_ALL: Final = bytes(4) + b"\xff" * 4 + bytes(56)
"""Flush of all namespaces."""

SGL_IN_CAPSULE: Final = 0x01
"""Data block descriptor, subtype offset."""
SGL_TRANSPORT: Final = 0x5A
"""Transport data block descriptor."""

CAP_CQR: Final = 1 << 16
CAP_TO_SHIFT: Final = 24
CAP_CSS_NVM: Final = 1 << 37

SGL: Final = struct.Struct("<QI3xB")
"""Address, length, type: bytes 24 to 39 of a submission queue entry."""
CONNECT: Final = struct.Struct("<40xHHHBxI")
"""RECFMT, QID, SQSIZE, CATTR, KATO of a Connect command."""
CONNECT_BYTES: Final = 1024
"""Data of a Connect command: host id @0, CNTLID @16, SUBNQN @256, HOSTNQN @512."""
CATTR_NO_FLOW_CONTROL: Final = 1 << 2
CNTLID_DYNAMIC: Final = 0xFFFF


def text_of(field: bytes) -> str:
    """An NQN out of a field padded with NULs; never fails, a bad one just matches nothing."""
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def padded(text: str, size_bytes: int, fill: bytes = b"\0") -> bytes:
    """A text field, cut or filled to its size."""
    return text.encode()[:size_bytes].ljust(size_bytes, fill)
