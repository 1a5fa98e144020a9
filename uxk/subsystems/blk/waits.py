"""Who waits for a slot of a driver's queue: what the wait-for graph has to know of a disk.

Looked for only when somebody's requests may have had to wait, never on the short way, and no further than to the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

from uxk.kernel.ports import GatePort
from uxk.subsystems.blk.request import Rq

if TYPE_CHECKING:
    from uxk.subsystems.blk.disk import Disk
    from uxk.subsystems.blk.port import DiskPort


def held_back(disk: Disk, port: DiskPort, lower: GatePort) -> bool:
    """Whether the driver lacks room for any request of a client; ``lower`` is where its short way leads.

    It has none for what finds no tag, for what the scheduler keeps, and for what is in the driver's own backlog, since
    others use the driver, too.  What waits for a flush is not held back by the queue: the driver is at work on that.
    """
    backlog = disk.device.agent.requests.backlog
    if disk.clear and not backlog:
        return False
    if any(work.bio.port is port for work in disk.intake.waiting):
        return True
    hardware = disk.hardware
    if _any_of(port, chain(hardware.held, disk.scheduler)):
        return True
    if any(batch.port is lower for batch in backlog.values()):
        return True
    return bool(backlog) and _any_of(port, (rq for cid, rq in hardware.under_way.items() if cid in backlog))


def _any_of(port: DiskPort, rqs: Iterable[Rq]) -> bool:
    return any(bio.port is port for rq in rqs for bio, _, _ in rq.segments)
