"""A disk whose medium outlives it, and which dies on request in the middle of its work."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import uxk
from uxk.uapi.blk import BlockLimits, properties_of

SIZE_BYTES = 128 * 4096
LATENCY_NS = 50_000


class Medium(uxk.Extension):
    manifest = uxk.Manifest(
        name="medium", driver_class="block", ready="explicit", fate="reissue",
        budget=uxk.Budget(memory_bytes=SIZE_BYTES),
        restart=uxk.RestartPolicy(max_restarts=1000, backoff_ns=200_000, backoff_max_ns=200_000),
    )  # fmt: skip
    lives_writes = -1
    """Writes until its death; at the last half of the data is there, or with ``whole`` all, but no answer."""
    whole = False

    def setup(self, ctx: uxk.Context) -> None:
        ctx.allocate(SIZE_BYTES, keep="medium").then(lambda granted: self.attach(ctx, granted.result))

    def attach(self, ctx: uxk.Context, cap: int) -> None:
        self.medium = ctx.map(cap, writable=True)
        ctx.add_device(ctx.device, **properties_of(BlockLimits(capacity_bytes=SIZE_BYTES)))
        ctx.ready()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        work = [request for request in requests if request.opcode != uxk.Op.CALL]
        if work:
            ctx.call_later_ns(LATENCY_NS, lambda _: self.serve(ctx, work))
        for request in requests:
            if request.opcode == uxk.Op.CALL:
                count, how = request.payload.split()
                self.lives_writes, self.whole = int(count), how == b"whole"
                ctx.complete(request)

    def serve(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            area = self.medium[request.offset : request.offset + request.length]
            if request.opcode == uxk.Op.READ:
                ctx.complete(request, bytes(area))
                continue
            self.lives_writes -= 1
            if self.lives_writes == 0:
                there = len(area) if self.whole else len(area) >> 1
                area[:there] = request.payload[:there]
                os.kill(os.getpid(), signal.SIGKILL)
            area[:] = request.payload
            ctx.complete(request)
