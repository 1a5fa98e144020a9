"""A RAM disk for scenarios to load by name."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Annotated

import uxk


class DiskParams(uxk.Params):
    size: Annotated[int, uxk.param(ge=512, unit="bytes")] = 1 << 20
    latency_ns: Annotated[int, uxk.param(ge=0, unit="ns")] = 10_000
    lies_every: Annotated[int, uxk.param(ge=0)] = 0
    """Every so manieth write is acknowledged but not done."""


class SpecDisk(uxk.Extension[DiskParams]):
    """A disk in kernel memory that outlives it."""

    manifest = uxk.Manifest(
        name="spec-disk", license="MIT", driver_class="block", params=DiskParams, ready="explicit", fate="reissue",
        budget=uxk.Budget(memory_bytes=1 << 20), restart=uxk.RestartPolicy(max_restarts=50, backoff_ns=100_000),
        watchdog=uxk.Watchdog(request_timeout_ns=5_000_000, timeouts_max=100),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.writes = 0
        ctx.allocate(self.params.size, keep="medium").then(lambda granted: self.on_memory(ctx, granted.result))

    def on_memory(self, ctx: uxk.Context, cap: int) -> None:
        self.medium = ctx.map(cap, writable=True)
        ctx.ready()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.call_later_ns(self.params.latency_ns, lambda _: [self.serve(ctx, request) for request in requests])

    def serve(self, ctx: uxk.Context, request: uxk.Request) -> None:
        area = slice(request.offset, request.offset + request.length)
        if area.stop > self.params.size:
            ctx.fail(request, errno.EINVAL)
        elif request.opcode == uxk.Op.READ:
            ctx.complete(request, bytes(self.medium[area]))
        else:
            self.writes += 1
            if not self.params.lies_every or self.writes % self.params.lies_every:
                self.medium[area] = request.payload
            ctx.complete(request)
