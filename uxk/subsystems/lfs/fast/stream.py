"""Streams apart: blocks that are written one after the other die together (files, logs, compactions).

A user write goes to the log whose last write was next to it, else to the log that was left alone longest; moved
blocks go down a chain of generations.  The idea is that of multi-stream writes by detected sequential streams (Yang
et al., "AutoStream", SYSTOR 2017, "SFR"); here the streams are the open logs themselves.

====  =======  ==============================================================================
  0   USER     logs for user writes, 1 to LOGS - 1; the others are generations of moved blocks
  1   WINDOW   pages between two writes of one stream, at most
====  =======  ==============================================================================
"""

# What one reads out of an array has no type.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from typing import Final

from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.arrays import Ints
from uxk.subsystems.lfs.fast.jit import jit

USER: Final = c.ARG
WINDOW: Final = c.ARG + 1
NEXT: Final = c.STATE
"""Page after the last one of each user log."""
USED: Final = c.STATE + 16
"""User clock of the last write of each."""


@jit
def user_logs(reg: Ints) -> int:
    """Logs for user writes; at least one, and one is left for moves if there are two."""
    return max(min(reg[USER], reg[c.LOGS] - 1), 1)


@jit
def stream_user(reg: Ints, p: int) -> int:
    """Class of a user write."""
    window = min(max(reg[WINDOW], 0), 1 << 40)
    log = 0
    oldest = reg[USED]
    for each in range(user_logs(reg)):
        distance = p - reg[NEXT + each]
        if -window <= distance <= window:
            log = each
            break
        if reg[USED + each] < oldest:
            oldest = reg[USED + each]
            log = each
    reg[NEXT + log] = p + 1
    reg[USED + log] = reg[c.NOW]
    return log


@jit
def stream_gc(reg: Ints, klass: int) -> int:
    """Class of a block that is moved out of a segment of that class."""
    user = user_logs(reg)
    last = reg[c.LOGS] - 1
    if klass < user or klass > last:
        return min(user, last)
    return min(klass + 1, last)
