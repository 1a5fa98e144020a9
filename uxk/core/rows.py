"""Rows of datasets: structured arrays over the arena, and dicts of plain values for learners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from uxk.core.suggest import did_you_mean
from uxk.errors import UsageError
from uxk.uapi.ml import Dataset

Features: TypeAlias = dict[str, Any]
"""One row, as river takes it: values by name."""


def rows_of(info: Dataset, memory: memoryview) -> NDArray[Any]:
    """The rows of a dataset's portion as a read-only structured array over ``memory``."""
    dtype = np.dtype([tuple(column) for column in info.schema])
    count = info.portion_size // dtype.itemsize
    rows: NDArray[Any] = np.frombuffer(memory, dtype, count, info.portion_offset)
    rows.flags.writeable = False
    return rows


def best_of_each(scores: Sequence[Any], counts: Sequence[int]) -> list[int]:
    """The place of the highest score among each of so many that follow each other, the first of equals."""
    best, at = list[int](), 0
    for count in counts:
        group = list(scores[at : at + count])
        best.append(group.index(max(group)))
        at += count
    return best


def feature_dicts(rows: NDArray[Any], names: Sequence[str] = ()) -> Iterator[Features]:
    """Structured rows as dicts of plain Python values; a column of several numbers becomes ``name.0``, ``name.1``, ...

    Raises :class:`UsageError` for a name that is no column.
    """
    columns = rows.dtype.names or ()
    for name in names:
        if name not in columns:
            raise UsageError(f"column {name!r}{did_you_mean(name, columns)}; there are: {', '.join(columns)}")
    flat: dict[str, Any] = {}
    for name in names or columns:
        column = rows[name]
        if column.ndim == 1:
            flat[name] = column.tolist()
        else:
            parts = column.reshape(len(column), int(np.prod(column.shape[1:]))).T
            flat.update({f"{name}.{index}": part.tolist() for index, part in enumerate(parts)})
    keys = tuple(flat)
    return (dict(zip(keys, values, strict=True)) for values in zip(*flat.values(), strict=True))


class DatasetView(NamedTuple):
    """A published dataset: its rows lie in the kernel's memory, read-only, and may be gone after the callback."""

    info: Dataset
    rows: NDArray[Any]
    """A structured array; copy what you keep."""

    @property
    def name(self) -> str:
        """The dataset's name within its model."""
        return self.info.name

    @property
    def generation(self) -> int:
        """Grows by one with every publication."""
        return self.info.generation

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(name for name, _ in self.info.schema)

    def features(self, *names: str) -> Iterator[Features]:
        """The rows as dicts of plain Python values; with ``names``, only those columns."""
        return feature_dicts(self.rows, names)
