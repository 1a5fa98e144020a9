"""What a policy is: a placement says where blocks go, a selection which segment is cleaned.

An own placement takes a few lines, and everything it may look at is an attribute of
:class:`~uxk.subsystems.lfs.reference.Volume`::

    class EvenOdd(Placement):
        name = "even-odd"

        def user(self, volume: Volume, page: int) -> int:
            return page & 1

        def moved(self, volume: Volume, page: int, victim: int) -> int:
            return 2

    volume = Volume(Geometry(pages=4096), Policy(EvenOdd(), Greedy()))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from uxk.subsystems.lfs.reference import Volume


class Part:
    """What placements and selections have in common: a name, a source, and hooks they may override.

    The volume looks up once which hooks are overridden; the others cost nothing.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    """Where it was published."""

    def attach(self, volume: Volume) -> None:
        """Called once, on the empty volume: the place to make tables.  One object serves one volume."""

    def invalidated(self, volume: Volume, page: int, segment: int) -> None:
        """A user write makes the copy of ``page`` in ``segment`` garbage; counts are done, ``user`` comes next."""

    def appended(self, volume: Volume, page: int, segment: int, victim: int) -> None:
        """``page`` was put into ``segment``, moved out of ``victim`` or, if that is -1, by a user write; counts are
        done and ``volume.last[page]`` is its newest write."""

    def sealed(self, volume: Volume, segment: int) -> None:
        """``segment`` is full and may be a victim from now on."""

    def retired(self, volume: Volume, victim: int) -> None:
        """``victim`` is about to be cleaned; nothing was moved yet."""


class Placement(Part):
    """Says for each block to which log it goes: 0 .. ``volume.logs`` - 1."""

    user_log: ClassVar[int | None] = None
    """Set if all user writes go to this log: ``user`` is not called then."""
    moved_log: ClassVar[int | None] = None
    """Set if all moved blocks go to this log: ``moved`` is not called then."""
    logs_needed: ClassVar[int] = 1
    """Fewest open logs that the volume must have."""

    def user(self, volume: Volume, page: int) -> int:
        """Log of a user write.  The clock has advanced; ``volume.last[page]`` is still the previous write."""
        return self.user_log or 0

    def moved(self, volume: Volume, page: int, victim: int) -> int:
        """Log of a valid block that is moved out of ``victim``; called in the order of the victim's blocks."""
        return self.moved_log or 0


class Selection(Part):
    """Says which sealed segment is cleaned next."""

    def score(self, volume: Volume, segment: int) -> int:
        """The segment with the highest score is cleaned; ``segment`` is sealed, with 1 to ``most`` valid blocks."""
        return volume.size - volume.live[segment]

    def victim(self, volume: Volume) -> int:
        """The victim, or -1 if no sealed segment has garbage enough.

        A segment without valid blocks costs nothing and goes first; ties go to the lowest number.
        """
        most = volume.most
        best, best_score = -1, -1
        for segment, live in enumerate(volume.live):
            if live > most:  # open and clean ones too
                continue
            if live == 0:
                return segment
            score = self.score(volume, segment)
            if score > best_score:
                best, best_score = segment, score
        return best


class Policy(NamedTuple):
    """A placement with a selection."""

    placement: Placement
    selection: Selection
    background: Selection | None = None
    """Used instead by engines that have idle time, while they have it."""
    label: str = ""

    @property
    def name(self) -> str:
        """The preset's name, or for example ``"sepbit/cb-age"``."""
        return self.label or f"{self.placement.name}/{self.selection.name}"


def hook(part: Part, name: str) -> Callable[..., None] | None:
    """The bound hook of that name, or None if ``part`` leaves it as it is in :class:`Part`."""
    if getattr(type(part), name) is getattr(Part, name):
        return None
    bound: Callable[..., None] = getattr(part, name)
    return bound
