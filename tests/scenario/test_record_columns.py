"""Recordings as columns: counts, pages, files, and that uxk's own readers take them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uxk.errors import UsageError
from uxk.scenario import trace
from uxk.scenario.record.columns import Columns, encoded, layout_of
from uxk.scenario.record.lines import Request

TRACES = Path(trace.__file__).resolve().parent.parent / "traces"


def columns_of(*requests: tuple[str, int, int]) -> Columns:
    """One request a millisecond: rwbs, sector, sectors."""
    columns = Columns()
    for number, (rwbs, sector, sectors) in enumerate(requests):
        columns.add(Request(1_000_000 + 1000 * number, 1, 42, rwbs, sector, sectors, "a b"))
    return columns


def event(rwbs: str, sector: int, sectors: int) -> str:
    return f"dd-7 [000] ..... 1.000000: block_rq_issue: 8,0 {rwbs} 0 () {sector} + {sectors} be,0,4 [dd]\n"


def test_pages_of_writes_in_order() -> None:
    columns = columns_of(("W", 16, 16), ("R", 800, 8), ("WS", 0, 8), ("FF", 0, 0), ("D", 80, 8), ("FWFS", 7, 2))
    assert columns.written_pages().tolist() == [2, 3, 0, 0, 1]
    assert columns.written_pages().dtype == np.uint32


def test_no_writes_no_pages() -> None:
    assert columns_of(("R", 8, 8)).written_pages().tolist() == []
    assert Columns().written_pages().tolist() == []
    assert Columns().summary()["overwrite_ppm"] == 0


def test_a_page_that_does_not_fit_32_bits() -> None:
    assert columns_of(("W", (1 << 35) - 8, 8)).written_pages().tolist() == [(1 << 32) - 1]
    with pytest.raises(UsageError, match="32 bits"):
        columns_of(("W", 1 << 35, 8)).written_pages()


def test_summary() -> None:
    columns = columns_of(("W", 0, 8), ("W", 0, 16), ("R", 0, 8), ("FF", 0, 0), ("D", 0, 800), ("N", 0, 0))
    columns.feed(["rubbish\n"])
    assert columns.summary() == {
        "requests": 6, "read_requests": 1, "write_requests": 2, "discard_requests": 1, "flush_requests": 1,
        "other_requests": 1, "read_bytes": 4096, "write_bytes": 24 * 512, "discard_bytes": 409_600, "written_pages": 3,
        "distinct_pages": 2, "overwrite_ppm": 1_500_000, "duration_us": 5000, "malformed_lines": 1,
    }  # fmt: skip


def test_feeding_counts_what_is_no_request() -> None:
    columns = Columns()
    columns.feed([event("W", 8, 8), "CPU:0 [LOST 7 EVENTS]\n", "?\n", *["!\n"] * 9, "CPU:1 [LOST 2 EVENTS]\n"])
    assert (len(columns), columns.lost, columns.malformed) == (1, 9, 10)
    assert [bad.text for bad in columns.samples] == ["?", "!", "!"]


def test_a_partition_has_its_own_sectors() -> None:
    columns = Columns()
    lines = [event("W", 99, 1), event("W", 100, 8), event("FF", 0, 0), event("W", 199, 1), event("W", 200, 1)]
    columns.feed(lines, start=100, end=200)
    assert list(zip(columns.rwbs, columns.sector, strict=True)) == [("W", 0), ("FF", 0), ("W", 99)]


def test_blkparse_columns() -> None:
    assert list(columns_of(("WS", 8, 16), ("FF", 0, 0)).blkparse(major=7, minor=3)) == [
        "    7,3  1        1     0.000000000    42  D  WS 8 + 16 [a b]\n",
        "    7,3  1        2     0.001000000    42  D  FF 0 + 0 [a b]\n",
    ]


requests = st.lists(
    st.tuples(st.sampled_from(["W", "WS", "FWFS", "R", "D", "FF"]), st.integers(0, 5000), st.integers(1, 300)),
    max_size=40,
)


@pytest.mark.parametrize(("name", "format"), [("t.blkparse.xz", "blkparse"), ("t.npy.xz", "pages")])
@settings(max_examples=15)  # xz takes its time
@given(requests=requests)
def test_our_own_readers_take_it(
    tmp_path_factory: pytest.TempPathFactory, name: str, format: str, requests: list[tuple[str, int, int]]
) -> None:
    columns = columns_of(*[(rwbs, *((0, 0) if rwbs == "FF" else place)) for rwbs, *place in requests], ("W", 0, 8))
    path = tmp_path_factory.mktemp("trace") / name
    path.write_bytes(encoded(columns, name, major=7))
    read = trace.read_trace(path, format)
    pages = trace.to_pages(read)
    written = columns.written_pages()
    assert (read.malformed, pages.volume_pages) == (0, np.unique(written).size)
    assert pages.pages.tolist() == np.unique(written, return_inverse=True)[1].tolist()


@pytest.mark.parametrize(
    ("ending", "unpack"), [("", bytes), (".gz", gzip.decompress), (".bz2", bz2.decompress), (".xz", lzma.decompress)]
)
def test_compression_by_ending(ending: str, unpack: type[bytes]) -> None:
    columns = columns_of(*(("W", 8 * page, 8) for page in range(1000)))
    array = np.load(io.BytesIO(unpack(encoded(columns, f"t.npy{ending}"))), allow_pickle=False)
    assert array.tolist() == list(range(1000))
    text = unpack(encoded(columns, f"t.blkparse{ending}")).decode()
    assert text.count("\n") == 1000
    assert encoded(columns, f"t.npy{ending}") == encoded(columns, f"t.npy{ending}")


@pytest.mark.parametrize("name", ["out", "out.xz", "out.csv", "blkparse", ".npy", "out.npy.zst", "out.npy.xz.gz"])
def test_names_that_say_nothing(name: str) -> None:
    with pytest.raises(UsageError, match=re.escape(repr(name))):
        layout_of(name)


# --- the bundled traces -----------------------------------------------------------------------------------------


def table_of_readme() -> dict[str, dict[str, str]]:
    """Rows of the first table in the traces' README by their first column."""
    paragraphs = (TRACES / "README.md").read_text("utf-8").split("\n\n")
    lines = next(text for text in paragraphs if text.startswith("|")).splitlines()
    head, _, *rows = ([cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_the_readme_names_every_trace_that_is_bundled() -> None:
    files = {path.name for path in TRACES.iterdir() if path.suffix != ".md"}
    assert set(table_of_readme()) == {name.removesuffix(".pages.npy.xz") for name in files}
    assert len(files) >= 3


@pytest.mark.parametrize("name", sorted(table_of_readme()))
def test_bundled_traces_are_as_their_readme_says(name: str) -> None:
    path = TRACES / f"{name}.pages.npy.xz"
    pages = trace.to_pages(trace.read_trace(path, "pages"))
    cells = {column: cell.replace(",", "") for column, cell in table_of_readme()[name].items()}
    said = {column: int(cell) for column, cell in cells.items() if cell.isdigit()}
    assert path.stat().st_size == said["file bytes"] <= 2_000_000
    assert (pages.user_writes, pages.volume_pages) == (said["pages written"], said["distinct"])
    assert pages.user_writes >= 5 * pages.volume_pages, "too little is overwritten to tell policies apart"
    assert said["events lost"] == 0
