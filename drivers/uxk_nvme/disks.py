"""Which disks there are: what the controller says of its namespaces becomes devices of the kernel's."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from typing import Final

import uxk
from uxk.uapi.blk import BlockLimits, properties_of
from uxk_nvme.adminqueue import AdminQueue
from uxk_nvme.spec import TRANSFER_MAX_BYTES, ZEROES_MAX_BYTES
from uxk_nvme.translate import Disk

_LENGTH_MAX: Final = (1 << 32) - 1
"""Of a request."""


class Disks:
    """Adds, changes and removes devices.  ``table`` is by device number; ``ready`` is called after the first scan."""

    def __init__(
        self, ctx: uxk.Context, admin: AdminQueue, table: dict[int, Disk], queues: int, write_cache: bool,
        ready: Callable[[], object],
    ) -> None:  # fmt: skip
        self._ctx = ctx
        self._admin = admin
        self._table = table
        self._queues = queues
        self._write_cache = write_cache
        self._ready: Callable[[], object] | None = ready
        self._properties: dict[str, dict[str, str]] = {}
        """Of the devices that there are, by name."""
        self._scanning = False
        self._again = False
        self._failed = False
        """Whether the controller has not answered: what there was is kept."""

    def rescan(self) -> None:
        """Asks for the active namespaces, and brings the devices in line."""
        if self._scanning:
            self._again = True
            return
        self._scanning = True
        self._failed = False
        self._admin.identify(0x02, 0, self._listed)

    def _listed(self, page: bytes) -> None:
        if not page:
            self._failed = True
            self._scanned()
            return
        nsids = [nsid for (nsid,) in struct.iter_unpack("<I", page) if nsid]
        wanted = {self._name(nsid) for nsid in nsids}
        for name in [name for name in self._properties if name not in wanted]:
            self._remove(name)
        self._look(nsids)

    def _name(self, nsid: int) -> str:
        return f"{self._ctx.device}n{nsid}"

    def _look(self, nsids: list[int]) -> None:
        if not nsids:
            self._scanned()
            return
        nsid, rest = nsids[0], nsids[1:]

        def with_data(page: bytes) -> None:
            self._admin.identify(0x03, nsid, lambda found: self._found(nsid, page, found, rest))

        self._admin.identify(0x00, nsid, with_data)

    def _scanned(self) -> None:
        self._scanning = False
        self._alias()
        if self._ready is not None:
            ready, self._ready = self._ready, None
            ready()
        if self._again:
            self._again = False
            self.rescan()
        elif self._failed:
            self._admin.postpone(self.rescan)

    def _found(self, nsid: int, page: bytes, descriptors: bytes, rest: list[int]) -> None:
        if not page or not descriptors:
            self._failed = True
        elif any(page[8:16]):
            self._add(nsid, page, descriptors)
        elif self._name(nsid) in self._properties:
            self._remove(self._name(nsid))
        self._look(rest)

    def _add(self, nsid: int, page: bytes, descriptors: bytes) -> None:
        blocks = int.from_bytes(page[:8], "little")
        lbaf = 128 + 4 * (page[26] & 0xF)
        shift = page[lbaf + 2]
        block_bytes = 1 << shift
        limits = BlockLimits(
            capacity_bytes=blocks << shift,
            logical_block_bytes=block_bytes,
            physical_block_bytes=(int.from_bytes(page[64:66], "little") + 1) << shift,
            io_min_bytes=(int.from_bytes(page[64:66], "little") + 1) << shift,
            max_transfer_bytes=TRANSFER_MAX_BYTES,
            max_discard_bytes=_LENGTH_MAX // block_bytes * block_bytes,
            max_write_zeroes_bytes=ZEROES_MAX_BYTES,
            write_cache=int(self._write_cache),
            fua=int(self._write_cache),
            read_only=page[99] & 1,
            queues=self._queues,
        )
        properties = {**properties_of(limits), "nsid": str(nsid), **_identity(descriptors)}
        name = self._name(nsid)
        known = self._properties.get(name)
        if known == properties:
            return
        if known is not None and known.get("wwid") != properties.get("wwid"):
            self._remove(name)  # another namespace of the same number
        self._properties[name] = properties
        disk = Disk(nsid, shift, blocks << shift, name)
        self._ctx.add_device(name, **properties).then(lambda answer: self._added(answer, disk))

    def _added(self, answer: uxk.Completion, disk: Disk) -> None:
        if answer.status:
            self._ctx.log(f"{disk.name}: {answer.payload.decode(errors='replace')}", level=4)
            self._properties.pop(disk.name, None)
            return
        if disk.name in self._properties:
            self._table[answer.result] = disk
            self._alias()

    def _remove(self, name: str) -> None:
        del self._properties[name]
        for number in [number for number, disk in self._table.items() if disk.name == name]:
            del self._table[number]
        self._ctx.remove_device(name)
        self._alias()

    def _alias(self) -> None:
        """The controller's own device stands for its first namespace."""
        self._table.pop(0, None)
        if self._table:
            self._table[0] = min(self._table.values())


def _identity(descriptors: bytes) -> dict[str, str]:
    """``wwid`` out of the namespace's identification descriptors, as Linux writes it."""
    at = 0
    while at + 4 <= len(descriptors) and descriptors[at + 1]:
        kind, length = descriptors[at], descriptors[at + 1]
        if kind == 3 and length == 16:
            return {"wwid": f"uuid.{uuid.UUID(bytes=descriptors[at + 4 : at + 20])}"}
        at += 4 + length
    return {}
