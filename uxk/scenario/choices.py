"""What a workload does next: operations, blocks and gaps, drawn in blocks from one named stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from uxk.limits import NS_PER_S, PPM
from uxk.scenario.model import AnyWorkload, OpenLoop

_CHUNK: Final = 1024
"""Numbers drawn at once: a numpy call costs as much as a hundred numbers."""


def operations(spec: AnyWorkload, rng: np.random.Generator) -> Iterator[tuple[bool, int]]:
    """(whether it is a read, block), without end."""
    blocks = spec.blocks
    cumulative, scattered = _zipf_table(spec, rng)
    position = 0
    while True:
        reads = rng.integers(PPM, size=_CHUNK) < spec.read_ppm
        if spec.offset == "sequential":
            chosen = (np.arange(position, position + _CHUNK, dtype=np.int64)) % blocks
            position = (position + _CHUNK) % blocks
        elif spec.offset == "uniform":
            chosen = rng.integers(blocks, size=_CHUNK)
        else:
            ranks = np.searchsorted(cumulative, rng.random(_CHUNK), side="right")
            chosen = scattered[np.minimum(ranks, blocks - 1)]
        yield from zip(reads.tolist(), chosen.tolist(), strict=True)


def _zipf_table(spec: AnyWorkload, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative probabilities by rank, and the block of each rank (numpy's own zipf has no upper end)."""
    if spec.offset != "zipf":
        return np.empty(0), np.empty(0, dtype=np.int64)
    weights = np.arange(1, spec.blocks + 1, dtype=np.float64) ** -(spec.zipf_ppm / PPM)
    cumulative = np.cumsum(weights)
    return cumulative / cumulative[-1], rng.permutation(spec.blocks)


def gaps_ns(spec: OpenLoop, rng: np.random.Generator) -> Iterator[int]:
    """Nanoseconds between arrivals, without end; a rate that is no divisor of a second is met exactly over time."""
    if spec.arrival == "periodic":
        arrived, before_ns = 0, 0
        while True:
            arrived += 1
            due_ns = arrived * NS_PER_S // spec.rate_per_s
            yield due_ns - before_ns
            before_ns = due_ns
    mean_ns = NS_PER_S / spec.rate_per_s
    while True:
        draws = rng.exponential(mean_ns, _CHUNK) if spec.arrival == "poisson" else rng.random(_CHUNK) * (2 * mean_ns)
        yield from np.rint(draws).astype(np.int64).tolist()
