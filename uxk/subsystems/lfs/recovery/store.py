"""Writes what a volume does to a medium, so that it can be recovered after any power loss."""

from __future__ import annotations

from typing import Final

from uxk.errors import KernelBug
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.recovery.medium import Medium
from uxk.subsystems.lfs.recovery.state import CorruptVolume, Entry, State, pack_block, packed_bytes, unpack_block
from uxk.subsystems.lfs.reference import Volume

CELL_BYTES: Final = 4096
"""Bytes of one write to a checkpoint area."""


def area_cells(geometry: Geometry, cell_bytes: int = CELL_BYTES) -> int:
    """Cells of one of the two checkpoint areas."""
    return -(-packed_bytes(geometry) // cell_bytes)


def make_medium(geometry: Geometry, cell_bytes: int = CELL_BYTES) -> Medium:
    """An empty medium for a volume: checkpoint areas 0 and 1, then the log's blocks."""
    return Medium(2 * area_cells(geometry, cell_bytes) + geometry.segment_count * geometry.segment_blocks)


class Store:
    """A trace of a :class:`~uxk.subsystems.lfs.timed.volume.StepVolume` that makes it last.

    Promise: after :meth:`sync` returned, every write and trim before it survives.  What came later may survive up to
    some point and not beyond it.  Rules that keep it: the log is flushed before a checkpoint that refers to it; a
    checkpoint overwrites the older area; a cleaned segment is written again only after a checkpoint that does not
    refer to it is durable (F2FS' prefree segments); and a sync with trims since the last checkpoint makes one, as
    trims leave no entry in the log.
    """

    def __init__(self, geometry: Geometry, medium: Medium, state: State, cell_bytes: int = CELL_BYTES) -> None:
        self.geometry, self.medium, self.state, self.cell_bytes = geometry, medium, state, cell_bytes
        self._area_cells = area_cells(geometry, cell_bytes)
        self._volume: Volume | None = None
        self._payload = b""
        self._trimmed = False
        self.unsafe: set[int] = set()
        """Segments cleaned since the last durable checkpoint."""
        self.checkpoints = self.syncs = 0
        self.forced = 0
        """Checkpoints made only because a segment had to be written again."""

    def attach(self, volume: Volume) -> None:
        """Follows this volume from now on."""
        self._volume = volume
        volume.trace = self

    # --- what callers do ---

    def stage(self, payload: bytes) -> None:
        """Content of the user writes that follow."""
        self._payload = payload

    def read(self, page: int) -> bytes | None:
        """A page's content; None if it has none.  Raises :class:`CorruptVolume` if the block is not the page's."""
        block = self.state.block_of[page]
        return None if block < 0 else self._fetch(block, page)[1]

    def sync(self) -> None:
        """Makes everything before durable.  Raises :class:`~uxk.subsystems.lfs.recovery.medium.PowerLoss`."""
        if self._trimmed:
            self.checkpoint()
        else:
            self.medium.flush()
        self.syncs += 1

    def checkpoint(self) -> None:
        """Writes the state to the older area; all cleaned segments may be written again."""
        self._barrier()
        self.state.version += 1
        self._write_area(self.state.pack())
        self.medium.flush()
        self.unsafe.clear()
        self._trimmed = False
        self.checkpoints += 1

    # --- what the volume tells ---

    def opened(self, segment: int, log: int) -> None:
        """Before the first block goes into a segment."""
        if segment in self.unsafe:
            self.forced += 1
            self._before_reuse()

    def written(self, page: int, block: int, old: int) -> None:
        """A user write."""
        self._append(page, block, self._payload, is_move=False)

    def moved(self, page: int, block: int, old: int) -> None:
        """A move: reads the old block, and writes it again."""
        self._append(page, block, self._fetch(old, page)[1], is_move=True)

    def trimmed(self, page: int, old: int) -> None:
        """A trim."""
        self.state.trim(page)
        self._trimmed = True

    def sealed(self, segment: int) -> None:
        """Nothing to do: the last block's entry says it."""

    def cleaned(self, segment: int) -> None:
        """A segment was cleaned; the checkpoint on the medium still refers to it."""
        self.state.clean(segment)
        self.unsafe.add(segment)

    # --- steps ---

    def _before_reuse(self) -> None:
        self.checkpoint()

    def _barrier(self) -> None:
        self.medium.flush()

    def _write_area(self, data: bytes) -> None:
        first = (self.state.version & 1) * self._area_cells
        for index in range(self._area_cells):
            self.medium.write(first + index, data[index * self.cell_bytes : (index + 1) * self.cell_bytes])

    def _append(self, page: int, block: int, payload: bytes, *, is_move: bool) -> None:
        volume, state = self._volume, self.state
        if volume is None:
            raise KernelBug("lfs: the store follows no volume")
        log = volume.log_of[block // state.size]
        entry = Entry(page, state.sequence + 1, state.version, log, volume.now, volume.last[page], int(is_move))
        self.medium.write(2 * self._area_cells + block, pack_block(entry, payload))
        state.append(block, entry)

    def _fetch(self, block: int, page: int) -> tuple[Entry, bytes]:
        found = unpack_block(self.medium.read(2 * self._area_cells + block))
        if found is None or found[0].page != page:
            raise CorruptVolume(f"block {block}: expected page {page}, found {found and found[0]}")
        return found
