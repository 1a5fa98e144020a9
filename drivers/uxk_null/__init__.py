"""A null block device: reads give zeros, writes vanish, each after a latency that can be set.

Copy this package to begin a driver; ``uxk new driver NAME`` does it for you.  In the spirit of Linux's null_blk
(Documentation/block/null_blk.rst) and SPDK's null bdev.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Annotated, Final, TypeAlias

import uxk
from uxk.uapi.blk import BlockLimits, Extent, pack_extents, properties_of

TRANSFER_MAX_BYTES: Final = 128 << 10
"""Longest read or write: data that travel inside an entry fit."""
SPAN_MAX_BYTES: Final = 1 << 31
"""Longest request without data."""
ZEROS: Final = bytes(TRANSFER_MAX_BYTES)

Answer: TypeAlias = tuple[uxk.Request, bytes, int]
"""A request, the payload for it, and its status."""


class NullParams(uxk.Params):
    """What ``modprobe null latency_ns=10us`` may set; types and bounds are checked."""

    size: Annotated[int, uxk.param(ge=512, le=1 << 60, unit="bytes", help="capacity of the device")] = 1 << 30
    # Writable: self.params follows `echo 5us > /sys/module/null/parameters/latency_ns`.
    latency_ns: Annotated[
        int, uxk.param(ge=0, le=10**9, unit="ns", writable=True, help="time from submission to completion")
    ] = 0


class Null(uxk.Extension[NullParams]):
    """A block device without a medium: reads give zeros, writes vanish."""

    manifest = uxk.Manifest(
        name="null",
        version="0.1.0",
        author="The uxk authors",
        license="Apache-2.0",
        kind="driver",
        driver_class="block",
        params=NullParams,
        # In-flight requests of an instance that dies are given to the next one: a null device loses nothing.
        fate="reissue",
    )

    def setup(self, ctx: uxk.Context) -> None:
        """A block device with a capacity is a disk: these properties say what it can do."""
        limits = BlockLimits(
            capacity_bytes=self.params.size, max_transfer_bytes=TRANSFER_MAX_BYTES, max_discard_bytes=SPAN_MAX_BYTES,
            max_write_zeroes_bytes=SPAN_MAX_BYTES,
        )  # fmt: skip
        ctx.add_device(ctx.device, **properties_of(limits))

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        """Every request is answered exactly once: here, or later from a timer."""
        answers = [self._serve(ctx, request) for request in requests]
        if self.params.latency_ns:
            # Kernel time, never the host's; one timer serves the batch.
            ctx.call_later_ns(self.params.latency_ns, lambda _: _finish(ctx, answers))
        else:
            _finish(ctx, answers)

    def _serve(self, ctx: uxk.Context, request: uxk.Request) -> Answer:
        """What the device would do.  Requests may come from anybody: check everything."""
        length = request.length or len(request.payload)
        if request.offset + length > self.params.size:
            return request, b"", errno.EINVAL
        match request.opcode:
            case uxk.Op.READ | uxk.Op.WRITE if length > TRANSFER_MAX_BYTES:
                return request, b"", errno.EINVAL
            case uxk.Op.READ:
                return self._read(ctx, request)
            case uxk.Op.EXTENTS:
                return request, pack_extents([Extent(length, hole=True, zero=True)]), 0
            case uxk.Op.NOP | uxk.Op.WRITE | uxk.Op.FLUSH | uxk.Op.DISCARD | uxk.Op.WRITE_ZEROES:
                return request, b"", 0
            case _:
                return request, b"", errno.EOPNOTSUPP

    def _read(self, ctx: uxk.Context, request: uxk.Request) -> Answer:
        """Zeros: into the client's memory if the request names any, else inside the completion."""
        zeros = ZEROS[: request.length]
        if not request.region:
            return request, zeros, 0
        try:
            ctx.map(request.region, writable=True)[request.buffer : request.buffer + len(zeros)] = zeros
        except (uxk.CapabilityError, ValueError):  # not lent for writing, taken back, or too short
            return request, b"", errno.EFAULT
        return request, b"", 0


def _finish(ctx: uxk.Context, answers: Sequence[Answer]) -> None:
    for request, payload, status in answers:
        moved_bytes = 0 if status else request.length or len(request.payload)
        ctx.complete(request, payload, status=status, result=moved_bytes)
