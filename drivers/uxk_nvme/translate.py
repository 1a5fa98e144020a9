"""What block requests are as NVMe commands, those of one command and those of several."""

from __future__ import annotations

import errno
from typing import Final, NamedTuple, TypeAlias

import uxk
from uxk.uapi.blk import IoFlag
from uxk_nvme.spec import DEAC, FUA, PSDT_SGL, RANGE, TRANSFER_MAX_BYTES, ZEROES_MAX_BYTES, Io

Words: TypeAlias = tuple[int, int, int, int, int]
"""A command without its identifier, as :data:`uxk_nvme.spec.SQE_FAST` has it; with a length, its address is to come."""

_DEALLOCATE: Final = 4 << 32
"""Dwords 10 and 11 of Dataset Management: one range, AD."""


class Disk(NamedTuple):
    """A namespace as the driver knows it."""

    nsid: int
    shift: int
    size_bytes: int
    name: str


class Job(NamedTuple):
    """The commands of one request, and the data that go to the controller with one of them."""

    commands: list[Words]
    data: bytes = b""
    moved: int = 0
    """What the request's answer says."""


def job_of(request: uxk.Request, disk: Disk) -> Job | int:
    """The commands of a request: READ, WRITE, FLUSH, DISCARD or WRITE_ZEROES; or an errno."""
    head = PSDT_SGL << 8 | disk.nsid << 32
    flush: Words = (Io.FLUSH | head, 0, 0, 0, 0)
    opcode, shift, flags = request.opcode, disk.shift, request.flags
    if opcode == uxk.Op.FLUSH:
        return Job([flush])
    length = request.length or (len(request.payload) if opcode == uxk.Op.WRITE else 0)
    if length <= 0 or (request.offset | length) & (1 << shift) - 1 or request.offset + length > disk.size_bytes:
        return errno.EINVAL
    slba, blocks = request.offset >> shift, length >> shift
    before = [flush] if flags & IoFlag.PREFLUSH else []
    durable = FUA if flags & IoFlag.FUA else 0
    match opcode:
        case uxk.Op.READ | uxk.Op.WRITE:
            inline = opcode == uxk.Op.WRITE and not request.region
            if length > TRANSFER_MAX_BYTES or (inline and length != len(request.payload)):
                return errno.EINVAL
            code = Io.READ if opcode == uxk.Op.READ else Io.WRITE
            plain: Words = (code | head, 0, length, slba, blocks - 1 | durable)
            return Job([*before, plain], request.payload if inline else b"", length)
        case uxk.Op.WRITE_ZEROES:
            durable |= 0 if flags & IoFlag.NOUNMAP else DEAC
            most = ZEROES_MAX_BYTES >> shift
            commands: list[Words] = [
                (Io.WRITE_ZEROES | head, 0, 0, slba + at, min(blocks - at, most) - 1 | durable)
                for at in range(0, blocks, most)
            ]
            return Job([*before, *commands], b"", length)
        case uxk.Op.DISCARD:
            return Job([(Io.DSM | head, 0, RANGE.size, _DEALLOCATE, 0)], RANGE.pack(0, blocks, slba), length)
        case _:
            return errno.EOPNOTSUPP
