"""What kernels do: F2FS's temperatures."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from uxk.subsystems.lfs.policies.base import Placement

if TYPE_CHECKING:
    from uxk.subsystems.lfs.reference import Volume

HOT_BLOCKS: Final = 262_144
WARM_BLOCKS: Final = 2_621_440
LAST_AGE_PERCENT: Final = 30
HOT, WARM, COLD = 0, 1, 2


class F2fs(Placement):
    """F2FS's data logs under its age extent cache: hot, warm and cold by the update interval; moved blocks are cold.

    A block's age is 70 % its last interval and 30 % the age before, in user blocks; a page that was never rewritten
    is warm.  Bounds are the kernel's defaults (1 GiB and 10 GiB of writes), so a small volume has few warm pages.
    Three of F2FS's six logs hold nodes, which a block volume has not; hints by file name or inode have no place
    here either.
    """

    name = "f2fs"
    source = "Lee et al., FAST 2015; Linux 6.2, fs/f2fs/extent_cache.c (block age)"
    moved_log = COLD
    logs_needed = 3

    def __init__(self, hot_blocks: int = HOT_BLOCKS, warm_blocks: int = WARM_BLOCKS) -> None:
        self.hot_blocks, self.warm_blocks = hot_blocks, warm_blocks

    def attach(self, volume: Volume) -> None:
        """No page has an age yet."""
        self.age = array("q", [-1]) * volume.pages

    def user(self, volume: Volume, page: int) -> int:
        """By the age, in which this write's interval counts already."""
        last, before = volume.last[page], self.age[page]
        if last < 0:
            return WARM
        interval = volume.now - last
        age = interval
        if before >= 0:
            age = ((100 - LAST_AGE_PERCENT) * interval + LAST_AGE_PERCENT * before) // 100
        self.age[page] = age
        return HOT if age <= self.hot_blocks else WARM if age <= self.warm_blocks else COLD
