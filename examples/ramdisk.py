"""A RAM disk, as a block driver in user space (docs/block-driver.md): python examples/ramdisk.py"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from itertools import groupby, islice
from typing import Annotated

import uxk
from uxk.scenario import ClosedLoop, Load
from uxk.uapi.blk import BlockLimits, Extent, pack_extents, properties_of


class RamParams(uxk.Params):
    size: Annotated[int, uxk.param(ge=4096, le=1 << 29, unit="bytes", help="capacity")] = 16 << 20


class RamDisk(uxk.Extension[RamParams]):
    manifest = uxk.Manifest(name="ramdisk", version="1.0", description="A RAM disk", license="MIT", params=RamParams,
        driver_class="block", ready="explicit", fate="reissue", budget=uxk.Budget(memory_params=("size",)))  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        ctx.allocate(self.params.size, keep="medium").then(lambda granted: self.attach(ctx, granted.result))

    def attach(self, ctx: uxk.Context, cap: int) -> None:
        self.medium = ctx.map(cap, writable=True)
        limits = BlockLimits(capacity_bytes=self.params.size, write_cache=1, fua=1, max_discard_bytes=1 << 30)
        ctx.add_device(ctx.device, **properties_of(limits))
        ctx.ready()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            try:
                ctx.complete(request, self.serve(ctx, request), result=request.length)
            except (ValueError, uxk.UxkError) as exc:
                ctx.fail(request, getattr(exc, "errno", errno.EINVAL))

    def serve(self, ctx: uxk.Context, request: uxk.Request) -> bytes:
        op, size, part = request.opcode, request.length, slice(request.buffer, request.buffer + request.length)
        area = self.medium[request.offset : request.offset + size]
        if len(area) < size or (op in (uxk.Op.READ, uxk.Op.WRITE) and size > 128 << 10):
            raise ValueError(f"{size} bytes at {request.offset} of {self.params.size}")
        if op == uxk.Op.READ and request.region:
            ctx.map(request.region, writable=True)[part] = area
        elif op == uxk.Op.WRITE:
            area[:] = ctx.map(request.region)[part] if request.region else request.payload
        elif op in (uxk.Op.DISCARD, uxk.Op.WRITE_ZEROES):
            area[:] = bytes(size)
        elif op == uxk.Op.EXTENTS:
            runs = groupby(range(0, size, 512), lambda at: bytes(area[at : at + 512]) == bytes(512))
            return pack_extents(Extent(512 * len(list(run)), hole, hole) for hole, run in islice(runs, 8))
        elif op not in (uxk.Op.READ, uxk.Op.FLUSH, uxk.Op.NOP):
            raise uxk.UsageError("no such operation", errno=errno.EOPNOTSUPP)
        return bytes(area) if op == uxk.Op.READ and not request.region else b""


if __name__ == "__main__":
    load = ClosedLoop(device="ramdisk0", count=2000, depth=16, span_bytes=1 << 20, read_ppm=300_000, verify=True)
    print(uxk.run(uxk.Scenario(name="ramdisk", modules=(Load(name="ramdisk"),), workloads=(load,))).report())
