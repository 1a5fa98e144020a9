"""Where bytes are kept: memory, sparse and raw files; holes, marks, checksums, refusals."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk.uapi.blk import Extent
from uxk_nvme.store import FileStore, Intervals, RamStore, Saved, Store, open_store

SIZE = 1 << 20
UNRECOVERED_READ = 0x281
WRITE_FAULT = 0x280
CAPACITY_EXCEEDED = 0x081


@pytest.fixture(params=["ram", "sparse", "file"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Store]:
    """Makes a store of one of the three kinds, or opens it again."""

    def made(*, integrity: bool = False) -> Store:
        if request.param == "ram":
            return open_store("ram", SIZE, 512, integrity=integrity)
        path = tmp_path / "image"
        if request.param == "file" and not path.exists():
            path.write_bytes(bytes(SIZE))
        return open_store(f"{request.param}:{path}", SIZE, 512, integrity=integrity)

    return made


def read(store: Store, offset: int, length: int) -> bytes | int:
    buffer = bytearray(length)
    return store.read(offset, memoryview(buffer)) or bytes(buffer)


def test_it_gives_back_what_it_got(make: Callable[..., Store]) -> None:
    store = make()
    assert store.size_bytes == SIZE
    assert read(store, 4096, 1024) == bytes(1024)
    assert store.write(4608, b"x" * 512) == 0
    assert read(store, 4096, 1536) == bytes(512) + b"x" * 512 + bytes(512)
    assert store.zero(4608, 512, deallocate=False) == 0
    assert read(store, 4096, 1536) == bytes(1536)
    assert store.sync() == 0
    store.close()


def test_holes_come_and_go(make: Callable[..., Store]) -> None:
    store = make()
    store.zero(0, SIZE, deallocate=True)
    if not store.is_hole(0, SIZE):
        pytest.skip("this file system punches no holes")
    store.write(8192, b"x" * 8192)
    assert store.extents(0, 32768) == [
        Extent(8192, True, True), Extent(8192, False, False), Extent(16384, True, True),
    ]  # fmt: skip
    assert store.extents(9216, 1024) == [Extent(1024, False, False)]
    assert not store.is_hole(8192, 512)
    store.zero(8192, 4096, deallocate=True)
    assert store.extents(0, 16384) == [Extent(12288, True, True), Extent(4096, False, False)]
    store.close()


def test_memory_knows_zeros_that_are_allocated() -> None:
    store = open_store("ram", SIZE, 512)
    store.zero(4096, 8192, deallocate=False)
    assert store.extents(0, 16384) == [Extent(4096, True, True), Extent(8192, False, True), Extent(4096, True, True)]
    store.zero(0, 512, deallocate=False)
    assert store.extents(0, 4096) == [Extent(4096, False, True)]
    store.write(4096, b"x" * 512)
    assert store.extents(4096, 8192) == [Extent(4096, False, False), Extent(4096, False, True)]


def test_extents_are_bounded(make: Callable[..., Store]) -> None:
    store = make()
    store.zero(0, SIZE, deallocate=True)
    for granule in range(0, 64, 2):
        store.write(granule * 4096, b"x" * 4096)
    pieces = store.extents(0, SIZE, limit=10)
    assert 1 <= len(pieces) <= 10
    assert sum(piece.length_bytes for piece in store.extents(0, SIZE)) == SIZE
    store.close()


def test_marked_blocks_fail_until_written(make: Callable[..., Store]) -> None:
    store = make()
    assert store.mark_bad(1024, 1024) == 0
    assert read(store, 0, 4096) == UNRECOVERED_READ
    assert store.verify(0, 4096) == UNRECOVERED_READ
    assert read(store, 0, 1024) == bytes(1024)
    store.write(1024, b"x" * 512)
    assert read(store, 1024, 512) == b"x" * 512
    assert read(store, 1536, 512) == UNRECOVERED_READ
    store.zero(1536, 512, deallocate=True)
    assert store.verify(0, 4096) == 0
    store.close()


def test_marks_are_bounded() -> None:
    store = open_store("ram", 128 << 20, 512)
    results = {store.mark_bad(block * 1024, 512) for block in range(65_537)}
    assert results == {0, WRITE_FAULT}


def test_a_copy_can_be_put_back(make: Callable[..., Store]) -> None:
    store = make()
    store.zero(0, 8192, deallocate=True)
    before = store.save(0, 4096)
    store.write(0, b"x" * 4096)
    store.mark_bad(512, 512)
    full = store.save(0, 4096)
    store.restore(0, 4096, before)
    assert read(store, 0, 4096) == bytes(4096)
    store.restore(0, 4096, full)
    assert read(store, 0, 512) == b"x" * 512
    assert read(store, 512, 512) == UNRECOVERED_READ
    assert Saved(None, []) == before or before.data == bytes(4096)
    store.close()


def test_silent_corruption_is_found(make: Callable[..., Store]) -> None:
    store = make(integrity=True)
    store.write(0, b"x" * 8192)
    assert read(store, 0, 8192) == b"x" * 8192
    if isinstance(store, RamStore):
        assert store.view is not None
        store.view[700] ^= 1
    else:
        assert isinstance(store, FileStore)
        with Path(store.path).open("r+b") as file:
            file.seek(700)
            file.write(b"y")
    assert read(store, 0, 512) == b"x" * 512
    assert read(store, 512, 512) == UNRECOVERED_READ
    assert store.verify(0, 8192) == UNRECOVERED_READ
    assert store.figures()["checksum_mismatches"] == 1
    assert store.figures()["uncorrectable_blocks"] == 1
    store.write(512, b"z" * 512)
    assert read(store, 512, 512) == b"z" * 512
    store.close()


def test_what_was_there_is_believed_once(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"a" * 4096)
    store = open_store(f"file:{path}", 0, 512, integrity=True)
    assert store.size_bytes == 4096
    assert read(store, 0, 512) == b"a" * 512
    path.write_bytes(b"b" * 4096)
    assert read(store, 0, 512) == UNRECOVERED_READ
    assert read(store, 512, 512) == b"b" * 512
    store.close()


def test_memory_that_is_kept_shows_what_it_holds() -> None:
    memory = bytearray(SIZE)
    first = open_store("ram", SIZE, 512, memory=memoryview(memory))
    first.write(40960, b"x" * 512)
    first.close()
    second = open_store("ram", SIZE, 512, memory=memoryview(memory))
    assert second.extents(0, SIZE) == [
        Extent(40960, True, True), Extent(4096, False, False), Extent(SIZE - 45056, True, True),
    ]  # fmt: skip
    assert read(second, 40960, 512) == b"x" * 512
    with pytest.raises(ValueError, match="expected at least"):
        RamStore(SIZE, 512, memory=memoryview(bytearray(10)))


def test_a_sparse_file_stays_and_is_small(tmp_path: Path) -> None:
    path = tmp_path / "image"
    store = open_store(f"sparse:{path}", 1 << 40, 512)
    store.write((1 << 40) - 512, b"x" * 512)
    store.close()
    assert path.stat().st_size == 1 << 40
    assert path.stat().st_blocks * 512 < 1 << 20
    store = open_store(f"sparse:{path}", 1 << 40, 512)
    assert read(store, (1 << 40) - 512, 512) == b"x" * 512
    store.close()


def refusal(backing: str, size: int = SIZE) -> uxk.ParamError:
    with pytest.raises(uxk.ParamError) as caught:
        open_store(backing, size, 512)
    return caught.value


@pytest.mark.parametrize("backing", ["", "ram:x", "sparse", "file", "disk:/x", "sparse:", "file:", "sparse:/\0"])
def test_wrong_words_are_refused(backing: str) -> None:
    assert "expected" in str(refusal(backing))


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    assert refusal(f"file:{tmp_path}/none").errno == errno.ENOENT
    assert refusal(f"sparse:{tmp_path}").errno == errno.EISDIR
    os.mkfifo(tmp_path / "pipe")
    assert "regular file" in str(refusal(f"file:{tmp_path}/pipe"))
    assert "regular file" in str(refusal("file:/dev/null"))
    odd = tmp_path / "odd"
    odd.write_bytes(b"x" * 1000)
    assert "1000 bytes" in str(refusal(f"file:{odd}"))
    assert "the file has 1000 bytes" in str(refusal(f"sparse:{odd}"))
    (tmp_path / "empty").touch()
    assert "0 bytes" in str(refusal(f"file:{tmp_path}/empty"))
    assert "size=1000" in str(refusal("ram", 1000))


def test_a_file_serves_one_device(tmp_path: Path) -> None:
    store = open_store(f"sparse:{tmp_path}/image", SIZE, 512)
    assert refusal(f"sparse:{tmp_path}/image").errno == errno.EBUSY
    assert refusal(f"file:{tmp_path}/image").errno == errno.EBUSY
    store.close()
    store.close()
    open_store(f"file:{tmp_path}/image", SIZE, 512).close()


def test_a_file_that_was_cut_is_a_read_error(tmp_path: Path) -> None:
    store = open_store(f"sparse:{tmp_path}/image", SIZE, 512)
    os.truncate(tmp_path / "image", 4096)
    assert read(store, 0, 4096) == bytes(4096)
    assert read(store, 4096, 512) == UNRECOVERED_READ
    assert read(store, 0, 8192) == UNRECOVERED_READ
    store.close()


def test_a_full_file_system_is_capacity_exceeded() -> None:
    # /dev/full takes no lock away from anybody and has no room for anything.
    store = FileStore("/dev/full", os.open("/dev/full", os.O_RDWR), SIZE, 512, integrity=False)
    assert store.write(0, b"x" * 512) == CAPACITY_EXCEEDED
    assert store.sync() == WRITE_FAULT
    store.close()


def test_a_file_that_may_not_be_written_is_a_write_fault(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    store = FileStore(str(path), os.open(path, os.O_RDONLY), SIZE, 512, integrity=False)
    assert store.write(0, b"x" * 512) == WRITE_FAULT
    assert store.zero(0, 512, deallocate=True) == WRITE_FAULT
    assert read(store, 0, 512) == bytes(512)
    store.close()
    store = FileStore(str(path), os.open(path, os.O_WRONLY), SIZE, 512, integrity=False)
    assert read(store, 0, 512) == UNRECOVERED_READ
    store.close()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 20))))
def test_intervals_are_a_set(steps: list[tuple[bool, int, int]]) -> None:
    made, model = Intervals(), set[int]()
    for add, start, length in steps:
        (made.add if add else made.discard)(start, start + length)
        (model.update if add else model.difference_update)(range(start, start + length))
    assert {number for start, end in made for number in range(start, end)} == model
    assert made.size() == len(model)
    assert bool(made) == bool(model)
    for start in range(0, 80, 7):
        inside = {n for n in model if start <= n < start + 5}
        assert made.overlaps(start, start + 5) == bool(inside)
        assert {n for a, b in made.within(start, start + 5) for n in range(a, b)} == inside
    pieces = list(made)
    assert all(a[1] < b[0] for a, b in pairwise(pieces))
