"""What cannot be read stays so when the instance is gone: in kept memory, or in a file beside the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk_nvme.medium import MediumParams, open_medium
from uxk_nvme.store import Store, open_store, record_bytes
from uxk_nvme.store.file import MARKS_SUFFIX
from uxk_nvme.store.marks import FileRecord, Marks, MemoryRecord

SIZE = 1 << 20
UNRECOVERED_READ = 0x281
WRITE_FAULT = 0x280


def status(store: Store, offset: int, length: int = 512) -> int:
    return store.read(offset, memoryview(bytearray(length)))


def test_kept_memory_knows_what_is_lost_after_a_crash() -> None:
    memory, bits = memoryview(bytearray(SIZE)), memoryview(bytearray(record_bytes(SIZE)))
    store = open_store("ram", SIZE, 512, memory=memory, marks=bits, fresh=True)
    store.write(0, b"S" * 4096)
    assert store.mark_bad(512, 1024) == 0
    assert store.mark_bad(SIZE - 512, 512) == 0
    again = open_store("ram", SIZE, 512, memory=memory, marks=bits)
    assert [status(again, at) for at in (0, 512, 1024, 1536)] == [0, UNRECOVERED_READ, UNRECOVERED_READ, 0]
    assert status(again, SIZE - 512) == UNRECOVERED_READ
    again.write(512, b"T" * 512)
    third = open_store("ram", SIZE, 512, memory=memory, marks=bits)
    assert [status(third, at) for at in (512, 1024)] == [0, UNRECOVERED_READ]
    third.zero(0, SIZE, deallocate=True)
    assert not any(bits), "what is written can be read"


def test_damage_that_was_found_is_not_believed_after_a_crash() -> None:
    memory, bits = memoryview(bytearray(SIZE)), memoryview(bytearray(record_bytes(SIZE)))
    store = open_store("ram", SIZE, 512, integrity=True, memory=memory, marks=bits, fresh=True)
    store.write(0, b"S" * 4096)
    memory[700] ^= 1
    assert status(store, 0, 4096) == UNRECOVERED_READ
    again = open_store("ram", SIZE, 512, integrity=True, memory=memory, marks=bits)
    assert [status(again, at) for at in (0, 512, 1024)] == [0, UNRECOVERED_READ, 0]


@pytest.mark.parametrize("kind", ["sparse", "file"])
def test_a_file_beside_the_image_knows_it_too(tmp_path: Path, kind: str) -> None:
    path, beside = tmp_path / "image", tmp_path / f"image{MARKS_SUFFIX}"
    path.write_bytes(b"i" * SIZE)
    store = open_store(f"{kind}:{path}", SIZE, 512)
    assert not beside.exists()
    store.mark_bad(SIZE - 1024, 512)
    store.mark_bad(0, 4096)
    assert store.sync() == 0
    store.close()
    assert beside.exists()
    again = open_store(f"{kind}:{path}", SIZE, 4096)  # whatever the blocks are
    assert status(again, SIZE - 4096, 4096) == UNRECOVERED_READ
    assert status(again, 0, 4096) == UNRECOVERED_READ
    assert status(again, 4096, 4096) == 0
    again.write(0, bytes(4096))
    again.write(SIZE - 4096, bytes(4096))
    again.close()
    assert not beside.exists(), "nothing is marked any more"


def test_a_mark_that_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"i" * SIZE)
    (tmp_path / f"image{MARKS_SUFFIX}").mkdir()
    store = open_store(f"file:{path}", SIZE, 512)
    assert store.mark_bad(0, 512) == WRITE_FAULT
    assert status(store, 0) == 0
    store.close()


def test_marks_beyond_the_end_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"i" * 4096)
    (tmp_path / f"image{MARKS_SUFFIX}").write_bytes(b"\xff" * 64)
    store = open_store(f"file:{path}", 4096, 512)
    assert list(store.bad) == [(0, 4096)]
    store.close()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 400), st.integers(1, 90)), max_size=30))
def test_the_record_says_what_is_marked(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int, int]]
) -> None:
    """Against the intervals, in memory and in a file."""
    size, path = 512 * 512, tmp_path_factory.mktemp("marks") / "bits"
    bits = memoryview(bytearray(record_bytes(size)))
    for record in (MemoryRecord(bits), FileRecord(str(path), record_bytes(size))):
        marks = Marks()
        marks.keep(record, size)
        for marked, first, count in steps:
            start, end = first * 512, min(first + count, 512) * 512
            if marked:
                assert marks.mark(start, end)
            else:
                marks.discard(start, end)
        found = Marks()
        found.keep(record, size)
        assert list(found) == list(marks)
    assert path.exists() is any(marked for marked, _, _ in steps)


def test_lost_flash_pages_are_lost_after_a_crash() -> None:
    day_ns = 24 * 3600 * 10**9
    memory, bits = memoryview(bytearray(SIZE)), memoryview(bytearray(record_bytes(SIZE)))
    params = MediumParams(size=SIZE, medium="ftl", precondition="sequential", initial_cycles=3000, refresh=False)
    medium = open_medium(params, np.random.default_rng(1), memory, bits, fresh=True)
    page = memoryview(bytearray(4096))
    lost = next(unit for unit in range(200) if medium.read(unit * 4096, page, 2000 * day_ns) < 0)
    again = open_medium(params, np.random.default_rng(1), memory, bits)
    assert again.read(lost * 4096, page, 0) == -UNRECOVERED_READ
