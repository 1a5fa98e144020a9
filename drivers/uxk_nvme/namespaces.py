"""Namespaces: ranges of the device's linear space, shared by the controllers of the subsystem (base, section 8.11)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from uxk_nvme.spec import PAGE_BYTES, Refused, Status

NAMESPACES_MAX: Final = 32
"""NN.  Each is a device of the kernel's, of which an instance may have 64."""
LBA_SHIFTS: Final = (9, 12)
"""LBA formats 0 and 1: 512 and 4096 bytes, no metadata."""


class NamespaceRecord(msgspec.Struct, array_like=True):
    """What of a namespace outlives the driver."""

    nsid: int
    base_bytes: int
    size_bytes: int
    shift: int
    identity: bytes
    shared: bool = True
    protect: int = 0
    attached: list[int] = []
    """CNTLIDs."""
    hosts: list[str] = []
    """Host NQNs that get it again with their next controller; the kernel's own driver is the host ``""``."""
    refused: list[str] = []
    """Host NQNs that have detached it."""
    recovery: int = 0
    """Error recovery (feature 05h)."""


class Namespace:
    """One namespace.  ``base`` and ``size_bytes`` are a range of the device; a block has ``1 << shift`` bytes."""

    __slots__ = (
        "attached", "base", "blocks", "busy_until_ns", "hosts", "identity", "nsid", "protect", "recovery", "refused",
        "shared", "shift", "size_bytes", "writable",
    )  # fmt: skip

    def __init__(self, record: NamespaceRecord) -> None:
        self.nsid = record.nsid
        self.base = record.base_bytes
        self.size_bytes = record.size_bytes
        self.shift = record.shift
        self.identity = record.identity
        self.shared = record.shared
        self.protect = record.protect
        """Write protection state (feature 84h)."""
        self.recovery = record.recovery
        """Error recovery (feature 05h)."""
        self.attached = dict.fromkeys(record.attached)
        self.hosts = dict.fromkeys(record.hosts)
        self.refused = dict.fromkeys(record.refused)
        self.busy_until_ns = 0
        """Format is under way until then."""
        self.blocks = self.size_bytes >> self.shift
        self.writable = True
        self.refresh()

    def refresh(self) -> None:
        """Brings what the fast path looks at in line: blocks, writable."""
        self.blocks = self.size_bytes >> self.shift
        self.writable = not self.busy_until_ns and not self.protect

    def is_due_to(self, host: str, primary: int) -> bool:
        """Whether a host's new controller gets it: those that had it attached do, and, if it is shared, everybody when
        the kernel's controller (``primary``) has it; not who has detached it, and a private one nobody beside another.
        """
        if host in self.refused or (self.attached and not self.shared):
            return False
        return host in self.hosts or (self.shared and primary in self.attached)

    def record(self) -> NamespaceRecord:
        """What to keep of it."""
        return NamespaceRecord(
            self.nsid, self.base, self.size_bytes, self.shift, self.identity, self.shared, self.protect,
            [*self.attached], [*self.hosts], [*self.refused], self.recovery,
        )  # fmt: skip

    @property
    def nguid(self) -> bytes:
        """16 bytes."""
        return self.identity[:16]

    @property
    def uuid(self) -> bytes:
        """16 bytes, of variant 1 and version 8 (RFC 9562)."""
        raw = bytearray(self.identity[16:32])
        raw[6] = raw[6] & 0x0F | 0x80
        raw[8] = raw[8] & 0x3F | 0x80
        return bytes(raw)


class Namespaces:
    """The table of namespaces, by NSID, and the space that they do not use."""

    def __init__(self, capacity_bytes: int, serial: str) -> None:
        self.capacity_bytes = capacity_bytes
        self.limit = NAMESPACES_MAX
        self.generation = 0
        """Counts creations: an NSID that is used again gets another identity."""
        self._serial = serial
        self.table: dict[int, Namespace] = {}

    @property
    def unallocated_bytes(self) -> int:
        """Space that no namespace has (UNVMCAP)."""
        return max(self.capacity_bytes - sum(map(_rounded, self.table.values())), 0)

    def create(self, blocks: int, shift: int, *, shared: bool = True) -> Namespace:
        """A new namespace at the first hole that is large enough.

        Refused: Namespace Insufficient Capacity, Namespace Identifier Unavailable.
        """
        size_bytes = blocks << shift
        nsid = next((each for each in range(1, self.limit + 1) if each not in self.table), 0)
        if not nsid:
            raise Refused(Status.NO_NAMESPACE_IDENTIFIER)
        base = self._hole(size_bytes)
        if base < 0 or not blocks:
            raise Refused(Status.INSUFFICIENT_CAPACITY)
        self.generation += 1
        words = f"{self._serial}/{nsid}/{self.generation}"
        made = Namespace(
            NamespaceRecord(nsid, base, size_bytes, shift, hashlib.sha256(words.encode()).digest(), shared)
        )
        self.table[nsid] = made
        return made

    def delete(self, nsid: int) -> Namespace:
        """Takes a namespace out of the table."""
        return self.table.pop(nsid)

    def restore(self, records: Iterable[NamespaceRecord]) -> None:
        """The table as it was kept."""
        self.table = {record.nsid: Namespace(record) for record in records}

    def active_of(self, cntlid: int) -> dict[int, Namespace]:
        """The namespaces attached to a controller, by ascending NSID."""
        return {nsid: self.table[nsid] for nsid in sorted(self.table) if cntlid in self.table[nsid].attached}

    def _hole(self, size_bytes: int) -> int:
        """First fit; -1 if there is none."""
        at = 0
        for each in sorted(self.table.values(), key=lambda each: each.base):
            if each.base - at >= size_bytes:
                return at
            at = each.base + _rounded(each)
        return at if self.capacity_bytes - at >= size_bytes else -1


def _rounded(namespace: Namespace) -> int:
    return -(-namespace.size_bytes // PAGE_BYTES) * PAGE_BYTES
