"""A null block device: reads give zeros, writes vanish, each after a latency that can be set.

Copy this package to begin a driver; ``uxk new driver NAME`` does it for you.  In the spirit of Linux's null_blk
(Documentation/block/null_blk.rst) and SPDK's null bdev.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Annotated, Final, TypeAlias

import uxk

TRANSFER_MAX_BYTES: Final = 128 << 10
"""Longest read: its zeros travel inside one completion."""

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

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        """Every request is answered exactly once: here, or later from a timer."""
        answers = [self._serve(request) for request in requests]
        if self.params.latency_ns:
            # Kernel time, never the host's; one timer serves the batch.
            ctx.call_later_ns(self.params.latency_ns, lambda _: _finish(ctx, answers))
        else:
            _finish(ctx, answers)

    def _serve(self, request: uxk.Request) -> Answer:
        """What the device would do.  Requests may come from anybody: check everything."""
        length = request.length or len(request.payload)
        match request.opcode:
            case uxk.Op.READ if length > TRANSFER_MAX_BYTES:
                return request, b"", errno.EINVAL
            case uxk.Op.READ | uxk.Op.WRITE | uxk.Op.DISCARD | uxk.Op.WRITE_ZEROES:
                if request.offset + length > self.params.size:
                    return request, b"", errno.EINVAL
                return request, bytes(length) if request.opcode == uxk.Op.READ else b"", 0
            case uxk.Op.NOP | uxk.Op.FLUSH:
                return request, b"", 0
            case _:
                return request, b"", errno.EOPNOTSUPP


def _finish(ctx: uxk.Context, answers: Sequence[Answer]) -> None:
    for request, payload, status in answers:
        ctx.complete(request, payload, status=status)
