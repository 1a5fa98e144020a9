"""What is ours of NVMe: structure layouts, limits, vendor commands, how commands are refused.

The words of the specifications are :mod:`uxk.uapi.nvme`'s, and named here as well.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from uxk.uapi.nvme import (
    BROADCAST,
    CQE_BYTES,
    CRD_SHIFT,
    DNR,
    MORE,
    PAGE_BYTES,
    SQE_BYTES,
    Admin,
    EventType,
    Feature,
    Io,
    Log,
    Status,
)  # fmt: skip

__all__ = [
    "BROADCAST", "CQE", "CQE_BYTES", "CRDT_100MS", "CRD_SHIFT", "DEAC", "DELAYED", "DNR", "FUA", "MDTS", "MORE",
    "PAGE_BYTES", "PSDT_SGL", "RANGE", "SQE_BYTES", "SQE_DWORDS", "SQE_FAST", "TRANSFER_MAX_BYTES", "TRANSIENT", "WZSL",
    "ZEROES_MAX_BYTES", "Admin", "EventType", "Feature", "Io", "Log", "Refused", "Status", "Vendor", "final",
    "invalid_field",
]  # fmt: skip

MDTS: Final = 5
"""Longest transfer as a power of two of pages."""
TRANSFER_MAX_BYTES: Final = PAGE_BYTES << MDTS
WZSL: Final = 13
"""Write Zeroes of up to 32 MiB, as a power of two of pages: 65,536 blocks of 512 bytes, which is what NLB can say.

More would serve bigger blocks, but Linux cuts the number of blocks to 16 bits when it is said to be allowed more.
"""
ZEROES_MAX_BYTES: Final = PAGE_BYTES << WZSL

FUA: Final = 1 << 30
"""Force Unit Access, dword 12."""
DEAC: Final = 1 << 25
"""Deallocate, dword 12 of Write Zeroes."""
RANGE: Final = struct.Struct("<IIQ")
"""Of Dataset Management: attributes, blocks, SLBA."""

SQE_FAST: Final = struct.Struct("<Q16xQQQQ8x")
"""Dwords 0-1 (opcode, flags, CID, NSID), data pointer as address and length, dwords 10-11 (SLBA), dwords 12-13."""
SQE_DWORDS: Final = struct.Struct("<16I")
CQE: Final = struct.Struct("<QQ")
"""Dwords 0-1; SQ head | SQ id << 16 | CID << 32 | phase << 48 | status << 49."""

PSDT_SGL: Final = 0x40
"""Command flags: the data pointer is an SGL descriptor in the command (base, figure 92)."""


class Vendor(IntEnum):
    """Admin opcodes of our own: a remote control."""

    FAULT_REMOVE = 0xC0
    """CDW12: the number of a fault rule, 0 for all."""
    FAULT_ADD = 0xC1
    """Data to the controller: the text of a fault rule; DW0 is its number."""
    FAULT_LIST = 0xC2
    """Data from the controller: the rules as text, NUL padded."""
    POWER_LOSS = 0xC4
    """Drops what the volatile cache holds."""
    LATENCY = 0xC8
    """Adds CDW12 | CDW13 << 32 nanoseconds to every I/O command; 0 ends it."""


TRANSIENT: Final = frozenset({
    Status.DATA_TRANSFER_ERROR, Status.INTERNAL, Status.ABORTED, Status.ABORTED_SQ_DELETED, Status.TRANSIENT_TRANSPORT,
    Status.POWER_LOSS, Status.NAMESPACE_NOT_READY, Status.FORMAT_IN_PROGRESS, Status.HOST_ABORTED, Status.PATH_ERROR,
})  # fmt: skip
"""What may succeed when it is tried again: answered without DNR."""

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
