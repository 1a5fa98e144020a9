"""``python -m bench.datalog``: appending to a dataset log, beside other ways to keep rows.

A contender appends one batch at a time, in a form that survives the death of its process, to files in memory
(``/dev/shm``, if there is one): what is compared is the work, not the disk.  Nobody forces anything to it.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.metadata
import os
import sqlite3
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.report import add_options, begun, chosen, parsed, plain, save, show
from bench.runner import Case, Contender, Target, run_case
from uxk.bridges.datalog.format import Description
from uxk.bridges.datalog.settings import DataLogSettings
from uxk.bridges.datalog.writer import LogWriter, Origin, Publication

SAMPLE_NS = 300_000_000
SAMPLE_QUICK_NS = 30_000_000
BATCHES_MAX: Final = 4_000
"""Of one sample: 130 MB of the largest."""


def shapes() -> dict[str, NDArray[Any]]:
    """Batches as the emulated volume publishes them: its state, its segments, its writes."""
    rng = np.random.default_rng(1)
    state = np.zeros(1, [(f"c{i}", "<u8") for i in range(15)])
    segments = np.zeros(1024, [(f"c{i}", "<u4") for i in range(8)])
    writes = np.zeros(8192, [("page", "<u4")])
    for rows in (state, segments, writes):
        for name in rows.dtype.names or ():
            rows[name] = rng.integers(0, 100_000, len(rows))
    return {"1 row of 15": state, "1024 rows of 8": segments, "8192 rows of 1": writes}


def log(folder: Path, rows: NDArray[Any], count: int) -> int:
    """uxk's, with its bounds and checksums."""
    names = rows.dtype.names or ()
    description = Description("bench", "m", "d", tuple((name, rows.dtype[name].str) for name in names), len(rows))
    settings = DataLogSettings(sync="none", max_bytes=1 << 28)
    with LogWriter(folder / "log", Origin(0, "virtual"), settings) as writer:
        begin_ns = perf_counter_ns()
        for number in range(count):
            writer.write([
                Publication(description, rows.dtype.itemsize, number, number, 0, rows.tobytes())
            ])  # fmt: skip
        return perf_counter_ns() - begin_ns


def _arrow_batch(pa: Any, rows: NDArray[Any], schema: Any) -> Any:
    names = rows.dtype.names or ()
    return pa.record_batch([pa.array(np.ascontiguousarray(rows[name])) for name in names], schema=schema)


def _arrow_schema(pa: Any, rows: NDArray[Any]) -> Any:
    return pa.schema([(name, pa.from_numpy_dtype(rows.dtype[name])) for name in rows.dtype.names or ()])


def arrow_stream(folder: Path, rows: NDArray[Any], count: int) -> int:
    """pyarrow's IPC stream writer; no checksums."""
    pa = importlib.import_module("pyarrow")
    schema = _arrow_schema(pa, rows)
    with pa.OSFile(str(folder / "arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        begin_ns = perf_counter_ns()
        for _ in range(count):
            writer.write_batch(_arrow_batch(pa, rows, schema))
        return perf_counter_ns() - begin_ns


def arrow_framed(folder: Path, rows: NDArray[Any], count: int) -> int:
    """pyarrow's record batches, each behind a length and a checksum."""
    pa = importlib.import_module("pyarrow")
    schema = _arrow_schema(pa, rows)
    with (folder / "framed").open("wb", buffering=0) as file:
        begin_ns = perf_counter_ns()
        for number in range(count):
            data = _arrow_batch(pa, rows, schema).serialize()
            os.writev(file.fileno(), [struct.pack("<IIQ", data.size, zlib.crc32(data), number), data])
        return perf_counter_ns() - begin_ns


def sqlite(folder: Path, rows: NDArray[Any], count: int) -> int:
    """A row of a table for each batch, in the mode with a write-ahead log."""
    with closing(sqlite3.connect(folder / "sqlite", isolation_level=None)) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=off")
        connection.execute("create table if not exists batch(number integer primary key, time, generation, rows blob)")
        connection.execute("delete from batch")
        begin_ns = perf_counter_ns()
        for number in range(count):
            connection.execute("insert into batch values(?, ?, ?, ?)", (number, number, number, rows.tobytes()))
        return perf_counter_ns() - begin_ns


def csv_file(folder: Path, rows: NDArray[Any], count: int) -> int:
    """The standard library's."""
    with (folder / "csv").open("w", newline="") as file:
        writer = csv.writer(file)
        begin_ns = perf_counter_ns()
        for _ in range(count):
            writer.writerows(rows.tolist())
            file.flush()
        return perf_counter_ns() - begin_ns


def parquet(folder: Path, rows: NDArray[Any], count: int) -> int:
    """A row group for each batch; a file that is not closed is none."""
    pa, pq = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    schema = _arrow_schema(pa, rows)
    with pq.ParquetWriter(folder / "parquet", schema, compression="zstd", write_page_checksum=True) as writer:
        begin_ns = perf_counter_ns()
        for _ in range(count):
            writer.write_batch(_arrow_batch(pa, rows, schema))
        return perf_counter_ns() - begin_ns


_WAYS: Final = {
    "uxk": log, "arrow stream": arrow_stream, "arrow framed": arrow_framed, "sqlite": sqlite, "csv": csv_file,
    "parquet": parquet,
}  # fmt: skip
_NOTES: Final = {"parquet": "not there after a crash", "arrow stream": "no checksums"}


def all_cases(folder: Path) -> list[Case]:
    """One for each shape of a batch."""

    def measured(way: Callable[[Path, NDArray[Any], int], int], rows: NDArray[Any]) -> Callable[[int], tuple[int, int]]:
        def measure(count: int) -> tuple[int, int]:
            count = min(count, BATCHES_MAX)
            return count, way(folder, rows, count)

        return measure

    return [
        Case(
            name, "batches/s", [Contender(way, measured(run, rows), _NOTES.get(way, "")) for way, run in _WAYS.items()],
            [Target("uxk", "sqlite", 1.0)],
        )
        for name, rows in shapes().items()
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what was asked for.  0; 2 if no case has such a name."""
    parser = argparse.ArgumentParser(prog="python -m bench.datalog", description="Appending to a dataset log.")
    add_options(parser, "datalog-", "samples of 30 ms instead of 300")
    args = parsed(parser, argv)
    sample_ns = SAMPLE_QUICK_NS if args.quick else SAMPLE_NS
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "pyarrow")}
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        cases = chosen(all_cases(Path(folder)), args.only, lambda case: case.name)
        if not cases:
            return 2
        report = begun(versions=versions, rounds=args.rounds, sample_ns=sample_ns)
        for case in cases:
            result = run_case(case, rounds=args.rounds, sample_ns=sample_ns)
            print(show(result), flush=True)
            report["cases"].append(plain(result))
    save(report, args.json, "datalog-")
    return 0


if __name__ == "__main__":
    sys.exit(main())
