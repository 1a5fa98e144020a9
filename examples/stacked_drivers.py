"""Two drivers stacked: a mirror keeps every block on two RAM disks (RAID 1), and knows them only by name.

    python examples/stacked_drivers.py

The workload writes patterns through the mirror, reads them back, and checks every byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import uxk
from uxk.scenario import Check, ClosedLoop, Load

EIO = 5


class RamParams(uxk.Params):
    size: Annotated[int, uxk.param(ge=4096, le=1 << 24, unit="bytes", help="capacity")] = 1 << 18
    latency_ns: Annotated[int, uxk.param(ge=0, unit="ns", help="time per batch")] = 20_000


class Ram(uxk.Extension[RamParams]):
    """A disk whose medium is a bytearray."""

    manifest = uxk.Manifest(name="ram", version="1.0", license="Apache-2.0", driver_class="block", params=RamParams)

    def setup(self, ctx: uxk.Context) -> None:
        self.medium = bytearray(self.params.size)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.call_later_ns(self.params.latency_ns, lambda _: self.serve(ctx, requests))

    def serve(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            area = slice(request.offset, request.offset + request.length)
            if area.stop > len(self.medium):
                ctx.fail(request, EIO)
            elif request.opcode == uxk.Op.READ:
                ctx.complete(request, bytes(self.medium[area]))
            else:
                self.medium[area] = request.payload
                ctx.complete(request)


class Mirror(uxk.Extension):
    """Writes to both disks; reads from one after the other in turn."""

    manifest = uxk.Manifest(
        name="mirror", version="1.0", license="Apache-2.0", driver_class="block", ready="explicit",
        capabilities=("device:disk0:submit", "device:disk1:submit"),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.disks: list[int] = []
        self.turn = 0
        for name in ("disk0", "disk1"):
            ctx.open_device(name).then(lambda opened: self.on_opened(ctx, opened))

    def on_opened(self, ctx: uxk.Context, opened: uxk.Completion) -> None:
        self.disks.append(opened.result)
        if len(self.disks) == 2:
            ctx.ready()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            if request.opcode == uxk.Op.READ:
                self.turn = 1 - self.turn
                self.pass_on(ctx, request, [self.disks[self.turn]])
            else:
                self.pass_on(ctx, request, self.disks)

    def pass_on(self, ctx: uxk.Context, request: uxk.Request, disks: list[int]) -> None:
        answers: list[uxk.Completion] = []

        def on_answer(answer: uxk.Completion) -> None:
            answers.append(answer)
            if len(answers) == len(disks):
                ctx.complete(request, answer.payload, status=max(a.status for a in answers))

        for disk in disks:
            ctx.submit(disk, request.opcode, request.payload, offset=request.offset, length=request.length).then(
                on_answer
            )


SCENARIO = uxk.Scenario(
    name="stacked-drivers",
    description="a mirror on two RAM disks",
    seed=1,
    modules=(Load(name="ram", instance="disk0"), Load(name="ram", instance="disk1"), Load(name="mirror")),
    workloads=(ClosedLoop(device="mirror0", depth=16, count=2000, span_bytes=1 << 18, read_ppm=300_000, verify=True),),
    checks=(
        Check(value="workloads.load.failed", op="==", than=0),
        Check(value="workloads.load.mismatches", op="==", than=0),
        Check(value="workloads.load.verified", op=">=", than=64),
    ),
)

if __name__ == "__main__":
    print(uxk.run(SCENARIO).report())
