"""A driver with tasks, in the same process as ``lodger``: they wait, write to memory, and tell how often."""

from __future__ import annotations

import os

import trio

import uxk


class Walker(uxk.Extension):
    manifest = uxk.Manifest(
        name="walker", host=os.environ.get("UXK_TEST_HOST", "house"), capabilities=("device:*:submit",),
        restart=uxk.RestartPolicy(mode="temporary"), sandbox=uxk.Sandbox(memory_bytes=32 << 20, files=30),
    )  # fmt: skip

    async def run(self, ctx: uxk.Context) -> None:
        self.count = 0
        memory = (await ctx.allocate(8192)).result
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.walk, ctx, memory)
            async for requests in ctx.batches():
                for request in requests:
                    if request.payload == b"raise":
                        raise ValueError("as asked")
                    if request.payload == b"end":
                        nursery.cancel_scope.cancel()
                    ctx.complete(request, b"%d" % self.count)

    async def walk(self, ctx: uxk.Context, memory: int) -> None:
        for number in range(20):
            await ctx.sleep_ns(1000)
            page = (await ctx.derive(memory, ctx.name, uxk.Rights.READ | uxk.Rights.WRITE)).result
            ctx.map(page, writable=True)[number] = number  # asks the kernel, in the middle of a step
            await ctx.revoke(page)
            self.count += 1
            ctx.set_attribute("count", self.count)
