"""How far a program agrees with the model that it was made from: on numbers drawn at random, and at its own edges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uxk.bpf.compiler.forms import Form, Split, nodes, trees_of
from uxk.bpf.compiler.schema import Schema

INPUTS_DEFAULT: Final = 10_000
PPM: Final = 1_000_000


class Agreement(NamedTuple):
    """``agreed`` of ``inputs``; of regressions those within 1 of the model, and by how much the rest is off."""

    inputs: int
    agreed: int
    mean_error_ppm: int = 0
    """Of regressions: the mean distance from the model's answer, in millionths of the verdict's unit."""
    source: str = "drawn"

    @property
    def ppm(self) -> int:
        """Agreed, in parts per million, rounded down: all of them only if it is all."""
        return self.agreed * PPM // self.inputs if self.inputs else 0


def draw(schema: Schema, form: Form, count: int, seed: int) -> NDArray[np.int64]:
    """``count`` rows (count, features): half of them evenly from the ranges; half with features at a tree's edges."""
    rng = np.random.default_rng(seed)
    columns = [rng.integers(f.low, f.high, count, dtype=np.int64, endpoint=True) for f in schema.features]
    rows = np.stack(columns, axis=1)
    edges = sorted({
        (node.slot, node.threshold + step) for root in trees_of(form) for node, _ in nodes(root)
        if isinstance(node, Split) for step in (-1, 0, 1)
    })  # fmt: skip
    if edges:
        slots, values = np.array([s for s, _ in edges]), np.array([v for _, v in edges], np.int64)
        half = np.arange(0, count, 2)
        for _ in range(min(3, len(schema))):
            chosen = rng.integers(0, len(edges), len(half))
            rows[half, slots[chosen]] = values[chosen]
    low, high = (np.array(ends, np.int64) for ends in zip(*((f.low, f.high) for f in schema.features), strict=True))
    return np.clip(rows, low, high)


def agreement(
    model: Any, decide: Callable[[Sequence[int]], int], schema: Schema, labels: Sequence[Any], values: Sequence[int],
    scale: int, rows: Iterable[Sequence[int]], source: str = "drawn",
) -> Agreement:  # fmt: skip
    """Asks both about each row.  A model without an answer disagrees."""
    verdict_of = dict(zip(labels, values, strict=True))
    inputs = agreed = 0
    error = 0.0
    for row in rows:
        numbers = [int(x) for x in row]
        answer, verdict = model.predict_one(dict(zip(schema.names, numbers, strict=True))), decide(numbers)
        inputs += 1
        if labels:
            agreed += answer in verdict_of and verdict_of[answer] == verdict
        else:
            distance = abs(float(answer) * scale - verdict)
            error += distance
            agreed += distance <= 1
    mean_ppm = round(error * PPM / inputs) if inputs and np.isfinite(error) else 0
    return Agreement(inputs, agreed, mean_ppm, source)
