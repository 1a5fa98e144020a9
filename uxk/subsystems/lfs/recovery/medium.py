"""A storage device with a volatile write cache, and what a power loss leaves of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from uxk.errors import KernelBug, UxkError

LOST: Final = 0
"""Fate of an unsynced write: nothing of it arrived."""
KEPT: Final = -1
"""All of it arrived; any number above 0 is that many leading bytes, with what was there before behind them."""


class PowerLoss(UxkError):
    """The device's power failed before a command was done."""


class Medium:
    """Cells of any length, rewritten whole; a write is durable after the next flush, or earlier, or torn.

    ``commands_left`` is how many writes and flushes still succeed (None: no limit); the next one raises
    :class:`PowerLoss`, as does everything after it until :meth:`crash`.
    """

    def __init__(self, cells: int) -> None:
        self._durable = [b""] * cells
        self._cached: dict[int, bytes] = {}
        self._unsynced: list[tuple[int, bytes]] = []
        self.commands_left: int | None = None
        self.commands = self.reads = self.flushes = 0

    def __len__(self) -> int:
        return len(self._durable)

    @property
    def unsynced(self) -> int:
        """Writes since the last flush."""
        return len(self._unsynced)

    def _command(self) -> None:
        if self.commands_left is not None:
            if self.commands_left <= 0:
                raise PowerLoss(f"power failed after {self.commands} commands")
            self.commands_left -= 1
        self.commands += 1

    def write(self, cell: int, data: bytes) -> None:
        """Writes a cell into the cache.  Raises :class:`PowerLoss`."""
        if not 0 <= cell < len(self._durable):
            raise KernelBug(f"medium: cell {cell}, expected 0 to {len(self._durable) - 1}")
        self._command()
        self._cached[cell] = data
        self._unsynced.append((cell, data))

    def flush(self) -> None:
        """Makes everything written so far durable.  Raises :class:`PowerLoss`, with nothing promised then."""
        self._command()
        for cell, data in self._unsynced:
            self._durable[cell] = data
        self._cached.clear()
        self._unsynced.clear()
        self.flushes += 1

    def read(self, cell: int) -> bytes:
        """A cell's newest content; ``b""`` if it was never written."""
        self.reads += 1
        return self._cached.get(cell, self._durable[cell])

    def crash(self, fate: Callable[[int, int], int]) -> None:
        """Power fails and comes back: ``fate(index, length)`` decides about each unsynced write, oldest first."""
        for index, (cell, data) in enumerate(self._unsynced):
            arrived = fate(index, len(data))
            if arrived == KEPT:
                self._durable[cell] = data
            elif arrived > LOST:
                self._durable[cell] = data[:arrived] + self._durable[cell][arrived:]
        self._cached.clear()
        self._unsynced.clear()
        self.commands_left = None
