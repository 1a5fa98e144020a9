"""Identify data: what a device says of itself, changed to what is true of it behind NVMe/TCP.

Source: NVM Express Base Specification 2.0, figure "Identify Controller Data Structure", and what Linux 6.1 insists on
(drivers/nvme/host/core.c, nvme_init_identify and nvme_check_ctrl_fabric_info).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from uxk.uapi.nvme import PAGE_BYTES
from uxk_nvmet_tcp import spec

BYTES = 4096
"""Of every Identify data structure."""

_CMIC, _MDTS, _CNTLID, _VER, _OAES, _CNTRLTYPE = 76, 77, 78, 80, 92, 111
_OACS, _AERL, _LPA, _HMPRE, _KAS = 256, 259, 261, 272, 320
_SQES, _CQES, _MAXCMD, _FUSES, _SGLS, _SUBNQN, _IOCCSZ = 512, 513, 514, 522, 536, 768, 1792

_KAS_UNITS = 1
"""Granularity of keep-alive timeouts, 100 ms."""
_SGLS_FABRICS = 0x00100001
"""SGLs without restriction; addresses may be offsets."""
_VIRTUAL_ONLY = 1 << 7 | 1 << 8
"""OACS: virtualization management and doorbell buffers make no sense here."""


class Face(NamedTuple):
    """What differs from the device, for one controller."""

    cntlid: int
    subsystem: str
    depth: int
    in_capsule_bytes: int
    max_transfer_bytes: int


class DeviceFacts(NamedTuple):
    """What the target must know of the device."""

    version: int
    event_limit: int
    """Asynchronous Event Requests that may wait."""
    mdts: int


def facts_of(data: bytes) -> DeviceFacts:
    """Out of Identify Controller data as the device gave them."""
    return DeviceFacts(int.from_bytes(data[_VER : _VER + 4], "little"), data[_AERL] + 1, data[_MDTS])


def mdts_of(max_transfer_bytes: int, device_mdts: int) -> int:
    """MDTS: the smaller of both limits, as a power of two of pages; 0 from the device means that it has none."""
    ours = (max_transfer_bytes // PAGE_BYTES).bit_length() - 1
    return min(ours, device_mdts) if device_mdts else ours


def patch_controller(data: memoryview, face: Face) -> None:
    """Identify Controller (CNS 01h), in place."""
    data[_CMIC] = data[_CMIC] & ~0x0E | 0x02  # several controllers; no virtual function, no ANA
    data[_MDTS] = mdts_of(face.max_transfer_bytes, data[_MDTS])
    struct.pack_into("<H", data, _CNTLID, face.cntlid)
    data[_CNTRLTYPE] = 1
    (oacs,) = struct.unpack_from("<H", data, _OACS)
    struct.pack_into("<H", data, _OACS, oacs & ~_VIRTUAL_ONLY)
    data[_HMPRE : _HMPRE + 8] = bytes(8)  # no host memory buffer
    struct.pack_into("<H", data, _FUSES, 0)
    _patch_fabrics(data, face)


def _patch_fabrics(data: memoryview, face: Face) -> None:
    struct.pack_into("<H", data, _KAS, _KAS_UNITS)
    data[_SQES], data[_CQES] = 0x66, 0x44
    struct.pack_into("<H", data, _MAXCMD, face.depth)
    struct.pack_into("<I", data, _SGLS, _SGLS_FABRICS)
    data[_SUBNQN : _SUBNQN + 256] = spec.padded(face.subsystem, 256)
    # IOCCSZ, IORCSZ in units of 16 bytes; ICDOFF; FCATT: dynamic controllers; MSDBD; OFCS: Disconnect
    struct.pack_into("<IIHBBH", data, _IOCCSZ, 4 + face.in_capsule_bytes // 16, 1, 0, 0, 1, 1)


def discovery_controller(face: Face) -> bytes:
    """Identify Controller data of the discovery controller."""
    raw = bytearray(BYTES)
    data = memoryview(raw)
    data[4:24] = spec.padded("uxk", 20, b" ")
    data[24:64] = spec.padded("uxk discovery", 40, b" ")
    data[64:72] = spec.padded("0.1", 8, b" ")
    data[_CMIC] = 0x02
    data[_MDTS] = mdts_of(face.max_transfer_bytes, 0)
    struct.pack_into("<H", data, _CNTLID, face.cntlid)
    struct.pack_into("<I", data, _VER, 0x10400)
    struct.pack_into("<I", data, _OAES, 1 << 31)  # changes of the discovery log
    data[_CNTRLTYPE] = 2
    data[_AERL] = 3
    data[_LPA] = 1 << 2  # long reads of logs
    _patch_fabrics(data, face)
    return bytes(raw)
