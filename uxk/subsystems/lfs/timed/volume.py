"""A volume that is cleaned block by block, so that user writes may come in between."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from uxk.errors import KernelBug, ParamError
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.policies.base import Policy
from uxk.subsystems.lfs.reference import OPEN, Trace, Volume, VolumeFull


@runtime_checkable
class TrimTrace(Trace, Protocol):
    """A trace that also wants to see trims."""

    def trimmed(self, page: int, old: int) -> None:
        """The page has no block any more; its copy in ``old`` is garbage."""


class StepVolume(Volume):
    """The reference volume with :meth:`Volume.collect` in steps, trims, and cleaned segments that may be held back.

    At most one victim is under way: :meth:`begin`, :meth:`move` for each valid block, :meth:`finish`.  In steps
    without user writes in between the outcome is that of ``collect``, block for block.
    """

    def __init__(self, geometry: Geometry, policy: Policy, trace: Trace | None = None) -> None:
        super().__init__(geometry, policy, trace)
        self.victim = -1
        """Segment under way, or -1."""
        self.held: list[int] = []
        """Segments that are empty and may not be written yet: the checkpoint on the device refers to them."""
        self.diverted = 0
        """Moved blocks that went to another log because no segment was clean."""
        noted = self._invalidated
        if noted is not None:

            def invalidated(volume: Volume, page: int, segment: int) -> None:
                # The policy wrote the victim off as a whole when it was retired.
                if segment != self.victim:
                    noted(volume, page, segment)

            self._invalidated = invalidated

    @property
    def room(self) -> int:
        """Blocks that can be appended before a segment must be cleaned."""
        return len(self.clean) * self.size + sum(self.size - self.used[head] for head in self.heads if head >= 0)

    def trim(self, page: int) -> bool:
        """Forgets a page's content; false if there is none.  Raises :class:`ParamError` outside the volume."""
        if not 0 <= page < self.pages:
            raise ParamError(f"page {page}: the volume has pages 0 to {self.pages - 1}")
        old = self.block_of[page]
        if old < 0:
            return False
        self._drop(old)
        if self._invalidated is not None:
            self._invalidated(self, page, old // self.size)
        self.block_of[page] = self.last[page] = -1
        self.valid -= 1
        if isinstance(self.trace, TrimTrace):
            self.trace.trimmed(page, old)
        return True

    def candidate(self, urgent: bool, background: bool = False) -> int:
        """The policy's victim or -1; if ``urgent``, one block of garbage is enough where nothing better is found."""
        selection = self.policy.selection
        if background and self.policy.background is not None:
            selection = self.policy.background
        victim = selection.victim(self)
        if victim >= 0 or not urgent:
            return victim
        most, self.most = self.most, self.size - 1
        try:
            return selection.victim(self)
        finally:
            self.most = most

    def begin(self, victim: int) -> None:
        """Takes a sealed segment under way.  Raises :class:`KernelBug` if it is not sealed, or one is already."""
        if self.victim >= 0 or not (0 <= victim < self.segments and self.sealed_at[victim] >= 0):
            raise KernelBug(f"lfs: segment {victim} cannot be cleaned, {self.victim} is under way")
        if self._retired is not None:
            self._retired(self, victim)
        self.victim = victim

    def move(self, old: int) -> int:
        """Copies a block out of the victim and returns the new one, or -1 if it is not valid any more (R104).

        Without a clean segment it goes to any log with room; raises :class:`VolumeFull` if there is none.
        """
        victim = self.victim
        if old // self.size != victim:
            raise KernelBug(f"lfs: block {old} is not in the victim {victim}")
        if not self.is_valid[old]:
            return -1
        page = self.owner[old]
        log = self.policy.placement.moved(self, page, victim)
        if not self.clean and 0 <= log < self.logs and self.heads[log] < 0:
            log = next((other for other, head in enumerate(self.heads) if head >= 0), -1)
            if log < 0:
                raise VolumeFull(f"segment {victim}: no room to move page {page}")
            self.diverted += 1
        block = self._append(page, log, victim)
        self._drop(old)
        self.moved += 1
        self.total += 1
        if self.trace is not None:
            self.trace.moved(page, block, old)
        if self.used[block // self.size] == self.size:
            self._seal(block // self.size)
        return block

    def finish(self, hold: bool = False) -> None:
        """Makes the victim clean, or holds it until :meth:`release`.  Raises :class:`KernelBug` if it is not empty."""
        victim = self.victim
        if victim < 0 or self.live[victim]:
            raise KernelBug(f"lfs: victim {victim} still has valid blocks")
        self.total -= self.size
        self.garbage -= self.size
        self.victim = -1
        self._make_clean(victim)
        if hold:
            self.held.append(self.clean.pop())

    def release(self, count: int) -> None:
        """Makes the ``count`` segments that were held first clean."""
        self.clean += self.held[:count]
        del self.held[:count]

    def check(self) -> None:
        """Counts everything anew, as :meth:`Volume.check`; segments held back count as clean."""
        stack = self.clean
        self.clean = stack + self.held
        try:
            super().check()
        finally:
            self.clean = stack

    def _drop(self, old: int) -> None:
        segment = old // self.size
        self.is_valid[old] = 0
        self.live[segment] -= 1
        if self.live[segment] < OPEN:
            self.garbage += 1
