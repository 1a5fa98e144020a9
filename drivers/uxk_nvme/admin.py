"""Admin commands: events, abort, features, format, namespaces, vendor commands (base, section 5)."""

from __future__ import annotations

import struct
from typing import Final

import uxk
from uxk_nvme.command import Command
from uxk_nvme.controller import Handler
from uxk_nvme.identify import identify
from uxk_nvme.logs import get_log_page
from uxk_nvme.namespaces import LBA_SHIFTS, Namespace
from uxk_nvme.spec import PAGE_BYTES, Admin, Refused, Status, Vendor, final, invalid_field
from uxk_nvme.subsystem import LATENCY_MAX_NS

_RULE_MAX_BYTES: Final = 4096


def _get_features(cmd: Command) -> int:
    cmd.controller.features.get(cmd)
    return cmd.now_ns


def _set_features(cmd: Command) -> int:
    return cmd.controller.features.set(cmd)


def _event(cmd: Command) -> None:
    cmd.controller.events.hold(cmd.queue, cmd.tag)


def _abort(cmd: Command) -> int:
    """Ends a command that still waits.  Bit 0 of DW0 says that it was not aborted (base, section 5.1)."""
    sqid, command_id = cmd.dw[10] & 0xFFFF, cmd.dw[10] >> 16
    peers = cmd.controller.queues if cmd.queue.peers is None else cmd.queue.peers
    queue = peers.get(sqid)
    tag = None if queue is None else queue.tag_of(command_id)
    if queue is None or tag is None or not cmd.controller.abort(queue, tag):
        cmd.dw0 = 1
    return cmd.now_ns


def _keep_alive(cmd: Command) -> int:
    return cmd.now_ns


# --- format and namespaces ----------------------------------------------------------------------------


def _format(cmd: Command) -> int:
    """Format NVM: of one namespace, or of all that are attached to the controller."""
    word = cmd.dw[10]
    lbaf, erase = word & 0xF | word >> 8 & 0x30, word >> 9 & 7
    if lbaf >= len(LBA_SHIFTS):
        raise Refused(Status.INVALID_FORMAT, byte=40)
    if word >> 4 & 0x1F:  # metadata, protection information
        raise Refused(Status.INVALID_FORMAT, byte=40, bit=4)
    if erase > 1:  # FNA says that there is no cryptographic erase
        raise invalid_field(10, 9)
    subsystem = cmd.controller.subsystem
    targets = list(cmd.controller.active.values()) if cmd.broadcast else [cmd.namespace()]
    if any(target.protect for target in targets):
        raise Refused(Status.NAMESPACE_WRITE_PROTECTED)
    if any(target.busy_until_ns > cmd.now_ns for target in targets):
        raise Refused(Status.FORMAT_IN_PROGRESS)
    if any(target.size_bytes >> LBA_SHIFTS[lbaf] == 0 for target in targets):  # no block of that size fits in
        raise Refused(Status.INVALID_FORMAT, byte=40)
    due_ns = cmd.now_ns
    for target in targets:
        done_ns = subsystem.medium.format(target.base, target.size_bytes, cmd.now_ns)
        if done_ns < 0:
            raise Refused(final(-done_ns), retry=True)
        target.shift = LBA_SHIFTS[lbaf]
        subsystem.occupy(target, done_ns)
        due_ns = max(due_ns, done_ns)
    return due_ns


_NEW_NAMESPACE: Final = struct.Struct("<QQ10xBxxBB")
"""NSZE, NCAP, FLBAS, DPS, NMIC."""


def _manage(cmd: Command) -> int:
    subsystem = cmd.controller.subsystem
    match cmd.dw[10] & 0xF:
        case 0:
            if cmd.dw[11] >> 24:
                raise Refused(Status.INVALID_FIELD, byte=47)
            blocks, capacity, flbas, dps, nmic = _NEW_NAMESPACE.unpack_from(cmd.data(PAGE_BYTES, to_host=False))
            if blocks != capacity:
                raise Refused(Status.THIN_NOT_SUPPORTED)
            if flbas & 0xF >= len(LBA_SHIFTS) or flbas & 0xF0 or dps:
                raise Refused(Status.INVALID_FORMAT)
            made = subsystem.namespaces.create(blocks, LBA_SHIFTS[flbas & 0xF], shared=bool(nmic & 1))
            subsystem.keep()
            cmd.dw0 = made.nsid
        case 1:
            targets = list(subsystem.namespaces.table.values()) if cmd.broadcast else [_allocated(cmd)]
            if any(target.protect for target in targets):  # it is not among what is allowed then (base, section 8.12)
                raise Refused(Status.NAMESPACE_WRITE_PROTECTED)
            for target in targets:
                subsystem.delete(target, cmd.now_ns)
        case _:
            raise invalid_field(10)
    return cmd.now_ns


def _allocated(cmd: Command) -> Namespace:
    cmd.check_nsid()
    found = cmd.controller.subsystem.namespaces.table.get(cmd.nsid)
    if found is None:
        raise Refused(Status.INVALID_FIELD, byte=4)
    return found


def _attach(cmd: Command) -> int:
    """Attaches to, or detaches from, the controllers of a list; all or none."""
    namespace, detach = _allocated(cmd), cmd.dw[10] & 0xF
    if detach > 1:
        raise invalid_field(10)
    raw = bytes(cmd.data(PAGE_BYTES, to_host=False))
    count = int.from_bytes(raw[:2], "little")
    if not 0 < count <= 2047:
        raise Refused(Status.CONTROLLER_LIST_INVALID)
    ids = list(struct.unpack_from(f"<{count}H", raw, 2))
    controllers = cmd.controller.subsystem.controllers
    if sorted(set(ids)) != ids or any(each not in controllers for each in ids):
        raise Refused(Status.CONTROLLER_LIST_INVALID)
    if detach and any(each not in namespace.attached for each in ids):
        raise Refused(Status.NOT_ATTACHED)
    if not detach and any(each in namespace.attached for each in ids):
        raise Refused(Status.ALREADY_ATTACHED)
    if not detach and not namespace.shared and len(namespace.attached) + len(ids) > 1:
        raise Refused(Status.NAMESPACE_PRIVATE)
    cmd.controller.subsystem.attach(namespace, ids, attach=not detach)
    return cmd.now_ns


# --- vendor commands: a remote control for `nvme admin-passthru` -------------------------------------------


def _fault_add(cmd: Command) -> int:
    length = 4 * cmd.dw[10]
    if not 0 < length <= _RULE_MAX_BYTES:
        raise invalid_field(10)
    text = bytes(cmd.data(length, to_host=False)).rstrip(b"\0").decode(errors="replace")
    try:
        cmd.dw0 = cmd.controller.subsystem.faults.add(text.strip())
    except uxk.UxkError as exc:
        cmd.controller.subsystem.say(f"fault rule refused: {exc}")
        raise invalid_field(12) from None
    return cmd.now_ns


def _fault_remove(cmd: Command) -> int:
    faults = cmd.controller.subsystem.faults
    try:
        if cmd.dw[12]:
            faults.remove(cmd.dw[12])
        else:
            faults.clear()
    except uxk.UxkError:
        raise invalid_field(12) from None
    return cmd.now_ns


def _fault_list(cmd: Command) -> int:
    length = 4 * cmd.dw[10]
    if not 0 < length <= _RULE_MAX_BYTES:
        raise invalid_field(10)
    cmd.answer(cmd.controller.subsystem.faults.render().encode()[:length].ljust(length, b"\0"))
    return cmd.now_ns


def _power_loss(cmd: Command) -> int:
    cmd.controller.subsystem.power_loss(cmd.now_ns)
    return cmd.now_ns


def _latency(cmd: Command) -> int:
    latency_ns = cmd.dw[12] | cmd.dw[13] << 32
    if latency_ns > LATENCY_MAX_NS:
        raise invalid_field(12)
    cmd.controller.subsystem.set_latency(latency_ns)
    return cmd.now_ns


ADMIN_TABLE: Final[dict[int, Handler]] = {
    Admin.GET_LOG_PAGE: get_log_page,
    Admin.IDENTIFY: identify,
    Admin.ABORT: _abort,
    Admin.SET_FEATURES: _set_features,
    Admin.GET_FEATURES: _get_features,
    Admin.ASYNC_EVENT: _event,
    Admin.NAMESPACE_MANAGEMENT: _manage,
    Admin.NAMESPACE_ATTACHMENT: _attach,
    Admin.KEEP_ALIVE: _keep_alive,
    Admin.FORMAT: _format,
    Vendor.FAULT_ADD: _fault_add,
    Vendor.FAULT_REMOVE: _fault_remove,
    Vendor.FAULT_LIST: _fault_list,
    Vendor.POWER_LOSS: _power_loss,
    Vendor.LATENCY: _latency,
}
"""What every controller has; one with queues in memory also creates and deletes them (:mod:`uxk_nvme.pcie`)."""
