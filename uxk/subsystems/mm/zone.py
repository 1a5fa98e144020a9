"""One zone of page frames: who has them, and the watermarks (Linux: mm/page_alloc.c)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from uxk.errors import KernelBug, ParamError

PAGE_BYTES: Final = 4096
KBYTES_PER_PAGE: Final = PAGE_BYTES >> 10
MIN_FREE_KBYTES: Final = 128
MIN_FREE_KBYTES_MAX: Final = 262_144
WATERMARK_SCALE: Final = 10
"""``vm.watermark_scale_factor``, in ten-thousandths of the zone."""


class Use(IntEnum):
    """What a page is used for; every page has exactly one use."""

    FREE = 0
    ANON = 1
    """Anonymous memory of processes.  There is no swap: only its owner can give it back."""
    CLEAN = 2
    """In the page cache, as on the volume: reclaim may take it."""
    DIRTY = 3
    """In the page cache, newer than the volume."""
    WRITEBACK = 4
    """In the page cache, on its way to the volume."""
    POOL = 5
    """In a memory pool, or lent from one."""


class Watermarks(NamedTuple):
    """Free pages: below ``low`` kswapd is woken and works up to ``high``; at ``min`` who allocates must reclaim."""

    min: int
    low: int
    high: int


def int_sqrt(value: int) -> int:
    """The root, rounded down (lib/math/int_sqrt.c)."""
    root, bit = 0, 1 << max(value.bit_length() - 1, 0) // 2 * 2
    while bit:
        if value >= root + bit:
            value -= root + bit
            root = (root >> 1) + bit
        else:
            root >>= 1
        bit >>= 2
    return root


def watermarks(pages: int, min_free_kbytes: int = 0) -> Watermarks:
    """The marks of a zone of so many pages, as ``calculate_min_free_kbytes`` and ``__setup_per_zone_wmarks`` set them.

    0 for ``min_free_kbytes``: four times the root of the zone's kilobytes, 128 to 262144.  The steps above it are a
    quarter of ``min``, or a thousandth of the zone if that is more.
    """
    kbytes = min_free_kbytes or min(max(int_sqrt(pages * KBYTES_PER_PAGE * 16), MIN_FREE_KBYTES), MIN_FREE_KBYTES_MAX)
    least = kbytes // KBYTES_PER_PAGE
    step = max(least >> 2, pages * WATERMARK_SCALE // 10_000)
    return Watermarks(least, least + step, least + 2 * step)


class Zone:
    """Counts of pages by use."""

    __slots__ = ("count", "marks", "pages")

    def __init__(self, pages: int, min_free_kbytes: int = 0) -> None:
        self.pages = pages
        self.marks = watermarks(pages, min_free_kbytes)
        if self.marks.high >= pages:
            raise ParamError(f"mm: {pages} pages are fewer than the high watermark, {self.marks.high}")
        self.count = [pages, *([0] * (len(Use) - 1))]

    @property
    def free(self) -> int:
        """Free pages."""
        return self.count[Use.FREE]

    @property
    def dirty(self) -> int:
        """What counts against the dirty limits: dirty pages and those under writeback (``balance_dirty_pages``)."""
        return self.count[Use.DIRTY] + self.count[Use.WRITEBACK]

    @property
    def cached(self) -> int:
        """Pages of the page cache."""
        return self.count[Use.CLEAN] + self.dirty

    def move(self, old: Use, new: Use, pages: int = 1) -> None:
        """Some pages get another use.  :class:`KernelBug` if there are not so many of the old one."""
        if pages < 0 or self.count[old] < pages:
            raise KernelBug(f"mm: {pages} pages from {old.name}, which has {self.count[old]}")
        self.count[old] -= pages
        self.count[new] += pages
