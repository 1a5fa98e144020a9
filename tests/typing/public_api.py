"""A user's and an author's program, checked and never run: what the public names are to a type checker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, assert_type

import uxk


class EchoParams(uxk.Params):
    """Parameters of :class:`Echo`."""

    greeting: str = "hello"
    copies: Annotated[int, uxk.param(ge=1, le=16, help="answers per request", writable=True)] = 1


class Echo(uxk.Extension[EchoParams]):
    """Answers every request with its own payload."""

    manifest = uxk.Manifest(
        name="echo", version="1.0", license="MIT", kind="driver", driver_class="misc", params=EchoParams
    )

    def setup(self, ctx: uxk.Context) -> None:
        assert_type(self.params, EchoParams)
        assert_type(self.params.copies, int)
        ctx.log(self.params.greeting, level=6, copies=self.params.copies)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            assert_type(request.payload, bytes)
            ctx.complete(request, payload=request.payload)


class Plain(uxk.Extension):
    """Without parameters of its own, and served by a Trio task."""

    manifest = uxk.Manifest(name="plain", ready="explicit")

    async def run(self, ctx: uxk.Context) -> None:
        assert_type(self.params, uxk.Params)
        ctx.ready()
        async for requests in ctx.batches():
            assert_type(requests, list[uxk.Request])
            await ctx.sleep_ns(1_000)
            for request in requests:
                ctx.complete(request, status=0, result=len(request.payload))


class Pupil(uxk.MLAgent[EchoParams]):
    """Learns, and recommends."""

    manifest = uxk.Manifest(name="pupil", params=EchoParams)
    model = "lfs0"
    sites = ("lfs0.gc",)

    def setup(self, ctx: uxk.Context) -> None:
        assert_type(self.params, EchoParams)
        self.cost = uxk.online("linear_model.LinearRegression", l2=0.1)
        assert_type(self.cost, uxk.Online)

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        assert_type(dataset.generation, int)
        assert_type(self.cost.learn_many(dataset.rows, "cost"), int)

    def recommend(self, ctx: uxk.Context, site: str) -> uxk.Advice:
        ctx.recommend_sysctl("lfs/lfs0/gp_ppm", 120_000, why="fewer moves")
        return uxk.Advice(b"table", predicted=3)

    def on_feedback(self, ctx: uxk.Context, feedback: uxk.Feedback) -> None:
        assert_type(self.advice_of(feedback), uxk.Advice | None)
        assert_type(self.mode, uxk.Mode)


class Slip(uxk.MLAgent):
    """What the checkers must catch."""

    sites = "lfs0.gc"  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    def recommend(self, ctx: uxk.Context, site: str) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return "text"


def mistakes(ctx: uxk.Context, request: uxk.Request) -> None:
    """What the checkers must catch."""
    uxk.Manifest(name="x", kind="plugin")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    uxk.Manifest("x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ctx.complete(request, payload="text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ctx.no_such_attribute = 1  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    EchoParams(copies=1).copies = 2  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    uxk.online(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EchoParams(greeting=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def main() -> None:
    """The program of the README."""
    async with uxk.Kernel(seed=7, clock="virtual") as kernel:
        assert_type(kernel, uxk.Kernel)
        echo = await kernel.modprobe("echo", greeting="hi")
        assert_type(echo, uxk.Module)
        reply = await echo.submit(b"ping")
        assert_type(reply, uxk.Completion)
        assert_type(reply.payload, bytes)
        replies = await echo.submit_batch([uxk.Request(0, payload=b"a"), uxk.Request(0, payload=b"b")])
        assert_type(replies, list[uxk.Completion])
        await kernel.run_until_ns(kernel.now_ns + 1_000_000)
        assert_type(kernel.now_ns, int)
        assert_type(kernel.event_hash(), str)
        assert_type(kernel.sysfs.read("/sys/module/echo/parameters/greeting"), str)
        print(kernel.lsmod(), kernel.modinfo("echo"))
        await kernel.rmmod("echo")
        await refused(kernel)


async def refused(kernel: uxk.Kernel) -> None:
    """Errors are classes with a number."""
    try:
        await kernel.modprobe("nothing")
    except uxk.NoSuchModule as error:
        assert_type(error.errno, int)
    try:
        await (await kernel.insmod(Echo, instance="second", copies=2)).submit(b"")
    except (uxk.ParamError, uxk.RequestError) as error:
        assert_type(error.errno_name, str)
