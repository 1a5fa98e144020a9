from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from uxk import limits
from uxk.core import snapshot
from uxk.core.snapshot import Cell, SnapshotTable
from uxk.errors import ExtensionError
from uxk.uapi.ids import InstanceId, VersionNumber

A, B, C = (InstanceId(n) for n in (1, 2, 3))


@contextmanager
def refused(number: int, *words: str) -> Iterator[None]:
    with pytest.raises(ExtensionError) as caught:
        yield
    assert caught.value.errno == number
    assert all(word in str(caught.value) for word in words)


def test_pins_can_be_anothers() -> None:
    table = SnapshotTable()
    table.publish("map", C, b"one")
    first = table.pin("map", A)
    assert table.pin("map", A) == first and table.rename(B, C) == 0
    table.publish("map", C, b"two")
    assert table.rename(A, B) == 2 and table.drop(A) == 0
    table.pin("map", A)
    assert table.drop(A) == 1 and table.rename(B, A) == 2
    table.unpin("map", A, first.number)
    with refused(errno.EINVAL):
        table.unpin("map", B, first.number)
    assert table.drop(A) == 1 and table.statistics().readers == 0


def test_a_reader_keeps_what_it_has_pinned() -> None:
    cell = Cell("map")
    assert cell.publish(A, b"one") == 1
    old = cell.pin(B)
    assert cell.publish(A, b"two") == 2
    assert (old.number, old.data, old.writer) == (1, b"one", A)
    assert cell.pin(C).data == b"two"
    assert cell.versions() == [1, 2]
    cell.unpin(B, old.number)
    assert cell.versions() == [2]
    assert cell.bytes == 3


def test_a_writer_that_has_missed_a_version_is_told_both() -> None:
    cell = Cell("map")
    assert cell.publish(A, b"one", 0) == 1
    assert cell.publish(A, b"two", 1) == 2
    with refused(errno.ESTALE, "'map'", "expected version 1", "found 2"):
        cell.publish(B, b"three", 1)
    with refused(errno.ESTALE, "expected version 0"):
        cell.publish(B, b"three", 0)
    for version in (3, -1):
        with refused(errno.EINVAL, str(version)):
            cell.publish(B, b"three", version)
    assert cell.read().data == b"two"
    assert cell.statistics().conflicts == 2


def test_slow_readers_are_named_when_there_are_too_many_versions() -> None:
    cell = Cell("map")
    for number in range(limits.SNAPSHOT_VERSIONS_MAX):
        cell.publish(A, b"x")
        cell.pin(InstanceId(100 + number))
    assert len(cell.versions()) == limits.SNAPSHOT_VERSIONS_MAX
    with refused(errno.ENOSPC, "instance 100 (since version 1)", "instance 107", "56 more"):
        cell.publish(A, b"y")
    assert cell.drop(InstanceId(130)) == 1
    assert cell.publish(A, b"y") == limits.SNAPSHOT_VERSIONS_MAX + 1
    assert len(cell.versions()) == limits.SNAPSHOT_VERSIONS_MAX


def test_misuse_is_refused() -> None:
    cell = Cell("map")
    with refused(errno.ENODATA):
        cell.pin(A)
    with refused(errno.E2BIG):
        cell.publish(A, bytes(limits.PAYLOAD_MAX_BYTES + 1))
    cell.publish(A, b"")
    version = cell.pin(A).number
    for reader, number in ((B, 1), (A, 2), (A, 0), (A, -1)):
        with refused(errno.EINVAL):
            cell.unpin(reader, VersionNumber(number))
    cell.unpin(A, version)
    with refused(errno.EINVAL):
        cell.unpin(A, version)


def test_the_data_are_copied() -> None:
    cell = Cell("map")
    data = bytearray(b"one")
    cell.publish(A, data)  # type: ignore[arg-type]
    data[:] = b"two"
    assert cell.read().data == b"one"


def test_a_table_drops_a_dead_reader_everywhere() -> None:
    table = SnapshotTable()
    for name in ("a", "b"):
        table.publish(name, A, b"12345")
        table.pin(name, B)
        table.pin(name, B)
        table.publish(name, A, b"6")
    assert table.statistics() == (2, 4, 12, 1)
    assert table.drop(B) == 4
    assert table.drop(B) == 0
    assert table.statistics() == (2, 2, 2, 0)


def test_a_table_is_bounded_in_cells_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    table = SnapshotTable(bytes_max=10)
    table.publish("a", A, b"x" * 8)
    table.publish("a", A, b"y" * 10)
    with refused(errno.ENOSPC, "11 bytes"):
        table.publish("b", A, b"z")
    assert table.get("b") is None
    table.pin("a", B)
    with refused(errno.ENOSPC):
        table.publish("a", A, b"z")
    monkeypatch.setattr(snapshot, "CELLS_MAX", 1)
    with refused(errno.ENOSPC):
        table.publish("b", A, b"")
    for name in ("", "x" * (limits.PATH_MAX_BYTES + 1)):
        with refused(errno.ENAMETOOLONG):
            table.publish(name, A, b"")


def test_a_cell_is_removed_only_when_nobody_reads() -> None:
    table = SnapshotTable()
    for call in (lambda: table.remove("a"), lambda: table.pin("a", A), lambda: table.unpin("a", A, VersionNumber(1))):
        with refused(errno.ENOENT, "'a'"):
            call()
    with refused(errno.EINVAL):
        table.publish("a", A, b"x", 7)
    assert len(table) == 0, "a refused first publish makes no cell"
    table.publish("a", A, b"x")
    version = table.pin("a", B)
    with refused(errno.EBUSY, "2"):
        table.remove("a")
    table.unpin("a", B, version.number)
    table.remove("a")
    assert table.statistics() == (0, 0, 0, 0)


READER = st.sampled_from([A, B, C])


class SnapshotMachine(RuleBasedStateMachine):
    """The model keeps every version for ever and counts pins."""

    @initialize()
    def start(self) -> None:
        self.table = SnapshotTable()
        self.history: list[bytes] = [b""]
        self.pins: Counter[tuple[InstanceId, int]] = Counter()

    @rule(data=st.binary(max_size=5), behind=st.none() | st.integers(0, 3))
    def publish(self, data: bytes, behind: int | None) -> None:
        current = len(self.history) - 1
        expected = None if behind is None else current - behind
        if behind:
            with refused(errno.ESTALE if current >= behind else errno.EINVAL):
                self.table.publish("x", A, data, expected)
            return
        assert self.table.publish("x", A, data, expected) == current + 1
        self.history.append(data)

    @precondition(lambda self: len(self.history) > 1)
    @rule(reader=READER)
    def pin(self, reader: InstanceId) -> None:
        version = self.table.pin("x", reader)
        assert (version.number, version.data) == (len(self.history) - 1, self.history[-1])
        self.pins[reader, version.number] += 1

    @precondition(lambda self: len(self.history) > 1)
    @rule(reader=READER, data=st.data())
    def unpin(self, reader: InstanceId, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.history)))
        if self.pins[reader, number]:
            self.table.unpin("x", reader, VersionNumber(number))
            self.pins[reader, number] -= 1
        else:
            with refused(errno.EINVAL):
                self.table.unpin("x", reader, VersionNumber(number))

    @rule(reader=READER)
    def drop(self, reader: InstanceId) -> None:
        mine = [key for key in self.pins if key[0] == reader]
        assert self.table.drop(reader) == sum(self.pins.pop(key) for key in mine)

    @invariant()
    def live_is_current_and_pinned(self) -> None:
        cell = self.table.get("x")
        if cell is None:
            assert self.history == [b""]
            return
        live = sorted({number for (_, number), count in self.pins.items() if count} | {len(self.history) - 1})
        assert cell.versions() == live
        size = sum(len(self.history[number]) for number in live)
        readers = {reader for (reader, _), count in self.pins.items() if count}
        assert set(cell.readers()) == readers
        assert self.table.statistics() == (1, len(live), size, len(readers))


TestSnapshot = SnapshotMachine.TestCase
