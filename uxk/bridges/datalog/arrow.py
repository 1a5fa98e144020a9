"""Logged rows as Arrow, and as files that others read: Parquet, Arrow IPC, CSV, JSON lines.

pyarrow is asked for here and nowhere else; CSV and JSON lines go without.
"""

from __future__ import annotations

import csv
import errno
import importlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from uxk.bridges.datalog.reader import Batch, LoggedDataset, extended, with_extra
from uxk.core.rows import feature_dicts
from uxk.errors import UsageError

GATHER_ROWS: Final = 1 << 16
"""Rows that make one Arrow batch or Parquet row group, at least, unless there are no more."""
Export: TypeAlias = Callable[[LoggedDataset, Path], int]


def _pyarrow(part: str = "") -> Any:
    try:
        return importlib.import_module(f"pyarrow{part}")
    except ImportError:
        raise UsageError("needs pyarrow: pip install 'uxk[data]'; or .csv, .jsonl", errno=errno.ENOPKG) from None


def schema_of(data: LoggedDataset) -> Any:
    """The ``pyarrow.Schema``: integers and booleans as they are, bytes as binary, arrays as fixed-size lists; who
    published is in its metadata."""
    pa = _pyarrow()
    dtype, found = extended(data.dtype), data.description
    fields = [pa.field(name, _type_of(pa, dtype[name]), nullable=False) for name in dtype.names or ()]
    about = {"uxk.subsystem": found.subsystem, "uxk.model": found.model, "uxk.dataset": found.dataset}
    first = next(data.batches(), None)
    if first is not None:
        head = first.run.head
        versions = {f"uxk.version.{name}": text for name, text in head.versions.items()}
        about |= {"uxk.seed": str(head.seed), "uxk.clock": head.clock, "uxk.scenario": head.scenario, **versions}
    return pa.schema(fields, metadata=about)


def _type_of(pa: Any, dtype: np.dtype[Any]) -> Any:
    if dtype.shape:
        kind = _type_of(pa, dtype.base)
        return pa.list_(pa.field("item", kind, nullable=False), int(np.prod(dtype.shape)))
    if dtype.kind == "S":
        return pa.binary()
    return pa.from_numpy_dtype(dtype.newbyteorder("="))


def record_batch(schema: Any, rows: NDArray[Any]) -> Any:
    """Structured rows as a ``pyarrow.RecordBatch``."""
    pa = _pyarrow()
    arrays = [_array(pa, rows[name], schema.field(name).type) for name in rows.dtype.names or ()]
    return pa.record_batch(arrays, schema=schema)


def _array(pa: Any, column: NDArray[Any], kind: Any) -> Any:
    if column.ndim > 1:
        flat = column.reshape(-1)
        return pa.FixedSizeListArray.from_arrays(_array(pa, flat, kind.value_type), type=kind)
    if column.dtype.kind == "S":
        return pa.array(column.tolist(), type=kind)
    return pa.array(np.ascontiguousarray(column.astype(column.dtype.newbyteorder("="), copy=False)), type=kind)


def reader_of(data: LoggedDataset) -> Any:
    """A ``pyarrow.RecordBatchReader`` that reads the log as it goes."""
    schema = schema_of(data)
    return _pyarrow().RecordBatchReader.from_batches(schema, (record_batch(schema, rows) for rows in _gathered(data)))


def _gathered(data: LoggedDataset) -> Iterator[NDArray[Any]]:
    """Rows in larger pieces: publications may be of one row each."""
    parts, count = list[NDArray[Any]](), 0
    for batch in data.batches():
        parts.append(with_extra(batch))
        count += len(batch.rows)
        if count >= GATHER_ROWS:
            yield np.concatenate(parts)
            parts, count = [], 0
    if parts:
        yield np.concatenate(parts)


# --- files ---


def export(data: LoggedDataset, path: str | Path) -> int:
    """Writes a dataset to ``path``, whose ending says how: .parquet, .arrow, .csv, .jsonl; all of it, or nothing.

    Returns how many rows.  UsageError (EINVAL, ENOPKG), OSError.
    """
    target = Path(path)
    write = FORMATS.get(target.suffix)
    if write is None:
        raise UsageError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    handle, name = tempfile.mkstemp(prefix=".uxk-export-", dir=target.parent)
    os.close(handle)
    try:
        count = write(data, Path(name))
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    return count


def _parquet(data: LoggedDataset, path: Path) -> int:
    parquet = _pyarrow(".parquet")
    count, reader = 0, reader_of(data)
    options: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
    with parquet.ParquetWriter(path, reader.schema, **options) as writer:
        for batch in reader:
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def _arrow(data: LoggedDataset, path: Path) -> int:
    pa, count = _pyarrow(), 0
    reader = reader_of(data)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def _csv(data: LoggedDataset, path: Path) -> int:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_flat_names(data))
        return sum(1 for _ in map(writer.writerow, map(_plain_row, _dicts(data.batches()))))


def _jsonl(data: LoggedDataset, path: Path) -> int:
    with path.open("wb") as file:
        return sum(1 for _ in map(file.write, (row + b"\n" for row in json_rows(data))))


def json_rows(data: LoggedDataset) -> Iterator[bytes]:
    """Rows as JSON objects; a column of several numbers becomes ``name.0``, ``name.1``, ..."""
    encode = msgspec.json.Encoder().encode
    for row in _dicts(data.batches()):
        yield encode({name: _plain(value) for name, value in row.items()})


def _dicts(batches: Iterable[Batch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from feature_dicts(with_extra(batch))


def _flat_names(data: LoggedDataset) -> list[str]:
    return list(next(iter(feature_dicts(np.zeros(1, extended(data.dtype))))))


def _plain_row(row: Mapping[str, Any]) -> list[Any]:
    return [_plain(value) for value in row.values()]


def _plain(value: Any) -> Any:
    """Bytes as text, those that are no ASCII as ``\\xNN``."""
    return value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else value


FORMATS: Final[Mapping[str, Export]] = {".parquet": _parquet, ".arrow": _arrow, ".csv": _csv, ".jsonl": _jsonl}
"""By the ending of a file's name."""
