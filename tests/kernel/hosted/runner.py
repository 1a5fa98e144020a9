"""A driver whose task serves requests, with a second one beside it that publishes; and every request is remembered."""

from __future__ import annotations

import trio

import uxk


class Runner(uxk.Extension):
    manifest = uxk.Manifest(name="runner", restart=uxk.RestartPolicy(max_restarts=2))

    async def run(self, ctx: uxk.Context) -> None:
        served = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.publish, ctx)
            async for batch in ctx.batches():
                for request in batch:
                    if request.payload == b"raise":
                        raise RuntimeError("as asked")
                    if request.payload == b"end":
                        ctx.complete(request)
                        nursery.cancel_scope.cancel()
                        return
                    served += 1
                    delay_ns = int(ctx.random("delays").integers(100))
                    await ctx.sleep_ns(delay_ns)
                    ctx.complete(request, b"%d %d" % (served, ctx.now_ns))
                    ctx.log(f"served {served}")

    async def publish(self, ctx: uxk.Context) -> None:
        for count in range(20):
            await ctx.sleep_ns(77)
            ctx.set_attribute("count", count)
