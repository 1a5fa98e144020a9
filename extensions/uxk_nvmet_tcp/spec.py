"""Numbers of NVMe over Fabrics that the target itself needs beside those of :mod:`uxk.uapi.nvme`.

Sources: NVM Express Base Specification 2.0 (properties, fabrics commands), TCP Transport Specification 1.0.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

DISCOVERY_NQN: Final = "nqn.2014-08.org.nvmexpress.discovery"
ADMIN_CAPSULE_BYTES: Final = 8192
"""In-capsule data that every admin queue takes, and fabrics commands on any (TCP transport, 3.4)."""
NO_FLOW_CONTROL: Final = 0xFFFF
"""SQHD where submission queue flow control is off."""


class Connect(IntEnum):
    """Status codes of the Connect command (base, figure 97)."""

    FORMAT = 0x180
    CONTROLLER_BUSY = 0x181
    PARAMETER = 0x182
    HOST = 0x184


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
