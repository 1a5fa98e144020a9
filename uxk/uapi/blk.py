"""What block devices, their clients and the block layer share: flags, limits, extents, NVMe passthrough.

Requests of block devices use the generic opcodes READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES and EXTENTS of
:class:`uxk.uapi.entries.Op`; ``offset`` and ``length`` are in bytes.  Data travel inside the entry (``payload``), or
lie in memory that ``region`` names, from ``buffer`` on.  A completion's ``status`` is an errno, its ``result`` the
number of bytes moved.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum, IntFlag
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from uxk.errors import UsageError
from uxk.limits import I64_MAX
from uxk.uapi.entries import Op


class IoFlag(IntFlag):
    """Request flags (Linux: include/linux/blk_types.h)."""

    FUA = 1
    """Durable before it is answered (REQ_FUA)."""
    PREFLUSH = 2
    """What was answered before must be durable first (REQ_PREFLUSH)."""
    NOUNMAP = 4
    """WRITE_ZEROES keeps the blocks allocated (REQ_NOUNMAP)."""
    SYNC = 8
    """Somebody waits for it (REQ_SYNC)."""
    META = 16
    """Metadata (REQ_META)."""
    RAHEAD = 32
    """Read ahead: may fail without harm (REQ_RAHEAD)."""
    NOMERGE = 64
    """Must reach the driver as it is (REQ_NOMERGE)."""


class NvmeOp(IntEnum):
    """Passthrough to an NVMe controller, for drivers whose manifest says ``passthrough="nvme"``.

    As NVME_IOCTL_ADMIN_CMD, NVME_IOCTL_IO_CMD and io_uring's uring_cmd are on Linux.
    ``payload`` begins with a submission queue entry of 64 bytes; data to the controller may follow it, or lie in
    ``region`` at ``buffer``, ``length`` bytes.  ``offset`` is ``cntlid << 16 | qid``.  The completion's status is 0
    whenever the controller has answered; ``result`` is then :func:`nvme_result`, and data from the controller are its
    payload, or in ``region``.
    """

    ADMIN = Op.PRIVATE
    IO = Op.PRIVATE + 1
    ATTACH = Op.PRIVATE + 2
    """A further controller of the subsystem for a host: payload host NQN and host id; ``result`` is its CNTLID.

    It belongs to the client that asks (:attr:`~uxk.uapi.entries.Request.port`).  When that client's connection ends,
    the driver gets :attr:`Op.RELEASE` from the same port.
    """
    DETACH = Op.PRIVATE + 3
    """The host is gone: ``offset`` as above; all of its commands are aborted."""
    WAIT_EVENT = Op.PRIVATE + 4
    """The next asynchronous event of that controller; ETIMEDOUT after ``length`` milliseconds without one.

    ``result`` is the completion's DW0, as of an Asynchronous Event Request.
    """


def nvme_result(dw0: int, status: int) -> int:
    """DW0 and the status field (15 bits: code, type, CRD, More, DNR; without the phase) as one number."""
    return status << 32 | dw0


def nvme_status(result: int) -> int:
    """The status field of a passthrough completion's ``result``; 0 is success."""
    return result >> 32 & 0x7FFF


_NVME_SQE_BYTES: Final = 64
_NVME_WRITE, _NVME_READ = 0x01, 0x02


def nvme_moved(payload: bytes, length: int, result: int, answer: bytes, *, by_region: bool) -> tuple[int, int]:
    """Bytes that an :attr:`NvmeOp.IO` request has read and written: none unless it is a Read or Write that succeeded.

    ``payload`` and ``length`` are the request's, ``result`` and ``answer`` (the payload) its completion's;
    ``by_region``: its data lay in shared memory.
    """
    if nvme_status(result) or len(payload) < _NVME_SQE_BYTES:
        return 0, 0
    if payload[0] == _NVME_READ:
        return length if by_region else len(answer), 0
    if payload[0] == _NVME_WRITE:
        return 0, length if by_region else len(payload) - _NVME_SQE_BYTES
    return 0, 0


class BlockLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a block device can do: the properties of a device of class ``block`` (Linux: struct queue_limits).

    A device without ``capacity_bytes`` is no disk.
    """

    capacity_bytes: Annotated[int, Meta(ge=0, le=I64_MAX)]
    logical_block_bytes: Annotated[int, Meta(ge=512, le=65536)] = 512
    physical_block_bytes: Annotated[int, Meta(ge=512, le=1 << 20)] = 512
    io_min_bytes: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    io_opt_bytes: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    max_transfer_bytes: Annotated[int, Meta(ge=512, le=1 << 30)] = 128 << 10
    max_discard_bytes: Annotated[int, Meta(ge=0, le=I64_MAX)] = 0
    max_write_zeroes_bytes: Annotated[int, Meta(ge=0, le=I64_MAX)] = 0
    write_cache: Annotated[int, Meta(ge=0, le=1)] = 0
    """Whether FLUSH means anything."""
    fua: Annotated[int, Meta(ge=0, le=1)] = 0
    read_only: Annotated[int, Meta(ge=0, le=1)] = 0
    rotational: Annotated[int, Meta(ge=0, le=1)] = 0
    queues: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Hardware queues."""


def limits_of(properties: Mapping[str, str]) -> BlockLimits | None:
    """The limits among a device's properties; None if it is no disk.  UsageError names a value that cannot be."""
    if "capacity_bytes" not in properties:
        return None
    known = {field.name for field in msgspec.structs.fields(BlockLimits)}
    try:
        return msgspec.convert({k: v for k, v in properties.items() if k in known}, BlockLimits, strict=False)
    except msgspec.ValidationError as exc:
        raise UsageError(f"device {properties.get('name', '?')}: {exc}") from None


def properties_of(limits: BlockLimits) -> dict[str, str]:
    """The same as properties, for ``ctx.add_device(name, **properties_of(limits))``."""
    return {name: str(value) for name, value in msgspec.structs.asdict(limits).items()}


_EXTENT: Final = struct.Struct("<QI")


class Extent(NamedTuple):
    """A piece of the answer to EXTENTS."""

    length_bytes: int
    hole: bool
    """Not allocated."""
    zero: bool
    """Reads as zeros."""


def pack_extents(extents: Iterable[Extent]) -> bytes:
    """The payload of a completion of EXTENTS."""
    return b"".join(_EXTENT.pack(each.length_bytes, each.hole | each.zero << 1) for each in extents)


def unpack_extents(payload: bytes) -> list[Extent]:
    """The extents, in order from the request's offset on."""
    return [Extent(length, bool(bits & 1), bool(bits & 2)) for length, bits in _EXTENT.iter_unpack(payload)]
