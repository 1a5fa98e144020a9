"""Identify data structures (base, section 5.17; nvm, section 4.1.5)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from uxk_nvme.command import Command
from uxk_nvme.events import AERL
from uxk_nvme.features import THERMAL_MAX_K, THERMAL_MIN_K
from uxk_nvme.logs import ERRORS_MAX, FIRMWARE
from uxk_nvme.medium import POWER_STATES
from uxk_nvme.namespaces import LBA_SHIFTS, Namespace
from uxk_nvme.spec import BROADCAST, CRDT_100MS, MDTS, WZSL, Refused, Status, invalid_field

if TYPE_CHECKING:
    from uxk_nvme.controller import Controller

PAGE: Final = 4096
MODEL: Final = "uxk virtual NVMe"
VERSION: Final = 0x00010400
"""1.4: the oldest with everything that is here."""
ACL: Final = 3
"""0-based: Abort commands at a time."""
KEEP_ALIVE_100MS: Final = 10
ONCS: Final = 0x00DF
"""Compare, Write Uncorrectable, DSM, Write Zeroes, saved features, Timestamp, Verify; no reservations."""


def _put(page: bytearray, offset: int, layout: str, *values: int | bytes) -> None:
    struct.pack_into("<" + layout, page, offset, *values)


def controller_page(controller: Controller) -> bytes:
    """CNS 01h.  A fabrics front end fills in what is its own: SUBNQN, SGLS, KAS, MAXCMD, bytes 1792 to 1805."""
    subsystem = controller.subsystem
    page = bytearray(PAGE)
    _put(page, 4, "20s40s8s", subsystem.serial.encode().ljust(20), MODEL.encode().ljust(40), FIRMWARE.encode().ljust(8))
    _put(page, 72, "B", 6)  # RAB
    _put(page, 76, "BBHI", 2, MDTS, controller.cntlid, VERSION)  # CMIC: several controllers
    _put(page, 92, "I", 1 << 8)  # OAES: namespace attribute notices
    _put(page, 96, "I", 0)  # CTRATT
    _put(page, 111, "B", 1)  # CNTRLTYPE: I/O
    _put(page, 128, "H", CRDT_100MS)
    _put(page, 256, "HBBBBBB", 0x000A, ACL, AERL, 0x03, 0x06, ERRORS_MAX - 1, len(POWER_STATES) - 1)
    _put(page, 264, "BB", 1, 0)  # AVSCC: the standard form of vendor commands; no autonomous transitions
    _put(page, 266, "HH", subsystem.medium.warning_k, subsystem.medium.critical_k)  # WCTEMP, CCTEMP
    _put(page, 280, "16s", subsystem.namespaces.capacity_bytes.to_bytes(16, "little"))
    _put(page, 296, "16s", subsystem.namespaces.unallocated_bytes.to_bytes(16, "little"))
    heat = (1, THERMAL_MIN_K, THERMAL_MAX_K) if subsystem.medium.has_heat else (0, 0, 0)
    _put(page, 320, "HHHH", KEEP_ALIVE_100MS, *heat)  # KAS, HCTMA, MNTMT, MXTMT
    _put(page, 512, "BBHI", 0x66, 0x44, controller.subsystem.queue_entries, subsystem.namespaces.limit)
    vwc = 0x06 | subsystem.has_write_cache  # Flush with the NSID of all is supported
    _put(page, 520, "HHBBHHBBHH", ONCS, 0, 0, vwc, 0, 0, 1, 1, 0, 0)
    _put(page, 536, "I", 0x00000001)  # SGLS: no alignment
    _put(page, 540, "I", subsystem.namespaces.limit)  # MNAN
    _put(page, 768, "256s", subsystem.nqn.encode())
    for index, state in enumerate(POWER_STATES):
        _put(
            page, 2048 + 32 * index, "HBBIIBBBBHBBHBB", *_max_power(state.max_power_mw, state.operational),
            state.entry_ns // 1000, state.exit_ns // 1000, index, index, index, index, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip
    return bytes(page)


def _max_power(power_mw: int, operational: bool) -> tuple[int, int, int]:
    """MP, a reserved byte, MXPS and NOPS: hundredths of a watt, or, if it is little, ten-thousandths."""
    small = power_mw < 1000
    return (power_mw * 10 if small else power_mw // 10), 0, small | (not operational) << 1


def namespace_page(controller: Controller, namespace: Namespace | None) -> bytes:
    """CNS 00h and 11h of an allocated namespace; of BROADCAST (None), what all have in common."""
    page = bytearray(PAGE)
    granule = 4096 >> namespace.shift if namespace is not None else 8
    _put(page, 25, "BB", len(LBA_SHIFTS) - 1, 0)
    _put(page, 30, "B", 1)  # NMIC: may be shared
    _put(page, 33, "B", 0x09)  # DLFEAT: deallocated blocks read as zeros; Write Zeroes deallocates
    for index, shift in enumerate(LBA_SHIFTS):
        _put(page, 128 + 4 * index, "HBB", 0, shift, 2 if shift == 9 else 0)
    if namespace is None:
        return bytes(page)
    used = controller.subsystem.used_blocks(namespace)
    _put(page, 0, "QQQBB", namespace.blocks, namespace.blocks, used, 1 << 4, len(LBA_SHIFTS) - 1)  # NSFEAT: OPTPERF
    _put(page, 26, "B", LBA_SHIFTS.index(namespace.shift))
    _put(page, 30, "B", int(namespace.shared))
    _put(page, 48, "16s", namespace.size_bytes.to_bytes(16, "little"))
    granularity = max(granule, 1) - 1
    _put(page, 64, "HHHHH", granularity, granularity, granularity, granularity, 0)  # NPWG NPWA NPDG NPDA NOWS
    _put(page, 99, "B", namespace.protect)
    _put(page, 104, "16s", namespace.nguid)
    return bytes(page)


def descriptors(namespace: Namespace) -> bytes:
    """CNS 03h: UUID and NGUID."""
    page = struct.pack("<BBH16s", 3, 16, 0, namespace.uuid) + struct.pack("<BBH16s", 2, 16, 0, namespace.nguid)
    return page.ljust(PAGE, b"\0")


def id_list(ids: Iterable[int]) -> bytes:
    """A list of namespace identifiers."""
    some = list(ids)[: PAGE >> 2]
    return struct.pack(f"<{len(some)}I", *some).ljust(PAGE, b"\0")


def controller_list(ids: Iterable[int]) -> bytes:
    """A list of controller identifiers: their number first."""
    some = sorted(ids)[:2047]
    return struct.pack(f"<{1 + len(some)}H", len(some), *some).ljust(PAGE, b"\0")


def _above(cmd: Command, nsids: Iterable[int]) -> list[int]:
    if cmd.nsid >= BROADCAST - 1:
        raise Refused(Status.INVALID_NAMESPACE, byte=4)
    return [nsid for nsid in sorted(nsids) if nsid > cmd.nsid]


def _of_namespace(cmd: Command, *, allocated: bool) -> bytes:
    controller = cmd.controller
    if cmd.broadcast and not allocated:
        return namespace_page(controller, None)
    cmd.check_nsid()
    table = controller.subsystem.namespaces.table if allocated else controller.active
    namespace = table.get(cmd.nsid)
    return bytes(PAGE) if namespace is None else namespace_page(controller, namespace)


def _descriptors(cmd: Command) -> bytes:
    cmd.check_nsid()
    namespace = cmd.controller.active.get(cmd.nsid)
    if namespace is None:
        raise Refused(Status.INVALID_FIELD, byte=4)
    return descriptors(namespace)


def _nvm_set(cmd: Command) -> None:
    if cmd.dw[11] >> 24:  # CSI
        raise invalid_field(11, 24)


def identify(cmd: Command) -> int:
    """Answers Identify.  Refused: Invalid Field for what is not there, Invalid Namespace."""
    controller, cns, cntid = cmd.controller, cmd.dw[10] & 0xFF, cmd.dw[10] >> 16
    table = controller.subsystem.namespaces.table
    controllers = controller.subsystem.controllers
    cmd.data(PAGE, to_host=True)
    match cns:
        case 0x00:
            page = _of_namespace(cmd, allocated=False)
        case 0x01:
            page = controller_page(controller)
        case 0x02:
            page = id_list(_above(cmd, controller.active))
        case 0x03:
            page = _descriptors(cmd)
        case 0x05:
            _nvm_set(cmd)
            cmd.namespace()
            page = bytes(PAGE)  # no metadata, no protection information
        case 0x06:
            _nvm_set(cmd)
            page = bytes((0, WZSL, 0, 0)).ljust(PAGE, b"\0")
        case 0x07:
            _nvm_set(cmd)
            page = id_list(_above(cmd, controller.active))
        case 0x08:
            page = _independent(cmd)
        case 0x10:
            page = id_list(_above(cmd, table))
        case 0x11:
            page = _of_namespace(cmd, allocated=True)
        case 0x12:
            cmd.check_nsid()
            found = table.get(cmd.nsid)
            page = controller_list(each for each in (found.attached if found else ()) if each >= cntid)
        case 0x13:
            page = controller_list(each for each in controllers if each >= cntid)
        case 0x1C:
            page = (1).to_bytes(8, "little").ljust(PAGE, b"\0")  # one combination: the NVM command set
        case _:
            raise invalid_field(10)
    cmd.answer(page)
    return cmd.now_ns


def _independent(cmd: Command) -> bytes:
    """CNS 08h: the I/O command set independent part of a namespace."""
    namespace = cmd.namespace()
    page = bytearray(PAGE)
    _put(page, 1, "B", int(namespace.shared))
    _put(page, 8, "B", namespace.protect)
    _put(page, 14, "B", 1)  # NSTAT: ready
    return bytes(page)
