"""What goes through a disk's queue: a client's request (bio) and the driver's (request), as Linux parts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uxk.uapi.blk import IoFlag
from uxk.uapi.entries import Completion, Op, Request

if TYPE_CHECKING:
    from uxk.subsystems.blk.port import DiskPort

READ: Final = int(Op.READ)
WRITE: Final = int(Op.WRITE)
FLUSH: Final = int(Op.FLUSH)
DISCARD: Final = int(Op.DISCARD)
ZEROES: Final = int(Op.WRITE_ZEROES)
EXTENTS: Final = int(Op.EXTENTS)
"""Plain integers: comparing members of an enumeration costs several times as much."""
FUA: Final = int(IoFlag.FUA)
PREFLUSH: Final = int(IoFlag.PREFLUSH)
NOMERGE: Final = int(IoFlag.NOMERGE | IoFlag.FUA | IoFlag.PREFLUSH)
"""Linux: REQ_NOMERGE_FLAGS."""

READS, WRITES, DISCARDS, FLUSHES = range(4)
"""Groups that statistics tell apart (Linux: enum stat_group)."""


class Bio:
    """A client's request, on its way through the queue in one or several pieces (Linux: struct bio)."""

    __slots__ = (
        "chunks", "cid", "flags", "left_bytes", "length", "offset", "op", "port", "request", "status",
        "whole",
    )  # fmt: skip

    def __init__(self, port: DiskPort, cid: int, request: Request, length: int) -> None:
        self.port = port
        self.cid = cid
        """The command id that the client knows it by."""
        self.request = request
        self.op = request.opcode
        self.offset = request.offset
        self.length = length
        self.flags = request.flags
        self.left_bytes = length
        """Not answered yet."""
        self.status = 0
        self.chunks: dict[int, bytes] | None = None
        """Data read so far, by their place in it."""
        self.whole: Completion | None = None
        """The driver's own answer, if it served this and nothing else."""

    def answer(self) -> Completion:
        """What the client is told, once nothing is left."""
        status, done = self.status, self.whole
        if done is not None:
            return Completion(self.cid, done.status, done.result, done.payload)
        if status:
            return Completion(self.cid, status)
        chunks, payload = self.chunks, b""
        if chunks is not None:
            payload = b"".join([chunks[at] for at in sorted(chunks)])
        return Completion(self.cid, 0, self.length, payload)


class Rq:
    """One request as the driver gets it (Linux: struct request)."""

    __slots__ = (
        "buffer", "counted", "cpu", "expires_ns", "flags", "group", "hctx", "issued_ns", "length", "number", "offset",
        "op", "opaque", "prio", "queued", "region", "retries", "segments", "started_ns", "step", "steps",
    )  # fmt: skip

    def __init__(self, op: int, offset: int, length: int, flags: int, cpu: int, number: int) -> None:
        self.op = op
        self.offset = offset
        self.length = length
        self.flags = flags
        self.region = 0
        self.buffer = 0
        self.segments: list[tuple[Bio, int, int]] = []
        """Pieces in order: of whom, from which byte of it, how many."""
        self.cpu = cpu
        self.hctx = 0
        self.number = number
        """In the order in which they came into being."""
        self.prio = 1
        self.group = group_of(op)
        self.started_ns = 0
        self.issued_ns = -1
        """When the driver got it; negative before."""
        self.expires_ns = 0
        """When a scheduler wants it served."""
        self.retries = 0
        self.opaque = False
        """Passed on as it is, without being looked at or counted (Linux: blk_rq_is_passthrough)."""
        self.queued = False
        """Whether the scheduler has had it."""
        self.counted = False
        """Whether statistics know of it."""
        self.steps: tuple[str, ...] = ()
        """What is left of its flush sequence."""
        self.step = ""

    @property
    def end(self) -> int:
        """The byte behind it."""
        return self.offset + self.length

    def entry(self, device: int) -> Request:
        """The request for the driver."""
        segments = self.segments
        if not segments:  # a flush of the queue's own
            return Request(0, self.op, b"", 0, 0, 0, 0, device)
        bio, at, count = segments[0]
        origin = bio.request
        if self.opaque:
            return Request(
                0, origin.opcode, origin.payload, origin.offset, origin.length, origin.region, origin.port, device,
                origin.buffer, origin.flags,
            )  # fmt: skip
        payload = b""
        if self.op == WRITE and not self.region:
            if len(segments) > 1:
                payload = b"".join([piece.request.payload[a : a + n] for piece, a, n in segments])
            elif bio.op != WRITE:  # zeroes for a device that has no command for them
                payload = zeros(count)
            else:
                payload = origin.payload if count == bio.length else origin.payload[at : at + count]
        return Request(
            0, self.op, payload, self.offset, self.length, self.region, origin.port, device, self.buffer, self.flags
        )  # fmt: skip


_ZEROS: Final[dict[int, bytes]] = {}


def zeros(count: int) -> bytes:
    """That many zero bytes; the last length asked for is kept, since they come in equal pieces."""
    found = _ZEROS.get(count)
    if found is None:
        _ZEROS.clear()
        found = _ZEROS[count] = bytes(count)
    return found


def group_of(op: int) -> int:
    """Whose statistics an operation belongs to (Linux: op_stat_group).

    An empty flush is a write without data to Linux, and counted as such; the flushes that the device gets for it are
    counted by themselves.
    """
    if op == READ:
        return READS
    return DISCARDS if op == DISCARD else WRITES
