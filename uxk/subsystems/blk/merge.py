"""When two pieces of work become one request, and how (Linux: block/blk-merge.c)."""

from __future__ import annotations

from uxk.subsystems.blk.limits import SEGMENTS_MAX, QueueLimits
from uxk.subsystems.blk.request import DISCARD, NOMERGE, READ, WRITE, Bio, Rq

BACK, FRONT = False, True
_MERGEABLE = frozenset({READ, WRITE, DISCARD})


def side_of(rq: Rq, bio: Bio, at: int, count: int, limits: QueueLimits) -> bool | None:
    """On which side of ``rq`` these ``count`` bytes of ``bio`` would join it: BACK, FRONT, or None for neither.

    Data inside entries are joined; data in memory only if they lie side by side in the same region.  What comes from
    clients that the driver tells apart stays apart.
    """
    start = bio.offset + at
    back = rq.offset + rq.length == start
    if not back and start + count != rq.offset:
        return None
    if (
        rq.op != bio.op or rq.op not in _MERGEABLE or (rq.flags | bio.flags) & NOMERGE or rq.retries or rq.opaque
        or rq.prio != bio.port.prio or len(rq.segments) >= SEGMENTS_MAX
    ):  # fmt: skip
        return None
    first, origin = rq.segments[0][0], bio.request
    if first.op != bio.op or first.request.port != origin.port or rq.region != origin.region:
        return None
    if rq.length + count > longest(rq.op, rq.region, limits):
        return None
    if rq.region and rq.op != DISCARD:
        beside = rq.buffer + rq.length == origin.buffer + at if back else origin.buffer + at + count == rq.buffer
        if not beside:
            return None
    return BACK if back else FRONT


def longest(op: int, region: int, limits: QueueLimits) -> int:
    """How many bytes one request may be about."""
    if op == DISCARD:
        return limits.discard_bytes
    return limits.max_bytes if region else limits.inline_bytes


def join(rq: Rq, bio: Bio, at: int, count: int, side: bool) -> None:
    """Makes a piece part of a request."""
    rq.length += count
    if side is BACK:
        rq.segments.append((bio, at, count))
    else:
        rq.segments.insert(0, (bio, at, count))
        rq.offset -= count
        if rq.region:
            rq.buffer -= count


def mergeable(rq: Rq, following: Rq, limits: QueueLimits) -> bool:
    """Whether a request that has not begun can take over the one that follows it on the disk."""
    if rq.end != following.offset or len(rq.segments) + len(following.segments) > SEGMENTS_MAX:
        return False
    if following.retries or (rq.flags | following.flags) & NOMERGE or following.op != rq.op:
        return False
    bio, at, _ = following.segments[0]
    return rq.length + following.length <= longest(rq.op, rq.region, limits) and (
        side_of(rq, bio, at, following.length, limits) is BACK
    )


def absorb(rq: Rq, following: Rq) -> None:
    """Takes over all of another request's pieces."""
    rq.segments += following.segments
    rq.length += following.length
    rq.started_ns = min(rq.started_ns, following.started_ns)
