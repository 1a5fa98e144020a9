"""Workloads that were drawn up after the learning collector was finished: ``python -m bench.lfs_exam [SEED ...]``.

The held-out families of :mod:`uxk.scenario.pages` have been looked at while candidates were chosen, and so judge no
longer alone.  These four were written afterwards.  What came out has decided one thing: the agent's search, which had
just been switched off, was switched on again.
Rows, geometry and figures are those of :mod:`bench.lfs_goals`; ``--cache`` and ``--scale`` mean the same.

* ``tenants``: a dozen neighbours, each a zipf, a ring or uniform, whose activity is drawn anew four times.
* ``btree``: a ring of log writes, and dirty leaves (zipf) written back in sorted batches at checkpoints.
* ``lifetimes``: every page is rewritten at a pace of its own (lognormal), more regularly than by chance.
* ``series``: rings of very different lengths, appended to in turn, their oldest quarter thinned out now and then.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from bench.lfs_goals import AGENT, ORACLE, SEEDS, Line, cell, show_lines
from bench.lfs_runs import GP_PPM, HELD_OUT, SCALES, Cache, Row, all_runs, work
from uxk.scenario.lfs.study import Study, StudyParams, WorkloadSpec

Pages: TypeAlias = npt.NDArray[np.int64]
WRITES_PER_PAGE: Final = 10


def _zipf(pages: int, count: int, exponent: float, rng: np.random.Generator) -> Pages:
    """Zipf over a random order of the pages."""
    weights = np.cumsum(np.arange(1, pages + 1) ** -exponent)
    order: Pages = rng.permutation(pages)
    drawn: Pages = order[np.searchsorted(weights, rng.random(count) * weights[-1])]
    return drawn


def tenants(pages: int, writes: int, rng: np.random.Generator) -> Pages:
    """See the module."""
    borders = np.concatenate([[0], np.sort(rng.choice(np.arange(1, pages), 11, replace=False)), [pages]])
    out = np.empty(writes, np.int64)
    parts = np.diff(np.linspace(0, writes, 5).astype(int))
    owner = np.concatenate([rng.choice(12, part, p=rng.dirichlet(np.full(12, 0.5))) for part in parts])
    for tenant in range(12):
        mine = np.flatnonzero(owner == tenant)
        size = int(borders[tenant + 1] - borders[tenant])
        if tenant % 3 == 0:
            pattern = _zipf(size, len(mine), rng.uniform(0.6, 1.4), rng)
        elif tenant % 3 == 1:
            pattern = np.arange(len(mine)) % size
        else:
            pattern = rng.integers(0, size, len(mine))
        out[mine] = borders[tenant] + pattern
    return out


def btree(pages: int, writes: int, rng: np.random.Generator) -> Pages:
    """See the module."""
    log, batch = max(pages // 32, 1), max(pages // 64, 2)
    touched = _zipf(pages - log, 2 * writes, 0.8, rng)
    parts, written, head = [], 0, 0
    for start in range(0, len(touched), batch):
        dirty = np.unique(touched[start : start + batch])
        commits = (head + np.arange(2 * batch // 3)) % log
        head = (head + len(commits)) % log
        parts += [pages - log + commits, dirty]
        written += len(commits) + len(dirty)
        if written >= writes:
            break
    return np.concatenate(parts)[:writes]


def lifetimes(pages: int, writes: int, rng: np.random.Generator) -> Pages:
    """See the module."""
    pace = rng.lognormal(0, 1.5, pages)
    counts = np.ceil(pace / pace.sum() * writes).astype(np.int64) + 4
    page = np.repeat(np.arange(pages), counts)
    gaps = rng.gamma(6, 1 / 6, len(page)) / pace[page]
    ends = np.cumsum(counts)
    total = np.cumsum(gaps)
    before = np.concatenate([[0.0], total[ends[:-1] - 1]])
    due = total - np.repeat(before, counts) - np.repeat(rng.random(pages) / pace, counts)
    return page[np.argsort(due, kind="stable")][:writes]


def series(pages: int, writes: int, rng: np.random.Generator) -> Pages:
    """See the module."""
    sizes = np.maximum((pages * rng.dirichlet(np.full(64, 0.3))).astype(np.int64), 8)
    sizes = np.maximum(sizes * pages // (sizes.sum() + 1), 4)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    heads = np.zeros(64, np.int64)
    parts: list[Pages] = []
    written = 0
    while written < writes:
        one = int(rng.integers(64))
        run = int(min(rng.integers(8, 256), sizes[one]))
        parts.append(first[one] + (heads[one] + np.arange(run)) % sizes[one])
        heads[one] += run
        if rng.random() < 0.02:
            old = (heads[one] + np.arange(0, sizes[one] // 4, 4)) % sizes[one]
            parts.append(first[one] + old)
            written += len(old)
        written += run
    return np.concatenate(parts)[:writes]


FAMILIES: Final[tuple[Callable[[int, int, np.random.Generator], Pages], ...]] = (tenants, btree, lifetimes, series)


def row_of(make: Callable[[int, int, np.random.Generator], Pages], scale: str, seed: int, folder: Path) -> Row:
    """A trace of page numbers, the fill first, written to the folder."""
    size = SCALES[scale]
    rng = np.random.default_rng([seed, *make.__name__.encode()])
    writes = np.concatenate([np.arange(size.pages), make(size.pages, WRITES_PER_PAGE * size.pages, rng)])
    path = folder / f"{make.__name__}-{seed}.npy"
    np.save(path, writes.astype(np.int32))
    params = StudyParams(segment_blocks=size.segment_blocks, gp_ppm=GP_PPM, logs=6)
    workload = WorkloadSpec(trace=str(path), format="pages")
    return Row(f"{make.__name__}-{seed}", HELD_OUT, Study(name="exam", lfs=params, workload=workload))


def main(args: Sequence[str]) -> int:
    """Prints a table like that of the goals, one line for each family and seed."""
    parser = argparse.ArgumentParser(prog="python -m bench.lfs_exam", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seeds", nargs="*", type=int, default=list(SEEDS), metavar="SEED")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--cache", type=Path, metavar="FILE")
    options = parser.parse_args(args)
    cache = Cache(options.cache)
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for make in FAMILIES:
            for seed in options.seeds:
                row = row_of(make, options.scale, seed, Path(folder))
                work(list(all_runs([row], [seed], ["humans", ORACLE, AGENT])), cache)
                found = cell(row, seed, cache)
                if found is not None:
                    lines.append(Line(row, [found]))
        print(show_lines(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
