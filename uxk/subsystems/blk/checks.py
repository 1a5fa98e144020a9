"""Whether a disk can be asked for what a client asks: the answers of Linux's submit_bio_noacct (block/blk-core.c).

And whether what its driver answers can be.
"""

from __future__ import annotations

import errno

from uxk.limits import PAYLOAD_MAX_BYTES
from uxk.subsystems.blk.limits import QueueLimits
from uxk.subsystems.blk.request import DISCARD, EXTENTS, FLUSH, READ, WRITE, ZEROES, Rq
from uxk.uapi.entries import Completion, Request


def length_of(request: Request) -> int:
    """How many bytes it is about; a write may leave that to its payload."""
    return request.length or (len(request.payload) if request.opcode == WRITE else 0)


def known(op: int) -> bool:
    """Whether the queue understands an operation; others pass through as they are."""
    return READ <= op <= ZEROES or op == EXTENTS


def refusal(request: Request, length: int, limits: QueueLimits) -> int:
    """The errno with which the queue itself answers a request, or 0.

    EINVAL: not in whole logical blocks (blkdev_dio_invalid), or data that do not fit the length.  EOPNOTSUPP: no
    discards here.  EROFS: the device is read-only, EPERM: it was made so (blkdev_write_iter).  Beyond the end: EIO
    (bio_check_eod), ENOSPC for a write (blkdev_write_iter).
    """
    op, offset = request.opcode, request.offset
    if op == FLUSH:
        return errno.EINVAL if length or request.payload else 0
    if (offset | length) & limits.block_mask or offset < 0 or length < 0 or request.buffer < 0:
        return errno.EINVAL
    if op in (READ, EXTENTS):
        if op == READ and not request.region and length > PAYLOAD_MAX_BYTES:
            return errno.EINVAL  # no answer could hold it
        return errno.EIO if offset + length > limits.capacity_bytes else 0
    if op == WRITE and not request.region and len(request.payload) != length:
        return errno.EINVAL
    if limits.hardware.read_only:
        return errno.EROFS
    if limits.read_only_setting:
        return errno.EPERM
    if op == DISCARD and not limits.discard_bytes:
        return errno.EOPNOTSUPP
    if offset + length > limits.capacity_bytes:
        return errno.ENOSPC if op == WRITE else errno.EIO
    return 0


def verdict(rq: Rq, completion: Completion, *, whole: bool) -> int:
    """What a driver's answer comes to: its own status, or EIO if it has not moved what it was asked for.

    A part of a read is of no use to anybody.  A part of a write is told to the client, if that asked for no more than
    this request (``whole``); else nobody knows whose part it is.
    """
    if completion.status or rq.opaque:
        return completion.status
    if rq.op == READ and not rq.region:
        return 0 if len(completion.payload) == rq.length else errno.EIO
    short = not whole and rq.op in (READ, WRITE) and 0 < completion.result < rq.length
    return errno.EIO if short else 0
