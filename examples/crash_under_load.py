"""A driver crashes under load, is restarted, gets its requests again, and nothing is lost.

    python examples/crash_under_load.py

Three declarations make it so: the medium is kernel memory with a name, which outlives the driver (``keep``); the
restart policy brings it back after a millisecond; the fate ``reissue`` gives it the requests that it left open.
"""

from __future__ import annotations

from collections.abc import Sequence

import uxk
from uxk.scenario import Check, ClosedLoop, Fault, Load

SIZE_BYTES = 1 << 20


class Disk(uxk.Extension):
    """A disk that takes 50 microseconds for a batch."""

    manifest = uxk.Manifest(
        name="disk", version="1.0", license="Apache-2.0", driver_class="block", ready="explicit",
        budget=uxk.Budget(memory_bytes=SIZE_BYTES),
        restart=uxk.RestartPolicy(mode="transient", max_restarts=3, backoff_ns=1_000_000),
        fate="reissue",
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        ctx.allocate(SIZE_BYTES, keep="medium").then(lambda granted: self.on_memory(ctx, granted.result))

    def on_memory(self, ctx: uxk.Context, cap: int) -> None:
        self.medium = ctx.map(cap, writable=True)
        ctx.ready()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.call_later_ns(50_000, lambda _: self.serve(ctx, requests))

    def serve(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            area = slice(request.offset, request.offset + request.length)
            if request.opcode == uxk.Op.READ:
                ctx.complete(request, bytes(self.medium[area]))
            else:
                self.medium[area] = request.payload
                ctx.complete(request)


SCENARIO = uxk.Scenario(
    name="crash-under-load",
    description="a disk crashes twice under load and loses nothing",
    seed=1,
    modules=(Load(name="disk"),),
    workloads=(ClosedLoop(device="disk0", depth=16, count=3000, span_bytes=SIZE_BYTES, offset="zipf", verify=True),),
    faults=(
        Fault(kind="crash", module="disk", at_ns=2_000_000),
        Fault(kind="crash", module="disk", probability_ppm=2_000, count=1),
    ),
    checks=(
        Check(value="modules.disk.restarts", op="==", than=2),
        Check(value="workloads.load.failed", op="==", than=0),
        Check(value="workloads.load.mismatches", op="==", than=0),
    ),
)

if __name__ == "__main__":
    print(uxk.run(SCENARIO).report())
