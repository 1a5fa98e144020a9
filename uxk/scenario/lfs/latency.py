"""Write latency in virtual time, exactly, from the blocks that each user write had to move.

Under the frozen rule cleaning is in the write's own path, so a volume is a queue with one server and fixed arrivals:
Lindley's recursion (Proc. Cambridge Phil. Soc. 48, 1952) gives each write's waiting time.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from uxk.limits import PPM

Ints = npt.NDArray[np.int64]
_QUANTILES_PPM: Final = (500_000, 990_000, 999_000)


class Latency(Struct, frozen=True, kw_only=True):
    """Of all user writes of a run; times in virtual nanoseconds from arrival to the end of what the write set off."""

    p50_ns: int
    p99_ns: int
    p999_ns: int
    max_ns: int
    stalls: int
    """Writes that had to move at least one block before they were over."""
    longest_stall_ns: int
    """Most time that one write spent on moving."""
    utilisation_ppm: int
    """Work offered per time; at one million and above the queue only grows, and latencies tell how long it ran."""


def latencies_ns(debt: npt.NDArray[np.int32], *, write_ns: int, read_ns: int, program_ns: int) -> Ints:
    """Each write's latency: they come every ``write_ns``, take ``program_ns``, and ``read_ns + program_ns`` more for
    each block in ``debt``."""
    service = program_ns + debt.astype(np.int64) * (read_ns + program_ns)
    if not len(service):
        return service
    ahead = np.zeros(len(service), np.int64)
    np.cumsum(service[:-1] - write_ns, out=ahead[1:])
    waits = ahead - np.minimum.accumulate(ahead)
    return waits + service


def measure(debt: npt.NDArray[np.int32], *, write_ns: int, read_ns: int, program_ns: int) -> Latency:
    """The quantiles (nearest rank) of :func:`latencies_ns`, and the stalls."""
    found = np.sort(latencies_ns(debt, write_ns=write_ns, read_ns=read_ns, program_ns=program_ns))
    p50, p99, p999 = (int(found[-(-len(found) * ppm // PPM) - 1]) for ppm in _QUANTILES_PPM)
    work_ns = len(debt) * program_ns + int(debt.sum(dtype=np.int64)) * (read_ns + program_ns)
    return Latency(
        p50_ns=p50, p99_ns=p99, p999_ns=p999, max_ns=int(found[-1]), stalls=int(np.count_nonzero(debt)),
        longest_stall_ns=int(debt.max()) * (read_ns + program_ns),
        utilisation_ppm=work_ns * PPM // (len(debt) * write_ns),
    )  # fmt: skip
