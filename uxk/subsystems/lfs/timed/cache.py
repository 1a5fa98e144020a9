"""The page cache before a volume: dirty pages, oldest first."""

from __future__ import annotations


class PageCache:
    """Pages with content newer than the volume's, by the time they became dirty."""

    def __init__(self, pages: int, writeback_ns: int) -> None:
        self.limit, self.writeback_ns = pages, writeback_ns
        self._dirty: dict[int, int] = {}
        self.absorbed = 0
        """Writes to pages that were dirty already: they never reach the volume."""

    def __len__(self) -> int:
        return len(self._dirty)

    def __contains__(self, page: int) -> bool:
        return page in self._dirty

    @property
    def is_full(self) -> bool:
        """Whether a clean page has no room."""
        return len(self._dirty) >= self.limit

    def add(self, page: int, now_ns: int) -> None:
        """A page becomes dirty, or stays so; its age counts from the first time."""
        if page in self._dirty:
            self.absorbed += 1
        else:
            self._dirty[page] = now_ns

    def take(self, page: int) -> bool:
        """The page is written back or dropped; false if it was not dirty."""
        return self._dirty.pop(page, None) is not None

    def due(self, now_ns: int, *, all_pages: bool = False) -> int:
        """The oldest page, if its time has come or the cache is three quarters full; else -1."""
        for page, since_ns in self._dirty.items():
            if all_pages or 4 * len(self._dirty) > 3 * self.limit or now_ns - since_ns >= self.writeback_ns:
                return page
            break
        return -1

    def next_due_ns(self) -> int:
        """When the oldest page's time comes; -1 if nothing is dirty."""
        return next((since_ns + self.writeback_ns for since_ns in self._dirty.values()), -1)
