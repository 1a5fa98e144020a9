"""How much data a request has moved, for the accounts of both sides."""

from __future__ import annotations

from typing import Final

from uxk.uapi.blk import NvmeOp, nvme_moved
from uxk.uapi.entries import Completion, Op, Request, Submit
from uxk.uapi.manifest import Manifest

_READ: Final = int(Op.READ)
_WRITE: Final = int(Op.WRITE)
_DATA_OPS: Final = frozenset({_READ, _WRITE})
_NVME_DATA_OPS: Final = frozenset({_READ, _WRITE, int(NvmeOp.IO)})


def moved_bytes(request: Request | Submit, completion: Completion) -> int:
    """Data that a READ or WRITE that succeeded has moved, whatever the driver claims: never more than was asked for."""
    if request.opcode == _READ and not request.region:
        size_bytes = len(completion.payload)
        return size_bytes if size_bytes <= request.length or not request.length else request.length
    size_bytes = request.length if request.region else len(request.payload)
    return completion.result if 0 < completion.result < size_bytes else size_bytes


def data_ops(manifest: Manifest) -> frozenset[int]:
    """Opcodes of a driver's requests whose data the accounts count."""
    return _NVME_DATA_OPS if manifest.passthrough == "nvme" else _DATA_OPS


def moved(request: Request | Submit, completion: Completion) -> tuple[int, int]:
    """Bytes read and written by a request, with an opcode of :func:`data_ops`, that was answered without an error."""
    if request.opcode == _READ:
        return moved_bytes(request, completion), 0
    if request.opcode == _WRITE:
        return 0, moved_bytes(request, completion)
    by_region = bool(request.region)
    return nvme_moved(request.payload, request.length, completion.result, completion.payload, by_region=by_region)
