"""Log pages: errors, SMART / health, firmware slots, changed namespaces, commands supported (base, section 5.16)."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from uxk_nvme.command import Command
from uxk_nvme.spec import (
    BROADCAST,
    CRD_SHIFT,
    DELAYED,
    MORE,
    TRANSFER_MAX_BYTES,
    Admin,
    Feature,
    Io,
    Log,
    Refused,
    Status,
    invalid_field,
)

if TYPE_CHECKING:
    from uxk_nvme.controller import Controller

ERRORS_MAX: Final = 64
"""ELPE + 1."""
FIRMWARE: Final = "1.0"
_ERROR: Final = struct.Struct("<QHHHHQIBBBxQH22x")
"""Count, SQID, CID, status and phase, parameter location, LBA, NSID, vendor page, transport type, CSI, two more."""
_UNIT_BYTES: Final = 512_000
"""Data units of the SMART log: thousands of 512 bytes."""
NO_COMMAND: Final = 0xFFFF
_WITH_LBA: Final = frozenset({
    Io.WRITE, Io.READ, Io.WRITE_UNCORRECTABLE, Io.COMPARE, Io.WRITE_ZEROES, Io.VERIFY,
})  # fmt: skip


class ErrorLog:
    """The latest errors, newest first, and how many there were."""

    __slots__ = ("_entries", "count")

    def __init__(self) -> None:
        self.count = 0
        self._entries: deque[bytes] = deque(maxlen=ERRORS_MAX)

    def note(self, cmd: Command | None, status: int, location: int) -> int:
        """Writes an entry; returns the status with More set."""
        self.count += 1
        status |= MORE
        if cmd is not None and cmd.controller.features.delays and status & 0x7FF in DELAYED:
            status |= 1 << CRD_SHIFT
        if cmd is None:
            words = NO_COMMAND, NO_COMMAND, status << 1, location, 0, BROADCAST
        else:
            slba = cmd.slba if cmd.queue.qid and cmd.opcode in _WITH_LBA else 0
            words = cmd.queue.qid, cmd.queue.command_id(cmd.tag), status << 1, location, slba, cmd.nsid
        self._entries.appendleft(_ERROR.pack(self.count, *words, 0, 0, 0, 0, 0))
        return status

    def page(self) -> bytes:
        """The log page, all of its entries."""
        return b"".join(self._entries).ljust(ERRORS_MAX * _ERROR.size, b"\0")


def critical_warning(controller: Controller, now_ns: int) -> int:
    """The medium's warnings, and those of the temperature thresholds that this host has set."""
    smart = controller.subsystem.medium.smart(now_ns)
    value = controller.features.value
    over, under = value(Feature.TEMPERATURE), value(Feature.TEMPERATURE, 0x10)
    hot = smart.temperature_k >= over or smart.temperature_k <= under
    return smart.critical_warning & ~2 | hot << 1


def smart_page(controller: Controller, now_ns: int) -> bytes:
    """512 bytes (base, figure 208).  Counters are 128 bits wide."""
    subsystem = controller.subsystem
    smart = subsystem.medium.smart(now_ns)
    warning = critical_warning(controller, now_ns)
    head = struct.pack(
        "<BHBBBB25x", warning, smart.temperature_k, min(smart.available_spare, 100), smart.spare_threshold,
        min(smart.percentage_used, 255), warning & 0x0D,
    )  # fmt: skip
    wide = (
        -(-smart.host_read_bytes // _UNIT_BYTES), -(-smart.host_written_bytes // _UNIT_BYTES), smart.host_reads,
        smart.host_writes, smart.busy_ns // 60_000_000_000, subsystem.power_cycles,
        now_ns // 3_600_000_000_000, smart.unsafe_shutdowns, smart.media_errors, controller.errors.count,
    )  # fmt: skip
    middle = b"".join(value.to_bytes(16, "little") for value in wide)
    tail = struct.pack(
        "<II8HIIII", smart.warning_temp_ns // 60_000_000_000, smart.critical_temp_ns // 60_000_000_000,
        smart.temperature_k, 0, 0, 0, 0, 0, 0, 0, smart.thermal_transitions_1, smart.thermal_transitions_2,
        smart.thermal_time_1_ns // 1_000_000_000, smart.thermal_time_2_ns // 1_000_000_000,
    )  # fmt: skip
    return (head + middle + tail).ljust(512, b"\0")


def _error_page(controller: Controller, cmd: Command) -> bytes:
    return controller.errors.page()


def _smart(controller: Controller, cmd: Command) -> bytes:
    if cmd.nsid not in (0, BROADCAST):  # LPA says that there is no page for each namespace
        cmd.check_nsid()
        raise Refused(Status.INVALID_FIELD, byte=4)
    return smart_page(controller, cmd.now_ns)


def _firmware(controller: Controller, cmd: Command) -> bytes:
    return (b"\1" + bytes(7) + FIRMWARE.encode().ljust(8)).ljust(512, b"\0")


def _changed(controller: Controller, cmd: Command) -> bytes:
    nsids = sorted(controller.changed)
    if len(nsids) > 1024:
        nsids = [BROADCAST]
    return struct.pack(f"<{len(nsids)}I", *nsids).ljust(4096, b"\0")


_CSUPP: Final = 1
_LBCC: Final = 1 << 1
_NCC: Final = 1 << 2
_NIC: Final = 1 << 3
_CSE_NAMESPACE: Final = 1 << 16
_CSE_ALL: Final = 2 << 16
_ADMIN_EFFECTS: Final = {
    Admin.FORMAT: _LBCC | _NCC | _CSE_NAMESPACE,
    Admin.NAMESPACE_MANAGEMENT: _NIC | _CSE_ALL,
    Admin.NAMESPACE_ATTACHMENT: _NIC | _CSE_ALL,
}
_CHANGING: Final = frozenset({Io.WRITE, Io.WRITE_UNCORRECTABLE, Io.WRITE_ZEROES, Io.DSM})


def _effects(controller: Controller, cmd: Command) -> bytes:
    if cmd.dw[14] >> 24:
        raise invalid_field(14, 24)  # of the NVM command set alone
    words = [0] * 1024
    for opcode in controller.admin_table:
        words[opcode] = _CSUPP | _ADMIN_EFFECTS.get(opcode, 0)  # type: ignore[call-overload]
    for opcode in controller.io_table:
        words[256 + opcode] = _CSUPP | (_LBCC if opcode in _CHANGING else 0)
    return struct.pack("<1024I", *words)


def _supported(controller: Controller, cmd: Command) -> bytes:
    words = [0] * 256
    for page in PAGES:
        words[page] = 1
    return struct.pack("<256I", *words)


PAGES: Final[dict[int, tuple[int, Callable[[Controller, Command], bytes]]]] = {
    Log.SUPPORTED: (1024, _supported),
    Log.ERROR: (ERRORS_MAX * _ERROR.size, _error_page),
    Log.SMART: (512, _smart),
    Log.FIRMWARE: (512, _firmware),
    Log.CHANGED_NAMESPACES: (4096, _changed),
    Log.EFFECTS: (4096, _effects),
}
"""Size in bytes, and what makes it."""


def get_log_page(cmd: Command) -> int:
    """Answers Get Log Page.  What lies beyond the end of a page is zero; an offset beyond it is refused."""
    controller, page = cmd.controller, cmd.dw[10] & 0xFF
    length = ((cmd.dw[11] & 0xFFFF) << 16 | cmd.dw[10] >> 16) + 1 << 2
    offset = cmd.dw[12] | cmd.dw[13] << 32
    if page not in PAGES:
        raise Refused(Status.INVALID_LOG_PAGE, byte=40)
    size_bytes, make = PAGES[page]
    if offset & 3 or offset > size_bytes:
        raise invalid_field(12)
    if cmd.dw[14] >> 23 & 1:  # OT: offsets are in bytes here
        raise invalid_field(14, 23)
    if length > TRANSFER_MAX_BYTES:
        raise invalid_field(10, 16)
    cmd.data(length, to_host=True)
    cmd.answer(make(controller, cmd)[offset : offset + length].ljust(length, b"\0"))
    if not cmd.dw[10] >> 15 & 1:  # RAE: what was read stays to be read
        if page == Log.CHANGED_NAMESPACES:
            controller.changed.clear()
        controller.events.log_read(page)
    return cmd.now_ns
