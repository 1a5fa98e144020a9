"""Which segment a volume would clean next: looked at between runs, and nothing is changed by looking."""

from __future__ import annotations

from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.select import select
from uxk.subsystems.lfs.fast.shared import choose
from uxk.subsystems.lfs.fast.volume import Volume, registers


def next_victim(volume: Volume) -> tuple[int, int] | None:
    """(user writes since it was sealed, valid blocks) of the next victim; None if no segment has enough garbage, or
    a program decides that could not be asked without a trace.

    Works on copies: a selection may draw random numbers, and hinted victims are used up by being asked for.
    """
    for pool in range(int(volume.reg[c.POOLS])):
        own = registers(volume, pool)
        if own[c.SELECTION] == c.PROGRAM and own[c.PROGRAM_AT] and not own[c.PROGRAM_PURE]:
            return None
    reg, seg = volume.reg.copy(), volume.seg.copy()
    if reg[c.POOLS] == 1:
        segment = int(select(reg, seg))
    else:
        first, second = reg[c.REGISTERS : 2 * c.REGISTERS], reg[2 * c.REGISTERS : 3 * c.REGISTERS]
        segment = int(choose(reg, first, second, seg))
    return (int(reg[c.NOW] - seg[segment, c.SEALED]), int(seg[segment, c.LIVE])) if segment >= 0 else None
