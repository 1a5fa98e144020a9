"""A scaled volume that costs metadata only: for the kernel's shadow scores, and for agents to try policies on.

A hashed sample of extents with segments scaled alike keeps the number of segments, and so what separation costs;
its write amplification ranks policies as the volume's own does (how well: docs/lfs-gc.md).
"""

from __future__ import annotations

from typing import NamedTuple

from uxk.limits import PPM
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.kernel import run
from uxk.subsystems.lfs.fast.volume import Ints, Volume, Words, check_pages, make_volume, set_policy, set_threshold
from uxk.subsystems.lfs.policy import LEARNED, Policy, parse_policy

__all__ = ["LEARNED", "Count", "Miniature", "Policy", "parse_policy"]


class Count(NamedTuple):
    """Blocks written in a span of time."""

    user: int
    moved: int

    @property
    def wa_ppm(self) -> int:
        """Write amplification: (user + moved) blocks for each user block; one million if there were none."""
        return PPM + self.moved * PPM // self.user if self.user else PPM


class Miniature:
    """A volume of ``pages`` under one policy, with the frozen rule; its pages are numbers below ``pages``."""

    def __init__(self, pages: int, segment_blocks: int, gp_ppm: int, logs: int, policy: Policy) -> None:
        self.volume: Volume = make_volume(pages, segment_blocks, gp_ppm, logs)
        self.policy = policy
        self._user = self._moved = 0
        set_policy(self.volume, *policy.codes)

    def follow(self, policy: Policy) -> None:
        """Puts another policy in force from the next write on."""
        if policy != self.policy:
            self.policy = policy
            set_policy(self.volume, *policy.codes)

    def threshold(self, gp_ppm: int) -> None:
        """Another garbage share from the next write on; :class:`ParamError` above the one that it was made for."""
        set_threshold(self.volume, gp_ppm)

    def table(self, classes: Ints) -> None:
        """Classes of the pages, for a policy ``table/...``."""
        self.volume = self.volume._replace(aux=classes)

    def clone(self, policy: Policy) -> Miniature:
        """A copy of it as it is now, under another policy."""
        other = Miniature.__new__(Miniature)
        reg, page, seg, owner, aux = self.volume
        other.volume = Volume(reg.copy(), page.copy(), seg.copy(), owner.copy(), aux.copy())
        other.policy = self.policy
        other._user, other._moved = self._user, self._moved
        other.follow(policy)
        return other

    def run(self, ops: Words) -> None:
        """Writes pages in this order; :class:`ParamError`, before the first, if one is outside."""
        check_pages(ops, int(self.volume.reg[c.PAGES]))
        run(*self.volume, ops, 0, len(ops))

    def epoch(self) -> Count:
        """What has been written since the last call."""
        user, moved = int(self.volume.reg[c.NOW]), int(self.volume.reg[c.MOVED])
        count = Count(user - self._user, moved - self._moved)
        self._user, self._moved = user, moved
        return count
