"""Families of writes that no setting is fitted to: a policy can be judged on them.

Candidates of ``uxk_gc`` were chosen with an eye on them, so they judge that one no longer: ``bench/lfs_exam.py`` does.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np

from uxk.scenario.pages.synthetic import Zipf, zipf
from uxk.scenario.trace.model import Ints

FRESH: Final = 0.05
"""Share of writes of the recurring family that go anywhere."""
PARETO: Final = 0.6
"""Shape of the distances at which writes recur: heavy enough that the mean does not exist."""
FILE_PAGES_MAX: Final = 64
FILE_SIGMA: Final = 2.0
LEVEL_RATIO: Final = 8
LEVEL_RUN_PAGES: Final = 32


def _regions(pages: int, shares: tuple[float, ...]) -> list[int]:
    """Borders of adjacent regions with these shares of the pages, at least a page each as long as there are so many."""
    upto = np.rint(np.cumsum(shares) / sum(shares) * pages).astype(np.int64)
    borders = [0]
    for i, border in enumerate(upto.tolist()):
        borders.append(max(min(border, pages - (len(shares) - 1 - i)), min(borders[-1] + 1, pages)))
    return borders


def _sweep(count: int, begin: int, end: int) -> Ints:
    """``count`` writes round a region, which is at least a page."""
    return begin + np.arange(count, dtype=np.int64) % max(1, end - begin)


def recurring(pages: int, writes: int, rng: np.random.Generator) -> Ints:
    """Each write repeats the one a Pareto-distributed number of writes ago, and one in twenty goes anywhere.

    Locality in time without lasting popularity, as of an LRU stack with heavy-tailed depths.  Positions before the
    first write are the fill's.
    """
    distance = np.ceil(rng.random(writes) ** (-1 / PARETO))
    source = np.arange(writes, dtype=np.int64) - np.minimum(distance, writes + pages).astype(np.int64)
    fresh = (rng.random(writes) < FRESH) | (source < -pages)
    source[fresh] = -1 - rng.integers(0, pages, int(fresh.sum()))
    # A write that repeats a write that repeats another: halve the chains until all end in the fill.
    while len(again := np.flatnonzero(source >= 0)):
        source[again] = source[source[again]]
    return source + pages


def log_and_random(pages: int, writes: int, rng: np.random.Generator) -> Ints:
    """Half of the writes run round a quarter of the volume, the others are uniform over the rest."""
    border = _regions(pages, (1, 3))[1]
    in_log = rng.random(writes) < 0.5
    out = rng.integers(min(border, pages - 1), pages, writes, dtype=np.int64)
    out[in_log] = _sweep(int(in_log.sum()), 0, border)
    return out


def phases(pages: int, writes: int, rng: np.random.Generator) -> Ints:
    """Nine writes in ten go to one of eight sets of 5 % of the pages; which one changes at random, 40 times or so."""
    sets = [rng.choice(pages, max(1, pages // 20), replace=False) for _ in range(8)]
    out = rng.integers(0, pages, writes, dtype=np.int64)
    at = 0
    while at < writes:
        end = min(writes, at + 1 + round(rng.exponential(writes / 40)))
        chosen = sets[int(rng.integers(0, len(sets)))]
        hot = at + np.flatnonzero(rng.random(end - at) < 0.9)
        out[hot] = chosen[rng.integers(0, len(chosen), len(hot))]
        at = end
    return out


def files(pages: int, writes: int, rng: np.random.Generator) -> Ints:
    """Whole files of 1 to 64 pages are rewritten, front to back; how often each is lognormal."""
    sizes = np.minimum(2 ** rng.uniform(0, np.log2(FILE_PAGES_MAX + 1), pages), FILE_PAGES_MAX).astype(np.int64)
    ends = np.cumsum(sizes)
    count = int(np.searchsorted(ends, pages)) + 1
    begin = ends[:count] - sizes[:count]
    sizes = np.minimum(sizes[:count], pages - begin)
    popular = np.cumsum(rng.lognormal(0, FILE_SIGMA, count))
    # As many rewrites as surely suffice, however small the files are that chance prefers.
    parts: list[Ints] = []
    left = writes
    while left > 0:
        drawn = np.searchsorted(popular, rng.random(1 + left // 4) * popular[-1], side="right")
        file = np.minimum(drawn, count - 1)
        length = sizes[file]
        before = np.cumsum(length) - length
        parts.append((np.repeat(begin[file] - before, length) + np.arange(int(length.sum())))[:left])
        left -= len(parts[-1])
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def diurnal(pages: int, writes: int, rng: np.random.Generator) -> Ints:
    """Eight days: a skewed table by day (zipf 0.9 on 60 % of the pages), a sequential batch over all by night."""
    table = max(1, round(0.6 * pages))
    day = 0.5 + 0.5 * np.sin(np.arange(writes) * (2 * np.pi * 8 / max(1, writes)))
    by_night = rng.random(writes) >= 0.05 + 0.9 * day
    out = zipf(table, writes, rng, 0.9)
    out[by_night] = _sweep(int(by_night.sum()), 0, pages)
    return out


def tpcc(pages: int, writes: int, rng: np.random.Generator) -> Ints:
    """Like TPC-C's page writes: warehouse and district, customer and stock (NURand), orders that are appended, a log.

    Shares follow the standard mix roughly; NURand is clause 2.1.6 of the specification, revision 5.11.
    """
    tiny, customer, stock, orders, log, end = _regions(pages, (0.2, 20, 55, 20, 4.8))[:6]
    which = rng.random(writes)
    out = np.empty(writes, np.int64)
    edges = np.cumsum((0.08, 0.12, 0.45, 0.15, 0.20))
    part = np.minimum(np.searchsorted(edges, which, side="right"), 4)
    counts = np.bincount(part, minlength=5).tolist()
    out[part == 0] = tiny + rng.integers(0, max(1, customer - tiny), counts[0])
    out[part == 1] = customer + _nurand(stock - customer, counts[1], rng)
    out[part == 2] = stock + _nurand(orders - stock, counts[2], rng)
    # An order's page takes several lines before it is full: each page four times in a row.
    out[part == 3] = orders + (np.arange(counts[3]) // 4) % max(1, log - orders)
    out[part == 4] = _sweep(counts[4], log, end)
    return np.minimum(out, pages - 1)


def _nurand(span: int, count: int, rng: np.random.Generator) -> Ints:
    """The bitwise or of two uniform numbers, shifted by a constant, modulo the span."""
    span = max(1, span)
    mask = (1 << max(0, (span // 8).bit_length() - 1)) - 1
    both = rng.integers(0, mask + 1, count, dtype=np.int64) | rng.integers(0, span, count, dtype=np.int64)
    return (both + int(rng.integers(0, span))) % span


def levels(pages: int, writes: int, rng: np.random.Generator) -> Ints:
    """Like a levelled LSM tree: four regions, each eight times the one before, rewritten front to back, interleaved.

    Every level takes as much bandwidth as any other, in runs of 32 pages, so the small ones are rewritten often.
    """
    borders = _regions(pages, tuple(float(LEVEL_RATIO**i) for i in range(4)))
    run = LEVEL_RUN_PAGES
    runs = writes // run + 1
    level = rng.integers(0, 4, runs)
    turn = np.empty(runs, np.int64)
    for i in range(4):
        turn[level == i] = np.arange(int((level == i).sum()))
    begin = np.array([min(border, pages - 1) for border in borders[:-1]], np.int64)
    size = np.array([max(1, b - a) for a, b in pairwise(borders)], np.int64)
    position = (turn[:, None] * run + np.arange(run)) % size[level][:, None]
    return (begin[level][:, None] + position).ravel()[:writes].astype(np.int64)


def drifting(pages: int, writes: int, rng: np.random.Generator) -> Ints:
    """A window of zipf 0.8 popularity over a fifth of the volume slides across it twice."""
    window = max(1, pages // 5)
    base = (np.arange(writes, dtype=np.float64) * (2 * pages / max(1, writes))).astype(np.int64)
    order = rng.permutation(window)
    return (base + order[Zipf(window, 0.8).ranks(writes, rng)]) % pages
