"""Mappings of a host process: shared, found again, moved where they are, and gone with their last view."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from uxk.actor.mapping import Mappings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes share memory on Linux only")
PAGE = 4096


class File:
    """A region's file, as a kernel makes it."""

    def __init__(self, contents: bytes, pages: int = 2) -> None:
        self.descriptor = os.memfd_create("test")
        os.ftruncate(self.descriptor, pages * PAGE)
        os.pwrite(self.descriptor, contents, 0)

    def reader(self) -> int:
        return os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY)


class Process:
    """Mappings, and the files that were shown to them."""

    def __init__(self) -> None:
        self.mappings = Mappings()
        self.opened: list[int] = []

    def view(
        self, file: File, cap: int, *, region: int = 1, generation: int = 1, offset: int = 0, length: int = PAGE,
        writable: bool = False,
    ) -> memoryview:  # fmt: skip
        descriptor = file.descriptor if writable else file.reader()
        self.opened.append(descriptor)
        return self.mappings.view(cap, region, generation, descriptor, offset, length, writable)

    def close(self) -> None:
        for descriptor in set(self.opened):
            os.close(descriptor)


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    yield made
    made.close()


def test_a_view_is_the_granted_part_and_a_region_is_mapped_once(process: Process) -> None:
    file = File(b"a" * PAGE + b"b" * PAGE)
    first = process.view(file, 1)
    second = process.view(file, 2, offset=PAGE, length=10)
    assert (bytes(second), first.readonly, len(first), len(process.mappings)) == (b"b" * 10, True, PAGE, 1)
    writer = process.view(file, 3, writable=True)
    assert len(process.mappings) == 2
    writer[0] = ord("c")
    assert first[0] == ord("c")
    process.opened.append(file.descriptor)


def test_a_reader_cannot_be_made_a_writer(process: Process) -> None:
    file = File(b"x")
    descriptor = file.reader()
    process.opened += [descriptor, file.descriptor]
    with pytest.raises(PermissionError, match="mmap of 8192 bytes"):
        process.mappings.view(1, 1, 1, descriptor, 0, PAGE, True)
    assert len(process.mappings) == 0


def test_what_a_capability_allowed_ends_with_it(process: Process) -> None:
    file = File(b"x")
    mine, others = process.view(file, 1, writable=True), process.view(file, 2, writable=True)
    array = np.frombuffer(process.view(file, 1, writable=True), dtype=np.uint8)
    process.mappings.release([1, 77])
    with pytest.raises(ValueError, match="released"):
        mine[0]
    assert others[0] == ord("x") and array[0] == ord("x")  # who holds an array has no view that could be released
    assert process.mappings.grants([1, 2]) == [(2, True)]


def test_what_is_known_need_not_be_asked_for(process: Process) -> None:
    file = File(b"a" * PAGE + b"b" * PAGE)
    assert process.mappings.again(1, False) is None
    first = process.view(file, 1, offset=PAGE, length=4)
    again = process.mappings.again(1, False)
    assert again is not None and again is not first and (bytes(again), again.readonly) == (b"bbbb", True)
    assert process.mappings.again(1, True) is None
    process.mappings.release([1])
    with pytest.raises(ValueError, match="released"):
        again[0]
    assert process.mappings.again(1, False) is None


def test_a_region_that_moves_stays_where_it_is(process: Process) -> None:
    old, new = File(b"old"), File(b"new")
    reader, writer = process.view(old, 1), process.view(old, 2, writable=True)
    assert process.mappings.grants([1, 2, 3]) == [(2, True), (1, False)]
    process.view(new, 2, generation=2, writable=True)
    assert (bytes(reader[:3]), bytes(writer[:3])) == (b"new", b"new")
    writer[:3] = b"now"
    assert os.pread(new.descriptor, 3, 0) == b"now" and os.pread(old.descriptor, 3, 0) == b"old"
    assert process.mappings.is_past(1, 1) and not process.mappings.is_past(1, 2)
    assert not process.mappings.is_past(2, 1)


def test_mappings_go_with_their_last_view_and_few_are_kept(process: Process) -> None:
    def ranges() -> int:
        with open("/proc/self/maps", encoding="ascii") as file:
            return sum("memfd:test" in line for line in file)

    file, before = File(b"x"), ranges()
    for region in range(100):
        process.view(file, region, region=region, writable=True)
    gc.collect()
    assert ranges() - before == len(process.mappings) == 64
    kept = process.view(file, 1000, region=1000, writable=True)
    process.mappings = Mappings()
    gc.collect()
    assert ranges() - before == 1 and kept[0] == ord("x")
    del kept
    assert ranges() == before
