"""``[subsystems.lfs]``: a log-structured volume on a scenario's kernel, fed with a workload or a trace."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from msgspec import Struct

from uxk.errors import ConfigError
from uxk.kernel.kernel import Kernel
from uxk.scenario.lfs.params import LfsScenario
from uxk.scenario.pages.load import HOLDOUTS, WORKLOADS, PageRun, as_run, load_pages
from uxk.scenario.trace.model import Malformed
from uxk.scenario.trace.read import guess_format, read_trace
from uxk.scenario.trace.split import to_pages
from uxk.subsystems.lfs.subsystem import Lfs

__all__ = ["DEFAULT_WORKLOAD", "LfsScenario", "TraceFacts", "attach", "facts_of", "is_random", "load"]

DEFAULT_WORKLOAD = "zipf1.0"
DEVICES_SHOWN = 10


class TraceFacts(Struct, frozen=True, kw_only=True):
    """How a trace was read: lines by what they were, requests by operation; only writes are played."""

    format: str
    lines: int
    skipped: int
    """Well-formed ones that are no request."""
    malformed: int
    malformed_lines: tuple[Malformed, ...]
    """Number and reason of the first of them."""
    requests: int
    reads: int
    writes: int
    discards: int
    flushes: int
    devices: int
    """Those that the requests went to lie side by side in the volume."""
    first_devices: tuple[str, ...]


def is_random(params: LfsScenario) -> bool:
    """Whether the writes depend on the seed."""
    name = params.workload or DEFAULT_WORKLOAD
    return not params.trace and (name in WORKLOADS or name in HOLDOUTS)


def load(params: LfsScenario, seed: int) -> PageRun:
    """The writes that these settings name; synthetic ones depend on ``seed``.  The last two are kept: do not change
    them.  Raises :class:`ConfigError`."""
    if params.trace and params.workload:
        raise ConfigError(f"lfs: both workload={params.workload!r} and trace={params.trace!r}: expected one")
    return _loaded(params, seed)[0]


def facts_of(params: LfsScenario) -> TraceFacts | None:
    """How the trace of these settings was read; None without one.  Raises :class:`ConfigError`."""
    return _loaded(params, 0)[1] if params.trace else None


def _loaded(params: LfsScenario, seed: int) -> tuple[PageRun, TraceFacts | None]:
    stamp = (0, 0)
    if params.trace:
        try:
            stat = Path(params.trace).stat()
        except OSError as exc:
            raise ConfigError(f"lfs: trace={params.trace!r}: {exc.strerror}", errno=exc.errno) from None
        stamp = (stat.st_size, stat.st_mtime_ns)
    what = (params.workload, params.trace, params.format, params.device)
    return _load(what, (params.page_bytes, params.pages, params.writes), seed if is_random(params) else 0, stamp)


@lru_cache(maxsize=2)
def _load(
    what: tuple[str, str, str, str], sizes: tuple[int, int, int], seed: int, _: tuple[int, int]
) -> tuple[PageRun, TraceFacts | None]:
    workload, trace, form, device = what
    page_bytes, pages, writes = sizes
    if not trace:
        return load_pages(workload or DEFAULT_WORKLOAD, pages=pages or None, writes=writes or None, seed=seed), None
    form = form or guess_format(trace)
    if not form:
        raise ConfigError(f"lfs: trace={trace!r} needs a format: it looks like none of those known")
    read = read_trace(trace, form, device=device or None, page_bytes=page_bytes)
    run = as_run(Path(trace).name, to_pages(read, page_bytes), writes or None)
    return run, TraceFacts(
        format=form, **read.counts(), malformed_lines=read.malformed_lines, devices=len(read.devices),
        first_devices=read.devices[:DEVICES_SHOWN],
    )  # fmt: skip


def attach(kernel: Kernel, params: LfsScenario) -> Lfs:
    """For :func:`uxk.scenario.subsystems.register_subsystem`."""
    run = load(params, kernel.seed)
    lfs = Lfs(kernel, params, run.pages.astype(np.int32, copy=False), fill=run.fill, pages=run.volume_pages)
    if params.debt:
        lfs.debt = np.zeros(len(lfs.ops), np.int32)
    return lfs
