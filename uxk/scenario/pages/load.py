"""Page workloads by name: synthetic ones, those held out, and the bundled traces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from uxk.core.streams import RandomStreams
from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError
from uxk.scenario.pages import holdout, synthetic
from uxk.scenario.pages.bundled import FOLDER, bundled
from uxk.scenario.trace.model import Ints
from uxk.scenario.trace.read import read_trace
from uxk.scenario.trace.split import PAGE_WRITES_MAX, Pages, to_pages

PageArray: TypeAlias = npt.NDArray[np.int32] | npt.NDArray[np.int64]

PAGES_DEFAULT: Final = 262_144
"""1 GiB of 4 KiB pages."""
WRITES_PER_PAGE: Final = 10
PAGES_MIN: Final = 16


class Family(NamedTuple):
    """One kind of synthetic workload."""

    name: str
    summary: str
    make: Callable[[int, int, np.random.Generator], Ints]
    """From pages, writes and random numbers to the page of each write."""


def _family(name: str, make: Callable[[int, int, np.random.Generator], Ints]) -> Family:
    summary = ((make.func if isinstance(make, partial) else make).__doc__ or "").splitlines()[0]
    return Family(name, summary, make)


_TUNING: Final = (
    _family("zipf0.9", partial(synthetic.zipf, s=0.9)),
    _family("zipf1.0", partial(synthetic.zipf, s=1.0)),
    _family("zipf1.2", partial(synthetic.zipf, s=1.2)),
    _family("hot-cold-80-20", partial(synthetic.hot_cold, hot_writes=0.8, hot_pages=0.2)),
    _family("hot-cold-90-10", partial(synthetic.hot_cold, hot_writes=0.9, hot_pages=0.1)),
    _family("shifting-zipf", synthetic.shifting_zipf),
    _family("mixed", synthetic.mixed),
    _family("uniform", synthetic.uniform),
)
_HOLDOUTS: Final = (
    _family("holdout-recurring", holdout.recurring),
    _family("holdout-log-random", holdout.log_and_random),
    _family("holdout-phases", holdout.phases),
    _family("holdout-files", holdout.files),
    _family("holdout-diurnal", holdout.diurnal),
    _family("holdout-tpcc", holdout.tpcc),
    _family("holdout-lsm", holdout.levels),
    _family("holdout-drift", holdout.drifting),
)
WORKLOADS: Final = {family.name: family for family in _TUNING}
"""Those that policies may be tuned on."""
HOLDOUTS: Final = {family.name: family for family in _HOLDOUTS}
"""Those that only judge."""


@dataclass(frozen=True)
class PageRun:
    """A volume's writes in order, and how many of them fill it first."""

    name: str
    pages: PageArray
    """Page of every write, the fill's included: int32 as long as the volume allows."""
    fill: int
    """Leading writes that fill the volume; 0 for traces, which are played as they are."""
    volume_pages: int
    """N: page numbers are below it."""
    arrival_ns: Ints | None = None
    """Of every write, for traces that know."""

    @property
    def user_writes(self) -> int:
        """All writes, the fill's included."""
        return len(self.pages)


def workload_names() -> tuple[str, ...]:
    """Every name that :func:`load_pages` takes."""
    return (*WORKLOADS, *HOLDOUTS, *bundled())


def load_pages(
    workload: str,
    *,
    pages: int | None = None,
    writes: int | None = None,
    seed: int | np.random.Generator = 0,
    folder: Path = FOLDER,
) -> PageRun:
    """The workload of that name.

    Synthetic: ``pages`` (default 262,144) are filled in order, then come ``writes`` (default ten per page) drawn from
    the stream ``pages/NAME`` of ``seed``, or from a generator.  A bundled trace has pages of its own: ``pages`` and
    ``seed`` do not matter to it, and ``writes`` cuts it off.  Raises :class:`ConfigError` for an unknown name.
    """
    if family := WORKLOADS.get(workload) or HOLDOUTS.get(workload):
        pages = PAGES_DEFAULT if pages is None else pages
        writes = WRITES_PER_PAGE * pages if writes is None else writes
        rng = seed if isinstance(seed, np.random.Generator) else RandomStreams(seed).stream(f"pages/{workload}")
        return generate(family, pages, writes, rng)
    traces = bundled(folder)
    if workload in traces:
        trace = traces[workload]
        timed = trace.format != "pages"
        return as_run(workload, to_pages(read_trace(trace.path, trace.format), arrivals=timed), writes)
    names = (*WORKLOADS, *HOLDOUTS, *traces)
    raise ConfigError(f"workload {workload!r}{did_you_mean(workload, names)}: expected {', '.join(names)}")


def generate(family: Family, pages: int, writes: int, rng: np.random.Generator) -> PageRun:
    """A synthetic workload: page numbers 0 to ``pages``-1 in order, then ``writes`` of the family's."""
    if not PAGES_MIN <= pages <= PAGE_WRITES_MAX:
        raise ConfigError(f"pages={pages} for {family.name}: expected {PAGES_MIN} to {PAGE_WRITES_MAX}")
    if not 0 <= writes <= PAGE_WRITES_MAX - pages:
        raise ConfigError(f"writes={writes} for {family.name}: expected 0 to {PAGE_WRITES_MAX - pages}")
    run = np.empty(pages + writes, np.int32)
    run[:pages] = np.arange(pages)
    run[pages:] = family.make(pages, writes, rng)
    return PageRun(family.name, run, pages, pages)


def as_run(name: str, pages: Pages, writes: int | None = None) -> PageRun:
    """A trace's page writes as a workload without a fill, the first ``writes`` of them."""
    if writes is not None and writes < 1:
        raise ConfigError(f"writes={writes} for {name}: expected at least 1")
    run = pages.pages[:writes]
    small = pages.volume_pages <= np.iinfo(np.int32).max
    arrival_ns = None if pages.arrival_ns is None else pages.arrival_ns[:writes]
    return PageRun(name, run.astype(np.int32) if small else run, 0, pages.volume_pages, arrival_ns)
