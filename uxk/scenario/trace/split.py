"""From requests to page writes: what a log-structured volume sees of a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from uxk.errors import ConfigError
from uxk.scenario.trace.model import REQUEST_MAX_BYTES, Ints, Trace, TraceOp

PAGE_WRITES_MAX: Final = 1 << 28
"""Page writes of one trace in memory: 2 GiB and as much again while they are numbered."""
_SPARSE: Final = 2
"""Addresses this many times more numerous than writes are ranked by sorting, not by a table."""
_SMALL: Final = 1 << 20

Order: TypeAlias = Literal["address", "first"]


@dataclass(frozen=True)
class Pages:
    """Page writes in order, pages numbered from 0 without gaps."""

    pages: Ints
    volume_pages: int
    """N: different pages written."""
    page_bytes: int
    arrival_ns: Ints | None
    """Of each write, never stepping back."""

    @property
    def user_writes(self) -> int:
        """M: page writes."""
        return len(self.pages)


def to_pages(trace: Trace, page_bytes: int = 4096, *, arrivals: bool = False, order: Order = "address") -> Pages:
    """The writes of a trace cut into pages; a page that is written in part counts as written.

    Pages are numbered by rank of their address (device, then offset), so that neighbours stay neighbours and
    extent-based policies see the locality that the trace had; ``order="first"`` numbers them by first appearance.
    Reads, discards and flushes are left out.  Raises :class:`ConfigError` if nothing is written, or too much.
    """
    if not 1 <= page_bytes <= REQUEST_MAX_BYTES:
        raise ConfigError(f"page_bytes={page_bytes}: expected 1 to {REQUEST_MAX_BYTES}")
    if order not in ("address", "first"):
        raise ConfigError(f"order={order!r}: expected 'address' or 'first'")
    written = np.flatnonzero(trace.op == TraceOp.WRITE)
    if not len(written):
        raise ConfigError(f"{trace.name}: no write in {len(trace)} requests")
    offset, length = trace.offset_bytes[written], trace.length_bytes[written]
    first = offset // page_bytes
    count = (offset + length - 1) // page_bytes - first + 1
    total = int(count.sum())
    if total > PAGE_WRITES_MAX:
        raise ConfigError(
            f"{trace.name}: {total} page writes, more than {PAGE_WRITES_MAX}: pass a limit, or larger pages"
        )
    before = np.cumsum(count) - count
    address = np.repeat(first - before, count) + np.arange(total)
    rank, pages = _ranks(address)
    if len(trace.devices) > 1:
        device = np.repeat(trace.device[written].astype(np.int64), count)
        rank, pages = _ranks(device * pages + rank)
    if order == "first":
        rank = _by_appearance(rank, pages)
    arrival_ns = None
    if arrivals:
        times = np.maximum.accumulate(trace.time_ns[written])
        arrival_ns = np.repeat(times - times[0], count)
    return Pages(rank, pages, page_bytes, arrival_ns)


def _ranks(value: Ints) -> tuple[Ints, int]:
    """The rank of each among the different values, and how many are different."""
    low = int(value.min())
    span = int(value.max()) - low + 1
    if span > _SPARSE * len(value) + _SMALL:
        different, rank = np.unique(value, return_inverse=True)
        return rank.astype(np.int64), len(different)
    seen: npt.NDArray[np.int32] = np.zeros(span, np.int32)
    seen[value - low] = 1
    np.cumsum(seen, out=seen)
    return seen[value - low].astype(np.int64) - 1, int(seen[-1])


def _by_appearance(rank: Ints, pages: int) -> Ints:
    """Numbers in the order in which they first appear."""
    _, where = np.unique(rank, return_index=True)
    number = np.empty(pages, np.int64)
    number[np.argsort(where)] = np.arange(pages)
    return number[rank]
