"""Snapshots: versioned metadata that readers see without a lock (Linux: RCU; ZooKeeper: versioned setData).

A publish makes a new version and waits for nobody; a reader pins the version it has read, which stays as it was
until the last pin goes.
"""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from uxk import limits
from uxk.errors import ExtensionError
from uxk.uapi.ids import InstanceId, VersionNumber

CELLS_MAX: Final = 4096
"""Cells of one table."""
BYTES_MAX_DEFAULT: Final = 256 * limits.PAYLOAD_MAX_BYTES
"""Live bytes of one table, all versions together: metadata, bulk data belong in the arena."""
_NAMED_MAX: Final = 8


class Version(NamedTuple):
    """One version of a cell; numbers grow by one from 1."""

    number: VersionNumber
    data: bytes
    writer: InstanceId


class CellStatistics(NamedTuple):
    """Counts of one cell; the first four are of now, the rest since it was made."""

    version: int
    versions: int
    bytes: int
    readers: int
    published: int
    conflicts: int


class Cell:
    """One named datum with its live versions: the current one and those that readers pin.

    Errors are :class:`ExtensionError`: ESTALE (another has published), EINVAL, E2BIG, ENOSPC (slow readers),
    ENODATA (nothing published yet).
    """

    __slots__ = ("_conflicts", "_pins", "_refs", "_versions", "bytes", "name", "number")

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = VersionNumber(0)
        """The current version; 0 before the first."""
        self.bytes = 0
        """Of all live versions."""
        self._versions: dict[VersionNumber, Version] = {}
        self._refs: dict[VersionNumber, int] = {}
        self._pins: dict[InstanceId, dict[VersionNumber, int]] = {}
        self._conflicts = 0

    def publish(self, writer: InstanceId, data: bytes, expected_version: int | None = None) -> VersionNumber:
        """Makes ``data`` the current version.

        With ``expected_version``, only if that is the current one (0: if there is none yet).
        """
        if len(data) > limits.PAYLOAD_MAX_BYTES:
            raise self._error(f"{len(data)} bytes, at most {limits.PAYLOAD_MAX_BYTES}", errno.E2BIG)
        if expected_version is not None and expected_version != self.number:
            if not 0 <= expected_version < self.number:
                raise self._error(f"version {expected_version} does not exist, {self.number} is the newest")
            self._conflicts += 1
            raise self._error(f"expected version {expected_version}, found {self.number}", errno.ESTALE)
        if len(self._refs) >= limits.SNAPSHOT_VERSIONS_MAX:  # with the new one there would be one more
            raise self._error(f"{len(self._refs)} versions are pinned, by {self._slow()}", errno.ENOSPC)
        old = self.number
        self.number = VersionNumber(old + 1)
        self._versions[self.number] = Version(self.number, bytes(data), writer)
        self.bytes += len(data)
        self._free(old)
        return self.number

    def freed_by_publish(self) -> int:
        """Bytes that the next publish would free: those of the current version, if nobody pins it."""
        current = self._versions.get(self.number)
        return 0 if current is None or self.number in self._refs else len(current.data)

    def read(self) -> Version:
        """The current version, not pinned."""
        current = self._versions.get(self.number)
        if current is None:
            raise self._error("nothing was published yet", errno.ENODATA)
        return current

    def pin(self, reader: InstanceId) -> Version:
        """The current version, kept until ``reader`` unpins it as often as it pinned it."""
        current = self.read()
        mine = self._pins.setdefault(reader, {})
        mine[current.number] = mine.get(current.number, 0) + 1
        self._refs[current.number] = self._refs.get(current.number, 0) + 1
        return current

    def unpin(self, reader: InstanceId, number: VersionNumber) -> None:
        """Lets go of one pin; EINVAL if ``reader`` has none on that version."""
        mine = self._pins.get(reader, {})
        if number not in mine:
            raise self._error(f"instance {reader} does not pin version {number}")
        mine[number] -= 1
        if mine[number] == 0:
            del mine[number]
            if not mine:
                del self._pins[reader]
        self._unref(number, 1)

    def drop(self, reader: InstanceId) -> int:
        """Lets go of all pins of a reader that is gone; returns how many."""
        mine = self._pins.pop(reader, {})
        for number, count in mine.items():
            self._unref(number, count)
        return sum(mine.values())

    def rename(self, reader: InstanceId, to: InstanceId) -> int:
        """See :meth:`SnapshotTable.rename`."""
        self._pins[to] = self._pins.pop(reader)
        return self.pins_of(to)

    def pins_of(self, reader: InstanceId) -> int:
        """How many pins a reader has."""
        return sum(self._pins.get(reader, {}).values())

    def readers(self) -> list[InstanceId]:
        """Who pins a version, in order of the first pin."""
        return list(self._pins)

    def versions(self) -> list[VersionNumber]:
        """The live versions, oldest first."""
        return list(self._versions)

    def statistics(self) -> CellStatistics:
        """A consistent copy of the counters."""
        return CellStatistics(
            self.number, len(self._versions), self.bytes, len(self._pins), self.number, self._conflicts
        )  # fmt: skip

    def _unref(self, number: VersionNumber, count: int) -> None:
        self._refs[number] -= count
        if self._refs[number] == 0:
            del self._refs[number]
            if number != self.number:
                self._free(number)

    def _free(self, number: VersionNumber) -> None:
        if number in self._versions and number not in self._refs:
            self.bytes -= len(self._versions.pop(number).data)

    def _slow(self) -> str:
        """The readers of the oldest versions, oldest first."""
        oldest = sorted((min(mine), reader) for reader, mine in self._pins.items())
        named = [f"instance {reader} (since version {number})" for number, reader in oldest[:_NAMED_MAX]]
        more = len(oldest) - len(named)
        return ", ".join(named) + (f" and {more} more" if more else "")

    def _error(self, what: str, number: int = errno.EINVAL) -> ExtensionError:
        return ExtensionError(f"snapshot {self.name!r}: {what}", errno=number)


class SnapshotStatistics(NamedTuple):
    """Counts of a table, all of now."""

    cells: int
    versions: int
    bytes: int
    readers: int


class SnapshotTable:
    """All cells of a kernel, by name.  A cell is made by its first publish and stays until it is removed."""

    __slots__ = ("_by_reader", "_bytes", "_bytes_max", "_cells")

    def __init__(self, bytes_max: int = BYTES_MAX_DEFAULT) -> None:
        self._cells: dict[str, Cell] = {}
        self._by_reader: dict[InstanceId, dict[str, None]] = {}
        self._bytes = 0
        self._bytes_max = bytes_max

    def __len__(self) -> int:
        return len(self._cells)

    def publish(
        self, name: str, writer: InstanceId, data: bytes, expected_version: int | None = None
    ) -> VersionNumber:  # fmt: skip
        """See :meth:`Cell.publish`.  Also ENOSPC for too many cells or bytes, ENAMETOOLONG."""
        known = self._cells.get(name)
        cell = self._new(name) if known is None else known
        after = self._bytes - cell.freed_by_publish() + len(data)
        if after > self._bytes_max:
            raise _table_error(name, f"{after} bytes of live versions, at most {self._bytes_max}", errno.ENOSPC)
        before = cell.bytes
        number = cell.publish(writer, data, expected_version)
        self._cells[name] = cell
        self._bytes += cell.bytes - before
        return number

    def pin(self, name: str, reader: InstanceId) -> Version:
        """See :meth:`Cell.pin`; ENOENT if nothing of that name was published."""
        version = self._get(name).pin(reader)
        self._by_reader.setdefault(reader, {})[name] = None
        return version

    def unpin(self, name: str, reader: InstanceId, number: VersionNumber) -> None:
        """See :meth:`Cell.unpin`."""
        cell = self._get(name)
        before = cell.bytes
        cell.unpin(reader, number)
        self._bytes += cell.bytes - before
        if not cell.pins_of(reader):
            names = self._by_reader[reader]
            del names[name]
            if not names:
                del self._by_reader[reader]

    def drop(self, reader: InstanceId) -> int:
        """Lets go of all pins of a reader that is gone; returns how many.  Never raises."""
        count = 0
        for name in self._by_reader.pop(reader, ()):
            cell = self._cells[name]
            before = cell.bytes
            count += cell.drop(reader)
            self._bytes += cell.bytes - before
        return count

    def rename(self, reader: InstanceId, to: InstanceId) -> int:
        """All pins of a reader belong to another one, who has none; returns how many."""
        names = self._by_reader.pop(reader, None)
        if names is None:
            return 0
        self._by_reader[to] = names
        return sum(self._cells[name].rename(reader, to) for name in names)

    def remove(self, name: str) -> None:
        """Deletes a cell; EBUSY while a version of it is pinned, ENOENT if there is none."""
        cell = self._get(name)
        readers = cell.readers()
        if readers:
            raise _table_error(name, f"pinned by instances {readers[:_NAMED_MAX]}", errno.EBUSY)
        self._bytes -= cell.bytes
        del self._cells[name]

    def get(self, name: str) -> Cell | None:
        """The cell, to look at."""
        return self._cells.get(name)

    def cells(self) -> list[Cell]:
        """All cells, to look at; oldest first."""
        return list(self._cells.values())

    def statistics(self) -> SnapshotStatistics:
        """A consistent copy of the counters."""
        versions = sum(len(cell.versions()) for cell in self._cells.values())
        return SnapshotStatistics(len(self._cells), versions, self._bytes, len(self._by_reader))

    def _get(self, name: str) -> Cell:
        cell = self._cells.get(name)
        if cell is None:
            raise _table_error(name, "nothing of that name was published", errno.ENOENT)
        return cell

    def _new(self, name: str) -> Cell:
        if not 1 <= len(name) <= limits.PATH_MAX_BYTES:
            raise _table_error("", f"name of {len(name)} characters, 1 to {limits.PATH_MAX_BYTES}", errno.ENAMETOOLONG)
        if len(self._cells) >= CELLS_MAX:
            raise _table_error(name, f"{CELLS_MAX} snapshots exist already", errno.ENOSPC)
        return Cell(name)


def _table_error(name: str, what: str, number: int) -> ExtensionError:
    return ExtensionError(f"snapshot {name!r}: {what}", errno=number)
