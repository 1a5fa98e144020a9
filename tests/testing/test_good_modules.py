"""The conformance suite accepts every honest kind of module: no false alarms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pytest

import uxk
from uxk.testing import Check, Subject, all_checks


def manifest(**more: Any) -> uxk.Manifest:
    more = {"name": "specimen", "version": "1", "license": "Apache-2.0", "description": "A specimen.", **more}
    return uxk.Manifest(**more)


class Base(uxk.Extension[Any]):
    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request)


class ServesInATask(uxk.Extension[Any]):
    """No callbacks at all."""

    manifest = manifest(watchdog=uxk.Watchdog(heartbeat_ns=100_000_000))

    async def run(self, ctx: uxk.Context) -> None:
        async for requests in ctx.batches():
            await ctx.sleep_ns(1000)
            for request in requests:
                ctx.complete(request)


class TaskBesideCallbacks(Base):
    manifest = manifest(ready="explicit", restart=uxk.RestartPolicy(mode="permanent"))

    async def run(self, ctx: uxk.Context) -> None:
        await ctx.sleep_ns(2_000_000)
        ctx.ready()
        while True:
            await ctx.sleep_ns(10_000_000, daemon=True)
            ctx.set_attribute("beats", ctx.now_ns)


class SmallestQueue(Base):
    manifest = manifest(budget=uxk.Budget(queue_depth=2))


class DeepQueue(Base):
    manifest = manifest(budget=uxk.Budget(queue_depth=4096))


class Rejects(Base):
    manifest = manifest(full="reject", fate="requeue")


class Mortal(Base):
    manifest = manifest(restart=uxk.RestartPolicy(mode="temporary"))


class NoSecondLife(Base):
    manifest = manifest(restart=uxk.RestartPolicy(max_restarts=0), fate="reissue")


class SlowReissue(Base):
    """Keeps requests for a while, answers them one by one and out of order."""

    manifest = manifest(fate="reissue")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for delay_ns, request in enumerate(reversed(requests), 1):
            ctx.call_later_ns(delay_ns * 100, lambda request: ctx.complete(request), request)


class LittleProcessor(Base):
    manifest = manifest(budget=uxk.Budget(cpu_ppm=1000))


class Holder(Base):
    """Holds memory, a lock, a snapshot and devices while it lives."""

    manifest = manifest(
        kind="both", capabilities=("lock:big:lock", "snapshot:map:write", "snapshot:map:read", "kmsg:read"),
        alias=("holder-alias",),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        ctx.allocate(8192, keep="medium")
        ctx.allocate(4096)
        ctx.add_device("specimen-extra", colour="red")
        ctx.add_chardev("specimen-char")
        ctx.set_attribute("mood", "calm", writable=True)
        ctx.open("lock", "big", uxk.Rights.LOCK).then(lambda done: ctx.acquire(done.result, lease_ns=10**9))
        ctx.open("snapshot", "map", uxk.Rights.WRITE).then(lambda done: ctx.publish(done.result, b"first"))
        ctx.follow_kmsg(max_level=3)


class Agent(Base):
    """Attaches itself to block devices."""

    manifest = manifest(kind="ml-agent", binds=(uxk.Bind({"class": "block"}),), depends=("null",))

    def setup(self, ctx: uxk.Context) -> None:
        self.seen: list[int] = []

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic == "device_add":
            ctx.submit(event.cap, uxk.Op.READ, length=512).then(lambda done: self.seen.append(done.status))


class ManyParams(uxk.Params):
    size: Annotated[int, uxk.param(ge=512, le=1 << 40, unit="bytes", help="size")] = 4096
    speed: Annotated[int, uxk.param(gt=0, lt=100, help="speed", writable=True)] = 50
    mode: Annotated[Literal["fast", "safe"], uxk.param(help="mode", writable=True)] = "safe"
    quiet: Annotated[bool, uxk.param(help="whether it is quiet", writable=True)] = False
    label: Annotated[str, uxk.param(min_length=1, max_length=8, help="label", writable=True)] = "disk"
    serial: Annotated[str, uxk.param(pattern="^[A-Z]{2}[0-9]{4}$", help="serial number", writable=True)] = "AB1234"
    peer: Annotated[int | None, uxk.param(help="another one")] = None
    ports: Annotated[tuple[int, ...], uxk.param(help="ports")] = (1, 2)


class Configurable(Base):
    manifest = manifest(params=ManyParams)

    def setup(self, ctx: uxk.Context) -> None:
        if self.params.peer is not None and self.params.peer < 0:
            raise uxk.UsageError(f"peer {self.params.peer}: expected at least 0")


GOOD = (
    ServesInATask, TaskBesideCallbacks, SmallestQueue, DeepQueue, Rejects, Mortal, NoSecondLife, SlowReissue,
    LittleProcessor, Holder, Agent, Configurable,
)  # fmt: skip


@pytest.mark.parametrize("check", all_checks(), ids=lambda check: str(check.__name__))
@pytest.mark.parametrize("cls", GOOD)
def test_no_false_alarm(cls: type[uxk.Extension[Any]], check: Check) -> None:
    check(Subject(cls))
