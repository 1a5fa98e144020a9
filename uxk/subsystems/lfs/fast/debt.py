"""The batch kernel write by write: how many blocks each user write had to move before it was over."""

from __future__ import annotations

from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.jit import jit
from uxk.subsystems.lfs.fast.kernel import run_alone
from uxk.subsystems.lfs.fast.shared import run_shared
from uxk.subsystems.lfs.fast.volume import Volume, Words


@jit
def run_debt(volume: Volume, ops: Words, start: int, stop: int, debt: Words) -> int:
    """As :func:`~uxk.subsystems.lfs.fast.kernel.run`; ``debt[start:stop]`` gets the blocks moved after each write."""
    reg = volume[0]
    reg[c.FULL] = 0
    if reg[c.POOLS] == 2:
        return run_shared(reg, volume[1], volume[2], volume[3], volume[4], ops, start, stop, debt, True)
    return run_alone(reg, volume[1], volume[2], volume[3], volume[4], ops, start, stop, debt, True)
