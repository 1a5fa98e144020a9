"""Words of the NVMe specifications: opcodes, status codes, identifiers, structure layouts.

NVM Express Base Specification 2.0 ("base"), NVM Command Set Specification 1.0 ("nvm").  A status here is the 15 bits
that stand above the phase tag: code, type << 8, CRD << 11, More << 13, DNR << 14.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

SQE_BYTES: Final = 64
CQE_BYTES: Final = 16
PAGE_BYTES: Final = 4096
"""CAP.MPSMIN = 0."""
BROADCAST: Final = 0xFFFFFFFF
"""The NSID of all namespaces."""
MDTS: Final = 5
"""Longest transfer as a power of two of pages."""
TRANSFER_MAX_BYTES: Final = PAGE_BYTES << MDTS

DNR: Final = 1 << 14
MORE: Final = 1 << 13
CRD_SHIFT: Final = 11

SQE_FAST: Final = struct.Struct("<Q16xQQQQ8x")
"""Dwords 0-1 (opcode, flags, CID, NSID), data pointer as address and length, dwords 10-11 (SLBA), dwords 12-13."""
SQE_DWORDS: Final = struct.Struct("<16I")
CQE: Final = struct.Struct("<QQ")
"""Dwords 0-1; SQ head | SQ id << 16 | CID << 32 | phase << 48 | status << 49."""

PSDT_SGL: Final = 0x40
"""Command flags: the data pointer is an SGL descriptor in the command (base, figure 92)."""


class Admin(IntEnum):
    """Admin opcodes (base, figure 138)."""

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
    NAMESPACE_MANAGEMENT = 0x0D
    NAMESPACE_ATTACHMENT = 0x15
    KEEP_ALIVE = 0x18
    FORMAT = 0x80
    VENDOR_FAULT_ADD = 0xC1
    """Data to the controller: the text of a fault rule; DW0 is its number."""
    VENDOR_FAULT_REMOVE = 0xC0
    """CDW12: the number of a fault rule, 0 for all."""
    VENDOR_FAULT_LIST = 0xC2
    """Data from the controller: the rules as text, NUL padded."""
    VENDOR_POWER_LOSS = 0xC4
    """Drops what the volatile cache holds."""
    VENDOR_LATENCY = 0xC8
    """Adds CDW12 | CDW13 << 32 nanoseconds to every I/O command; 0 ends it."""


class Io(IntEnum):
    """I/O opcodes of the NVM command set (nvm, figure 18)."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_UNCORRECTABLE = 0x04
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DSM = 0x09
    VERIFY = 0x0C


class Status(IntEnum):
    """Status codes, with their type in bits 10:8 (base, figures 94 to 97)."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    CID_CONFLICT = 0x003
    DATA_TRANSFER_ERROR = 0x004
    POWER_LOSS = 0x005
    INTERNAL = 0x006
    ABORTED = 0x007
    ABORTED_SQ_DELETED = 0x008
    INVALID_NAMESPACE = 0x00B
    SEQUENCE_ERROR = 0x00C
    SGL_LENGTH_INVALID = 0x00F
    SGL_TYPE_INVALID = 0x011
    NAMESPACE_WRITE_PROTECTED = 0x020
    TRANSIENT_TRANSPORT = 0x022
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    NAMESPACE_NOT_READY = 0x082
    FORMAT_IN_PROGRESS = 0x084
    INVALID_CQ = 0x100
    INVALID_QID = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ABORT_LIMIT = 0x103
    ASYNC_LIMIT = 0x105
    INVALID_FIRMWARE_SLOT = 0x106
    INVALID_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_FORMAT = 0x10A
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FEATURE_NOT_NAMESPACE = 0x10F
    INSUFFICIENT_CAPACITY = 0x115
    NO_NAMESPACE_IDENTIFIER = 0x116
    ALREADY_ATTACHED = 0x118
    NAMESPACE_PRIVATE = 0x119
    NOT_ATTACHED = 0x11A
    THIN_NOT_SUPPORTED = 0x11B
    CONTROLLER_LIST_INVALID = 0x11C
    CONFLICTING_ATTRIBUTES = 0x180
    READ_ONLY_RANGE = 0x182
    WRITE_FAULT = 0x280
    READ_ERROR = 0x281
    GUARD_CHECK = 0x282
    COMPARE_FAILURE = 0x285
    DEALLOCATED = 0x287
    PATH_ERROR = 0x300
    HOST_ABORTED = 0x371


TRANSIENT: Final = frozenset({
    Status.DATA_TRANSFER_ERROR, Status.INTERNAL, Status.ABORTED, Status.ABORTED_SQ_DELETED, Status.TRANSIENT_TRANSPORT,
    Status.POWER_LOSS, Status.NAMESPACE_NOT_READY, Status.FORMAT_IN_PROGRESS, Status.HOST_ABORTED, Status.PATH_ERROR,
})  # fmt: skip
"""What may succeed when it is tried again: answered without DNR."""


class Feature(IntEnum):
    """Feature identifiers (base, figure 317; nvm, figure 95)."""

    ARBITRATION = 0x01
    POWER = 0x02
    TEMPERATURE = 0x04
    ERROR_RECOVERY = 0x05
    WRITE_CACHE = 0x06
    QUEUES = 0x07
    COALESCING = 0x08
    VECTOR = 0x09
    ATOMICITY = 0x0A
    EVENTS = 0x0B
    TIMESTAMP = 0x0E
    KEEP_ALIVE = 0x0F
    THERMAL = 0x10
    POWER_AUTO = 0x0C
    NOP_POWER = 0x11
    HOST_BEHAVIOUR = 0x16
    SOFTWARE_PROGRESS = 0x80
    HOST_ID = 0x81
    WRITE_PROTECT = 0x84


class Log(IntEnum):
    """Log pages (base, figure 202)."""

    SUPPORTED = 0x00
    ERROR = 0x01
    SMART = 0x02
    FIRMWARE = 0x03
    CHANGED_NAMESPACES = 0x04
    EFFECTS = 0x05


class EventType(IntEnum):
    """Types of asynchronous events (base, figure 146)."""

    ERROR = 0
    SMART = 1
    NOTICE = 2


DELAYED: Final = frozenset({Status.NAMESPACE_NOT_READY, Status.FORMAT_IN_PROGRESS})
"""To be tried again after a while: answered with CRD 1 to hosts that know of it (ACRE)."""
CRDT_100MS: Final = 1
"""CRDT1: what CRD 1 means."""


class Refused(Exception):
    """A command that is answered with an error status.  ``byte`` and ``bit`` say which field of it is at fault."""

    def __init__(self, status: int, *, byte: int = 0xFFFF, bit: int = 0, retry: bool = False) -> None:
        code = int(status)
        if not (retry or code in TRANSIENT):
            code |= DNR
        super().__init__(f"status {code:#06x}")
        self.status = code
        self.location = 0xFFFF if byte == 0xFFFF else byte | bit << 8


def invalid_field(dword: int, bit: int = 0) -> Refused:
    """Invalid Field in Command, pointing at a bit of a command dword."""
    return Refused(Status.INVALID_FIELD, byte=4 * dword + (bit >> 3), bit=bit & 7)


def final(status: int) -> int:
    """A status as answered: DNR unless another try may help."""
    code = status & 0x7FF
    return status if code in TRANSIENT or not code else status | DNR
