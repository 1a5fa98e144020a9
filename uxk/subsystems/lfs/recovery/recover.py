"""Mounting: the newest whole checkpoint, then what the log has beyond it."""

from __future__ import annotations

from typing import NamedTuple

from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.policies.base import Policy, hook
from uxk.subsystems.lfs.recovery.medium import Medium
from uxk.subsystems.lfs.recovery.state import CorruptVolume, Entry, State, unpack_block
from uxk.subsystems.lfs.recovery.store import CELL_BYTES, Store, area_cells
from uxk.subsystems.lfs.reference import OPEN
from uxk.subsystems.lfs.timed.volume import StepVolume


class Mounted(NamedTuple):
    """A volume ready to run, and what finding it took."""

    volume: StepVolume
    store: Store
    version: int
    """Of the checkpoint that was found."""
    rolled_blocks: int
    """Blocks taken from the log beyond the checkpoint."""
    scanned_blocks: int
    """Blocks looked at."""
    dropped_blocks: int
    """Whole blocks beyond the checkpoint that were not taken: an older one is missing."""


def format_volume(geometry: Geometry, policy: Policy, medium: Medium, cell_bytes: int = CELL_BYTES) -> Mounted:
    """An empty volume on an empty medium, with its first checkpoint durable."""
    return _mount(geometry, policy, medium, State(geometry), cell_bytes, (0, 0, 0))


def mount(geometry: Geometry, policy: Policy, medium: Medium, cell_bytes: int = CELL_BYTES) -> Mounted:
    """Recovers a volume and makes a checkpoint of what was found, so that leftovers of the crash count no more.

    May be interrupted by another power loss and done again.  Statistics that a placement keeps by page start anew;
    sums that a policy keeps by segment are told of every valid block.  Raises :class:`CorruptVolume` if no
    checkpoint is whole, and :class:`~uxk.subsystems.lfs.recovery.medium.PowerLoss`.
    """
    state = newest(geometry, medium, cell_bytes)
    return _mount(geometry, policy, medium, state, cell_bytes, roll_forward(geometry, medium, state, cell_bytes))


def newest(geometry: Geometry, medium: Medium, cell_bytes: int = CELL_BYTES) -> State:
    """The state of the newest whole checkpoint.  Raises :class:`CorruptVolume` if there is none."""
    cells = area_cells(geometry, cell_bytes)
    areas = (b"".join(medium.read(first + cell) for cell in range(cells)) for first in (0, cells))
    states = [state for area in areas if (state := State.unpack(area, geometry)) is not None]
    if not states:
        raise CorruptVolume("neither checkpoint area is whole")
    return max(states, key=lambda state: state.version)


def roll_forward(
    geometry: Geometry, medium: Medium, state: State, cell_bytes: int = CELL_BYTES
) -> tuple[int, int, int]:
    """Appends to ``state`` what follows it in the log, up to the first gap; blocks taken, looked at and dropped.

    After a checkpoint only open and clean segments are written, so no others are looked at.
    """
    size, first = geometry.segment_blocks, 2 * area_cells(geometry, cell_bytes)
    found: dict[int, tuple[int, Entry]] = {}
    scanned = 0
    for segment, used in enumerate(state.used):
        for block in range(segment * size + used, (segment + 1) * size):
            scanned += 1
            whole = unpack_block(medium.read(first + block))
            if whole is not None and whole[0].version == state.version:
                found[whole[0].sequence] = block, whole[0]
    taken = 0
    while (following := found.get(state.sequence + 1)) is not None:
        state.append(*following)
        taken += 1
    return taken, scanned, len(found) - taken


def _mount(
    geometry: Geometry, policy: Policy, medium: Medium, state: State, cell_bytes: int, counts: tuple[int, int, int]
) -> Mounted:
    version = state.version
    store = Store(geometry, medium, state, cell_bytes)
    volume = StepVolume(geometry, policy)
    install(volume, state)
    store.attach(volume)
    store.checkpoint()
    return Mounted(volume, store, version, *counts)


def install(volume: StepVolume, state: State) -> None:
    """Puts a state into an empty volume; counts, heads and the clean segments follow from it."""
    size = volume.size
    volume.now, volume.moved = state.now, state.moved
    volume.block_of[:], volume.last[:] = state.block_of, state.last
    volume.used[:], volume.log_of[:] = state.used, state.log_of
    volume.sealed_at[:], volume.born[:] = state.sealed_at, state.born
    for page, block in enumerate(state.block_of):
        if block >= 0:
            volume.owner[block] = page
            volume.is_valid[block] = 1
            volume.live[block // size] += 1
            volume.valid += 1
    volume.clean = [segment for segment in range(volume.segments - 1, -1, -1) if not state.used[segment]]
    volume.low = len(volume.clean)
    volume.total = sum(state.used)
    for segment, used in enumerate(state.used):
        if state.sealed_at[segment] >= 0:
            volume.live[segment] -= OPEN
            volume.garbage += size - volume.live[segment]
        elif used:
            volume.heads[state.log_of[segment]] = segment
    for part in dict.fromkeys((volume.policy.placement, volume.policy.selection, volume.policy.background)):
        appended = None if part is None else hook(part, "appended")
        if appended is not None:
            for block in range(len(volume.owner)):
                if volume.is_valid[block]:
                    appended(volume, volume.owner[block], block // size, -1)
