"""Synthetic writes of the settings that policies are tuned and compared on."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from uxk.scenario.trace.model import Ints

SHIFTS: Final = 10
SHIFTED: Final = 0.3
"""Share of the ranks that one shift moves."""
JOURNAL_WRITES: Final = 0.30
TABLE_WRITES: Final = 0.55
JOURNAL_PAGES: Final = 0.02
TABLE_PAGES: Final = 0.50
"""Of the mixed volume; the scanned region is the rest."""


class Zipf:
    """Ranks 0 to n-1, rank i with probability proportional to (i+1)^-s."""

    def __init__(self, n: int, s: float) -> None:
        self._upto: npt.NDArray[np.float64] = np.cumsum(np.arange(1, n + 1, dtype=np.float64) ** -s)
        self._upto /= self._upto[-1]

    def ranks(self, count: int, rng: np.random.Generator) -> Ints:
        """``count`` independent ones."""
        drawn = np.searchsorted(self._upto, rng.random(count), side="right")
        return np.minimum(drawn, len(self._upto) - 1).astype(np.int64)


def uniform(pages: int, writes: int, rng: np.random.Generator) -> Ints:
    """Every page alike."""
    return rng.integers(0, pages, writes, dtype=np.int64)


def zipf(pages: int, writes: int, rng: np.random.Generator, s: float) -> Ints:
    """Zipf's law with exponent ``s`` over a random permutation of the pages."""
    return rng.permutation(pages)[Zipf(pages, s).ranks(writes, rng)]


def hot_cold(pages: int, writes: int, rng: np.random.Generator, hot_writes: float, hot_pages: float) -> Ints:
    """A share of the writes goes to a share of the pages, chosen at random; each part is uniform."""
    order = rng.permutation(pages)
    hot = min(max(1, round(pages * hot_pages)), pages - 1) if pages > 1 else 1
    is_hot = rng.random(writes) < hot_writes
    place = np.where(is_hot, rng.integers(0, hot, writes), rng.integers(hot % pages, pages, writes))
    return order[place]


def shifting_zipf(pages: int, writes: int, rng: np.random.Generator) -> Ints:
    """Zipf 1.0; after each of eleven equal parts but the last, 30 % of the ranks change pages among themselves."""
    order = rng.permutation(pages)
    ranks = Zipf(pages, 1.0).ranks(writes, rng)
    out = np.empty(writes, np.int64)
    edges = np.linspace(0, writes, SHIFTS + 2).astype(np.int64)
    for begin, end in pairwise(edges.tolist()):
        out[begin:end] = order[ranks[begin:end]]
        moved = rng.choice(pages, round(SHIFTED * pages), replace=False)
        order[moved] = order[rng.permutation(moved)]
    return out


def mixed(pages: int, writes: int, rng: np.random.Generator) -> Ints:
    """Journal, table and scan, interleaved at random, each in a region of its own.

    30 % of the writes run round a journal, 55 % are zipf 1.0 over a table, 15 % rewrite the rest in sweeps.
    """
    journal = min(max(1, round(JOURNAL_PAGES * pages)), max(1, pages - 2))
    table = min(max(1, round(TABLE_PAGES * pages)), max(1, pages - journal - 1))
    which = rng.random(writes)
    in_journal, in_scan = which < JOURNAL_WRITES, which >= JOURNAL_WRITES + TABLE_WRITES
    out = journal % pages + zipf(table, writes, rng, 1.0) % max(1, pages - journal)
    out[in_journal] = np.arange(int(in_journal.sum())) % journal
    begin = min(journal + table, pages - 1)
    out[in_scan] = begin + np.arange(int(in_scan.sum())) % (pages - begin)
    return out
