"""The hashed sample of extents that miniatures and agents see: the same few pages all the time."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

EXTENT_SHIFT: Final = 3
"""Neighbouring pages that stay together: 8, so that sequential runs look like such in the sample."""
SEGMENT_BLOCKS_MIN: Final = 16
"""Of a miniature's segments; smaller ones tell policies apart badly."""
PAGES_MIN: Final = 8_192
"""Of a miniature."""


class Sample(NamedTuple):
    """One page in ``ratio``, and where it is in the miniature."""

    ratio: int
    numbers: npt.NDArray[np.int32]
    """[pages] number of the page in the sample, -1 if it is not in it."""
    pages: npt.NDArray[np.int32]
    """[sampled] the page of each number."""
    segment_blocks: int
    """Of a miniature with as many segments as the volume."""

    def of(self, ops: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The sampled ones among page writes, by their numbers in the sample."""
        numbers = self.numbers[ops]
        sampled: npt.NDArray[np.int32] = numbers[numbers >= 0]
        return sampled


def region_shift(pages: int) -> int:
    """For regions of neighbouring pages that belong to one pool: of 512 pages (2 MiB), or 64 of them in all.

    Smaller ones cut streams to pieces, which then end in more segments than they need.
    """
    return max(EXTENT_SHIFT, min(9, pages.bit_length() - 7))


def buckets(pages: int, shift: int = EXTENT_SHIFT) -> npt.NDArray[np.int64]:
    """Bucket of each page, 0 to 1,023: a multiplicative hash (Knuth) of its extent of ``1 << shift`` pages."""
    extents = np.arange(pages, dtype=np.uint64) >> np.uint64(shift)
    mixed = (extents * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(54)
    return mixed.astype(np.int64)


def sample_ratio(pages: int, segment_blocks: int, ratio: int = 16) -> int:
    """The largest power of two up to ``ratio`` that leaves miniatures big enough to tell policies apart."""
    while ratio > 1 and (segment_blocks // ratio < SEGMENT_BLOCKS_MIN or pages // ratio < PAGES_MIN):
        ratio //= 2
    return ratio


def make_sample(pages: int, segment_blocks: int, ratio: int = 16) -> Sample:
    """A sample of about one page in ``ratio`` of a volume, or of more if the volume is small."""
    ratio = sample_ratio(pages, segment_blocks, ratio)
    chosen = np.flatnonzero(buckets(pages) % ratio == 0).astype(np.int32)
    numbers = np.full(pages, -1, np.int32)
    numbers[chosen] = np.arange(len(chosen), dtype=np.int32)
    return Sample(ratio, numbers, chosen, segment_blocks // ratio)
