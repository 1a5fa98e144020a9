"""The batch kernel write by write: how many blocks each user write had to move before it was over."""

from __future__ import annotations

from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.jit import jit
from uxk.subsystems.lfs.fast.kernel import run
from uxk.subsystems.lfs.fast.volume import Volume, Words


@jit
def run_debt(volume: Volume, ops: Words, start: int, stop: int, debt: Words) -> None:
    """As :func:`~uxk.subsystems.lfs.fast.kernel.run`; ``debt[start:stop]`` gets the blocks moved after each write."""
    reg = volume[0]
    before = reg[c.MOVED]
    for index in range(start, stop):
        run(reg, volume[1], volume[2], volume[3], volume[4], ops, index, index + 1)
        after = reg[c.MOVED]
        debt[index] = after - before
        before = after
