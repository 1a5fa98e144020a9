"""Many instants in one go must look as if each had been taken by itself."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import uxk


class Slow(uxk.Extension):
    """Answers nothing; notes when it gets to run."""

    manifest = uxk.Manifest(name="coast-slow", watchdog=uxk.Watchdog(request_timeout_ns=5_000, timeouts_max=100))
    seen: list[object]

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        Slow.seen.append(("turn", ctx.now_ns))


async def test_all_that_is_due_comes_before_the_instance_it_wakes() -> None:
    Slow.seen = []
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Slow)
        port = module.open_port(lambda completions: Slow.seen.append(completions[0].status))
        kernel.call_at_ns(10, lambda _: Slow.seen.append("before"))
        kernel.call_at_ns(20, lambda _: port.submit(uxk.Request(0)))
        kernel.call_at_ns(20, lambda _: Slow.seen.append("same instant"))
        kernel.call_at_ns(30, lambda _: Slow.seen.append("after"))
        await kernel.run()
        assert Slow.seen == ["before", "same instant", ("turn", 20), "after", errno.ETIMEDOUT]
        assert kernel.now_ns == 5_020  # the deadline is a daemon event, and yet the run waited for it


async def test_a_run_stops_at_its_time_and_at_idleness() -> None:
    ticks: list[int] = []
    async with uxk.Kernel(seed=1) as kernel:

        def tick(_: object) -> None:
            ticks.append(kernel.now_ns)
            if len(ticks) < 5_000:
                kernel.call_at_ns(kernel.now_ns + 10, tick)

        kernel.call_at_ns(0, tick)
        await kernel.run_until_ns(25)
        assert (ticks, kernel.now_ns) == ([0, 10, 20], 25)
        await kernel.run()
        assert (len(ticks), kernel.now_ns) == (5_000, 49_990)
