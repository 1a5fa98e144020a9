"""The page cache: folios of one page, by file and index; clean ones in order of use, dirty ones in order of age."""

from __future__ import annotations

from uxk.errors import KernelBug
from uxk.subsystems.mm.zone import Use, Zone


class Folio:
    """One page of a file in memory."""

    __slots__ = ("file", "index", "sent", "since_ns", "use")

    def __init__(self, file: int, index: int) -> None:
        self.file = file
        self.index = index
        self.use = Use.CLEAN
        self.since_ns = 0
        """When it became dirty."""
        self.sent = False
        """Whether, under writeback, it is in the device's hands."""


class PageCache:
    """All folios.  Counts live in the zone and change with the folios, never by themselves."""

    __slots__ = ("_clean", "_dirty", "_folios", "_zone", "dirtied", "evicted", "written")

    def __init__(self, zone: Zone) -> None:
        self._zone = zone
        self._folios: dict[tuple[int, int], Folio] = {}
        self._clean: dict[Folio, None] = {}
        self._dirty: dict[int, dict[Folio, None]] = {}
        self.dirtied = self.written = self.evicted = 0
        """Pages that became dirty, were written back, and were taken by reclaim, since boot."""

    def __len__(self) -> int:
        return len(self._folios)

    def find(self, file: int, index: int) -> Folio | None:
        """The folio, or None; a clean one becomes the most recently used."""
        folio = self._folios.get((file, index))
        if folio is not None and folio.use is Use.CLEAN:
            del self._clean[folio]
            self._clean[folio] = None
        return folio

    def insert(self, file: int, index: int) -> Folio:
        """A clean folio on a page that was allocated as CLEAN."""
        if (file, index) in self._folios:
            raise KernelBug(f"mm: page {index} of file {file} is in the cache already")
        folio = self._folios[file, index] = Folio(file, index)
        self._clean[folio] = None
        return folio

    def make_dirty(self, folio: Folio, now_ns: int) -> None:
        """A clean folio gets new content.  One that is dirty stays so; one under writeback must be waited for."""
        if folio.use is Use.DIRTY:
            return
        self._change(folio, Use.CLEAN, Use.DIRTY)
        del self._clean[folio]
        folio.since_ns = now_ns
        self._dirty.setdefault(folio.file, {})[folio] = None
        self.dirtied += 1

    def begin_writeback(self, folio: Folio) -> None:
        """A dirty folio is on its way: who wants to change it must wait."""
        self._change(folio, Use.DIRTY, Use.WRITEBACK)
        folio.sent = False
        dirty = self._dirty[folio.file]
        del dirty[folio]
        if not dirty:
            del self._dirty[folio.file]

    def end_writeback(self, folio: Folio) -> None:
        """It has arrived, and may be reclaimed."""
        self._change(folio, Use.WRITEBACK, Use.CLEAN)
        self._clean[folio] = None
        self.written += 1

    def evict(self, most: int) -> int:
        """Frees up to so many clean pages, the least recently used first; returns how many."""
        doomed = [folio for folio, _ in zip(self._clean, range(most), strict=False)]
        for folio in doomed:
            del self._clean[folio], self._folios[folio.file, folio.index]
        self._zone.move(Use.CLEAN, Use.FREE, len(doomed))
        self.evicted += len(doomed)
        return len(doomed)

    def oldest(self) -> int:
        """The file whose first dirty folio has been dirty longest; -1 if nothing is dirty."""
        firsts = ((next(iter(folios)).since_ns, file) for file, folios in self._dirty.items())
        return min(firsts, default=(0, -1))[1]

    def dirty_of(self, file: int, most: int) -> list[Folio]:
        """Up to so many dirty folios of a file, oldest first."""
        return [folio for folio, _ in zip(self._dirty.get(file, ()), range(most), strict=False)]

    def dirty_count(self, file: int) -> int:
        """Dirty folios of a file."""
        return len(self._dirty.get(file, ()))

    def check(self) -> None:
        """Counts everything anew; :class:`KernelBug` for the first count that is wrong."""
        for use in (Use.CLEAN, Use.DIRTY, Use.WRITEBACK):
            found = sum(folio.use is use for folio in self._folios.values())
            if found != self._zone.count[use]:
                raise KernelBug(f"mm: {found} folios are {use.name}, the zone counts {self._zone.count[use]}")
        dirty = sum(map(len, self._dirty.values()))
        if (len(self._clean), dirty) != (self._zone.count[Use.CLEAN], self._zone.count[Use.DIRTY]):
            raise KernelBug(f"mm: lists hold {len(self._clean)} clean and {dirty} dirty folios")

    def _change(self, folio: Folio, old: Use, new: Use) -> None:
        if folio.use is not old:
            raise KernelBug(f"mm: page {folio.index} of file {folio.file} is {folio.use.name}, expected {old.name}")
        self._zone.move(old, new)
        folio.use = new
