"""``/sys/block/NAME``: what a disk shows and lets be set (Linux: Documentation/ABI/stable/sysfs-block).

Every attribute that can be written has an effect from the next request on, or, for the scheduler, when the queue has
run empty.  Sizes are bytes unless the name says kb or sectors; ``io_timeout`` and a scheduler's times are in ms.
"""

from __future__ import annotations

import base64
import errno
from collections.abc import Callable
from functools import partial
from typing import Final

from uxk import limits as l
from uxk.core.kobject import Attribute, AttributeTable, attribute_table
from uxk.errors import UsageError
from uxk.subsystems.blk.disk import Disk
from uxk.subsystems.blk.limits import NS_PER_MS, REQUESTS_MAX, REQUESTS_MIN, SECTOR_SHIFT, SEGMENTS_MAX
from uxk.subsystems.blk.schedulers import SCHEDULERS
from uxk.subsystems.blk.trace import RECORD

_KB_SHIFT: Final = 10
_U32_MAX: Final = l.U32_MAX
_PIPE_BYTES: Final = (l.SHOW_MAX_BYTES - 32) // 5 * 4 // RECORD.size * RECORD.size
"""Events in one read of ``trace/pipe``: base 85 makes five characters of four bytes, and two numbers are in front."""
_CACHES: Final = {"write back": True, "write through": False}


def integer(text: str, name: str, least: int, most: int) -> int:
    """A number in a range.  UsageError (EINVAL) names it, the attribute and the range."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise UsageError(f"{name}: {text[:64]!r}, expected an integer in {least}..{most}")
    return value


# --- what can be set ---------------------------------------------------------------------------------


def _show_scheduler(disk: Disk) -> str:
    now = disk.switching_to or disk.scheduler.name
    return " ".join(f"[{name}]" if name == now else name for name in SCHEDULERS)


def _store_scheduler(disk: Disk, text: str) -> None:
    disk.set_scheduler(text.strip())


def _store_requests(disk: Disk, text: str) -> None:
    """Without a scheduler, tags are the driver's own (Linux: blk_mq_update_nr_requests); 1 to 3 count as 4."""
    most = disk.depth if disk.scheduler.name == "none" else REQUESTS_MAX
    count = integer(text, "nr_requests", 1, most)
    disk.set_requests(min(max(count, REQUESTS_MIN), most))
    disk.advance()


def _store_max_sectors(disk: Disk, text: str) -> None:
    """At least one page (Linux: queue_max_sectors_store), at most what the driver takes; 0 is the default again."""
    most = disk.limits.hardware.max_transfer_bytes >> _KB_SHIFT
    value = integer(text, "max_sectors_kb", 0, max(most, 4))
    if 0 < value < 4:
        raise UsageError(f"max_sectors_kb: {value}, expected 0, or a page of 4 or more")
    disk.limits.max_setting_bytes = value << _KB_SHIFT
    disk.limits.work_out()


def _store_nomerges(disk: Disk, text: str) -> None:
    disk.limits.nomerges = integer(text, "nomerges", 0, 2)
    disk.limits.work_out()


def _store_cache(disk: Disk, text: str) -> None:
    wanted = _CACHES.get(text.strip())
    if wanted is None:
        raise UsageError(f"write_cache: {text[:64]!r}, expected 'write back' or 'write through'")
    if wanted and not disk.limits.hardware.write_cache:
        raise UsageError("write_cache: 'write back': the device has no cache to flush")
    disk.limits.write_cache_setting = wanted
    disk.limits.work_out()


def _store_discard(disk: Disk, text: str) -> None:
    """In whole blocks, at most what the driver takes; 0 turns discards off."""
    hardware = disk.limits.hardware
    value = integer(text, "discard_max_bytes", 0, l.I64_MAX)
    if value & disk.limits.block_mask:
        raise UsageError(f"discard_max_bytes: {value}, expected a multiple of {hardware.logical_block_bytes}")
    disk.limits.discard_setting_bytes = min(value, hardware.max_discard_bytes)
    disk.limits.work_out()


def _store_timeout(disk: Disk, text: str) -> None:
    disk.limits.io_timeout_ns = integer(text, "io_timeout", 1, _U32_MAX) * NS_PER_MS
    disk.timeouts.set()


def _store_iostats(disk: Disk, text: str) -> None:
    disk.limits.iostats = bool(integer(text, "iostats", 0, 1))
    disk.refresh()


def _store_rotational(disk: Disk, text: str) -> None:
    disk.limits.rotational_setting = bool(integer(text, "rotational", 0, 1))


def _store_ro(disk: Disk, text: str) -> None:
    """In place of the BLKROSET ioctl."""
    disk.limits.read_only_setting = bool(integer(text, "ro", 0, 1))
    disk.limits.work_out()


def _store_trace(disk: Disk, text: str) -> None:
    if integer(text, "enable", 0, 1):
        disk.trace.start(disk.machine.now_ns)
    else:
        disk.trace.stop()
    disk.refresh()


def _read_pipe(disk: Disk) -> str:
    """``NUMBER CPU EVENTS``, the oldest events of the first CPU that has any, in base 85; ``""`` if there are none.

    Reading changes nothing: the next ones come when NUMBER was written back.
    """
    number, cpu, events = disk.trace.peek(_PIPE_BYTES)
    return f"{number} {cpu} {base64.b85encode(events).decode()}" if events else ""


def _store_pipe(disk: Disk, text: str) -> None:
    disk.trace.taken(integer(text, "pipe", 0, l.I64_MAX))


# --- tables ------------------------------------------------------------------------------------------


def _number(name: str, show: Callable[[Disk], int], store: Callable[[Disk, str], None] | None = None) -> Attribute:
    return Attribute(name, lambda disk: str(show(disk)), store)


QUEUE: Final[AttributeTable] = attribute_table(
    Attribute("scheduler", _show_scheduler, _store_scheduler),
    _number("nr_requests", lambda d: d.nr_requests, _store_requests),
    _number("max_sectors_kb", lambda d: d.limits.max_bytes >> _KB_SHIFT, _store_max_sectors),
    _number("max_hw_sectors_kb", lambda d: d.limits.hardware.max_transfer_bytes >> _KB_SHIFT),
    _number("max_segments", lambda d: SEGMENTS_MAX),
    _number("logical_block_size", lambda d: d.limits.hardware.logical_block_bytes),
    _number("hw_sector_size", lambda d: d.limits.hardware.logical_block_bytes),
    _number("physical_block_size", lambda d: d.limits.hardware.physical_block_bytes),
    _number("minimum_io_size", lambda d: d.limits.hardware.io_min_bytes or d.limits.hardware.physical_block_bytes),
    _number("optimal_io_size", lambda d: d.limits.hardware.io_opt_bytes),
    _number("nomerges", lambda d: d.limits.nomerges, _store_nomerges),
    Attribute("write_cache", lambda d: "write back" if d.limits.cache else "write through", _store_cache),
    _number("fua", lambda d: int(d.limits.fua)),
    _number("discard_granularity", lambda d: d.limits.discard_bytes and d.limits.block_mask + 1),
    _number("discard_max_bytes", lambda d: d.limits.discard_bytes, _store_discard),
    _number("discard_max_hw_bytes", lambda d: d.limits.hardware.max_discard_bytes),
    _number("write_zeroes_max_bytes", lambda d: d.limits.zeroes_bytes),
    _number("io_timeout", lambda d: d.limits.io_timeout_ns // NS_PER_MS, _store_timeout),
    _number("iostats", lambda d: int(d.limits.iostats), _store_iostats),
    _number("rotational", lambda d: int(d.limits.rotational), _store_rotational),
)
"""``/sys/block/NAME/queue``."""

TRACE: Final[AttributeTable] = attribute_table(
    _number("enable", lambda d: int(d.trace.on), _store_trace),
    _number("cpus", lambda d: d.trace.cpus),
    _number("dropped", lambda d: d.trace.dropped),
    Attribute("pipe", _read_pipe, _store_pipe, mode=0o600),
)
"""``/sys/block/NAME/trace``: the way out for the events of ``blktrace``."""

DISK: Final = (
    ("size", lambda disk: str(disk.limits.capacity_bytes >> SECTOR_SHIFT), None),
    ("stat", lambda disk: disk.stats.line(disk.machine.now_ns), None),
    ("ro", lambda disk: str(int(not disk.limits.writable)), _store_ro),
)
"""Attributes that stand beside the device's own."""


class Hctx:
    """One hardware queue as ``/sys/block/NAME/mq/N`` shows it."""

    __slots__ = ("disk", "number")

    def __init__(self, disk: Disk, number: int) -> None:
        self.disk = disk
        self.number = number

    @property
    def cpu_list(self) -> str:
        """The CPUs whose requests it takes."""
        shape = self.disk.shape
        return ", ".join(str(cpu) for cpu in range(shape.cpus) if shape.hctx_of(cpu) == self.number)


HCTX: Final[AttributeTable] = attribute_table(
    Attribute("cpu_list", lambda hctx: hctx.cpu_list),
    Attribute("nr_tags", lambda hctx: str(hctx.disk.depth)),
    Attribute("dispatched", lambda hctx: str(hctx.disk.hardware.dispatched[hctx.number])),
)


def add_disk(disk: Disk) -> None:
    """Puts a disk into the tree: beside its device's own attributes, and linked from ``/sys/block``."""
    tree, path = disk.machine.tree, disk.device.path
    for name, show, store in DISK:
        setter = None if store is None else partial(_for_disk, disk, store)
        tree.add_attribute(path, Attribute(name, partial(_of_disk, disk, show), setter))
    tree.add(f"{path}/queue", disk, QUEUE)
    tree.add(f"{path}/trace", disk, TRACE)
    for number in range(disk.shape.hctxs):
        tree.add(f"{path}/mq/{number}", Hctx(disk, number), HCTX)
    add_iosched(disk)
    disk.on_switched = partial(add_iosched, disk)
    tree.link(f"/sys/block/{disk.name}", path)


def add_iosched(disk: Disk) -> None:
    """The attributes of the scheduler in force, in place of those of the last one."""
    tree, path = disk.machine.tree, f"{disk.device.path}/queue/iosched"
    if tree.exists(path):
        tree.remove(path)
    if disk.scheduler.attributes:
        tree.add(path, disk.scheduler, disk.scheduler.attributes)


def remove_disk(disk: Disk) -> None:
    """Takes it out again; the device's own part is the device's business."""
    tree, path = disk.machine.tree, disk.device.path
    for place in (f"/sys/block/{disk.name}", f"{path}/queue", f"{path}/trace", f"{path}/mq"):
        if tree.exists(place):
            tree.remove(place)
    for name, _, _ in DISK:
        if tree.exists(f"{path}/{name}"):
            tree.remove_attribute(path, name)


def set_option(disk: Disk, name: str, value: object) -> None:
    """Writes an attribute under ``queue``, or of its scheduler with ``iosched/NAME``.  TreeError for what cannot be."""
    text = str(int(value)) if isinstance(value, bool) else str(value)
    if disk.switching_to:
        raise UsageError(f"{disk.name}: its scheduler is being switched", errno=errno.EBUSY)
    disk.machine.tree.write(f"{disk.device.path}/queue/{name}", text, writer="kernel")


def _of_disk(disk: Disk, show: Callable[[Disk], str], _owner: object) -> str:
    return show(disk)


def _for_disk(disk: Disk, store: Callable[[Disk, str], None], _owner: object, text: str) -> None:
    store(disk, text)
