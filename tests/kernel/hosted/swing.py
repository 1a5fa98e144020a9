"""A disk to be upgraded under load; what goes wrong with a build of it, a parameter says."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import uxk

SIZE_BYTES = 64 << 10
LATENCY_NS = 50_000


class SwingParams(uxk.Params):
    fails: str = ""


class Swing(uxk.Extension[SwingParams]):
    """Its medium is kept memory; what it hands over is how many requests it and those before it have served."""

    manifest = uxk.Manifest(
        name="swing", version="1", driver_class="block", ready="explicit", params=SwingParams, fate="reissue",
        ready_timeout_ns=1_000_000, budget=uxk.Budget(memory_bytes=SIZE_BYTES),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.ctx, self.served, self.mine = ctx, 0, 0
        ctx.allocate(SIZE_BYTES, keep="medium").then(self.on_memory)
        if self.params.fails == "setup":
            raise ValueError("as asked")

    def on_memory(self, done: uxk.Completion) -> None:
        self.medium = self.ctx.map(done.result, writable=True)
        if self.params.fails == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.params.fails != "never":
            self.ctx.ready()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.call_later_ns(LATENCY_NS, lambda _: self.serve(requests))

    def serve(self, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            area = slice(request.offset, request.offset + request.length)
            if request.opcode == uxk.Op.READ:
                self.ctx.complete(request, bytes(self.medium[area]))
            else:
                self.medium[area] = request.payload
                self.ctx.complete(request)
            self.served += 1
            self.mine += 1
            if self.params.fails == "probation" and self.mine > 10:
                raise ValueError("as asked, later")
        self.ctx.set_attribute("served", self.served)

    def checkpoint(self) -> bytes:
        if self.params.fails == "checkpoint":
            raise ValueError("as asked, at the end")
        return b"%d" % self.served

    def restore(self, data: bytes) -> None:
        if self.params.fails == "restore":
            raise ValueError("as asked, at once")
        self.served = int(data)
