"""Words of the NVMe specifications that drivers, exports and their clients share: opcodes, status codes, identifiers.

NVM Express Base Specification 2.0 ("base"), NVM Command Set Specification 1.0 ("nvm").  A status is the 15 bits that
stand above the phase tag of a completion: code, type << 8, CRD << 11, More << 13, DNR << 14.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

SQE_BYTES: Final = 64
CQE_BYTES: Final = 16
PAGE_BYTES: Final = 4096
"""The smallest memory page (CAP.MPSMIN = 0)."""
BROADCAST: Final = 0xFFFFFFFF
"""The NSID of all namespaces."""

DNR: Final = 1 << 14
"""Do Not Retry."""
MORE: Final = 1 << 13
"""The error log says more."""
CRD_SHIFT: Final = 11
"""Command Retry Delay."""


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
    VIRTUALIZATION = 0x1C
    DOORBELL_BUFFER = 0x7C
    FORMAT = 0x80


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
    """Status codes, with their type in bits 10:8 (base, figures 94 to 97); 180h and above belong to command sets."""

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
    SGL_OFFSET_INVALID = 0x016
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
    DISCOVERY = 0x70


class EventType(IntEnum):
    """Types of asynchronous events (base, figure 146)."""

    ERROR = 0
    SMART = 1
    NOTICE = 2
