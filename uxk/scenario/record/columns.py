"""What was recorded, as columns; how it is summed up and written."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from uxk.errors import UsageError
from uxk.scenario.record.lines import OPERATIONS, SECTOR_BYTES, Lost, Malformed, Request, operation, parse_line

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pages: TypeAlias = npt.NDArray[np.uint32]

PAGE_BYTES: Final = 4096
SECTORS_PER_PAGE: Final = PAGE_BYTES // SECTOR_BYTES
MALFORMED_SHOWN: Final = 3

Layout: TypeAlias = Literal["blkparse", "pages"]
Packer: TypeAlias = Literal["", "gz", "bz2", "xz"]


@dataclass
class Columns:
    """Requests in the order in which the driver got them, one array per field; see :class:`Request`."""

    time_us: array[int] = field(default_factory=lambda: array("q"))
    cpu: array[int] = field(default_factory=lambda: array("I"))
    pid: array[int] = field(default_factory=lambda: array("I"))
    sector: array[int] = field(default_factory=lambda: array("Q"))
    sectors: array[int] = field(default_factory=lambda: array("I"))
    rwbs: list[str] = field(default_factory=list)
    comm: list[str] = field(default_factory=list)
    lost: int = 0
    """Events that the text itself reports as lost."""
    malformed: int = 0
    samples: list[Malformed] = field(default_factory=list)
    """The first malformed lines."""
    _words: dict[str, str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.time_us)

    def add(self, request: Request) -> None:
        """Appends a request."""
        self.time_us.append(request.time_us)
        self.cpu.append(request.cpu)
        self.pid.append(request.pid)
        self.sector.append(request.sector)
        self.sectors.append(request.sectors)
        # A million requests share a few words.
        self.rwbs.append(self._words.setdefault(request.rwbs, request.rwbs))
        self.comm.append(self._words.setdefault(request.comm, request.comm))

    def feed(self, lines: Iterable[str], *, start: int = 0, end: int | None = None) -> None:
        """Takes the requests out of ``lines``; keeps those that begin in ``[start, end)`` and counts from ``start``.

        ``start`` and ``end`` are sectors: the kernel reports a partition's requests with its disk's numbers.
        """
        for line in lines:
            match parse_line(line):
                case Request() as request if not request.sectors:
                    self.add(request._replace(sector=0))
                case Request(sector=sector) as request:
                    if sector >= start and (end is None or sector < end):
                        self.add(request._replace(sector=sector - start))
                case Lost(events=events):
                    self.lost += events
                case Malformed() as bad:
                    self.malformed += 1
                    if len(self.samples) < MALFORMED_SHOWN:
                        self.samples.append(bad)

    def written_pages(self) -> Pages:
        """Page numbers (sector // 8) of all writes in their order; a page touched in part counts as written.

        Raises :class:`UsageError` if a number does not fit 32 bits (a device of 16 TiB).
        """
        import numpy as np

        writes = np.fromiter((operation(word) == "write" for word in self.rwbs), bool, len(self))
        sector = np.array(self.sector, np.uint64)[writes].astype(np.int64)
        sectors = np.array(self.sectors, np.int64)[writes]
        sector, sectors = sector[sectors > 0], sectors[sectors > 0]
        first = sector // SECTORS_PER_PAGE
        count = (sector + sectors - 1) // SECTORS_PER_PAGE - first + 1
        if first.size and int((first + count).max()) > 1 << 32:
            raise UsageError(f"page {int((first + count).max())}: a .npy of pages holds numbers of 32 bits")
        before = np.cumsum(count) - count
        pages = np.repeat(first - before, count) + np.arange(int(count.sum()))
        return pages.astype(np.uint32)

    def summary(self) -> dict[str, int]:
        """Counts by operation, bytes, and how often a page was overwritten (``overwrite_ppm`` of 1,000,000 is once)."""
        import numpy as np

        found: dict[str, int] = dict.fromkeys(OPERATIONS, 0)
        sizes = dict(found)
        for rwbs, sectors in zip(self.rwbs, self.sectors, strict=True):
            kind = operation(rwbs)
            found[kind] += 1
            sizes[kind] += sectors * SECTOR_BYTES
        pages = self.written_pages()
        distinct = int(np.unique(pages).size)
        return {
            "requests": len(self),
            **{f"{kind}_requests": count for kind, count in found.items()},
            "read_bytes": sizes["read"], "write_bytes": sizes["write"], "discard_bytes": sizes["discard"],
            "written_pages": int(pages.size), "distinct_pages": distinct,
            "overwrite_ppm": int(pages.size) * 1_000_000 // distinct if distinct else 0,
            "duration_us": self.time_us[-1] - self.time_us[0] if len(self) else 0,
            "malformed_lines": self.malformed,
        }  # fmt: skip

    def blkparse(self, *, major: int, minor: int) -> Iterator[str]:
        """Lines in blkparse's default columns, action ``D`` (issued), times from the first request on."""
        start_us = self.time_us[0] if len(self) else 0
        rows = zip(self.time_us, self.cpu, self.pid, self.rwbs, self.sector, self.sectors, self.comm, strict=True)
        device = f"{major},{minor}"
        for number, (time_us, cpu, pid, rwbs, sector, sectors, comm) in enumerate(rows, 1):
            after_us = time_us - start_us
            yield (
                f"{device:>7} {cpu:2} {number:8} {after_us // 1_000_000:5}.{after_us % 1_000_000:06}000 {pid:5}  D "
                f"{rwbs:>3} {sector} + {sectors} [{comm}]\n"
            )


# --- files --------------------------------------------------------------------------------------------------


def layout_of(name: str) -> tuple[Layout, Packer]:
    """What to write for a file's name.  Raises :class:`UsageError` if its ending says nothing."""
    path = PurePath(name)
    packer: Packer = ""
    match path.suffix:
        case ".gz" | ".bz2" | ".xz":
            packer = "gz" if path.suffix == ".gz" else "xz" if path.suffix == ".xz" else "bz2"
            path = path.with_suffix("")
    if path.suffix == ".npy":
        return "pages", packer
    if path.suffix == ".blkparse":
        return "blkparse", packer
    raise UsageError(
        f"{name!r}: expected a name that ends in .blkparse (one line per request) or .npy (numbers of the 4 KiB pages "
        "written, in order), each with .gz, .bz2 or .xz if it is to be compressed"
    )


def pack(data: bytes, packer: Packer, *, stride: int = 1) -> bytes:
    """Compressed; ``stride`` is the size of an item in a column of integers, or 1 for text.

    Any reader of xz undoes its delta filter, which turns runs of pages into repetitions.  Text gains a thousandth
    from more than preset 6, and takes several times as long.
    """
    match packer:
        case "gz":
            return gzip.compress(data, mtime=0)
        case "bz2":
            return bz2.compress(data)
        case "xz":
            if stride == 1:
                return lzma.compress(data)
            delta = {"id": lzma.FILTER_DELTA, "dist": stride}
            return lzma.compress(data, filters=[delta, {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}])
    return data


def encoded(columns: Columns, name: str, *, major: int = 0, minor: int = 0) -> bytes:
    """The contents of the file ``name``, whose ending chooses layout and compression (:func:`layout_of`)."""
    layout, packer = layout_of(name)
    if layout == "blkparse":
        return pack("".join(columns.blkparse(major=major, minor=minor)).encode(), packer)
    import numpy as np

    pages = columns.written_pages()
    buffer = io.BytesIO()
    np.save(buffer, pages, allow_pickle=False)
    return pack(buffer.getvalue(), packer, stride=pages.itemsize)
